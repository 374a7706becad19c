"""Files and their mappings, on a whole machine, where calls are made for a program that stands still."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.calls import call_table
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.cpu import UserFault
from aether_emu.machine.memory import host
from aether_emu.mm.counters import Event
from aether_emu.mm.mapping import MAP_PRIVATE, MAP_SHARED
from aether_emu.system import Machine

PROGRAM = Path(__file__).parents[3] / "guest/bin/x86_64/hello"
PAGE = 4096
SCRATCH = 0x2000_0000
READ, WRITE, EXECUTE = 1, 2, 4
ANONYMOUS, FIXED = 0x20, 0x10
RDWR = fl.O_RDWR | fl.O_CREAT


class Guest:
    """A loaded program's memory and system calls. `/w` is the host's directory `w`."""

    def __init__(self, machine: Machine, w: Path) -> None:
        self.machine, self.w = machine, w
        assert machine.process is not None
        self.process, self.cpu = machine.process, machine.cpu
        self._calls = dict(
            zip(machine.abi.system_calls.values(), self._by_number(), strict=True),
        )
        scratch = self.call("mmap", SCRATCH, 16 * PAGE, READ | WRITE, MAP_PRIVATE | ANONYMOUS | FIXED, -1, 0)
        assert scratch == SCRATCH

    def _by_number(self) -> list[object]:
        table = call_table(self.machine.abi)
        return [table[number] for number in self.machine.abi.system_calls]

    def call(self, name: str, *arguments: int) -> int:
        """The answer, or a negative errno."""
        served = self._calls[name]
        assert callable(served), name
        six = [argument & (1 << 64) - 1 for argument in arguments] + [0] * (6 - len(arguments))
        try:
            answer = served(self.machine.entry.task, *six)
        except Refused as refused:
            return -refused.errno
        except UserFault:
            return -errno.EFAULT
        assert isinstance(answer, int)
        return answer

    def text(self, text: bytes) -> int:
        """A string in the scratch memory."""
        self.cpu.copy_to_user(SCRATCH + 15 * PAGE, text + b"\0")
        return SCRATCH + 15 * PAGE

    def open(self, path: bytes, flags: int = RDWR) -> int:
        """A descriptor."""
        fd = self.call("open", self.text(path), flags, 0o644)
        assert fd >= 0, errno.errorcode[-fd]
        return fd

    def map(self, fd: int, protection: int, kind: int, pages: int = 4) -> int:
        """The address of a mapping, or a negative errno."""
        return self.call("mmap", 0, pages * PAGE, protection, kind, fd, 0)

    def write(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite64(2)."""
        self.cpu.copy_to_user(SCRATCH, data)
        return self.call("pwrite64", fd, SCRATCH, len(data), offset)

    def load(self, address: int, length: int = 1) -> bytes | None:
        """Bytes through the MMU; None where a program would get a signal."""
        try:
            return self.cpu.copy_from_user(address, length)
        except UserFault:
            return None

    def store(self, address: int, data: bytes) -> bool:
        """Store through the MMU; False where a program would get a signal."""
        try:
            self.cpu.copy_to_user(address, data)
        except UserFault:
            return False
        return True

    def code_flushes(self) -> int:
        """How often translations of code were dropped."""
        return self.machine.physical.counters.n[Event.FLUSH_CODE]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest with a writable /w in which "f" has three pages and a half: a, b, c, d."""
    (tmp_path / "f").write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE + b"d" * (PAGE // 2))
    machine = Machine("x86_64", ram="32M")
    try:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        grants = Grants(binds=[Bind(tmp_path, "/w", writable=True)])
        machine.load(PROGRAM, ["hello"], streams=streams, grants=grants)
        yield Guest(machine, tmp_path)
    finally:
        machine.close()  # LeakError if a frame or a file is still held


# What may be mapped


def test_a_shared_mapping_is_the_file(guest: Guest) -> None:
    fd = guest.open(b"/w/f")
    address = guest.map(fd, READ | WRITE, MAP_SHARED)
    assert guest.load(address + PAGE, 3) == b"bbb"
    assert guest.store(address + PAGE, b"new")
    assert (guest.w / "f").read_bytes()[PAGE : PAGE + 4] == b"newb"
    assert guest.write(fd, b"old", PAGE) == 3
    assert guest.load(address + PAGE, 4) == b"oldb"


def test_a_private_mapping_is_not(guest: Guest) -> None:
    fd = guest.open(b"/w/f", fl.O_RDONLY)
    address = guest.map(fd, READ | WRITE, MAP_PRIVATE)
    assert guest.store(address, b"mine")
    assert (guest.w / "f").read_bytes()[:4] == b"aaaa"


def test_a_mapping_outlives_its_descriptor_and_its_name(guest: Guest) -> None:
    fd = guest.open(b"/w/f")
    address = guest.map(fd, READ | WRITE, MAP_SHARED)
    assert guest.call("close", fd) == 0
    assert guest.call("unlink", guest.text(b"/w/f")) == 0
    assert guest.load(address + 2 * PAGE) == b"c"
    assert guest.store(address, b"x")


def test_the_descriptor_says_what_is_allowed(guest: Guest) -> None:
    read_only, write_only = guest.open(b"/w/f", fl.O_RDONLY), guest.open(b"/w/f", fl.O_WRONLY)
    assert guest.map(read_only, READ | WRITE, MAP_SHARED) == -errno.EACCES
    assert guest.map(write_only, READ, MAP_SHARED) == -errno.EACCES
    assert guest.map(write_only, READ, MAP_PRIVATE) == -errno.EACCES
    shared = guest.map(read_only, READ, MAP_SHARED)
    assert not guest.store(shared, b"x")
    assert guest.call("mprotect", shared, PAGE, READ | WRITE) == -errno.EACCES


def test_what_has_no_pages_is_not_mapped(guest: Guest) -> None:
    assert guest.call("pipe", SCRATCH) == 0
    pipe = int.from_bytes(guest.cpu.copy_from_user(SCRATCH, 4), "little")
    paths = (b"/w", b"/dev/null", b"/proc/self/maps")
    for fd in (pipe, *(guest.open(path, fl.O_RDONLY) for path in paths)):
        assert guest.map(fd, READ, MAP_PRIVATE) == -errno.ENODEV
    assert guest.map(guest.open(b"/w/f", fl.O_PATH), READ, MAP_PRIVATE) == -errno.EBADF
    assert guest.map(999, READ, MAP_PRIVATE) == -errno.EBADF


@pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
def test_the_zero_device_is_anonymous_memory(guest: Guest, kind: int) -> None:
    fd = guest.open(b"/dev/zero", fl.O_RDWR)
    address = guest.map(fd, READ | WRITE, kind)
    assert guest.load(address + 3 * PAGE, 2) == b"\0\0"
    assert guest.store(address + 3 * PAGE, b"xy")
    assert guest.load(address + 3 * PAGE, 2) == b"xy"
    write_only = guest.open(b"/dev/zero", fl.O_WRONLY)
    assert guest.map(write_only, READ, kind) == -errno.EACCES


@pytest.mark.parametrize(
    ("pages", "offset", "answer"),
    [(1, (1 << 63) - PAGE, errno.EOVERFLOW), (2, (1 << 63) - 2 * PAGE, errno.EOVERFLOW),
     (1, 1 << 63, errno.EOVERFLOW), (1, -PAGE, errno.EOVERFLOW), (1, 1, errno.EINVAL)],
)  # fmt: skip
def test_no_file_reaches_behind_the_largest_offset(
    guest: Guest, pages: int, offset: int, answer: int
) -> None:
    fd = guest.open(b"/w/f")
    assert guest.call("mmap", 0, pages * PAGE, READ, MAP_SHARED, fd, offset) == -answer


@pytest.mark.parametrize(
    ("flags", "works"),
    [(0, True), (0x400_0000, True), (0x40 | 0x80, True), (0x800 | 0x1000, True), (0x80_0000, False),
     (0x8_0000, False), (0x8000_0000, False), (0x10_0000, False)],
)  # fmt: skip
def test_validated_flags_are_those_that_are_old(guest: Guest, flags: int, works: bool) -> None:
    """MAP_SHARED_VALIDATE: MAP_UNINITIALIZED is known, MAP_SYNC, MAP_FIXED_NOREPLACE are not."""
    fd, hint = guest.open(b"/w/f"), 0x3000_0000
    answer = guest.call("mmap", hint, PAGE, READ, 3 | flags, fd, 0)
    assert (answer == hint) if works else (answer == -errno.EOPNOTSUPP)


def test_the_zero_device_remembers_how_it_was_opened(guest: Guest) -> None:
    fd = guest.open(b"/dev/zero", fl.O_RDONLY)
    assert guest.map(fd, READ | WRITE, MAP_SHARED) == -errno.EACCES
    shared, private = guest.map(fd, READ, MAP_SHARED), guest.map(fd, READ, MAP_PRIVATE)
    assert guest.call("mprotect", shared, PAGE, READ | WRITE) == -errno.EACCES
    assert guest.call("mprotect", private, PAGE, READ | WRITE) == 0
    assert guest.store(private, b"x") and not guest.store(shared, b"x")
    assert guest.map(fd, READ, MAP_PRIVATE | 0x100) == -errno.EINVAL, "a device does not grow"
    assert guest.map(fd, READ, 3 | 0x8000_0000) == -errno.EOPNOTSUPP, "MAP_SHARED_VALIDATE"
    names = {area.name for area in guest.process.mm.areas if area.start in (shared, private)}
    assert names == {"/dev/zero"}
    assert guest.call("madvise", private, PAGE, 18) == -errno.EINVAL, "MADV_WIPEONFORK is for no file"


# Sizes


@pytest.mark.parametrize("way", ["ftruncate", "truncate", "O_TRUNC"])
def test_what_is_cut_off_is_gone_from_every_mapping(guest: Guest, way: str) -> None:
    fd = guest.open(b"/w/f")
    shared, private = guest.map(fd, READ | WRITE, MAP_SHARED), guest.map(fd, READ | WRITE, MAP_PRIVATE)
    for page in range(4):
        assert (
            guest.load(shared + page * PAGE) == guest.load(private + page * PAGE) == b"abcd"[page : page + 1]
        )
    assert guest.store(private + PAGE, b"copy") and guest.store(private + 2 * PAGE, b"copy")
    size = 0 if way == "O_TRUNC" else PAGE + 10
    if way == "ftruncate":
        assert guest.call("ftruncate", fd, size) == 0
    elif way == "truncate":
        assert guest.call("truncate", guest.text(b"/w/f"), size) == 0
    else:
        guest.open(b"/w/f", fl.O_RDWR | fl.O_TRUNC)
    if size:
        assert guest.load(shared + PAGE, 11) == b"b" * 10 + b"\0"
        assert guest.load(private + PAGE, 5) == b"copyb", "the copy of the page with the end stays"
    else:
        assert guest.load(shared) is None and guest.load(private + PAGE) is None
    for page in (2, 3):
        assert guest.load(shared + page * PAGE) is None
        assert guest.load(private + page * PAGE) is None
        assert not guest.store(shared + page * PAGE, b"x")
    assert guest.call("ftruncate", fd, 4 * PAGE) == 0
    for page in (2, 3):
        assert guest.load(shared + page * PAGE) == guest.load(private + page * PAGE) == b"\0"


@pytest.mark.parametrize("way", ["write", "writev", "sendfile", "copy_file_range", "fallocate", "ftruncate"])
def test_what_a_file_grows_by_is_there(guest: Guest, way: str) -> None:
    fd = guest.open(b"/w/f")
    address = guest.map(fd, READ | WRITE, MAP_SHARED, pages=6)
    assert guest.load(address + 4 * PAGE) is None
    guest.call("lseek", fd, 4 * PAGE, 0)
    source = guest.open(b"/w/source")
    assert guest.write(source, b"grown", 0) == 5
    if way == "write":
        assert guest.call("write", fd, SCRATCH, 5) == 5
    elif way == "writev":
        guest.cpu.copy_to_user(SCRATCH + PAGE, b"".join(n.to_bytes(8, "little") for n in (SCRATCH, 5)))
        assert guest.call("writev", fd, SCRATCH + PAGE, 1) == 5
    elif way == "sendfile":
        assert guest.call("sendfile", fd, source, 0, 5) == 5
    elif way == "copy_file_range":
        assert guest.call("copy_file_range", source, 0, fd, 0, 5, 0) == 5
    elif way == "fallocate":
        assert guest.call("fallocate", fd, 0, 0, 4 * PAGE + 5) == 0
    else:
        assert guest.call("ftruncate", fd, 4 * PAGE + 5) == 0
    grown = bytes(5) if way in ("fallocate", "ftruncate") else b"grown"
    assert guest.load(address + 4 * PAGE, 6) == grown + b"\0"
    assert guest.load(address + 5 * PAGE) is None


# Code


@pytest.mark.parametrize(
    "way", ["pwrite", "write", "sendfile", "copy_file_range", "fallocate", "ftruncate", "truncate", "O_TRUNC"]
)
def test_code_in_a_file_is_forgotten_when_the_file_changes(guest: Guest, way: str) -> None:
    fd = guest.open(b"/w/f")
    address = guest.map(fd, READ | EXECUTE, MAP_PRIVATE)
    source = guest.open(b"/w/source")
    assert guest.write(source, b"code", 0) == 4
    assert guest.load(address) == b"a"
    before = guest.code_flushes()
    if way == "pwrite":
        guest.write(fd, b"x", 5)
    elif way == "write":
        guest.call("write", fd, SCRATCH, 5)
    elif way == "sendfile":
        guest.call("sendfile", fd, source, 0, 4)
    elif way == "copy_file_range":
        guest.call("copy_file_range", source, 0, fd, 0, 4, 0)
    elif way == "fallocate":
        guest.call("fallocate", fd, 3, 0, PAGE)  # a hole, the size kept
    elif way == "ftruncate":
        guest.call("ftruncate", fd, 10)
    elif way == "truncate":
        guest.call("truncate", guest.text(b"/w/f"), 10)
    else:
        guest.open(b"/w/f", fl.O_RDWR | fl.O_TRUNC)
    assert guest.code_flushes() > before


def test_writing_files_without_code_forgets_nothing(guest: Guest) -> None:
    fd = guest.open(b"/w/f")
    guest.load(guest.map(fd, READ | WRITE, MAP_SHARED))
    before = guest.code_flushes()
    assert guest.write(fd, b"x", 5) == 1
    assert guest.call("ftruncate", fd, 10) == 0
    assert guest.code_flushes() == before


# Memory files


def test_a_mapped_memory_file_takes_of_the_limit_until_it_is_unmapped(guest: Guest) -> None:
    namespace = guest.process.files.namespace
    fd = guest.call("memfd_create", guest.text(b"m"), 0)
    assert guest.call("ftruncate", fd, 5 * PAGE) == 0
    first = guest.map(fd, READ | WRITE, MAP_SHARED)
    second = guest.map(fd, READ, MAP_PRIVATE)
    assert guest.store(first + PAGE, b"kept")
    assert guest.call("close", fd) == 0
    assert namespace.memory_used == PAGE
    assert guest.call("munmap", first, 4 * PAGE) == 0
    assert guest.load(second + PAGE, 4) == b"kept"
    assert namespace.memory_used == PAGE
    assert guest.call("munmap", second, 4 * PAGE) == 0
    assert namespace.memory_used == 0


ADD_SEALS, SEAL_WRITE, SEAL_FUTURE_WRITE = 1033, 8, 16
MADV_REMOVE = 9
SHARED_ANONYMOUS = MAP_SHARED | ANONYMOUS


def memory_file(guest: Guest, pages: int) -> int:
    """A memory file that can be sealed."""
    fd = guest.call("memfd_create", guest.text(b"m"), 2)
    assert guest.call("ftruncate", fd, pages * PAGE) == 0
    return fd


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("protection", [READ, READ | WRITE])
def test_a_mapping_that_may_be_written_forbids_the_seal_before_any_touch(
    guest: Guest, protection: int, reopened: bool
) -> None:
    fd = memory_file(guest, 4)
    shared = guest.map(guest.open(b"/proc/self/fd/%d" % fd) if reopened else fd, protection, MAP_SHARED)
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_WRITE) == -errno.EBUSY
    assert guest.call("mprotect", shared, PAGE, READ | WRITE) == 0
    assert guest.store(shared, b"x")
    assert guest.call("munmap", shared + PAGE, 3 * PAGE) == 0
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_WRITE) == -errno.EBUSY, "a part of it is still there"
    assert guest.call("munmap", shared, PAGE) == 0
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_WRITE) == 0


def test_mappings_that_never_write_permit_the_seal_and_go_on(guest: Guest) -> None:
    fd = memory_file(guest, 4)
    reader = guest.open(b"/proc/self/fd/%d" % fd, fl.O_RDONLY)
    private, shared = guest.map(fd, READ | WRITE, MAP_PRIVATE), guest.map(reader, READ, MAP_SHARED)
    assert guest.write(fd, b"before", 0) == 6
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_WRITE) == 0
    assert guest.write(fd, b"after", 0) == -errno.EPERM
    assert guest.load(shared, 6) == guest.load(private, 6) == b"before"
    assert guest.store(private, b"mine") and guest.load(shared, 6) == b"before"
    assert guest.call("mprotect", shared, PAGE, READ | WRITE) == -errno.EACCES
    assert guest.map(fd, READ | WRITE, MAP_SHARED) == -errno.EPERM
    late = guest.map(fd, READ, MAP_SHARED)
    assert guest.load(late, 6) == b"before"
    assert guest.call("mprotect", late, PAGE, READ | WRITE) == -errno.EACCES
    assert guest.load(guest.map(reader, READ, MAP_SHARED), 6) == b"before"
    assert guest.load(guest.map(fd, READ, MAP_PRIVATE), 6) == b"before"


def test_a_seal_against_future_writes_leaves_old_mappings_as_they_are(guest: Guest) -> None:
    """The part that is touched later needs another window of the host's."""
    pages = (48 << 20) // PAGE
    fd = memory_file(guest, pages)
    old = guest.map(fd, READ | WRITE, MAP_SHARED, pages)
    assert guest.store(old, b"near")
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_FUTURE_WRITE) == 0
    assert guest.store(old + PAGE, b"x") and guest.store(old + (pages - 1) * PAGE, b"far")
    assert guest.map(fd, READ | WRITE, MAP_SHARED) == -errno.EPERM
    new = guest.map(fd, READ, MAP_SHARED, pages)
    assert guest.load(new + (pages - 1) * PAGE, 3) == b"far"
    assert guest.call("mprotect", new, PAGE, READ | WRITE) == -errno.EACCES
    assert guest.store(guest.map(fd, READ | WRITE, MAP_PRIVATE), b"mine")
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_WRITE) == -errno.EBUSY


