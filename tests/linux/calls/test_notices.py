"""timerfd and pidfd: files that tell that time is up, or that a process has ended."""

import errno
import select
import signal
import struct
from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task import family
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.mm.protection import Protection
from aether_emu.system import Machine
from tests.guests.running import ISAS
from tests.linux.calls.test_timers import data, spinning
from tests.linux.exec.crafted import EXECUTE, READ, Header, crafted
from tests.linux.task.scripts import DATA, SPIN, Call, Several, assemble
from tests.small_programs import streams

every_isa = pytest.mark.parametrize("isa", ISAS)
_TIME, _SLEEP, _VALUE, _POLL = DATA + 0x200, DATA + 0x300, DATA + 0x410, DATA + 0x4F0
_FD = 3  # the first that is free
_BAD = -errno.EINVAL & 0xFF


def polling(content: bytes) -> bytes:
    """With a struct pollfd that asks whether _FD can be read."""
    return content[:0x4F0] + struct.pack("<ihh", _FD, 1, 0)


@every_isa
def test_timerfd_is_ready_when_time_is_up_and_counts_what_was_missed(isa: str) -> None:
    with Several(isa) as several:
        at = data(1, interval=10_000_000, first=10_000_000, sleep=35_000_000)
        several.calls(
            ("timerfd_create", 1, 0),
            ("timerfd_settime", _FD, 0, _TIME, 0),
            ("ppoll", _POLL, 1, 0, 0, 0),
            ("nanosleep", _SLEEP, 0),
            ("read", _FD, _VALUE, 8),
            ("write", 1, _VALUE, 8),
            data=polling(at),
        )
        assert several.run() == [8]
        assert bytes(several.out.written) == struct.pack("<Q", 4)
        assert 45_000_000 <= several.machine.clock.now_ns < 46_000_000


@every_isa
@pytest.mark.parametrize(
    ("calls", "answer"),
    [
        ([("timerfd_create", 1, 0o4000), ("read", _FD, _VALUE, 8)], -errno.EAGAIN & 0xFF),
        ([("timerfd_create", 1, 0), ("read", _FD, _VALUE, 7)], _BAD),
        ([("timerfd_create", 1, 0), ("write", _FD, _VALUE, 8)], _BAD),
        ([("timerfd_create", 2, 0)], _BAD),
        ([("timerfd_create", 1, 0), ("timerfd_settime", _FD, 4, _TIME, 0)], _BAD),
        ([("timerfd_settime", 1, 0, _TIME, 0)], _BAD),
        ([("pidfd_open", 0, 0)], _BAD),
        ([("pidfd_open", 99, 0)], -errno.ESRCH & 0xFF),
        ([("pidfd_send_signal", 1, 1, 0, 0)], -errno.EBADF & 0xFF),
    ],
)
def test_refusals_are_those_of_linux(isa: str, calls: list[tuple[str, int]], answer: int) -> None:
    with Several(isa) as several:
        several.calls(*calls, data=data(1))
        assert several.run() == [answer]


@every_isa
def test_pidfd_sends_a_signal_and_is_ready_when_its_process_has_ended(isa: str) -> None:
    with Several(isa) as several:
        killed = several.calls(("nanosleep", _SLEEP, 0), data=data(1, sleep=10**12))
        several.calls(
            ("pidfd_open", killed.process.pid, 0),
            ("pidfd_send_signal", _FD, signal.SIGTERM, 0, 0),
            ("ppoll", _POLL, 1, 0, 0, 0),
            data=polling(data(1)),
        )
        assert several.run() == [128 + signal.SIGTERM, 1]
        assert several.machine.clock.now_ns < 10**9


# ---- signalfd

_SET, _INFO, _ACTION = DATA, DATA + 0x600, DATA + 0x700
_REAL_TIME = 40
_OWN = 2000  # the number of the first process
_BLOCK: Call = ("rt_sigprocmask", 0, _SET, 0, 8)
_SIGNALFD: Call = ("signalfd4", -1, _SET, 8, 0o4000)


