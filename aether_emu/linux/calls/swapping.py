"""swapon(2) and swapoff(2): the machine's own file of the swap area, and files of programs.

A file of a program begins with the header that mkswap(8) writes; it stands on the host, where a grant lets
programs write, for those of /tmp are memory themselves. A file goes off when all its pages have a place
elsewhere. The order of refusals is Linux 6.6's (mm/swapfile.c).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import read_path
from aether_emu.linux.calls.user import s32
from aether_emu.linux.credentials import SYS_ADMIN
from aether_emu.linux.files.host_file import HostData, StoredFile
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.task.task import Task
from aether_emu.mm.swap.area import OWN_NAME
from aether_emu.mm.swap.file import SwapFile
from aether_emu.mm.swap.off import switch_off
from aether_emu.mm.swap.part import MOST_PLACES, Part
from aether_emu.mm.swap.store import Store

_PRIORITY, _PREFER, _DISCARD, _DISCARD_ONCE, _DISCARD_PAGES = 0x7FFF, 0x8000, 0x10000, 0x20000, 0x40000
_FLAGS = _PRIORITY | _PREFER | _DISCARD | _DISCARD_ONCE | _DISCARD_PAGES
_HEADER = "III"  # version, last page, number of bad pages
_HEADER_AT = 1024  # behind what a boot loader may have
_SIGNATURE = b"SWAPSPACE2"  # the last bytes of the header's page
_BLOCK = 512  # bytes of a block in st_blocks


def sys_swapoff(task: Task, path: int, *_: int) -> int:
    _require_right(task)
    kernel = task.process.kernel
    swap, part = kernel.physical.swap, _found(task, read_path(task, path))
    if swap is None or part is None or not part.on:
        raise Refused(errno.EINVAL, "that is no swap area, or it is off")
    if not switch_off(kernel.physical, swap, part, task.checkpoint):
        raise Refused(errno.ENOMEM, "memory does not hold what is in it")
    if part.key is not None:
        task.files.namespace.swap_files.discard(part.key)
        if not part.used:
            swap.remove(part)
    return 0


def sys_swapon(task: Task, path: int, flags: int, *_: int) -> int:
    flags = s32(flags)
    if flags & ~_FLAGS:
        raise Refused(errno.EINVAL, "unknown flags")
    _require_right(task)
    priority = flags & _PRIORITY if flags & _PREFER else None
    name, kernel = read_path(task, path), task.process.kernel
    swap = kernel.physical.swap
    if name == OWN_NAME.encode() and swap is not None and swap.own.slots:
        if swap.own.on:
            raise Refused(errno.EBUSY, "it is on")
        swap.turn_on(swap.own, priority)
        return 0
    with _opened(task, name) as file:
        _turn_on(task, file, priority)
    return 0


def _require_right(task: Task) -> None:
    if not task.credentials.has(SYS_ADMIN):
        raise Refused(errno.EPERM, "not for who has no CAP_SYS_ADMIN")


@contextmanager
def _opened(task: Task, name: bytes) -> Iterator[OpenFile]:
    file = task.files.open_swap(name)
    try:
        yield file
    finally:
        file.let_go()


def _found(task: Task, name: bytes) -> Part | None:
    """The part of the swap area that is called so, or whose file is."""
    swap = task.process.kernel.physical.swap
    if name == OWN_NAME.encode() and swap is not None and swap.own.slots:
        return swap.own
    with _opened(task, name) as file:
        if swap is None or not isinstance(file, HostData):
            return None
        return next((part for part in swap.parts if part.key == file.key and part.on), None)


def _turn_on(task: Task, file: OpenFile, priority: int | None) -> None:
    kernel, namespace = task.process.kernel, task.files.namespace
    if isinstance(file, HostData) and file.key in namespace.swap_files:
        raise Refused(errno.EBUSY, "it is on")
    if not isinstance(file, StoredFile):
        raise Refused(errno.EINVAL, "no file that stands on a disk")
    size = kernel.config.page_size
    slots = _slots(file, size)
    swap = kernel.physical.with_swap()  # a file that does not serve changes nothing
    fd = os.dup(file.host_fd)
    store = Store(SwapFile.of_program(fd, slots, size), swap.store.codec, 0, size, kernel.physical.counters.n)
    store.tell = swap.store.tell
    if swap.add(os.fsdecode(file.link()), slots, store, priority=priority, key=file.key) is None:
        os.close(fd)
        raise Refused(errno.EPERM, "as many files as there can be are on")
    namespace.swap_files.add(file.key)


def _slots(file: StoredFile, page_size: int) -> int:
    """How many slots a file has, by its header. Raises Refused(EINVAL) for one that does not serve."""
    length = file.size()
    header = file.pread(page_size, 0)
    if len(header) < page_size or header[-len(_SIGNATURE) :] != _SIGNATURE:
        raise Refused(errno.EINVAL, "no signature of a swap area")
    version, last, bad = struct.unpack_from(f"<{_HEADER}", header, _HEADER_AT)
    if version == 1 << 24:  # written by a machine of the other byte order
        version, last, bad = struct.unpack_from(f">{_HEADER}", header, _HEADER_AT)
    if version != 1:
        raise Refused(errno.EINVAL, f"version {version} of the header")
    if not last or last + 1 > length // page_size:
        raise Refused(errno.EINVAL, f"{last} pages, in a file of {length} bytes")
    if bad:
        raise Refused(errno.EINVAL, "a list of bad pages, in a file")
    status = os.fstat(file.host_fd)
    if not stat.S_ISREG(status.st_mode) or status.st_blocks * _BLOCK < (last + 1) * page_size:
        raise Refused(errno.EINVAL, "it has holes")
    return min(int(last), MOST_PLACES)