def test_mapped_memory_takes_what_is_touched_and_beyond_the_limit_is_no_page(guest: Guest) -> None:
    namespace = guest.process.files.namespace
    fd = memory_file(guest, 1 << 20)
    shared = guest.map(fd, READ | WRITE, MAP_SHARED, pages=1 << 20)
    assert namespace.memory_used == 0
    assert guest.load(shared + 100 * PAGE) == b"\0" and guest.store(shared + 200 * PAGE, b"x")
    assert namespace.memory_used == 2 * PAGE, "a hole that is read through a mapping gets a page"
    namespace.memory_limit = 3 * PAGE
    private = guest.map(fd, READ | WRITE, MAP_PRIVATE, pages=500)
    assert guest.store(private + 300 * PAGE, b"x")
    assert namespace.memory_used == 3 * PAGE, "a private copy is made of a page of the file"
    for mapping in (shared, private):
        assert not guest.store(mapping + 400 * PAGE, b"x") and guest.load(mapping + 400 * PAGE) is None
    assert guest.store(shared + 100 * PAGE, b"x") and guest.load(shared + 300 * PAGE) == b"\0"
    assert guest.call("fallocate", fd, 3, 100 * PAGE, PAGE) == 0  # a hole, the size kept
    assert namespace.memory_used == 2 * PAGE
    assert guest.load(shared + 100 * PAGE) == b"\0" and namespace.memory_used == 3 * PAGE


