"""A fake ``ipmitool``: a program that prints what the real one (1.8.19) printed to a BMC in each of these states.

environment = put_ipmitool(folder, "works", power_watts=250)    # a PATH on which it is the only ipmitool
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

READING = """
    Instantaneous power reading:                 {power_watts:5d} Watts
    Minimum during sampling period:                  1 Watts
    Maximum during sampling period:                400 Watts
    Average power reading over sample period:      240 Watts
    IPMI timestamp:                           11/21/26 19:12:34 UTC    Sampling period:                          00000001 Seconds.
    Power reading state is:                   {state}

"""
PEN = "IANA PEN registry open failed: No such file or directory\n"
NO_DEVICE = "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: No such file or directory\n"
NO_SESSION = "Error: Unable to establish IPMI v2 / RMCP+ session\n"
REFUSED = "\n    DCMI request failed because: Invalid command (c1)\n"
SILENT = "\n    Unable to get DCMI information\n"
# Exit status, standard output, standard error.
STATES = {
    "works": (0, READING, PEN),
    "deactivated": (0, READING, PEN),
    "no device": (1, "", PEN + NO_DEVICE),
    "no session": (1, "", PEN + NO_SESSION),
    "no DCMI": (1, "", PEN + REFUSED),
    "silent": (1, SILENT, PEN),
    "garbage": (0, "\x00\xff???", ""),
}

_PROGRAM = """#!{python} -IS
import os, sys, time
with open({calls!r}, "a") as calls:
    print(*sys.argv[1:], "IPMI_PASSWORD=" + os.environ.get("IPMI_PASSWORD", ""), file=calls)
time.sleep({delay_seconds})
sys.stdout.write({out!r})
sys.stderr.write({err!r})
sys.exit({status})
"""


def put_ipmitool(folder: Path, state: str, *, power_watts: int = 250, delay_seconds: float = 0.0) -> Path:
    """Write the program into ``folder``, to be put on ``PATH``; ``calls`` beside it tells how it was called."""
    status, out, err = STATES[state]
    is_active = "deactivated" if state == "deactivated" else "activated"
    program = folder / "ipmitool"
    text = _PROGRAM.format(
        python=os.path.realpath(sys.executable),
        calls=str(folder / "calls"),
        delay_seconds=delay_seconds,
        out=out.format(power_watts=power_watts, state=is_active) if out == READING else out,
        err=err,
        status=status,
    )
    program.write_text(text, errors="surrogateescape")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder
