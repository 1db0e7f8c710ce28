"""Readings of energy counters and power models; only the meter and the composition root know them."""
