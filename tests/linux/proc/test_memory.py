"""/proc/self/mem and /proc/self/pagemap: the process's memory by address, and what stands behind it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.process import Process
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.mapping import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request, map_memory, protect_memory
from aether_emu.mm.protection import Protection
from aether_emu.mm.tables.walk import Mapped
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program

AT = 0x2000_0000
NONE, READ, WRITE, EXECUTE = Protection.NONE, Protection.READ, Protection.WRITE, Protection.EXECUTE
RW = READ | WRITE
ANONYMOUS = 0x20
PRESENT, SWAPPED, FILE, EXCLUSIVE, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 56, 1 << 55


class View:
    """A process seen through /proc/self/mem and /proc/self/pagemap."""

    def __init__(self, process: Process) -> None:
        self.process, self.files, self.page = process, process.files, process.mm.page_size
        self.mem = self.files.open(fl.AT_FDCWD, b"/proc/self/mem", fl.O_RDWR)
        self.pagemap = self.files.open(fl.AT_FDCWD, b"/proc/%d/pagemap" % process.pid, fl.O_RDONLY)

    def map(self, at: int, pages: int, protection: int, flags: int = MAP_PRIVATE | ANONYMOUS) -> int:
        """Pages at `at`, counted from the area of the tests on."""
        address = AT + at * self.page
        request = Request(address, pages * self.page, protection, flags | MAP_FIXED, None, 0)
        return map_memory(self.process.mm, request)

    def protect(self, at: int, protection: int) -> None:
        protect_memory(self.process.mm, AT + at * self.page, self.page, protection)

    def store(self, at: int, data: bytes) -> None:
        """As the program does."""
        self.process.kernel.cpus[0].copy_to_user(AT + at * self.page, data)

    def load(self, at: int, length: int) -> bytes:
        """As the program does."""
        return bytes(self.process.kernel.cpus[0].copy_from_user(AT + at * self.page, length))

    def look(self, at: int, length: int) -> bytes:
        """By /proc/self/mem."""
        return self.files.pread(self.mem, length, AT + at * self.page)

    def poke(self, at: int, data: bytes) -> int:
        """By /proc/self/mem."""
        return self.files.pwrite(self.mem, data, AT + at * self.page)

    def entries(self, at: int, pages: int) -> list[int]:
        """Of pagemap."""
        first = AT // self.page + at
        data = self.files.pread(self.pagemap, 8 * pages, 8 * first)
        return list(struct.unpack(f"<{len(data) // 8}Q", data))


@pytest.fixture
def view(process: Process) -> View:
    """A process some blocks into its run."""
    return View(process)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        action()
    return errno.errorcode[caught.value.errno]


# ---- mem


def test_memory_is_read_and_written_at_its_address(view: View) -> None:
    view.map(0, 3, RW)
    view.store(0, b"stored")
    assert view.look(0, 6) == b"stored"
    data = bytes(range(200)) * (view.page // 100)  # two pages, over three
    assert view.files.pwrite(view.mem, data, AT + 100) == len(data)
    assert view.load(0, 300)[100:] == data[:200]
    assert view.files.pread(view.mem, len(data), AT + 100) == data


def test_what_nobody_may_read_is_read(view: View) -> None:
    view.map(0, 2, RW)
    view.store(0, b"hidden")
    for page in (0, 1):
        view.protect(page, NONE)
    assert (view.look(0, 6), view.look(1, 6)) == (b"hidden", bytes(6))
    with pytest.raises(UserFault):
        view.load(0, 1)


def test_private_pages_that_the_program_may_not_write_are_written(view: View) -> None:
    """Never touched, only read (the zero page), written before: under READ, and under no permission."""
    for first, protection in ((0, READ), (3, NONE)):
        view.map(first, 3, RW)
        view.load(first + 1, 1)
        view.store(first + 2, b"before")
        for page in range(first, first + 3):
            view.protect(page, protection)
            assert view.poke(page, b"poked") == 5
            assert view.look(page, 6) == (b"pokede" if page == first + 2 else b"poked\0")
            with pytest.raises(UserFault):
                view.store(page, b"x")
            if protection:
                assert view.load(page, 5) == b"poked"
    view.map(6, 1, READ)
    assert view.load(6, 5) == bytes(5), "the zero page is nobody's to write"
    view.protect(3, RW)
    view.store(3, b"P")
    assert view.look(3, 5) == b"Poked"


def test_the_programs_own_text_is_written_to_a_copy_that_runs(view: View, machine: Machine) -> None:
    """As a debugger sets a breakpoint: the file stays as it is."""
    text = next(area for area in view.process.mm.areas if area.protection & EXECUTE and area.backing)
    assert not text.protection & WRITE and text.backing is not None
    before = view.files.pread(view.mem, 64, text.start)
    into = bytearray(view.page)
    trap = b"\xcc" if view.process.abi.isa == "x86_64" else b"\0\0\x20\xd4"
    pc = machine.cpu.pc
    assert view.files.pwrite(view.mem, trap, pc) == len(trap)
    text.backing.copy_page(text.offset, memoryview(into))
    assert bytes(into[:64]) == before
    ended = machine.run()
    assert ended.signal == 5, "SIGTRAP, from the instruction that was written"


def test_shared_pages_are_written_only_where_the_program_may(view: View) -> None:
    view.map(0, 1, RW, MAP_SHARED | ANONYMOUS)
    assert view.poke(0, b"shared") == 6
    assert view.load(0, 6) == b"shared"
    for protection in (READ, NONE):
        view.protect(0, protection)
        assert refusal(lambda: view.poke(0, b"x")) == "EIO"
        assert view.look(0, 6) == b"shared"


def test_a_copy_made_by_force_is_one_processs_own(view: View) -> None:
    view.map(0, 2, RW)
    view.store(0, b"both")
    view.protect(0, NONE)
    child = view.process.mm.fork()
    try:
        assert view.poke(0, b"mine") == 4
        seen = child.table.find(AT)
        assert seen is not None
        frame = view.process.mm.physical.frames.number(seen.entry & child.table.format.address_mask)
        assert bytes(view.process.mm.physical.page_bytes(frame)[:4]) == b"both"
    finally:
        child.destroy()


def test_holes_end_what_is_moved(view: View) -> None:
    view.map(0, 1, RW)
    end = AT + view.page
    assert view.files.pread(view.mem, 100, end - 10) == bytes(10)
    assert view.files.pwrite(view.mem, b"x" * 100, end - 10) == 10
    for address in (end, 0, view.process.mm.limits.user_end):
        assert refusal(lambda address=address: view.files.pread(view.mem, 1, address)) == "EIO"  # type: ignore[misc]
        assert refusal(lambda address=address: view.files.pwrite(view.mem, b"x", address)) == "EIO"  # type: ignore[misc]
    assert view.files.pread(view.mem, 0, end) == b""


def test_positions_are_addresses_to_the_last_one(view: View) -> None:
    files = view.files
    view.map(0, 1, RW)
    view.store(0, b"abcdef")
    assert files.lseek(view.mem, AT, os.SEEK_SET) == AT
    assert (files.read(view.mem, 2), files.lseek(view.mem, 1, os.SEEK_CUR), files.read(view.mem, 2)) == (
        *(b"ab", AT + 3),
        b"de",
    )
    assert files.write(view.mem, b"F") == 1 and view.load(0, 6) == b"abcdeF"
    assert refusal(lambda: files.lseek(view.mem, 0, os.SEEK_END)) == "EINVAL"
    high = -(1 << 40)  # 2**64 - 2**40
    assert files.lseek(view.mem, high, os.SEEK_SET) == high
    assert refusal(lambda: files.read(view.mem, 1)) == "EIO"
    assert files.lseek(view.mem, -1, os.SEEK_SET) == -1
    assert refusal(lambda: files.read(view.mem, 8)) == "EOVERFLOW"
    assert refusal(lambda: files.pread(view.mem, 1, -1)) == "EINVAL"
    assert files.fstat(view.mem).size == 0 and files.fstat(view.mem).mode == 0o100600
    files.ftruncate(view.mem, 5)
    assert refusal(lambda: files.fallocate(view.mem, 0, 0, 5)) == errno.errorcode[errno.EOPNOTSUPP]
    again = files.open(fl.AT_FDCWD, b"/proc/self/fd/%d" % view.mem, fl.O_RDONLY | fl.O_TRUNC)
    assert files.pread(again, 6, AT) == b"abcdeF"


def test_a_restored_process_goes_on_reading_where_it_was(view: View, machine: Machine) -> None:
    view.map(0, 1, RW)
    view.store(0, b"abcdef")
    view.files.lseek(view.mem, AT + 2, os.SEEK_SET)
    view.files.lseek(view.pagemap, 8 * (AT // view.page), os.SEEK_SET)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    path = program(view.process.abi.isa, "hello")
    again = restore(capture(machine), grants=Grants(cwd=path.parent), streams=streams)
    try:
        assert again.process is not None
        files = again.process.files
        assert (files.read(view.mem, 2), files.write(view.mem, b"E")) == (b"cd", 1)
        assert files.pread(view.mem, 6, AT) == b"abcdEf" and view.look(0, 6) == b"abcdef"
        assert files.read(view.pagemap, 8) == struct.pack("<Q", PRESENT | EXCLUSIVE | SOFT_DIRTY)
    finally:
        again.close()


# ---- pagemap


def test_pagemap_tells_what_stands_behind_each_page(view: View) -> None:
    view.map(0, 6, RW)
    view.map(6, 2, RW, MAP_SHARED | ANONYMOUS)
    view.load(1, 1)
    view.store(2, b"x")
    view.store(3, b"x")
    view.protect(3, NONE)
    view.store(6, b"x")
    own, shared = PRESENT | EXCLUSIVE, PRESENT | EXCLUSIVE | FILE
    expected = [0, PRESENT, own, own, 0, 0, shared, 0]
    assert view.entries(0, 8) == [entry | SOFT_DIRTY for entry in expected], "the areas are new"
    child = view.process.mm.fork()
    try:
        assert view.entries(2, 1) == [PRESENT | SOFT_DIRTY], "two entries show it now"
    finally:
        child.destroy()
    assert view.entries(8, 2) == [0, 0], "nothing is mapped there"
    text = next(area for area in view.process.mm.areas if area.backing is not None)
    view.files.pread(view.mem, 1, text.start)
    (entry,) = view.entries((text.start - AT) // view.page, 1)
    assert entry & (PRESENT | SWAPPED | FILE | SOFT_DIRTY) == PRESENT | FILE | SOFT_DIRTY


@pytest.mark.parametrize("uid", [0, 1000])
def test_pagemap_shows_frames_to_the_superuser_alone(uid: int) -> None:
    path = program("x86_64", "hello")
    machine = Machine("x86_64", ram="8M", aperture="4M", uid=uid)
    try:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        view = View(machine.load(path, ["hello"], grants=Grants(cwd=path.parent), streams=streams))
        view.map(0, 1, RW)
        view.store(0, b"x")
        walked = view.process.mm.walk(AT)
        assert isinstance(walked, Mapped)
        number = walked.address >> 12
        assert view.entries(0, 1) == [PRESENT | EXCLUSIVE | SOFT_DIRTY | (0 if uid else number)]
    finally:
        machine.close()


def test_pagemap_has_whole_entries_up_to_the_end_of_the_user_half(view: View) -> None:
    files, pagemap, last = view.files, view.pagemap, view.process.mm.limits.user_end // view.page
    assert len(files.pread(pagemap, 64, 8 * (last - 3))) == 24
    assert files.pread(pagemap, 8, 8 * last) == files.pread(pagemap, 8, (1 << 63) - 16) == b""
    for count, position in ((7, 0), (8, 4), (0, 1), (8, (1 << 63) - 8), (16, (1 << 63) - 8)):
        assert (
            refusal(lambda count=count, position=position: files.pread(pagemap, count, position))  # type: ignore[misc]
            == "EINVAL"
        )
    assert files.pread(pagemap, 0, 8) == b""
    assert files.lseek(pagemap, -8, os.SEEK_SET) == -8
    assert refusal(lambda: files.read(pagemap, 8)) == "EINVAL", "its positions end at 2**63"
    assert refusal(lambda: files.open(fl.AT_FDCWD, b"/proc/self/pagemap", fl.O_RDWR)) == "EACCES"
    assert files.fstat(pagemap).mode == 0o100400
