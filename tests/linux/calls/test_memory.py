"""The memory calls as programs make them: pages that come with a call, tags, keys, personalities, limits."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from aether_emu.grants import Grants
from aether_emu.linux.calls import call_table
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.resource_limits import RLIM_INFINITY
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.mapping import (
    MADV_DONTNEED,
    MAP_32BIT,
    MAP_ABOVE4G,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_PRIVATE,
    residency,
)
from aether_emu.system import Machine
from tests.guests.running import ISAS, program
from tests.linux.calls.test_mappable import SCRATCH, Guest

PAGE = 4096
READ, RW, RWX = 1, 3, 7
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
TAG = 0x5A << 56
DATA, STACK, NOFILE, MEMLOCK, AS, RTPRIO = 2, 3, 7, 8, 9, 14
READ_IMPLIES_EXEC = 0x40_0000


def made(isa: str, uid: int = 1000, name: str = "hello") -> Iterator[Guest]:
    machine = Machine(isa, ram="32M", uid=uid)
    try:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        path = program(isa, name)
        machine.load(path, [name], streams=streams, grants=Grants(cwd=path.parent))
        yield Guest(machine, Path("/nowhere"))
    finally:
        machine.close()


@pytest.fixture(params=ISAS)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    yield from made(request.param)


@pytest.fixture
def arm64() -> Iterator[Guest]:
    yield from made("arm64")


@pytest.fixture
def x86_64() -> Iterator[Guest]:
    yield from made("x86_64")


@pytest.fixture
def root() -> Iterator[Guest]:
    yield from made("x86_64", uid=0)


def mmap(guest: Guest, pages: int, protection: int = RW, flags: int = 0, at: int = 0) -> int:
    return guest.call("mmap", at, pages * PAGE, protection, ANONYMOUS | flags, -1, 0)


def resident(guest: Guest, at: int, pages: int) -> str:
    return "".join(str(residency(guest.process.mm, at + i * PAGE, PAGE)[0]) for i in range(pages))


def rights(guest: Guest, at: int) -> int:
    area = guest.process.mm.areas.find(at)
    assert area is not None
    return int(area.protection)


def set_limit(guest: Guest, resource: int, soft: int, hard: int = RLIM_INFINITY) -> int:
    guest.cpu.copy_to_user(SCRATCH, struct.pack("<QQ", soft, hard))
    return guest.call("prlimit64", 0, resource, SCRATCH, 0)


# ---- pages that come with a call


def test_locking_brings_pages(guest: Guest) -> None:
    at = mmap(guest, 4)
    assert guest.call("mlock", at + PAGE, 2 * PAGE) == 0
    assert resident(guest, at, 4) == "0110"
    assert guest.call("mlock2", at, 4 * PAGE, 1) == 0  # MLOCK_ONFAULT
    assert resident(guest, at, 4) == "0110"
    assert guest.call("mlock2", at, 4 * PAGE, 2) == -errno.EINVAL
    locked = mmap(guest, 2, flags=MAP_LOCKED)
    assert resident(guest, locked, 2) == "11"
    assert guest.call("madvise", locked, PAGE, MADV_DONTNEED) == -errno.EINVAL
    assert guest.call("munlock", locked, PAGE) == 0
    assert guest.call("madvise", locked, PAGE, MADV_DONTNEED) == 0


def test_memory_without_any_right_cannot_be_brought_but_is_locked(guest: Guest) -> None:
    at = mmap(guest, 1, 0)
    assert guest.call("mlock", at, PAGE) == -errno.ENOMEM
    assert guest.call("madvise", at, PAGE, MADV_DONTNEED) == -errno.EINVAL


def test_what_lies_behind_a_files_end_cannot_be_locked(guest: Guest) -> None:
    fd = guest.call("memfd_create", guest.text(b"m"), 0)
    assert guest.call("ftruncate", fd, PAGE) == 0
    at = guest.map(fd, RW, 1, 2)  # MAP_SHARED
    assert guest.call("mlock", at, 2 * PAGE) == -errno.ENOMEM
    assert guest.call("mlock", at, PAGE) == 0


def test_everything_that_is_made_later_is_brought_too(guest: Guest) -> None:
    assert guest.call("mlockall", 2) == 0  # MCL_FUTURE
    at = mmap(guest, 2)
    heap = guest.call("brk", 0)
    assert guest.call("brk", heap + 2 * PAGE) == heap + 2 * PAGE
    assert resident(guest, at, 2) == resident(guest, heap & -PAGE, 2) == "11"
    longer = guest.call("mremap", at, 2 * PAGE, 5 * PAGE, 1, 0)
    assert resident(guest, longer, 5) == "11111"
    assert guest.call("mlockall", 6) == 0  # MCL_FUTURE | MCL_ONFAULT
    assert resident(guest, mmap(guest, 2), 2) == "00"
    assert guest.call("munlockall") == 0
    assert guest.process.mm.account.locked == 0


def test_locking_what_is_there_brings_what_can_be_brought(x86_64: Guest) -> None:
    at, forbidden = mmap(x86_64, 3), mmap(x86_64, 1, 0)
    assert set_limit(x86_64, MEMLOCK, 8 << 20, 8 << 20) == 0
    assert x86_64.process.mm.account.reserved < 8 << 20
    assert x86_64.call("mlockall", 1) == 0
    assert (resident(x86_64, at, 3), resident(x86_64, forbidden, 1)) == ("111", "0")


# ---- tags


def test_calls_on_memory_that_is_there_ignore_a_tag(arm64: Guest) -> None:
    at = mmap(arm64, 4)
    for name, *arguments in (
        ("madvise", PAGE, MADV_DONTNEED),
        ("mprotect", PAGE, READ),
        ("mlock", PAGE),
        ("munlock", PAGE),
        ("msync", PAGE, 0),
        ("mincore", PAGE, SCRATCH),
    ):
        assert arm64.call(str(name), at | TAG, *(int(value) for value in arguments)) == 0, name
    assert rights(arm64, at) == READ
    assert arm64.call("mremap", at + PAGE | TAG, 3 * PAGE, 2 * PAGE, 0, 0) == at + PAGE
    assert arm64.call("munmap", at | TAG, PAGE) == 0
    assert arm64.process.mm.areas.find(at) is None


def test_calls_that_choose_a_place_know_no_tags(arm64: Guest) -> None:
    at, heap = mmap(arm64, 1), arm64.call("brk", 0)
    assert mmap(arm64, 1, flags=MAP_FIXED, at=SCRATCH | TAG) == -errno.ENOMEM
    assert mmap(arm64, 1, at=0x3000_0000 | TAG) == at - PAGE, "not at the hint"
    assert arm64.call("brk", heap + PAGE | TAG) == heap
    assert arm64.call("mremap", at, PAGE, PAGE, 3, 0x3000_0000 | TAG) == -errno.EINVAL


def test_the_kernel_follows_no_tagged_pointer(arm64: Guest) -> None:
    """The MMU ignores the tag. Linux refuses it but for those who turned the tagged address ABI on."""
    at = mmap(arm64, 1)
    assert arm64.store(at, b"x") and arm64.load(at) == b"x"
    with pytest.raises(UserFault):
        arm64.cpu.copy_from_user(at | TAG, 1)
    with pytest.raises(UserFault):
        arm64.cpu.copy_to_user(at | TAG, b"y")
    assert arm64.load(at) == b"x"
    assert arm64.call("prctl", 55, 1, 0, 0, 0) == -errno.EINVAL  # PR_SET_TAGGED_ADDR_CTRL


def test_the_top_byte_is_part_of_an_address_elsewhere(x86_64: Guest) -> None:
    at = mmap(x86_64, 1)
    assert x86_64.call("mprotect", at | TAG, PAGE, READ) == -errno.ENOMEM
    assert x86_64.call("munmap", at | TAG, PAGE) == -errno.EINVAL


# ---- protection keys


def test_keys_that_are_refused(x86_64: Guest) -> None:
    at = mmap(x86_64, 1)
    assert x86_64.call("pkey_alloc", 1, 0) == x86_64.call("pkey_alloc", 0, 4) == -errno.EINVAL
    assert x86_64.call("pkey_free", 1) == x86_64.call("pkey_mprotect", at, PAGE, READ, 1) == -errno.EINVAL
    assert rights(x86_64, at) == RW
    assert x86_64.call("pkey_mprotect", at, PAGE, READ, -1) == 0
    assert rights(x86_64, at) == READ


def test_arm64_has_no_calls_for_keys(arm64: Guest) -> None:
    answers = {arm64.call(name, mmap(arm64, 1), PAGE, READ, -1) for name in
               ("pkey_alloc", "pkey_free", "pkey_mprotect")}  # fmt: skip
    assert answers == {-errno.ENOSYS}


# ---- flags of mmap


def test_where_x86_64_is_told_to_search(x86_64: Guest) -> None:
    assert mmap(x86_64, 1, flags=MAP_32BIT) == 0x4000_0000
    assert mmap(x86_64, 1, flags=MAP_ABOVE4G) > 1 << 32
    x86_64.process.mm.mmap_base = 0x2000_0000  # nothing is free above, downwards from here
    assert mmap(x86_64, 1, flags=MAP_ABOVE4G) == 1 << 32
    assert mmap(x86_64, 1) < 0x2000_0000


def test_arm64_ignores_flags_that_only_x86_64_has(arm64: Guest) -> None:
    first = mmap(arm64, 1)
    assert mmap(arm64, 1, flags=MAP_32BIT | MAP_ABOVE4G) == first - PAGE


@pytest.mark.parametrize(("shift", "answer"), [(0, errno.ENOMEM), (21, errno.ENOMEM), (12, errno.EINVAL)])
def test_no_huge_page_is_in_the_pool(guest: Guest, shift: int, answer: int) -> None:
    assert mmap(guest, 512, flags=MAP_HUGETLB | shift << 26) == -answer
    assert mmap(guest, 0, flags=MAP_HUGETLB | shift << 26) == -errno.EINVAL


# ---- personality


def test_what_may_be_read_may_be_executed_for_those_who_ask(guest: Guest) -> None:
    before = mmap(guest, 1, READ)
    heap = guest.call("brk", 0)
    assert guest.call("personality", READ_IMPLIES_EXEC) == 0
    assert guest.call("personality", 0xFFFF_FFFF) == READ_IMPLIES_EXEC
    read, none, write = mmap(guest, 1, READ), mmap(guest, 1, 0), mmap(guest, 1, 2)
    assert [rights(guest, at) for at in (before, read, none, write)] == [READ, 5, 0, 2]
    assert (
        guest.call("mprotect", before, PAGE, RW) == guest.call("brk", heap + 4 * PAGE) - heap - 4 * PAGE == 0
    )
    assert (rights(guest, before), rights(guest, heap + 2 * PAGE)) == (RWX, RWX)
    assert guest.call("personality", 0) == READ_IMPLIES_EXEC
    assert rights(guest, mmap(guest, 1, READ)) == READ


def _uname(guest: Guest) -> list[str]:
    assert guest.call("uname", SCRATCH) == 0
    raw = guest.load(SCRATCH, 6 * 65)
    assert raw is not None
    return [raw[at : at + 65].split(b"\0")[0].decode() for at in range(0, len(raw), 65)]


@pytest.mark.parametrize(("personality", "left"), [(0, (1, 500_000)), (0x400_0000, (0, 1_500_000))])
def test_a_timeout_stays_as_it_was_for_those_who_ask(
    x86_64: Guest, personality: int, left: tuple[int, int]
) -> None:
    """STICKY_TIMEOUTS: else select tells how much of its time is left, in whole seconds and the rest."""
    x86_64.call("personality", personality)
    ready = x86_64.open(b"/dev/null", 0)
    x86_64.cpu.copy_to_user(SCRATCH, struct.pack("<QQQ", 1 << ready, 0, 1_500_000))
    assert x86_64.call("select", ready + 1, SCRATCH, 0, 0, SCRATCH + 8) == 1
    assert x86_64.load(SCRATCH + 8, 16) == struct.pack("<QQ", *left)


def test_uname_tells_what_the_personality_wants_to_hear(x86_64: Guest) -> None:
    assert _uname(x86_64)[2].startswith("6.6") and _uname(x86_64)[4] == "x86_64"
    assert x86_64.call("personality", 0x2_0000 | 8) == 0  # UNAME26, PER_LINUX32
    assert (_uname(x86_64)[2], _uname(x86_64)[4]) == ("2.6.66", "i686")


def test_a_cpu_without_32_bit_programs_refuses_their_personality(arm64: Guest) -> None:
    assert arm64.call("personality", 8) == -errno.EINVAL
    assert arm64.call("personality", 0xFFFF_FFFF) == 0


# ---- resources


def test_limits_are_what_memory_obeys(guest: Guest) -> None:
    mm = guest.process.mm
    assert set_limit(guest, DATA, mm.account.data + 2 * PAGE) == 0
    assert mmap(guest, 3) == -errno.ENOMEM
    assert set_limit(guest, DATA, RLIM_INFINITY) == 0
    assert set_limit(guest, AS, mm.account.reserved + 2 * PAGE) == 0
    assert mmap(guest, 3, 0) == -errno.ENOMEM
    assert set_limit(guest, AS, RLIM_INFINITY) == 0
    assert set_limit(guest, MEMLOCK, 2 * PAGE, 8 << 20) == 0
    at = mmap(guest, 3)
    assert guest.call("mlock", at, 3 * PAGE) == -errno.ENOMEM
    assert guest.call("mlock", at, 2 * PAGE) == 0
    assert mmap(guest, 1, flags=MAP_LOCKED) == -errno.EAGAIN
    assert guest.call("munlockall") == 0
    assert set_limit(guest, MEMLOCK, 0, 8 << 20) == 0
    assert guest.call("mlock", at, PAGE) == guest.call("mlockall", 1) == -errno.EPERM


@pytest.fixture(params=ISAS)
def with_data(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest whose program has data that is not zero."""
    yield from made(request.param, name="faults")


