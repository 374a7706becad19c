"""The same system call twice: served by `FileCalls` over a plain memory, and by the kernel under the test.

    twin.call("read", F("pipe"), A(4090), 100)

`F` names a pair of descriptors and `A` a place in a pair of memories with the same contents and the same
forbidden pages. Both answers and both memories must be equal, but for the last page, which is for
arguments: addresses in it differ.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aether_emu.clock import VirtualClock
from aether_emu.config import ClockCosts, Config
from aether_emu.errors import Refused
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi.x86_64 import X86Abi
from aether_emu.linux.abi.x86_64_calls import SYSTEM_CALLS
from aether_emu.linux.calls.files import FileCalls
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.signals import SignalInfo
from aether_emu.machine.cpu import UserFault

PAGE = 4096
PAGES = 10
BASE = 0x10_0000
DATA = (PAGES - 1) * PAGE
"""Bytes that are compared."""
ARGUMENTS = DATA
"""Where the page of arguments begins."""
PROT_NONE = 0
BLOCKED = "it would wait"

_ARM64_NUMBERS = {
    "dup": 23, "dup3": 24, "fcntl": 25, "ioctl": 29, "ftruncate": 46, "fallocate": 47, "openat": 56,
    "close": 57, "pipe2": 59, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67,
    "pwrite64": 68, "preadv": 69, "pwritev": 70, "sendfile": 71, "pselect6": 72, "ppoll": 73, "splice": 76,
    "readlinkat": 78, "fsync": 82, "sync_file_range": 84, "utimensat": 88, "readahead": 213, "fadvise64": 223,
    "getdents64": 61, "eventfd2": 19, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "getcwd": 17,
    "flock": 32, "faccessat": 48, "unlinkat": 35, "mkdirat": 34, "symlinkat": 36, "linkat": 37,
    "renameat2": 276, "memfd_create": 279, "copy_file_range": 285, "preadv2": 286, "pwritev2": 287,
    "statx": 291, "close_range": 436, "openat2": 437, "faccessat2": 439, "getxattr": 8, "fgetxattr": 10,
    "truncate": 45, "fchmodat": 53, "fchmod": 52, "fstatfs": 44, "statfs": 43, "newfstatat": 79, "fstat": 80,
}  # fmt: skip
NUMBERS = (
    _ARM64_NUMBERS
    if platform.machine() == "aarch64"
    else {name: number for number, name in SYSTEM_CALLS.items()}
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True)
class A:
    """An address: this many bytes into the memory."""

    offset: int


@dataclass(frozen=True)
class F:
    """A descriptor by its name in the test."""

    name: str


Argument = int | A | F
Memory = bytearray | mmap.mmap


class PlainMemory:
    """What the calls need of a CPU: a run of pages, each readable and writable or less."""

    def __init__(self) -> None:
        self.content = bytearray(PAGES * PAGE)
        self.protection = [mmap.PROT_READ | mmap.PROT_WRITE] * PAGES
        self.pc, self.sp = 0x40_0000, 0x7FFF_0000

    def _check(self, va: int, length: int, needed: int) -> int:
        """How many bytes from `va` on allow the access."""
        done = 0
        while done < length:
            page = (va + done - BASE) // PAGE
            if not 0 <= page < len(self.protection) or self.protection[page] & needed != needed:
                break
            done += min(PAGE - (va + done) % PAGE, length - done)
        return done

    def copy_from_user(self, va: int, length: int) -> bytes:
        """See `Cpu.copy_from_user`."""
        if self._check(va, length, mmap.PROT_READ) < length:
            raise UserFault(f"{va:#x}")
        return bytes(self.content[va - BASE : va - BASE + length])

    def copy_to_user(self, va: int, data: bytes) -> None:
        """See `Cpu.copy_to_user`."""
        allowed = self._check(va, len(data), mmap.PROT_WRITE)
        self.content[va - BASE : va - BASE + allowed] = data[:allowed]
        if allowed < len(data):
            raise UserFault(f"{va:#x}")


class NativeMemory:
    """The same pages in this process: one mapping for the kernel, one for the test to look through."""

    def __init__(self) -> None:
        fd = os.memfd_create("twin", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGES * PAGE)
        self.content = mmap.mmap(fd, PAGES * PAGE)
        # Forbidden pages on both sides, so that nothing else of the process is a neighbour.
        size = (PAGES + 2) * PAGE
        self._whole = _libc.mmap(None, size, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.start = self._whole + PAGE
        map_fixed, both = 0x10, mmap.PROT_READ | mmap.PROT_WRITE
        placed = _libc.mmap(self.start, PAGES * PAGE, both, mmap.MAP_SHARED | map_fixed, fd, 0)
        assert placed == self.start
        os.close(fd)

    def protect(self, page: int, protection: int) -> None:
        """Change one page."""
        assert _libc.mprotect(self.start + page * PAGE, PAGE, protection) == 0

    def close(self) -> None:
        """Unmap both."""
        self.content.close()
        _libc.munmap(self._whole, (PAGES + 2) * PAGE)


@dataclass
class FakeSignals:
    """Keeps what is posted."""

    posted: list[SignalInfo] = field(default_factory=list)
    pending: int = 0
    """Blocked signals that wait, as a mask."""

    def post(self, info: SignalInfo) -> None:
        """See `Signals.post`."""
        self.posted.append(info)

    def suspend(self, mask: int) -> bool:
        """See `Signals.suspend`."""
        return bool(self.pending & ~mask)


class FakeBackings:
    """Nothing is mapped."""

    def find(self, key: object) -> None:
        """See `FileTable.find`."""


class FakeKernel:
    """The parts of a kernel that file calls use."""

    def __init__(self) -> None:
        self.clock = VirtualClock(ClockCosts())
        self.file_backings = FakeBackings()
        self.dead: str | None = None

    def deadlock(self, what: str) -> None:
        """See `Kernel.deadlock`."""
        self.dead = what


class FakeProcess:
    """A process with files and a plain memory."""

    def __init__(self, files: Files, abi: Abi) -> None:
        self.files = files
        self.cpu = PlainMemory()
        self.abi = abi
        self.kernel = FakeKernel()
        self.signals = FakeSignals()
        self.config = Config()
        self.pid = 17
        self.blocked: WouldBlock | None = None

    def block(self, reason: WouldBlock) -> None:
        """See `Process.block`."""
        self.blocked = reason


class Served:
    """System calls by name on a guest's files, answered as the kernel's entry point answers."""

    def __init__(self, files: Files, abi: Abi | None = None) -> None:
        self.process = FakeProcess(files, abi or X86Abi())
        self.memory = self.process.cpu
        self.calls = FileCalls(cast(Process, self.process))

    def __call__(self, name: str, *arguments: int) -> int | str:
        """The result, a negative errno, or BLOCKED."""
        self.process.blocked = self.process.kernel.dead = None
        six = [argument & (1 << 64) - 1 for argument in arguments] + [0] * (6 - len(arguments))
        try:
            result = getattr(self.calls, f"sys_{name}")(*six)
        except Refused as refused:
            return -refused.errno
        except UserFault:
            return -errno.EFAULT
        if result is None:
            assert self.process.blocked is not None or self.process.kernel.dead
            return BLOCKED
        assert isinstance(result, int)
        return result

    def put(self, offset: int, data: bytes) -> int:
        """Store into memory, whatever its protection. Returns the address."""
        self.memory.content[offset : offset + len(data)] = data
        return BASE + offset

    def text(self, text: bytes, offset: int = ARGUMENTS) -> int:
        """Store a string."""
        return self.put(offset, text + b"\0")

    def get(self, offset: int, length: int) -> bytes:
        """Bytes of memory."""
        return bytes(self.memory.content[offset : offset + length])

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        """A structure in memory."""
        return struct.unpack_from("<" + layout, self.memory.content, offset)


class Twin:
    """A served process and the real one, each with its own directory, called "dir"."""

    def __init__(self, served: Served, guest_directory: bytes, native_directory: Path) -> None:
        self.served = served
        self.native = NativeMemory()
        self._descriptors: dict[str, tuple[int, int]] = {}
        guest = served("openat", -100, served.text(guest_directory), os.O_RDONLY, 0)
        assert isinstance(guest, int) and guest >= 0
        self._descriptors["dir"] = (guest, os.open(native_directory, os.O_RDONLY))

    def close(self) -> None:
        """Close what the real process got open."""
        for _, native in self._descriptors.values():
            os.close(native)
        self.native.close()

    @property
    def memories(self) -> tuple[Memory, Memory]:
        """The contents of both."""
        return self.served.memory.content, self.native.content

    def protect(self, page: int, protection: int) -> None:
        """Set the protection of one page in both memories."""
        self.served.memory.protection[page] = protection
        self.native.protect(page, protection)

    def forbid(self, *pages: int) -> None:
        """Let nothing touch these pages."""
        for page in pages:
            self.protect(page, PROT_NONE)

    def put(self, offset: int, data: bytes) -> A:
        """Store the same into both memories."""
        self.served.put(offset, data)
        self.native.content[offset : offset + len(data)] = data
        return A(offset)

    def text(self, text: bytes, offset: int = ARGUMENTS) -> A:
        """Store a string."""
        return self.put(offset, text + b"\0")

    def vector(self, pieces: Sequence[tuple[A, int]], offset: int = ARGUMENTS) -> A:
        """Store an iovec array."""
        for index, (place, length) in enumerate(pieces):
            for memory, start in (
                (self.served.memory.content, BASE),
                (self.native.content, self.native.start),
            ):
                struct.pack_into("<QQ", memory, offset + 16 * index, start + place.offset, length)
        return A(offset)

    def call(self, name: str, *arguments: Argument) -> int:
        """Both answers, which must be equal, as must be the memories afterwards."""
        answer = self.call_apart(name, *arguments)
        self._compare_memories(f"{name}{arguments}")
        return answer

    def call_apart(self, name: str, *arguments: Argument) -> int:
        """Both answers, which must be equal; the memories may differ."""
        ours, theirs = self._raw(name, arguments)
        assert show(ours) == show(theirs), f"{name}{arguments}: {show(ours)}, the kernel {show(theirs)}"
        assert isinstance(ours, int)
        return ours

    def one_side(self, name: str, side: int, *arguments: Argument) -> int:
        """The answer of the served process (0) or the real one (1) to a call that they get differently."""
        answer = self._serve(name, arguments) if side == 0 else self._really(name, arguments)
        assert isinstance(answer, int)
        return answer

    def open(self, result: str, name: str, *arguments: Argument) -> None:
        """A call that returns a descriptor, known as `result` from now on."""
        ours, theirs = self._raw(name, arguments)
        assert isinstance(ours, int) and ours >= 0 and theirs >= 0, f"{show(ours)}, {show(theirs)}"
        self._descriptors[result] = (ours, theirs)

    def pipe(self, reading: str, writing: str, flags: int = os.O_NONBLOCK) -> None:
        """pipe2(2)."""
        assert self._raw("pipe2", (A(0), flags)) == (0, 0)
        ours = struct.unpack_from("<ii", self.served.memory.content)
        theirs = struct.unpack_from("<ii", self.native.content)
        self.put(0, bytes(8))
        for name, pair in zip((reading, writing), zip(ours, theirs, strict=True), strict=True):
            self._descriptors[name] = pair

    def close_descriptor(self, name: str) -> None:
        """close(2)."""
        assert self._raw("close", (F(name),)) == (0, 0)
        del self._descriptors[name]

    def pair(self, name: str) -> tuple[int, int]:
        """The served and the real descriptor."""
        return self._descriptors[name]

    def _raw(self, name: str, arguments: Sequence[Argument]) -> tuple[int | str, int]:
        theirs = self._really(name, arguments)
        return self._serve(name, arguments), theirs

    def _serve(self, name: str, arguments: Sequence[Argument]) -> int | str:
        return self.served(name, *(self._translate(argument, 0, BASE) for argument in arguments))

    def _really(self, name: str, arguments: Sequence[Argument]) -> int:
        values = [self._translate(argument, 1, self.native.start) for argument in arguments]
        ctypes.set_errno(0)
        number = ctypes.c_long(NUMBERS[name])
        result = _libc.syscall(number, *(ctypes.c_ulong(value & (1 << 64) - 1) for value in values))
        assert isinstance(result, int)
        return result if result != -1 else -ctypes.get_errno()

    def _translate(self, argument: Argument, side: int, start: int) -> int:
        if isinstance(argument, F):
            return self._descriptors[argument.name][side]
        return start + argument.offset if isinstance(argument, A) else argument

    def _compare_memories(self, what: str) -> None:
        ours, theirs = bytes(self.served.memory.content[:DATA]), bytes(self.native.content[:DATA])
        if ours != theirs:
            at = next(i for i in range(len(ours)) if ours[i] != theirs[i])
            raise AssertionError(f"{what}: at {at}: {ours[at : at + 16]!r}, {theirs[at : at + 16]!r}")


def show(result: int | str) -> int | str:
    """An answer with its errno by name."""
    return errno.errorcode.get(-result, result) if isinstance(result, int) and result < 0 else result
