"""epoll sets, beside the real kernel's."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import select
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.linux.files.capture import capture, restore
from aether_emu.linux.files.pipe import EventCounter
from aether_emu.linux.files.streams import BufferStream, StreamFile
from aether_emu.linux.task.deadlock import Deadlock
from tests.guests.running import ISAS
from tests.linux.calls.conftest import twin_in
from tests.linux.calls.twin import BASE, BLOCKED, PROT_NONE, A, F, Served, Twin
from tests.linux.files.conftest import Guest, Source
from tests.linux.task.scripts import DATA as MEMORY
from tests.linux.task.scripts import Call, Several

ADD, DEL, MOD = 1, 2, 3
IN, OUT, ET, ONESHOT, EXCLUSIVE = 1, 4, 1 << 31, 1 << 30, 1 << 28
NATIVE = struct.Struct("<IQ") if os.uname().machine == "x86_64" else struct.Struct("<I4xQ")
GUEST = struct.Struct("<IQ")
RESULT = 4096


class Sets:
    """An epoll set "e" in a twin; structures have the layout of each side."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        twin.open("e", "epoll_create1", 0)

    def control(self, operation: int, name: str, events: int, data: int, of: str = "e") -> int:
        """epoll_ctl(2)."""
        self.twin.served.put(0, GUEST.pack(events, data))
        self.twin.native.content[: NATIVE.size] = NATIVE.pack(events, data)
        result = self.twin.call_apart("epoll_ctl", F(of), operation, F(name), A(0))
        self.twin.put(0, bytes(16))
        return result

    def wait(self, of: str = "e", most: int = 16) -> list[tuple[int, int]]:
        """epoll_wait(2) with no time to wait: both in one order. (data, events) in the order of the data."""
        count = self.twin.call_apart("epoll_pwait", F(of), A(RESULT), most, 0, 0, 8)
        ours = [GUEST.unpack_from(self.twin.served.memory.content, RESULT + 12 * i) for i in range(count)]
        theirs = [
            NATIVE.unpack_from(self.twin.native.content, RESULT + NATIVE.size * i) for i in range(count)
        ]
        self.twin.put(RESULT, bytes(16 * 16))
        assert ours == theirs
        return sorted((data, events) for events, data in ours)


def test_level_and_edge(twin: Twin) -> None:
    sets = Sets(twin)
    twin.pipe("r", "w")
    twin.open("counter", "eventfd2", 0, os.O_NONBLOCK)
    assert sets.control(ADD, "r", IN, 1) == 0
    assert sets.control(ADD, "counter", IN | ET, 2) == 0
    assert sets.wait() == []
    twin.put(100, struct.pack("<Q", 1))
    twin.call("write", F("w"), A(100), 8)
    twin.call("write", F("counter"), A(100), 8)
    assert sets.wait() == [(1, IN), (2, IN)]
    assert sets.wait() == [(1, IN)]  # the level stays, the edge was shown
    twin.call("write", F("counter"), A(100), 8)
    assert sets.wait() == [(1, IN), (2, IN)]  # never read, and yet a new edge
    twin.call("read", F("r"), A(100), 8)
    assert sets.wait() == []


def test_a_counter_read_and_written_again_is_a_new_edge(twin: Twin) -> None:
    sets = Sets(twin)
    twin.open("counter", "eventfd2", 1, os.O_NONBLOCK)
    sets.control(ADD, "counter", IN | ET, 2)
    assert sets.wait() == [(2, IN)]
    twin.call("read", F("counter"), A(100), 8)
    twin.put(100, struct.pack("<Q", 1))
    twin.call("write", F("counter"), A(100), 8)
    assert sets.wait() == [(2, IN)]