def test_a_hole_is_made_under_every_mapping_but_not_under_private_copies(guest: Guest) -> None:
    stored, memory = guest.open(b"/w/f"), memory_file(guest, 4)
    guest.write(memory, b"a" * PAGE + b"b" * PAGE + b"c" * PAGE + b"d" * PAGE, 0)
    for fd in (stored, memory):
        for way in ("fallocate", "madvise"):
            shared, private = (
                guest.map(fd, READ | WRITE, MAP_SHARED),
                guest.map(fd, READ | WRITE, MAP_PRIVATE),
            )
            for page in range(3):
                assert (
                    guest.store(shared + page * PAGE, b"full") and guest.load(private + page * PAGE) == b"f"
                )
            assert guest.store(private + PAGE, b"copy")
            if way == "fallocate":
                assert guest.call("fallocate", fd, 3, PAGE, 2 * PAGE) == 0
            else:
                assert guest.call("madvise", shared + PAGE, 2 * PAGE, MADV_REMOVE) == 0
            assert [guest.load(shared + page * PAGE, 4) for page in range(3)] == [b"full", bytes(4), bytes(4)]
            assert [guest.load(private + page * PAGE, 4) for page in range(3)] == [b"full", b"copy", bytes(4)]
            assert guest.store(shared + 2 * PAGE, b"next") and guest.load(private + 2 * PAGE, 4) == b"next"


