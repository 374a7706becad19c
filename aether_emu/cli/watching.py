"""What `aether run` writes of a run as it happens (--strace), and of a crash (unless --no-crash-report)."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aether_emu.errors import AetherError, ConfigError

if TYPE_CHECKING:
    from aether_emu.observe.crash.recorder import Recorder
    from aether_emu.observe.strace.tracer import Tracer
    from aether_emu.system import Machine

STDERR = "-"
"""The file of --strace that stands for stderr."""


class Unwritten(AetherError):
    """The lines of --strace can no longer be written."""


class Watching:
    """Whoever watches one run. `strace` is a file's name, or None for no lines at all."""

    def __init__(self, strace: str | None, only: str | None, *, crash_report: bool) -> None:
        """Raises ConfigError for a file that cannot be written, or words that select nothing."""
        self._lines: _Lines | None = None
        self._tracer: Tracer | None = None
        self._recorder: Recorder | None = None
        self._crash_report = crash_report
        if strace is not None or only is not None:
            # All that a run needs is imported before it starts: see `app.settle`.
            from aether_emu.observe.strace import selection, tracer  # noqa: F401

            everything = selection.EVERYTHING
            self._selection = everything if only is None else selection.select(_words(only))
            self._lines = _Lines(strace or STDERR)
        if crash_report:
            from aether_emu.observe.crash import recorder  # noqa: F401

    def attach(self, machine: Machine) -> None:
        """The program is loaded and about to start."""
        if self._lines is not None:
            from aether_emu.observe.strace.tracer import Tracer

            self._tracer = Tracer(machine, self._lines.write, self._selection)
        if self._crash_report:
            from aether_emu.observe.crash.recorder import Recorder

            self._recorder = Recorder(machine)

    def finish(self) -> None:
        """The run is over, or stopped: the last lines, and the report if it crashed."""
        if self._tracer is not None:
            self._tracer.close()
        if self._recorder is not None and self._recorder.fatal is not None:
            from aether_emu.observe.crash.report import report

            text = report(self._recorder)
            with contextlib.suppress(OSError):  # nobody reads it
                sys.stderr.write(text)
                sys.stderr.flush()


def _words(only: str) -> list[str]:
    words = [word.strip() for word in only.split(",")]
    if not all(words):
        raise ConfigError("strace-only", only, "names separated by commas")
    return words


class _Lines:
    """A file that is written to line by line, past every buffer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = 2
        if name != STDERR:
            try:
                self._fd = os.open(
                    Path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666
                )
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise ConfigError("strace", name, f"a file that can be written ({reason})") from None

    def write(self, text: str) -> None:
        """Write a line. Raises Unwritten."""
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody has made the terminal or pipe so
                select.select([], [self._fd], [])
            except OSError as error:
                name = "stderr" if self._name == STDERR else self._name
                raise Unwritten(f"--strace {name}: {error.strerror}") from error
