"""The blocks of one process, when one of them cannot begin."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.metering.sampler import Sampler
from mlflow_green.recorder.admission import Freely
from mlflow_green.recorder.process_meter import ProcessMeter
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.spool_only import SpoolOnly
from mlflow_green.recorder.ticket import bare_request
from mlflow_green.records import Outcome
from tests.testkit.metering_fakes import HandCpuClock
from tests.testkit.recorder_parts import BOOK, ticket


class BreakingCpuClock(HandCpuClock):
    """The next look of the thread that made it does something first, and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.before_it_breaks: Callable[[], None] | None = None
        self._thread = threading.get_ident()

    def seconds(self) -> float:
        act = self.before_it_breaks
        if act is not None and threading.get_ident() == self._thread:
            self.before_it_breaks = None
            act()
            raise RuntimeError("it broke")
        return super().seconds()


def test_a_view_that_cannot_begin_pays_for_nothing_though_the_paying_block_ends_meanwhile() -> None:
    clock, cpu_clock = SystemClock(), BreakingCpuClock()
    recorder = Recorder(
        sampler=Sampler([], clock=clock, host="node1", boot_id="boot1", lock_path=None),
        bookkeeper=SpoolOnly(),
        spool=None,
        enforcer=None,
        book=BOOK,
        clock=clock,
        say=print,
    )
    recorder.start()
    meter = ProcessMeter(
        recorder,
        cpu_clock,
        BOOK,
        clock,
        admission=Freely(lambda each, now: bare_request(each, BOOK, (), now), clock),
        specs={},
        environment=lambda _ticket: {},
        close_ledger=lambda: None,
    )
    paying, view, following = ticket("paying"), ticket("view"), ticket("following")
    meter.enter(paying)
    cpu_clock.before_it_breaks = lambda: meter.leave(paying, Outcome.SUCCEEDED)
    with pytest.raises(RuntimeError, match="it broke"):
        meter.enter(view)
    meter.enter(following)
    assert not following.is_view
    meter.leave(following, Outcome.SUCCEEDED)
    meter.close(10)