def test_removing_needs_a_shared_mapping_that_may_be_made_writable(guest: Guest) -> None:
    fd = memory_file(guest, 4)
    reader = guest.open(b"/proc/self/fd/%d" % fd, fl.O_RDONLY)
    for mapped in (guest.map(fd, READ | WRITE, MAP_PRIVATE), guest.map(reader, READ, MAP_SHARED)):
        assert guest.call("madvise", mapped, PAGE, MADV_REMOVE) == -errno.EACCES
    assert guest.call("madvise", guest.map(fd, READ, MAP_SHARED), PAGE, MADV_REMOVE) == 0
    assert guest.call("madvise", SCRATCH, PAGE, MADV_REMOVE) == -errno.EINVAL
    old = guest.map(fd, READ | WRITE, MAP_SHARED)
    assert guest.call("fcntl", fd, ADD_SEALS, SEAL_FUTURE_WRITE) == 0
    assert guest.call("madvise", old, PAGE, MADV_REMOVE) == -errno.EPERM


# What is in memory


def residency(guest: Guest, address: int, pages: int) -> str | int:
    """mincore(2): a digit for each page, or a negative errno. Nothing is stored behind them."""
    behind = b"\7" * 8
    guest.cpu.copy_to_user(SCRATCH + 4 * PAGE + pages, behind)
    answer = guest.call("mincore", address, pages * PAGE, SCRATCH + 4 * PAGE)
    told = guest.cpu.copy_from_user(SCRATCH + 4 * PAGE, pages + len(behind))
    assert told[pages:] == behind
    return answer or "".join(str(byte) for byte in told[:pages])


