"""The host's signals and time limits while an engine runs: noted, and handled where nothing is half done.

Python calls a signal's handler between two bytecodes of the main thread. Around an engine that fails twice:
while it executes there are no bytecodes, so that a spinning guest would ignore Ctrl-C for ever; and what a
handler raises in an engine's callback is lost in C code. So the handlers of whoever called stand aside:

    with Undisturbed(stop, timeout) as block:      a signal is only noted; `stop` is called, from a thread,
        ...                                        again and again, for a signal or when the time is up
    the end of the block                           the signals are sent again: now their handlers run, and
                                                   the KeyboardInterrupt of Ctrl-C comes out here

A block that gives no answer for a second is left by another Ctrl-C wherever it is.

Signals are the main thread's. In another thread a block only keeps its time limit; when the main thread has
ended, which is how Python ends a program, such a block is stopped as well.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Protocol

_AGAIN = 0.02
"""Seconds until somebody who was asked to stop is asked again: an engine may miss one request."""

_UNANSWERED = 1.0
"""Seconds after which another Ctrl-C is handled where it comes: a callback of the caller may hang."""

_LONGEST = 3600.0
"""Seconds that the thread sleeps at most: the host's timers have an end."""

_DEFERRED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGVTALRM,
    signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGWINCH, signal.SIGTSTP,
    signal.SIGCONT,
)  # fmt: skip


class Attentive(Protocol):
    """Whom the watching thread tells of signals and time. Its methods are called from there."""

    def due(self, now: float) -> float | None:
        """Seconds until it wants to look though nothing has happened; None: not at all."""

    def look(self, now: float, numbers: bytes, over: bool) -> None:
        """The signals `numbers` came (often none). `over`: the main thread has ended."""


class Undisturbed:
    """A block in which no signal handler of Python's is called.

    `stop` must be callable from any thread, and is never called when the block is over. Without it and
    without `timeout` (seconds) the block only defers signals: it should be short, or have checkpoints. Blocks
    may be nested.
    `asked`: the block was told to stop, by a signal, the time or the end of the program.
    """

    def __init__(self, stop: Callable[[], None] | None = None, timeout: float | None = None) -> None:
        self._stop, self._timeout = stop, timeout
        self._noted: dict[int, float] = {}  # signal: when it came
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._old_fd: int | None = None
        self._deadline: float | None = None
        self.asked = self.timed_out = self.program_ends = False

    def __enter__(self) -> Undisturbed:
        self._main = threading.current_thread() is threading.main_thread()
        _open_here().append(self)
        if self._timeout is not None:
            self._deadline = time.monotonic() + self._timeout
        if self._main:
            handlers = {number: signal.getsignal(number) for number in _DEFERRED}
            self._handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
        try:
            self._stand_aside()
            if self._stop is not None:
                thread = watcher()
                if self._main:
                    self._old_fd = signal.set_wakeup_fd(thread.fd, warn_on_full_buffer=False)
                else:
                    thread.watch_the_end()
                thread.add(self)
        except BaseException:  # a handler that had not stood aside yet has raised
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._stop is not None:
            watcher().remove(self)
        _open_here().remove(self)
        if self._main:
            self._give_back()
            self._send_again()

    def ask(self) -> None:
        """From any thread: have it stopped, as for a signal, unless it is over."""
        self.asked = True
        watcher().wake()

    def handle_now(self) -> None:
        """Call the handlers of what came until now. See `checkpoint`."""
        if self._noted and self._stop is None:
            self._give_back()
            self._send_again()
            self._stand_aside()

    def _stand_aside(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._note)

    def _give_back(self) -> None:
        try:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if self._old_fd is not None:
                signal.set_wakeup_fd(self._old_fd, warn_on_full_buffer=False)
        except BaseException:  # one that is back has raised already: the others must follow
            self._give_back()
            raise

    def _send_again(self) -> None:
        while self._noted:
            number, _ = self._noted.popitem()
            try:
                signal.raise_signal(number)
            finally:
                self._send_again()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - self._noted.setdefault(number, now) > _UNANSWERED:
            del self._noted[number]
            self._handlers[number](number, frame)
            return
        self._noted.setdefault(number, now)
        self.asked = True
        if self._stop is not None:
            self._stop()

    def due(self, now: float) -> float | None:
        """See `Attentive.due`."""
        if self.asked:
            return _AGAIN
        return None if self._deadline is None else max(0.0, self._deadline - now)

    def look(self, now: float, numbers: bytes, over: bool) -> None:
        """See `Attentive.look`."""
        if self._deadline is not None and now >= self._deadline:
            self.timed_out = self.asked = True
        if over and not self._main:
            self.program_ends = self.asked = True
        if self._main and numbers:
            self.asked = True
        if self.asked and self._stop is not None:
            self._stop()


_here = threading.local()


def _open_here() -> list[Undisturbed]:
    """The blocks that this thread is in, the outermost first."""
    blocks: list[Undisturbed] | None = getattr(_here, "blocks", None)
    if blocks is None:
        blocks = _here.blocks = []
    return blocks


def undisturbed() -> bool:
    """Whether this thread is in such a block."""
    return bool(getattr(_here, "blocks", None))


def checkpoint() -> None:
    """In the middle of a long block: signals that came are handled now, for nothing is half done here.

    What a handler raises comes out of this call. Nothing happens in a block inside another, nor in one that
    has somebody to stop.
    """
    blocks = _open_here()
    if len(blocks) == 1:
        blocks[0].handle_now()


class Watcher:
    """A thread that hears of every signal at once, by the pipe of `signal.set_wakeup_fd`, and of time."""

    def __init__(self) -> None:
        self._read, self.fd = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self.fd, False)
        self._lock = threading.Lock()
        self._told: list[Attentive] = []
        self._over = False
        self._end: threading.Thread | None = None
        threading.Thread(target=self._watch, name="interruption", daemon=True).start()

    def add(self, attentive: Attentive) -> None:
        """Tell it from now on."""
        with self._lock:
            self._told.append(attentive)
        if attentive.due(time.monotonic()) is not None or self._over:
            self.wake()

    def remove(self, attentive: Attentive) -> None:
        """Tell it no more: when this returns, no call is under way. It need not have been added."""
        with self._lock:
            if attentive in self._told:
                self._told.remove(attentive)

    def watch_the_end(self) -> None:
        """Hear of the end of the main thread too, for which Python waits before it joins all others."""
        if self._end is None:
            self._end = threading.Thread(
                target=self._wait_for_the_end, name="end of the program", daemon=True
            )
            self._end.start()

    def _wait_for_the_end(self) -> None:
        threading.main_thread().join()
        self._over = True
        self.wake()

    def wake(self) -> None:
        """Have it ask everybody again when they want to be looked at."""
        with suppress(BlockingIOError):  # it is awake already
            os.write(self.fd, b"\0")  # the number of no signal

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            with self._lock:
                now = time.monotonic()
                waits = [due for one in self._told if (due := one.due(now)) is not None]
            poll.poll(1000 * min(*waits, _LONGEST) + 1 if waits else None)
            try:
                numbers = os.read(self._read, 256).replace(b"\0", b"")
            except BlockingIOError:
                numbers = b""
            with self._lock:
                for one in self._told:
                    one.look(time.monotonic(), numbers, self._over)


_current: list[Watcher] = []
os.register_at_fork(after_in_child=_current.clear)  # threads do not follow into a fork


def watcher() -> Watcher:
    """The thread of this process, started when it is first needed."""
    if not _current:
        _current.append(Watcher())
    return _current[0]
