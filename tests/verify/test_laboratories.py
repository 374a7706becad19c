"""Every format's laboratory: engine and specification agree, and whoever errs is found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from aether_emu.errors import ConfigError, EngineError
from aether_emu.machine.probe.prober import BATCH, CROSSING, LANDING, Happened, Operation
from aether_emu.verify.cases import arm64 as arm64_cases
from aether_emu.verify.cases import suites
from aether_emu.verify.cases import x86_64 as x86_cases
from aether_emu.verify.cases.arm64_laboratory import ArmLaboratory
from aether_emu.verify.cases.cases import Chunk, Words, only
from aether_emu.verify.cases.comparison import Tally, run
from aether_emu.verify.cases.laboratory import CROSSES, Laboratory
from aether_emu.verify.cases.paths import Geometry, Paths
from aether_emu.verify.cases.tlb import FLUSHES, Histories, TlbTally
from aether_emu.verify.cases.x86_64_laboratory import X86Laboratory

FORMATS = [name for name in suites.FORMATS if "kvm" not in name]


def tally_of(laboratory: Laboratory, chunks: Iterator[Chunk]) -> Tally:
    tally = Tally()
    assert sum(run(laboratory, chunks, tally)) == tally.cases
    return tally


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suite", ["entries", "permissions", "tlb"])
def test_engine_and_specification_agree(name: str, suite: str) -> None:
    only_edits = "cleared" if suite == "tlb" else ""
    outcome = suites.perform(suites.Task(name, suite, 2_000, 7, only_edits))
    assert outcome.tally.cases > 50
    assert outcome.tally.differences == []
    assert suites.verdict(outcome)


@pytest.mark.parametrize("live_state", [True, False], ids=["live state", "state by API"])
@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_a_laboratory_works_on_either_state_path(isa: str, live_state: bool) -> None:
    laboratory: Laboratory
    if isa == "x86_64":
        laboratory = X86Laboratory(4, live_state=live_state)
        chunks = x86_cases.permissions(laboratory, 2_000, 3)
    else:
        laboratory = ArmLaboratory(16384, 47, live_state=live_state)
        chunks = arm64_cases.permissions(laboratory, 2_000, 3)
    assert tally_of(laboratory, chunks).clean
    laboratory.close()


def first_chunk(laboratory: X86Laboratory, operation: Operation = Operation.READ, user: bool = True) -> Chunk:
    """Pages of 4K that permit everything, as many as there are paths."""
    n = laboratory.paths.count
    words = [np.full(n, 0x67, np.uint64) for _ in range(laboratory.levels)]
    leaf, feature = np.ones(n, np.int64), np.zeros(n, np.int64)
    return Chunk(leaf, words, operation, user, {}, ("a page",), feature)


@pytest.fixture
def x86() -> Iterator[X86Laboratory]:
    laboratory = X86Laboratory(4)
    yield laboratory
    laboratory.close()


def test_an_entry_that_is_not_what_was_asked_for_is_a_difference(x86: X86Laboratory) -> None:
    chunk = first_chunk(x86, Operation.WRITE)
    entries, addresses = x86.place(chunk)
    expected = x86.expected(chunk, entries, addresses)
    entries[0] ^= np.uint64(2)  # read-only now, and nobody told the specification
    observed = x86.observed(chunk, entries, addresses)
    assert observed.fault.all()
    assert not expected.fault.any()
    assert set(observed.code.tolist()) == {7}
    assert (observed.where == addresses).all()


@pytest.mark.parametrize("operation", X86Laboratory.operations)
@pytest.mark.parametrize("user", [True, False])
def test_each_operation_reaches_its_page(x86: X86Laboratory, operation: Operation, user: bool) -> None:
    chunk = first_chunk(x86, operation, user)
    before = x86.paths.memory.copy()
    entries, addresses = x86.place(chunk)
    observed = x86.observed(chunk, entries, addresses)
    assert not observed.fault.any() and not observed.hole.any()
    offset = np.uint64(LANDING if operation is Operation.FETCH else 0)
    assert (observed.physical == x86.paths.pages + offset).all()
    data = slice(x86.paths.data // 8, None)
    assert (x86.paths.memory[data] == before[data]).all(), "stores were undone"
    dirty = observed.after[0] >> np.uint64(6) & np.uint64(1)
    assert (dirty == 1).all()


def test_a_page_in_a_hole_is_reported_with_its_address(x86: X86Laboratory) -> None:
    for operation in (Operation.READ, Operation.WRITE, Operation.FETCH):
        chunk = first_chunk(x86, operation)
        chunk.words[0][:] ^= np.uint64(1 << 33)
        entries, addresses = x86.place(chunk)
        observed = x86.observed(chunk, entries, addresses)
        assert observed.hole.all()
        offset = np.uint64(LANDING if operation is Operation.FETCH else 0)
        assert (observed.physical == (x86.paths.pages | np.uint64(1 << 33)) + offset).all()


def test_crossing_accesses_fault_at_whichever_page_refuses(x86: X86Laboratory) -> None:
    chunk = first_chunk(x86, Operation.CROSS_WRITE)
    chunk.words[0][::2] = 0x65  # every other page is read-only, its neighbour is not
    entries, addresses = x86.place(chunk)
    observed = x86.observed(chunk, entries, addresses)
    assert observed.fault[::2].all() and not observed.fault[1::2].any()
    assert (observed.where[::2] == addresses[::2] + np.uint64(CROSSING)).all()
    chunk.words[1][:] = 0x65  # the table above refuses both: the first is met first
    entries, addresses = x86.place(chunk)
    assert (x86.observed(chunk, entries, addresses).where == addresses).all()


def test_the_known_difference_is_counted_and_missed_when_gone(
    x86: X86Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = first_chunk(x86, Operation.MODIFY)
    chunk.words[0][:] = 0x66  # not present
    tally = tally_of(x86, iter([chunk]))
    assert (tally.known["rmw-reads-first"], tally.gone["rmw-reads-first"]) == (x86.paths.count, 0)
    assert tally.clean
    monkeypatch.setattr(x86, "observed", x86.expected)  # an engine that does as the manual says
    tally = tally_of(x86, iter([chunk]))
    assert tally.gone["rmw-reads-first"] == x86.paths.count
    assert not tally.clean


def test_entries_that_lead_into_other_cases_are_set_aside(x86: X86Laboratory) -> None:
    chunk = first_chunk(x86, Operation.WRITE)
    chunk.words[1][:] |= np.uint64(1 << 7)  # page directory entries became 2M pages over the tables
    tally = tally_of(x86, iter([chunk]))
    assert tally.set_aside > 0, "where the table's address has no reserved bit of a 2M page"
    assert tally.different == 0


def test_only_keeps_cases_by_feature() -> None:
    laboratory = X86Laboratory(5)
    chunks = list(only(x86_cases.permissions(laboratory, 3_000, 0), "1G page: user, read-only"))
    assert chunks
    for chunk in chunks:
        assert {chunk.features[number] for number in chunk.feature.tolist()} <= {
            "1G page: user, read-only, executable",
            "1G page: user, read-only, no-execute",
        }
        assert all(word.size == chunk.size for word in chunk.words)
    laboratory.close()


@pytest.mark.parametrize(
    ("laboratory", "at_least"), [(X86Laboratory(4), 19_169_288), (ArmLaboratory(), 9_000_000)]
)
def test_the_whole_product_has_the_size_of_what_kvm_is_tested_with(
    laboratory: Laboratory, at_least: int
) -> None:
    if isinstance(laboratory, X86Laboratory):
        assert x86_cases.permission_count(laboratory) >= at_least
    else:
        assert isinstance(laboratory, ArmLaboratory)
        assert arm64_cases.permission_count(laboratory) >= at_least


PRIVILEGED_ALONE = (Operation.UNPRIVILEGED_READ, Operation.UNPRIVILEGED_WRITE)


@pytest.mark.parametrize("name", ["x86_64-4level", "arm64-4K", "arm64-64K-42bit"])
def test_every_operation_is_tried_at_every_privilege_and_size(name: str) -> None:
    laboratory = suites.FORMATS[name].open()
    leaves: tuple[int, ...] = (1, 2, 3)
    if isinstance(laboratory, X86Laboratory):
        chunks = x86_cases.entries(laboratory, 0, 1)
    else:
        assert isinstance(laboratory, ArmLaboratory)
        leaves = (1, *laboratory.block_levels)
        chunks = arm64_cases.entries(laboratory, 0, 1)
    tried = {(int(chunk.leaf[0]), chunk.operation, chunk.user) for chunk in chunks}
    assert tried == {
        (leaf, operation, user)
        for leaf in leaves
        for operation in laboratory.operations
        for user in (True, False)
        if not (leaf > 1 and operation in CROSSES) and not (user and operation in PRIVILEGED_ALONE)
    }
    laboratory.close()


@pytest.mark.parametrize("name", ["x86_64-4level", "arm64-64K-42bit"])
def test_seeded_combinations_fill_up_what_single_bits_leave_of_the_cases(name: str) -> None:
    laboratory = suites.FORMATS[name].open()

    def made(count: int) -> int:
        if isinstance(laboratory, X86Laboratory):
            return sum(chunk.size for chunk in x86_cases.entries(laboratory, count, 1))
        assert isinstance(laboratory, ArmLaboratory)
        return sum(chunk.size for chunk in arm64_cases.entries(laboratory, count, 1))

    alone = made(0)
    assert made(alone + 100) == alone + 100
    laboratory.close()


@pytest.mark.parametrize("name", FORMATS)
def test_combinations_of_permissions_reach_pages_of_every_size_and_end_before_them(name: str) -> None:
    laboratory = suites.FORMATS[name].open()
    if isinstance(laboratory, X86Laboratory):
        chunks = x86_cases.permissions(laboratory, 5_000, 3)
    else:
        assert isinstance(laboratory, ArmLaboratory)
        chunks = arm64_cases.permissions(laboratory, 5_000, 3)
    reached = dict[int, set[bool]]()
    for chunk in chunks:
        leaf = int(chunk.leaf[0])
        valid = np.all([(word & np.uint64(1)) != 0 for word in chunk.words[leaf - 1 :]], axis=0)
        reached.setdefault(leaf, set()).update(valid.tolist())
    assert reached == {leaf: {False, True} for leaf in reached}
    assert len(reached) > 1
    laboratory.close()


# ---- paths


@pytest.mark.parametrize("name", FORMATS)
def test_no_two_paths_share_an_entry_a_page_or_a_neighbour(name: str) -> None:
    laboratory = suites.FORMATS[name].open()
    paths = laboratory.paths
    slots = np.concatenate([*paths.slots, paths.slots[0] - np.uint64(1)])
    assert np.unique(slots).size == slots.size
    assert slots.max() < paths.data // 8
    pages = np.concatenate([paths.pages, paths.pages - np.uint64(paths.geometry.page)])
    assert np.unique(pages).size == pages.size
    assert pages.min() >= paths.data and pages.max() < paths.size
    assert all(low < high for low, high in pairwise(paths.addresses.tolist()))
    laboratory.close()


@pytest.mark.parametrize(
    ("pages", "width", "first_slot", "fit"),
    [(10, 9, 0, 1), (64, 9, 0, 10), (1024, 7, 1, 126), (1024, 7, 0, 128)],
    ids=["the tables of one", "tables", "a root with slots left free", "a root"],
)
def test_as_many_paths_as_there_is_room_for_and_no_more(
    pages: int, width: int, first_slot: int, fit: int
) -> None:
    geometry, memory = Geometry((12, 21, 30, 39), (9, 9, 9, width)), np.zeros(pages * 512, np.uint64)
    assert Paths(memory, geometry, fit, b"", 0x800, first_slot=first_slot).count == fit
    with pytest.raises(ConfigError, match="paths="):
        Paths(memory, geometry, fit + 1, b"", 0x800, first_slot=first_slot)


def test_too_many_paths_are_refused() -> None:
    memory = np.zeros(1 << 17, np.uint64)
    with pytest.raises(ConfigError, match="paths="):
        Paths(memory, Geometry((12, 21, 30, 39), (9,) * 4), 250, b"", 0x800)
    with pytest.raises(ConfigError, match="paths="):
        Paths(memory, Geometry((12, 21, 30, 39), (9,) * 4), 511, b"", 0x800, first_slot=1)


# ---- probers


def test_a_batch_has_a_limit() -> None:
    laboratory = X86Laboratory(4)
    for count in (0, BATCH + 1):
        with pytest.raises(EngineError, match="a batch has"):
            laboratory.prober.run(0, np.zeros(count, np.uint64), Operation.READ, user=True)
    laboratory.close()


def test_invalidating_drops_one_page_and_leaves_the_others() -> None:
    for laboratory, read_only in ((X86Laboratory(4), 2), (ArmLaboratory(), 1 << 7)):
        chunk = chunk_of(laboratory)
        entries, addresses = laboratory.place(chunk)
        laboratory.paths.install(entries, laboratory.neighbour, laboratory.prober.own_entries)
        laboratory.answers(chunk.operation, laboratory.attempt(chunk, addresses), addresses)
        laboratory.paths.edit([entries[0] ^ np.uint64(read_only), *entries[1:]])
        laboratory.invalidate(addresses[:1])
        tried = laboratory.attempt(chunk, addresses, flush=False)
        assert tried.happened.tolist() == [Happened.FAULT, Happened.DONE, Happened.DONE]
        laboratory.close()


def chunk_of(laboratory: Laboratory) -> Chunk:
    """Stores by the supervisor to the pages of the first three paths."""
    levels = laboratory.paths.geometry.levels
    page, table = (0x67, 0x67) if laboratory.isa == "x86_64" else (0x743, 3)
    words: list[Words] = [np.full(3, page if level == 0 else table, np.uint64) for level in range(levels)]
    zeros = np.zeros(3, np.int64)
    return Chunk(zeros + 1, words, Operation.WRITE, False, {}, ("a page",), zeros)


def test_stores_leave_the_address_and_a_modify_returns_what_was_there() -> None:
    for laboratory in (X86Laboratory(4), ArmLaboratory(65536, 42)):
        chunk = chunk_of(laboratory)
        for operation in (Operation.WRITE, Operation.MODIFY):
            asked = replace(chunk, operation=operation)
            entries, addresses = laboratory.place(asked)
            laboratory.paths.install(entries, laboratory.neighbour, laboratory.prober.own_entries)
            tried = laboratory.attempt(asked, addresses)
            pages = laboratory.paths.pages[:3]
            found = laboratory.paths.memory[pages >> np.uint64(3)]
            if operation is Operation.WRITE:
                assert (found == addresses).all()
            else:
                assert (tried.value == pages).all()
                assert (found == pages + addresses).all()
            laboratory.paths.restore(pages)
        laboratory.close()


def test_an_exception_that_no_table_decides_is_told_apart() -> None:
    laboratory = ArmLaboratory()
    chunk = replace(chunk_of(laboratory), operation=Operation.FETCH)
    entries, addresses = laboratory.place(chunk)
    laboratory.paths.memory[(laboratory.paths.pages[:3] + np.uint64(LANDING)) >> np.uint64(3)] = 0  # udf
    laboratory.paths.install(entries, laboratory.neighbour, {})
    entries[0][:] = entries[0] & ~np.uint64(1 << 6)  # not the user's, or EL1 would not execute it
    laboratory.paths.edit(entries)
    assert laboratory.attempt(chunk, addresses).happened.tolist() == [Happened.OTHER] * 3
    laboratory.close()


# ---- histories


def test_a_policy_that_forgets_is_missing_and_one_that_always_flushes_needless() -> None:
    laboratory = X86Laboratory(4)
    forgets, always = TlbTally(), TlbTally()
    for _ in x86_cases.tlb(laboratory, forgets, lambda *_edit: False):
        pass
    for _ in x86_cases.tlb(laboratory, always, lambda *_edit: True):
        pass
    for edit in ("present cleared", "write removed", "another page", "accessed cleared"):
        assert forgets.findings[edit].missing == forgets.findings[edit].owed > 0
        assert always.findings[edit].missing == 0
    for edit in ("nothing changed", "made present", "write granted", "user granted"):
        assert forgets.findings[edit].missing == 0
        assert always.findings[edit].needless == always.findings[edit].histories > 0
    laboratory.close()


@pytest.fixture(scope="module")
def arm_histories() -> TlbTally:
    """What all histories of ARM64 show of a policy that never answers."""
    laboratory, tally = ArmLaboratory(), TlbTally()
    for _ in arm64_cases.tlb(laboratory, tally, lambda *_edit: None):
        pass
    laboratory.close()
    return tally


def test_the_engine_shows_stale_translations_and_every_flush_ends_them(arm_histories: TlbTally) -> None:
    tally = arm_histories
    assert tally.different == 0
    assert tally.findings["valid cleared"].stale > 0, "how many depends on the size of the engine's TLB"
    assert tally.findings["valid cleared"].missing == 0, "this policy makes no such edit"
    assert {access.split(", ")[1] for _feature, access in tally.cells} == set(FLUSHES)


def test_granting_write_owes_a_flush_where_it_ends_execution(arm_histories: TlbTally) -> None:
    """What EL0 may write EL1 never executes (Arm ARM D8.4.2): a grant that takes something away."""
    granted = arm_histories.findings["write granted"]
    assert 0 < granted.owed < granted.histories


def test_what_histories_edit_is_large_where_large_pages_are_and_of_one_memory_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit 7 makes a large page of an entry of levels 2 and 3; in one of level 1 it is a memory type's."""
    seen: dict[int, set[bool]] = {}

    def note(
        _laboratory: object, _table: object, leaf: int, made: Histories, *_rest: object
    ) -> Iterator[int]:
        seen[leaf] = set(((np.concatenate([made.before, made.after]) & np.uint64(1 << 7)) != 0).tolist())
        return iter(())

    monkeypatch.setattr(x86_cases, "run_histories", note)
    laboratory = X86Laboratory(4)
    assert list(x86_cases.tlb(laboratory, TlbTally(), lambda *_edit: None)) == []
    assert (seen[1], True in seen[2], True in seen[3]) == ({False}, True, True)
    laboratory.close()
