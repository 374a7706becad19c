"""Physical memory as others saved it: raw, an ELF core, LiME. Read where it lies, never copied.

A raw image is one range from `base` on. An ELF core (QEMU's dump-guest-memory, makedumpfile -E,
/proc/vmcore, `aether run --core`) has a PT_LOAD for each range, at p_paddr; what lies between
p_filesz and p_memsz exists but was not saved. LiME has a header of 32 bytes in front of each range.
Where ranges overlap, the one that starts first counts.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np

from aether_emu.errors import AetherError
from aether_emu.verify.tables.notes import Registers, registers_of

Words = np.ndarray[Any, np.dtype[np.uint64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Ranges = np.ndarray[Any, np.dtype[np.uint64]]
"""One row a range: physical start, bytes saved, bytes that exist, offset in the file."""

_LIME_MAGIC, _LIME_HEADER = 0x4C694D45, 32
_ELF_HEADER, _MANY = 64, 0xFFFF  # PN_XNUM: the number of program headers is in section 0
_CORE, _LOAD, _NOTE = 4, 1, 4
_MACHINES = {62: "x86_64", 183: "arm64"}
_NOWHERE = (1 << 64) - 1
_SEGMENT = np.dtype(
    [("type", "<u4"), ("flags", "<u4"), ("offset", "<u8"), ("vaddr", "<u8"), ("paddr", "<u8"),
     ("filesz", "<u8"), ("memsz", "<u8"), ("align", "<u8")]
)  # fmt: skip
_FOREIGN = {
    b"KDUMP   ": "a compressed kdump (makedumpfile -E writes an ELF core)",
    b"DISKDUMP": "a compressed diskdump (makedumpfile -E writes an ELF core)",
    b"makedump": "a flattened makedumpfile (makedumpfile -R rearranges it)",
    b"AVML": "a compressed AVML image (avml-convert writes LiME)",
    b"PAGEDU64": "a Windows crash dump",
    b"QEVM": "a saved state of QEMU (dump-guest-memory writes an ELF core)",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
}


class ImageError(AetherError):
    """A file is no memory image that can be read. Names the file and what is wrong with it."""

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why
        super().__init__(f"{name}: {why}")


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the headers of a file say."""

    kind: str
    rows: Ranges
    registers: Registers


