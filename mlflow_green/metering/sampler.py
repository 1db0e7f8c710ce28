"""The sampler: every process has one, and the samplers of one user on one host meter it together.

The one that holds the lock leads: it reads the sensors and closes windows whose shares sum to the whole, over its own
consumers and those of the others, which follow: they say what their consumers' clocks show and take their usage from
what the leader publishes. When the leader has gone, a follower goes on where it ended.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_green.clock import Clock
from mlflow_green.errors import SensorError, SensorRetry
from mlflow_green.metering.cpu_clock import CpuClock
from mlflow_green.metering.gpu_users import GpuUsers
from mlflow_green.metering.node import Moment, Node, Use, begun, close_windows, taken_over, without
from mlflow_green.metering.resident_memory import ResidentMemory
from mlflow_green.metering.shared_state import (
    Account,
    LeaderState,
    Presence,
    SharedFolder,
    hold_of,
    key_of,
    opened,
    process_of,
)
from mlflow_green.records import Device, Domain, Method, NodeWindow, Reading, Tick, Usage
from mlflow_green.sensors.proc_stat import PROC_ROOT, HostCpu, read_host_cpu
from mlflow_green.sensors.sensor import ModelSensor, Sensor
from mlflow_green.units import milliseconds

ANSWER_SECONDS_MAX = 3.0  # a sampling period, and time for a busy host
ADOPTION_SECONDS_MAX = 5.0  # in which a keeper has begun to report what a process left that died
_LOOK_SECONDS = 0.05
_LOOKS_MAX = 20  # to find a leader that has the lock and has not published anything yet


@dataclass(slots=True, kw_only=True, eq=False)
class _Consumer:
    consumer_id: str
    key: str
    cpu_clock: CpuClock
    joined_seconds: float
    start_cpu_seconds: float
    cpu_seconds: float  # the last look at the clock
    is_view: bool = False
    is_own_process: bool = False
    left_seconds: float | None = None
    resident_bytes: int | None = None

    def look(self) -> None:
        """Read the clock; the last known value stays where it fails, and when the consumer has left."""
        if self.left_seconds is None:
            with contextlib.suppress(OSError):
                self.cpu_seconds = max(self.cpu_seconds, self.cpu_clock.seconds())

    def presence(self) -> Presence:
        left_seconds = self.left_seconds  # before the clock's value, which it makes the last one
        return Presence(
            cpu_clock=self.cpu_clock.name,
            joined_seconds=self.joined_seconds,
            start_cpu_seconds=self.start_cpu_seconds,
            cpu_seconds=self.cpu_seconds,
            left_seconds=left_seconds,
            resident_bytes=self.resident_bytes,
            is_view=self.is_view,
            is_own_process=self.is_own_process,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A consumer that is still there: the key of its account, its clock, and how it stands."""

    key: str
    cpu_clock: CpuClock
    presence: Presence


