"""A real command at a site with hourly intensities and a known node, from green.yaml to the exported entry."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

SITE = """\
version: 1
project: demo
site:
  intensity_series: grid/2026.csv
  source: grid operator
  embodied: {carbon: 1300 kgCO2e, lifetime: 5 years, source: "data sheet of the maker, 2024"}
budgets:
  - {name: month, limit: 5 kgCO2e, period: month}
"""
BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def green(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_green.cli", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_GREEN", "GREEN_"))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_is_charged_by_its_hour_and_has_its_part_of_the_node(tmp_path):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    rows = [f"{(hour + timedelta(hours=ahead)).isoformat()},80" for ahead in range(-1, 30)]
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "2026.csv").write_text("\n".join(["time,g_per_kwh", *rows]))
    (tmp_path / "green.yaml").write_text(SITE)
    green(tmp_path, "run", "--", sys.executable, "-c", BUSY)
    entry = json.loads(green(tmp_path, "ledger", "export").stdout)
    assert entry["carbon_intensity_g_per_kwh"] == 80
    assert entry["intensity_source"].startswith("grid operator (hours of ")
    assert entry["intensity_source"].endswith("): mean over the run")
    kwh = entry["energy_charged_microjoules"] / 3.6e12
    assert entry["operational_g_co2e"] > 0
    assert abs(entry["operational_g_co2e"] - 80 * kwh) <= 1e-6
    part = entry["cpu_seconds"] / os.cpu_count() / (5 * 31_557_600)
    assert entry["cpu_seconds"] >= 0.2
    assert abs(entry["embodied_g_co2e"] - 1_300_000 * part) <= 1e-6
    assert "80 g/kWh (grid/2026.csv)" in green(tmp_path, "doctor").stdout
