"""Clocks and sleeping: which clocks there are, what refuses, and where time ends."""

from __future__ import annotations

import errno
import itertools
import os
import struct

import pytest

from aether_emu.clock import EPOCH_NS, LAST_NS
from tests.linux.calls.twin import ARGUMENTS, BASE, BLOCKED, PAGE, A, Served, Twin

SECOND = 10**9
TIMER_ABSTIME = 1
SLEPT_BY = (0, 1, 7, 11)
CPU_CLOCK, COARSE = 2, (5, 6)
FORBIDDEN = 3
FOREVER = (1 << 63) - 1


def test_the_clocks_and_what_they_resolve_are_linux_s(twin: Twin) -> None:
    for clock in (*range(-8, 16), 1 << 31):
        twin.call("clock_getres", clock, A(0))
        twin.call_apart("clock_getres", clock, 0)
        twin.call_apart("clock_gettime", clock, A(ARGUMENTS))
    twin.forbid(FORBIDDEN)
    for call in ("clock_getres", "clock_gettime"):
        for clock in (1, 20):
            twin.call_apart(call, clock, A(FORBIDDEN * PAGE))


def test_a_clock_of_a_process_is_named_by_its_number(twin: Twin) -> None:
    for bits in range(8):
        own = [~pid << 3 | bits for pid in (twin.served.process.pid, os.getpid())]
        for call in ("clock_getres", "clock_gettime"):
            answers = [twin.one_side(call, side, own[side], A(0)) for side in (0, 1)]
            assert answers[0] == answers[1]
            twin.call_apart(call, ~(1 << 28) << 3 | bits, A(0))


def test_what_sleeping_refuses_is_linux_s(twin: Twin) -> None:
    twin.forbid(FORBIDDEN)
    twin.put(ARGUMENTS, struct.pack("<8q", 0, 1, -1, 0, 0, SECOND, 0, -1))
    times = [A(ARGUMENTS + offset) for offset in (0, 16, 32, 48)] + [A(FORBIDDEN * PAGE)]
    for clock, flags, time in itertools.product(range(-8, 16), (0, TIMER_ABSTIME, 2), times):
        if (clock == CPU_CLOCK or clock < -5) and time == times[0] and flags != TIMER_ABSTIME:
            continue  # it would wait for ever, here and there
        twin.call_apart("clock_nanosleep", clock, flags, time, 0)
    for time in times:
        twin.call_apart("nanosleep", time, 0)


@pytest.mark.parametrize("clock", SLEPT_BY)
def test_a_deadline_is_on_the_clock_of_the_call(served: Served, clock: int) -> None:
    machine = served.process.kernel.clock
    assert served("clock_gettime", clock, BASE) == 0
    seconds, rest = served.unpack("qq", 0)
    served.put(64, struct.pack("<qq", seconds + 5, rest))
    before = machine.now_ns
    assert served("clock_nanosleep", clock, TIMER_ABSTIME, BASE + 64, 0) == 0
    assert before < machine.now_ns <= before + 5 * SECOND
    assert served("clock_gettime", clock, BASE) == 0
    assert served.unpack("qq", 0)[0] == seconds + 5


def test_processor_time_stands_still_in_sleep(served: Served) -> None:
    served.put(64, struct.pack("<qq", 5, 0))
    assert served("nanosleep", BASE + 64, 0) == 0
    for clock in (CPU_CLOCK, 3):
        assert served("clock_gettime", clock, BASE) == 0
        assert served.unpack("qq", 0)[0] == 0
    assert served("getrusage", 0, BASE) == 0 and served.unpack("q", 0) == (0,)
    elapsed = served("times", BASE)
    assert isinstance(elapsed, int) and elapsed >= 500 and served.unpack("q", 0)[0] < 100
    assert served("clock_nanosleep", CPU_CLOCK, 0, BASE + 64, 0) == BLOCKED


@pytest.mark.parametrize("seconds", [FOREVER, LAST_NS // SECOND, LAST_NS // SECOND + 1])
def test_a_sleep_to_the_end_of_time_never_ends(served: Served, seconds: int) -> None:
    served.put(64, struct.pack("<qq", seconds, SECOND - 1))
    assert served("nanosleep", BASE + 64, 0) == BLOCKED
    assert served("clock_nanosleep", 1, TIMER_ABSTIME, BASE + 64, 0) == BLOCKED
    assert served("ppoll", 0, 0, BASE + 64, 0, 8) == BLOCKED


def test_at_the_end_of_time_every_clock_still_tells_it(served: Served) -> None:
    machine = served.process.kernel.clock
    served.put(64, struct.pack("<qq", *divmod(LAST_NS - machine.now_ns - 1000, SECOND)))
    assert served("nanosleep", BASE + 64, 0) == 0
    for _ in range(100):
        assert served("clock_gettime", 1, BASE) == 0
    assert served.unpack("qq", 0) == divmod(LAST_NS, SECOND)
    assert served("clock_gettime", 0, BASE) == 0
    assert served.unpack("qq", 0) == divmod(EPOCH_NS + LAST_NS, SECOND)
    for call in ("gettimeofday", "times", "sysinfo", "time"):
        answer = served(call, BASE + 128)
        assert isinstance(answer, int) and answer >= 0, call
    assert served("getrusage", 0, BASE + 128) == 0
    served.put(64, struct.pack("<qq", 1, 0))
    assert served("nanosleep", BASE + 64, 0) == BLOCKED
    assert served("clock_nanosleep", 8, 0, BASE + 64, 0) == -errno.EOPNOTSUPP
