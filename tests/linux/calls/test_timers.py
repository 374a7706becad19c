"""Timers in virtual time: when their signals come and what they tell, also to programs that spin."""

import errno
import signal
import struct

import pytest

from aether_emu.linux.task.resource_limits import RLIMIT_SIGPENDING
from tests.guests.running import ISAS
from tests.linux.task.scripts import DATA, SPIN, Call, Several, assemble

every_isa = pytest.mark.parametrize("isa", ISAS)
_SECOND = 10**9
_SET, _EVENT, _TIME, _SLEEP, _NUMBER = DATA, DATA + 0x100, DATA + 0x200, DATA + 0x300, DATA + 0x400
_MONOTONIC, _PROCESS_TIME, _THREAD_TIME = 1, 2, 3
_BLOCK: Call = ("rt_sigprocmask", signal.SIG_BLOCK, _SET, 0, 8)


def data(number: int, *, interval: int = 0, first: int = 0, sleep: int = 0, notify: int = 0) -> bytes:
    """A set of one signal, a sigevent with value 77, an itimerspec and a timespec; times in ns."""
    out = bytearray(0x500)
    struct.pack_into("<Q", out, 0, 1 << number - 1)
    struct.pack_into("<Qii", out, 0x100, 77, number, notify)
    struct.pack_into("<4q", out, 0x200, *divmod(interval, _SECOND), *divmod(first, _SECOND))
    struct.pack_into("<qq", out, 0x300, *divmod(sleep, _SECOND))
    return bytes(out)


def spinning(several: Several, *calls: Call, at: bytes) -> None:
    """A process that makes the calls, and then spins for ever."""
    end = len(assemble(several.machine, []))
    several.calls(code=assemble(several.machine, calls)[:-end] + SPIN[several.isa], data=at)


@every_isa
def test_interval_timer_is_due_at_its_time(isa: str) -> None:
    with Several(isa) as several:
        several.calls(
            _BLOCK,
            ("setitimer", 0, _TIME, 0),
            ("rt_sigtimedwait", _SET, 0, 0, 8),
            data=data(signal.SIGALRM, first=3000),  # as microseconds
        )
        several.calls(("setitimer", 5, _TIME, 0), data=data(signal.SIGALRM))
        assert several.run() == [signal.SIGALRM, -errno.EINVAL & 0xFF]
        assert 3_000_000 <= several.machine.kernel.time_seen() < 3_100_000


@pytest.mark.parametrize("isa", ["x86_64"])  # arm64 has no such call
def test_alarm_tells_the_seconds_that_were_left(isa: str) -> None:
    with Several(isa) as several:
        several.calls(("alarm", 10), ("alarm", 0))
        several.calls(("alarm", 2), ("ppoll", 0, 0, 0, 0))
        assert several.run() == [10, 128 + signal.SIGALRM]
        assert several.machine.kernel.time_seen() >= 2 * _SECOND


@every_isa
@pytest.mark.parametrize(("which", "number"), [(0, 14), (1, 26), (2, 27)])
def test_spinning_program_is_interrupted_by_each_interval_timer(isa: str, which: int, number: int) -> None:
    with Several(isa) as several:
        spinning(several, ("setitimer", which, _TIME, 0), at=data(number, first=200_000))  # 200 ms
        assert several.run() == [128 + number]
        assert 0.2 * _SECOND <= several.machine.kernel.time_seen() < 0.21 * _SECOND


@every_isa
def test_timer_waits_for_its_signal_to_be_taken_and_counts_what_it_missed(isa: str) -> None:
    with Several(isa) as several:
        several.calls(
            _BLOCK,
            ("timer_create", _MONOTONIC, _EVENT, _NUMBER),
            ("timer_settime", 0, 0, _TIME, 0),
            ("nanosleep", _SLEEP, 0),
            ("rt_sigtimedwait", _SET, 0, 0, 8),
            ("timer_getoverrun", 0),
            data=data(40, interval=10_000_000, first=10_000_000, sleep=55_000_000),
        )
        assert several.run() == [4]


@every_isa
def test_timer_by_processor_time_stands_still_in_a_sleep(isa: str) -> None:
    with Several(isa) as several:
        spinning(
            several,
            ("timer_create", _PROCESS_TIME, _EVENT, _NUMBER),
            ("timer_settime", 0, 0, _TIME, 0),
            ("nanosleep", _SLEEP, 0),
            at=data(signal.SIGUSR2, first=1_000_000, sleep=5 * _SECOND),
        )
        assert several.run() == [128 + signal.SIGUSR2]
        assert 5.001 * _SECOND <= several.machine.kernel.time_seen() < 5.002 * _SECOND


@every_isa
@pytest.mark.parametrize(
    ("call", "number"),
    [
        (("timer_create", 8, _EVENT, _NUMBER), errno.EOPNOTSUPP),
        (("timer_create", 99, _EVENT, _NUMBER), errno.EINVAL),
        (("timer_create", _MONOTONIC, _EVENT, 1), errno.EFAULT),
        (("timer_settime", 0, 0, _TIME, 0), errno.EINVAL),
        (("timer_delete", 3), errno.EINVAL),
        (("timer_getoverrun", -1), errno.EINVAL),
    ],
)
def test_timer_call_is_refused_as_linux_refuses_it(isa: str, call: Call, number: int) -> None:
    with Several(isa) as several:
        several.calls(call, data=data(signal.SIGUSR1))
        assert several.run() == [-number & 0xFF]