class Sampler:
    """Meters the node and the consumers that join it; each ``tick`` closes the window since the one before.

    ``lock_path`` is a file in a folder of this user and host, where the samplers meet (``None``: this one is alone).
    One of them leads. The others follow: their ticks have no windows, and a usage only for the consumers that the
    leader has seen. All have one ``sampler_id``. The first tick of a new leader tells the last windows of a killed one
    again. ``coordinated`` is ``False`` where the folder cannot be used, or whoever has the lock publishes nothing: this
    sampler then makes no claim about sums, so its ticks have no windows.

    A follower's ``tick`` waits until the leader has taken in each consumer that has left, at most
    ``answer_seconds_max`` after its leaving. Without an answer the last known usage is final, and its coverage is
    lower. ``pause`` sleeps for some seconds.

    One whose consumers are all views says ``may_lead=False``: nobody keeps its windows, so it follows, or is alone.
    ``lock_fd`` is a descriptor of the lock, perhaps with it: that of a keeper, which goes on from the state of a leader
    that died even where no follower lives. The sampler owns it.

    ``join``, ``leave`` and the properties may be used from any thread; ``tick`` and ``close`` belong to one. A forked
    child changes nothing that is shared. Broken sensors and broken shared files never raise here: a failed read is a
    gap, and what is lost is said in ``notes``.
    """

    def __init__(  # noqa: PLR0913 - its parts, and what tests replace
        self,
        sensors: Sequence[Sensor],
        *,
        clock: Clock,
        host: str,
        boot_id: str,
        lock_path: Path | None,
        proc_root: Path = PROC_ROOT,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        pause: Callable[[float], None] = time.sleep,
        may_lead: bool = True,
        lock_fd: int | None = None,
    ) -> None:
        self.sampler_id = uuid.uuid4().hex
        self.notes: list[str] = []
        self.outlived_others = False  # its ticks have the last word about consumers of a process that was killed
        self._clock = clock
        self._host = host
        self._boot_id = boot_id
        self._proc_root = proc_root
        self._answer_seconds_max = answer_seconds_max
        self._pause = pause
        self._may_lead = may_lead
        self._sensors = list(sensors)
        self._lost: list[Sensor] = []
        self._devices: tuple[Device, ...] = tuple(device for sensor in sensors for device in sensor.devices())
        self._gpu_users = GpuUsers(proc_root)
        has_dram = any(device.domain is Domain.DRAM for device in self._devices)
        self._memory = ResidentMemory(proc_root) if has_dram else None
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._consumers: dict[str, _Consumer] = {}
        self._joined = 0
        self._accounts: Mapping[str, Account] = {}
        self._repeated: tuple[NodeWindow, ...] = ()  # of the leader before, which may have died before it kept them
        self._published: LeaderState | None = None
        self._seen: LeaderState | None = None  # what the leader published last; ``None`` for one that leads
        self._died_seconds: dict[str, float] = {}
        self._goes_on = lock_fd is not None
        self._shared = self._meet(lock_path, lock_fd)
        self.coordinated = lock_path is None or self._shared is not None
        self._process = self._shared.name if self._shared else ""
        if self._seen is None:
            self._lead_from(self._predecessor())
        else:
            self.sampler_id = self._seen.node.sampler_id

    @property
    def is_shared(self) -> bool:
        """Whether another process can go on where this one ends."""
        return self._shared is not None

    @property
    def power_watts_max(self) -> float:
        """The most that all devices together can show, in watts; 0 where nothing is metered."""
        return sum(device.power_watts_max for device in self._devices)

    def join(
        self, consumer_id: str, cpu_clock: CpuClock, *, is_view: bool = False, is_own_process: bool = False
    ) -> None:
        """Meter this consumer from now on; the sampler owns the clock. A view is a part of another consumer.

        ``is_own_process``: the consumer is work of this process, so what carries no mark here belongs to it.

        Raises:
            ValueError: a consumer of this name is there already.
        """
        cpu_seconds = 0.0
        with contextlib.suppress(OSError):
            cpu_seconds = cpu_clock.seconds()
        with self._lock:
            if consumer_id in self._consumers:
                raise ValueError(f"consumer {consumer_id!r} has joined already")
            self._joined += 1  # a name that joins again is another consumer
            self._consumers[consumer_id] = _Consumer(
                consumer_id=consumer_id,
                key=key_of(self._process, self._joined, consumer_id),
                cpu_clock=cpu_clock,
                joined_seconds=self._clock.monotonic_seconds(),
                start_cpu_seconds=cpu_seconds,
                cpu_seconds=cpu_seconds,
                is_view=is_view,
                is_own_process=is_own_process,
            )
        self._report()

    def leave(self, consumer_id: str) -> None:
        """Read the clock a last time and close it; the usage is final at the next tick. Twice does nothing."""
        with self._lock:
            consumer = self._consumers.get(consumer_id)
            if consumer is None or consumer.left_seconds is not None:
                return
            consumer.look()
            consumer.left_seconds = self._clock.monotonic_seconds()
        consumer.cpu_clock.close()
        self._report()

    def standing(self) -> dict[str, Standing]:
        """The consumers that have not left, by name."""
        with self._lock:
            present = [consumer for consumer in self._consumers.values() if consumer.left_seconds is None]
            return {
                consumer.consumer_id: Standing(
                    key=consumer.key, cpu_clock=consumer.cpu_clock, presence=consumer.presence()
                )
                for consumer in present
            }

    def account(self, key: str) -> Account | None:
        """What is known of a consumer of any process, by its key."""
        accounts = self._accounts if self._seen is None else self._seen.accounts
        return accounts.get(key)

    def adopt(self, key: str, cpu_clock: CpuClock, presence: Presence) -> None:
        """Go on with a consumer of a process that died, under its key, which is its name here too.

        Its account is that of before. ``cpu_clock`` goes on where its clock was; the sampler owns it.
        """
        with self._lock:
            self._consumers[key] = _Consumer(
                consumer_id=key,
                key=key,
                cpu_clock=cpu_clock,
                joined_seconds=presence.joined_seconds,
                start_cpu_seconds=presence.start_cpu_seconds,
                cpu_seconds=presence.cpu_seconds,
                is_view=presence.is_view,
                is_own_process=presence.is_own_process,
            )
        self._report()

    def tick(self) -> Tick:
        """Close the window since the last tick and share it out, or ask for what the leader's windows gave."""
        if self._seen is None or self._take_over():
            return self._lead()
        return self._follow(self._seen)

    def close(self) -> None:
        """Close sensors and clocks, and give the lock back. Consumers that have not left get no further tick."""
        for sensor in (*self._sensors, *self._lost):
            sensor.close()
        with self._lock:
            for consumer in self._consumers.values():
                consumer.cpu_clock.close()
            self._consumers.clear()
        if self._shared is not None:
            self._part(self._shared)

    def abandon(self) -> None:
        """In a forked child that leaves all of this to its parent: give up the descriptor that shares its lock."""
        if self._shared is not None:
            self._shared.close()

    # --- roles -------------------------------------------------------------------------------------

    def _meet(self, lock_path: Path | None, lock_fd: int | None) -> SharedFolder | None:
        """Join the others, to lead or (then ``_seen`` is set) to follow; ``None`` where that cannot be."""
        if lock_path is None:
            return None
        try:
            shared = SharedFolder(lock_path, self._proc_root, self.notes, lock_fd)
        except OSError:
            return None
        for _ in range(_LOOKS_MAX if self._may_lead else 1):
            if self._may_lead and shared.take_lock():
                shared.withdraw()
                return shared
            if not shared.report("", {}):  # before the look: a leader that closes keeps its state for whom it sees
                break
            state = shared.state()
            if state is not None and state.node.boot_id == self._boot_id and shared.is_alive(state.leader):
                self._seen = state
                return shared
            self._pause(_LOOK_SECONDS)
        shared.withdraw()
        shared.close()
        return None

    def _predecessor(self) -> LeaderState | None:
        """The state that a leader left to followers which still live, or to a keeper; nobody else needs it."""
        if self._shared is None or not (self._goes_on or self._shared.has_followers()):
            return None
        state = self._shared.state()
        return state if state is not None and state.node.boot_id == self._boot_id else None

    def _take_over(self) -> bool:
        """Lead from now on, if the lock is free."""
        assert self._seen is not None
        if self._shared is None or not self._may_lead or not self._shared.take_lock():
            return False
        state = self._shared.state()
        if state is None or state.node.sampler_id != self.sampler_id:
            state = self._without_state(self._seen)
        with self._reporting:
            self._seen = None
            self._shared.withdraw()
        self._lead_from(state)
        return True

    def _without_state(self, seen: LeaderState) -> LeaderState:
        """What is left when the leader's state is lost: nothing counts twice, and the windows begin anew.

        The leader may have closed windows since it was seen. No tick takes less than a millisecond, so as many numbers
        are left free.
        """
        unseen_seconds = self._clock.monotonic_seconds() - seen.node.last.monotonic_seconds
        self.notes.append("the state of the meter that led on this host is lost, and with it its last windows")
        return replace(seen, node=self._new_node(seen.node.sequence + milliseconds(unseen_seconds) + 1))

    def _new_node(self, sequence: int) -> Node:
        return Node(
            sampler_id=self.sampler_id,
            host=self._host,
            boot_id=self._boot_id,
            sequence=sequence,
            last=Moment(
                monotonic_seconds=self._clock.monotonic_seconds(), at=self._clock.now(), host_cpu=self._host_cpu()
            ),
            tracks={},
            openings={},
            quiet_power_microwatts={},
        )

    def _lead_from(self, state: LeaderState | None) -> None:
        if state is None:
            node = self._new_node(0)
        else:
            self._resume(state.node)
            node, self._accounts, self._repeated = taken_over(state.node, self._devices), state.accounts, state.windows
            self.sampler_id = node.sampler_id
            missing = ", ".join(name for name in state.node.tracks if name not in node.tracks)
            if missing:
                self.notes.append(f"this meter goes on without {missing}, which it cannot read: missing from now on")
            if self._shared is not None:
                self._shared.fallen |= {*map(process_of, self._accounts), state.leader} - {self._process}
        self._node = node
        if any(device.name not in node.tracks for device in self._devices):
            self._node = begun(node, self._devices, self._read_sensors(), self._now())
        self._publish(self._repeated)

    def _resume(self, node: Node) -> None:
        """Let the models go on from the last readings, as the counters of the hardware do by themselves."""
        for sensor in self._sensors:
            if isinstance(sensor, ModelSensor):
                for device in sensor.devices():
                    track = node.tracks.get(device.name)
                    if track is not None and track.last is not None:
                        sensor.resume(track.last, node.last.host_cpu)

    def _publish(self, windows: tuple[NodeWindow, ...]) -> None:
        if self._shared is None:
            return
        state = LeaderState(leader=self._process, node=self._node, accounts=self._accounts, windows=windows)
        self._published = state if self._shared.publish(state) else None

    def _report(self) -> None:
        """Tell the leader how it stands with the consumers, if there is one."""
        with self._reporting:
            if self._shared is not None and self._seen is not None:
                with self._lock:
                    consumers = {consumer.key: consumer.presence() for consumer in self._consumers.values()}
                self._shared.report(self.sampler_id, consumers)

    def _part(self, shared: SharedFolder) -> None:
        """Leave the others; a state with nobody to go on from it is removed."""
        with self._reporting:
            leads, self._seen = self._seen is None, None
            shared.withdraw()
        if leads:
            shared.remove_state()  # before the look: who reports later than it finds no state, and takes the lock
            if shared.has_followers() and self._published is not None:
                accounts = self._published.accounts.items()
                others = {key: account for key, account in accounts if process_of(key) != self._process}
                windows = self._repeated  # of the leader before; the caller has those of this one
                shared.publish(replace(self._published, accounts=others, windows=windows))
        shared.close()

    # --- leading -----------------------------------------------------------------------------------

    def _lead(self) -> Tick:
        readings = self._read_sensors()
        own = self._look()
        present = {consumer.key: presence for consumer, presence in own.items()}
        reports = self._shared.reports(self.sampler_id) if self._shared else {}
        for report in reports.values():
            present.update(report or {})
        now, before = self._now(), self._node.last
        accounts = {key: self._accounts.get(key) or opened(presence) for key, presence in present.items()}
        uses = {
            key: Use(
                cpu_seconds=max(0.0, present[key].cpu_seconds - account.shared_cpu_seconds),
                is_exact=present[key].cpu_clock.is_exact,
                resident_bytes=present[key].resident_bytes,
                is_view=present[key].is_view,
                is_own_process=present[key].is_own_process,
            )
            for key, account in accounts.items()
            if account.left_seconds is None
        }
        uses = self._gpu_users.find(uses, readings, [track.device for track in self._node.tracks.values()])
        self._node, closed = close_windows(self._node, readings, uses, now)
        self._meet_new_devices(readings, now)
        for key in uses:
            accounts[key] = accounts[key].charged(
                key, present[key], closed, before.monotonic_seconds, now.monotonic_seconds
            )
        usages = {
            consumer.consumer_id: accounts[consumer.key].usage(presence.cpu_clock, now.monotonic_seconds)
            for consumer, presence in own.items()
        }
        silent = {
            key: account
            for key, account in self._accounts.items()
            if key not in present and self._is_awaited(process_of(key), reports, now.monotonic_seconds)
        }
        self._accounts = {**silent, **accounts}
        awaited = {process_of(key) for key in silent}
        self._died_seconds = {name: died for name, died in self._died_seconds.items() if name in awaited}
        windows = (*self._repeated, *(each.window for each in closed)) if self.coordinated else ()
        self._repeated = ()
        final = self._forget_left(own)
        self._publish(windows)
        return Tick(
            sampler_id=self.sampler_id,
            sequence=self._node.sequence,
            at=now.at,
            windows=windows,
            usages=usages,
            final=final,
            stolen_seconds=now.host_cpu.stolen_since(before.host_cpu) if now.host_cpu else None,
            others=self._others(present, now.monotonic_seconds),
        )

    def _others(self, present: Mapping[str, Presence], now_seconds: float) -> Mapping[str, Usage] | None:
        """What has been charged to the consumers of other processes, also of those that died just now."""
        found: dict[str, Usage] = {}
        for key, account in self._accounts.items():
            process = process_of(key)
            if process != self._process:
                clock = present[key].cpu_clock if key in present else None
                until_seconds = self._died_seconds.get(process, now_seconds)
                found[hold_of(key)] = account.usage(clock, until_seconds)
        return found or None

    def _meet_new_devices(self, readings: Mapping[str, Reading], now: Moment) -> None:
        """Devices that the sensors have found since: their windows begin with these readings."""
        self._devices = tuple(device for sensor in (*self._sensors, *self._lost) for device in sensor.devices())
        if any(device.name not in self._node.tracks for device in self._devices):
            self._node = begun(self._node, self._devices, readings, now)
            self._end_memory_model()

    def _end_memory_model(self) -> None:
        """A counter that shows the memory replaces the model of it: else its energy would count twice."""
        measured = {device.domain for device in self._devices if device.method is Method.MEASURED}
        if measured.isdisjoint({Domain.DRAM, Domain.PLATFORM}):
            return
        for sensor in self._sensors.copy():
            kinds = {(device.domain, device.method) for device in sensor.devices()}
            if kinds == {(Domain.DRAM, Method.ESTIMATED)}:
                self._sensors.remove(sensor)
                sensor.close()
                self._node = without(self._node, {device.name for device in sensor.devices()})
                self._devices = tuple(device for device in self._devices if device.name in self._node.tracks)
                self.notes.append("a counter that shows the memory has appeared: its energy is no longer modelled")

    def _is_awaited(
        self, process: str, reports: Mapping[str, Mapping[str, Presence] | None], now_seconds: float
    ) -> bool:
        """Whether a process of which nothing is known may speak again: opened anew, it would be charged twice.

        It lives, or it was killed just now and a keeper may go on with what it left.
        """
        if self._shared is None or process == self._process:
            return False
        if self._shared.is_alive(process):
            return reports.get(process) is None
        if process not in self._shared.fallen:
            return False
        self.outlived_others = True
        return now_seconds - self._died_seconds.setdefault(process, now_seconds) < ADOPTION_SECONDS_MAX

    def _look(self) -> dict[_Consumer, Presence]:
        """Read every clock, and the memory where it is shared out."""
        with self._lock:
            consumers = list(self._consumers.values())
        if self._memory is not None:
            self._look_at_memory(self._memory, consumers)
        found: dict[_Consumer, Presence] = {}
        for consumer in consumers:
            with self._lock:
                consumer.look()
                found[consumer] = consumer.presence()
        return found

    def _look_at_memory(self, memory: ResidentMemory, consumers: Sequence[_Consumer]) -> None:
        """A view's is what its process keeps with all of its children; a payer's own, what others have not marked.

        One that has left keeps what it had.
        """
        resident = memory.look(self._clock.monotonic_seconds(), {hold_of(each.key) for each in consumers})
        payers = [each for each in consumers if not each.is_view]
        own = [each for each in payers if each.is_own_process and process_of(each.key) == self._process]
        own = [each for each in own if each.left_seconds is None] or own
        for consumer in consumers:
            found = resident.by_hold.get(hold_of(consumer.key))
            if consumer.is_view and process_of(consumer.key) == self._process:
                found = sum(resident.here.values())
            elif [consumer] == own:
                marked = {hold_of(each.key) for each in payers}
                found = (found or 0) + sum(held for mark, held in resident.here.items() if mark not in marked)
            if consumer.left_seconds is None or consumer.resident_bytes is None:
                consumer.resident_bytes = found

    def _forget_left(self, own: Mapping[_Consumer, Presence]) -> frozenset[str]:
        """Drop those that had left when they were looked at; their names."""
        gone = frozenset(consumer.consumer_id for consumer, each in own.items() if each.left_seconds is not None)
        with self._lock:
            for name in gone:
                self._consumers.pop(name, None)
        return gone

    def _read_sensors(self) -> Mapping[str, Reading]:
        return {reading.device: reading for sensor in list(self._sensors) for reading in self._read(sensor)}

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
        tracks = [self._node.tracks.get(device.name) for device in sensor.devices()]
        if any(track is not None and track.known_seconds > 0 for track in tracks):
            return "; from now on its energy is estimated from its mean power so far"
        power_watts_max = sum(device.power_watts_max for device in sensor.devices())
        return (
            " before its second reading; from now on its energy is taken as half of its greatest power, "
            f"anything from 0 to {power_watts_max:g} W"
        )

    def _now(self) -> Moment:
        return Moment(
            monotonic_seconds=self._clock.monotonic_seconds(),
            at=max(self._clock.now(), self._node.last.at),
            host_cpu=self._host_cpu(),
            memory_bytes=self._memory.memory_bytes if self._memory else None,
        )

    def _host_cpu(self) -> HostCpu | None:
        try:
            return read_host_cpu(self._proc_root)
        except SensorRetry:
            return None

    # --- following ---------------------------------------------------------------------------------

    def _follow(self, seen: LeaderState) -> Tick:
        own = self._look()
        self._report()
        leaving = {consumer.key: each.left_seconds for consumer, each in own.items() if each.left_seconds is not None}
        until_seconds = max(leaving.values(), default=0.0) + self._answer_seconds_max
        seen = self._seen = self._see(seen)
        while not _has_answered(seen, leaving) and self._clock.monotonic_seconds() < until_seconds:
            self._pause(_LOOK_SECONDS)
            if self._take_over():
                return self._lead()
            seen = self._seen = self._see(seen)
        usages = {
            consumer.consumer_id: usage
            for consumer, presence in own.items()
            if (usage := _usage_seen(seen, consumer.key, presence)) is not None
        }
        final = self._forget_left(own)
        if final:
            self._report()  # so that the leader forgets them too
        return Tick(
            sampler_id=self.sampler_id,
            sequence=seen.node.sequence,
            at=seen.node.last.at,
            windows=(),
            usages=usages,
            final=final,
        )

    def _see(self, before: LeaderState) -> LeaderState:
        """The leader's state; the one seen before while there is none that is ours."""
        state = self._shared.state() if self._shared else None
        return state if state is not None and state.node.sampler_id == self.sampler_id else before


