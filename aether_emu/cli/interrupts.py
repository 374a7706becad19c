"""Ctrl-C and --timeout: a thread that stops the CPU from outside.

Python runs its signal handlers between bytecodes, and there are none while the engine executes, so
a spinning guest would ignore Ctrl-C for ever. The interpreter writes a byte to a pipe the moment a
signal arrives (`signal.set_wakeup_fd`); the thread waits there and asks the engine to stop, again
and again until the run has noticed.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import threading
import time
from collections.abc import Callable

_ASK_AGAIN = 0.02  # seconds


class Interrupts:
    """Watches while the context is open. `reason` is "interrupt", "timeout" or None.

    `stop` is called from the thread until the context closes.
    """

    def __init__(self, stop: Callable[[], None], timeout: float | None) -> None:
        self._stop, self._timeout = stop, timeout
        self.reason: str | None = None
        self._done = threading.Event()

    def __enter__(self) -> Interrupts:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGINT, lambda _number, _frame: None)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        os.write(self._write, b"\0")
        self._thread.join()
        signal.set_wakeup_fd(self._old_fd)
        signal.signal(signal.SIGINT, self._old_handler)
        os.close(self._read)
        os.close(self._write)

    def finish(self) -> None:
        """The run is over, and what follows is Python's: it ends by KeyboardInterrupt from now on.

        If the run was ended from outside, nothing more is asked, and only another Ctrl-C ends the rest.
        """
        signal.signal(signal.SIGINT, self._old_handler)
        if self.reason is None:
            self._stop = self._end_once
        else:
            self._done.set()

    def _end_once(self) -> None:
        self._done.set()
        if self.reason == "timeout":  # Ctrl-C has raised it itself
            _thread.interrupt_main()

    def _watch(self) -> None:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._done.is_set():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], left)
            if not ready:
                self.reason = "timeout"
            elif signal.SIGINT in os.read(self._read, 64):
                self.reason = "interrupt"
            if self.reason is not None:
                break
        while not self._done.is_set():
            self._stop()
            self._done.wait(_ASK_AGAIN)
