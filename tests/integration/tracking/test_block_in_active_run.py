"""``meter(..., log=True)`` inside an MLflow run of the user's."""

from __future__ import annotations


def test_a_block_is_logged_to_the_active_run_and_one_without_says_so(run_script, store_url, last_json):
    done = run_script(
        "import json, mlflow, mlflow_green\n"
        "with mlflow.start_run() as run:\n"
        "    with mlflow_green.meter('train', log=True) as m: sum(range(3_000_000))\n"
        "with mlflow_green.meter('nowhere', log=True): pass\n"
        "run = mlflow.get_run(run.info.run_id)\n"
        "print(json.dumps([run.data.metrics['energy/total_wh'], m.record.total.joules, run.data.tags, run.info.status]))\n",
        store_url=store_url,
    )
    watt_hours, joules, tags, status = last_json(done)
    assert watt_hours * 3600 == joules > 0 or abs(watt_hours * 3600 - joules) < 1e-9
    assert tags["green.method"] == "estimated"
    assert "green.hold_id" not in tags  # the run is the user's, and may go on
    assert status == "FINISHED"
    assert done.stderr.count("no active MLflow run") == 1
