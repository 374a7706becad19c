"""Ctrl-C (SIGINT) and --timeout in every command: the process ends at once, whatever it is doing.

    from `early` on        Ctrl-C ends the process where it stands
    inside `reporting`     Ctrl-C raises KeyboardInterrupt, so that the command can say what it has so far.
                           When an engine executes, that is at the end of its run, which is brought about
    soon after it          whoever has not ended by then (in an import, in a library, waiting for the host) is
                           ended by a thread. A second Ctrl-C does not wait

A program at the host's terminal that cares for Ctrl-C gets it (`serve`): then nothing ends, unless a second
one follows within a second and before the program has looked for keys again. Ctrl-Z likewise, and where the
program does not care the process stops, as usual. The terminal is as it was before, on every way out.

What is half written is taken away, and the workers end, in each case. The status is 130, and 124 for
--timeout. An ignored SIGINT is not ignored here: shells ignore it for a script's background commands.
SIGTERM, SIGHUP and SIGQUIT end the process without a word, with status 128+N; what ignores them stays.

Nothing is imported on the way out: the signal may have come in the middle of an import.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from aether_emu.cli.early import INTERRUPTED
from aether_emu.interruption import watcher
from aether_emu.output import remove_unfinished

if TYPE_CHECKING:
    from aether_emu.linux.tty.console import Console

TIMED_OUT = 124
_GRACE = 0.25
"""Seconds after Ctrl-C in which a command may tell what it has so far."""
_LEAST_GRACE = 0.1
_AFTER_TIMEOUT = 5.0
"""Seconds after --timeout in which what was asked for is written, and the machine, which may be in the midst
of something long, comes to a halt before that.
"""
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_TWICE = 1.0
"""Seconds within which a second Ctrl-C ends a program that got the first, and did not look for keys since."""
_JUST_NOW = 0.1
"""Seconds by which the thread may hear later of Ctrl-C than the main one has handed it to the program."""


class Guest(Protocol):
    """A program at the host's terminal (`system.Machine`)."""

    @property
    def console(self) -> Console | None: ...
    def takes_key(self, number: int) -> bool: ...
    def press(self, number: int) -> None: ...


