"""green.yaml, and the pure functions that decide by it."""
