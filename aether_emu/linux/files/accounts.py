"""What the files of a user may take of the kernel's memory: contents, pipes, watches of epoll sets."""

from __future__ import annotations

import errno
from typing import Protocol

from aether_emu.errors import Refused
from aether_emu.mm.physical import Physical

_PAGE = 4096
DEFAULT_CAPACITY = 16 * _PAGE
"""Bytes that a new pipe holds."""
SMALL_CAPACITY = 2 * _PAGE
"""The same, of a user whose pipes have used up their limit."""


class MemoryAccount(Protocol):
    """What files in memory, open texts and listings hold of the host's memory, in bytes."""

    memory_limit: int
    memory_used: int


class PipeAccount:
    """Bytes that the pipes of a user may hold: `used` of `limit` (Linux fs.pipe-user-pages-soft).

    Beyond the limit a new pipe is small, and none may grow. So only small ones exceed it. `physical` is the
    memory that the kernel's objects for them take, where there is any.
    """

    limit = 16384 * _PAGE

    def __init__(self) -> None:
        self.used = 0
        self.physical: Physical | None = None

    def open(self) -> int:
        """The capacity of a new pipe, in bytes."""
        fits = self.used + DEFAULT_CAPACITY <= self.limit
        capacity = DEFAULT_CAPACITY if fits else SMALL_CAPACITY
        self.used += capacity
        return capacity

    def resize(self, before: int, after: int) -> None:
        """A pipe of `before` bytes is to hold `after`. Refused(EPERM) if it grows beyond the limit."""
        if after > before and self.used + after - before > self.limit:
            raise Refused(errno.EPERM, f"the pipes of a user hold {self.limit} bytes at most")
        self.used += after - before

    def close(self, capacity: int) -> None:
        """A pipe is gone."""
        self.used -= capacity


class WatchAccount:
    """Files that the epoll sets of a user watch: `used` of `limit` (Linux fs.epoll.max_user_watches)."""

    cost = 192
    """Bytes of kernel memory that Linux reckons for one: it gives a twenty-fifth of all memory."""

    def __init__(self, memory: int) -> None:
        self.limit, self.used = memory // 25 // self.cost, 0
        self.entered = 0  # how often one took its place in the queues of its file

    def add(self) -> None:
        """One more. Refused(ENOSPC) beyond the limit."""
        if self.used >= self.limit:
            raise Refused(errno.ENOSPC, f"a user watches {self.limit} files at most")
        self.used += 1

    def drop(self) -> None:
        """One fewer."""
        self.used -= 1