class Interrupts:
    """What becomes of Ctrl-C and of a time limit, from `watch` on."""

    def __init__(self) -> None:
        self.workers: set[int] = set()
        """Processes to be killed with this one."""
        self._reporting = self._raised = False
        self._ends_at: float | None = None
        self._ends_with = INTERRUPTED
        self._deadline: float | None = None
        self._grace = _LEAST_GRACE  # seconds that the command has for itself after the deadline
        self._says = ""
        self._guest: Guest | None = None
        self._handed_at = -_TWICE

    def watch(self) -> None:
        """Hear of signals in a thread as well: the main one may be where no handler runs."""
        thread = watcher()
        thread.add(self)
        signal.set_wakeup_fd(thread.fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._handle)
        for ending in _ENDING:
            if signal.getsignal(ending) is signal.SIG_DFL:  # not under nohup
                signal.signal(ending, lambda number, _frame: self._end(128 + number))
        usual = sys.unraisablehook

        def unraisable(lost: Any) -> None:
            if not isinstance(lost.exc_value, KeyboardInterrupt):  # met in a finaliser: the thread ends it
                usual(lost)

        sys.unraisablehook = unraisable

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """In here Ctrl-C raises KeyboardInterrupt."""
        self._reporting = True
        try:
            yield
        finally:
            self._reporting = False

    @contextmanager
    def itself(self) -> Iterator[None]:
        """Raise KeyboardInterrupt where Python has made another exception of it.

        Before 3.12 that is a RuntimeError if it comes inside `__set_name__`, as of an enum's members while a
        module is imported.
        """
        try:
            yield
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, KeyboardInterrupt):
                cause = cause.__cause__
            if cause is None:
                raise
            raise KeyboardInterrupt from error

    def serve(self, guest: Guest) -> None:
        """From now on the keys of the terminal are this program's, as far as it cares."""
        if guest.console is None:
            return
        self._guest = guest
        signal.signal(signal.SIGTSTP, self._stop)
        signal.signal(signal.SIGCONT, lambda _number, _frame: self._look_at_terminal())
        signal.signal(signal.SIGWINCH, lambda _number, _frame: self._look_at_terminal())

    def _takes(self) -> bool:
        """Whether Ctrl-C is the program's now. Also asked in the thread, while the program runs."""
        guest = self._guest
        if guest is None or not self._reporting or self._raised:
            return False
        try:
            console = guest.console
            again = time.monotonic() - self._handed_at < _TWICE
            return (
                console is not None and not (again and not console.heard) and guest.takes_key(signal.SIGINT)
            )
        except RuntimeError:  # processes come and go meanwhile
            return True

    def _stop(self, _number: int, _frame: object) -> None:
        """Ctrl-Z."""
        guest = self._guest
        assert guest is not None, "only then it is handled"
        console = guest.console
        if guest.takes_key(signal.SIGTSTP):
            guest.press(signal.SIGTSTP)
        elif console is not None:
            running = console.leave()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, self._stop)
            if running:
                console.enter()

    def _look_at_terminal(self) -> None:
        """Its window may have changed, and its modes while the process was stopped."""
        console = None if self._guest is None else self._guest.console
        if console is not None:
            console.come_back()

    def limit(self, seconds: float, says: str, *, writes: bool = False) -> None:
        """End the process after so many seconds, with status 124 and a line on stderr.

        `writes`: the command has something to write then, and gets more time for it.
        """
        self._deadline, self._says = time.monotonic() + seconds, says
        self._grace = _AFTER_TIMEOUT if writes else _LEAST_GRACE

    def left(self) -> float | None:
        """Seconds until that limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def reached(self) -> None:
        """The limit was reached, and the command knows: it has a moment to write what was asked for."""
        self._deadline, self._grace = time.monotonic() + _AFTER_TIMEOUT, _LEAST_GRACE

    def leave(self, status: int) -> NoReturn:
        """End the process now. What is buffered is written if somebody takes it."""
        self._end_soon(status, _LEAST_GRACE)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, RuntimeError, ValueError, AttributeError):
                stream.flush()
        self._end(status)

    def _handle(self, _number: int, _frame: object) -> None:
        if self._takes():
            assert self._guest is not None, "it takes it"
            self._handed_at, self._ends_at = time.monotonic(), None
            self._guest.press(signal.SIGINT)
            return
        if not self._reporting or self._raised:
            self.leave(INTERRUPTED)
        self._raised = True
        raise KeyboardInterrupt

    def _end_soon(self, status: int, grace: float) -> None:
        ends_at = time.monotonic() + grace
        if self._ends_at is None or ends_at < self._ends_at:
            self._ends_at, self._ends_with = ends_at, status

    def _end(self, status: int) -> NoReturn:
        remove_unfinished()
        if self._guest is not None and self._guest.console is not None:
            self._guest.console.leave()
        for worker in list(self.workers):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        os._exit(status)

    def due(self, now: float) -> float | None:
        """See `interruption.Attentive`."""
        limit = None if self._deadline is None else self._deadline + self._grace
        times = [at for at in (self._ends_at, limit) if at is not None]
        return max(0.0, min(times) - now) if times else None

    def look(self, now: float, numbers: bytes, over: bool) -> None:
        """See `interruption.Attentive`."""
        for number in _ENDING:
            if number in numbers:
                self._end(128 + number)
        if signal.SIGINT in numbers and self._ends_at is None and now - self._handed_at > _JUST_NOW:
            grace = _TWICE if self._takes() else _GRACE if self._reporting else _LEAST_GRACE
            self._end_soon(INTERRUPTED, grace)
        if self._ends_at is not None and now >= self._ends_at:
            self._end(self._ends_with)
        if self._deadline is not None and now >= self._deadline + self._grace:
            _say(self._says)
            self._end(TIMED_OUT)


def _say(line: str) -> None:
    """A line on stderr, if somebody takes it."""
    room = select.poll()
    room.register(2, select.POLLOUT)
    if line and room.poll(0):
        with suppress(OSError):
            os.write(2, f"aether: {line}\n".encode(errors="backslashreplace"))


interrupts = Interrupts()
"""Those of this process."""
