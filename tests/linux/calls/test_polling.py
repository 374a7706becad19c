"""poll and select, beside the real kernel's, and their virtual timeouts."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.files.streams import BufferStream, StreamFile
from tests.linux.calls.twin import BASE, BLOCKED, EVERY_SIGNAL, PAGE, A, F, Served, Twin
from tests.linux.files.conftest import Guest

IN, OUT, ERR, HUP, NVAL, RDNORM, WRNORM = 1, 4, 8, 16, 32, 0x40, 0x100
NOTHING = struct.pack("<qq", 0, 0)
SETS = 256
"""Bytes between fd_sets in memory."""


@pytest.fixture
def piped(twin: Twin) -> Twin:
    """A pipe "r" to "w", a counter and a file."""
    twin.pipe("r", "w")
    twin.open("counter", "eventfd2", 0, os.O_NONBLOCK)
    twin.open("f", "openat", F("dir"), twin.text(b"f"), os.O_RDWR | os.O_CREAT, 0o600)
    return twin


def poll(twin: Twin, *wanted: tuple[str | int, int]) -> list[int]:
    """What poll answers for (descriptor, events) with no time to wait."""
    for index, (name, events) in enumerate(wanted):
        pair = twin.pair(name) if isinstance(name, str) else (name, name)
        for fd, memory in zip(pair, twin.memories, strict=True):
            struct.pack_into("<iHH", memory, 8 * index, fd, events, 0xFFFF)
    timeout = twin.put(2048, NOTHING)
    count = twin.call_apart("ppoll", A(0), len(wanted), timeout, 0, 8)
    found = [
        [struct.unpack_from("<H", memory, 8 * index + 6)[0] for index in range(len(wanted))]
        for memory in twin.memories
    ]
    assert found[0] == found[1]
    assert count == sum(map(bool, found[0]))
    twin.put(0, bytes(8 * len(wanted)))
    return found[0]


def test_what_poll_sees(piped: Twin) -> None:
    everything = IN | OUT | RDNORM | WRNORM
    assert poll(piped, ("r", everything), ("w", everything)) == [0, OUT | WRNORM]
    piped.call("write", F("w"), A(100), 5)
    assert poll(piped, ("r", everything), ("r", OUT), ("r", 0)) == [IN | RDNORM, 0, 0]
    assert poll(piped, ("counter", everything), ("f", everything), ("f", IN)) == [OUT, everything, IN]
    assert poll(piped, (-1, everything), (9999, everything), (9999, 0)) == [0, NVAL, NVAL]
    piped.close_descriptor("w")
    assert poll(piped, ("r", IN), ("r", 0)) == [IN | HUP, HUP]
    assert poll(piped) == []


def test_the_writing_end_without_a_reader(piped: Twin) -> None:
    piped.close_descriptor("r")
    assert poll(piped, ("w", OUT)) == [OUT | ERR]


def test_poll_refusals(piped: Twin) -> None:
    timeout = piped.put(2048, struct.pack("<qq", 0, 10**9))
    assert piped.call("ppoll", A(0), 0, timeout, 0, 8) == -errno.EINVAL
    timeout = piped.put(2048, struct.pack("<qq", -1, 0))
    assert piped.call("ppoll", A(0), 0, timeout, 0, 8) == -errno.EINVAL
    timeout = piped.put(2048, NOTHING)
    assert piped.call("ppoll", A(0), 0, timeout, A(64), 4) == -errno.EINVAL
    assert piped.call("ppoll", A(0), 1 << 30, timeout, 0, 8) == -errno.EINVAL
    piped.forbid(5)
    assert piped.call("ppoll", A(5 * PAGE), 1, timeout, 0, 8) == -errno.EFAULT
    assert piped.call("ppoll", A(0), 0, A(5 * PAGE), 0, 8) == -errno.EFAULT


def select_now(
    twin: Twin, count: int | None, reading: list[str], writing: list[str], special: list[str]
) -> list[list[str]]:
    """The names that pselect6 finds ready, with no time to wait; `count` None is enough for all."""
    names = reading + writing + special
    tops = [1 + max((twin.pair(name)[side] for name in names), default=0) for side in (0, 1)]
    size = 128
    for side, memory in enumerate(twin.memories):
        for index, chosen in enumerate((reading, writing, special)):
            bits = sum(1 << twin.pair(name)[side] for name in chosen)
            memory[index * SETS : index * SETS + size] = bits.to_bytes(size, "little")
    twin.put(2048, NOTHING)
    answers = []
    for side in (0, 1):
        number = tops[side] if count is None else count
        answers.append(twin.one_side("pselect6", side, number, A(0), A(SETS), A(2 * SETS), A(2048), 0))
    assert answers[0] == answers[1]
    found = [
        [
            [name for name in names if int.from_bytes(memory[i * SETS : i * SETS + size], "little")
             >> twin.pair(name)[side] & 1]
            for i in range(3)
        ]
        for side, memory in enumerate(twin.memories)
    ]  # fmt: skip
    assert found[0] == found[1]
    twin.put(0, bytes(3 * SETS))
    return found[0] if answers[0] >= 0 else [[errno.errorcode[-answers[0]]]]


def test_what_select_sees(piped: Twin) -> None:
    assert select_now(piped, None, ["r", "counter"], ["w"], ["r"]) == [[], ["w"], []]
    piped.call("write", F("w"), A(1000), 5)
    assert select_now(piped, None, ["r"], ["w"], []) == [["r"], ["w"], []]
    piped.close_descriptor("w")
    piped.call("read", F("r"), A(1000), 5)
    reading, writing, special = select_now(piped, None, ["r", "f"], ["f"], ["counter"])
    assert set(reading) == {"r", "f"} and set(writing) == {"f"} and special == []
    assert select_now(piped, -1, [], [], []) == [["EINVAL"]]


def test_select_refuses_closed_descriptors(served: Served) -> None:
    served.put(0, struct.pack("<Q", 1 << 40))
    served.put(2048, NOTHING)
    assert served("select", 41, BASE, 0, 0, BASE + 2048) == -errno.EBADF
    assert served("select", 40, BASE, 0, 0, BASE + 2048) == 0


def test_a_timeout_passes_in_virtual_time(served: Served) -> None:
    clock = served.process.kernel.clock
    counter = served("eventfd2", 0, 0)
    assert isinstance(counter, int)
    served.put(0, struct.pack("<iHH", counter, IN, 0xFFFF))
    before = clock.now_ns
    assert served("poll", BASE, 1, 1500) == 0
    assert clock.now_ns - before == 1_500_000_000
    assert served.unpack("iHH", 0) == (counter, IN, 0)
    timeout = BASE + 100
    served.put(100, struct.pack("<qq", 2, 7))
    assert served("ppoll", BASE, 1, timeout, 0, 8) == 0
    assert served.unpack("qq", 100) == (0, 0)
    assert clock.now_ns - before == 3_500_000_007
    served.put(200, struct.pack("<Q", 1 << counter))
    served.put(100, struct.pack("<qq", 1, 2_500_000))  # select takes more than a second of microseconds
    assert served("select", counter + 1, BASE + 200, 0, 0, timeout) == 0
    assert clock.now_ns - before == 7_000_000_007
    assert served.unpack("Q", 200) == (0,)
    assert served.unpack("qq", 100) == (0, 0)


def test_what_is_ready_takes_no_time(served: Served) -> None:
    clock = served.process.kernel.clock
    before = clock.now_ns
    served.put(0, struct.pack("<iHH", 1, OUT, 0))
    assert served("poll", BASE, 1, 1500) == 1
    served.put(100, struct.pack("<qq", 2, 7))
    assert served("ppoll", BASE, 1, BASE + 100, 0, 8) == 1
    assert served.unpack("qq", 100) == (2, 7)
    served.put(200, struct.pack("<Q", 2))
    served.put(100, struct.pack("<qq", 1, 1_000_003))
    assert served("select", 2, 0, BASE + 200, 0, BASE + 100) == 1
    assert served.unpack("qq", 100) == (2, 3)
    assert clock.now_ns == before


def test_without_a_timeout_the_process_waits(guest: Guest, served: Served) -> None:
    class Quiet(BufferStream):
        def ready(self) -> bool:
            return False

    counter = served("eventfd2", 0, 0)
    assert isinstance(counter, int)
    stdin = guest.files.table.file(0)
    assert isinstance(stdin, StreamFile)
    stdin.stream = Quiet()
    served.put(0, struct.pack("<iHHiHH", counter, IN, 0, 0, IN, 0))
    assert served("poll", BASE, 1, -1) == BLOCKED
    assert served.waits_for(guest.files.table.file(counter)) and not served.waits_for(stdin)
    assert served("poll", BASE, 2, -1) == BLOCKED
    assert served.waits_for(stdin)
    served.put(0, struct.pack("<Q", 1 | 1 << counter))
    assert served("select", counter + 1, BASE, 0, 0, 0) == BLOCKED
    assert served.waits_for(stdin)
    assert served.unpack("Q", 0) == (1 | 1 << counter,), "the call is issued again with its sets"
    far = struct.pack("<qq", (1 << 63) - 1, 0)
    served.put(100, far)
    served.put(0, struct.pack("<iHH", counter, IN, 0))
    assert served("ppoll", BASE, 1, BASE + 100, 0, 8) == BLOCKED, "more than can pass is for ever"


@pytest.mark.parametrize("call", ["ppoll", "pselect6", "epoll_pwait", "epoll_pwait2"])
def test_a_signal_that_the_mask_of_the_call_lets_in_ends_it(served: Served, call: str) -> None:
    epoll, counter = served("epoll_create1", 0), served("eventfd2", 0, 0)
    assert isinstance(epoll, int) and isinstance(counter, int)
    mask, second, pair, wanted = BASE, BASE + 8, BASE + 32, BASE + 64
    served.put(8, struct.pack("<qq", 1, 0))
    served.put(32, struct.pack("<QQ", mask, 8))

    def answer() -> int | str:
        if call == "ppoll":
            served.put(64, struct.pack("<iHH", counter, IN, 0))
            return served(call, wanted, 1, second, mask, 8)
        if call == "pselect6":
            served.put(64, struct.pack("<Q", 1 << counter))
            return served(call, counter + 1, wanted, 0, 0, second, pair)
        return served(call, epoll, wanted, 1, 1000 if call == "epoll_pwait" else second, mask, 8)

    served.handle(10)
    served.task.signals.post(SignalInfo(10))
    served.put(0, struct.pack("<Q", 1 << 9))
    assert answer() == 0
    served.put(0, struct.pack("<Q", 1 << 5))
    served.put(8, struct.pack("<qq", 1, 0))
    before = served.process.kernel.clock.now_ns
    assert answer() == -errno.EINTR
    assert served.process.kernel.clock.now_ns == before
    assert served.task.signals.blocked == EVERY_SIGNAL, "the usual mask is back behind the handler"
    if call in ("ppoll", "pselect6"):  # they look for a signal before they look at the time
        served.task.signals.post(SignalInfo(10))
        served.put(8, struct.pack("<qq", 0, 0))
        assert answer() == -errno.EINTR
    served.task.signals.post(SignalInfo(10))
    served.put(64, struct.pack("<IQ", IN, 1))
    assert served("epoll_ctl", epoll, 1, counter, wanted) == 0
    served.put(100, struct.pack("<Q", 1))
    assert served("write", counter, BASE + 100, 8) == 8
    assert answer() == 1, "what is ready comes first"


def test_nothing_to_wait_for_is_the_end(served: Served) -> None:
    assert served("poll", 0, 0, -1) == BLOCKED
    assert served.task.wait is not None and served.task.wait.what == "an event"


def test_an_epoll_set_is_waited_for_by_its_members(guest: Guest, served: Served) -> None:
    class Quiet(BufferStream):
        def ready(self) -> bool:
            return False

    stdin = guest.files.table.file(0)
    assert isinstance(stdin, StreamFile)
    stdin.stream = Quiet()
    fd = served("epoll_create1", 0)
    assert isinstance(fd, int)
    served.put(0, struct.pack("<IQ", IN, 1))
    assert served("epoll_ctl", fd, 1, 0, BASE) == 0
    served.put(0, struct.pack("<iHH", fd, IN, 0))
    assert served("poll", BASE, 1, -1) == BLOCKED
    assert served.waits_for(stdin)
    stdin.stream = BufferStream(b"x")
    assert served("poll", BASE, 1, -1) == 1
