"""The `aether` command at a terminal of its own, as wide and high as one asks."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cli.command import COMMAND, PATIENCE, environment

# What a login does: the terminal on descriptor 0 becomes the session's, so that Ctrl-C reaches all in front.
_TAKE = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def at_terminal(
    *arguments: str | Path,
    columns: int = 80,
    rows: int = 24,
    typed: Sequence[tuple[bytes, bytes]] = (),
    variables: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Its exit status, and what stood on the terminal. `typed`: what is typed when some text has appeared."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    unwanted = ("COLUMNS", "LINES", "PAGER", "LESS", "NO_COLOR")
    plain = {name: value for name, value in environment().items() if name not in unwanted}
    with subprocess.Popen(
        [sys.executable, "-c", _TAKE, *COMMAND, *map(str, arguments)],
        stdin=side, stdout=side, stderr=side, start_new_session=True,
        env={**plain, "TERM": "xterm", **(variables or {})},
    ) as process:  # fmt: skip
        os.close(side)
        told, waiting = b"", list(typed)
        while part := _read(terminal):
            told += part
            while waiting and waiting[0][0] in told:
                os.write(terminal, waiting.pop(0)[1])
        status = process.wait(PATIENCE)
    os.close(terminal)
    return status, told.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    """What is there next; nothing when the other side is closed."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says so
        return b""
