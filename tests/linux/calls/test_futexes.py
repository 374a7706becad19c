"""futex(2) and futex_waitv(2): every operation answers as the kernel under the test does."""

from __future__ import annotations

import contextlib
import errno
import itertools
import struct
import tempfile

import pytest

from aether_emu.clock import EPOCH_NS
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.task import Task
from aether_emu.mm.protection import Protection
from tests.guests.running import ISAS
from tests.linux.calls.twin import ARGUMENTS, BASE, BLOCKED, PAGE, A, Argument, Served, Twin
from tests.linux.task.scripts import CODE, DATA, STACK, Call, Several, assemble

WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, LOCK_PI, UNLOCK_PI, TRYLOCK_PI = 0, 1, 3, 4, 5, 6, 7, 8
WAIT_BITSET, WAKE_BITSET, WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2 = 9, 10, 11, 12, 13
PRIVATE, REALTIME = 128, 256
TIMED = (WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2)
SECOND = 10**9
TIME, SECOND_WORD, FORBIDDEN = A(ARGUMENTS), A(8), 3
OWNER_DIED, WAITERS = 1 << 30, 1 << 31


def times(twin: Twin) -> list[Argument]:
    """Timeouts that are over at once, are none, and cannot be read."""
    twin.put(ARGUMENTS, struct.pack("<6q", 0, 1, -1, 0, 0, SECOND))
    return [TIME, A(ARGUMENTS + 16), A(ARGUMENTS + 32), A(FORBIDDEN * PAGE)]


def test_every_operation_refuses_and_finds_what_linux_does(twin: Twin) -> None:
    twin.forbid(FORBIDDEN)
    words: list[Argument] = [A(0), A(1), A(FORBIDDEN * PAGE), 0, 8, 1 << 63]
    timed = times(twin)
    for command, how in itertools.product(range(16), (0, PRIVATE, REALTIME, PRIVATE | REALTIME, 1 << 10)):
        counts = timed if command in TIMED else [0, 1, -1, 1 << 31]
        for word, value, count, third in itertools.product(words, (0, 1, -1), counts, (0, 1)):
            if value == 0 and command in (LOCK_PI, TRYLOCK_PI, LOCK_PI2):
                continue
            twin.put(0, bytes(16))
            for second in (SECOND_WORD, A(2), word) if command in (3, 4, 5, 11, 12) else (SECOND_WORD,):
                twin.call_apart("futex", word, command | how, value, count, second, third)
                twin.put(0, bytes(16))