def test_taking_from_a_pipe_is_an_edge_only_if_it_was_full(twin: Twin) -> None:
    sets = Sets(twin)
    twin.pipe("r", "w")
    assert twin.call("fcntl", F("w"), 1031, 8192) == 8192
    sets.control(ADD, "w", OUT | ET, 2)
    assert sets.wait() == [(2, OUT)]
    twin.call("write", F("w"), A(100), 100)
    twin.call("read", F("r"), A(300), 100)
    assert sets.wait() == []
    twin.call("write", F("w"), A(8192), 8192)
    twin.call("read", F("r"), A(8192), 8192)
    assert sets.wait() == [(2, OUT)]


def test_a_oneshot_interest_waits_to_be_armed(twin: Twin) -> None:
    sets = Sets(twin)
    twin.pipe("r", "w")
    sets.control(ADD, "w", OUT | ONESHOT, 7)
    assert sets.wait() == [(7, OUT)]
    assert sets.wait() == []
    sets.control(MOD, "w", OUT | ONESHOT, 8)
    assert sets.wait() == [(8, OUT)]


def test_hanging_up_is_always_told(twin: Twin) -> None:
    sets = Sets(twin)
    twin.pipe("r", "w")
    sets.control(ADD, "r", 0, 1)
    sets.control(ADD, "w", OUT | ET, 2)
    assert sets.wait() == [(2, OUT)]
    twin.close_descriptor("r")
    assert sets.wait() == [(2, OUT | select.POLLERR)]
    assert sets.wait() == []


def test_hanging_up_again_is_a_new_edge(served: Served) -> None:
    fd = served("epoll_create1", 0)
    assert served("pipe2", BASE, os.O_NONBLOCK) == 0
    reading, writing = served.unpack("ii", 0)
    assert isinstance(fd, int)
    served.put(0, GUEST.pack(IN | ET, 1))
    assert served("epoll_ctl", fd, ADD, reading, BASE) == 0
    served("close", writing)
    assert served("epoll_wait", fd, BASE, 8, 0) == 1
    again = served("open", served.text(b"/proc/self/fd/%d" % reading), os.O_WRONLY, 0)
    assert isinstance(again, int) and again >= 0
    assert served("epoll_wait", fd, BASE, 8, 0) == 0
    served("close", again)
    assert served("epoll_wait", fd, BASE, 8, 0) == 1
    assert GUEST.unpack(served.get(0, 12)) == (select.POLLHUP, 1)


def test_a_closed_file_leaves_the_set_with_its_last_descriptor(twin: Twin) -> None:
    sets = Sets(twin)
    twin.open("counter", "eventfd2", 1, 0)
    sets.control(ADD, "counter", IN, 1)
    twin.open("copy", "dup", F("counter"))
    twin.close_descriptor("counter")
    assert sets.wait() == [(1, IN)]
    twin.close_descriptor("copy")
    assert sets.wait() == []


def test_refusals(twin: Twin) -> None:
    sets = Sets(twin)
    twin.pipe("r", "w")
    twin.open("other", "epoll_create1", 0)
    assert sets.control(ADD, "r", IN, 1) == 0
    assert sets.control(ADD, "r", IN, 1) == -errno.EEXIST
    assert sets.control(MOD, "w", IN, 1) == -errno.ENOENT
    assert sets.control(DEL, "w", IN, 1) == -errno.ENOENT
    assert sets.control(9, "r", IN, 1) == -errno.EINVAL
    assert sets.control(ADD, "dir", IN, 1) == -errno.EPERM
    assert sets.control(ADD, "e", IN, 1) == -errno.EINVAL
    assert sets.control(ADD, "r", IN, 1, of="w") == -errno.EINVAL
    assert sets.control(MOD, "r", IN | EXCLUSIVE, 1) == -errno.EINVAL
    assert sets.control(ADD, "other", IN | EXCLUSIVE, 1) == -errno.EINVAL
    assert sets.control(ADD, "w", OUT | EXCLUSIVE, 1) == 0
    assert sets.control(MOD, "w", OUT, 1) == -errno.EINVAL
    twin.forbid(5)
    assert twin.call_apart("epoll_ctl", F("e"), ADD, F("w"), A(5 * 4096)) == -errno.EFAULT
    assert twin.call("epoll_ctl", 999, DEL, F("w"), 0) == -errno.EBADF
    assert twin.call("epoll_ctl", F("e"), DEL, 999, 0) == -errno.EBADF
    assert twin.call("epoll_pwait", F("e"), A(0), 0, 0, 0, 8) == -errno.EINVAL
    assert twin.call("epoll_pwait", F("e"), A(0), -1, 0, 0, 8) == -errno.EINVAL
    assert twin.call("epoll_pwait", F("r"), A(0), 1, 0, 0, 8) == -errno.EINVAL
    assert twin.call("epoll_pwait", F("e"), A(0), 1, 0, A(100), 4) == -errno.EINVAL
    assert twin.call("epoll_pwait", F("e"), A(5 * 4096), 1, 0, 0, 8) == -errno.EFAULT
    assert twin.call("epoll_create1", 5) == -errno.EINVAL
    assert twin.call("read", F("e"), A(5 * 4096), 8) == -errno.EINVAL
    assert twin.call("write", F("e"), A(0), 8) == -errno.EINVAL