def _has_answered(seen: LeaderState, leaving: Iterable[str]) -> bool:
    accounts = [seen.accounts.get(key) for key in leaving]
    return all(account is not None and account.left_seconds is not None for account in accounts)


def _usage_seen(seen: LeaderState, key: str, presence: Presence) -> Usage | None:
    """What the leader charged a consumer; ``None`` while it has not seen it.

    One that has left without the leader's answer has its true length and CPU time, and the energy of the windows up to
    the last that is known, which cover only a part of that length.
    """
    account, last_seconds = seen.accounts.get(key), seen.node.last.monotonic_seconds
    if presence.left_seconds is None:
        return None if account is None else account.usage(presence.cpu_clock, last_seconds)
    account = account or opened(presence)
    if account.left_seconds is not None:
        return account.usage(presence.cpu_clock, last_seconds)
    usage = account.usage(presence.cpu_clock, presence.left_seconds)
    known_seconds = max(0.0, min(last_seconds, presence.left_seconds) - presence.joined_seconds)
    known_ratio = known_seconds / usage.duration_seconds if usage.duration_seconds > 0 else 0.0
    return replace(
        usage,
        cpu_seconds=presence.cpu_seconds - presence.start_cpu_seconds,
        coverage_ratio=usage.coverage_ratio * known_ratio,
    )


def merge_windows(windows: Sequence[NodeWindow]) -> tuple[NodeWindow, ...]:
    """Join windows of one sampler and domain that follow each other without a gap; sums, and coverage by time."""
    merged: list[NodeWindow] = []
    for window in sorted(windows, key=lambda each: (each.sampler_id, each.domain, each.sequence_first)):
        if merged and _follows(merged[-1], window):
            merged[-1] = merged[-1].joined(window)
        else:
            merged.append(window)
    return tuple(merged)


def _follows(before: NodeWindow, after: NodeWindow) -> bool:
    same = (before.sampler_id, before.domain) == (after.sampler_id, after.domain)
    return same and after.sequence_first == before.sequence_last + 1
