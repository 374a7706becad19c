"""How much memory programs were promised, and whether a promise more may be made (overcommit).

Private writable areas are promised when they come, for each page may be written; so is shared memory.
Linux: mm/util.c (`__vm_enough_memory`), admin-guide/sysctl/vm, Documentation/mm/overcommit-accounting.

    mode 0   a single promise is refused that memory and swap together could not keep
    mode 1   none is refused
    mode 2   none may come that lets all promises exceed a limit: swap, and a part of memory
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from aether_emu.errors import Refused

GUESS, ALWAYS, NEVER = range(3)
_MOST_ADMIN, _MOST_USER = 1 << 13, 1 << 17  # KiB that are kept back at most
_PART = 32  # of free memory, of an address space


class Overcommit:
    """The machine's promises: `committed` bytes. `ratio` is in hundredths; `kbytes`, if not 0, goes first.

    `admin_reserve` and `user_reserve` are KiB that mode 2 keeps back: for who has CAP_SYS_ADMIN, which
    `is_admin` tells, and of the memory of each process. `memory` and `swap` are bytes.
    """

    def __init__(self, memory: int, swap: Callable[[], int]) -> None:
        self.memory, self._swap = memory, swap
        self.committed, self.mode, self.ratio, self.kbytes = 0, GUESS, 50, 0
        free = memory >> 10
        self.admin_reserve = min(free // _PART, _MOST_ADMIN)
        self.user_reserve = min(free // _PART, _MOST_USER)
        self.is_admin: Callable[[], bool] = lambda: True

    @property
    def limit(self) -> int:
        """Bytes that may be promised in mode 2."""
        part = self.kbytes << 10 if self.kbytes else self.memory * self.ratio // 100
        return part + self._swap()

    def require(self, more: int, reserved: int) -> None:
        """Raise Refused(ENOMEM) if `more` bytes may not be promised to a process of `reserved` bytes."""
        if self.mode == ALWAYS or more <= 0:
            return
        if self.mode == GUESS:
            if more > self.memory + self._swap():
                raise Refused(errno.ENOMEM, "more than all memory")
            return
        allowed = self.limit - (0 if self.is_admin() else self.admin_reserve << 10)
        allowed -= min(reserved // _PART, self.user_reserve << 10)
        if self.committed + more >= allowed:
            raise Refused(errno.ENOMEM, f"{self.committed} bytes are promised of at most {allowed}")

    def capture(self) -> dict[str, int]:
        """What was set; what is promised follows from the areas."""
        names = ("mode", "ratio", "kbytes", "admin_reserve", "user_reserve")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, int]) -> None:
        """Have it set so."""
        for name, value in state.items():
            setattr(self, name, value)
