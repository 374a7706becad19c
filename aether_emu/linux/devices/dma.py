"""An engine that copies memory, /dev/dma0, with registers that programs map. It is ours: Linux has none such.

A program pins pages of its memory by ioctl (Linux: `pin_user_pages`) and gets an address on the engine's bus
for them; what it stores into the registers then has the engine copy between such addresses, in virtual time.

    DMA_PIN    0xc0204101   struct { u64 address, length, flags, bus; }: gives bus. Flag 1: for writing too
    DMA_UNPIN  0x40084102   u64 bus: the pages may go

    0x00  SOURCE    64 bits          0x18  STATUS   1 busy, 2 done, 4 refused; writing 2 or 4 clears that
    0x08  TARGET    64 bits          0x1c  ERROR    why it was refused: an errno, read
    0x10  LENGTH    bytes            0x20  COPIED   64 bits: bytes of all copies, read
    0x14  START     writing 1        0x28  COPIES   how many were done, read

A START while it is busy does nothing. The file is ready to read when a copy was done or refused since it was
read; a read gives how many, 8 bytes. A copy takes a microsecond, and a nanosecond for 8 bytes: modelled.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from aether_emu.arch.paging import Access, MemoryType
from aether_emu.errors import Refused
from aether_emu.linux.devices.registers import RegisterPage
from aether_emu.linux.devices.timer import RegisterFile
from aether_emu.linux.files.open_file import POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.synthetic import Device
from aether_emu.linux.files.tmp_capture import CaptureError
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.huge_pools import Pool, Pools
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import UserFaulted, UserMemory
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue

NUMBER = (10, 229)
PIN, UNPIN = 0xC020_4101, 0x4008_4102
SOURCE, TARGET, LENGTH, START, STATUS, ERROR, COPIED, COPIES = 0, 0x08, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x28
MOST_PINNED = 4096
"""Pages that may be pinned at once."""
_BUSY, _DONE, _REFUSED = 1, 2, 4
_FIRST_BUS = 1 << 32
_SETUP_NS, _BYTES_PER_NS = 1000, 8
_READ, _WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
_WORD = 0xFFFF_FFFF


@dataclass(frozen=True)
class Pinned:
    """Bytes on the bus from `bus` on: `length` in these frames, in the first from `offset` on."""

    bus: int
    length: int
    offset: int
    frames: tuple[int, ...]
    writable: bool


class CopyEngine(RegisterPage):
    """It. `now` and `run_until` as those of a `Timer`."""

    name = "/dev/dma0"

    def __init__(
        self,
        physical: Physical,
        frame: int,
        now: Callable[[], int],
        run_until: Callable[[CopyEngine], None],
        space: Callable[[], AddressSpace],
    ) -> None:
        super().__init__()
        self.memory = DeviceMemory(physical, self.name, 1, MemoryType.UNCACHED, frame)
        self._physical, self._now, self._run_until, self.space = physical, now, run_until, space
        self.deadline: int | None = None
        self._source = self._target = self._length = self._status = self._error = 0
        self._copied = self._copies = self.unread = 0
        self._bus = _FIRST_BUS
        self._pins: dict[int, Pinned] = {}
        self.queue = WaitQueue()

    def node(self) -> Device:
        """What stands in /dev."""
        return Device(NUMBER, None, None, opens=lambda *how: CopyEngineFile(self, *how))

    # ---- pages

    def pin(self, address: int, length: int, *, writable: bool) -> Pinned:
        """Keep the pages of a range where they are. EINVAL, ENOMEM; EFAULT as the program would fault."""
        physical, space = self._physical, self.space()
        page = space.page_size
        first, end = address & -page, address + length + page - 1 & -page
        if not 0 < length < 1 << 32 or not end <= space.limits.user_end:
            raise Refused(errno.EINVAL, f"{length} bytes at {address:#x}")
        if sum(len(each.frames) for each in self._pins.values()) + (end - first) // page > MOST_PINNED:
            raise Refused(errno.ENOMEM, f"{MOST_PINNED} pages may be pinned")
        memory, frames, taken = UserMemory(space), physical.frames, list[int]()
        try:
            for va in range(first, end, page):
                frame = self._frame_of(memory, va, writable=writable)
                pool = self._pool_of(frame)
                if pool is not None:
                    pool.refer(frame & -pool.count, 1, mapped=False)
                elif frame != physical.zero_frame:
                    frames.get(frame)
                taken.append(frame)
        except BaseException as error:
            self._put(taken)
            if isinstance(error, UserFaulted):
                raise Refused(errno.EFAULT, str(error)) from None
            raise
        pinned = Pinned(self._bus + (address & page - 1), length, address & page - 1, tuple(taken), writable)
        self._bus += end - first + page
        self._pins[pinned.bus] = pinned
        return pinned

    def _frame_of(self, memory: UserMemory, va: int, *, writable: bool) -> int:
        """The frame of a page that is to stay. Its own in place of the zero page, where it may write."""
        kinds = self._physical.frames.kind
        frame = memory.frame_of(va, _WRITE if writable else _READ)
        if kinds[frame] == Kind.ZERO:
            with suppress(UserFaulted):
                frame = memory.frame_of(va, _WRITE)
        if kinds[frame] not in (Kind.ANON, Kind.SHARED, Kind.HUGETLB) and frame != self._physical.zero_frame:
            raise Refused(errno.EFAULT, f"{va:#x} shows no memory that stays")
        return frame

    def _pool_of(self, frame: int) -> Pool | None:
        """The pool of whose huge pages a frame is a part: they are pinned whole, as a pool counts them."""
        pools = self._physical.pools
        if self._physical.frames.kind[frame] != Kind.HUGETLB or not isinstance(pools, Pools):
            return None
        return next(pool for pool in pools if frame & -pool.count in pool.pages)

    def unpin(self, bus: int) -> None:
        """EINVAL for what is not pinned; EBUSY while a copy needs it."""
        pinned = self._pins.get(bus)
        if pinned is None:
            raise Refused(errno.EINVAL, f"nothing is pinned at {bus:#x}")
        if self.deadline is not None and pinned in (self._find(self._source), self._find(self._target)):
            raise Refused(errno.EBUSY, "a copy needs it")
        del self._pins[bus]
        self._put(list(pinned.frames))

    def drop(self, buses: list[int]) -> None:
        """Who pinned these is gone: a copy that needs them is refused."""
        for bus in buses:
            if self.deadline is not None and self._pins[bus] in (
                self._find(self._source),
                self._find(self._target),
            ):
                self.deadline = None
                self._end(errno.EFAULT)
            self.unpin(bus)

    def _put(self, frames: list[int]) -> None:
        table, small = self._physical.frames, list[int]()
        for frame in frames:
            pool = self._pool_of(frame)
            if pool is not None:
                pool.refer(frame & -pool.count, -1, mapped=False)
            elif frame != self._physical.zero_frame:
                small.append(frame)
        self._physical.give_back([frame for frame in small if table.put(frame)])

    def _find(self, bus: int) -> Pinned | None:
        """What is pinned around an address of the bus."""
        found = (each for each in self._pins.values() if each.bus <= bus < each.bus + each.length)
        return next(found, None)

    # ---- copies

    def _start(self) -> None:
        if self._status & _BUSY:
            return
        source, target = self._find(self._source), self._find(self._target)
        inside = all(
            each is not None and at + self._length <= each.bus + each.length
            for each, at in ((source, self._source), (target, self._target))
        )
        if not self._length or not inside or target is None or not target.writable:
            self._end(errno.EINVAL if not self._length else errno.EFAULT)
            return
        self._status = _BUSY
        self.deadline = self._now() + _SETUP_NS + self._length // _BYTES_PER_NS
        self._run_until(self)

    def expire(self) -> None:
        """The copy is done, of what the source has now."""
        self.deadline = None
        source, target = self._find(self._source), self._find(self._target)
        assert source is not None and target is not None, "they stay while it is busy"
        data = b"".join(bytes(piece) for piece in self._pieces(source, self._source))
        done = 0
        for piece in self._pieces(target, self._target):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)
        for frame in target.frames:
            self._physical.code.written(frame)
        self._copied += self._length
        self._copies = self._copies + 1 & _WORD
        self._end(0)

    def _pieces(self, pinned: Pinned, bus: int) -> Iterator[memoryview]:
        """The bytes from `bus` on, a page at a time."""
        page, left = self._physical.ram.page_size, self._length
        at = bus - pinned.bus + pinned.offset
        while left:
            start = at % page
            count = min(left, page - start)
            yield self._physical.page_bytes(pinned.frames[at // page])[start : start + count]
            at, left = at + count, left - count

    def _end(self, error: int) -> None:
        self._status, self._error = (_REFUSED if error else _DONE), error
        self.unread += 1
        self.queue.wake()

    # ---- registers

    def read(self, offset: int) -> int:
        """See `RegisterPage.read`."""
        wide = {SOURCE: self._source, TARGET: self._target, COPIED: self._copied}
        if offset in wide:
            return self.low(wide[offset])
        if offset - 4 in wide:
            return self.high()
        words = {LENGTH: self._length, STATUS: self._status, ERROR: self._error, COPIES: self._copies}
        return words.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """See `RegisterPage.write`. While it is busy, nothing but STATUS changes."""
        if offset == STATUS:
            self._status &= ~(value & (_DONE | _REFUSED))
        elif self._status & _BUSY:
            return
        elif offset == SOURCE:
            self._source = self._source & ~_WORD | value
        elif offset == SOURCE + 4:
            self._source = self._source & _WORD | value << 32
        elif offset == TARGET:
            self._target = self._target & ~_WORD | value
        elif offset == TARGET + 4:
            self._target = self._target & _WORD | value << 32
        elif offset == LENGTH:
            self._length = value
        elif offset == START and value & 1:
            self._start()

    def figures(self) -> dict[str, int]:
        """See `RegisterPage.figures`."""
        pinned = sum(len(each.frames) for each in self._pins.values())
        return {"copies": self._copies, "bytes": self._copied, "pages_pinned": pinned}

    def capture(self) -> dict[str, Any]:
        """What it knows. Who has pages pinned cannot be captured."""
        state = (self._source, self._target, self._length, self._status, self._error)
        return {
            "page": self.capture_page(),
            "state": (*state, self._copied, self._copies, self.unread, self._bus),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Know that."""
        self.restore_page(state["page"])
        self._source, self._target, self._length, self._status, self._error, *rest = state["state"]
        self._copied, self._copies, self.unread, self._bus = rest


