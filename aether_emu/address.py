"""Addresses that cannot be mistaken for each other, and ranges of them.

Each address space has its own type: `VirtAddr` (what a program uses), `PhysAddr` (the machine's),
`GuestPhysAddr` (what a virtual machine takes for physical) and `RemoteAddr` (another node's memory). A
constructor refuses what is not an address of its kind, another kind's address included; one that
repairs instead says so in its name. `int(address)` is the way from one kind to another.

All are ints: they hash, compare, index and format (`f"{address:#x}"`) like numbers. Arithmetic is strict:
address + int is a validated address of that kind, address - address is an int, and kinds do not mix.
Bit operations give plain ints. Inner loops use plain ints; these types are for what crosses a module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index
from typing import Generic, Self, TypeVar, overload

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

    def _distance_from(self, other: Self) -> int:
        return int(self) - int(other)

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
            return self._distance_from(other)
        if isinstance(other, _Address):
            raise TypeError(f"cannot subtract {type(other).__name__} from {type(self).__name__}")
        return self._moved(-index(other))

    def __rsub__(self, other: int, /) -> int:
        raise TypeError(f"cannot subtract {type(self).__name__} from {type(other).__name__}")

    def page_offset(self, page_size: int = 4096) -> int:
        """Bytes from the beginning of the page. `page_size` is a power of two, as are all alignments here."""
        return int(self) & (_power_of_two(page_size) - 1)

    def is_aligned(self, alignment: int) -> bool:
        """Whether `alignment`, a power of two, divides the address."""
        return self.page_offset(alignment) == 0

    def align_down(self, alignment: int) -> Self:
        """The last multiple of `alignment` (a power of two) that is not above the address."""
        return self._moved(-self.page_offset(alignment))

    def align_up(self, alignment: int) -> Self:
        """The first multiple of `alignment` (a power of two) that is not below. May raise AddressError."""
        return self._moved(-int(self) & (_power_of_two(alignment) - 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __str__(self) -> str:
        return f"{int(self):#x}"


class VirtAddr(_Address):
    """A virtual address: 64 bits of which those from bit `bits - 1` up are all equal (canonical).

    `bits` is 48 on x86_64 with four levels and 57 with five (Intel SDM 1 3.3.7.1). On ARM64 each half
    of the address space has its own table, so a size of 48 bits (T0SZ = T1SZ = 16) is `bits=49` here.
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

    def _moved(self, distance: int) -> Self:
        return type(self)(int(self) + distance, self.bits)

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int promises one argument
        return int(self), self.bits

    def __repr__(self) -> str:
        width = "" if self.bits == VIRT_BITS else f", bits={self.bits}"
        return f"{type(self).__name__}({int(self):#x}{width})"


class _PhysicalAddress(_Address):
    """A number of up to `PHYS_BITS` bits. A processor may have fewer; that is for its codec to refuse."""

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


class PhysAddr(_PhysicalAddress):
    """A physical address of the machine, at most 52 bits. Raises AddressError beyond."""

    __slots__ = ()


class GuestPhysAddr(_PhysicalAddress):
    """What a virtual machine takes for a physical address, at most 52 bits: what stage 2 (EPT, NPT) maps."""

    __slots__ = ()


class RemoteAddr(_Address):
    """An address in the memory of another node: `node` from 0 to 4095, `addr` of at most 52 bits.

    As a number it is the node above the address, so it fits in 64 bits and its alignment is that of
    `addr`. Arithmetic stays on the node. Raises AddressError if either part is out of range.
    """

    __slots__ = ()

    def __new__(cls, node: int, addr: int) -> Self:
        number = _plain(node, cls)
        offset = _plain(addr, cls)
        if number >> (64 - PHYS_BITS):
            raise AddressError(f"node of a {cls.__name__}", number, f"not within {64 - PHYS_BITS} bits")
        if offset >> PHYS_BITS:
            raise AddressError(cls.__name__, offset, f"not within {PHYS_BITS} bits")
        return super().__new__(cls, number << PHYS_BITS | offset)

    @property
    def node(self) -> int:
        """Number of the node whose memory it is."""
        return int(self) >> PHYS_BITS

    @property
    def addr(self) -> int:
        """Address in that node's memory."""
        return int(self) & ((1 << PHYS_BITS) - 1)

    def _moved(self, distance: int) -> Self:
        return type(self)(self.node, self.addr + distance)

    def _distance_from(self, other: Self) -> int:
        if other.node != self.node:
            raise AddressError(f"address on node {self.node}", other, f"it is on node {other.node}")
        return super()._distance_from(other)

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int promises one argument
        return self.node, self.addr

    def __repr__(self) -> str:
        return f"{type(self).__name__}(node={self.node}, addr={self.addr:#x})"


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


