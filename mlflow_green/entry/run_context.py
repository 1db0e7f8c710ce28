"""What MLflow loads at ``import mlflow`` (entry point ``mlflow.run_context_provider``): re-exports only."""

from mlflow_green.tracking.hooks import GreenRunContext

__all__ = ["GreenRunContext"]
