"""Processes of our own that work for a command, each a new Python, since engines do not fork.

A worker stands outside the terminal's foreground, so that Ctrl-C is the parent's alone. It ends when the
parent closes the connection, and with the first thing it says to a parent that has gone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

_CODE = "import sys; from aether_emu.workers import work; work(*sys.argv[1:])"
W = TypeVar("W", bound="Worker")
Heard = Callable[[int], None]


class Worker:
    """A process that calls `target`, a function of a module, with its end of a connection.

    `started` and `ended` hear its process ID.
    """

    def __init__(self, target: Callable[[Connection], None], started: Heard, ended: Heard) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection, self._ended = Connection(ours.detach()), ended
            paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno()), target.__module__, target.__name__],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,
            )
        started(self.process.pid)

    def say(self, what: Any) -> None:
        """Send it. Of one that has died the next `hear` tells."""
        with contextlib.suppress(OSError):
            self._connection.send(what)

    def hear(self) -> Any:
        """What it says next. Raises EOFError or OSError when it has died."""
        return self._connection.recv()

    def bury(self) -> int:
        """Wait for its end. Its status, minus a signal's number when that has killed it."""
        status = self.process.wait()
        self._connection.close()
        self._ended(self.process.pid)
        return status

    @staticmethod
    def talking(workers: Iterable[W], seconds: float | None = None) -> list[W]:
        """Those that say something, or have died, as soon as one does; none after so long."""
        known: dict[Any, W] = {each._connection: each for each in workers}
        return [known[connection] for connection in wait(known, seconds)]

    @staticmethod
    def end(workers: list[W]) -> None:
        """End all of these, so that none is left."""
        for each in workers:
            each.process.kill()
        while workers:
            workers.pop().bury()


def work(fd: str, module: str, name: str) -> None:
    """The worker's side: let that function talk by descriptor `fd`, until the parent has gone."""
    with contextlib.suppress(EOFError, OSError):
        getattr(importlib.import_module(module), name)(Connection(int(fd)))
