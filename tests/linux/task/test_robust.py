"""What threads leave behind when they end: robust lists, locks with priority inheritance."""

from __future__ import annotations

import struct
import tempfile

import pytest

from aether_emu.linux.task.futex import OWNER_DIED, WAITERS
from aether_emu.linux.task.registry import FIRST
from aether_emu.mm.protection import Protection
from tests.guests.running import ISAS
from tests.linux.task.scripts import DATA, SPIN, Call, Several

HEAD, ENTRY, OTHER, OFFSET = DATA + 0x100, DATA + 0x140, DATA + 0x180, 0x10
WAIT, WAKE, LOCK_PI, PRIVATE = 0, 1, 6, 128
FIRST_THREAD = FIRST + 1  # the first number is that of the first process, which is not run
A_WHILE = struct.pack("<qq", 0, 1_000_000)
SLEEP: Call = ("nanosleep", DATA, 0)

every_isa = pytest.mark.parametrize("isa", ISAS)


def _memory(entries: list[tuple[int, int]], pending: int, words: dict[int, int]) -> bytes:
    """A list of (entry, next), and words by address."""
    memory = bytearray(0x1000)
    memory[: len(A_WHILE)] = A_WHILE
    struct.pack_into("<QqQ", memory, HEAD - DATA, entries[0][0] if entries else HEAD, OFFSET, pending)
    for entry, following in entries:
        struct.pack_into("<Q", memory, (entry & ~1) - DATA, following)
    for address, value in words.items():
        struct.pack_into("<I", memory, address - DATA, value)
    return bytes(memory)


def _word(several: Several, address: int) -> int:
    return int.from_bytes(several.tasks[0].process.read(address, 4), "little")


@every_isa
def test_the_locks_of_a_thread_that_ends_say_so_and_one_who_waits_is_woken(isa: str) -> None:
    held, others = ENTRY + OFFSET, OTHER + OFFSET
    words = {held: FIRST_THREAD | WAITERS, others: 77}
    memory = _memory([(ENTRY, OTHER), (OTHER, HEAD)], 0, words)
    with Several(isa) as several:
        first = several.calls(("futex", held, WAIT, FIRST_THREAD | WAITERS, 0), data=memory)
        several.thread(first, ("set_robust_list", HEAD, 24), SLEEP)
        assert several.run() == [0]
        assert _word(several, held) == OWNER_DIED | WAITERS
        assert _word(several, others) == 77, "it is not its own"


@every_isa
def test_a_lock_that_was_about_to_be_linked_is_looked_at_too(isa: str) -> None:
    held = OTHER + OFFSET
    for value, after in ((FIRST_THREAD | WAITERS, OWNER_DIED | WAITERS), (0, 0)):
        with Several(isa) as several:
            memory = _memory([], OTHER, {held: value})
            first = several.calls(("futex", held, WAIT, value, 0), data=memory)
            several.thread(first, ("set_robust_list", HEAD, 24), SLEEP)
            assert several.run() == [0]
            assert _word(several, held) == after


@every_isa
@pytest.mark.parametrize("entry", [ENTRY, ENTRY + 2, 0x6666_0000, 1 << 63])
def test_a_list_that_nobody_could_have_meant_ends_the_walk(isa: str, entry: int) -> None:
    memory = bytearray(_memory([(ENTRY, ENTRY)], 0, {}))  # an entry that is its own next one
    struct.pack_into("<Q", memory, HEAD - DATA, entry)
    with Several(isa) as several:
        first = several.calls(SLEEP, SLEEP, data=bytes(memory))
        several.thread(first, ("set_robust_list", HEAD, 24))
        assert several.run() == [0]


@every_isa
def test_a_process_that_is_killed_leaves_its_locks_in_shared_memory(isa: str) -> None:
    where = 0x5000_0000
    with Several(isa) as several, tempfile.TemporaryFile() as file:
        file.truncate(4096)
        memory = bytearray(_memory([], 0, {}))
        struct.pack_into("<QqQ", memory, HEAD - DATA, ENTRY, where - ENTRY, 0)
        struct.pack_into("<Q", memory, ENTRY - DATA, HEAD)
        owner = several.calls(("set_robust_list", HEAD, 24), SLEEP, ("kill", 2000, 9), data=bytes(memory))
        waiter = several.calls(("futex", where, WAIT, 2000 | WAITERS, 0))
        for task in (owner, waiter):
            task.process.mm.map_file(file, where, 4096, Protection.READ | Protection.WRITE)
        owner.process.write(where, struct.pack("<I", 2000 | WAITERS))
        assert several.run()[1] == 0
        assert file.read(4) == struct.pack("<I", OWNER_DIED | WAITERS)


@every_isa
def test_a_lock_that_inherits_priority_goes_to_who_waits_when_its_owner_ends(isa: str) -> None:
    word = DATA + 0x200
    take: Call = ("futex", word, LOCK_PI | PRIVATE, 0, 0)
    with Several(isa) as several:
        first = several.calls(SLEEP, take, data=_memory([], 0, {}))
        several.thread(first, take, SLEEP, SLEEP, SLEEP, SLEEP)
        assert several.run() == [0]
        assert _word(several, word) == first.tid | OWNER_DIED


@every_isa
def test_any_thread_ends_all_and_the_last_one_ends_the_process(isa: str) -> None:
    with Several(isa) as several:
        first = several.calls(code=SPIN[isa])
        several.thread(first, SLEEP, ("exit_group", 5))
        assert several.run() == [5]
    with Several(isa) as several:
        first = several.calls(("exit", 3), data=A_WHILE)
        several.thread(first, SLEEP, ("write", 1, DATA, 1), ("exit", 4))
        assert several.run() == [4]
        assert len(several.out.written) == 1, "the others go on when the first one ends"