def test_the_object_knows_what_is_in_memory(guest: Guest) -> None:
    """As the page cache does, whoever brought the page and whether or not this mapping was touched."""
    fd = guest.open(b"/w/new")
    assert guest.write(fd, b"x" * 4 * PAGE, 0) == 4 * PAGE
    shared = guest.map(fd, READ | WRITE, MAP_SHARED, pages=6)
    private = guest.map(fd, READ | WRITE, MAP_PRIVATE)
    assert (residency(guest, shared, 6), residency(guest, private, 4)) == ("111100", "1111")
    assert guest.store(private, b"copy") and residency(guest, private, 4) == "1111"

    memory = memory_file(guest, 4)
    first, second = guest.map(memory, READ | WRITE, MAP_SHARED), guest.map(memory, READ | WRITE, MAP_PRIVATE)
    assert residency(guest, first, 4) == "0000"
    guest.write(memory, b"x", PAGE)
    assert guest.load(first + 3 * PAGE) == b"\0"
    assert residency(guest, first, 4) == residency(guest, second, 4) == "0101"
    assert guest.call("fallocate", memory, 3, PAGE, PAGE) == 0
    assert residency(guest, first, 4) == "0001"

    anonymous = guest.map(-1, READ | WRITE, SHARED_ANONYMOUS)
    view = guest.call("mremap", anonymous, 0, 4 * PAGE, 1)
    assert guest.store(anonymous + PAGE, b"x") and residency(guest, view, 4) == "0100"
    assert guest.call("madvise", anonymous, 4 * PAGE, 4) == 0  # MADV_DONTNEED
    assert residency(guest, anonymous, 4) == "0100"
    assert guest.call("madvise", anonymous, 4 * PAGE, MADV_REMOVE) == 0
    assert residency(guest, view, 4) == "0000"