def signals(*, value: int = 0x1234_5678_9ABC) -> bytes:
    """A set of SIGUSR1 and a real-time signal, and a siginfo as sigqueue(3) makes it."""
    out = bytearray(polling(data(1)).ljust(0x800, b"\0"))
    struct.pack_into("<Q", out, 0, 1 << signal.SIGUSR1 - 1 | 1 << _REAL_TIME - 1)
    struct.pack_into("<iiiiiIQ", out, 0x600, 0, 55, -1, 0, 777, 888, value)
    return bytes(out)


@every_isa
def test_signalfd_tells_what_waits_in_the_order_of_delivery(isa: str) -> None:
    with Several(isa) as several:
        several.calls(
            _BLOCK,
            _SIGNALFD,
            ("rt_sigqueueinfo", _OWN, _REAL_TIME, _INFO),
            ("rt_sigqueueinfo", _OWN, _REAL_TIME, _INFO),
            ("kill", _OWN, signal.SIGUSR1),
            ("read", _FD, DATA + 0x1000, 3 * 128 + 127),
            ("write", 1, DATA + 0x1000, 3 * 128),
            ("read", _FD, DATA + 0x1000, 128),
            data=signals(),
        )
        assert several.run() == [-errno.EAGAIN & 0xFF]
        written = bytes(several.out.written)
        told = [struct.unpack_from("<IiiIIiIIIIIiQ", written, at) for at in (0, 128, 256)]
        uid = several.machine.config.uid
        assert told[0] == (signal.SIGUSR1, 0, 0, _OWN, uid, *[0] * 8)
        queued = (_REAL_TIME, 55, -1, 777, 888, *[0] * 6, 0x5678_9ABC, 0x1234_5678_9ABC)
        assert told[1:] == [queued, queued]


@every_isa
def test_signalfd_shows_the_signals_of_who_reads_it(isa: str, tmp_path: Path) -> None:
    calls: tuple[Call, ...] = (
        _BLOCK,
        _SIGNALFD,
        ("tkill", 1000, signal.SIGUSR1),
        ("clone", signal.SIGCHLD, 0, 0, 0, 0),
        ("read", _FD, DATA + 0x1000, 128),
        ("write", 1, DATA + 0x1000, 4),
    )
    first = struct.pack("<I", signal.SIGUSR1)
    assert sorted(alone(tmp_path, isa, *calls, at=signals())[1]) == sorted(first + bytes(4))


@every_isa
def test_signalfd_wakes_who_waits_for_it_by_signals_that_it_shows(isa: str) -> None:
    with Several(isa) as several:
        waiting: Call = ("ppoll", _POLL, 1, 0, 0, 0)
        task = several.calls(_BLOCK, _SIGNALFD, waiting, ("read", _FD, _VALUE, 128), data=signals())
        several.calls(code=SPIN[isa])
        for number in (None, signal.SIGCONT, signal.SIGUSR1):
            assert not task.is_over
            if number is not None:
                task.process.post(SignalInfo(number))
            several.machine.scheduler.run(300_000)
        assert task.process.ended is not None and task.process.ended.status == 128


@every_isa
@pytest.mark.parametrize(
    ("calls", "answer"),
    [
        ([_SIGNALFD, ("read", _FD, _VALUE, 127)], _BAD),
        ([_SIGNALFD, ("write", _FD, _VALUE, 128)], _BAD),
        ([_SIGNALFD, ("lseek", _FD, 0, 0)], 0),
        ([("signalfd4", -1, _SET, 4, 0)], _BAD),
        ([("signalfd4", -1, _SET, 8, 1)], _BAD),
        ([("signalfd4", -1, 16, 8, 0)], -errno.EFAULT & 0xFF),
        ([("signalfd4", 1, _SET, 8, 0)], _BAD),
        ([("signalfd4", 99, _SET, 8, 0)], -errno.EBADF & 0xFF),
        ([_SIGNALFD, ("signalfd4", _FD, _SET, 8, 0)], _FD),
        ([("rt_sigqueueinfo", _OWN, 10, _INFO), ("pidfd_getfd", 1, 1, 0)], -errno.EBADF & 0xFF),
    ],
)
def test_refusals_of_signalfd_are_those_of_linux(isa: str, calls: list[Call], answer: int) -> None:
    with Several(isa) as several:
        several.calls(_BLOCK, *calls, data=signals())
        assert several.run() == [answer]