_THREAD_ONLY, _VIRTUAL = 3, 1


@every_isa
def test_timer_by_a_threads_time_counts_no_other_thread(isa: str) -> None:
    with Several(isa) as several:
        calls: tuple[Call, ...] = (
            ("timer_create", _THREAD_ONLY, _EVENT, _NUMBER),
            ("timer_settime", 0, 0, _TIME, 0),
        )
        end = len(assemble(several.machine, []))
        code = assemble(several.machine, calls)[:-end] + SPIN[isa]
        task = several.calls(code=code, data=data(signal.SIGUSR2, first=2_000_000))
        other = several.thread(task, code=SPIN[isa])
        several.machine.scheduler.run()
        assert task.process.ended is not None and task.process.ended.signal == signal.SIGUSR2
        assert 2_000_000 <= task.usage.time < 3_000_000
        assert other.usage.time


@every_isa
def test_sleep_by_another_process_time_ends_when_that_has_worked(isa: str) -> None:
    with Several(isa) as several:
        worker = several.calls(code=SPIN[isa])
        clock = ~worker.process.pid << 3 | 2
        sleeper = several.calls(("clock_nanosleep", clock, 0, _SLEEP, 0), data=data(1, sleep=2_000_000))
        registry = worker.process.registry
        sleeper.process.registry = registry
        registry.processes[sleeper.process.pid], registry.tasks[sleeper.tid] = sleeper.process, sleeper
        while not sleeper.is_over:
            assert not several.machine.scheduler.run(100_000)
        assert sleeper.process.ended is not None and sleeper.process.ended.status == 0
        assert 2_000_000 <= worker.usage.time < 3_000_000
        assert sleeper.usage.time < 100_000


@every_isa
def test_virtual_timer_counts_no_time_of_the_system(isa: str) -> None:
    with Several(isa) as several:
        spinning(several, ("setitimer", _VIRTUAL, _TIME, 0), at=data(signal.SIGVTALRM, first=2_000))
        process = several.tasks[0].process
        assert several.run() == [128 + signal.SIGVTALRM]
        used = process.usage
        assert used.time - used.system >= 2_000_000 > used.system > 0


@every_isa
def test_timer_goes_on_while_its_signal_is_ignored(isa: str) -> None:
    with Several(isa) as several:
        several.calls(
            ("timer_create", _MONOTONIC, _EVENT, _NUMBER),
            ("timer_settime", 0, 0, _TIME, 0),
            ("nanosleep", _SLEEP, 0),
            _BLOCK,
            ("rt_sigtimedwait", _SET, 0, 0, 8),
            data=data(signal.SIGCHLD, interval=10_000_000, first=10_000_000, sleep=55_000_000),
        )
        assert several.run() == [signal.SIGCHLD]
        assert 60_000_000 <= several.machine.kernel.time_seen() < 61_000_000


@every_isa
def test_timers_set_records_aside_that_count_against_the_limit(isa: str) -> None:
    with Several(isa) as several:
        task = several.calls(
            ("timer_create", _MONOTONIC, _EVENT, _NUMBER),
            ("timer_create", _MONOTONIC, _EVENT, _NUMBER),
            ("timer_create", _MONOTONIC, _EVENT, _NUMBER),
            data=data(signal.SIGUSR1),
        )
        task.process.limits[RLIMIT_SIGPENDING] = (2, 2)
        assert several.run() == [-errno.EAGAIN & 0xFF]


@every_isa
@pytest.mark.parametrize(("limits", "ends"), [((1, 2), signal.SIGKILL), ((1, 1 << 64), signal.SIGXCPU)])
def test_processor_time_is_limited(isa: str, limits: tuple[int, int], ends: int) -> None:
    handled = ends == signal.SIGKILL
    with Several(isa, clock={"block": 1000}) as several:
        at = bytearray(data(signal.SIGXCPU))
        struct.pack_into("<QQ", at, 0x300, limits[0], limits[1] - (not handled))
        blocked: tuple[Call, ...] = (_BLOCK,) if handled else ()
        spinning(several, *blocked, ("prlimit64", 0, 0, _SLEEP, 0), at=bytes(at))
        process = several.tasks[0].process
        assert several.run() == [128 + ends]
        seconds = 2 if handled else 1
        assert seconds <= process.usage.time / _SECOND < seconds + 0.2
        assert process.limits[0][0] == 2


@every_isa
@pytest.mark.parametrize(("hard", "ends"), [(2_500_000, signal.SIGKILL), (1 << 64, signal.SIGXCPU)])
def test_time_of_a_real_time_thread_is_limited(isa: str, hard: int, ends: int) -> None:
    handled = ends == signal.SIGKILL
    with Several(isa, clock={"block": 1000}, uid=0, gid=0) as several:
        at = bytearray(data(signal.SIGXCPU))
        struct.pack_into("<QQI", at, 0x300, 500_000, hard - (not handled), 7)
        blocked: tuple[Call, ...] = (_BLOCK,) if handled else ()
        policy: Call = ("sched_setscheduler", 0, 1, _SLEEP + 16)
        spinning(several, *blocked, policy, ("prlimit64", 0, 15, _SLEEP, 0), at=bytes(at))
        process = several.tasks[0].process
        assert several.run() == [128 + ends]
        seconds = 2.5 if handled else 0.5
        assert seconds <= process.usage.time / _SECOND < seconds + 0.2
        assert process.limits[15][0] == (2_500_000 if handled else 1_500_000)
