"""A board on which files count, with a file that a space of it shows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from aether_emu.arch.paging import Access
from aether_emu.config import Config
from aether_emu.mm import ageing, mapping
from aether_emu.mm.mapping import MAP_FIXED, MAP_SHARED, Request
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.protection import Protection
from aether_emu.mm.reclaim import Reclaim
from aether_emu.mm.space import AddressSpace
from aether_emu.policy.reclaim import count_files
from tests.mm.board import ENGINES, FORMATS, MIB, Board, GrantedFile, check_accounts
from tests.mm.calls import RW
from tests.mm.swap.boards import with_swap

AT, SECOND, OWN = 0x1000_0000, 0x3000_0000, 0x5000_0000
READ, EXECUTE = Protection.READ, Protection.EXECUTE
USER_READ, USER_WRITE = int(Access.READ | Access.USER), int(Access.WRITE | Access.USER)
every_order = pytest.mark.parametrize("order", ["mglru", "clock"])


class Counted:
    """A board on which files count, with a file of `pages` pages, page n full of letter n."""

    def __init__(
        self,
        path: Path,
        kind: str = "x86_64",
        *,
        pages: int = 64,
        order: str = "mglru",
        swap: int = 0,
        cpus: int = 1,
        aperture: int = 8 * MIB,
    ) -> None:
        execute = kind in ENGINES and cpus == 1
        self.board = Board(FORMATS[kind], cpus=cpus, execute=execute, aperture=aperture)
        self.physical, self.n = self.board.physical, self.board.physical.counters.n
        if swap:
            with_swap(self.board, swap, order=order)
        count_files(self.physical, Config.load(overrides={"reclaim": order}))
        assert self.physical.cache is not None
        self.cache: PageCache = self.physical.cache
        assert isinstance(self.physical.reclaim, Reclaim)
        self.reclaim: Reclaim = self.physical.reclaim
        self.page, self.pages, self.path = self.board.format.page_size, pages, path
        path.write_bytes(b"".join(bytes([65 + n % 26]) * self.page for n in range(pages)))
        self.space = self.board.space()
        self.board.run_on(self.space)

    def map(
        self,
        protection: int = RW,
        flags: int = MAP_SHARED,
        *,
        at: int = AT,
        space: AddressSpace | None = None,
        path: Path | None = None,
    ) -> int:
        file = GrantedFile(self.board, path or self.path, writable=bool(protection & Protection.WRITE))
        request = Request(at, self.pages * self.page, protection, flags | MAP_FIXED, file, 0)
        return mapping.map_memory(space or self.space, request)

    def read(self, number: int, at: int = AT, space: AddressSpace | None = None) -> bytes:
        self.board.run_on(space or self.space)
        return bytes(self.board.cpu.copy_from_user(at + number * self.page, 4))

    def write(self, number: int, data: bytes, at: int = AT, space: AddressSpace | None = None) -> None:
        self.board.run_on(space or self.space)
        self.board.cpu.copy_to_user(at + number * self.page, data)

    def right(self, number: int) -> bytes:
        return bytes([65 + number % 26]) * 4

    def in_file(self, number: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), 4, number * self.page)

    @property
    def backing(self) -> FileBacking:
        status = os.stat(self.path)
        backing = self.board.files.find((status.st_dev, status.st_ino))
        assert backing is not None
        return backing

    def frame(self, number: int) -> int:
        """The frame in the aperture of a page of the file that some area shows."""
        frame = self.backing.frames(number, 1, write=False)[0]
        assert self.cache.has(frame)
        return frame

    def resident(self) -> list[int]:
        """Which pages of the file are in memory."""
        return np.flatnonzero(np.frombuffer(self.backing.resident(0, self.pages), np.uint8)).tolist()

    def send(self, first: int, count: int, at: int = AT) -> int:
        """Drop what a range shows, if it may go."""
        start = at + first * self.page
        return self.reclaim.take(ageing.look(self.space, start, start + count * self.page).frames.tolist())

    def fill(self, left: int) -> list[int]:
        """Take frames until so many are left; low watermarks are kept."""
        self.reclaim.set_marks(8 * self.page, 1)
        return [self.board.buddy.alloc() for _ in range(self.board.buddy.free_frames - left)]

    def check(self) -> None:
        check_accounts(self.board, [])