def test_sets_in_sets(twin: Twin) -> None:
    sets = Sets(twin)
    twin.open("outer", "epoll_create1", 0)
    twin.open("counter", "eventfd2", 0, 0)
    assert sets.control(ADD, "e", IN, 5, of="outer") == 0
    assert sets.control(ADD, "outer", IN, 5) == -errno.ELOOP
    sets.control(ADD, "counter", IN, 6)
    assert sets.wait("outer") == []
    twin.put(100, struct.pack("<Q", 1))
    twin.call("write", F("counter"), A(100), 8)
    assert sets.wait("outer") == [(5, IN)]
    assert sets.control(MOD, "e", IN | ET, 5, of="outer") == 0
    assert sets.wait("outer") == [(5, IN)]
    assert sets.wait("outer") == []
    twin.call("read", F("counter"), A(200), 8)
    twin.call("write", F("counter"), A(100), 8)
    assert sets.wait("outer") == [(5, IN)]
    for depth in range(6):
        twin.open(f"outer{depth}", "epoll_create1", 0)
        below = f"outer{depth - 1}" if depth else "outer"
        assert sets.control(ADD, below, IN, 1, of=f"outer{depth}") == (-errno.ELOOP if depth == 3 else 0)


def nest(served: Served, outer: int, inner: int) -> int | str:
    """Make one set a member of another."""
    served.put(0, GUEST.pack(IN, inner))
    return served("epoll_ctl", outer, ADD, inner, BASE)


def test_sets_in_sets_from_the_outermost_on(served: Served) -> None:
    chain = [served("epoll_create1", 0) for _ in range(7)]
    fds = [fd for fd in chain if isinstance(fd, int)]
    answers = [nest(served, outer, inner) for outer, inner in itertools.pairwise(fds)]
    assert answers == [0, 0, 0, 0, -errno.ELOOP, 0]


def test_a_way_that_is_gone_no_longer_counts(served: Served) -> None:
    made = [served("epoll_create1", 0) for _ in range(3)]
    first, second, third = (fd for fd in made if isinstance(fd, int))
    assert nest(served, first, second) == 0
    assert nest(served, second, first) == -errno.ELOOP
    assert served("epoll_ctl", first, DEL, second, 0) == 0
    assert nest(served, second, first) == 0
    assert nest(served, third, second) == 0
    assert nest(served, first, third) == -errno.ELOOP
    assert served("close", second) == 0
    assert nest(served, first, third) == 0


