"""A framebuffer, /dev/fb0, as Linux's fbdev has one without acceleration (like simplefb): 32 bits a pixel.

Its memory is RAM that programs map write-combining; what they store there is the picture. A pixel is four
bytes: blue, green, red and one that is not shown. There is one mode; who asks for another gets that one.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Callable

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile, Seekable
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.synthetic import Device
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.physical import Physical

NUMBER = (29, 0)
"""Linux's number of the first framebuffer."""
_PIXEL = 4
_GET_VARIABLE, _PUT_VARIABLE, _GET_FIXED, _PAN, _BLANK = 0x4600, 0x4601, 0x4602, 0x4606, 0x4611
_VARIABLE_SIZE = 160  # struct fb_var_screeninfo
_OFFSETS = slice(16, 24)  # xoffset and yoffset in it
_TRUECOLOR = 2
_COLOURS = (16, 8, 0)  # where red, green and blue begin in a pixel
_NO_SIZE = 0xFFFF_FFFF  # of the picture in millimetres


class Framebuffer:
    """One of `width` by `height` pixels. Raises OutOfFrames."""

    def __init__(self, physical: Physical, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.size = width * height * _PIXEL
        pages = -(-self.size >> physical.frames.page_shift)
        self.memory = DeviceMemory(physical, "/dev/fb0", pages, MemoryType.WRITE_COMBINING)

    def node(self) -> Device:
        """What stands in /dev."""
        return Device(NUMBER, None, None, opens=self._open)  # everybody's: nobody logs in here

    def _open(self, path: bytes, flags: int, stat: Stat, fs: StatFs) -> OpenFile:
        return FramebufferFile(self, path, flags, stat, fs)

    @property
    def pixels(self) -> memoryview:
        """The picture: rows of blue, green, red and nothing."""
        return self.memory.bytes[: self.size]

    def png(self) -> bytes:
        """The picture as a PNG, 8 bits for each of red, green and blue. The same pixels, the same bytes."""
        rows, line = bytearray(), self.width * _PIXEL
        for start in range(0, self.size, line):
            row = bytes(self.pixels[start : start + line])
            colours = bytearray(3 * self.width)
            colours[0::3], colours[1::3], colours[2::3] = row[2::4], row[1::4], row[0::4]
            rows += b"\0" + colours  # no filter
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 6)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)

    def variable(self) -> bytes:
        """struct fb_var_screeninfo."""
        size = (self.width, self.height, self.width, self.height, 0, 0, 8 * _PIXEL, 0)
        colours = [number for first in _COLOURS for number in (first, 8, 0)]
        rest = (0, 0, 0, 0, 0, _NO_SIZE, _NO_SIZE)  # none transparent; nonstd, activate; height, width
        return struct.pack("<8I9I7I", *size, *colours, *rest).ljust(_VARIABLE_SIZE, b"\0")

    def fixed(self) -> bytes:
        """struct fb_fix_screeninfo."""
        length = self.memory.pages * (len(self.memory.bytes) // self.memory.pages)
        return struct.pack(
            "<16sQIIIIHHHxxIxxxxQIIHHHxx",
            *(b"aether", self.memory.address, length, 0, 0, _TRUECOLOR),
            *(0, 0, 0, self.width * _PIXEL, 0, 0, 0, 0, 0, 0),
        )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class FramebufferFile(Seekable):
    """It, open. Reading and writing move bytes of the picture."""

    kind = "framebuffer"

    def __init__(self, device: Framebuffer, path: bytes, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(flags & ~fl.O_APPEND, stat)
        self.device, self.path, self._fs = device, path, fs

    @property
    def device_memory(self) -> DeviceMemory:
        """What mmap shows."""
        return self.device.memory

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        return bytes(self.device.pixels[offset : offset + count])

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`. EFBIG, ENOSPC behind the end of the picture, as `fb_write` has them."""
        size = self.device.size
        if offset > size or (offset == size and len(data) > size):
            raise Refused(errno.EFBIG, "behind the picture")
        data = data[: size - offset]
        if not data:
            raise Refused(errno.ENOSPC, "the picture ends there")
        self.device.pixels[offset : offset + len(data)] = data
        return len(data)

    def size(self) -> int:
        """See `Seekable.size`: a device's is 0."""
        return 0

    def available(self) -> int:
        """See `OpenFile.available`."""
        return OpenFile.available(self)

    def ioctl(self, request: int, fetch: Callable[[int], bytes]) -> bytes:
        """The requests of fbdev that a device of one mode has. ENOTTY, EINVAL."""
        if request in (_GET_VARIABLE, _PUT_VARIABLE):
            if request == _PUT_VARIABLE:
                fetch(_VARIABLE_SIZE)
            return self.device.variable()
        if request == _GET_FIXED:
            return self.device.fixed()
        if request == _PAN:
            if any(fetch(_VARIABLE_SIZE)[_OFFSETS]):
                raise Refused(errno.EINVAL, "the picture is not larger than what is shown of it")
            return self.device.variable()
        if request == _BLANK:
            raise Refused(errno.EINVAL, "it is always on")
        return super().ioctl(request, fetch)

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.path

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return FramebufferFile(self.device, self.path, flags, self._stat, self._fs)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`: it is opened again by its name."""
        return {"path": self.path}
