"""The file aperture: a guest-physical range through which guests load and store host files, with no copy.

The range is reserved once, mapped into every CPU once, and divided into slots of 2 MiB. A slot shows one
extent (2 MiB, aligned) of one file, so the frame of a file's page is its slot's address plus its offset in
the extent, and all mappings of a file share frames. Binding a slot is one host `mmap` with MAP_FIXED, which
no CPU notices. When every slot is bound, the least recently used one is bound anew.

A read-only file is a private window: stray stores never reach it. A writable file is a shared window:
stores are in the file at once, as `pread` and other processes see it. Before a frame is handed out its page
is populated, so that the end of the file or a full disk is an exception here and not a SIGBUS for this
process. What happens to a frame after that (another process truncates the file) is for `bus_guard`.

The host may refuse any of these calls, at any time (no memory, no mapping left, an I/O error). A page that
is asked for then is BackingFailed; a slot that cannot be kept as it must look is given up, and bound anew
when one of its pages is asked for again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

from aether_emu.errors import AddressError, AetherError, ConfigError, Refused
from aether_emu.machine.memory import host
from aether_emu.machine.memory.ram import check_range
from aether_emu.records import dataclass

SLOT_SIZE = 2 << 20
"""Bytes of a slot. Large slots keep the host's mappings few: `vm.max_map_count` is 65,530 by default."""

MAX_SIZE = 32 << 30
"""Largest aperture: each of its slots can need three host mappings (file, zero tail, file)."""


class PageUnavailable(AetherError):
    """A page of a file cannot be had; a guest that touches it gets SIGBUS."""

    def __init__(self, page_index: int, why: str) -> None:
        self.page_index = page_index
        super().__init__(f"page {page_index} of the file is unavailable: {why}")


class BeyondEnd(PageUnavailable):
    """The page begins at or after the end of the file."""


class BackingFailed(PageUnavailable):
    """The file has the page, but the host cannot provide it: a full disk, an I/O error, bad memory."""


class _Slot:
    """One bound slot: which extent of which file it shows."""

    __slots__ = ("extent", "file", "index", "tail")

    def __init__(self, index: int, file: ApertureFile, extent: int) -> None:
        self.index, self.file, self.extent = index, file, extent
        # From here to the end of its guest page the slot is anonymous zero memory; SLOT_SIZE: nowhere.
        self.tail = SLOT_SIZE


@dataclass(frozen=True)
class BoundSlot:
    """A slot's whole state, for capture: its number and what it shows."""

    index: int
    key: Hashable
    extent: int


@dataclass(frozen=True)
class ApertureState:
    """Every slot's state: the bound ones (least recently used first) and the free ones."""

    bound: tuple[BoundSlot, ...]
    free: tuple[int, ...]


