"""The sampler: one a host and user. It reads sensors and clocks, and closes windows whose shares sum to the whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from mlflow_green.attribution.idle import QUIET_BUSY_RATIO, baseline_power_watts, idle_microjoules
from mlflow_green.attribution.shares import Shares, share_by_use, share_of_gpu
from mlflow_green.clock import Clock
from mlflow_green.errors import SensorError, SensorRetry
from mlflow_green.metering.cpu_clock import CpuClock
from mlflow_green.metering.integration import DeviceEnergy, Track, advance
from mlflow_green.records import Domain, Energy, NodeWindow, Reading, Tick, Usage, total_energy
from mlflow_green.sensors.proc_stat import PROC_ROOT, HostCpu, read_host_cpu
from mlflow_green.sensors.sensor import Sensor
from mlflow_green.units import joules

QUIET_WINDOWS_MAX = 600


@dataclass(slots=True)
class _Consumer:
    cpu_clock: CpuClock
    joined_seconds: float
    start_cpu_seconds: float
    shared_cpu_seconds: float  # clock value up to the last closed window
    left_seconds: float | None = None
    left_cpu_seconds: float = 0.0
    energy: dict[Domain, Energy] = field(default_factory=dict)
    covered_seconds: float = 0.0
    metered_seconds: float = 0.0

    def read(self) -> float:
        """CPU seconds now; the last known value where the clock fails."""
        if self.left_seconds is not None:
            return self.left_cpu_seconds
        with contextlib.suppress(OSError):
            return self.cpu_clock.seconds()
        return self.shared_cpu_seconds

    def usage(self, now_seconds: float) -> Usage:
        end_seconds = now_seconds if self.left_seconds is None else self.left_seconds
        return Usage(
            energy=dict(self.energy),
            duration_seconds=end_seconds - self.joined_seconds,
            cpu_seconds=self.shared_cpu_seconds - self.start_cpu_seconds,
            cpu_clock=self.cpu_clock.name,
            coverage_ratio=min(1.0, self.covered_seconds / self.metered_seconds) if self.metered_seconds > 0 else 0.0,
        )


@dataclass(frozen=True, slots=True)
class _Moment:
    """The end of a window: monotonic seconds, aware UTC that never goes back, and the host's CPU time."""

    seconds: float
    at: datetime
    host_cpu: HostCpu | None


