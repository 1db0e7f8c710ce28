"""Parameters, non-zeros, density and multiply-accumulates of models."""
