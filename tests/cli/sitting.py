"""Somebody sits at a terminal: starts `aether`, waits for what appears, types, looks at the modes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cli.command import COMMAND, PATIENCE, environment

# As a shell with job control does: the command is in a group of its own in front. When it stops, that is
# said, and after a line it goes on.
_SHELL = """
import fcntl, os, signal, sys, termios, tty
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    os.tcsetpgrp(0, os.getpid())
    print("stopped by", os.WSTOPSIG(status), flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, child)
    os.kill(child, signal.SIGCONT)
"""


class Sitting:
    """A command at a terminal of its own."""

    def __init__(self, *arguments: str | Path, rows: int = 24, columns: int = 80) -> None:
        self._leader, self._side = pty.openpty()
        self.resize(rows, columns)
        self.modes_before = termios.tcgetattr(self._side)
        self._told = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SHELL, *COMMAND, *map(str, arguments)],
            stdin=self._side, stdout=self._side, stderr=self._side, start_new_session=True,
            env=environment(),
        )  # fmt: skip

    def close(self) -> None:
        """Leave."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._leader)
        os.close(self._side)

    def resize(self, rows: int, columns: int) -> None:
        """Pull at the window."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press them."""
        os.write(self._leader, keys)

    def wait(self, text: bytes) -> bytes:
        """Read until the text appears: what came before it. Fails if the command ends instead."""
        deadline = time.monotonic() + PATIENCE
        while text not in self._told:
            ready, _, _ = select.select([self._leader], [], [], 0.05)
            if ready:
                self._told += os.read(self._leader, 1 << 16)
            else:
                assert time.monotonic() < deadline, f"no {text!r} in {self._told!r}"
                assert self._process.poll() is None or text in self._told, f"no {text!r} in {self._told!r}"
        before, _, self._told = self._told.partition(text)
        return before

    @property
    def modes(self) -> list[object]:
        """The terminal's."""
        return list(termios.tcgetattr(self._side))

    def wait_for_own_modes(self) -> None:
        """Wait until the terminal has others than before the command."""
        deadline = time.monotonic() + PATIENCE
        while self.modes == self.modes_before:
            assert time.monotonic() < deadline, "the terminal keeps its modes"
            self.wait_a_moment()

    def status(self) -> int:
        """How the command ended."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            ready, _, _ = select.select([self._leader], [], [], 0.02)
            if ready:
                self._told += os.read(self._leader, 1 << 16)
            assert time.monotonic() < deadline, f"it does not end: {self._told!r}"
        return self._process.returncode

    def kill(self, number: int) -> None:
        """Send the command a signal, and not its shell."""
        os.kill(os.tcgetpgrp(self._leader), number)

    def wait_a_moment(self) -> None:
        """A tenth of a second, or until something appears."""
        if select.select([self._leader], [], [], 0.1)[0]:
            self._told += os.read(self._leader, 1 << 16)

    def ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None


@contextlib.contextmanager
def sitting(*arguments: str | Path, rows: int = 24, columns: int = 80) -> Iterator[Sitting]:
    """A command at a terminal, whose modes are what they were when it has ended."""
    made = Sitting(*arguments, rows=rows, columns=columns)
    try:
        yield made
        assert made.modes == made.modes_before
    finally:
        made.close()
