"""/proc/zoneinfo, and /proc/sys/vm/min_free_kbytes and watermark_scale_factor, which root writes."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Mapping
from functools import partial

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.kernel import Kernel
from aether_emu.mm.room import Room, Watermarks, watermarks

_WRITABLE = stat.S_IFREG | 0o644
_MOST_SCALE = 3000  # 30 % of memory (Linux since 5.18)


def watermark_texts(kernel: Kernel) -> Mapping[str, Text]:
    """The files, by their paths below /proc."""
    return {
        "sys/vm/min_free_kbytes": Text(partial(_least, kernel), _WRITABLE, partial(_set_least, kernel)),
        "sys/vm/watermark_scale_factor": Text(
            partial(_scale, kernel), _WRITABLE, partial(_set_scale, kernel)
        ),
        "zoneinfo": Text(partial(_zoneinfo, kernel), stat.S_IFREG | 0o444),
    }


def marks_of(kernel: Kernel) -> Watermarks:
    """Those that are kept, or would be if anything could go."""
    physical, config = kernel.physical, kernel.config
    if isinstance(physical.reclaim, Room):
        return physical.reclaim.marks
    return watermarks(physical.buddy.total, physical.ram.page_size, config.min_free, config.watermark_scale)


def _least(kernel: Kernel) -> bytes:
    return b"%d\n" % (marks_of(kernel).min * kernel.physical.ram.page_size >> 10)


def _scale(kernel: Kernel) -> bytes:
    room = kernel.physical.reclaim
    return b"%d\n" % (room.scale if isinstance(room, Room) else kernel.config.watermark_scale)


def _set_least(kernel: Kernel, data: bytes) -> int:
    most = kernel.physical.buddy.total * kernel.physical.ram.page_size >> 12
    room = kernel.physical.with_reclaim()
    assert isinstance(room, Room)
    room.set_marks(min(_number(data, (1 << 31) - 1), most) << 10, room.scale)
    return len(data)


def _set_scale(kernel: Kernel, data: bytes) -> int:
    scale = _number(data, _MOST_SCALE)
    if not scale:
        raise Refused(errno.EINVAL, "the watermarks must differ")
    room = kernel.physical.with_reclaim()
    assert isinstance(room, Room)
    room.set_marks(room.least, scale)
    return len(data)


def _number(data: bytes, most: int) -> int:
    text = data.split(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-9]{1,10}", text) or int(text) > most:
        raise Refused(errno.EINVAL, f"no number from 0 to {most}: {shown(text)}")
    return int(text)


def _zoneinfo(kernel: Kernel) -> bytes:
    """One zone: all of RAM that is handed out."""
    marks, buddy = marks_of(kernel), kernel.physical.buddy
    spanned = kernel.physical.ram.size // kernel.physical.ram.page_size
    rows = [
        ("pages free", buddy.free_frames),
        ("      min", marks.min),
        ("      low", marks.low),
        ("      high", marks.high),
        ("      spanned", spanned),
        ("      present", spanned),
        ("      managed", buddy.total),
    ]
    return b"Node 0, zone   Normal\n" + "".join(f"  {name:<11} {value}\n" for name, value in rows).encode()