class Sampler:
    """Meters the node and the consumers that join it; each ``tick`` closes the window since the one before.

    ``coordinated`` says whether this sampler holds the lock at ``lock_path`` until ``close`` (``None``: it needs none).
    Without it another sampler meters this host: this one then makes no claim about sums, so its ticks have no windows
    and its usages no idle energy. ``join``, ``leave`` and the properties may be used from any thread; ``tick`` and
    ``close`` belong to one. Broken sensors never raise here: a failed read is a gap, a lost one is said in ``notes``.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        *,
        clock: Clock,
        host: str,
        boot_id: str,
        lock_path: Path | None,
        proc_root: Path = PROC_ROOT,
    ) -> None:
        self.sampler_id = uuid.uuid4().hex
        self.notes: list[str] = []
        self._clock = clock
        self._host = host
        self._boot_id = boot_id
        self._proc_root = proc_root
        self._lock_fd = _take_lock(lock_path)
        self.coordinated = lock_path is None or self._lock_fd is not None
        self._sensors = list(sensors)
        self._lost: list[Sensor] = []
        self._tracks = {device.name: Track(device=device) for sensor in sensors for device in sensor.devices()}
        self._lock = threading.Lock()
        self._consumers: dict[str, _Consumer] = {}
        self._quiet_power_watts: defaultdict[Domain, deque[float]] = defaultdict(
            lambda: deque(maxlen=QUIET_WINDOWS_MAX)
        )
        self._sequence = 0
        self._last = _Moment(clock.monotonic_seconds(), clock.now(), self._host_cpu())
        self._first_at = self._last.at
        self._opened: dict[Domain, tuple[datetime, int]] = {}
        self._device_energies()  # where the counters stand now

    @property
    def power_watts_max(self) -> float:
        """The most that all devices together can show, in watts; 0 where nothing is metered."""
        return sum(track.device.power_watts_max for track in self._tracks.values())

    def join(self, consumer_id: str, cpu_clock: CpuClock) -> None:
        """Meter this consumer from now on; the sampler owns the clock.

        Raises:
            ValueError: a consumer of this name is there already.
        """
        cpu_seconds = 0.0
        with contextlib.suppress(OSError):
            cpu_seconds = cpu_clock.seconds()
        consumer = _Consumer(cpu_clock, self._clock.monotonic_seconds(), cpu_seconds, cpu_seconds)
        with self._lock:
            if consumer_id in self._consumers:
                raise ValueError(f"consumer {consumer_id!r} has joined already")
            self._consumers[consumer_id] = consumer

    def leave(self, consumer_id: str) -> None:
        """Read the clock a last time and close it; the usage is final at the next tick. Twice does nothing."""
        with self._lock:
            consumer = self._consumers.get(consumer_id)
            if consumer is None or consumer.left_seconds is not None:
                return
            consumer.left_cpu_seconds = consumer.read()
            consumer.left_seconds = self._clock.monotonic_seconds()
        consumer.cpu_clock.close()

    def tick(self) -> Tick:
        """Close the window since the last tick and share it out."""
        energies = self._device_energies()
        with self._lock:
            consumers = dict(self._consumers)
            gone = frozenset(name for name, consumer in consumers.items() if consumer.left_seconds is not None)
        cpu_seconds = {name: consumer.read() for name, consumer in consumers.items()}
        now = _Moment(self._clock.monotonic_seconds(), max(self._clock.now(), self._last.at), self._host_cpu())
        self._sequence += 1
        used = {name: max(0.0, cpu_seconds[name] - consumers[name].shared_cpu_seconds) for name in consumers}
        windows = [self._close(domain, parts, used, consumers, now) for domain, parts in energies.items()]
        for name, consumer in consumers.items():
            consumer.shared_cpu_seconds += used[name]
        self._last = now
        with self._lock:
            for name in gone:
                self._consumers.pop(name, None)
        return Tick(
            sampler_id=self.sampler_id,
            sequence=self._sequence,
            at=now.at,
            windows=tuple(windows) if self.coordinated else (),
            usages={name: consumer.usage(now.seconds) for name, consumer in consumers.items()},
            final=gone,
        )

    def close(self) -> None:
        """Close sensors and clocks, and give the lock back. Consumers that have not left get no further tick."""
        for sensor in (*self._sensors, *self._lost):
            sensor.close()
        with self._lock:
            for consumer in self._consumers.values():
                consumer.cpu_clock.close()
            self._consumers.clear()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # --- reading -----------------------------------------------------------------------------------

    def _device_energies(self) -> Mapping[Domain, list[DeviceEnergy]]:
        """What every device used since the last look, by domain."""
        readings = {reading.device: reading for sensor in list(self._sensors) for reading in self._read(sensor)}
        found: defaultdict[Domain, list[DeviceEnergy]] = defaultdict(list)
        for name, track in self._tracks.items():
            gap = Reading(device=name, monotonic_seconds=self._clock.monotonic_seconds(), energy_microjoules=None)
            self._tracks[name], energy = advance(track, readings.get(name, gap))
            if energy is not None:
                found[track.device.domain].append(energy)
        return found

    def _read(self, sensor: Sensor) -> Sequence[Reading]:
        try:
            return sensor.read()
        except SensorRetry:
            return ()
        except Exception as error:  # noqa: BLE001 - measuring never breaks the host program, whatever a driver does
            reason = str(error) if isinstance(error, SensorError) else repr(error)
        self._sensors.remove(sensor)
        self._lost.append(sensor)
        self.notes.append(f"the sensor {sensor.name} is lost{self._instead_of(sensor)}: {reason}")
        return ()

    def _instead_of(self, sensor: Sensor) -> str:
        """What a lost sensor's energy is from now on, in words."""
        tracks = [self._tracks[device.name] for device in sensor.devices()]
        if any(track.known_seconds > 0 for track in tracks):
            return "; from now on its energy is estimated from its mean power so far"
        power_watts_max = sum(track.device.power_watts_max for track in tracks)
        return (
            " before its second reading; from now on its energy is taken as half of its greatest power, "
            f"anything from 0 to {power_watts_max:g} W"
        )

    def _host_cpu(self) -> HostCpu | None:
        try:
            return read_host_cpu(self._proc_root)
        except SensorRetry:
            return None

    # --- sharing -----------------------------------------------------------------------------------

    def _close(
        self,
        domain: Domain,
        parts: Sequence[DeviceEnergy],
        used: Mapping[str, float],
        consumers: Mapping[str, _Consumer],
        now: _Moment,
    ) -> NodeWindow:
        energy = total_energy(part.energy for part in parts)
        assert energy is not None
        seconds = sum(part.seconds for part in parts)
        coverage_ratio = min(1.0, sum(part.covered_seconds for part in parts) / seconds)
        shares = self._share(domain, energy, parts, used, now)
        self._charge(domain, shares, consumers, coverage_ratio, now)
        started_at, sequence_first = self._opened.get(domain, (self._first_at, 1))
        self._opened[domain] = (now.at, self._sequence + 1)
        return NodeWindow(
            sampler_id=self.sampler_id,
            host=self._host,
            boot_id=self._boot_id,
            domain=domain,
            sequence_first=sequence_first,
            sequence_last=self._sequence,
            started_at=started_at,
            ended_at=now.at,
            energy=energy,
            attributed_microjoules=sum(share.microjoules for share in shares.consumers.values()),
            idle_microjoules=shares.idle_microjoules,
            other_microjoules=shares.other_microjoules,
            coverage_ratio=coverage_ratio,
        )

    def _share(
        self, domain: Domain, energy: Energy, parts: Sequence[DeviceEnergy], used: Mapping[str, float], now: _Moment
    ) -> Shares:
        if domain is Domain.GPU:
            return share_of_gpu(energy, used)
        busy_seconds = self._busy_seconds(now)
        seconds = max(part.seconds for part in parts)
        quiet = self._quiet_power_watts[domain]
        if busy_seconds is not None and now.host_cpu is not None:
            busy_ratio = max(busy_seconds, sum(used.values())) / (now.host_cpu.threads * seconds)
            was_read = all(part.covered_seconds > 0 for part in parts)  # an estimate teaches nothing
            if was_read and busy_ratio < QUIET_BUSY_RATIO:
                quiet.append(joules(energy.microjoules) / seconds)
        own = [part.idle_microjoules for part in parts if part.idle_microjoules is not None]
        idle = idle_microjoules(
            energy.microjoules,
            seconds,
            own_microjoules=sum(own) if len(own) == len(parts) else None,
            baseline_power_watts=baseline_power_watts(quiet),
        )
        return share_by_use(energy, idle, used, busy_seconds or 0.0)

    def _busy_seconds(self, now: _Moment) -> float | None:
        """Busy CPU seconds of the whole host in this window."""
        if now.host_cpu is None or self._last.host_cpu is None:
            return None
        return max(0.0, now.host_cpu.busy_seconds - self._last.host_cpu.busy_seconds)

    def _charge(
        self, domain: Domain, shares: Shares, consumers: Mapping[str, _Consumer], coverage_ratio: float, now: _Moment
    ) -> None:
        for name, share in shares.consumers.items():
            consumer = consumers[name]
            before = consumer.energy.get(domain)
            consumer.energy[domain] = share if before is None else before + share
            end_seconds = now.seconds if consumer.left_seconds is None else consumer.left_seconds
            overlap_seconds = max(0.0, end_seconds - max(consumer.joined_seconds, self._last.seconds))
            consumer.metered_seconds += overlap_seconds
            consumer.covered_seconds += coverage_ratio * overlap_seconds


