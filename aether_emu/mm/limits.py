"""What one address space may take: its addresses, and the limits that programs know as resources."""

from __future__ import annotations


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