def test_many_ways_through_sets_are_looked_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def poll(counter: EventCounter) -> int:
        looks.append(counter)
        return IN if counter.value else 0

    monkeypatch.setattr(EventCounter, "poll", poll)
    layers = [[served("epoll_create1", 0) for _ in range(10)] for _ in range(5)]
    for above, below in itertools.pairwise(layers):
        for outer in above:
            for inner in below:
                assert isinstance(outer, int) and isinstance(inner, int)
                assert nest(served, outer, inner) == 0
    counter, top, bottom = served("eventfd2", 0, 0), layers[0][0], layers[-1][0]
    assert isinstance(counter, int) and isinstance(top, int) and isinstance(bottom, int)
    assert nest(served, bottom, counter) == 0
    looks.clear()
    assert served("epoll_wait", top, BASE, 100, 0) == 0
    assert not looks, "nothing has happened to it"
    assert served("write", counter, served.put(0, struct.pack("<Q", 1)), 8) == 8
    looks.clear()
    assert served("epoll_wait", top, BASE, 1, 0) == 1
    assert len(looks) == 2, "once to see whether the set is ready, once to report it"
    assert served("read", counter, BASE, 8) == 8
    assert served("epoll_wait", top, BASE, 100, -1) == BLOCKED
    served.put(0, struct.pack("<Q", 1))
    assert served("write", counter, BASE, 8) == 8
    assert served("epoll_wait", top, BASE, 100, -1) == 10


def test_every_ready_member_gets_its_turn(served: Served) -> None:
    fd = served("epoll_create1", 0)
    assert isinstance(fd, int)
    for data in range(3):
        counter = served("eventfd2", 1, 0)
        assert isinstance(counter, int)
        served.put(0, GUEST.pack(IN, data))
        assert served("epoll_ctl", fd, ADD, counter, BASE) == 0
    turns = []
    for _ in range(6):
        assert served("epoll_wait", fd, BASE, 1, 0) == 1
        turns.append(GUEST.unpack(served.get(0, 12))[1])
    assert turns == [0, 1, 2, 0, 1, 2]


def test_events_that_cannot_be_delivered_stay(served: Served) -> None:
    fd, counter = served("epoll_create1", 0), served("eventfd2", 1, 0)
    assert isinstance(fd, int) and isinstance(counter, int)
    served.put(0, GUEST.pack(IN | ONESHOT, 3))
    assert served("epoll_ctl", fd, ADD, counter, BASE) == 0
    served.memory.protect(5, PROT_NONE)
    assert served("epoll_wait", fd, BASE + 5 * 4096, 1, 0) == -errno.EFAULT
    assert served("epoll_wait", fd, BASE, 1, 0) == 1


def test_waiting_takes_virtual_time_or_waits_for_the_stream(guest: Guest, served: Served) -> None:
    fd, counter = served("epoll_create", 1), served("eventfd2", 0, 0)
    assert isinstance(fd, int) and isinstance(counter, int)
    served.put(0, GUEST.pack(IN, 3))
    assert served("epoll_ctl", fd, ADD, counter, BASE) == 0
    before = served.process.kernel.clock.now_ns
    assert served("epoll_wait", fd, BASE, 1, 250) == 0
    assert served.process.kernel.clock.now_ns - before == 250 * 10**6
    served.put(0, struct.pack("<qq", 3, 5))
    assert served("epoll_pwait2", fd, BASE, 1, BASE, 0, 8) == 0
    assert served.process.kernel.clock.now_ns - before == 3_250_000_005
    assert served("epoll_wait", fd, BASE, 1, -1) == BLOCKED
    assert served.waits_for(guest.files.table.file(fd))

    class Quiet(BufferStream):
        def ready(self) -> bool:
            return False

    stdin = guest.files.table.file(0)
    assert isinstance(stdin, StreamFile)
    stdin.stream = Quiet()
    served.put(0, GUEST.pack(IN, 4))
    assert served("epoll_ctl", fd, ADD, 0, BASE) == 0
    assert served("epoll_wait", fd, BASE, 1, -1) == BLOCKED
    assert served.waits_for(stdin)


