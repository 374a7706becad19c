"""The same system call twice: served to a program on an emulated machine, and by the kernel under the test.

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
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aether_emu.linux.abi.signal import SA_RESTORER, UNBLOCKABLE, Action
from aether_emu.linux.abi.x86_64_calls import SYSTEM_CALLS
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.open_file import POLLIN, POLLOUT, OpenFile
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.linux.task.task import Task
from aether_emu.mm.mapping import protect_memory
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.system import Machine

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
    "setregid": 143, "setgid": 144, "setreuid": 145, "setuid": 146, "setresuid": 147, "setresgid": 149,
    "setfsuid": 151, "setfsgid": 152, "getgroups": 158, "setgroups": 159, "prctl": 167, "capget": 90,
    "capset": 91,
    "socketpair": 199, "shutdown": 210,
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


class GuestMemory:
    """A run of pages in a guest's address space at BASE, seen from both sides: a host file that is mapped."""

    def __init__(self, machine: Machine, mm: AddressSpace) -> None:
        self.cpu, self._mm = machine.cpu, mm
        self.content: mmap.mmap
        self.resize(PAGES)

    def resize(self, pages: int) -> None:
        """Fresh pages, readable and writable, in place of those before."""
        fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(fd, pages * PAGE)
        self.content = mmap.mmap(fd, pages * PAGE)
        with os.fdopen(fd, "r+b", buffering=0) as file:
            self._mm.map_file(file, BASE, pages * PAGE, Protection.READ | Protection.WRITE)

    def close(self) -> None:
        """Let go of the test's own view."""
        self.content.close()

    def protect(self, page: int, protection: int) -> None:
        """Change what the guest may do with one page."""
        protect_memory(self._mm, BASE + page * PAGE, PAGE, protection)


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


EVERY_SIGNAL = (1 << 64) - 1 & ~UNBLOCKABLE
CODE, STACK = 0x60_0000, 0x70_0000
HANDLER = CODE + 16
"""A signal handler that returns at once, and behind it the code it returns through."""
_RESTORER = CODE + 32
_X86_CODE = bytes.fromhex("0f05ebfe").ljust(16) + b"\xc3".ljust(16) + bytes.fromhex("b80f0000000f05")
_ARM64_CODE = bytes.fromhex("010000d400000014")  # svc #0; b .
_REGISTERS = {
    "x86_64": ("rip", "rsp", "rax", "rdi", "rsi", "rdx", "r10", "r8", "r9"),
    "arm64": ("pc", "sp", "x8", "x0", "x1", "x2", "x3", "x4", "x5"),
}
_ENOUGH = 16  # blocks for a call and a handler; the rest is a loop that does nothing


class Served:
    """A program on a machine that makes system calls by name, one at a time, on a guest's files.

    It blocks every signal, so that those it gets can be looked at.
    """

    def __init__(self, files: Files, isa: str = "x86_64", ram: str = "4M") -> None:
        self.machine = Machine(isa, ram=ram, aperture="16M", pause=self._nobody_comes)
        mm = self.machine.new_space()
        self.process = Process(self.machine.kernel, mm, Program(b"/served", [], []), pid=17)
        self.process.files = files
        self.task = Task(self.process)
        self.task.signals.blocked = EVERY_SIGNAL
        self._isa, self._files = isa, files
        self._numbers = {name: number for number, name in self.machine.abi.system_calls.items()}
        self.machine.entry.switch(self.task)
        self.machine.scheduler.add(self.task)
        for start in (CODE, STACK):
            mm.insert(
                mm.new_area(start, start + 4 * PAGE, Protection.READ | Protection.WRITE | Protection.EXECUTE)
            )
        self.machine.cpu.copy_to_user(CODE, _X86_CODE if isa == "x86_64" else _ARM64_CODE)
        self.memory = GuestMemory(self.machine, mm)

    def close(self) -> None:
        """Take the machine apart. The files stay the caller's."""
        self._give_up()
        self.machine.cpu.set_root(self.machine.kernel_half.table.root)
        self.process.mm.destroy()
        self.process.leave_bodies()
        self.memory.close()
        self.machine.close()

    def _nobody_comes(self) -> None:
        raise Interrupted

    def _give_up(self) -> None:
        """Forget a call that waits."""
        if self.task.wait is not None:
            self.task.leave_queues()
            self.task.done_waiting()
            self.task.signals.end_suspension()

    def __call__(self, name: str, *arguments: int) -> int | str:
        """The result, a negative errno, or BLOCKED."""
        self._give_up()
        six = [argument & (1 << 64) - 1 for argument in arguments] + [0] * (6 - len(arguments))
        pc, sp, number, *registers = _REGISTERS[self._isa]
        values = {pc: CODE, sp: STACK + 3 * PAGE, number: self._numbers[name]}
        self.machine.cpu.load_registers(values | dict(zip(registers, six, strict=True)))
        return self.again()

    def again(self) -> int | str:
        """The same for a call that was BLOCKED, and may have got what it waits for."""
        try:
            assert not self.machine.scheduler.run(_ENOUGH), "the program never ends"
        except (Deadlock, Interrupted):
            return BLOCKED
        result = self.machine.cpu.read("rax" if self._isa == "x86_64" else "x0")
        return result - (1 << 64) if result >> 63 else result

    def waits_for(self, file: OpenFile) -> bool:
        """Whether the call that is BLOCKED waits for this file."""
        wait = self.task.wait
        return wait is not None and bool({*wait.queues} & {*file.queues(POLLIN | POLLOUT)})

    def handle(self, number: int) -> None:
        """Install the handler that does nothing."""
        self.process.set_action(number, Action(HANDLER, SA_RESTORER, _RESTORER))

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
        self.served.close()

    @property
    def memories(self) -> tuple[mmap.mmap, mmap.mmap]:
        """The contents of both."""
        return self.served.memory.content, self.native.content

    def protect(self, page: int, protection: int) -> None:
        """Set the protection of one page in both memories."""
        self.served.memory.protect(page, protection)
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
        self._name_two(reading, writing)

    def pair_of_sockets(self, one: str, other: str) -> None:
        """socketpair(2): unix streams that never wait."""
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        assert self._raw("socketpair", (socket.AF_UNIX, kind, 0, A(0))) == (0, 0)
        self._name_two(one, other)

    def _name_two(self, reading: str, writing: str) -> None:
        """The two descriptors that a call has put to the beginning of memory."""
        ours = struct.unpack_from("<ii", self.served.memory.content)
        theirs = struct.unpack_from("<ii", self.native.content)
        self.put(0, bytes(8))
        for name, pair in zip((reading, writing), zip(ours, theirs, strict=True), strict=True):
            self._descriptors[name] = pair

    def close_descriptor(self, name: str) -> None:
        """close(2)."""
        assert self._raw("close", (F(name),)) == (0, 0)
        del self._descriptors[name]

    def forget(self, name: str) -> None:
        """A name that stands for no descriptor any more, but for a number of another kind."""
        del self._descriptors[name]

    def has(self, name: str) -> bool:
        """Whether there is a descriptor of that name."""
        return name in self._descriptors

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