class CopyEngineFile(RegisterFile):
    """The engine, open. What is pinned by it goes with it."""

    kind = "dma"
    is_counter = True

    def __init__(self, device: CopyEngine, path: bytes, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(device.memory, path, flags, stat, fs)
        self._device = device
        self._pinned: list[int] = []

    def ioctl(self, request: int, fetch: Callable[[int], bytes]) -> bytes:
        """See the module's beginning. ENOTTY."""
        if request == PIN:
            address, length, flags, _bus = struct.unpack("<4Q", fetch(32))
            if flags & ~1:
                raise Refused(errno.EINVAL, f"flags {flags:#x}")
            pinned = self._device.pin(address, length, writable=bool(flags & 1))
            self._pinned.append(pinned.bus)
            return struct.pack("<4Q", address, length, flags, pinned.bus)
        if request == UNPIN:
            (bus,) = struct.unpack("<Q", fetch(8))
            if bus not in self._pinned:
                raise Refused(errno.EINVAL, f"nothing is pinned at {bus:#x} by this file")
            self._device.unpin(bus)
            self._pinned.remove(bus)
            return b""
        return super().ioctl(request, fetch)

    def release(self) -> None:
        """See `OpenFile.release`."""
        self._device.drop(self._pinned)
        self._pinned = []

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._device.queue,) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self._device.unread else 0

    def read(self, count: int) -> bytes | WouldBlock:
        """Eight bytes: how many copies have ended since it was read."""
        if count < 8:
            raise Refused(errno.EINVAL, "it is read 8 bytes at a time")
        if not self._device.unread:
            return self.wait_for(POLLIN)
        unread, self._device.unread = self._device.unread, 0
        return struct.pack("<Q", unread)

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return CopyEngineFile(self._device, self.path, flags, self._stat, self._fs)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`. CaptureError while pages are pinned."""
        if self._pinned:
            raise CaptureError(f"pages are pinned for {self.path.decode()}: its state can't be captured")
        return super().capture()