def test_residency_is_told_area_by_area_up_to_a_hole(guest: Guest) -> None:
    at = guest.map(-1, READ | WRITE, MAP_PRIVATE | ANONYMOUS, pages=6)
    assert guest.call("mprotect", at + 2 * PAGE, PAGE, READ) == 0
    for page in (0, 2, 3):
        guest.load(at + page * PAGE)
    assert residency(guest, at, 5) == "10110"
    assert guest.call("munmap", at + 4 * PAGE, PAGE) == 0
    assert guest.cpu.copy_from_user(SCRATCH + 4 * PAGE, 5) == b"\1\0\1\1\0"
    guest.cpu.copy_to_user(SCRATCH + 4 * PAGE, b"\7" * 6)
    assert residency(guest, at, 6) == -errno.ENOMEM
    assert guest.cpu.copy_from_user(SCRATCH + 4 * PAGE, 6) == b"\1\0\1\1\7\7"
    assert guest.call("mincore", at, 4 * PAGE, 1 << 62) == -errno.EFAULT
    assert guest.call("mincore", at + 1, 0, SCRATCH) == -errno.EINVAL
    assert guest.call("mincore", at, 0, 1) == 0


def test_a_name_that_is_no_text_is_shown_as_it_is(guest: Guest) -> None:
    fd = guest.open(b"/w/\xff\xfe")
    assert guest.write(fd, b"x", 0) == 1
    guest.map(fd, READ, MAP_PRIVATE, pages=1)
    maps = guest.open(b"/proc/self/maps", fl.O_RDONLY)
    size = guest.call("read", maps, SCRATCH, 8 * PAGE)
    assert b"/w/\xff\xfe\n" in guest.cpu.copy_from_user(SCRATCH, size)


