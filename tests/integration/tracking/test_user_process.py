"""What happens in the user's own process: at ``import mlflow``, at ``log_model``, and in ours that must stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOG_MODEL = """
import json, sys
import mlflow
assert not {"sklearn", "torch", "codecarbon"} & set(sys.modules), "import mlflow became heavier"
import mlflow.sklearn
import numpy as np
from sklearn.linear_model import Ridge
with mlflow.start_run() as run:
    model = Ridge().fit(np.eye(4) * np.arange(4), [1, 2, 3, 4])
    info = mlflow.sklearn.log_model(model, name="model", pip_requirements=[])
client = mlflow.MlflowClient()
data = client.get_run(run.info.run_id).data
logged = client.get_logged_model(info.model_id).metrics
print(json.dumps([data.metrics, data.tags, {metric.key: metric.value for metric in logged}]))
"""


@pytest.fixture
def hold():
    class Hold:
        hold_id = "h1"

    return Hold


def test_a_logged_sklearn_model_is_counted_on_its_run_and_on_the_model_and_the_run_has_its_hold(
    run_script, store_url, hold, last_json
):
    on_run, tags, on_model = last_json(run_script(LOG_MODEL, store_url=store_url, hold=hold))
    assert on_run.pop("complexity/size_bytes") > 1_000
    assert on_run == {
        "complexity/parameters": 5.0,
        "complexity/nonzero_parameters": 4.0,
        "complexity/density_ratio": 0.8,
        "complexity/macs_nominal": 4.0,
        "complexity/macs_effective": 3.0,
    }
    assert on_model.keys() == on_run.keys() | {"complexity/size_bytes"}
    assert (tags["green.hold_id"], tags["green.workflow"]) == ("h1", "w1")


def test_it_can_be_switched_off(run_script, store_url):
    code = "from mlflow.models import Model; print(hasattr(Model.log, '_mlflow_green_wrapped'))"
    assert run_script(code, store_url=store_url).stdout == "True\n"
    assert run_script(code, store_url=store_url, MLFLOW_GREEN_DISABLE="1").stdout == "False\n"


@pytest.mark.parametrize(
    "module",
    ["mlflow_green.tracking.context", "mlflow_green.emissions.intensity", "mlflow_green.emissions.operational"],
)
def test_what_the_snakemake_process_imports_stays_light(module):
    code = f"""
import sys, {module}
from mlflow_green.emissions.intensity import country_intensity
country_intensity("FRA")
print(sorted({{"mlflow", "numpy", "pandas", "codecarbon", "sklearn", "sqlalchemy", "alembic"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
