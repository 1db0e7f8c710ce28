"""Turning readings into energy windows, and CPU clocks of process trees into shares of them."""
