"""timerfd and pidfd: files that tell that time is up, or that a process has ended."""

import errno
import signal
import struct

import pytest

from aether_emu.linux.files.capture import capture
from aether_emu.linux.files.tmp_capture import CaptureError
from tests.guests.running import ISAS
from tests.linux.calls.test_timers import data, spinning
from tests.linux.task.scripts import DATA, Several

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


@every_isa
def test_open_timer_is_refused_by_capture_with_its_name(isa: str) -> None:
    with Several(isa) as several:
        spinning(several, ("timerfd_create", 1, 0), at=data(1))
        several.machine.scheduler.run(100)
        with pytest.raises(CaptureError, match="a timerfd is open"):
            capture([several.tasks[0].process.files])
