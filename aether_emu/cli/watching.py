"""What `aether run` writes of a run as it happens (--strace), and of a crash (unless --no-crash-report)."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aether_emu.errors import AetherError, ConfigError

if TYPE_CHECKING:
    from aether_emu.observe.crash.recorder import Fatal, Recorder
    from aether_emu.observe.strace.tracer import Tracer
    from aether_emu.system import Machine

STDERR = "/dev/stderr"
"""The file of a bare --strace: a stream that is open, neither opened anew nor truncated."""
_STREAMS = {"-": 1, "/dev/stdout": 1, STDERR: 2}
_LOOK_AGAIN = 20  # ms
_REPORTS = 4  # crashes of processes other than the first that are explained


class Unwritten(AetherError):
    """The lines of --strace can no longer be written."""


class Watching:
    """Whoever watches one run. `strace` is a file's name, or None for no lines at all."""

    def __init__(self, strace: Path | None, only: str | None, *, crash_report: bool) -> None:
        """Raises ConfigError for a file that cannot be written, or words that select nothing."""
        self._lines: _Lines | None = None
        self._tracer: Tracer | None = None
        self._recorder: Recorder | None = None
        self._crash_report = crash_report
        self._reports: list[str] = []
        self._unexplained = 0
        if strace is not None or only is not None:
            # All that a run needs is imported before it starts: see `app.settle`.
            from aether_emu.observe.strace import selection, tracer  # noqa: F401  # for `attach`

            everything = selection.EVERYTHING
            self._selection = everything if only is None else selection.select(_words(only))
            self._lines = _Lines(STDERR if strace is None else str(strace))
        if crash_report:
            from aether_emu.observe.crash import recorder  # noqa: F401  # for `attach`

    def attach(self, machine: Machine) -> None:
        """The program is loaded and about to start."""
        if self._lines is not None:
            from aether_emu.observe.strace.tracer import Tracer

            self._lines.interrupted = lambda: machine.cpu.interrupted
            self._tracer = Tracer(machine, self._lines.write, self._selection)
        if self._crash_report:
            from aether_emu.observe.crash.recorder import Recorder

            self._recorder = Recorder(machine, self._crashed)

    def _crashed(self, fatal: Fatal) -> None:
        """A process has crashed: it is explained now, while it has its memory, and told at the end."""
        assert self._recorder is not None, "it tells this"
        is_first = fatal.task.process is self._recorder.machine.process
        if is_first or len(self._reports) < _REPORTS:
            from aether_emu.observe.crash.report import report

            self._reports.append(report(self._recorder, fatal))
        else:
            self._unexplained += 1

    def finish(self) -> None:
        """The run is over, or stopped: the last lines, and the reports on what crashed."""
        if self._tracer is not None and self._lines is not None:
            self._lines.patient = False
            self._tracer.close()
        if self._unexplained:
            more = "1 more process" if self._unexplained == 1 else f"{self._unexplained} more processes"
            self._reports.append(f"{more} crashed\n")
        if self._reports:
            text = "\n".join(self._reports)
            if sys.stderr is not None:  # as when it was closed
                with contextlib.suppress(OSError):  # nobody reads it
                    sys.stderr.write(text)
                    sys.stderr.flush()


def _words(only: str) -> list[str]:
    words = [word.strip() for word in only.split(",")]
    if not all(words):
        raise ConfigError("strace-only", only, "names separated by commas")
    return words


class _Lines:
    """A file that is written to line by line, past every buffer.

    `interrupted` tells whether the run is to end. With `patient` false nothing waits for a reader any more:
    what he does not take is lost.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = _STREAMS.get(name, -1)
        self.patient = True
        self.interrupted: Callable[[], bool] = lambda: False
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            try:
                self._fd = os.open(name, flags, 0o666)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise ConfigError("strace", name, f"a file that can be written ({reason})") from None
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, text: str) -> None:
        """Write a line. Raises Unwritten, and Interrupted if the run is to end while nobody reads."""
        data = text.encode("utf-8", "backslashreplace")
        while data:
            if not self._poll.poll(_LOOK_AGAIN):
                if not self.patient:
                    return
                if self.interrupted():
                    from aether_emu.linux.task.scheduler import Interrupted

                    self.patient = False
                    raise Interrupted
                continue
            try:
                data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]
            except BlockingIOError:  # another writer was quicker
                continue
            except OSError as error:
                name = "stderr" if self._name == STDERR else self._name
                raise Unwritten(f"--strace {name} cannot be written: {error.strerror}") from error
