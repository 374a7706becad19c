"""What becomes of a call that waits when a signal or a stop comes (signal(7)), beside the host."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import signal
import struct
from pathlib import Path

import pytest

from aether_emu.linux.abi import arm64_calls, x86_64_calls
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.task.task import Task
from tests.guests.running import ISAS
from tests.linux.task.scripts import DATA, SPIN, Call, Several

every_isa = pytest.mark.parametrize("isa", ISAS)
NATIVE_ISA = "arm64" if platform.machine() == "aarch64" else "x86_64"
NUMBERS = {
    name: number
    for number, name in (arm64_calls if NATIVE_ISA == "arm64" else x86_64_calls).SYSTEM_CALLS.items()
}
WAITS = "waits"
ENOUGH = 300_000  # blocks, in which everybody comes to where it waits
ACTION, SECONDS, LATE, SET, NONE, EVENT, POLL, WAITERS, NAME, TIMER, BUFFER = (
    DATA + 64 * index for index in range(11)
)
HANDLER, RETURN = DATA + 0x800, DATA + 0x810
CODE = {
    "x86_64": (b"\xc3", bytes.fromhex("b80f0000000f05")),
    "arm64": (bytes.fromhex("c0035fd6"), bytes.fromhex("681180d2010000d4")),
}
"""A handler that does nothing: ret; and what it returns to: rt_sigreturn."""
_PIPE: Call = ("pipe2", BUFFER, 0)
_SMALL_PIPE: tuple[Call, ...] = (_PIPE, ("fcntl", 4, 1031, 4096))  # F_SETPIPE_SZ
_PAIR: Call = ("socketpair", 1, 1, 0, BUFFER)
_NAMED: tuple[Call, ...] = (("socket", 1, 1, 0), ("bind", 3, NAME, 12), ("listen", 3, 1))
_LIMITED: tuple[Call, ...] = (_PAIR, ("setsockopt", 3, 1, 20, SECONDS, 16))  # SO_RCVTIMEO
CASES: dict[str, tuple[Call, ...]] = {
    "read": (_PIPE, ("read", 3, BUFFER, 10)),
    "write": (*_SMALL_PIPE, ("write", 4, BUFFER, 4096), ("write", 4, BUFFER, 10)),
    "half a write": (*_SMALL_PIPE, ("write", 4, DATA, 8192)),
    "splice": (_PIPE, ("pipe2", BUFFER, 0), ("splice", 3, 0, 6, 0, 10, 0)),
    "eventfd": (("eventfd2", 0, 0), ("read", 3, BUFFER, 8)),
    "timerfd": (
        ("timerfd_create", 1, 0),
        ("timerfd_settime", 3, 0, TIMER, 0),
        ("read", 3, BUFFER, 8),
    ),
    "signalfd": (("signalfd4", -1, SET, 8, 0), ("read", 3, BUFFER, 128)),
    "recvfrom": (_PAIR, ("recvfrom", 3, BUFFER, 10, 0, 0, 0)),
    "recvfrom with SO_RCVTIMEO": (*_LIMITED, ("recvfrom", 3, BUFFER, 10, 0, 0, 0)),
    "read with SO_RCVTIMEO": (*_LIMITED, ("read", 3, BUFFER, 10)),
    "accept": (*_NAMED, ("accept", 3, 0, 0)),
    "futex": (("futex", BUFFER, 0, 0, 0, 0, 0),),
    "futex with a timeout": (("futex", BUFFER, 0, 0, SECONDS, 0, 0),),
    "futex_waitv with a timeout": (("futex_waitv", WAITERS, 1, 0, LATE, 1),),
    "ppoll": (_PIPE, ("ppoll", POLL, 1, 0, 0, 8)),
    "ppoll with a timeout and a mask": (_PIPE, ("ppoll", POLL, 1, SECONDS, NONE, 8)),
    "pselect6": (("pselect6", 0, 0, 0, 0, SECONDS, 0),),
    "epoll_pwait": (("epoll_create1", 0), ("epoll_pwait", 3, EVENT, 1, 10_000, NONE, 8)),
    "nanosleep": (("nanosleep", SECONDS, 0),),
    "clock_nanosleep until": (("clock_nanosleep", 0, 1, LATE, 0),),
    "clock_nanosleep by a processor": (("clock_nanosleep", 2, 0, SECONDS, 0),),
    "rt_sigsuspend": (("rt_sigsuspend", NONE, 8),),
    "rt_sigtimedwait": (("rt_sigtimedwait", SET, 0, SECONDS, 8),),
}
"""Calls of which the last one waits. Descriptors from 3 on are free at first."""
LOCK_PI = 6
HANDLED, RESTARTED, STOPPED = "a handler", "a handler with SA_RESTART", "a stop"


def data(isa: str, event: str) -> bytes:
    """What the calls find at DATA."""
    out = bytearray(0x900)
    flags = sig.SA_RESTORER | (sig.SA_RESTART if event == RESTARTED else 0)
    for at, packed in (
        (ACTION, struct.pack("<4Q", HANDLER, flags, RETURN, 0)),
        (SECONDS, struct.pack("<qq", 100, 0)),
        (LATE, struct.pack("<qq", 10**10 // 2, 0)),
        (SET, struct.pack("<Q", 1 << signal.SIGUSR2 - 1)),
        (POLL, struct.pack("<ihh", 3, 1, 0)),
        (WAITERS, struct.pack("<QQII", 0, BUFFER, 2, 0)),
        (NAME, struct.pack("<H", 1) + b"\0waits" + os.getpid().to_bytes(4, "little")),
        (TIMER, struct.pack("<4q", 0, 0, 100, 0)),
        (HANDLER, CODE[isa][0]),
        (RETURN, CODE[isa][1]),
    ):
        out[at - DATA : at - DATA + len(packed)] = packed
    return bytes(out)


def script(name: str) -> tuple[Call, ...]:
    """The calls of a case, after SIGUSR1 has its handler and SIGUSR2 is blocked."""
    blocks: Call = ("rt_sigprocmask", 0, SET, 0, 8)
    return (("rt_sigaction", signal.SIGUSR1, ACTION, 0, 8), blocks, *CASES[name])


# ---- in a machine


def served(isa: str, event: str) -> dict[str, int | str]:
    """How each case ends: the call's result, or WAITS."""
    with Several(isa) as several:
        tasks = {name: several.calls(*script(name), data=data(isa, event)) for name in CASES}
        several.calls(code=SPIN[isa])  # so that no time is skipped
        several.machine.scheduler.run(ENOUGH)
        assert [name for name, task in tasks.items() if task.wait is None] == []
        for number in (sig.SIGSTOP, sig.SIGCONT) if event == STOPPED else (sig.SIGUSR1,):
            for task in tasks.values():
                task.process.post(SignalInfo(number))
            several.machine.scheduler.run(ENOUGH)
        return {name: outcome(task) for name, task in tasks.items()}