class ApertureFile:
    """One host file in the aperture, shared by everyone who attached its key. Made by `Aperture.attach`."""

    def __init__(self, aperture: Aperture, fd: int, key: Hashable, writable: bool) -> None:
        self._aperture = aperture
        self._fd = os.dup(fd)
        self.key = key
        self.writable = writable
        self._references = 1
        self.slots: dict[int, _Slot] = {}

    @property
    def size(self) -> int:
        """The file's size in bytes, as the host has it now."""
        return os.fstat(self._fd).st_size

    @property
    def links(self) -> int:
        """How many names the file has on the host."""
        return os.fstat(self._fd).st_nlink

    def frame(self, page_index: int, *, write: bool = False) -> int:
        """Guest-physical address of a page of the file, populated for loads (`write`: for stores too).

        The address holds until the slot is evicted, which `Aperture.on_evict` tells. A frame obtained without
        `write` is for entries that do not allow stores: a store to a page with no disk block may find the
        disk full. Raises BeyondEnd, BackingFailed, and Refused(EACCES) for `write` on a read-only file.
        """
        return self.frames(page_index, 1, write=write)[0]

    def frames(self, page_index: int, count: int, *, write: bool = False) -> tuple[int, int]:
        """Fault-around: like `frame`, for up to `count` pages from `page_index` on in one host call.

        Returns the first page's guest-physical address and how many pages, at least 1, are populated there
        in a row; it stops at the end of the file and of the slot.
        """
        if write and not self.writable:
            raise Refused(errno.EACCES, "the file was granted for reading only")
        assert count > 0, "no pages are wanted"
        try:
            return self._frames(page_index, count, write)
        except (host.HostMemoryError, OSError) as refusal:
            raise BackingFailed(page_index, str(refusal)) from refusal

    def _frames(self, page_index: int, count: int, write: bool) -> tuple[int, int]:
        aperture = self._aperture
        page_size = aperture.page_size
        extent, within = divmod(page_index * page_size, SLOT_SIZE)
        slot = self.slots.get(extent)
        if slot is None:
            if page_index < 0 or page_index * page_size >= self.size:
                raise BeyondEnd(page_index, "it lies beyond the end")
            slot = aperture.bind(self, extent)
        else:
            aperture.touch(slot)
        count = min(count, (SLOT_SIZE - within) // page_size)
        if slot.tail < within + count * page_size:
            self._fit_tail(slot)
        if not self._populated(slot, within, count * page_size, write):
            count = self._populated_singly(slot, page_index, count, write)
        return aperture.base + slot.index * SLOT_SIZE + within, count

    def _populated_singly(self, slot: _Slot, page_index: int, count: int, write: bool) -> int:
        """How many of the pages are there, one host call for each. Raises if not even the first one is."""
        page_size = self._aperture.page_size
        self._fit_tail(slot)
        within = page_index * page_size % SLOT_SIZE
        done = 0
        while done < count and self._populated(slot, within + done * page_size, page_size, write):
            done += 1
        if done:
            return done
        if page_index * page_size >= self.size:
            raise BeyondEnd(page_index, "it lies beyond the end")
        raise BackingFailed(page_index, "the host cannot read it, or has no room to write it")

    def _populated(self, slot: _Slot, within: int, length: int, write: bool) -> bool:
        if host.can_populate():
            address = self._aperture.host_address + slot.index * SLOT_SIZE + within
            return host.populate(address, length, write=write) is host.PopulateResult.DONE
        return self._readable(slot, within, length, write)

    def _readable(self, slot: _Slot, within: int, length: int, write: bool) -> bool:
        """What populate answers, on a kernel without it: each host page can be read, and has its block."""
        start = slot.extent * SLOT_SIZE + within
        end = start + length
        tail = slot.extent * SLOT_SIZE + slot.tail
        zeroes = range(tail, -(-tail // self._aperture.page_size) * self._aperture.page_size)
        try:
            for offset in range(start, end, host.PAGE_SIZE):
                if offset not in zeroes and not os.pread(self._fd, 1, offset):
                    return False
        except OSError:
            return False
        blocks = min(end, tail) - start
        return not write or host.allocate_blocks(self._fd, start, blocks) in (0, errno.EOPNOTSUPP)

    def _fit_tail(self, slot: _Slot) -> None:
        """Make the guest page that the file ends in readable to its end: zero behind the last host page.

        A guest page of 16K or 64K can reach host pages past the end of the file, where a touch is SIGBUS.
        """
        aperture = self._aperture
        page_size = aperture.page_size
        end = -(-self.size // host.PAGE_SIZE) * host.PAGE_SIZE - slot.extent * SLOT_SIZE
        tail = end if 0 < end < SLOT_SIZE and end % page_size else SLOT_SIZE
        if tail == slot.tail:
            return
        start = aperture.host_address + slot.index * SLOT_SIZE
        if slot.tail < SLOT_SIZE:
            length = -slot.tail % page_size
            offset = slot.extent * SLOT_SIZE + slot.tail
            host.place_file(start + slot.tail, length, self._fd, offset, shared=self.writable)
            slot.tail = SLOT_SIZE
        if tail < SLOT_SIZE:
            host.place_zeroes(start + tail, -tail % page_size)
        slot.tail = tail

    def resized(self) -> None:
        """Follow a change of the file's size. Call it after growing, and after unmap, flush and truncate."""
        for slot in list(self.slots.values()):
            try:
                self._fit_tail(slot)
            except (host.HostMemoryError, OSError):
                self._aperture.unbind(slot)

    def show(self, slot: _Slot) -> None:
        """Map the slot's extent afresh, whatever is there now (called by the aperture). HostMemoryError."""
        address = self._aperture.host_address + slot.index * SLOT_SIZE
        host.place_file(address, SLOT_SIZE, self._fd, slot.extent * SLOT_SIZE, shared=self.writable)
        slot.tail = SLOT_SIZE
        self._fit_tail(slot)

    def show_again(self, slot: _Slot) -> None:
        """`show` for a slot that is bound: it is given up if the host refuses (called by the aperture)."""
        try:
            self.show(slot)
        except (host.HostMemoryError, OSError):
            self._aperture.unbind(slot)

    def share(self, fd: int, writable: bool) -> ApertureFile:
        """Count one more reference (called by the aperture). The first writable one upgrades all windows.

        The frames keep their addresses, and both kinds of window show the one page cache, so entries stay.
        """
        if writable and not self.writable:
            os.dup2(fd, self._fd, inheritable=False)
            self.writable = True
            for slot in list(self.slots.values()):
                self.show_again(slot)
        self._references += 1
        return self

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`, fewer at the end. Refused with the host's errno if it fails."""
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, "the host cannot read the file") from error

    def read_page(self, page_index: int, into: memoryview) -> None:
        """Copy a page into a buffer of the guest page's size, zero behind the end: what copy-on-write needs.

        BeyondEnd or BackingFailed if there is nothing to copy.
        """
        try:
            got = os.preadv(self._fd, [into], page_index * self._aperture.page_size)
        except OSError as error:
            raise BackingFailed(page_index, str(error.strerror)) from error
        if got == 0:
            raise BeyondEnd(page_index, "it lies beyond the end")
        if got < len(into):
            into[got:] = bytes(len(into) - got)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write at `offset`, growing the file if need be; return how much. Refused with the host's errno."""
        if fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND:
            raise Refused(errno.EINVAL, "the host would append instead of writing at the offset")
        try:
            written = os.pwrite(self._fd, data, offset)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, "the host cannot write the file") from error
        self.resized()
        return written

    def punch(self, page_index: int, count: int) -> None:
        """Make a hole of some pages, which read as zeroes; the size stays. Refused with the host's errno."""
        page_size = self._aperture.page_size
        if refusal := host.punch_hole(self._fd, page_index * page_size, count * page_size):
            raise Refused(refusal, "the host cannot make a hole in the file")

    def write_back(self, page_index: int, count: int) -> int:
        """Return when some pages are on disk, without what tells where they are. Returns 0 or an errno."""
        page_size = self._aperture.page_size
        return host.write_back(self._fd, page_index * page_size, count * page_size)

    def sync(self) -> None:
        """Return when all stores and writes are on disk (msync with MS_SYNC). Refused if the host fails."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, "the host cannot write the file back") from error

    def close(self) -> None:
        """Give one reference back; the last one evicts the file's slots."""
        assert self._references > 0, f"file {self.key!r} is closed once too often"
        self._references -= 1
        if self._references == 0:
            for slot in list(self.slots.values()):
                self._aperture.unbind(slot)
            self.abandon()

    def abandon(self) -> None:
        """Let go of the descriptor (called by the aperture when all of it ends)."""
        self._references = 0
        self._aperture.forget(self)
        with contextlib.suppress(OSError):  # lost writes: nobody waits for an answer any more
            os.close(self._fd)


class Aperture:
    """Guest-physical [base, base + size) for host files; every CPU maps `host_address` once."""

    def __init__(self, base: int, size: int, page_size: int) -> None:
        """`base` and `size` in bytes, multiples of 2 MiB; `page_size` the guest's. ConfigError otherwise."""
        check_range("aperture", base, size, page_size, SLOT_SIZE)
        if size > MAX_SIZE:
            raise ConfigError("aperture.size", size, f"at most {MAX_SIZE}")
        self.base, self.size, self.page_size = base, size, page_size
        self.host_address = host.reserve(size)
        self._unmap = weakref.finalize(self, host.unmap, self.host_address, size)
        self._unmap.atexit = False
        self.on_evict: Callable[[int, int], None] = lambda _pa, _length: None
        """Told (slot's address, length in bytes) while the slot still shows the old file: the owner
        unmaps it and flushes TLBs and translations of code there. It must not ask for frames."""
        self._files: dict[Hashable, ApertureFile] = {}
        self._slots: list[_Slot | None] = [None] * (size // SLOT_SIZE)
        self._free = list(range(size // SLOT_SIZE - 1, -1, -1))
        # Bound slots by number, least recently used first.
        self._used: OrderedDict[int, _Slot] = OrderedDict()

    def attach(self, fd: int, key: Hashable, *, writable: bool) -> ApertureFile:
        """The file behind an open descriptor (which the caller may close), with one more reference.

        `key` names the file whichever way it was opened: (st_dev, st_ino). `writable` means that stores
        may reach it, and needs a descriptor open for reading and writing; it then holds for all references
        until the last is closed. Refused with what the host says, as `mmap` would be: EACCES, ENODEV, EPERM,
        and EMFILE, ENFILE when it has no descriptor left for the file.
        """
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused(errno.ENODEV, "only regular files can be mapped")
        if refusal := host.mapping_refusal(fd, shared=writable):
            raise Refused(refusal, "the host cannot map the file")
        known = self._files.get(key)
        try:
            if known is not None:
                return known.share(fd, writable)
            self._files[key] = ApertureFile(self, fd, key, writable)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, "the host cannot keep the file open") from error
        return self._files[key]

    def copy_out(self, pa: int, length: int) -> bytes:
        """What stands in a page that is shown, behind its file's end; zeroes if the host took it away."""
        return host.copy_out(self.host_address + pa - self.base, length) or bytes(length)

    def copy_in(self, pa: int, data: memoryview) -> None:
        """Store there, as a program does: it is seen in memory, and the file does not grow."""
        host.copy_in(self.host_address + pa - self.base, data)

    def owner_of(self, pa: int) -> tuple[ApertureFile, int]:
        """The file and page index that a frame shows. AddressError if no file is there."""
        slot = self._slot_of(pa)
        return slot.file, (slot.extent * SLOT_SIZE + (pa - self.base) % SLOT_SIZE) // self.page_size

    def lost(self, host_address: int) -> tuple[ApertureFile, int]:
        """Show the file again where the bus guard had to put a zero page; return the file and page index.

        The caller unmaps and flushes that page and those beyond the file's end, and delivers SIGBUS.
        AddressError if no file is there any more.
        """
        file, page_index = self.owner_of(host_address - self.host_address + self.base)
        file.show_again(self._slot_of(host_address - self.host_address + self.base))
        return file, page_index

    def let_go(self, pa: int, length: int) -> None:
        """No entry shows a part of a slot any more, and its bytes need not be kept at hand.

        The host may refuse. A page that is asked for again is populated anew.
        """
        with contextlib.suppress(host.HostMemoryError):
            host.leave_to_file(self.host_address + pa - self.base, length)

    def save(self) -> ApertureState:
        """Which slot shows what, for capture. The bytes themselves are the files'."""
        bound = tuple(BoundSlot(slot.index, slot.file.key, slot.extent) for slot in self._used.values())
        return ApertureState(bound, tuple(self._free))

    def load(self, state: ApertureState) -> None:
        """Bind exactly the slots of `state`, whose files must be attached (AddressError). Nobody is told."""
        for bound in state.bound:
            if bound.key not in self._files:
                raise AddressError("slot of a file", bound.index, f"file {bound.key!r} is not attached")
        for slot in list(self._used.values()):
            self._remove(slot)
        self._free = list(state.free)
        for bound in state.bound:
            self._place(bound.index, self._files[bound.key], bound.extent)

    def close(self) -> None:
        """Abandon all files and give the host range back. Idempotent.

        No CPU may map the range any more.
        """
        for file in list(self._files.values()):
            file.abandon()
        self._unmap()

    def bind(self, file: ApertureFile, extent: int) -> _Slot:
        """Show an extent in a free slot, or in the least recently used one (called by the file)."""
        if not self._free:
            self.unbind(next(iter(self._used.values())))
        return self._place(self._free.pop(), file, extent)

    def touch(self, slot: _Slot) -> None:
        """Count the slot as used most recently (called by the file)."""
        self._used.move_to_end(slot.index)

    def unbind(self, slot: _Slot) -> None:
        """Tell the owner, then free the slot (called by the file at its close)."""
        self.on_evict(self.base + slot.index * SLOT_SIZE, SLOT_SIZE)
        self._remove(slot)

    def forget(self, file: ApertureFile) -> None:
        """Drop a file that nobody references any more (called by the file)."""
        del self._files[file.key]

    def _place(self, index: int, file: ApertureFile, extent: int) -> _Slot:
        slot = _Slot(index, file, extent)
        try:
            file.show(slot)
        except (host.HostMemoryError, OSError):
            self._clear(index)
            self._free.append(index)
            raise
        self._slots[index] = self._used[index] = file.slots[extent] = slot
        return slot

    def _remove(self, slot: _Slot) -> None:
        self._slots[slot.index] = None
        del self._used[slot.index]
        del slot.file.slots[slot.extent]
        self._free.insert(0, slot.index)  # after all others: code of it that is translated may stay so
        self._clear(slot.index)

    def _clear(self, index: int) -> None:
        """Take away what a slot shows. The host may refuse even that when it has no mapping left.

        Then the old pages stand there until the slot is bound again: no entry leads to them.
        """
        with contextlib.suppress(host.HostMemoryError):
            host.place_zeroes(self.host_address + index * SLOT_SIZE, SLOT_SIZE)

    def _slot_of(self, pa: int) -> _Slot:
        slot = self._slots[(pa - self.base) // SLOT_SIZE] if 0 <= pa - self.base < self.size else None
        if slot is None:
            raise AddressError("frame of a file", pa, "no file is shown there")
        return slot
