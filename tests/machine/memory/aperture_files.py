"""Files attached to an aperture the way the guest's file layer does it, and a guest's view of them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from aether_emu.machine.memory.aperture import SLOT_SIZE, Aperture, ApertureFile

BASE = 0x1_0000_0000
PAGE = 4096


class Files:
    """Files in a folder, and the aperture that they are attached to."""

    def __init__(self, folder: Path, aperture: Aperture) -> None:
        self.folder, self.aperture = folder, aperture

    def path(self, name: str) -> Path:
        return self.folder / name

    def attach(self, name: str, content: bytes | None = None, *, writable: bool = False) -> ApertureFile:
        """Open (after filling it with `content`), attach and close the descriptor."""
        if content is not None:
            self.path(name).write_bytes(content)
        fd = os.open(self.path(name), os.O_RDWR if writable else os.O_RDONLY)
        status = os.fstat(fd)
        try:
            return self.aperture.attach(fd, (status.st_dev, status.st_ino), writable=writable)
        finally:
            os.close(fd)

    def see(self, pa: int, length: int) -> bytes:
        """What a guest sees at a guest-physical address."""
        return ctypes.string_at(pa - BASE + self.aperture.host_address, length)

    def store(self, pa: int, data: bytes) -> None:
        """What a guest's store does."""
        ctypes.memmove(pa - BASE + self.aperture.host_address, data, len(data))


def files_in(folder: Path, *, slots: int = 3, page_size: int = PAGE) -> Files:
    return Files(folder, Aperture(BASE, slots * SLOT_SIZE, page_size))


def check(condition: bool) -> None:
    """An assertion for a lambda."""
    assert condition


def numbered(pages: int, page_size: int = PAGE) -> bytes:
    return b"".join(number.to_bytes(8, "little") * (page_size // 8) for number in range(1, pages + 1))
