"""Counts live scikit-learn estimators by their fitted attributes; scikit-learn itself is not imported.

Only attributes that scikit-learn documents are read (``coef_``, ``coefs_``, ``tree_``, ...), with one exception that is
marked. Nothing is ever unpickled. An estimator that is not known is "not counted", never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from mlflow_green.complexity.counts import Complexity, total_complexity

TREES_NOTE = "trees: parameters are nodes; comparisons are not MACs"
_NOTHING = Complexity(parameters=0, nonzero_parameters=0, macs_nominal=0, macs_effective=0)


def sklearn_complexity(model: Any) -> Complexity:
    """Parameters and MACs of a fitted estimator or pipeline, for a prediction of one row.

    A search counts as its best estimator, a pipeline as the sum of its steps. The model is not changed and no
    prediction is made.
    """
    if _is_switched_off(model):
        return _NOTHING
    for attribute, count in _COUNTERS:
        if hasattr(model, attribute):
            return count(model)
    return _unknown(model)


def _is_switched_off(step: Any) -> bool:
    """``None``, ``"passthrough"``, ``"drop"``, and the transformer of nothing that a passthrough column becomes."""
    if step is None or isinstance(step, str):
        return True
    return type(step).__name__ == "FunctionTransformer" and step.func is None


def _unknown(model: Any) -> Complexity:
    return Complexity(note=f"not counted: {type(model).__name__}")


def _pipeline(model: Any) -> Complexity:
    return total_complexity(sklearn_complexity(step) for _, step in model.steps)


def _columns(model: Any) -> Complexity:
    return total_complexity(sklearn_complexity(transformer) for _, transformer, _ in model.transformers_)


def _best(model: Any) -> Complexity:
    return sklearn_complexity(model.best_estimator_)


def _target_transformed(model: Any) -> Complexity:
    return total_complexity(sklearn_complexity(part) for part in (model.regressor_, model.transformer_))


def _linear(model: Any) -> Complexity:
    intercept = [model.intercept_] if getattr(model, "fit_intercept", True) else []
    return _weighted(weights=[model.coef_], others=intercept)


def _perceptron(model: Any) -> Complexity:
    return _weighted(weights=model.coefs_, others=model.intercepts_)


def _support_vectors(model: Any) -> Complexity:
    """One dot product with each support vector, then the weighted sum; the kernel's own function is not counted."""
    counted = _weighted(weights=[model.support_vectors_, model.dual_coef_], others=[model.intercept_])
    kernel = getattr(model, "kernel", "unknown")
    if kernel == "linear":
        return counted
    return Complexity(
        parameters=counted.parameters,
        nonzero_parameters=counted.nonzero_parameters,
        macs_nominal=counted.macs_nominal,
        macs_effective=counted.macs_effective,
        note=f"the kernel function ({kernel}) is not in the MACs",
    )


def _scaler(model: Any) -> Complexity:
    """StandardScaler and its like: one subtraction (not a MAC) and one multiplication a feature."""
    scale = getattr(model, "scale_", None)
    offset = next((value for name in _OFFSETS if (value := getattr(model, name, None)) is not None), None)
    return _weighted(weights=_present(scale), others=_present(offset))


def _tree(model: Any) -> Complexity:
    return _nodes([model.tree_])


def _tree_ensemble(model: Any) -> Complexity:
    trees = getattr(model.estimators_, "flat", model.estimators_)  # gradient boosting keeps them in a 2-D array
    parts = list(trees)
    if not parts or not all(hasattr(part, "tree_") for part in parts):
        return _unknown(model)
    return _nodes([part.tree_ for part in parts])


def _histogram_trees(model: Any) -> Complexity:
    # The predictors have no public name in scikit-learn; without them the model is "not counted".
    return Complexity(
        parameters=sum(len(tree.nodes) for trees in model._predictors for tree in trees),  # noqa: SLF001
        note=TREES_NOTE,
    )


def _nodes(trees: Sequence[Any]) -> Complexity:
    return Complexity(parameters=sum(int(tree.node_count) for tree in trees), note=TREES_NOTE)


_OFFSETS = ("mean_", "center_", "min_")
_COUNTERS = (
    ("steps", _pipeline),
    ("transformers_", _columns),
    ("best_estimator_", _best),
    ("regressor_", _target_transformed),
    ("support_vectors_", _support_vectors),
    ("coefs_", _perceptron),
    ("coef_", _linear),
    ("tree_", _tree),
    ("_predictors", _histogram_trees),
    ("estimators_", _tree_ensemble),
    ("scale_", _scaler),
)


def _weighted(*, weights: Iterable[Any], others: Iterable[Any]) -> Complexity:
    """Arrays of which every element is one MAC a row, and arrays that are only added."""
    multiplied, added = list(weights), list(others)
    macs, effective = sum(map(_size, multiplied)), sum(map(_nonzero, multiplied))
    return Complexity(
        parameters=macs + sum(map(_size, added)),
        nonzero_parameters=effective + sum(map(_nonzero, added)),
        macs_nominal=macs,
        macs_effective=effective,
    )


def _present(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _size(array: Any) -> int:
    """Elements of the dense shape: a sparse array's own ``size`` leaves out its zeros."""
    return prod(getattr(array, "shape", ()))


def _nonzero(array: Any) -> int:
    if hasattr(array, "count_nonzero"):  # SciPy sparse
        return int(array.count_nonzero())
    different = array != 0
    return int(different.sum()) if hasattr(different, "sum") else int(different)