def test_the_heaps_limit_counts_the_programs_own_data(with_data: Guest) -> None:
    guest = with_data
    with program(guest.machine.abi.isa, "faults").open("rb") as stream:
        loads = [s.header for s in ELFFile(stream).iter_segments("PT_LOAD")]
    own = max(s.p_vaddr + s.p_filesz for s in loads) - max(s.p_vaddr for s in loads)
    heap = guest.call("brk", 0)
    assert own > 0 and set_limit(guest, DATA, 8 * PAGE) == 0
    room = 8 * PAGE - own - (heap - guest.process.mm.heap_start)
    assert guest.call("brk", heap + room + 1) == heap
    assert set_limit(guest, DATA, RLIM_INFINITY) == 0
    assert guest.call("brk", heap + room + 1) == heap + room + 1


def test_a_user_may_not_raise_a_hard_limit(guest: Guest) -> None:
    assert set_limit(guest, MEMLOCK, 1, 9 << 20) == -errno.EPERM
    assert set_limit(guest, RTPRIO, 0, 1) == -errno.EPERM
    assert set_limit(guest, DATA, 2, 1) == -errno.EINVAL
    assert set_limit(guest, 16, 1) == -errno.EINVAL


def test_root_locks_what_it_likes_and_raises_limits(root: Guest) -> None:
    assert set_limit(root, MEMLOCK, 0, 0) == 0
    at = mmap(root, 3)
    assert root.call("mlock", at, 3 * PAGE) == 0
    assert set_limit(root, MEMLOCK, 1, 9 << 20) == 0
    assert set_limit(root, NOFILE, 8, 1 << 30) == -errno.EPERM, "the table of descriptors has its own end"


def test_every_call_of_the_family_is_served(guest: Guest) -> None:
    table = call_table(guest.machine.abi)
    numbers = {name: number for number, name in guest.machine.abi.system_calls.items()}
    assert all(table[numbers[name]] for name in ("mlock2", "mlockall", "pkey_alloc", "personality", "msync"))
