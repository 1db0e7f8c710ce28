"""Entry points that MLflow loads: re-exports only."""