def test_what_the_host_brings_after_a_read_is_a_new_edge(guest: Guest, served: Served) -> None:
    class Arriving(BufferStream):
        def ready(self) -> bool:
            return bool(self.source)

    stdin = guest.files.table.file(0)
    assert isinstance(stdin, StreamFile)
    stdin.stream = stream = Arriving(b"abc")
    fd = served("epoll_create1", 0)
    assert isinstance(fd, int)
    served.put(0, GUEST.pack(IN | ET, 4))
    assert served("epoll_ctl", fd, ADD, 0, BASE) == 0
    assert served("epoll_wait", fd, BASE, 1, 0) == 1
    assert served("epoll_wait", fd, BASE, 1, 0) == 0
    assert served("read", 0, BASE, 100) == 3
    stream.source += b"def"
    assert served("epoll_wait", fd, BASE, 1, 0) == 1


names = st.sampled_from(["r", "w", "counter", "s", "t", "inner"])
flags = st.tuples(
    st.sampled_from([0, IN, OUT, IN | OUT, IN | select.POLLRDNORM, IN | select.POLLRDHUP]),
    st.sampled_from([0, ET, ONESHOT, ET | ONESHOT, EXCLUSIVE, ET | EXCLUSIVE]),
).map(sum)
steps = st.one_of(
    st.tuples(st.sampled_from([ADD, MOD, DEL]), names, flags, st.sampled_from(["e", "e", "inner"])),
    st.tuples(st.just("write"), st.sampled_from(["w", "counter", "s", "t"])),
    st.tuples(st.just("read"), st.sampled_from(["r", "counter", "s", "t"])),
    st.tuples(st.just("shutdown"), st.sampled_from(["s", "t"])),
    st.tuples(st.just("close_descriptor"), st.sampled_from(["r", "w", "s", "t"])),
    st.tuples(st.just("wait"), st.sampled_from([1, 2, 16]), st.sampled_from(["e", "inner"])),
)


