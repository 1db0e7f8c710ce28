"""Runs in the user's process at ``import mlflow``: has every logged model counted, and never gets in the way.

MLflow catches only import and attribute errors of an entry point, so anything else that escaped from here would break
``import mlflow`` for everyone: nothing escapes. ``MLFLOW_GREEN_DISABLE=1`` switches it off.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from mlflow_green.settings import is_disabled
from mlflow_green.units import milliseconds

_logger = logging.getLogger(__name__)
_MARK = "_mlflow_green_wrapped"


class GreenRunContext:
    """Asked by MLflow for the tags of a new run; it gives none: ``MLFLOW_RUN_CONTEXT`` carries them.

    MLflow makes one instance while it is being imported, which installs the hook.
    """

    def __init__(self) -> None:
        install()

    def in_context(self) -> bool:
        return False

    def tags(self) -> dict[str, str]:
        return {}


def install() -> None:
    """Wrap ``mlflow.models.Model.log`` as soon as MLflow has loaded it, once."""
    if is_disabled(os.environ):
        return
    try:
        from mlflow.utils.import_hooks import register_post_import_hook

        register_post_import_hook(_wrap_model_log, "mlflow.models.model", overwrite=False)
    except Exception:  # the user's `import mlflow` must not fail because of us
        _logger.debug("mlflow-green could not install its hook; models will not be counted", exc_info=True)


def _wrap_model_log(module: Any) -> None:
    try:
        original = module.Model.__dict__["log"].__func__
        if getattr(original, _MARK, False):
            return

        @functools.wraps(original)
        def log(cls: Any, *args: Any, **kwargs: Any) -> Any:
            model_info = original(cls, *args, **kwargs)
            _record_complexity(model_info, kwargs)
            return model_info

        setattr(log, _MARK, True)
        module.Model.log = classmethod(log)
    except Exception:  # noqa: BLE001 - an MLflow that looks different must still work
        _logger.warning("mlflow-green does not know this MLflow; logged models will not be counted")


def _record_complexity(model_info: Any, kwargs: Mapping[str, Any]) -> None:
    try:
        model = kwargs.get("sk_model")
        if model is not None and not is_disabled(os.environ):
            _log_complexity(model, model_info)
    except Exception as error:  # the user's model is logged; our numbers are not worth an exception
        _logger.warning("mlflow-green could not log the model's complexity: %s", error)
        _logger.debug("", exc_info=True)


def _log_complexity(model: Any, model_info: Any) -> None:
    """One batch with the model's id, so that the numbers show on the run and on the logged model."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    from mlflow_green.complexity.counts import metrics
    from mlflow_green.complexity.sklearn_model import sklearn_complexity

    client = MlflowClient()
    complexity = sklearn_complexity(model).sized(_size_bytes(client, model_info.model_id))
    values = metrics(complexity)
    if model_info.run_id is None:  # logged outside a run: there is nothing to put a metric on
        client.set_logged_model_tags(model_info.model_id, {name: str(value) for name, value in values.items()})
        return
    now_milliseconds = milliseconds(time.time())
    client.log_batch(
        model_info.run_id,
        metrics=[
            Metric(name, value, now_milliseconds, 0, model_id=model_info.model_id) for name, value in values.items()
        ],
        tags=[RunTag("green.complexity_note", complexity.note)] if complexity.note else [],
    )


def _size_bytes(client: Any, model_id: str) -> int | None:
    """Bytes of the model's files as the artifact store has them; ``None`` where the store does not say."""
    folders: list[str | None] = [None]
    total = 0
    while folders:
        for file in client.list_logged_model_artifacts(model_id, folders.pop()):
            if file.is_dir:
                folders.append(file.path)
            elif file.file_size is None:
                return None
            else:
                total += file.file_size
    return total