def _power_of_two(alignment: int) -> int:
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment} is not a power of two")
    return alignment


A = TypeVar("A", bound=_Address)


@dataclass(frozen=True, init=False)
class _Range(ABC, Generic[A]):
    """`length` bytes from `start` on: half-open, possibly empty, the address of every byte valid.

    Raises AddressError if some byte would have no address, TypeError if `start` is of another kind,
    and ValueError if `length` is negative.
    """

    start: A
    length: int

    def __init__(self, start: int, length: int) -> None:
        first = self._address(start)
        if length < 0:
            raise ValueError(f"a {type(self).__name__} cannot have {length} bytes")
        last = first + max(length - 1, 0)
        if last >> 63 != first >> 63:  # canonical virtual addresses are two runs with a hole between them
            raise AddressError(
                type(last).__name__, last, f"not in the same half as {first}, where the range starts"
            )
        object.__setattr__(self, "start", first)
        object.__setattr__(self, "length", length)

    @staticmethod
    @abstractmethod
    def _address(value: int) -> A:
        """`value` as an address of the range's kind."""

    @classmethod
    def between(cls, start: int, end: int) -> Self:
        """The range from `start` up to, and without, `end`, which need not be an address itself."""
        first = cls._address(start)
        return cls(first, _plain(end, type(first)) - int(first))

    @property
    def end(self) -> int:
        """One past the last byte. A plain int, because it may be no address (where the lower half ends)."""
        return int(self.start) + self.length

    def contains(self, what: int | Self) -> bool:
        """Whether the address, or every byte of the range, lies in here. TypeError on another kind."""
        kind = type(self.start)
        if isinstance(what, _Range):
            return self.start <= _plain(what.start, kind) and what.end <= self.end
        return self.start <= _plain(what, kind) < self.end

    __contains__ = contains

    def overlaps(self, other: Self) -> bool:
        """Whether some byte lies in both: an empty range overlaps nothing. TypeError on another kind."""
        return self.intersection(other) is not None

    def intersection(self, other: Self) -> Self | None:
        """The bytes that lie in both, or None if there are none. TypeError on another kind."""
        start = max(int(self.start), _plain(other.start, type(self.start)))
        end = min(self.end, other.end)
        return type(self)(self.start + (start - int(self.start)), end - start) if start < end else None

    def pages(self, page_size: int = 4096) -> Iterator[A]:
        """Address of each page that holds a byte of the range, in order. The first may begin before it."""
        if self.length:
            first = self.start.align_down(page_size)
            for distance in range(0, self.end - int(first), page_size):
                yield first + distance

    def split(self, at: int) -> tuple[Self, Self]:
        """The bytes before `at`, maybe none, and those from it on. ValueError unless `at` is in the range."""
        if at not in self:
            raise ValueError(f"{at:#x} is not in {self}")
        before = int(at) - int(self.start)
        return type(self)(self.start, before), type(self)(self.start + before, self.length - before)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self.start):#x}, {self.length:#x})"

    def __str__(self) -> str:
        return f"{int(self.start):#x}-{self.end:#x}"


class VirtRange(_Range[VirtAddr]):
    """A range of virtual addresses. Unless they have 48 bits, `start` is a VirtAddr that knows its width."""

    @staticmethod
    def _address(value: int) -> VirtAddr:
        return value if isinstance(value, VirtAddr) else VirtAddr(value)


class PhysRange(_Range[PhysAddr]):
    """A range of physical addresses of the machine."""

    @staticmethod
    def _address(value: int) -> PhysAddr:
        return PhysAddr(value)