@settings(max_examples=150)
@given(st.lists(steps, min_size=3, max_size=40))
def test_any_sequence_answers_as_the_kernel(sequence: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as base, twin_in(Path(base)) as twin:
        sets = Sets(twin)
        twin.pipe("r", "w")
        twin.open("counter", "eventfd2", 0, os.O_NONBLOCK)
        twin.pair_of_sockets("s", "t")
        twin.open("inner", "epoll_create1", 0)
        twin.put(100, struct.pack("<Q", 1))
        for data, (name, *rest) in enumerate(sequence):
            file = rest[-1] if name == "wait" else rest[0]
            assert isinstance(file, str)
            if not twin.has(file):
                continue
            if isinstance(name, int):
                _, events, of = rest
                assert isinstance(events, int) and isinstance(of, str)
                sets.control(name, file, events, data, of)
            elif name == "wait":
                assert isinstance(rest[0], int)
                sets.wait(file, rest[0])
            elif name == "close_descriptor":
                twin.close_descriptor(file)
            elif name == "shutdown":
                twin.call("shutdown", F(file), socket.SHUT_RDWR)
            else:
                assert isinstance(name, str)
                twin.call(name, F(file), A(100 if name == "write" else 200), 8)
        sets.wait()
        sets.wait("inner")


def test_with_little_room_those_that_are_ready_take_turns(twin: Twin) -> None:
    sets = Sets(twin)
    for n in range(5):
        twin.open(f"c{n}", "eventfd2", 1, os.O_NONBLOCK)
        sets.control(ADD, f"c{n}", IN, n)
    assert [sets.wait(most=2) for _ in range(3)] == [
        [(0, IN), (1, IN)],
        [(2, IN), (3, IN)],
        [(0, IN), (4, IN)],
    ]
    twin.call("read", F("c1"), A(300), 8)
    assert sets.wait(most=1) == [(2, IN)], "what is no longer ready is passed over"
    twin.put(300, struct.pack("<Q", 1))
    twin.call("write", F("c1"), A(300), 8)
    assert sets.wait(most=3) == [(0, IN), (3, IN), (4, IN)]
    assert sets.wait(most=2) == [(1, IN), (2, IN)]


@pytest.mark.parametrize("seed", range(4))
def test_many_members_take_turns_as_in_the_kernel(twin: Twin, seed: int) -> None:
    chance = random.Random(seed)
    sets = Sets(twin)
    names = [f"c{n}" for n in range(8)]
    for data, name in enumerate(names):
        twin.open(name, "eventfd2", chance.randrange(2), os.O_NONBLOCK)
        sets.control(ADD, name, chance.choice((IN, IN, IN | OUT, IN | ET, IN | ONESHOT, OUT | ET)), data)
    twin.put(600, struct.pack("<Q", 1))
    for step in range(300):
        name = chance.choice(names)
        match chance.randrange(6):
            case 0:
                twin.call("read", F(name), A(700), 8)
            case 1 | 2:
                twin.call("write", F(name), A(600), 8)
            case 3:
                events = chance.choice((IN, IN | OUT, IN | ET, IN | ONESHOT, IN | OUT | ET))
                sets.control(MOD, name, events, step)
            case _:
                sets.wait(most=chance.choice((1, 1, 2, 3, 16)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("exclusive", "woken"), [(0, 3), (EXCLUSIVE, 1)])
def test_an_exclusive_interest_wakes_one_set_of_many(isa: str, exclusive: int, woken: int) -> None:
    with Several(isa) as several:
        reading, writing = several.pipe()
        waits: tuple[Call, ...] = (
            ("epoll_create1", 0),
            ("epoll_ctl", 5, ADD, reading, MEMORY),
            ("epoll_pwait", 5, MEMORY + 64, 1, -1, 0, 8),
        )
        at = struct.pack("<I", IN | exclusive)
        waiting = [several.calls(*waits, data=at) for _ in range(3)]
        several.calls(
            ("nanosleep", MEMORY, 0), ("write", writing, MEMORY, 1), data=struct.pack("<qq", 0, 1000)
        )
        if woken < len(waiting):
            with pytest.raises(Deadlock):
                several.run()
        else:
            several.run()
        assert sum(task.is_over for task in waiting) == woken


def test_a_user_watches_so_many_files_and_no_more(guest: Guest, served: Served) -> None:
    watches = guest.namespace.watches
    watches.limit = 3
    counter = served("eventfd2", 0, 0)
    sets = [int(served("epoll_create1", 0)) for _ in range(4)]
    assert isinstance(counter, int)
    served.put(0, GUEST.pack(IN, 1))
    answers = [served("epoll_ctl", each, ADD, counter, BASE) for each in sets]
    assert answers == [0, 0, 0, -errno.ENOSPC]
    assert served("epoll_ctl", sets[0], MOD, counter, BASE) == 0
    assert served("epoll_ctl", sets[0], DEL, counter, BASE) == 0
    assert served("epoll_ctl", sets[3], ADD, counter, BASE) == 0
    assert served("close", sets[1]) == 0
    assert served("epoll_ctl", sets[0], ADD, counter, BASE) == 0
    assert served("close", counter) == 0 and watches.used == 0
    assert served("epoll_pwait", sets[0], BASE, 1, 0, 0, 8) == 0


def test_a_set_is_restored_with_its_members(guest: Guest, served: Served) -> None:
    fd, shown, fresh = served("epoll_create1", 0), served("eventfd2", 1, 0), served("eventfd2", 1, 0)
    assert isinstance(fd, int) and isinstance(shown, int) and isinstance(fresh, int)
    for number, counter in enumerate((shown, fresh)):
        served.put(0, GUEST.pack(IN | ET, number))
        assert served("epoll_ctl", fd, ADD, counter, BASE) == 0
        if counter == shown:
            assert served("epoll_wait", fd, BASE, 8, 0) == 1
    state = capture([guest.files])
    restored = restore(state, guest.namespace, [Source()], guest.streams)
    (files,) = restored.processes
    with contextlib.closing(Served(files)) as again:
        assert again("epoll_wait", fd, BASE, 8, 0) == 1
        assert GUEST.unpack(again.get(0, 12)) == (IN, 1)
        again.put(0, struct.pack("<Q", 1))
        assert again("write", shown, BASE, 8) == 8
        assert again("epoll_wait", fd, BASE, 8, 0) == 1
    files.close_all()