@every_isa
def test_fdinfo_tells_what_each_kind_has(isa: str) -> None:
    with Several(isa) as several:
        event = DATA + 0x900
        at = bytearray(signals().ljust(0x1000, b"\0"))
        struct.pack_into("<4q", at, 0x200, 5, 7, 0, 1)
        layout = "<IQ" if isa == "x86_64" else "<I4xQ"
        struct.pack_into(layout, at, 0x900, select.POLLIN | 1 << 31, 0xABC)
        spinning(
            several,
            *(_SIGNALFD, ("timerfd_create", 0, 0), ("timerfd_settime", 4, 1, _TIME, 0)),
            *(("eventfd2", 300, 1), ("epoll_create1", 0), ("epoll_ctl", 6, 1, 5, event)),
            ("pidfd_open", _OWN, 0),
            at=bytes(at),
        )
        several.machine.scheduler.run(100_000)
        told = [several.tasks[0].process.files.table.file(fd).details() for fd in range(3, 8)]
        assert told[0] == b"sigmask:\t%016x\n" % (1 << signal.SIGUSR1 - 1 | 1 << _REAL_TIME - 1)
        lines = told[1].splitlines()
        assert lines[:3] == [b"clockid: 0", b"ticks: 1", b"settime flags: 01"]
        assert lines[4] == b"it_interval: (5, 7)"
        assert told[2].splitlines()[::2] == [b"eventfd-count:              12c", b"eventfd-semaphore: 1"]
        assert told[3].startswith(b"tfd:        5 events: 80000019 data:              abc  pos:0 ino:")
        assert told[4] == b"Pid:\t%d\nNSpid:\t%d\n" % (_OWN, _OWN)


# ---- pidfd

_PIDFD = 0x1000


def loaded(folder: Path, isa: str, *calls: Call, at: bytes, given: dict[str, BufferStream]) -> Machine:
    """A machine whose program makes these calls; it may have children."""
    machine = Machine(isa, ram="8M", aperture="4M")
    path = folder / "program"
    path.write_bytes(crafted((Header(flags=READ | EXECUTE),), isa=isa, code=assemble(machine, calls)))
    path.chmod(0o755)
    process = machine.load(path, ["program"], grants=Grants(cwd=folder), streams=given)
    process.mm.insert(process.mm.new_area(DATA, DATA + 0x4000, Protection.READ | Protection.WRITE))
    process.write(DATA, at)
    return machine


def alone(folder: Path, isa: str, *calls: Call, at: bytes) -> tuple[int, bytes]:
    """The calls as a machine's first program: its status, and what it and its children wrote."""
    given = streams()
    machine = loaded(folder, isa, *calls, at=at, given=given)
    try:
        return machine.run().status, bytes(given["stdout"].written)
    finally:
        machine.close()


@every_isa
def test_all_three_go_on_in_a_machine_that_is_restored(isa: str, tmp_path: Path) -> None:
    timer, ready = DATA + 0x800, DATA + 0x1000
    told: tuple[Call, ...] = (("epoll_pwait", 6, ready, 4, -1, 0, 8), ("write", 1, ready, 4))
    calls: tuple[Call, ...] = (
        _BLOCK,
        ("signalfd4", -1, _SET, 8, 0),
        ("timerfd_create", 1, 0),
        ("timerfd_settime", 4, 0, timer, 0),
        ("clone", _PIDFD | signal.SIGCHLD, 0, _VALUE, 0, 0),  # the child has no descriptor 5, and 6 is its 5
        ("epoll_create1", 0),
        ("epoll_ctl", 6, 1, 3, timer + 64),
        ("epoll_ctl", 6, 1, 4, timer + 128),
        ("epoll_ctl", 6, 1, 5, timer + 192),
        ("ppoll", 0, 0, _SLEEP, 0, 0),
        *told,
        ("read", 4, ready, 8),
        ("write", 1, ready, 1),
        ("tkill", 1000, signal.SIGUSR1),
        *told,
        ("read", 3, ready, 128),
        ("write", 1, ready, 4),
    )
    at = bytearray(signals().ljust(0x1000, b"\0"))
    struct.pack_into("<qq", at, 0x300, 0, 1_000_000)
    struct.pack_into("<4q", at, 0x800, 0, 300_000, 0, 700_000)
    for index in range(3):
        struct.pack_into("<I", at, 0x840 + 64 * index, select.POLLIN | (1 << 31 if index == 2 else 0))
    whole = alone(tmp_path, isa, *calls, at=bytes(at))
    assert whole[0] == 4
    before, after = streams(), streams()
    machine = loaded(tmp_path, isa, *calls, at=bytes(at), given=before)
    first = machine.process
    assert first is not None
    while first.tasks[0].waits < 1:  # in ppoll
        assert machine.run_for(1) is None
    assert {3, 4, 5, 6} <= first.files.table.descriptors.keys()
    again = state.restore(state.capture(machine), grants=Grants(cwd=tmp_path), streams=after)
    try:
        assert again.run().status == whole[0]
        assert bytes(before["stdout"].written + after["stdout"].written) == whole[1]
    finally:
        again.close()
        machine.run()
        machine.close()


