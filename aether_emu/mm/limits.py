"""What one address space may take: its addresses, and the limits that programs know as resources."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.mm.allocation import LOCKED, Area
from aether_emu.mm.overcommit import NEVER, Overcommit

GUARD_PAGES = 256
"""Pages that stay free below a stack (Linux: stack_guard_gap)."""


class Limits:
    """What an address space may take. All in bytes but `areas`; addresses are half-open; None is no limit.

    `data` bounds private writable memory (RLIMIT_DATA); if it is 0, the hard limit `data_most` does, as in
    Linux. `locked` bounds what may be locked (RLIMIT_MEMLOCK); 0 forbids it. Mappings are placed below
    `window` unless a hint asks for more: programs may use the top bits of pointers that nobody told them
    about (Linux's rule for addresses wider than 47 bits).
    """

    def __init__(
        self,
        *,
        user_base: int,
        user_end: int,
        areas: int,
        stack: int,
        address_space: int | None = None,
        fault_around: int = 16,
        window: int | None = None,
    ) -> None:
        self.user_base, self.user_end, self.areas = user_base, user_end, areas
        self.window = user_end if window is None else window
        self.stack, self.address_space, self.fault_around = stack, address_space, fault_around
        self.data: int | None = None
        self.data_most: int | None = None
        self.locked: int | None = None

    def allowed_data(self) -> int | None:
        """Bytes of private writable memory that may be mapped, None without a limit."""
        return self.data if self.data else self.data_most if self.data == 0 else None

    def capture(self) -> dict[str, int | None]:
        """What programs may change."""
        return {
            name: getattr(self, name) for name in ("stack", "address_space", "data", "data_most", "locked")
        }

    def restore(self, state: dict[str, int | None]) -> None:
        """Take over what `capture` gave."""
        for name, value in state.items():
            setattr(self, name, value)


class Account:
    """What the areas of one address space come to, in bytes, against what its `limits` allow.

    `reserved` are all areas, `data` private writable ones, `locked` those that mlock keeps; `most_reserved`
    is the most that `reserved` has been. `charged` are those that the machine has promised (`overcommit`).
    """

    def __init__(self, limits: Limits, page_size: int, overcommit: Overcommit) -> None:
        self._limits, self._page_size, self._overcommit = limits, page_size, overcommit
        self.reserved = self.data = self.locked = self.most_reserved = self.charged = 0

    def require(self, more: int, *, data: bool = False) -> None:
        """Raise Refused(ENOMEM) unless `more` bytes fit the limits, that of data too if they are `data`.

        As Linux counts, a limit that is not whole pages ends with its last whole one.
        """
        limit = self._limits.address_space
        if limit is not None and self.reserved + more > limit & -self._page_size:
            raise Refused(errno.ENOMEM, f"the address space is limited to {limit} bytes")
        limit = self._limits.allowed_data() if data else None
        if limit is not None and self.data + more > limit & -self._page_size:
            raise Refused(errno.ENOMEM, f"private writable memory is limited to {limit} bytes")

    def require_lockable(self, more: int, flags: int) -> None:
        """Raise Refused(EAGAIN) if `more` bytes with these flags would be locked, and may not."""
        limit = self._limits.locked
        if limit is not None and flags & LOCKED and self.locked + more > limit & -self._page_size:
            raise Refused(errno.EAGAIN, f"locked memory is limited to {limit} bytes")

    def require_promise(self, more: int) -> None:
        """Raise Refused(ENOMEM) if `more` bytes of charged areas may not come."""
        self._overcommit.require(more, self.reserved)

    def require_fork(self) -> None:
        """Raise Refused(ENOMEM) if all of it may not be promised once more: mode 2 alone adds it up."""
        if self._overcommit.mode == NEVER:
            self.require_promise(self.charged)

    def take_over(self, other: Account) -> None:
        """What another account's areas come to, of which none is locked, is what these do."""
        self.reserved = self.most_reserved = other.reserved
        self.data, self.charged = other.data, other.charged
        self._overcommit.committed += self.charged

    def count(self, area: Area, length: int) -> None:
        """`length` bytes like those of `area` came, or went if it is negative."""
        self.reserved += length
        if area.is_data:
            self.data += length
        if area.charged:
            self.charged += length
            self._overcommit.committed += length
        if area.flags & LOCKED:
            self.locked += length
        self.most_reserved = max(self.most_reserved, self.reserved)
