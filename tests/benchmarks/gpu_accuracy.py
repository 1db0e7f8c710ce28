"""How far GPU energy is off, and how wide its interval is, against the exact integral of the stand-in's power traces.

    python -m tests.benchmarks.gpu_accuracy

Prints the two parts of docs/reference/gpus.md: the accuracy of counters and of sampled power, on a hand-turned clock,
and the CPU time that polling costs, in real time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.testkit.nvml import build_fake_nvml, run_with_fake_nvml

ACCURACY = """
import random
from tests.testkit.gpu_bench import Bench, integral_joules, trace_line
chance, update_seconds = random.Random(7), {update_ms} / 1000
levels = [(0.0, 200.0)]
while levels[-1][0] < {seconds}:
    levels.append((levels[-1][0] + {length}, chance.uniform(50, 340)))
trace = [(round(start, 4), round(watts, 3)) for start, watts in levels]
if {noise_watts}:
    starts = [index * update_seconds for index in range(round({seconds} / update_seconds) + 1)]
    trace = [(round(start, 4), round(next(watts for since, watts in reversed(levels) if since <= start)
              + chance.uniform(-{noise_watts}, {noise_watts}), 3)) for start in starts]

class Now(Bench):
    def write(self):  # the stand-in's lines are short: only what was of late, whose start no reading is older than
        late = [each for each in trace if each[0] <= self.clock.seconds][-60:]
        before = integral_joules(trace, late[0][0])
        self.gpus = (f"{counter}0.architecture = 6\\n0.update_ms = {update_ms}\\n0.procs = {{{{job}}}}:1:90\\n"
                     f"0.power_mw = 0\\n0.energy_mj = {{1000 * before + 5}}\\n0.trace = {{trace_line(late)}}")
        super().write()

bench = Now("", jobs={{"job": {{}}}})
for _ in range({seconds}):
    bench.tick(polls=not {has_counter})
low, point, high = bench.joules("job")
true = integral_joules(trace, {seconds})
print(f"error {{point / true - 1:+.2%}}, interval {{low / point - 1:+.1%}} {{high / point - 1:+.1%}}, "
      f"holds the truth: {{low <= true <= high}}")
bench.close()
"""
COST = """
import os, time
path = os.environ["FAKE_NVML_STATE"]
trace = ", ".join(f"{{index * {update_ms} / 1000:.2f}}:{{200000 + index % 2 * 1000}}" for index in range(300))
open(path, "w").write(f"{counter}0.architecture = 6\\n0.update_ms = {update_ms}\\n0.trace = {{trace}}")
from mlflow_green.sensors.nvml import NvmlSensor
sensor = NvmlSensor()
time.sleep(1)  # to learn the update period
begin, cpu_seconds = time.monotonic(), time.process_time()
time.sleep(5)
print(f"{{(time.process_time() - cpu_seconds) / (time.monotonic() - begin):.2%}} of a core")
sensor.close()
"""
NO_COUNTER = "*.error.nvmlDeviceGetTotalEnergyConsumption = NOT_SUPPORTED\\n"
CASES = [
    ("counter, another level every 10 s", "10.0", 0, 60),
    ("sampled, another level every 0.1 to 0.9 s, 1 W of noise", "chance.uniform(0.11, 0.9)", 1, 20),
    ("sampled, another level every 5 s, 1 W of noise", "5.0", 1, 20),
    ("sampled, another level every 5 s, no noise", "5.0", 0, 20),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        library, state = build_fake_nvml(Path(folder)), Path(folder) / "gpus.conf"
        for name, length, noise_watts, seconds in CASES:
            for update_ms in (20, 100):
                has_counter = name.startswith("counter")
                code = ACCURACY.format(
                    update_ms=update_ms,
                    length=length,
                    noise_watts=noise_watts,
                    seconds=seconds,
                    has_counter=has_counter,
                    counter="" if has_counter else NO_COUNTER,
                )
                print(f"{name}, update period {update_ms} ms: {run_with_fake_nvml(library, state, code)}", flush=True)
        for update_ms in (20, 100):
            said = run_with_fake_nvml(library, state, COST.format(update_ms=update_ms, counter=NO_COUNTER))
            print(f"polling, update period {update_ms} ms: {said}", flush=True)


if __name__ == "__main__":
    main()
