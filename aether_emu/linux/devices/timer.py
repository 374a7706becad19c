"""A timer, /dev/timer0, whose registers programs map. It is ours: Linux has no such device.

    0x00  COUNT     64 bits, read: virtual time in ns (the low half first; the high half is kept then)
    0x08  COMPARE   64 bits: the count at which it fires; writing the high half arms it
    0x10  CONTROL   bit 0: armed. Writing 0 stops it, 1 lets it run to COMPARE once more
    0x14  STATUS    bit 0: has fired; writing it as 1 clears it
    0x18  FIRED     how often it has fired, read

The file is ready to read when it has fired since it was read; a read gives that count, 8 bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from aether_emu.arch.paging import MemoryType
from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.devices.registers import RegisterPage
from aether_emu.linux.files.open_file import POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.synthetic import Device
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.physical import Physical
from aether_emu.waiting import WaitQueue

NUMBER = (10, 228)
"""Linux's number of /dev/hpet, which this is most like."""
COUNT, COMPARE, CONTROL, STATUS, FIRED = 0x00, 0x08, 0x10, 0x14, 0x18
_ARMED = _HAS_FIRED = 1
_HIGH = 4  # from the low half of a register to the high one
_WORD = 0xFFFF_FFFF


class Timer(RegisterPage):
    """It. `now` is virtual time, and `run_until` has `expire` called when `deadline` has come."""

    name = "/dev/timer0"

    def __init__(
        self, physical: Physical, frame: int, now: Callable[[], int], run_until: Callable[[Timer], None]
    ) -> None:
        super().__init__()
        self.memory = DeviceMemory(physical, self.name, 1, MemoryType.UNCACHED, frame)
        self._now, self._run_until = now, run_until
        self.deadline: int | None = None
        self._compare = self._status = self._fired = self._unread = 0
        self.queue = WaitQueue()

    def node(self) -> Device:
        """What stands in /dev."""
        return Device(NUMBER, None, None, opens=lambda *how: TimerDeviceFile(self, *how))

    def read(self, offset: int) -> int:
        """See `RegisterPage.read`."""
        match offset:
            case 0x00:
                return self.low(self._now())
            case 0x04 | 0x0C:
                return self.high()
            case 0x08:
                return self.low(self._compare)
            case 0x10:
                return _ARMED if self.deadline is not None else 0
            case 0x14:
                return self._status
            case 0x18:
                return self._fired
        return 0

    def write(self, offset: int, value: int) -> None:
        """See `RegisterPage.write`."""
        if offset == COMPARE:
            self._compare = self._compare & ~_WORD | value
        elif offset == COMPARE + _HIGH:
            self._compare = self._compare & _WORD | value << 32
            self._arm()
        elif offset == CONTROL:
            if value & _ARMED:
                self._arm()
            else:
                self.deadline = None
        elif offset == STATUS:
            self._status &= ~value

    def _arm(self) -> None:
        """Run until the count is COMPARE; what is past is due at once."""
        self.deadline = min(max(self._compare, self._now() + 1), LAST_NS)
        self._run_until(self)

    def expire(self) -> None:
        """The count is COMPARE."""
        self.deadline = None
        self._status |= _HAS_FIRED
        self._fired += 1
        self._unread += 1
        self.queue.wake()

    @property
    def unread(self) -> int:
        """How often it has fired since it was read."""
        return self._unread

    def take(self) -> int:
        """The same, and it counts from 0 again."""
        unread, self._unread = self._unread, 0
        return unread

    def figures(self) -> dict[str, int]:
        """See `RegisterPage.figures`."""
        return {"fired": self._fired}

    def capture(self) -> dict[str, Any]:
        """What it knows."""
        state = (self.deadline, self._compare, self._status, self._fired, self._unread)
        return {"page": self.capture_page(), "state": state}

    def restore(self, state: dict[str, Any]) -> None:
        """Know that, and run on."""
        self.restore_page(state["page"])
        self.deadline, self._compare, self._status, self._fired, self._unread = state["state"]
        if self.deadline is not None:
            self._run_until(self)


class RegisterFile(OpenFile):
    """An open device with registers, which mmap shows. It is opened again by its name."""

    def __init__(self, memory: DeviceMemory, path: bytes, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(flags, stat)
        self.path, self._memory, self._fs = path, memory, fs

    @property
    def device_memory(self) -> DeviceMemory:
        """See `OpenFile.device_memory`."""
        return self._memory

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.path

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": self.path}


class TimerDeviceFile(RegisterFile):
    """The timer, open."""

    kind = "timer"
    is_counter = True

    def __init__(self, timer: Timer, path: bytes, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(timer.memory, path, flags, stat, fs)
        self._timer = timer

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._timer.queue,) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self._timer.unread else 0

    def read(self, count: int) -> bytes | WouldBlock:
        """Eight bytes: how often it has fired since it was read."""
        if count < 8:
            raise Refused(errno.EINVAL, "it is read 8 bytes at a time")
        if not self._timer.unread:
            return self.wait_for(POLLIN)
        return struct.pack("<Q", self._timer.take())

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return TimerDeviceFile(self._timer, self.path, flags, self._stat, self._fs)