def outcome(task: Task) -> int | str:
    """The result of its last call, which it ended with."""
    ended = task.process.ended
    assert (ended is None) == (task.wait is not None)
    return WAITS if ended is None else ended.status


# ---- on the host


@functools.cache
def native(event: str) -> dict[str, int | str]:
    """The same by the kernel under the test."""
    return {name: natively(name, event) for name in CASES}


def natively(name: str, event: str) -> int | str:
    """One case in a child of this process."""
    calls = [(NUMBERS[call], *arguments) for call, *arguments in script(name)]
    content = data(NATIVE_ISA, event)
    pid = os.fork()
    if not pid:
        _make(calls, content)
    try:
        _until_asleep(pid)
        if event == STOPPED:
            os.kill(pid, signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
            os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, signal.SIGUSR1)
        return WAITS if _until_asleep(pid) else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _make(calls: list[tuple[int, ...]], content: bytes) -> None:
    """In the child: the calls, and the end with the last one's result."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype, libc.syscall.restype = ctypes.c_void_p, ctypes.c_long
        os.closerange(3, 1 << 10)
        everything, fixed = 7, 0x10_0022  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        where = libc.mmap(ctypes.c_void_p(DATA), ctypes.c_size_t(1 << 16), everything, fixed, -1, 0)
        assert where == DATA
        ctypes.memmove(DATA, content, len(content))
        result = 0
        for number, *arguments in calls:
            result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(value) for value in arguments))
            result = -ctypes.get_errno() if result == -1 else result
        os._exit(result & 0xFF)
    finally:
        os._exit(99)


def _until_asleep(pid: int) -> bool:
    """Wait until it sleeps (True), or has ended."""
    while True:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "S" and Path(f"/proc/{pid}/syscall").read_text().split()[0] != "running":
            return True
        if state == "Z":
            return False


@every_isa
@pytest.mark.parametrize("event", [HANDLED, RESTARTED, STOPPED])
def test_every_call_that_waits_ends_or_waits_on_as_on_the_host(isa: str, event: str) -> None:
    assert served(isa, event) == native(event)


@every_isa
def test_a_lock_that_is_passed_on_is_waited_for_again_after_any_handler(isa: str) -> None:
    with Several(isa) as several:
        act: Call = ("rt_sigaction", signal.SIGUSR1, ACTION, 0, 8)
        waiter = several.calls(
            act, ("futex", BUFFER, 6, 0, 0, 0, 0), data=data(isa, HANDLED)
        )  # FUTEX_LOCK_PI
        owner = several.thread(waiter, code=SPIN[isa])
        waiter.process.write(BUFFER, struct.pack("<I", owner.tid))
        several.machine.scheduler.run(ENOUGH)
        waiter.signals.post(SignalInfo(sig.SIGUSR1))
        several.machine.scheduler.run(ENOUGH)
        assert waiter.wait is not None and waiter.wait.what == f"a lock at {BUFFER:#x}"
        assert not waiter.signals.pending.mask


@every_isa
def test_a_timeout_that_the_program_is_told_stands_still_while_it_is_stopped(isa: str) -> None:
    with Several(isa) as several:
        told, untold = (
            several.calls(*script(name), data=data(isa, STOPPED)) for name in ("pselect6", "nanosleep")
        )
        several.calls(code=SPIN[isa])
        several.machine.kernel.observe_time()
        before = []
        for number in (None, sig.SIGSTOP, sig.SIGCONT):
            for task in (told, untold):
                if number is not None:
                    task.process.post(SignalInfo(number))
            several.machine.scheduler.run(ENOUGH)
            several.machine.kernel.observe_time()
            waits = [task.wait for task in (told, untold)]
            before.append([wait.deadline for wait in waits if wait is not None and wait.deadline is not None])
        first, _, last = before
        assert last[0] - first[0] >= ENOUGH
        assert last[1] == first[1]


@every_isa
def test_a_stop_that_ends_a_call_gives_back_the_mask_that_it_lent(isa: str) -> None:
    with Several(isa) as several:
        calls = [*script("epoll_pwait"), ("rt_sigprocmask", 0, 0, BUFFER, 8), ("write", 1, BUFFER, 8)]
        task = several.calls(*calls, data=data(isa, STOPPED))
        several.calls(code=SPIN[isa])
        for number in (sig.SIGSTOP, sig.SIGCONT):
            several.machine.scheduler.run(ENOUGH)
            task.process.post(SignalInfo(number))
        several.machine.scheduler.run(ENOUGH)
        assert bytes(several.out.written) == struct.pack("<Q", 1 << signal.SIGUSR2 - 1)


@every_isa
def test_a_call_that_a_stop_has_ended_is_captured_so(isa: str) -> None:
    with Several(isa) as several:
        task = several.calls(*script("epoll_pwait"), data=data(isa, STOPPED))
        several.calls(code=SPIN[isa])
        several.machine.scheduler.run(ENOUGH)
        task.process.post(SignalInfo(sig.SIGSTOP))
        again = Task(task.process, 77)
        again.body.free()  # what is captured stands where the other does
        again.restore(task.capture())
        assert not again.waits_on and again.wait is not None and again.wait.interrupted == -errno.EINTR
        again.leave_queues()
        again.done_waiting()
        task.process.tasks.remove(again)
