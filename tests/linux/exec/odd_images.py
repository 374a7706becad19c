"""Seeded ELF files with strange segments, and what Linux on this host makes of one."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.linux.exec.crafted import EXECUTE, READ, WRITE, Header

PAGE = 4096
BASE = 0x40_0000
CODE_PAGE = 0x1000  # of the file
_FILE = 0x8000
_SPREAD = 24  # pages that segments begin in
_LOWEST, _HIGHEST = -_SPREAD * PAGE, 1 << 24
# write(1, rsp, 1) and then pause() for ever: it has been loaded.
_SAY_AND_WAIT = bytes.fromhex("b801000000bf010000004889e6ba010000000f05b8220000000f05ebf7")
_MACHINES = {"x86_64": 62, "arm64": 183}


@dataclass(frozen=True)
class Odd:
    """Headers in the file's order, what is added to their addresses first, and the type of the file."""

    headers: tuple[Header, ...]
    independent: bool

    @property
    def entry(self) -> int:
        return self.headers[-1].address

    def content(self, isa: str) -> bytes:
        """The file: its pages all differ, and so do the words of a page."""
        words = (at * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for at in range(1, _FILE, 8))
        data = bytearray(b"".join(struct.pack("<Q", word) for word in words))
        data[CODE_PAGE : CODE_PAGE + len(_SAY_AND_WAIT)] = _SAY_AND_WAIT
        ident, kind = b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 3 if self.independent else 2
        counts = (64, 56, len(self.headers), 64, 0, 0)
        data[:64] = ident + struct.pack(
            "<HHIQQQIHHHHHH", kind, _MACHINES[isa], 1, self.entry, 64, 0, 0, *counts
        )
        table = b"".join(header.packed() for header in self.headers)
        data[64 : 64 + len(table)] = table
        return bytes(data)


def odd(seed: int) -> Odd:
    """Segments that overlap, stand in any order, end behind the file, and ask for any size and alignment.

    The last one is the code, so that nothing replaces it.
    """
    chance = random.Random(seed)
    independent = chance.random() < 0.3
    base = 0 if independent else BASE
    headers: list[Header] = []
    for _ in range(chance.randrange(1, 6)):
        page = chance.randrange(_SPREAD)
        within = chance.choice((0, 0, 0, chance.randrange(PAGE)))
        offset = chance.randrange(1, _FILE // PAGE) * PAGE + within  # never the page that names the ISA
        in_file = chance.choice((0, 1, 0x123, PAGE, chance.randrange(4 * PAGE)))
        if independent and not headers:
            in_file += 1  # else it goes to address 0, where root alone may map
        in_memory = in_file + chance.choice((0, 0, 1, 0x800, chance.randrange(6 * PAGE)))
        if not in_file and chance.random() < 0.5:
            offset = chance.randrange(1 << 40)  # nothing is read there
        match chance.randrange(40):
            case 0:
                offset += 0x100
            case 1:
                in_memory = max(0, in_file - 1)
            case 2:
                in_memory = 1 << 46
            case 3:
                in_file = in_memory = _FILE + chance.randrange(1 << 20)
        flags = chance.choice((READ, READ | WRITE, READ | WRITE, READ | EXECUTE, READ | WRITE | EXECUTE))
        align = chance.choice((0, 8, 0x1000, 0x1001, 0x10000, 1 << 21))
        headers.append(Header(1, flags, offset, base + page * PAGE + within, in_file, in_memory, align))
    place = base + chance.randrange(_SPREAD) * PAGE
    headers.append(Header(1, READ | EXECUTE, CODE_PAGE, place, len(_SAY_AND_WAIT), len(_SAY_AND_WAIT)))
    return Odd(tuple(headers), independent)


@dataclass(frozen=True)
class Layout:
    """What stands in memory of an image, by addresses as the file has them.

    `areas` are (start, end, permissions, offset, of the file); `pages` the bytes of each page that can be
    read, None where touching it is SIGBUS.
    """

    areas: tuple[tuple[int, int, str, int, bool], ...]
    pages: dict[int, bytes | None]
    headers: int  # AT_PHDR


def layout(maps: str, bias: int, headers: int, read: Callable[[int], bytes | None]) -> Layout:
    """Of the text of /proc/PID/maps, and a function that reads a page of memory.

    Neighbouring zeros count as one area: Linux does not always merge them.
    """
    areas: list[tuple[int, int, str, int, bool]] = []
    pages: dict[int, bytes | None] = {}
    for line in maps.splitlines():
        span, permissions, offset, _device, inode, *name = line.split()
        start, end = (int(address, 16) - bias for address in span.split("-"))
        if not _LOWEST <= start < _HIGHEST or (name and name[0].startswith("[")):
            continue  # the stack, what the kernel brings
        of_file = inode != "0"
        if not of_file and areas and areas[-1][1:] == (start, permissions, 0, False):
            areas[-1] = (areas[-1][0], end, permissions, 0, False)
        else:
            areas.append((start, end, permissions, int(offset, 16), of_file))
        pages |= {va: read(va + bias) for va in range(start, end, PAGE)}
    return Layout(tuple(areas), pages, headers - bias)


def native_layout(path: Path, bias_of: Callable[[dict[int, int]], int]) -> Layout | None:
    """Run a file on this host until it has been loaded; None if the kernel kills it instead.

    `bias_of` tells from the auxiliary vector what was added to the addresses of the image that is asked for.
    """
    with subprocess.Popen([path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.read(1):
                return None
            at = Path("/proc") / str(process.pid)
            auxiliary = dict(struct.iter_unpack("<QQ", (at / "auxv").read_bytes()))
            memory = os.open(at / "mem", os.O_RDONLY)
            try:
                maps, headers = (at / "maps").read_text(), auxiliary[3]  # AT_PHDR
                return layout(maps, bias_of(auxiliary), headers, lambda va: _page(memory, va))
            finally:
                os.close(memory)
        finally:
            process.kill()


def _page(memory: int, va: int) -> bytes | None:
    try:
        return os.pread(memory, PAGE, va)
    except OSError:
        return None
