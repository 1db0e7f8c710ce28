"""Pure functions that split what the node used among those who used it."""
