"""The vDSO: an ELF image of the kernel's in a program's memory, and below it the page of time data it reads.

`images` has one for each ISA and size of pages, built from guest/vdso. Two areas stand side by side, as Linux
6.6 lays them: [vvar], whose first page is there and whose others are SIGBUS, and [vdso]. On x86_64 they go
above the stack, into the range of its last table, if there is room; on arm64 where a mapping goes.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

from aether_emu.linux.abi import Abi
from aether_emu.linux.task.registry import Registry
from aether_emu.linux.task.task import Task
from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_PRIVATE
from aether_emu.mm.objects.special import SpecialMapping
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection
from aether_emu.random import Stream

_IMAGES = Path(__file__).parent / "images"
_SECOND = 10**9
_RX = Protection.READ | Protection.EXECUTE
_PT_DYNAMIC = 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB = 4, 5, 6


@cache
def image(isa: str, page_size: int) -> bytes:
    """The ELF image for an ISA and a size of pages."""
    return (_IMAGES / f"vdso-{isa}-{page_size >> 10}K.so").read_bytes()


def time_data(abi: Abi, epoch_ns: int) -> bytes:
    """What guest/vdso/vdso.c calls `struct time_data`: a counter becomes ns without rounding."""
    return struct.pack("<4Q", _SECOND // abi.counter_hz, 0, epoch_ns // _SECOND, 1)


def map_vdso(task: Task, below: int, stream: Stream | None) -> int:
    """Map both areas and return the address of the image. `below` is the lowest string of the stack.

    Raises Refused(ENOMEM).
    """
    process = task.process
    space, abi, page = process.mm, process.abi, process.mm.page_size
    contents = image(abi.isa, page)
    pages = [contents[at : at + page] for at in range(0, len(contents), page)]
    data = [time_data(abi, process.kernel.clock.epoch_ns), *[None] * (abi.time_pages - 1)]
    length = (len(data) + len(pages)) * page
    hint = (
        _above_stack(space.page_up(below), length, space.limits.user_end, stream)
        if abi.vdso_above_stack
        else 0
    )
    request = mapping.Request(hint, length, 0, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)
    start = mapping.map_memory(space, request)  # finds the place, by the rules of a mapping with a hint
    space.unmap(start, start + length)
    code = start + len(data) * page
    vdso, vvar = _shared(process.registry, space.physical, pages, data)
    everything = _RX | Protection.WRITE  # a debugger may set breakpoints
    space.insert(space.new_area(code, start + length, _RX, backing=vdso, maximum=everything, name=vdso.name))
    read = Protection.READ
    space.insert(space.new_area(start, code, read, backing=vvar, maximum=read, name=vvar.name))
    process.program.vdso, process.program.vdso_start = vdso.number, code
    process.program.signal_return = symbol(contents, abi.signal_return) if abi.signal_return else 0
    return code


def _shared(
    registry: Registry[Any, Any], physical: Physical, pages: list[bytes], data: list[bytes | None]
) -> tuple[SpecialMapping, SpecialMapping]:
    """Image and data, which all processes share: those of one that lives, or new ones."""
    found = [physical.objects.find(number) for number in registry.vdso]
    match found:
        case [SpecialMapping() as vdso, SpecialMapping() as vvar]:
            return vdso, vvar
    made = SpecialMapping(physical, "[vdso]", pages), SpecialMapping(physical, "[vvar]", data)
    registry.vdso = made[0].number, made[1].number
    return made


def _above_stack(start: int, length: int, end: int, stream: Stream | None) -> int:
    """A place in the same 2 MiB as the top of the stack (Linux: `vdso_addr`), a random one with a stream."""
    span = 2 << 20
    last = min((start + length + span - 1) & -span, end) - length
    if last <= start or stream is None:
        return start
    return start + stream.below((last - start >> 12) + 1) * 4096


def symbol(contents: bytes, name: bytes) -> int:
    """The offset of a symbol in an image, found as programs find it: by its dynamic section. KeyError."""
    (at,), (count,) = struct.unpack_from("<Q", contents, 32), struct.unpack_from("<H", contents, 56)
    headers = [struct.unpack_from("<II6Q", contents, at + 56 * i) for i in range(count)]
    dynamic = next(header for header in headers if header[0] == _PT_DYNAMIC)
    tags = dict(struct.iter_unpack("<QQ", contents[dynamic[2] : dynamic[2] + dynamic[5]]))
    _buckets, symbols = struct.unpack_from("<II", contents, tags[_DT_HASH])
    for i in range(symbols):
        text, _info, _other, _section, value, _size = struct.unpack_from(
            "<IBBHQQ", contents, tags[_DT_SYMTAB] + 24 * i
        )
        start = tags[_DT_STRTAB] + text
        if contents[start : contents.index(0, start)] == name:
            return int(value)
    raise KeyError(name)