# What the host refuses


def test_a_page_that_the_host_refuses_late_is_a_bus_error_and_no_more(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another owner of the host's file forbids new windows of it after the guest has mapped it."""
    fd = memory_file(guest, 2)
    shared = guest.map(fd, READ | WRITE, MAP_SHARED, pages=2)
    assert guest.store(shared, b"here")

    def refuse(address: int, length: int, *_: object, **_more: object) -> None:
        raise host.HostMemoryError("mmap", errno.EPERM, address, length)

    stored = guest.map(guest.open(b"/w/f"), READ, MAP_SHARED)
    with monkeypatch.context() as patched:
        patched.setattr(host, "place_file", refuse)
        assert guest.load(stored) is None
        assert guest.store(shared, b"HERE")
    assert guest.load(stored) == b"a"


def test_without_host_descriptors_a_file_is_not_mapped(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = guest.open(b"/w/f")

    def full(fd: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "dup", full)
    assert guest.map(fd, READ, MAP_PRIVATE) == -errno.EMFILE


def test_a_failure_of_the_host_that_nobody_foresees_is_the_errno_of_the_call(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = guest.open(b"/w/f")
    number = next(n for n, name in guest.machine.abi.system_calls.items() if name == "fstat")

    def broken(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "the server is gone")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", broken)
        answer = guest.cpu.on_system_call(number, fd, SCRATCH, 0, 0, 0, 0)
    assert answer == -errno.ESTALE


def test_pages_that_are_lost_with_their_window_are_one_bus_error(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages of one window are lost, and the host has no mapping left to show the file again."""
    shared = guest.map(guest.open(b"/w/f"), READ | WRITE, MAP_SHARED)
    computer, aperture = guest.machine.computer, guest.machine.aperture
    assert guest.load(shared) == b"a" and guest.load(shared + PAGE) == b"b"
    frame = guest.process.mm.walk(shared).address - aperture.base + aperture.host_address  # type: ignore[union-attr]

    def refuse(address: int, length: int, *_: object, **_more: object) -> None:
        raise host.HostMemoryError("mmap", errno.ENOMEM, address, length)

    with monkeypatch.context() as patched:
        patched.setattr(host, "place_file", refuse)
        patched.setattr(computer._guard, "drain", lambda token: [frame, frame + PAGE])
        ((_file, page),) = computer.lost_pages()
    assert page == 0
    assert guest.load(shared + PAGE) == b"b"
