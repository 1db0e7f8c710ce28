"""A fake BMC on IPMI over LAN (RMCP+, UDP) that answers DCMI power readings; needs ``pyghmi``.

OpenIPMI's simulator has no DCMI, hence this one. It runs as a program, for its session thread never ends:

    python fakebmc.py PORT POWER_WATTS
    ipmitool -I lanplus -H 127.0.0.1 -p PORT -U admin -P password dcmi power reading
"""

from __future__ import annotations

import struct
import sys
import time

USER, PASSWORD = "admin", "password"
GROUP_EXTENSION, DCMI = 0x2C, 0xDC  # network function and body of DCMI 1.5
GET_CAPABILITIES, GET_POWER_READING = 0x01, 0x02
IS_ACTIVE = 0x40


def serve(port: int, power_watts: int) -> None:
    from pyghmi.ipmi import bmc

    class FakeBmc(bmc.Bmc):
        def handle_raw_request(self, request: dict, session) -> None:
            data = list(request["data"])
            if request["netfn"] != GROUP_EXTENSION or data[:1] != [DCMI]:
                super().handle_raw_request(request, session)
            elif request["command"] == GET_POWER_READING:
                watts, period_milliseconds = [power_watts] * 4, 1000
                reading = struct.pack("<HHHHIIB", *watts, int(time.time()), period_milliseconds, IS_ACTIVE)
                session.send_ipmi_response(data=[DCMI, *reading])
            elif request["command"] == GET_CAPABILITIES:
                session.send_ipmi_response(data=[DCMI, 1, 5, 2, 0, 1, 7])

    FakeBmc({USER: PASSWORD}, port=port, address="127.0.0.1").listen()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
