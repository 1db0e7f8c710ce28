"""Counting live scikit-learn models."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mlflow_green.complexity.counts import Complexity, metrics
from mlflow_green.complexity.sklearn_model import sklearn_complexity

PIXELS, CLASSES = 64, 10


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    return features[:500] / 16, labels[:500]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_logistic_regression_counts_weights_and_intercepts_and_one_mac_a_weight(digits):
    counted = sklearn_complexity(LogisticRegression(max_iter=5).fit(*digits))
    assert counted.parameters == PIXELS * CLASSES + CLASSES == 650
    assert counted.macs_nominal == 640


def test_zero_weights_lower_density_and_effective_macs_only(digits):
    model = Lasso(alpha=0.05).fit(*digits)
    kept = int(np.count_nonzero(model.coef_))
    counted = sklearn_complexity(model)
    assert 0 < kept < PIXELS
    assert (counted.parameters, counted.nonzero_parameters) == (PIXELS + 1, kept + 1)
    assert (counted.macs_nominal, counted.macs_effective) == (PIXELS, kept)
    assert counted.density_ratio == (kept + 1) / (PIXELS + 1)


def test_a_sparse_copy_of_the_weights_counts_the_same(digits):
    model = LogisticRegression(max_iter=5).fit(*digits)
    dense = sklearn_complexity(model)
    assert sklearn_complexity(model.sparsify()) == dense


def test_an_intercept_that_was_not_fitted_is_no_parameter(digits):
    assert sklearn_complexity(Ridge(fit_intercept=False).fit(*digits)).parameters == PIXELS


def test_a_perceptron_counts_every_layer(digits):
    counted = sklearn_complexity(MLPClassifier((64,), max_iter=2).fit(*digits))
    assert (counted.parameters, counted.macs_nominal) == (4_810, 4_736)


def test_a_pipeline_is_the_sum_of_its_steps_with_the_scaler(digits):
    counted = sklearn_complexity(make_pipeline(StandardScaler(), "passthrough", Ridge()).fit(*digits))
    assert counted.parameters == 2 * PIXELS + PIXELS + 1
    assert counted.macs_nominal == 2 * PIXELS


def test_columns_searches_and_transformed_targets_count_what_is_inside(digits):
    columns = ColumnTransformer([("scaled", StandardScaler(), [0, 1])], remainder="passthrough").fit(*digits)
    search = GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=2).fit(*digits)
    target = TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(*digits)
    assert sklearn_complexity(columns).parameters == 4
    assert sklearn_complexity(search).parameters == PIXELS + 1
    assert sklearn_complexity(target).parameters == PIXELS + 1 + 2


def test_one_step_that_is_not_known_leaves_the_pipeline_not_counted(digits):
    counted = sklearn_complexity(make_pipeline(StandardScaler(), KNeighborsClassifier()).fit(*digits))
    assert counted == Complexity(note="not counted: KNeighborsClassifier")
    assert metrics(counted) == {}


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(3),
        GradientBoostingClassifier(n_estimators=2),
        HistGradientBoostingClassifier(max_iter=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_tree_ensembles_count_nodes_and_claim_no_macs(digits, model):
    counted = sklearn_complexity(model.fit(*digits))
    assert counted.parameters > 3 * CLASSES
    assert counted.macs_nominal is None
    assert counted.density_ratio is None
    assert "nodes" in counted.note


def test_a_forest_has_the_nodes_of_its_trees(digits):
    forest = RandomForestClassifier(3).fit(*digits)
    assert sklearn_complexity(forest).parameters == sum(tree.tree_.node_count for tree in forest.estimators_)


def test_support_vectors_are_parameters_and_the_kernel_is_named_as_not_counted(digits):
    model = SVC().fit(*digits)
    counted = sklearn_complexity(model)
    vectors = len(model.support_vectors_)
    assert counted.macs_nominal == vectors * PIXELS + vectors * (CLASSES - 1)
    assert "rbf" in counted.note


def test_a_model_that_was_not_fitted_is_not_counted():
    assert sklearn_complexity(Ridge()).parameters is None


def test_metrics_hold_only_what_was_counted():
    counted = Complexity(parameters=10, nonzero_parameters=5).sized(2_000)
    assert metrics(counted) == {
        "complexity/parameters": 10.0,
        "complexity/nonzero_parameters": 5.0,
        "complexity/density_ratio": 0.5,
        "complexity/size_bytes": 2_000.0,
    }
