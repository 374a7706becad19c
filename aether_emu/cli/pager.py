"""Long output at a terminal: through the user's pager.

A pipe or file gets none, and short output is printed as it is: the pager starts when there are more lines
than the terminal has. As with git, PAGER names it (`less` where nobody says), an empty PAGER or `cat` is
none, as is a program that is not there, and LESS is FRX where nobody has set it. While the pager runs, Ctrl-C
is its own; who quits it early has read enough, which is no error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator

_NONE = ("", "cat")
_CLEVER = "less"  # shows colours


class Terminal:
    """What stdout is. `width` is its columns, None for a pipe or file; `colour`: it shows some."""

    def __init__(self, *, pager: bool) -> None:
        """`pager`: whether one may be used."""
        self.width: int | None = None
        self._rows = 0
        self._command = ""
        if os.isatty(1):
            self.width, self._rows = shutil.get_terminal_size()
            if pager and os.environ.get("TERM", "dumb") != "dumb":
                self._command = _pager()
        plain = self.width is None or os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        self.colour = not plain and (not self._command or _CLEVER in self._command)

    def write(self, parts: Iterable[bytes]) -> None:
        """Write text, through the pager if it is long. OSError when a pipe or file does not take it."""
        sys.stdout.flush()
        parts = iter(parts)
        short = b"".join(self._screen(parts)) if self._command else b""
        if short.count(b"\n") < self._rows or not self._command:
            _plain(short)
            for part in parts:
                _plain(part)
        else:
            self._page(short, parts)

    def _screen(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The first parts, until they fill the terminal or end."""
        lines = 0
        for part in parts:
            yield part
            lines += part.count(b"\n")
            if lines >= self._rows:
                return

    def _page(self, first: bytes, parts: Iterator[bytes]) -> None:
        import subprocess

        environment = {**os.environ, "LESS": os.environ.get("LESS", "FRX")}
        with subprocess.Popen(["sh", "-c", self._command], stdin=subprocess.PIPE, env=environment) as pager:
            assert pager.stdin is not None
            # From here on: a pager that were to inherit this could not be interrupted itself.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            with contextlib.suppress(BrokenPipeError):
                pager.stdin.write(first)
                for part in parts:
                    pager.stdin.write(part)
            with contextlib.suppress(BrokenPipeError):
                pager.stdin.close()
            pager.wait()
            signal.signal(signal.SIGINT, before)


def _plain(part: bytes) -> None:
    sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def _pager() -> str:
    """The pager's command line; empty for none, and where the program is not there."""
    import shlex

    command = os.environ.get("PAGER", _CLEVER).strip()
    if command in _NONE:
        return ""
    try:
        words = [word for word in shlex.split(command) if "=" not in word]
    except ValueError:  # an open quote
        return ""
    return command if words and shutil.which(words[0]) else ""
