"""Signals and time limits around an engine: nothing is lost, and the caller's settings come back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from aether_emu import interruption
from aether_emu.interruption import Undisturbed, checkpoint, undisturbed, watcher

PATIENCE = 60.0  # seconds after which a test is taken to hang


@contextmanager
def handler(number: int, log: list[int], *, raises: type[BaseException] | None = None) -> Iterator[None]:
    """A handler of the caller's, which notes the signal."""

    def handle(number: int, _frame: FrameType | None) -> None:
        log.append(number)
        if raises is not None:
            raise raises

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


def settings() -> tuple[object, int]:
    """What the process does with SIGINT, and whom it tells of signals."""
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return signal.getsignal(signal.SIGINT), fd


def test_a_handler_is_called_when_the_block_is_over_and_not_in_it() -> None:
    log: list[int] = []
    with handler(signal.SIGUSR1, log):
        with Undisturbed() as block:
            signal.raise_signal(signal.SIGUSR1)
            assert block.asked
            assert not log
        assert log == [signal.SIGUSR1]


def test_ctrl_c_is_raised_at_the_end_of_the_outermost_block() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with Undisturbed():
            with Undisturbed():
                signal.raise_signal(signal.SIGINT)
            reached.append(undisturbed())
        reached.append(False)
    assert reached == [True]
    assert not undisturbed()


def test_a_checkpoint_handles_what_came_until_then_and_the_block_goes_on() -> None:
    log: list[int] = []
    with handler(signal.SIGUSR1, log), Undisturbed():
        for count in (1, 2):
            signal.raise_signal(signal.SIGUSR1)
            assert len(log) == count - 1
            checkpoint()
            assert len(log) == count
        with Undisturbed():
            signal.raise_signal(signal.SIGUSR1)
            checkpoint()
            assert len(log) == 2, "the block around this one is somebody else's"
    assert len(log) == 3


def test_a_block_that_does_not_answer_is_left_by_another_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), Undisturbed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # at once: a key that bounced
        reached.append(1)
        monkeypatch.setattr(interruption, "_UNANSWERED", -1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)
    assert reached == [1]


def test_every_signal_of_a_block_is_handled_though_the_first_handler_raises() -> None:
    log: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    with (
        handler(numbers[0], log, raises=ZeroDivisionError),
        handler(numbers[1], log, raises=ZeroDivisionError),
        pytest.raises(ZeroDivisionError),
        Undisturbed(),
    ):
        for number in numbers:
            signal.raise_signal(number)
    assert sorted(log) == sorted(numbers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM, signal.SIGRTMIN])
def test_whoever_runs_is_asked_to_stop_again_and_again(number: int) -> None:
    """Also for a signal that is not deferred."""
    asked = threading.Semaphore(0)
    log: list[int] = []
    with handler(number, log), Undisturbed(asked.release) as block:
        os.kill(os.getpid(), number)
        assert all(asked.acquire(timeout=PATIENCE) for _ in range(3))
        assert block.asked and not block.timed_out
    assert log == [number]


def test_time_is_up_in_any_thread_and_nobody_is_asked_afterwards() -> None:
    counts: list[int] = []

    def work() -> None:
        asked = threading.Semaphore(0)
        calls: list[None] = []

        def stop() -> None:
            calls.append(None)
            asked.release()

        with Undisturbed(stop, timeout=0.01) as block:
            assert asked.acquire(timeout=PATIENCE)
        assert block.timed_out
        counts.append(len(calls))
        with Undisturbed(asked.release, timeout=0.01) as block:  # the thread has looked again meanwhile
            assert asked.acquire(timeout=PATIENCE)
        counts.append(len(calls))

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(counts) == 4
    assert counts[0] == counts[1] and counts[2] == counts[3]


def test_a_time_without_end_is_none_that_the_host_cannot_hold() -> None:
    asked = threading.Semaphore(0)
    with Undisturbed(lambda: None, timeout=1e12), Undisturbed(asked.release, timeout=0.01):
        assert asked.acquire(timeout=PATIENCE)


def test_the_callers_settings_come_back_and_descriptors_stay_few() -> None:
    with Undisturbed(lambda: None):  # the thread is there now
        pass
    before, descriptors, threads = settings(), set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with Undisturbed(lambda: None, timeout=60):
            assert settings() != before
    assert settings() == before
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_the_callers_wakeup_pipe_hears_of_a_signal_of_the_block() -> None:
    """An event loop waits on such a pipe."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    log: list[int] = []
    before = signal.set_wakeup_fd(write)
    try:
        with handler(signal.SIGUSR1, log), Undisturbed(lambda: None):
            signal.raise_signal(signal.SIGUSR1)
        assert os.read(read, 8) == bytes([signal.SIGUSR1])
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Undisturbed(lambda: None) as block:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert not block.asked
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_fork_has_a_thread_of_its_own() -> None:
    watcher()
    pid = os.fork()
    if not pid:
        asked = threading.Semaphore(0)
        with Undisturbed(asked.release, timeout=0.01):
            heard = asked.acquire(timeout=PATIENCE)
        os._exit(0 if heard else 1)
    assert os.waitpid(pid, 0)[1] == 0
