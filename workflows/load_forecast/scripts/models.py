"""The four models. All are ordinary scikit-learn estimators with fixed seeds."""

import numpy as np
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 0
MLP = {"hidden_layer_sizes": (256, 128), "alpha": 0.1, "batch_size": 64, "learning_rate_init": 1.5e-5}


def persistence():
    """The same as one week before: a change of nothing."""
    return DummyRegressor(strategy="constant", constant=0.0)


def ridge(alpha=100.0):
    return make_pipeline(StandardScaler(), Ridge(alpha=alpha))


def gbm(**parameters):
    """Gradient boosting over histograms; the grid of the sweep changes its parameters."""
    defaults = {"max_iter": 300, "learning_rate": 0.03, "max_leaf_nodes": 8, "min_samples_leaf": 40}
    return HistGradientBoostingRegressor(**{**defaults, **parameters}, random_state=SEED)


class EpochwiseMlp:
    """A multilayer perceptron trained one epoch at a time, so that it can stop and go on.

    Pickled between two epochs it continues exactly as if it had never stopped.
    """

    def __init__(self, inputs, **parameters):
        self.scaler = StandardScaler().fit(inputs)
        self.network = MLPRegressor(**{**MLP, **parameters}, random_state=SEED)
        self.epoch = 0

    def train_epoch(self, inputs, targets):
        self.network.partial_fit(self.scaler.transform(inputs), np.ravel(targets))
        self.epoch += 1

    def estimator(self):
        return Pipeline([("scale", self.scaler), ("mlp", self.network)])


def fit_mlp(inputs, targets, epochs, **parameters):
    mlp = EpochwiseMlp(inputs, **parameters)
    for _ in range(epochs):
        mlp.train_epoch(inputs, targets)
    return mlp.estimator()


def fit(name, inputs, targets, epochs):
    """The fitted estimator of that name; ``epochs`` matters to the MLP only."""
    if name == "mlp":
        return fit_mlp(inputs, targets, epochs)
    return {"persistence": persistence, "ridge": ridge, "gbm": gbm}[name]().fit(inputs, targets)
