"""Every combination of hyper-parameters of every model, judged on the validation week."""

import json
from itertools import product

from forecasting import features, forecast, mape_percent, read_demand, target
from models import fit_mlp, gbm, ridge


def candidates(epochs):
    """Pairs of a description and a function that fits it."""
    for alpha in (1.0, 10.0, 100.0, 1000.0):
        yield {"model": "ridge", "alpha": alpha}, lambda x, y, alpha=alpha: ridge(alpha).fit(x, y)
    for leaves, rate in product((4, 8, 16, 31), (0.02, 0.05)):
        settings = {"max_leaf_nodes": leaves, "learning_rate": rate}
        yield {"model": "gbm", **settings}, lambda x, y, s=settings: gbm(**s).fit(x, y)
    for layers, alpha, rate in product(((128, 64), (256, 128), (256, 256)), (0.01, 0.1, 1.0), (3e-5, 1e-4)):
        settings = {"hidden_layer_sizes": layers, "alpha": alpha, "learning_rate_init": rate}
        yield {"model": "mlp", "epochs": epochs, **settings}, lambda x, y, s=settings: fit_mlp(x, y, epochs, **s)


demand = read_demand(snakemake.input.demand)
train, validation = demand.steps("train"), demand.steps("validation")
inputs, targets = features(demand.megawatts, train), target(demand.megawatts, train)
results = []
for description, fit in candidates(snakemake.params.epochs):
    predicted = forecast(fit(inputs, targets), demand.megawatts, validation)
    results.append({**description, "validation_mape": mape_percent(demand.megawatts[validation], predicted)})
results.sort(key=lambda result: result["validation_mape"])
with open(snakemake.output.results, "w") as file:
    json.dump(results, file, indent=1)
