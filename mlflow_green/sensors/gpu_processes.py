"""Who uses an NVIDIA GPU: utilisation by process, else the processes that are there, else MIG slices.

``pynvml`` is handed in; this module never imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_green.records import DeviceUse, Method

# The kernel's number of the first process namespace (PROC_PID_INIT_INO in linux/proc_ns.h): a host, no container.
_HOST_PID_NAMESPACE = "pid:[4026531836]"
# The driver renews its samples of utilisation once or more a second; a shorter window keeps the last ones.
SAMPLES_SECONDS_MAX = 1.0
_NO_PID = 0


def ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, ``None`` where it has none: unsupported, lost GPU, no permission."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def shows_all_pids(proc_root: Path) -> bool:
    """Whether processes that NVML does not list are not there, rather than hidden by a container."""
    try:
        return str((proc_root / "self" / "ns" / "pid").readlink()) == _HOST_PID_NAMESPACE
    except OSError:
        return True


class GpuProcesses:
    """The use of one GPU from look to look.

    With ``all_pids`` nobody is there whom NVML does not list. In MIG mode NVML has no utilisation: each instance
    weighs its compute slices of the GPU's, and one without processes is idle.
    """

    def __init__(self, nvml: Any, *, all_pids: bool) -> None:
        self._nvml = nvml
        self._all_pids = all_pids
        self._sampled_until = 0  # microseconds since 1970, as NVML stamps its samples
        self._samples: dict[int, float] = {}
        self._samples_seconds = 0.0

    def look(self, handle: Any, now_seconds: float) -> DeviceUse:
        mig = ask(self._nvml, self._nvml.nvmlDeviceGetMigMode, handle)
        if mig is not None and mig[0]:
            return self._slices(handle)
        samples = self._utilisation(handle, now_seconds)
        if samples:
            return DeviceUse(by_pid=samples)
        rates = ask(self._nvml, self._nvml.nvmlDeviceGetUtilizationRates, handle)
        pids = self._pids(handle)
        if rates is not None and not rates.gpu and (samples is not None or not pids):
            return DeviceUse(by_pid={})
        if pids:
            return DeviceUse(by_pid=dict.fromkeys(pids, 1.0), method=Method.ESTIMATED)
        is_quiet = rates is None and pids is not None and self._all_pids
        return DeviceUse(by_pid={}, hidden=0.0 if is_quiet else 1.0, method=Method.ESTIMATED)

    def _utilisation(self, handle: Any, now_seconds: float) -> dict[int, float] | None:
        """SM use by process since the last look, in percent; ``None`` where NVML has no such thing."""
        nvml = self._nvml
        try:
            found = nvml.nvmlDeviceGetProcessUtilization(handle, self._sampled_until)
        except nvml.NVMLError as error:
            if error.value not in {nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND}:
                return None
            found = ()  # no process has a sample since then
        samples: dict[int, float] = {}
        until = self._sampled_until
        for each in found:
            # Drivers also give entries of an earlier time, or with nonsense in them.
            if each.pid and each.timeStamp > self._sampled_until and 0 < each.smUtil <= 100:  # noqa: PLR2004 - percent
                samples[each.pid] = samples.get(each.pid, 0.0) + each.smUtil
                until = max(until, each.timeStamp)
        if samples:
            self._samples, self._sampled_until, self._samples_seconds = samples, until, now_seconds
        elif now_seconds - self._samples_seconds < SAMPLES_SECONDS_MAX:
            return self._samples
        return samples

    def _slices(self, handle: Any) -> DeviceUse:
        nvml = self._nvml
        unused = ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0  # one slice each
        weights: dict[int, float] = {}
        hidden = idle = 0.0
        for mig in mig_handles(nvml, handle):
            attributes = ask(nvml, nvml.nvmlDeviceGetAttributes, mig)
            slices = attributes.computeInstanceSliceCount if attributes else 1
            unused -= slices
            pids = self._pids(mig)
            for pid in pids or ():
                weights[pid] = weights.get(pid, 0.0) + slices / len(pids or ())
            if pids is None or not (pids or self._all_pids):
                hidden += slices
            elif not pids:
                idle += slices
        if self._all_pids:
            idle += max(0, unused)
        elif unused > 0:
            weights[_NO_PID] = float(unused)  # instances that this container does not see may be in use
        return DeviceUse(by_pid=weights, hidden=hidden, idle=idle, method=Method.ESTIMATED)

    def _pids(self, handle: Any) -> tuple[int, ...] | None:
        found = ask(self._nvml, self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return None if found is None else tuple(sorted({each.pid for each in found}))


def mig_handles(nvml: Any, handle: Any) -> list[Any]:
    """The MIG devices of a GPU; none where MIG is off."""
    count = ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    found = [ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index) for index in range(count)]
    return [each for each in found if each is not None]
