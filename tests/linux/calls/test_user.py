"""Arguments: numbers, strings, and buffers with a bad address in them."""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.errors import Refused
from aether_emu.linux.calls import user
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import Cpu, UserFault
from aether_emu.system import Machine
from tests.linux.calls.twin import BASE, PAGE, PAGES, PROT_NONE, GuestMemory

USER_END = 1 << 47
CONTENT = bytes(i * 7 + i // PAGE & 0xFF for i in range(PAGES * PAGE))
BAD = BASE + 5 * PAGE


@pytest.fixture(scope="module")
def guest_memory() -> Iterator[GuestMemory]:
    """Memory of a machine, the same one for all examples."""
    machine = Machine("x86_64", ram="4M", aperture="16M")
    process = Process(machine.kernel, machine.new_space(), Program(b"/empty", [], []))
    namespace = Namespace(None, [], "/", random=bytes)
    process.files = Files(namespace, ProcessTexts(process))
    machine.entry.switch(Task(process))
    memory = GuestMemory(machine, process.mm)
    yield memory
    memory.close()
    namespace.close()
    machine.cpu.set_root(machine.kernel_half.table.root)
    process.mm.destroy()
    process.leave_bodies()
    machine.close()


def fresh(memory: GuestMemory) -> tuple[Cpu, GuestMemory]:
    """The CPU, and memory with one forbidden page and known contents."""
    for page in range(PAGES):
        memory.protect(page, mmap.PROT_READ | mmap.PROT_WRITE)
    memory.content[:] = CONTENT
    memory.protect(5, PROT_NONE)
    return memory.cpu, memory


@pytest.mark.parametrize(
    ("register", "s32", "u32", "s64"),
    [
        (5, 5, 5, 5),
        ((1 << 64) - 1, -1, (1 << 32) - 1, -1),
        (0x8000_0000, -(1 << 31), 0x8000_0000, 0x8000_0000),
        (1 << 63 | 3, 3, 3, -(1 << 63) + 3),
    ],
)
def test_c_integers(register: int, s32: int, u32: int, s64: int) -> None:
    assert (user.s32(register), user.u32(register), user.s64(register)) == (s32, u32, s64)


def test_strings_end_where_they_end(guest_memory: GuestMemory) -> None:
    cpu, plain = fresh(guest_memory)
    plain.content[5 * PAGE - 4 : 5 * PAGE] = b"abc\0"
    assert user.read_string(cpu, BAD - 4) == b"abc"
    plain.content[5 * PAGE - 1 : 5 * PAGE] = b"d"
    with pytest.raises(UserFault):
        user.read_string(cpu, BAD - 4)
    plain.content[: 2 * PAGE] = b"x" * (2 * PAGE)
    with pytest.raises(Refused) as caught:
        user.read_string(cpu, BASE, 100)
    assert caught.value.errno == errno.ENAMETOOLONG
    plain.content[99] = 0
    assert user.read_string(cpu, BASE, 100) == b"x" * 99


def test_the_user_half_has_an_end() -> None:
    user.require_user(USER_END - 10, 10, USER_END)
    user.require_user(USER_END, 0, USER_END)
    for address, length in ((USER_END - 10, 11), (USER_END + 1, 0), (0, USER_END + 1), ((1 << 64) - 1, 1)):
        with pytest.raises(UserFault):
            user.require_user(address, length, USER_END)


def test_one_call_moves_no_more_than_linux_does(guest_memory: GuestMemory) -> None:
    cpu, plain = fresh(guest_memory)
    most = 0x7FFF_F000
    assert user.read_buffer(BASE, 1 << 40, USER_END) == [(BASE, most)]
    vector = [(BASE, most - 5), (BASE + 1, 10), (BASE + 2, 3)]
    plain.content[: 16 * 3] = b"".join(struct.pack("<QQ", *piece) for piece in vector)
    assert user.read_vector(cpu, BASE, 3, USER_END) == [(BASE, most - 5), (BASE + 1, 5), (BASE + 2, 0)]


pieces = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 4 * PAGE), st.integers(5 * PAGE - 50, 6 * PAGE + 50)).map(BASE.__add__),
        st.one_of(st.integers(0, 60), st.just(PAGE), st.just(PAGE + 1)),
    ),
    max_size=4,
)


def good_part(parts: list[user.Piece], most: int) -> list[int]:
    """The addresses of bytes before the first one in the forbidden page."""
    every = [start + i for start, length in parts for i in range(length)][:most]
    bad = next((n for n, address in enumerate(every) if BAD <= address < BAD + PAGE), len(every))
    return every[:bad]


@given(pieces, st.integers(0, 9000))
def test_gathering_goes_as_far_as_it_can(
    guest_memory: GuestMemory, parts: list[user.Piece], most: int
) -> None:
    cpu, plain = fresh(guest_memory)
    expected = bytes(plain.content[address - BASE] for address in good_part(parts, most))
    if not expected and min(most, user.total(parts)):
        with pytest.raises(UserFault):
            user.gather(cpu, parts, most)
    else:
        assert user.gather(cpu, parts, most) == expected


@given(pieces, st.integers(0, 9000))
def test_scattering_goes_as_far_as_it_can(
    guest_memory: GuestMemory, parts: list[user.Piece], size: int
) -> None:
    cpu, plain = fresh(guest_memory)
    data = bytes(i & 0xFF for i in range(min(size, user.total(parts))))
    before = bytearray(plain.content[:])
    places = good_part(parts, len(data))
    assert user.scatter(cpu, parts, data) == len(places)
    for address, byte in zip(places, data, strict=False):
        before[address - BASE] = byte
    assert plain.content[:] == before


@given(pieces, st.integers(0, 9000))
def test_probing_finds_the_same_and_changes_nothing(
    guest_memory: GuestMemory, parts: list[user.Piece], most: int
) -> None:
    cpu, plain = fresh(guest_memory)
    before, expected = bytes(plain.content), len(good_part(parts, most))
    if not expected and min(most, user.total(parts)):
        with pytest.raises(UserFault):
            user.writable(cpu, parts, most)
    else:
        assert user.writable(cpu, parts, most) == expected
    assert plain.content[:] == before


def test_probing_is_about_writing(guest_memory: GuestMemory) -> None:
    cpu, plain = fresh(guest_memory)
    plain.protect(2, mmap.PROT_READ)
    assert user.writable(cpu, [(BASE + PAGE, 3 * PAGE)], 3 * PAGE) == PAGE


@given(pieces, st.integers(0, 9000))
def test_what_is_left_behind_some_bytes(parts: list[user.Piece], done: int) -> None:
    every = [start + i for start, length in parts for i in range(length)]
    left = user.behind(parts, done)
    assert [start + i for start, length in left for i in range(length)] == every[done:]
