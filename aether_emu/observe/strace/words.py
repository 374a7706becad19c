"""How strace writes numbers, addresses, strings and flags."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

MOST_BYTES = 32
"""How much of a buffer is shown."""
_ESCAPES = {0x09: "\\t", 0x0A: "\\n", 0x0B: "\\v", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\"}


def signed(value: int, bits: int = 64) -> int:
    """The low bits of an argument as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def bare(value: int) -> str:
    """A number in base 16, as C's %#x writes it."""
    return f"{value:#x}" if value else "0"


def address(value: int) -> str:
    """A pointer."""
    return f"{value:#x}" if value else "NULL"


def quoted(data: bytes, *, more: bool = False) -> str:
    """A C string literal; `more` says that it goes on."""
    parts = []
    for byte, after in zip(data, data[1:] + bytes(1), strict=False):
        if byte in _ESCAPES:
            parts.append(_ESCAPES[byte])
        elif 0x20 <= byte < 0x7F:
            parts.append(chr(byte))
        else:  # as short as what follows permits
            parts.append(f"\\{byte:03o}" if 0x30 <= after <= 0x37 else f"\\{byte:o}")
    return f'"{"".join(parts)}"{"..." if more else ""}'


def clipped(data: bytes) -> str:
    """A buffer's beginning."""
    return quoted(data[:MOST_BYTES], more=len(data) > MOST_BYTES)


def hexadecimal(data: bytes) -> str:
    """Bytes that are no text."""
    text = "".join(f"\\x{byte:02x}" for byte in data[:MOST_BYTES])
    return f'"{text}"{"..." if len(data) > MOST_BYTES else ""}'


def error_text(number: int) -> str:
    """What a call answers that was refused with an errno."""
    return f"-1 {errno.errorcode.get(number, f'ERRNO_{number}')} ({os.strerror(number)})"


def listed(items: Iterable[str]) -> str:
    """An array."""
    return f"[{', '.join(items)}]"


class Names:
    """Names of numbers: one of several, or bits. `prefix` is what strace says of one that has none."""

    def __init__(self, text: str, prefix: str, *, zero: str = "0", unknown: str = "_???") -> None:
        """`text` is NAME=VALUE, separated by blanks."""
        pairs = (item.split("=") for item in text.split())
        self._rows = tuple((name, int(value, 0)) for name, value in pairs)
        self._by_value = {value: name for name, value in reversed(self._rows)}
        self._unknown, self._zero = f"{prefix}{unknown}", zero

    def one(self, value: int) -> str:
        """The name of a value, which has 32 bits if it is negative."""
        name = self._by_value.get(value)
        if name is not None:
            return name
        return f"{bare(value if value >= 0 else value & 0xFFFF_FFFF)} /* {self._unknown} */"

    def knows(self, value: int) -> bool:
        """Whether a value has a name."""
        return value in self._by_value

    def bits(self, value: int, *, behind: bool = False) -> str:
        """The names of the bits that are set, in the table's order; what is left as a number.

        `behind` if others stand before them, so that it is plain what they are bits of.
        """
        if not value:
            return self._by_value.get(0, self._zero)
        found, left = [], value
        for name, bits in self._rows:
            if bits and value & bits == bits and left & bits:
                found.append(name)
                left &= ~bits
        if left == value and not behind:
            return f"{value:#x} /* {self._unknown} */"
        return "|".join((*found, f"{left:#x}") if left else found)

    def value(self, name: str) -> int:
        """What a name stands for."""
        return next(value for known, value in self._rows if known == name)
