"""The memory of any address space, read and written through its tables, whether or not a CPU runs in it.

The running CPU copies to and from the space that it runs in by its own MMU (`Cpu.copy_from_user`), which is
faster. Here Python does what that MMU does: it looks at the entry, brings a fault where the entry does not
permit the access, and notes the access in the entry where the format's hardware would. Bytes of RAM are
touched in place, those of files by pread and pwrite, because a host page behind the aperture can vanish, and
those behind a file's end, in its last page, by the host kernel's own copying.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import Access
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.allocation import Area
from aether_emu.mm.fault import RESOLVED, Blocked, Faults, Outcome
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.protection import is_clean
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import has_frame

_READ, _WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
_TRIES = 4  # a page may be absent, then read-only, then not noted as accessed; more means no progress


class _Piece(NamedTuple):
    """Bytes within one page: in frame `frame`, from `offset` on."""

    va: int
    frame: int
    offset: int
    length: int


class UserFaulted(UserFault):
    """An address cannot be accessed; `outcome` is what its fault ended in."""

    def __init__(self, va: int, outcome: Outcome | None) -> None:
        super().__init__(f"{va:#x} cannot be accessed")
        self.va, self.outcome = VirtAddr.new_truncate(va, 64), outcome


class UserMemory:
    """What a program of `space` could load and store, at user privilege.

    Every call raises UserFaulted at the first page that the program could not access so; what came before it
    is done. NotReady likewise, at a page that is on its way.
    """

    def __init__(self, space: AddressSpace) -> None:
        self._space = space
        self._faults = Faults(space.physical)
        self._ram = space.physical.ram.size >> space.table.format.page_shift

    def read(self, va: int, length: int) -> bytes:
        """`length` bytes from `va` on."""
        return b"".join(self._load(piece) for piece in self._pieces(va, length, _READ))

    def write(self, va: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `va`."""
        view, done = memoryview(data), 0
        for piece in self._pieces(va, len(view), _WRITE):
            self._store(piece, view[done : done + piece.length])
            done += piece.length

    def equals(self, va: int, data: bytes) -> bool:
        """Whether `data` stands at `va`."""
        return self.read(va, len(data)) == data

    def frame_of(self, va: int, access: int) -> int:
        """The frame of the page at `va`, brought for an access of these bits: for whoever pins it."""
        return self._frame(va, access)

    # ---- one page after the other

    def _require_memory(self, piece: _Piece) -> None:
        """Registers of a device are no bytes: whoever is not the program itself reaches none of them."""
        physical = self._space.physical
        if physical.frames.kind[piece.frame] == Kind.RESERVED and not piece.frame < self._ram:
            raise UserFaulted(piece.va, None)

    def _pieces(self, va: int, length: int, access: int) -> Iterator[_Piece]:
        end, size = va + length, self._space.page_size
        if end > 1 << 64:
            raise UserFaulted(va, None)
        while va < end:
            offset = va & size - 1
            count = min(size - offset, end - va)
            yield _Piece(va, self._frame(va, access), offset, count)
            va += count

    def _frame(self, va: int, access: int) -> int:
        """The frame of a page that permits the access, faulted in if need be."""
        fmt, physical = self._space.table.format, self._space.physical
        page = va & -fmt.page_size
        for _ in range(_TRIES):
            found = self._space.table.find(page)
            present = found is not None and found.entry & fmt.present_mask
            if found is not None and present and (access == _READ or fmt.writable(found.entry)):
                noted = fmt.touch(found.entry)
                if access == _WRITE:
                    noted = fmt.soil(noted)
                by_hardware = fmt.hardware_accessed and (access == _READ or fmt.hardware_dirty)
                if noted == found.entry or by_hardware:
                    physical.ram.words[found.slot] = noted
                    start = fmt.leaf_address(found.entry, found.level)
                    return physical.frames.number(start + page - found.start & -fmt.page_size)
            resolve = physical.decide or self._faults.resolve
            _must_be_resolved(va, resolve(self._space, va, access | (int(Access.PRESENT) if present else 0)))
        raise UserFaulted(va, None)

    def _load(self, piece: _Piece) -> bytes:
        physical = self._space.physical
        if physical.frames.kind[piece.frame] != Kind.FILE:
            self._require_memory(piece)
            return bytes(physical.page_bytes(piece.frame)[piece.offset : piece.offset + piece.length])
        file, index = physical.aperture.owner_of(physical.frames.address(piece.frame))
        got = file.read(index * self._space.page_size + piece.offset, piece.length)
        if len(got) == piece.length:
            return got
        behind = physical.frames.address(piece.frame) + piece.offset + len(got)
        return got + physical.aperture.copy_out(behind, piece.length - len(got))

    def _store(self, piece: _Piece, data: memoryview) -> None:
        physical = self._space.physical
        if physical.frames.kind[piece.frame] != Kind.FILE:
            self._require_memory(piece)
            if physical.swap is not None:
                physical.swap.frame_goes(piece.frame)
            if physical.reclaim is not None:
                physical.reclaim.lazy.forget((piece.frame,))
            physical.page_bytes(piece.frame)[piece.offset : piece.offset + piece.length] = data
        else:
            file, index = physical.aperture.owner_of(physical.frames.address(piece.frame))
            start = index * self._space.page_size + piece.offset
            inside = max(0, min(piece.length, file.size - start))
            if inside:
                file.write(start, data[:inside])
            if inside < piece.length:
                behind = physical.frames.address(piece.frame) + piece.offset + inside
                physical.aperture.copy_in(behind, data[inside:])
        physical.code.written(piece.frame)


class ForcedMemory(UserMemory):
    """What a debugger loads and stores in `space` (Linux: FOLL_FORCE). As `UserMemory`, and further:

    What the program may not read (PROT_NONE) is read. What it may not write is written if the area is
    private: to a page of its own, which the program may still not write to.
    """

    def _frame(self, va: int, access: int) -> int:
        space = self._space
        area = space.areas.find(va)
        if area is None or not access & area.denied:
            return super()._frame(va, access)
        fmt, frames, page = space.table.format, space.physical.frames, va & -space.page_size
        for _ in range(_TRIES):
            found = space.table.find(page)
            if found is not None and has_frame(fmt, found.entry, found.level):
                frame = frames.number((found.entry & fmt.address_mask) + page - found.start)
                own = _is_own(frames, area, frame) and not space.physical.is_merged(frame)
                if access == _READ or (own and not is_clean(fmt, found.entry)):
                    return frame
            _must_be_resolved(va, self._faults.force(space, va, access))
        raise UserFaulted(va, None)


def _must_be_resolved(va: int, outcome: Outcome) -> None:
    """Raise what an outcome means to a copy that needs the page now."""
    if isinstance(outcome, Blocked) and not outcome.on.for_programs:
        raise NotReady(outcome.on)
    if outcome is not RESOLVED:
        raise UserFaulted(va, outcome)


def _is_own(frames: FrameTable, area: Area, frame: int) -> bool:
    """Whether a frame is an area's alone; one of a pool has one reference more, the pool's."""
    if frames.kind[frame] == Kind.HUGETLB:
        return bool(frames.refs[frame] == 2 and frames.owner[frame] == area.owner)
    return bool(frames.kind[frame] == Kind.ANON and frames.refs[frame] == 1)
