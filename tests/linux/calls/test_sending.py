"""Signals from one process to another: what they interrupt, what goes on, who waits for them."""

import errno
import signal
import struct

import pytest

from aether_emu.linux.abi.signal import SA_RESTART, SA_RESTORER
from tests.guests.running import ISAS
from tests.linux.task.scripts import DATA, Several

every_isa = pytest.mark.parametrize("isa", ISAS)
_USR1, _RT = signal.SIGUSR1, 40
_SET, _INFO, _MOMENT, _SPARE = DATA + 0x200, DATA + 0x300, DATA + 0x380, DATA + 0x800
_RETURN = {"x86_64": b"\xc3", "arm64": bytes.fromhex("c0035fd6")}
_RESTORER = {"x86_64": bytes.fromhex("b80f0000000f05"), "arm64": bytes.fromhex("681180d2010000d4")}
_INTERRUPTED = -errno.EINTR & 0xFF


def data(isa: str, *, flags: int = 0, wanted: int = 0, info: tuple[int, int] = (0, 0)) -> bytes:
    """At DATA an action whose handler returns at once, then its code, a set of one signal, and an info."""
    action = struct.pack("<4Q", DATA + 0x100, flags | SA_RESTORER, DATA + 0x120, 0)
    parts = {0: action, 0x100: _RETURN[isa], 0x120: _RESTORER[isa]}
    if wanted:
        parts[0x200] = struct.pack("<Q", 1 << wanted - 1)
    parts[0x380] = struct.pack("<qq", 0, 100_000)
    parts[0x300] = struct.pack("<iiiiiIQ", 0, 0, info[0], 0, 7, 8, info[1])
    out = bytearray(0x400)
    for offset, piece in parts.items():
        out[offset : offset + len(piece)] = piece
    return bytes(out)


@every_isa
@pytest.mark.parametrize(("flags", "answer"), [(SA_RESTART, 1), (0, _INTERRUPTED)])
def test_read_restarts_after_a_handler_with_sa_restart_alone(isa: str, flags: int, answer: int) -> None:
    with Several(isa) as several:
        reading, writing = several.pipe()
        reader = several.calls(
            ("rt_sigaction", _USR1, DATA, 0, 8), ("read", reading, _SPARE, 1), data=data(isa, flags=flags)
        )
        several.calls(
            ("nanosleep", _MOMENT, 0),
            ("kill", reader.process.pid, _USR1),
            ("nanosleep", _MOMENT, 0),
            ("write", writing, DATA, 1),
            data=data(isa),
        )
        several.close(reading, writing)
        assert several.run()[0] == answer


@every_isa
def test_sleep_never_restarts_and_goes_on_after_a_stop(isa: str) -> None:
    sleep = struct.pack("<qq", 0, 500)
    with Several(isa) as several:
        woken = several.calls(
            ("rt_sigaction", _USR1, DATA, 0, 8),
            ("nanosleep", _SPARE, 0),
            data=data(isa, flags=SA_RESTART).ljust(0x800, b"\0") + struct.pack("<qq", 1, 0),
        )
        stopped = several.calls(("nanosleep", DATA, 0), data=struct.pack("<qq", 1, 0))
        several.calls(
            ("nanosleep", DATA, 0),
            ("kill", woken.process.pid, _USR1),
            ("kill", stopped.process.pid, signal.SIGSTOP),
            ("nanosleep", DATA, 0),
            ("kill", stopped.process.pid, signal.SIGCONT),
            data=sleep,
        )
        assert several.run() == [_INTERRUPTED, 0, 0]
        assert several.machine.clock.now_ns >= 10**9


@every_isa
def test_sigtimedwait_takes_a_queued_signal_with_its_value(isa: str) -> None:
    with Several(isa) as several:
        waiter = several.calls(
            ("rt_sigprocmask", signal.SIG_BLOCK, _SET, 0, 8),
            ("rt_sigtimedwait", _SET, _INFO, 0, 8),
            data=data(isa, wanted=_RT),
        )
        several.calls(
            ("nanosleep", _SPARE, 0),
            ("rt_sigqueueinfo", waiter.process.pid, _RT, _INFO),
            data=data(isa, info=(-1, 0x1234)).ljust(0x800, b"\0") + struct.pack("<qq", 0, 1000),
        )
        told: list[tuple[int, ...]] = []

        def look(answer: object) -> None:
            call = answer.call  # type: ignore[attr-defined]
            if call.name == "rt_sigtimedwait":
                raw = several.machine.cpu.copy_from_user(_INFO, 32)
                told.append(struct.unpack("<iiiiiIQ", raw))

        several.machine.observers.attach(call_answered=look)
        assert several.run() == [_RT, 0]
        assert told[-1] == (_RT, 0, -1, 0, 7, 8, 0x1234)


@every_isa
@pytest.mark.parametrize(
    ("code", "answer"),
    [(-1, 0), (0, -errno.EPERM & 0xFF), (-6, -errno.EPERM & 0xFF), (5, -errno.EPERM & 0xFF)],
)
def test_nobody_poses_as_the_kernel_to_another_process(isa: str, code: int, answer: int) -> None:
    with Several(isa) as several:
        other = several.calls(("nanosleep", _MOMENT, 0), data=data(isa))
        several.calls(
            ("rt_sigqueueinfo", other.process.pid, signal.SIGURG, _INFO), data=data(isa, info=(code, 0))
        )
        assert several.run() == [0, answer]


@every_isa
def test_sigtimedwait_gives_up_when_its_time_is_over(isa: str) -> None:
    with Several(isa) as several:
        several.calls(
            ("rt_sigtimedwait", _SET, 0, _SPARE, 8),
            data=data(isa, wanted=_RT).ljust(0x800, b"\0") + struct.pack("<qq", 2, 0),
        )
        assert several.run() == [-errno.EAGAIN & 0xFF]
        assert several.machine.clock.now_ns >= 2 * 10**9


@every_isa
def test_pause_ends_by_a_handler_and_sigkill_ends_a_process_that_blocks_all(isa: str) -> None:
    pause = ("pause",) if isa == "x86_64" else ("ppoll", 0, 0, 0, 0)
    with Several(isa) as several:
        pausing = several.calls(("rt_sigaction", _USR1, DATA, 0, 8), pause, data=data(isa))
        killed = several.calls(("nanosleep", DATA, 0), data=struct.pack("<qq", 10**6, 0))
        several.calls(
            ("nanosleep", DATA, 0),
            ("kill", pausing.process.pid, _USR1),
            ("kill", killed.process.pid, signal.SIGKILL),
            data=struct.pack("<qq", 0, 1000),
        )
        assert several.run() == [_INTERRUPTED, 137, 0]
