"""Whose processes use a GPU, and which GPUs a consumer has reserved.

A consumer's processes carry its id as ``GREEN_HOLD_ID`` in their environment, or descend from one that does. Of one
that is work of its own process (a block) only the children do: what carries no live consumer's mark belongs to it if it
is, or descends from, the process that joined it, and no other such. Only this user's processes can be recognised.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_green.metering.marks import MARK, environment_entries
from mlflow_green.metering.node import Use
from mlflow_green.metering.shared_state import hold_of, process_of
from mlflow_green.metering.supervise import parent_pid, start_ticks
from mlflow_green.records import Device, Domain, Reading

# Looking into every process takes some milliseconds, so between new consumers it is done at every tenth look only.
SCAN_LOOKS = 10
_GENERATIONS_MAX = 64
_NO_GPU = frozenset({"", "-1", "NoDevFiles"})  # what CUDA and Slurm mean by none at all


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lineage:
    """A process and its ancestors, nearest first; the marks that they carry."""

    started_ticks: int | None
    pids: tuple[int, ...]
    marks: tuple[str, ...]


class GpuUsers:
    """Remembers, from window to window, who the processes on the GPUs are."""

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._lineages: dict[int, _Lineage] = {}
        self._reserved: dict[str, frozenset[str] | None] = {}
        self._looks = 0

    def find(
        self, uses: Mapping[str, Use], readings: Mapping[str, Reading], devices: Iterable[Device]
    ) -> dict[str, Use]:
        """What each consumer did, with its use of the GPUs; the keys are ``PROCESS/NUMBER-CONSUMER``."""
        gpus = [device for device in devices if device.domain is Domain.GPU]
        if not gpus:
            return dict(uses)
        consumers = {key: use for key, use in uses.items() if not use.is_view}
        self._scan(consumers, gpus)
        weights: dict[str, defaultdict[str, float]] = {key: defaultdict(float) for key in uses}
        lineages: dict[int, _Lineage] = {}
        for gpu in gpus:
            reading = readings.get(gpu.name)
            for pid, weight in (reading.use.by_pid if reading and reading.use else {}).items():
                lineages[pid] = self._lineage(pid)
                for key in (self._consumer_of(lineages[pid], consumers), *self._views_of(lineages[pid], uses)):
                    if key is not None:
                        weights[key][gpu.name] += weight
        self._lineages = lineages
        return {
            key: replace(use, gpu_weights=dict(weights[key]), gpus=self._reserved.get(key)) for key, use in uses.items()
        }

    def _lineage(self, pid: int) -> _Lineage:
        """Read once a process: one that has ended since the last look is still known."""
        started_ticks, known = start_ticks(pid, self._proc_root), self._lineages.get(pid)
        if known is not None and started_ticks in {known.started_ticks, None}:
            return known
        pids: list[int] = []
        ancestor = pid
        while ancestor > 0 and len(pids) < _GENERATIONS_MAX:
            pids.append(ancestor)
            ancestor = parent_pid(ancestor, self._proc_root)
        marks = [_environment(each, self._proc_root).get(MARK) for each in pids]
        return _Lineage(started_ticks=started_ticks, pids=tuple(pids), marks=tuple(mark for mark in marks if mark))

    def _consumer_of(self, lineage: _Lineage, consumers: Mapping[str, Use]) -> str | None:
        ids = {hold_of(key): key for key in consumers}
        for mark in lineage.marks:
            if mark in ids:
                return ids[mark]
        # No mark, or that of a block that has ended, or of another folder's meter within this process.
        for pid in lineage.pids:
            own = [key for key, use in consumers.items() if use.is_own_process and _pid_of(key) == pid]
            if own:
                return own[0] if len(own) == 1 else None
        return None

    def _views_of(self, lineage: _Lineage, uses: Mapping[str, Use]) -> list[str]:
        """The views of a process that this one is or descends from: all that it does meanwhile is in them."""
        return [key for key, use in uses.items() if use.is_view and _pid_of(key) in lineage.pids]

    def _scan(self, keys: Collection[str], gpus: Collection[Device]) -> None:
        """Look at every process: what consumers have reserved, by their own processes, else by the one that meters."""
        self._looks += 1
        if all(key in self._reserved for key in keys) and self._looks % SCAN_LOOKS:
            return
        found: dict[str, list[frozenset[str] | None]] = {}
        ids = {hold_of(key): key for key in keys}
        try:
            names = os.listdir(self._proc_root)  # noqa: PTH208 - names only, no Path for each process
        except OSError:
            names = []
        for name in names:
            environment = _environment(int(name), self._proc_root) if name.isdigit() else {}
            key = ids.get(environment.get(MARK, ""))
            if key is not None:
                found.setdefault(key, []).append(reserved_gpus(environment, gpus))
        self._reserved = {key: _union(found.get(key, ())) for key in keys}
        for key, reserved in self._reserved.items():
            if reserved is None:
                self._reserved[key] = reserved_gpus(_environment(_pid_of(key), self._proc_root), gpus)


def reserved_gpus(environment: Mapping[str, str], gpus: Collection[Device]) -> frozenset[str] | None:
    """The devices that a process may use by its environment; ``None`` where that says nothing of these GPUs.

    ``CUDA_VISIBLE_DEVICES`` wins over what a container runtime and Slurm have set. Its numbers are taken as NVML's,
    which they are under ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` and wherever all GPUs are of one kind.
    """
    for variable in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        text = environment.get(variable)
        if text is None:
            continue
        names = frozenset(gpu.name for entry in text.split(",") for gpu in gpus if _is_called(gpu, entry.strip()))
        if names or (variable == "CUDA_VISIBLE_DEVICES" and text.strip() in _NO_GPU):
            return names
    return None


def _is_called(gpu: Device, entry: str) -> bool:
    """Whether the entry is the GPU's number, or begins its UUID or that of one of its MIG devices, new or old style."""
    if entry in gpu.aliases:
        return True
    if entry.startswith("MIG-GPU-"):
        return entry.removeprefix("MIG-").partition("/")[0] == gpu.name
    return entry.startswith(("GPU-", "MIG-")) and any(name.startswith(entry) for name in (gpu.name, *gpu.aliases))


def _union(parts: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if known else None


def _pid_of(key: str) -> int:
    """The process that joined the consumer; this one where the sampler shares nothing."""
    pid = process_of(key).partition("-")[0]
    return int(pid) if pid.isdigit() else os.getpid()


def _environment(pid: int, proc_root: Path) -> dict[str, str]:
    """The process's environment as it was at its start; empty where it may not be seen, or the process is gone."""
    pairs = (entry.decode(errors="replace").partition("=") for entry in environment_entries(pid, proc_root))
    return {name: value for name, is_set, value in pairs if is_set}