def merge_windows(windows: Sequence[NodeWindow]) -> tuple[NodeWindow, ...]:
    """Join windows of one sampler and domain that follow each other without a gap; sums, and coverage by time."""
    merged: list[NodeWindow] = []
    for window in sorted(windows, key=lambda each: (each.sampler_id, each.domain, each.sequence_first)):
        if merged and _follows(merged[-1], window):
            merged[-1] = _joined(merged[-1], window)
        else:
            merged.append(window)
    return tuple(merged)


def _follows(before: NodeWindow, after: NodeWindow) -> bool:
    same = (before.sampler_id, before.domain) == (after.sampler_id, after.domain)
    return same and after.sequence_first == before.sequence_last + 1


def _joined(before: NodeWindow, after: NodeWindow) -> NodeWindow:
    return NodeWindow(
        sampler_id=before.sampler_id,
        host=before.host,
        boot_id=before.boot_id,
        domain=before.domain,
        sequence_first=before.sequence_first,
        sequence_last=after.sequence_last,
        started_at=before.started_at,
        ended_at=after.ended_at,
        energy=before.energy + after.energy,
        attributed_microjoules=before.attributed_microjoules + after.attributed_microjoules,
        idle_microjoules=before.idle_microjoules + after.idle_microjoules,
        other_microjoules=before.other_microjoules + after.other_microjoules,
        coverage_ratio=_mean_coverage((before, after)),
    )


def _mean_coverage(windows: Iterable[NodeWindow]) -> float:
    weighted = [((each.ended_at - each.started_at).total_seconds(), each.coverage_ratio) for each in windows]
    total = sum(seconds for seconds, _ in weighted)
    if total <= 0:
        return min(coverage for _, coverage in weighted)
    return min(1.0, sum(seconds * coverage for seconds, coverage in weighted) / total)


def _take_lock(path: Path | None) -> int | None:
    """Hold the lock file until its descriptor is closed; ``None`` if another holds it or it cannot be made."""
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
