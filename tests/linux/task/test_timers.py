"""The machine's timers: what is due first, and that a program which sets them anew for ever fills nothing."""

from __future__ import annotations

from aether_emu.clock import LAST_NS
from aether_emu.linux.task.alarms import Timer
from aether_emu.linux.task.timers import Timers


def test_a_timer_that_is_set_anew_for_ever_takes_no_more_room() -> None:
    timers, fired = Timers(), list[int]()
    others = [Timer(number, 10, expires=1_000_000 + number, runs=True) for number in range(3)]
    for other in others:
        timers.add(other, lambda number=other.number: fired.append(number))  # type: ignore[misc]  # bound now
    again = Timer(9, 10, runs=True)
    for deadline in (*range(2_000_000, 2_001_000), *[3_000_000] * 1000):
        again.expires = deadline
        timers.add(again, lambda: fired.append(9))
        assert len(timers.heap) <= 200
    timers.fire(2_999_999)
    assert fired == [0, 1, 2]
    assert timers.first() == 3_000_000


def test_the_end_of_time_is_never() -> None:
    timers = Timers()
    timers.add(Timer(0, 10, expires=LAST_NS, runs=True), lambda: None)
    assert timers.first() is None