@every_isa
def test_clone_gives_a_pidfd_that_its_child_has_not(isa: str, tmp_path: Path) -> None:
    calls: tuple[Call, ...] = (
        ("clone", _PIDFD | signal.SIGCHLD, 0, _VALUE, 0, 0),
        ("ppoll", _POLL, 1, 0, 0, 0),
        ("write", 1, _POLL, 8),
        ("write", 1, _VALUE, 4),
        ("fcntl", _FD, 1),
    )
    status, written = alone(tmp_path, isa, *calls, at=polling(data(1)))
    assert status == 1  # FD_CLOEXEC
    child, parent = written[:12], written[12:]
    assert child == struct.pack("<ihhi", _FD, 1, select.POLLNVAL, 0)
    assert parent == struct.pack("<ihhi", _FD, 1, select.POLLIN, _FD)


@every_isa
@pytest.mark.parametrize(
    ("flags", "place", "number"),
    [
        (_PIDFD | 0x10_0000, _VALUE, errno.EINVAL),
        (_PIDFD | 0x40_0000, _VALUE, errno.EINVAL),
        (_PIDFD, 16, errno.EFAULT),
    ],
)
def test_clone_without_room_for_a_pidfd_makes_nothing(isa: str, flags: int, place: int, number: int) -> None:
    with Several(isa) as several:
        task = several.calls(("clone", flags | signal.SIGCHLD, 0, place, 0, 0), data=data(1))
        assert several.run() == [-number & 0xFF]
        assert not task.process.children


@every_isa
def test_pidfd_getfd_shares_an_open_file(isa: str) -> None:
    with Several(isa) as several:
        reading, writing = several.pipe()
        other = several.calls(("eventfd2", 9, 0), ("ppoll", 0, 0, 0, 0, 0), data=data(1))
        several.close(reading, writing)
        caller = several.calls(
            ("nanosleep", _SLEEP, 0),
            ("pidfd_open", other.process.pid, 0),
            ("pidfd_getfd", 3, 5, 0),
            ("read", 4, _VALUE, 8),
            ("pidfd_getfd", 3, 99, 0),
            data=data(1, sleep=1000),
        )
        with pytest.raises(Deadlock):
            several.run()
        assert caller.process.ended is not None and caller.process.ended.status == -errno.EBADF & 0xFF
        assert other.process.files.table.file(5).poll() == select.POLLOUT  # its count was read


@every_isa
def test_waitid_does_not_wait_by_a_nonblocking_pidfd(isa: str) -> None:
    with Several(isa) as several:
        child = several.calls(("ppoll", 0, 0, 0, 0, 0), data=data(1)).process
        caller = several.calls(
            ("pidfd_open", child.pid, 0o4000),
            ("waitid", 3, _FD, 0, 4, 0),  # P_PIDFD, WEXITED
            data=data(1),
        )
        parent = caller.process
        family.adopt(parent, child)
        with pytest.raises(Deadlock):
            several.run()
        assert parent.ended is not None and parent.ended.status == -errno.EAGAIN & 0xFF
