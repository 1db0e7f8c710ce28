"""Energy budgets for machine-learning pipelines: meter, record, and stay inside the budget."""

from __future__ import annotations

__version__ = "0.1.0"
