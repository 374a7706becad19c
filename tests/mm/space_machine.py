"""Address spaces beside their models: the steps that one can take, and what must be true of all after each.

What each call answers; every byte and permission of every page that is mapped; the list of areas; and that
each reference in the frame table is explained. Loads and stores go through the MMU, as the kernel's copies
or, on the engine, as instructions of a program. Now and then an allocation fails, and somebody scans for what
was accessed and written.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aether_emu.arch.paging import Held, HeldKind, Leaf, PageFlags
from aether_emu.errors import Refused
from aether_emu.machine.cpu import ExitReason, UserFault
from aether_emu.mm import ageing, mapping, remap
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError, BusError, Outcome, OutOfMemory
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import NOTED_ACCESSED, Protection
from aether_emu.mm.rmap import mappings
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.page import Found
from aether_emu.mm.user import UserFaulted, UserMemory
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import ENGINES, FORMATS, MIB, Board, GrantedFile, check_accounts, fault_in
from tests.mm.space_model import EXECUTE, READ, WRITE, Page, Run, SpaceModel, Thing
from tests.mm.tables.test_page import FailsAt

PLACES = st.integers(0, 4095)  # see `page_at`
COUNTS = st.sampled_from([*range(1, 8)] * 2 + [515])
RIGHTS = [0, READ, READ | WRITE, READ | WRITE, READ | EXECUTE, WRITE, READ | WRITE | EXECUTE]
PROTECTIONS = st.sampled_from(RIGHTS)
SHORT = range(1, 8)
OPTIONS = (mapping.MAP_NORESERVE, mapping.MAP_GROWSDOWN, mapping.MAP_POPULATE)
WAYS = ["program", "kernel", "tables"]
FAILURES = st.none() | st.none() | st.integers(0, 2)


class AddressSpaceMachine(RuleBasedStateMachine):
    """`base` is the first page of the window in which everything happens.

    The steps go to `space`, which the CPU runs; `other` is one that was forked from it, or it from, if any.
    """

    kind: str  # of `FORMATS`: those that have an engine run on it
    space: AddressSpace
    model: SpaceModel
    other: tuple[AddressSpace, SpaceModel] | None = None

    @initialize()
    def build(self) -> None:
        fmt, self.executes = FORMATS[self.kind], self.kind in ENGINES
        self.board = Board(fmt, ram=16_384 * fmt.page_size, aperture=4 * MIB, execute=self.executes)
        self.size, self.span = fmt.page_size, fmt.levels[0].entries
        self.base, self.end = 8 * self.span, 12 * self.span
        first, end = self.base * self.size, self.end * self.size
        self.space = self.board.space(user_base=first, user_end=end, stack=1 << 40, fault_around=4)
        self.model = SpaceModel(self.size, self.base, self.end, family=self.space.family.number)
        self.heap = self.base + 2 * self.span + 100
        self.space.heap_start = self.space.heap_end = self.heap * self.size + 5
        self.model.heap_start = self.model.heap_end = self.space.heap_start
        self.board.run_on(self.space)
        self.memories: dict[Thing, SharedMemory] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="aether-model-"))
        self.files: list[tuple[Thing, GrantedFile]] = []
        pattern = bytes((97 + n * 7) % 251 for n in range(251))
        for name, length, writable in (("a", 2.5, True), ("b", 5, False), ("c", 0.3, True)):
            content = (pattern * self.size)[: int(length * self.size)]
            path = self.folder / name
            path.write_bytes(content)
            pages = -(-len(content) // self.size)
            thing = Thing(bytearray(content.ljust(pages * self.size, b"\0")), pages, not writable, str(path))
            self.files.append((thing, GrantedFile(self.board, path, writable=writable)))
        if self.executes:
            self._plant_code()
        for corner, protection, source, shared in (
            (1, READ | WRITE, "private", False),
            (2, READ | WRITE, 0, False),
            (3, READ | WRITE, 2, True),
        ):
            self._mmap(self.base + corner * self.span - 3, 7, protection, source, shared=shared, how="fixed")

    def sides(self) -> list[tuple[AddressSpace, SpaceModel]]:
        """Every address space there is, with its model."""
        if not hasattr(self, "space"):
            return []
        return [(self.space, self.model)] + ([self.other] if self.other else [])

    def page_at(self, place: int) -> int:
        """A page number: three times out of four one near an end of an area, else one where tables meet."""
        which, near = place >> 2, (place >> 6) % 13 - 6
        runs = [run for run in self.model.runs() if run.page.name != "code"]
        if not place & 3 or not runs:
            return self.base + (which % 3 + 1) * self.span + near
        run = runs[which % len(runs)]
        return max(run.last + near, run.first) if near < 0 else min(run.first + near, run.last - 1)

    def _plant_code(self) -> None:
        """A page of code at the bottom of the window, which no rule touches."""
        space, cpu, at = self.space, self.board.cpu, self.base * self.size
        area = space.new_area(at, at + self.size, Protection(7), name="code")
        space.insert(area)
        self.model.pages[self.base] = Page(
            7, name="code", was_writable_executable=True, family=self.model.family
        )
        isa = self.board.instructions
        code = (isa.load_byte + isa.system_call).ljust(16, b"\0") + isa.store_byte + isa.system_call
        cpu.copy_to_user(at, code)
        self.model.copies[self.base] = bytearray(code.ljust(self.size, b"\0"))
        cpu.on_system_call = lambda *_arguments: cpu.stop()

        def on_fault(va: int, access: int) -> None:
            self.board.outcome = fault_in(self.space, va, access)
            if self.board.outcome is not RESOLVED:
                cpu.stop()

        cpu.on_fault = on_fault

    # ---- loads and stores

    def touch(self, va: int, write: bytes | None, way: str) -> tuple[str, bytes]:
        """One byte stored, or one loaded: how it ended, and the byte. All of `WAYS` must do the same."""
        board = self.board
        board.outcome = None
        try:
            if way == "tables":
                return "ok", self._through_the_tables(va, write)
            if way == "program" and self.executes:
                value = self._execute(va, write)
            elif write is None:
                value = bytes(board.cpu.copy_from_user(va, 1))
            else:
                board.cpu.copy_to_user(va, write)
                value = write
        except UserFault:
            return self.name_of(board.outcome), b""
        return ("ok", value) if board.outcome in (None, RESOLVED) else (self.name_of(board.outcome), b"")

    def _through_the_tables(self, va: int, write: bytes | None) -> bytes:
        """As the kernel does for a process that no CPU runs."""
        memory = UserMemory(self.space)
        try:
            if write is None:
                return memory.read(va, 1)
            memory.write(va, write)
        except UserFaulted as refused:
            self.board.outcome = refused.outcome
            raise
        return write

    def _execute(self, va: int, write: bytes | None) -> bytes:
        cpu, isa = self.board.cpu, self.board.instructions
        cpu.write(isa.address, va)
        cpu.write(isa.value, 0 if write is None else write[0])
        cpu.pc = self.base * self.size + (0 if write is None else 16)
        assert cpu.run().reason is ExitReason.STOPPED
        return bytes([cpu.read(isa.value) & 0xFF])

    @staticmethod
    def name_of(outcome: Outcome | None) -> str:
        match outcome:
            case AccessError(_, mapped):
                return "denied" if mapped else "unmapped"
            case BusError():
                return "bus"
            case OutOfMemory():
                return "no memory"
        raise AssertionError(f"an access failed with {outcome}")

    @rule(
        place=PLACES,
        offset=st.sampled_from([0, 1, 100, 4095]),
        byte=st.none() | st.binary(min_size=1, max_size=1),
        way=st.sampled_from(WAYS),
        fails=FAILURES,
    )
    def load_or_store(self, place: int, offset: int, byte: bytes | None, way: str, fails: int | None) -> None:
        number = self.page_at(place)
        page = self.model.pages.get(number)
        if byte is not None and page is not None and page.shared and page.thing is not None:
            offset = 0  # a store behind the end of a file stays in the page cache as long as it likes
        self.board.buddy.failures = NEVER_FAILS if fails is None else FailsAt(fails)
        outcome, value = self.touch(number * self.size + offset, byte, way)
        self.board.buddy.failures = NEVER_FAILS
        if outcome == "no memory":
            assert fails is not None
            self.model.access(number, 0)  # a stack may have grown all the same
            return
        assert outcome == self.model.access(number, READ if byte is None else WRITE)
        if outcome == "ok":
            if byte is not None:
                self.model.store(number, offset, byte)
            assert value == self.model.content(number)[offset : offset + 1]

    @rule(place=PLACES, write=st.booleans())
    def access_every_page_around(self, place: int, write: bool) -> None:
        for number in range(self.page_at(place), self.page_at(place) + 5):
            self.load_or_store_quietly(number, b"z" if write else None)

    def load_or_store_quietly(self, number: int, byte: bytes | None) -> bool:
        """Whether the access, which ends as the model has it, succeeded."""
        outcome, value = self.touch(number * self.size, byte, "kernel")
        assert outcome == self.model.access(number, READ if byte is None else WRITE)
        if outcome == "ok":
            if byte is not None:
                self.model.store(number, 0, byte)
            assert value == self.model.content(number)[:1]
        return outcome == "ok"

    # ---- what is known of accesses

    def observed(self, first: int, last: int) -> dict[int, tuple[bool, bool]]:
        """(accessed, dirty) of each present page of a range, as the table's entries decode."""
        found = {}
        for item in self.space.table.cursor(first * self.size, last * self.size):
            leaf = self.board.format.decode(item.entry, item.level)
            if isinstance(leaf, Leaf):
                flags = leaf.attributes.flags
                found[item.start // self.size] = (
                    bool(flags & PageFlags.ACCESSED),
                    bool(flags & PageFlags.DIRTY),
                )
        return found

    @rule(
        place=PLACES,
        count=COUNTS,
        cleans=st.booleans(),
        touches=st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=4),
    )
    def scan(self, place: int, count: int, cleans: bool, touches: list[tuple[int, bool]]) -> None:
        """What is accessed, or stored to, after a look at a range is what the next look shows."""
        first, last = self.page_at(place), self.page_at(place) + count
        start, end, space = first * self.size, last * self.size, self.space
        before = self.observed(first, last)
        assert ageing.forget_accesses(space, start, end) == sum(accessed for accessed, _ in before.values())
        if cleans:
            assert ageing.clean(space, start, end) == sum(dirty for _, dirty in before.values())
        known = {n: (False, dirty and not cleans) for n, (_accessed, dirty) in before.items()}
        assert self.observed(first, last) == known
        for offset, write in touches:
            number = first + offset
            if self.load_or_store_quietly(number, b"t" if write else None) and number in known:
                known[number] = (True, known[number][1] or write)
        after = self.observed(first, last)
        assert {number: after[number] for number in known} == known
        assert all(accessed for number, (accessed, _dirty) in after.items() if number not in known)
        seen = ageing.Survey(len(after), *(sum(state[n] for state in after.values()) for n in (0, 1)))
        assert ageing.survey(space, start, end) == seen

    @rule(place=PLACES, count=COUNTS)
    def msync(self, place: int, count: int) -> None:
        """Dirty pages of shared files are written back, and are clean then; others stay as they were."""
        first, last = self.page_at(place), self.page_at(place) + count
        expected = self.observed(first, last)
        files = {
            n for n in expected if (page := self.model.pages[n]).shared and page.thing not in self.memories
        }
        dirty = sum(expected[n][1] for n in files)
        expected |= {n: (expected[n][0], False) for n in files}
        before = self.board.events()[Event.WRITTEN_BACK]
        mapped = all(n in self.model.pages for n in range(first, last))
        start, length = first * self.size, count * self.size
        self.check(
            0 if mapped else "ENOMEM",
            lambda: mapping.sync_memory(self.space, start, length, mapping.MS_SYNC),
        )
        assert self.observed(first, last) == expected
        assert self.board.events()[Event.WRITTEN_BACK] == before + dirty

    # ---- fetching

    @rule(place=PLACES)
    def fetch(self, place: int) -> None:
        """Whether a page may be executed; its bytes are not, they are nobody's code."""
        number = self.page_at(place)
        page = self.model.pages.get(number)
        if page is None or not page.protection:
            return
        va, cpu = number * self.size, self.board.cpu
        self.board.outcome = None
        if not self.executes:
            try:
                cpu.fetch(va)
            except UserFault:
                assert self.name_of(self.board.outcome) == self.model.access(number, EXECUTE)
            else:
                assert self.model.access(number, EXECUTE) == "ok"
        elif not page.protection & EXECUTE:
            cpu.pc = va
            assert cpu.run().reason is ExitReason.STOPPED
            assert self.name_of(self.board.outcome) == self.model.access(number, EXECUTE) == "denied"

    # ---- calls

    def check(self, expected: int | str, call: Callable[[], int | None]) -> None:
        """`call` answers, or refuses, as the model expects. No answer is 0."""
        try:
            answer = call()
        except Refused as refused:
            assert f"{refused}".split(":")[0] == expected
        else:
            assert (answer or 0) == expected

    @rule(
        place=PLACES,
        count=COUNTS,
        protection=PROTECTIONS,
        source=st.sampled_from(["private", "private", "shared", 0, 1, 2]),
        shared=st.booleans(),
        offset=st.integers(0, 3),
        how=st.sampled_from(["hint", "fixed", "fixed", "noreplace"]),
        options=st.sets(st.sampled_from(list(OPTIONS))),
    )
    def mmap(
        self,
        place: int,
        count: int,
        protection: int,
        source: str | int,
        shared: bool,
        offset: int,
        how: str,
        options: set[int],
    ) -> None:
        at = self.page_at(place)
        self._mmap(at, count, protection, source, shared=shared, offset=offset, how=how, options=sum(options))

    def _mmap(
        self,
        at: int,
        count: int,
        protection: int,
        source: str | int,
        *,
        how: str,
        shared: bool = False,
        offset: int = 0,
        options: int = 0,
    ) -> None:
        flags, file, thing = mapping.MAP_PRIVATE | mapping.MAP_ANONYMOUS, None, None
        page = Page(protection, no_reserve=bool(options & mapping.MAP_NORESERVE))
        if source == "private":
            page = replace(page, grows_down=bool(options & mapping.MAP_GROWSDOWN))
        else:
            options &= ~mapping.MAP_GROWSDOWN
            if isinstance(source, int):
                thing, file = self.files[source]
                flags = mapping.MAP_SHARED if shared else mapping.MAP_PRIVATE
            else:
                thing, offset = Thing(bytearray(count * self.size), count, name="/dev/zero (deleted)"), 0
                flags = mapping.MAP_SHARED | mapping.MAP_ANONYMOUS
            is_shared = bool(flags & mapping.MAP_SHARED)
            page = replace(page, shared=is_shared, thing=thing, index=offset, name=thing.name)
        flags |= {"hint": 0, "fixed": mapping.MAP_FIXED, "noreplace": mapping.MAP_FIXED_NOREPLACE}[how]
        size = self.size
        request = mapping.Request(
            at * size, count * size, protection, flags | options, file, page.index * size
        )
        expected = self.model.mmap(page, at, count, how, bool(options & mapping.MAP_POPULATE))
        self.check(expected, lambda: mapping.map_memory(self.space, request) // size)
        if source == "shared" and isinstance(expected, int):
            area = self.space.areas.find(expected * size)
            assert area is not None
            assert isinstance(area.backing, SharedMemory)
            assert thing is not None
            self.memories[thing] = area.backing

    @rule(place=PLACES, count=COUNTS)
    def munmap(self, place: int, count: int) -> None:
        at = self.page_at(place)
        expected = self.model.munmap(at, count)
        self.check(expected, lambda: mapping.unmap_memory(self.space, at * self.size, count * self.size))

    @rule(place=PLACES, count=COUNTS, protection=PROTECTIONS)
    def mprotect(self, place: int, count: int, protection: int) -> None:
        at = self.page_at(place)
        expected = self.model.mprotect(at, count, protection)
        start, length = at * self.size, count * self.size
        self.check(expected, lambda: mapping.protect_memory(self.space, start, length, protection))

    @rule(
        place=PLACES,
        old=st.integers(0, 6),
        new=st.integers(0, 8),
        to=PLACES,
        flags=st.sampled_from([0, 1, 1, 3, 3, 5, 7]),
        fails=FAILURES,
    )
    def mremap(self, place: int, old: int, new: int, to: int, flags: int, fails: int | None) -> None:
        at, to = self.page_at(place), self.page_at(to)
        board, size = self.board, self.size
        request = remap.Remap(at * size, old * size, new * size, flags, to * size)
        failures = FailsAt(3 if fails is None else fails)
        board.buddy.failures = NEVER_FAILS if fails is None else failures
        try:
            answer: int | str = remap.remap_memory(self.space, request) // size
        except Refused as refused:
            answer = f"{refused}".split(":")[0]
        finally:
            board.buddy.failures = NEVER_FAILS
        failed = fails is not None and failures.left < 0
        may_move, fixed, keep = bool(flags & 1), bool(flags & 2), bool(flags & 4)
        assert answer == self.model.mremap(
            at, old, new, to, may_move=may_move, fixed=fixed, keep=keep, no_tables=failed
        )

    @rule(place=PLACES, count=COUNTS, free=st.booleans())
    def discard(self, place: int, count: int, free: bool) -> None:
        at, advice = self.page_at(place), mapping.MADV_FREE if free else mapping.MADV_DONTNEED
        expected = self.model.discard(at, count, only_anonymous=free)
        self._advise(expected, at, count, advice)
        if free:  # memory is short at once: the model knows no pages that may go, but are there
            self._take_freed(at * self.size, (at + count) * self.size)

    def _take_freed(self, start: int, end: int) -> None:
        """Drop what MADV_FREE named, which ended at the first area with an object behind it."""
        for area in list(self.space.areas.overlapping(start, end)):
            if area.backing is not None:
                return
            self.space.discard(area, max(start, area.start), min(end, area.end))

    @rule(place=PLACES, count=st.integers(1, 8), write=st.booleans())
    def populate(self, place: int, count: int, write: bool) -> None:
        at = self.page_at(place)
        advice = mapping.MADV_POPULATE_WRITE if write else mapping.MADV_POPULATE_READ
        expected = self.model.populate(at, count, WRITE if write else READ)
        self._advise(expected, at, count, advice)

    def _advise(self, expected: int | str, at: int, count: int, advice: int) -> None:
        start, length = at * self.size, count * self.size
        self.check(expected, lambda: mapping.advise_memory(self.space, start, length, advice))

    @rule(to=st.integers(-2, 12), rest=st.sampled_from([0, 5, 100]))
    def brk(self, to: int, rest: int) -> None:
        address = (self.heap + to) * self.size + rest
        assert mapping.set_break(self.space, address) == self.model.brk(address)

    @rule(which=st.integers(0, 2), at=st.integers(0, 3000), data=st.binary(min_size=1, max_size=9))
    def somebody_else_writes_the_file(self, which: int, at: int, data: bytes) -> None:
        """Inside it: mappings show the page cache, whoever wrote to it."""
        thing, file = self.files[which]
        data = data[: max(0, file.path.stat().st_size - at)]
        with file.path.open("r+b") as writing:
            writing.seek(at)
            writing.write(data)
        thing.content[at : at + len(data)] = data

    # ---- after each step

    @invariant()
    def the_areas_are_the_models(self) -> None:
        for space, model in self.sides():
            assert self.areas_of(space) == model.runs()
            assert space.account.reserved == len(model.pages) * self.size

    def areas_of(self, space: AddressSpace) -> list[Run]:
        seen: list[Run] = []
        for area in space.areas:
            first, last = area.start // self.size, area.end // self.size
            row = Page(
                int(area.protection),
                area.shared,
                self.thing_of(area.backing),
                area.offset if area.backing else 0,
                int(area.maximum),
                area.grows_down,
                area.no_reserve,
                area.name,
                area.was_writable_executable,
                area.moved,
                area.owner,
            )
            if seen and area.grows_down and (seen[-1].last, seen[-1].page) == (first, row):
                first = seen.pop().first  # an area that grew until it touched the next one stays its own
            seen.append(Run(first, last, row))
        return seen

    def thing_of(self, backing: object) -> Thing | None:
        if isinstance(backing, SharedMemory):
            return next(thing for thing, memory in self.memories.items() if memory is backing)
        if isinstance(backing, FileBacking):
            return next(thing for thing, _file in self.files if thing.name == backing.name)
        return None

    def entries(self, space: AddressSpace) -> list[Found]:
        return list(space.table.cursor(self.base * self.size, self.end * self.size))

    @invariant()
    def every_entry_shows_the_models_bytes_and_permissions(self) -> None:
        for space, model in self.sides():
            entries = self.entries(space)
            for found in entries:
                self.check_entry(model, found)
            assert model.copies.keys() <= {found.start // self.size for found in entries}
            zero = self.board.physical.zero_frame
            assert self.board.physical.page_bytes(zero).tobytes() == bytes(self.size)

    def check_entry(self, model: SpaceModel, found: Found) -> None:
        fmt, frames, number = self.board.format, self.board.frames, found.start // self.size
        page = model.pages[number]
        address = found.entry & fmt.address_mask
        frame = frames.number(address)
        assert self.bytes_at(address) == model.content(number)
        if number in model.copies:
            assert frames.kind[frame] == Kind.ANON
        match fmt.decode(found.entry, 1):
            case Leaf(_, attributes):
                flags = attributes.flags
                assert page.protection
                assert flags & PageFlags.USER
                assert bool(flags & PageFlags.EXECUTE) is bool(page.protection & EXECUTE)
                if flags & PageFlags.WRITE:
                    assert page.protection & WRITE
                    assert page.shared or number in model.copies
                    assert page.shared or frames.maps[frame] == 1
                    assert frames.kind[frame] != Kind.ZERO
            case Held(HeldKind.NO_ACCESS, value):
                assert not page.protection
                assert value & NOTED_ACCESSED - 1 == address // self.size
            case other:
                raise AssertionError(f"{found.start:#x}: {other}")

    def bytes_at(self, address: int) -> bytes:
        ram, aperture = self.board.ram, self.board.aperture
        if address < aperture.base:
            return bytes(ram.bytes[address - ram.base : address - ram.base + self.size])
        return ctypes.string_at(aperture.host_address + address - aperture.base, self.size)

    @invariant()
    def every_reference_is_explained(self) -> None:
        if not hasattr(self, "space"):
            return
        alive = [memory for memory in self.memories.values() if len(memory.windows)]
        check_accounts(self.board, alive)
        assert not any(memory.frames_by_page() for memory in self.memories.values() if memory not in alive)
        areas = [area for space, _model in self.sides() for area in space.areas]
        held = {area.backing for area in areas if area.backing is not None}
        for backing in held:
            assert set(backing.windows) == {area for area in areas if area.backing is backing}
        files = {backing.name for backing in held if isinstance(backing, FileBacking)}
        mapped = np.flatnonzero(self.board.frames.kind_array == Kind.FILE)
        assert files or not mapped.size

    @invariant()
    def every_frame_leads_to_the_entries_that_show_it(self) -> None:
        shown: dict[int, set[tuple[int, int]]] = {}
        for space, _model in self.sides():
            for found in self.entries(space):
                frame = self.board.frames.number(found.entry & self.board.format.address_mask)
                if self.board.frames.kind[frame] != Kind.ZERO:
                    shown.setdefault(frame, set()).add((id(space), found.start))
        for frame, places in shown.items():
            found_again = [(id(m.space), m.address) for m in mappings(self.board.physical, frame)]
            assert len(found_again) == len(places)
            assert set(found_again) == places

    @invariant()
    def files_hold_what_was_stored(self) -> None:
        for thing, file in getattr(self, "files", []):
            with file.path.open("rb") as reading:
                written = os.pread(reading.fileno(), len(thing.content), 0)
            assert written == bytes(thing.content[: len(written)])

    def teardown(self) -> None:
        if hasattr(self, "board"):
            self.board.close()
            shutil.rmtree(self.folder)
