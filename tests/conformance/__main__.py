"""The kit in real time, for any meter that is a command, see README.md: prints a line a case and ends with 1 if one fails.

python -m tests.conformance [--seconds 60] [--case NAME] [--layout NAME] -- COMMAND ...
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.conformance.meters import CommandMeter
from tests.conformance.play import judge, play
from tests.conformance.scenarios import CASES, PARTS, case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m tests.conformance")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--layout", choices=PARTS, action="append", help="only this one; may be repeated")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    scenarios = [case(name, layout, asked.seconds) for layout in asked.layout or PARTS for name in asked.case or CASES]
    failed = 0
    for scenario in scenarios:
        with tempfile.TemporaryDirectory() as folder:
            try:
                wrong = judge(
                    scenario, play(scenario, CommandMeter("it", asked.command), Path(folder), in_real_time=True)
                )
            except RuntimeError as error:
                wrong = [str(error)]
        failed += bool(wrong)
        print(f"{scenario.name}: {'; '.join(wrong) or 'as it should be'}", flush=True)
    print(f"{len(scenarios) - failed} of {len(scenarios)} as they should be")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
