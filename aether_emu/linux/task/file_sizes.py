"""RLIMIT_FSIZE: how large a file may become by what a process does (setrlimit(2); Linux 6.6 fs/read_write.c).

A write that begins behind the limit, and a change of the size to more than it, is EFBIG and SIGXFSZ for the
thread; a write that reaches it is short. Stores to mappings are not limited.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NoReturn, Protocol

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.credentials import Credentials

RLIMIT_FSIZE = 1


class _Signals(Protocol):
    def post(self, info: SignalInfo) -> object: ...


class _Process(Protocol):
    @property
    def pid(self) -> int: ...
    @property
    def limits(self) -> dict[int, tuple[int, int]]: ...


class Writer(Protocol):
    """A task, as far as this asks it."""

    @property
    def process(self) -> _Process: ...
    @property
    def signals(self) -> _Signals: ...
    @property
    def credentials(self) -> Credentials: ...


class FileSizes:
    """The limit of whoever makes the call that is served: `current` is that task. Sizes are in bytes."""

    def __init__(self, current: Callable[[], Writer]) -> None:
        self._current = current

    def admitted(self, offset: int, count: int) -> int:
        """How many bytes of a write of `count` there may be. Refused(EFBIG)."""
        most = self._most()
        if offset >= most:
            self._refuse(offset)
        return min(count, most - offset)

    def require(self, old: int, new: int) -> None:
        """Refused(EFBIG) for a size that is larger than before, and than the limit."""
        if new > old and new > self._most():
            self._refuse(new)

    def _most(self) -> int:
        return self._current().process.limits[RLIMIT_FSIZE][0]

    def _refuse(self, size: int) -> NoReturn:
        task = self._current()
        task.signals.post(
            SignalInfo(sig.SIGXFSZ, sig.SI_USER, pid=task.process.pid, uid=task.credentials.uid)
        )
        raise Refused(errno.EFBIG, f"RLIMIT_FSIZE admits no file of {size} bytes")
