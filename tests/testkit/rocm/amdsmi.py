"""A stand-in for AMD's package of this name, of which CodeCarbon's AMD classes use these functions.

``$FAKE_AMDSMI_STATE`` is a JSON list of GPUs: ``uuid``, ``name``, ``energy_microjoules``, ``power_watts``. It is read at
every call; a GPU that is null does not answer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace


class AmdSmiException(Exception):
    pass


class AmdSmiLibraryException(AmdSmiException):
    pass


amdsmi_exception = SimpleNamespace(AmdSmiLibraryException=AmdSmiLibraryException)


def amdsmi_init() -> None:
    pass


def amdsmi_get_processor_handles() -> list[int]:
    return list(range(len(_state())))


def amdsmi_get_gpu_device_uuid(handle: int) -> str:
    return _gpu(handle)["uuid"]


def amdsmi_get_gpu_asic_info(handle: int) -> dict[str, str]:
    return {"market_name": _gpu(handle)["name"]}


def amdsmi_get_gpu_vram_usage(handle: int) -> dict[str, int]:
    return {"vram_total": 65_536, "vram_used": 0}


def amdsmi_get_power_cap_info(handle: int) -> dict[str, int]:
    return {"power_cap": 300_000_000}


def amdsmi_get_energy_count(handle: int) -> dict[str, float]:
    return {"energy_accumulator": _gpu(handle)["energy_microjoules"] / 15.25, "counter_resolution": 15.25}


def amdsmi_get_power_info(handle: int) -> dict[str, int]:
    return {"average_socket_power": _gpu(handle)["power_watts"]}


def _state() -> list:
    return json.loads(Path(os.environ["FAKE_AMDSMI_STATE"]).read_text())


def _gpu(handle: int) -> dict:
    gpu = _state()[handle]
    if gpu is None:
        raise AmdSmiLibraryException("the GPU does not answer")
    return gpu