@pytest.mark.parametrize("old", [0, 5, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_wake_op_changes_the_second_word_as_linux_does(twin: Twin, old: int) -> None:
    for change, comparison, by, limit in itertools.product(range(16), range(8), (0, 5, 0x7FF, 0xFFF), (0, 5)):
        twin.put(8, struct.pack("<I", old))
        encoded = change << 28 | comparison << 24 | by << 12 | limit
        twin.call("futex", A(0), WAKE_OP | PRIVATE, 1, 1, SECOND_WORD, encoded)


def test_many_words_at_once_are_judged_as_linux_does(twin: Twin) -> None:
    twin.forbid(FORBIDDEN)
    timed = times(twin)
    for flags, value, offset in itertools.product((0, 2, 130, 3, 128, 1 << 31), (0, 1), (0, 2)):
        for memory, start in ((twin.memories[0], BASE), (twin.memories[1], twin.native.start)):
            for at in (64, 88):
                struct.pack_into("<QQII", memory, ARGUMENTS + at, value, start + offset, flags, 0)
        for timeout, clock in itertools.product(timed, (0, 1, 2, -1)):
            twin.call_apart("futex_waitv", A(ARGUMENTS + 64), 2, 0, timeout, clock)
    for arguments in ((A(0), 0, 0), (A(0), 129, 0), (0, 1, 0), (A(0), 1, 1), (A(FORBIDDEN * PAGE), 1, 0)):
        twin.call_apart("futex_waitv", *arguments, 0, 1)


@pytest.mark.parametrize("private", [0, PRIVATE])
def test_a_lock_that_nobody_has_is_taken_and_given_back(served: Served, private: int) -> None:
    tid = served.task.tid
    served.put(0, struct.pack("<I", OWNER_DIED))
    assert served("futex", BASE, LOCK_PI | private, 0, 0) == 0
    assert served.unpack("I", 0) == (OWNER_DIED | tid,)
    assert served("futex", BASE, TRYLOCK_PI | private, 0, 0) == -errno.EDEADLK
    assert served("futex", BASE, UNLOCK_PI | private, 0, 0) == 0
    assert served.unpack("I", 0) == (0,)
    assert served("futex", BASE, UNLOCK_PI | private, 0, 0) == -errno.EPERM
    served.put(0, struct.pack("<I", 12345))
    assert served("futex", BASE, LOCK_PI2 | private, 0, 0) == -errno.ESRCH
    assert served.unpack("I", 0) == (WAITERS | 12345,)


@pytest.mark.parametrize(
    ("operation", "since"),
    [
        (WAIT_BITSET, "start"),
        (WAIT_BITSET | REALTIME, "1970"),
        (WAIT_REQUEUE_PI, "start"),
        (WAIT_REQUEUE_PI | REALTIME, "1970"),
        (LOCK_PI, "1970"),
        (LOCK_PI2, "start"),
        (LOCK_PI2 | REALTIME, "1970"),
        (WAIT, "now"),
    ],
)
def test_a_deadline_is_judged_by_its_own_clock(served: Served, operation: int, since: str) -> None:
    other = Task(served.process, tid=18)  # which has the lock
    served.put(0, struct.pack("<I", other.tid))
    clock = served.process.kernel.clock
    until = clock.now_ns + 5 * SECOND
    shown = {"start": until, "1970": EPOCH_NS + until, "now": 5 * SECOND}[since]
    served.put(64, struct.pack("<qq", *divmod(shown, SECOND)))
    assert served("futex", BASE, operation | PRIVATE, other.tid, BASE + 64, BASE + 8, 1) == -errno.ETIMEDOUT
    assert clock.now_ns == until


@pytest.mark.parametrize("clock", [0, 1])
def test_many_words_wait_until_their_clock_says_so(served: Served, clock: int) -> None:
    machine = served.process.kernel.clock
    until = machine.now_ns + 5 * SECOND
    served.put(64, struct.pack("<qq", *divmod(until + (EPOCH_NS if clock == 0 else 0), SECOND)))
    served.put(128, struct.pack("<QQII", 0, BASE, 130, 0))
    assert served("futex_waitv", BASE + 128, 1, 0, BASE + 64, clock) == -errno.ETIMEDOUT
    assert machine.now_ns == until


def test_a_time_behind_the_end_of_time_is_never(served: Served) -> None:
    served.put(64, struct.pack("<qq", (1 << 63) - 1, SECOND - 1))
    for operation in (WAIT, WAIT_BITSET):
        assert served("futex", BASE, operation | PRIVATE, 0, BASE + 64, 0, 1) == BLOCKED


WHERE = 0x5000_0000
_RW = Protection.READ | Protection.WRITE


def run_sharing(several: Several) -> dict[Task, int]:
    """Run processes that share a page at WHERE until nobody can go on: the codes of those that ended."""
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE)
        for task in several.tasks:
            task.process.mm.map_file(file, WHERE, PAGE, _RW)
        with contextlib.suppress(Deadlock):
            several.run()
    return {task: task.process.ended.code for task in several.tasks if task.process.ended}


@pytest.mark.parametrize("isa", ISAS)
def test_requeue_wakes_some_moves_some_and_leaves_the_rest(isa: str) -> None:
    with Several(isa) as several:
        first, second, third = (several.calls(("futex", WHERE, WAIT, 0, 0)) for _ in range(3))
        mover = several.calls(("futex", WHERE, CMP_REQUEUE, 1, 1, WHERE + 8, 0))
        waker = several.calls(("futex", WHERE + 8, WAKE, 9))
        assert run_sharing(several) == {first: 0, mover: 2, second: 0, waker: 1}
        assert third.wait is not None


@pytest.mark.parametrize("isa", ISAS)
def test_waking_nobody_wakes_one_as_linux_does(isa: str) -> None:
    with Several(isa) as several:
        first, _second = (several.calls(("futex", WHERE, WAIT, 0, 0)) for _ in range(2))
        waker = several.calls(("futex", WHERE, WAKE, 0))
        assert run_sharing(several) == {first: 0, waker: 1}


@pytest.mark.parametrize("isa", ISAS)
def test_who_waits_at_many_words_learns_which_was_woken(isa: str) -> None:
    with Several(isa) as several:
        words = b"".join(struct.pack("<QQII", 0, WHERE + 8 * index, 2, 0) for index in range(3))
        waiting = several.calls(("futex_waitv", DATA, 3, 0, 0, 0), data=words)
        waker = several.calls(("futex", WHERE + 16, WAKE, 9))
        late = several.calls(("futex", WHERE, WAKE, 9))
        assert run_sharing(several) == {waiting: 2, waker: 1, late: 0}


@pytest.mark.parametrize("isa", ISAS)
def test_a_private_and_a_shared_futex_at_one_address_are_two(isa: str) -> None:
    with Several(isa) as several:
        leader = several.calls(("futex", DATA, WAIT | PRIVATE, 0, 0))
        thread(several, leader, ("futex", DATA, WAKE, 9))
        several.run()
        assert leader.process.ended is not None and leader.process.ended.code == 0, "nobody was woken"


def thread(several: Several, leader: Task, *calls: Call) -> Task:
    """Another task of a process, which makes these calls."""
    task = Task(leader.process, tid=leader.tid + len(leader.process.tasks))
    machine, offset = several.machine, 0x1000 * (len(leader.process.tasks) - 1)
    machine.entry.switch(task)
    machine.cpu.copy_to_user(CODE + offset, assemble(machine, calls))
    machine.abi.start(machine.cpu, CODE + offset, STACK + offset)
    machine.scheduler.add(task)
    return task


@pytest.mark.parametrize("isa", ISAS)
def test_a_lock_goes_to_who_waits_longest(isa: str) -> None:
    word, a_while = DATA + 64, DATA + 16
    with Several(isa) as several:
        take, leave = ("futex", word, LOCK_PI | PRIVATE, 0, 0), ("futex", word, UNLOCK_PI | PRIVATE, 0, 0)
        pause: Call = ("nanosleep", a_while, 0)
        data = b"abc".ljust(16) + struct.pack("<qq", 1, 0)
        write: list[Call] = [("write", 1, DATA + index, 1) for index in range(3)]
        leader = several.calls(take, pause, write[0], leave, pause, pause, pause, data=data)
        thread(several, leader, take, write[1], leave, pause, pause, pause)
        thread(several, leader, take, write[2], leave, ("write", 1, word, 4))
        several.run()
        assert several.out.written == b"abc" + bytes(4)


@pytest.mark.parametrize("isa", ISAS)
def test_a_condition_hands_its_waiters_a_lock(isa: str) -> None:
    condition, word, a_while = DATA + 72, DATA + 64, DATA + 16
    with Several(isa) as several:
        take, leave = ("futex", word, LOCK_PI | PRIVATE, 0, 0), ("futex", word, UNLOCK_PI | PRIVATE, 0, 0)
        wait: Call = ("futex", condition, WAIT_REQUEUE_PI | PRIVATE, 0, 0, word)
        broadcast: Call = ("futex", condition, CMP_REQUEUE_PI | PRIVATE, 1, 9, word, 0)
        pause: Call = ("nanosleep", a_while, 0)
        data = b"abc".ljust(16) + struct.pack("<qq", 1, 0)
        write: list[Call] = [("write", 1, DATA + index, 1) for index in range(3)]
        leader = several.calls(take, pause, broadcast, write[0], leave, pause, pause, pause, data=data)
        thread(several, leader, wait, write[1], leave, pause, pause, pause)
        thread(several, leader, wait, write[2], leave, ("write", 1, word, 4))
        several.run()
        assert several.out.written == b"abc" + bytes(4)
