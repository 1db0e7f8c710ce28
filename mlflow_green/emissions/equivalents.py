"""What an amount is like, for people: an order of magnitude with its source, never a measurement."""

from __future__ import annotations

from mlflow_green.units import grams, watt_hours

CAR_G_CO2_PER_KM = 108.1
CAR_SOURCE = "mean of new cars registered in Europe in 2022, WLTP, European Environment Agency"
LAMP_WATTS = 10
LAMP_SOURCE = "an LED lamp that draws 10 W"


def car_km(carbon_micrograms: int) -> float:
    """Kilometres driven by an average new car (``CAR_SOURCE``; tailpipe CO2 only), >= 0."""
    return grams(carbon_micrograms) / CAR_G_CO2_PER_KM


def lamp_hours(energy_microjoules: int) -> float:
    """Hours that the same energy lights ``LAMP_SOURCE``, >= 0."""
    return watt_hours(energy_microjoules) / LAMP_WATTS