class Image:
    """Physical memory. `kind` is "raw memory", "ELF core" or "LiME dump"; `registers` what the file tells."""

    def __init__(
        self, name: str, data: memoryview, kind: str, rows: Ranges, registers: Registers | None = None
    ) -> None:
        """`data` is the whole file, `rows` its ranges. ImageError when one does not lie in the file."""
        self.name, self.kind = name, kind
        self.registers = Registers() if registers is None else registers
        rows = rows[rows[:, 2] > 0]
        if not len(rows):
            raise ImageError(name, f"the {kind} has no memory in it")
        start, saved, exists, offset = rows.T
        if ((offset + saved < offset) | (offset + saved > len(data))).any():
            raise ImageError(name, f"truncated: it has {len(data)} bytes, its headers tell of more")
        if (start + exists < start).any():
            raise ImageError(name, "a range of memory passes the end of the address space")
        self._saved = _disjoint(start, start + saved, offset)
        self._exists = _disjoint(start, start + exists, offset)
        # Word at physical a lies at byte a + delta of the file; a view for each phase of that modulo 8.
        self._delta = self._saved[2] - self._saved[0]
        self._phases: dict[int, Words] = {}
        for phase in np.unique(self._delta & np.uint64(7)).tolist():
            count = max(len(data) - phase, 0) // 8
            self._phases[phase] = np.frombuffer(data, "<u8", count, phase if count else 0)

    @property
    def phrase(self) -> str:
        """What the file is, in a sentence."""
        return {"raw memory": self.kind, "ELF core": f"an {self.kind}"}.get(self.kind, f"a {self.kind}")

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Physical (start, end) of the memory that exists, ascending."""
        return list(zip(self._exists[0].tolist(), self._exists[1].tolist(), strict=True))

    def read(self, addresses: Words) -> tuple[Words, Bits]:
        """The words at physical addresses (multiples of 8), and which the image holds; others are 0."""
        starts, ends, _offset = self._saved
        which = np.searchsorted(starts, addresses, "right").astype(np.int64) - 1
        inside = np.maximum(which, 0)
        # Compared without adding to the address, which may be the last of all.
        backed = (which >= 0) & (addresses < ends[inside]) & (ends[inside] - addresses >= np.uint64(8))
        words = np.zeros(addresses.shape, np.uint64)
        at = addresses + self._delta[inside]
        for phase, view in self._phases.items():
            here = backed if len(self._phases) == 1 else backed & (at & np.uint64(7) == phase)
            words[here] = view[at[here] >> np.uint64(3)]
        return words, backed

    def tables(self, bases: Words, entries: int) -> tuple[Words, Bits]:
        """The `entries` words from each address on, one row a table, and which of them the image holds."""
        starts, ends, _offset = self._saved
        inside = np.maximum(np.searchsorted(starts, bases, "right").astype(np.int64) - 1, 0)
        room = np.where(bases < ends[inside], ends[inside] - bases, np.uint64(0))
        whole = (starts[inside] <= bases) & (room >= np.uint64(8 * entries))
        columns = np.arange(entries, dtype=np.uint64)
        if whole.all() and len(self._phases) == 1:
            (view,) = self._phases.values()
            first = bases + self._delta[inside] >> np.uint64(3)
            return view[first[:, None] + columns], np.ones((bases.size, entries), bool)
        return self.read(bases[:, None] + (columns << np.uint64(3)))

    def touches(self, starts: Words, size: int) -> Bits:
        """Whether the image holds any byte of each range of `size` bytes."""
        sizes = np.full(starts.shape, size, np.uint64)
        return np.asarray(_bytes_within(self._saved, starts, sizes) != 0)

    def existing(self, starts: Words, sizes: Words) -> Words:
        """How many bytes of each physical range are memory that exists, saved or not."""
        return _bytes_within(self._exists, starts, sizes)


def image_of(data: bytes | bytearray | memoryview | Words, base: int = 0, name: str = "memory") -> Image:
    """Memory that is in this process already, from physical `base` on. It is not copied."""
    view = np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)
    view = view.cast("B")
    return Image(name, view, "raw memory", _rows([(base, len(view), len(view), 0)]))


def _at_once(path: str, flags: int) -> int:
    """An opener that does not wait for the other end of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def open_image(path: str | os.PathLike[str], base: int | None = None) -> Image:
    """Open a file of any of the kinds. `base` makes it a raw one, from that physical address on.

    Raises ImageError for what cannot be read or is none of them.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(name, "is not a regular file")
            if not os.fstat(file.fileno()).st_size:
                raise ImageError(name, "is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ImageError(name, getattr(error, "strerror", None) or str(error)) from None
    layout = _raw(name, data, base) if base is not None else _sniff(name, data)
    return Image(name, data, layout.kind, layout.rows, layout.registers)


def _sniff(name: str, data: memoryview) -> _Layout:
    head = bytes(data[:8])
    if head[:4] == b"\x7fELF":
        return _elf(name, data)
    if head[:4] == _LIME_MAGIC.to_bytes(4, "little"):
        return _lime(name, data)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise ImageError(name, f"is {what}")
    return _raw(name, data, 0)


def _raw(name: str, data: memoryview, base: int) -> _Layout:
    if base % 8 or not 0 <= base <= _NOWHERE - len(data):
        raise ImageError(name, f"no memory of {len(data)} bytes can begin at {base:#x}")
    return _Layout("raw memory", _rows([(base, len(data), len(data), 0)]), Registers())


def _lime(name: str, data: memoryview) -> _Layout:
    rows, at = [], 0
    while at < len(data):
        if len(data) - at < _LIME_HEADER:
            raise ImageError(name, f"truncated: half a LiME header at offset {at:#x}")
        header = np.frombuffer(data, "<u4", 2, at).tolist()
        first, last = np.frombuffer(data, "<u8", 2, at + 8).tolist()
        if header != [_LIME_MAGIC, 1] or last < first:
            raise ImageError(name, f"no LiME header of version 1 at offset {at:#x}")
        size = last - first + 1
        rows.append((first, size & _NOWHERE, size & _NOWHERE, at + _LIME_HEADER))
        at += _LIME_HEADER + size
    return _Layout("LiME dump", _rows(rows), Registers())


def _elf(name: str, data: memoryview) -> _Layout:
    if len(data) < _ELF_HEADER:
        raise ImageError(name, "truncated: half an ELF header")
    if data[4] != 2 or data[5] != 1:
        raise ImageError(name, "is an ELF file, but not a 64-bit little-endian one")
    kind, machine = np.frombuffer(data, "<u2", 2, 16).tolist()
    if kind != _CORE:
        raise ImageError(name, "is an ELF file, but not a core")
    if machine not in _MACHINES:
        raise ImageError(name, f"is a core of another machine (e_machine {machine})")
    at, sections = np.frombuffer(data, "<u8", 2, 32).tolist()
    size, count = np.frombuffer(data, "<u2", 2, 54).tolist()
    if count == _MANY:
        if sections + 64 > len(data):
            raise ImageError(name, "truncated: its number of program headers is missing")
        count = int(np.frombuffer(data, "<u4", 1, sections + 44)[0])
    if size != _SEGMENT.itemsize or at + count * size > len(data):
        raise ImageError(name, "truncated: its program headers are not in it")
    headers = np.frombuffer(data, _SEGMENT, count, at)
    loads = headers[(headers["type"] == _LOAD) & (headers["paddr"] != _NOWHERE) & (headers["memsz"] > 0)]
    if len(loads) > 1 and not loads["paddr"].any():
        raise ImageError(name, "is the core of a process: it has no physical addresses")
    rows = np.stack([loads["paddr"], loads["filesz"], loads["memsz"], loads["offset"]], axis=1)
    rows = rows.astype(np.uint64).reshape(-1, 4)
    rows[:, 1] = np.minimum(rows[:, 1], rows[:, 2])
    notes = []
    for header in headers[headers["type"] == _NOTE]:
        offset, length = int(header["offset"]), int(header["filesz"])
        if offset + length > len(data):
            raise ImageError(name, "truncated: its notes are not in it")
        notes.append(data[offset : offset + length])
    return _Layout("ELF core", rows, registers_of(_MACHINES[machine], notes))


def _rows(rows: list[tuple[int, int, int, int]]) -> Ranges:
    return np.array(rows, np.uint64).reshape(-1, 4)


def _disjoint(starts: Words, ends: Words, offsets: Words) -> tuple[Words, Words, Words]:
    """The ranges by start; the part of one that an earlier one covers, and empty ones, are left out."""
    order = np.argsort(starts, kind="stable")
    starts, ends, offsets = starts[order], ends[order], offsets[order]
    covered: Words = np.zeros_like(ends)
    covered[1:] = np.maximum.accumulate(ends[:-1])
    first = np.maximum(starts, covered)
    offsets = (offsets + (first - starts)).astype(np.uint64)
    kept = first < ends
    if not kept.any():
        kept[:1] = True  # nothing was saved: one empty range, so that lookups have something to find
    return first[kept], ends[kept], offsets[kept]


def _bytes_within(ranges: tuple[Words, Words, Words], starts: Words, sizes: Words) -> Words:
    """How many bytes of each [start, start + size) lie in disjoint ascending ranges."""
    lows, highs, _offset = ranges
    before = np.concatenate([[0], np.cumsum(highs - lows)]).astype(np.uint64)

    def below(addresses: Words) -> Words:
        which = np.searchsorted(lows, addresses, "right").astype(np.int64) - 1
        inside = np.maximum(which, 0)
        part = np.minimum(addresses, highs[inside]) - lows[inside]
        return np.where(which >= 0, before[inside] + part, np.uint64(0))

    return below(starts + sizes) - below(starts)
