"""Addresses that cannot be mistaken for each other.

`VirtAddr` is what a program uses, `PhysAddr` the machine's. A constructor refuses what is not an address of
its kind, another kind's address included; one that repairs instead says so in its name. `int(address)` is
the way from one kind to another.

Both are ints: they hash, compare, index and format (`f"{address:#x}"`) like numbers, so what takes an address
takes a plain int too. Arithmetic is strict: address + int is a validated address of that kind, address -
address is an int, and kinds do not mix. Bit operations give plain ints. Inner loops use plain ints; these
types are for results and errors that somebody outside the module reads.
"""

from __future__ import annotations

from operator import index
from typing import Self, overload

from aether_emu.errors import AddressError

PHYS_BITS = 52
"""Widest physical address of either ISA (Intel SDM 3A 4.1.4, MAXPHYADDR; Arm ARM D8.1, FEAT_LPA)."""

VIRT_BITS = 48
"""Bits of a canonical x86_64 address under four levels of tables (five levels, LA57: 57)."""


class _Address(int):
    """The arithmetic that all kinds share. A kind adds its validation and what else it knows."""

    __slots__ = ()

    def _moved(self, distance: int) -> Self:
        """The address `distance` bytes further on, validated as the constructor does."""
        return type(self)(int(self) + distance)

    def __add__(self, distance: int, /) -> Self:
        if isinstance(distance, _Address):
            raise TypeError(f"cannot add {type(distance).__name__} to {type(self).__name__}")
        return self._moved(index(distance))

    def __radd__(self, distance: int, /) -> Self:
        return self + distance

    # An address is an int to the type checker too, so the second signature seems to cover the first.
    @overload
    def __sub__(self, other: Self, /) -> int: ...  # type: ignore[overload-overlap]  # see above
    @overload
    def __sub__(self, other: int, /) -> Self: ...
    def __sub__(self, other: int, /) -> int:
        if isinstance(other, type(self)):
            return int(self) - int(other)
        if isinstance(other, _Address):
            raise TypeError(f"cannot subtract {type(other).__name__} from {type(self).__name__}")
        return self._moved(-index(other))

    def __rsub__(self, other: int, /) -> int:
        raise TypeError(f"cannot subtract {type(self).__name__} from {type(other).__name__}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __str__(self) -> str:
        return f"{int(self):#x}"


class VirtAddr(_Address):
    """A virtual address: 64 bits of which those from bit `bits - 1` up are all equal (canonical).

    `bits` is 48 on x86_64 with four levels and 57 with five (Intel SDM 1 3.3.7.1). On ARM64 each half
    of the address space has its own table, so a size of 48 bits (T0SZ = T1SZ = 16) is `bits=49` here.
    With `bits=64` every number of 64 bits is one: for what a table is asked, whether or not it translates it.
    Arithmetic keeps `bits`. Raises AddressError if the value is not canonical.
    """

    # An int cannot have slots with values: a width other than the class's costs a dict.
    bits: int = VIRT_BITS

    def __new__(cls, value: int, bits: int = VIRT_BITS) -> Self:
        number = _plain(value, cls)
        if number != _sign_extended(number, bits):
            raise AddressError(cls.__name__, number, f"bits 63 to {bits - 1} must be equal")
        address = super().__new__(cls, number)
        if bits != cls.bits:
            address.bits = bits
        return address

    @classmethod
    def new_truncate(cls, value: int, bits: int = VIRT_BITS) -> Self:
        """The address with the low `bits` bits of `value`, sign-extended; the others are ignored."""
        return cls(_sign_extended(_plain(value, cls), bits), bits)

    @classmethod
    def of_word(cls, word: int) -> Self:
        """`VirtAddr(word, 64)` of a plain number of 64 bits, which nobody looks at: for each page of many."""
        address = int.__new__(cls, word)
        address.bits = 64
        return address

    def _moved(self, distance: int) -> Self:
        return type(self)(int(self) + distance, self.bits)

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int promises one argument
        return int(self), self.bits

    def __repr__(self) -> str:
        width = "" if self.bits == VIRT_BITS else f", bits={self.bits}"
        return f"{type(self).__name__}({int(self):#x}{width})"


class PhysAddr(_Address):
    """A physical address of the machine: a number of at most `PHYS_BITS` bits. Raises AddressError beyond.

    A processor may have fewer bits; that is for its table format to refuse.
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        number = _plain(value, cls)
        if number >> PHYS_BITS:
            raise AddressError(cls.__name__, number, f"not within {PHYS_BITS} bits")
        return super().__new__(cls, number)

    @classmethod
    def new_truncate(cls, value: int) -> Self:
        """The address with the low `PHYS_BITS` bits of `value`; the others are ignored."""
        return cls(_plain(value, cls) & ((1 << PHYS_BITS) - 1))


def _plain(value: int, kind: type[_Address]) -> int:
    """`value` as a plain int. TypeError if it is an address of another kind, or no whole number at all."""
    if isinstance(value, _Address) and not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} is no {kind.__name__}; int() converts on purpose")
    return int(index(value))


def _sign_extended(value: int, bits: int) -> int:
    """The low `bits` bits of `value`, the highest of them repeated up to bit 63."""
    if not 2 <= bits <= 64:
        raise ValueError(f"a virtual address has 2 to 64 bits, not {bits}")
    sign = 1 << (bits - 1)
    return (((value & (2 * sign - 1)) ^ sign) - sign) % (1 << 64)
