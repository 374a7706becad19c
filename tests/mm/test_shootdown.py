"""Who is asked to flush, in which way, and when memory is given back: the rules alone, with CPUs that execute
nothing, and a runner that says what each CPU does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.shootdown import Asked, Runner, Shootdown
from aether_emu.mm.tlb import Flush, Tlb
from aether_emu.mm.tlb_faults import FaultyTlb
from aether_emu.ports import NO_TRACE

_ALL = 0b1111


class _Cpu:
    """Notes what it is told to drop."""

    def __init__(self) -> None:
        self.blocks = 0
        self.dropped: list[int | str] = []

    def flush_page(self, va: int) -> None:
        self.dropped.append(va)

    def flush_all(self) -> None:
        self.dropped.append("all")


class _Runner(Runner):
    """CPUs 0 and 1 execute, 2 has nothing to execute, 3 waits for a shootdown of its own."""

    def __init__(self, delay: int) -> None:
        self.waiting: list[int] = []
        self.delay = delay

    def meanwhile(self, index: int) -> int:
        return self.delay if self.executes(index) else 0

    def executes(self, index: int) -> bool:
        return index < 2

    def idles(self, index: int) -> bool:
        return index == 2

    def hold(self, index: int, _asked: Asked) -> Callable[[], None]:
        self.waiting.append(index)
        return partial(self.waiting.remove, index)


class _Delayed(Runner):
    """CPUs that all execute, each for so many blocks."""

    def __init__(self, delays: dict[int, int]) -> None:
        self.delays = delays

    def meanwhile(self, index: int) -> int:
        return self.delays[index]


def _tlb(make: Callable[..., Tlb] = Tlb, delay: int = 30, **rules: Any) -> tuple[Tlb, list[_Cpu], Counters]:
    cpus, counters = [_Cpu() for _ in range(4)], Counters()
    tlb = make(cpus, counters, NO_TRACE)
    tlb.way, tlb.runner = Shootdown(delay=delay, **rules), _Runner(delay)
    return tlb, cpus, counters


def _dropped(cpus: list[_Cpu]) -> list[list[int | str]]:
    return [cpu.dropped for cpu in cpus]


def test_the_lazy_one_is_not_interrupted_and_drops_when_it_wakes() -> None:
    tlb, cpus, counters = _tlb()
    flush = tlb.flush_pages(_ALL, [0x1000])
    assert flush is not None
    assert flush.waiting == 0b0010
    assert _dropped(cpus) == [[0x1000], [], [], [0x1000]]
    assert counters.n[Event.INTERRUPT] == tlb.way.sent == 2
    assert tlb.way.lazily == 1
    tlb.enter(2)
    assert cpus[2].dropped == [0x1000]


def test_many_pages_for_a_lazy_cpu_become_one_full_flush() -> None:
    tlb, cpus, _counters = _tlb()
    for page in range(20):
        tlb.flush_pages(0b0101, [page << 12])
    tlb.enter(2)
    assert cpus[2].dropped == ["all"]


def test_a_lazy_cpu_is_interrupted_when_a_table_goes_or_where_it_may_not_be_lazy() -> None:
    for lazy, tables in ((True, True), (False, False)):
        tlb, cpus, _counters = _tlb(lazy=lazy)
        tlb.flush_all(0b0101, tables=tables)
        assert cpus[2].dropped == ["all"]
        assert tlb.way.lazily == 0


def test_a_broadcast_reaches_everybody_without_interrupts() -> None:
    tlb, cpus, counters = _tlb(broadcast=True)
    flush = tlb.flush_pages(_ALL, [0x1000])
    assert flush is not None
    assert flush.waiting == 0b0010
    assert _dropped(cpus) == [[0x1000], [], [0x1000], [0x1000]]
    assert counters.n[Event.INTERRUPT] == 0
    assert counters.n[Event.BROADCAST] == 1
    assert counters.n[Event.FLUSH_PAGE] == 1  # it costs nobody else anything


def test_requests_to_one_cpu_are_coalesced_and_carried_out_at_once() -> None:
    tlb, cpus, counters = _tlb()
    first, second = tlb.flush_pages(0b0011, [0x1000]), tlb.flush_pages(0b0011, [0x2000])
    tlb.acknowledge(1)
    assert cpus[1].dropped == [0x1000, 0x2000]
    assert counters.n[Event.INTERRUPT] == counters.n[Event.INTERRUPT_TAKEN] == tlb.way.coalesced == 1
    assert first is not None
    assert second is not None
    assert first.waiting == second.waiting == 0


def test_who_asked_waits_for_the_last_one() -> None:
    tlb, _cpus, _counters = _tlb()
    assert isinstance(tlb.runner, _Runner)
    flush = tlb.flush_pages(0b0011, [0x1000])
    assert flush is not None
    tlb.wait_for(flush)
    assert tlb.runner.waiting == [0]
    tlb.acknowledge(1)
    assert tlb.runner.waiting == []


def test_a_cpu_goes_on_for_as_many_blocks_as_were_drawn_and_the_flush_tells_how_many_they_were() -> None:
    tlb, cpus, _counters = _tlb()
    cpus[1].blocks = 100
    flush = tlb.flush_pages(0b0011, [0x1000])
    assert tlb.windows == {1: 130}
    cpus[1].blocks = 117
    tlb.acknowledge(1)
    assert tlb.windows == {}
    assert flush is not None
    assert flush.blocks == 17


def test_edits_wait_for_a_late_cpu_behind_one_that_acknowledges_at_once() -> None:
    """In whatever order they were asked: while one uses what is going, nothing is edited in its space."""
    for delays in ({0: 0, 1: 30}, {0: 30, 1: 0}):
        tlb, _cpus, _counters = _tlb()
        tlb.running = 3
        tlb.runner = _Delayed(delays)
        tlb.flush_pages(0b1011, [0x1000])
        assert len(tlb.windows) == 1
        assert tlb.unsettled == 0b1011
        tlb.settle()
        assert tlb.unsettled == 0
        tlb.runner = _Delayed({0: 0, 1: 0})
        tlb.flush_pages(0b1011, [0x1000])
        assert tlb.unsettled == 0, "all have acknowledged"


def test_a_cpu_that_is_behind_flushes_before_it_executes_anything() -> None:
    """It was lazy, so others went on without it: nothing of that may still be used."""
    tlb, _cpus, _counters = _tlb()
    tlb.flush_pages(0b0101, [0x1000])
    tlb.runner = Runner()  # it has a task now
    tlb.flush_pages(0b0101, [0x2000])
    assert tlb.windows == {}


@pytest.mark.parametrize("rule", ["flushed", "early"])
def test_an_early_acknowledgement_comes_before_the_flush(rule: str) -> None:
    tlb, cpus, _counters = _tlb(acknowledged=rule)
    flush = tlb.flush_pages(0b0011, [0x1000])
    assert flush is not None
    seen: list[list[int | str]] = []
    flush.done.append(lambda: seen.append(list(cpus[1].dropped)))
    tlb.acknowledge(1)
    assert seen == ([[]] if rule == "early" else [[0x1000]])


def test_a_dropped_root_drops_what_was_asked_for() -> None:
    tlb, _cpus, _counters = _tlb()
    flush = tlb.flush_pages(0b0011, [0x1000])
    tlb.dropped(1)
    assert flush is not None
    assert flush.waiting == 0
    assert tlb.pending == 0
    assert tlb.windows == {}


def test_who_executes_nothing_any_more_acknowledges() -> None:
    tlb, cpus, _counters = _tlb()
    tlb._queues[3].append(Flush([0x1000], 0b1000))
    tlb.settle_idle()
    assert cpus[3].dropped == [0x1000]


@pytest.mark.parametrize("rare", [1, 3])
@pytest.mark.parametrize(
    ("kind", "others"),
    [("drop", [[], "12"]), ("late", [[1, 2], "12"]), ("narrow", [[1], "1"]), ("no-wake", [[1, 2], ""])],
)
def test_a_fault_occurs_as_often_as_it_was_asked_for(
    kind: str, others: tuple[list[int], str], rare: int
) -> None:
    """CPU 1 executes, and CPU 2 is lazy: what they drop, and whether CPU 1 had acknowledged before."""
    tlb, cpus, _counters = _tlb(partial(FaultyTlb, kind, rare, lambda count: count == 1))
    asked = tlb.flush_pages(0b0111, [1, 2])
    strikes = rare == 1
    assert isinstance(tlb, FaultyTlb)
    assert tlb.struck == strikes
    assert (asked is None) == (strikes and kind in ("drop", "late"))
    tlb.acknowledge(1)
    tlb.acknowledge(2)
    expected = others if strikes else [[1, 2], "12"]
    assert cpus[1].dropped == expected[0]
    assert "".join(map(str, cpus[2].dropped)) == expected[1]
