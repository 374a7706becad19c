"""Tags: who gets which, what a CPU may keep under them, and that no stale translation is ever used.

The reference CPU keeps all that it holds of address spaces that it has left, under their tags: whatever was
forgotten to flush is a wrong byte here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from aether_emu.mm.kept import ENTRIES, Kept
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Request, map_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tags import Asids, Context, Pcids, Retained, Tags
from tests.mm.board import FORMATS, Board, discard

START, PAGES = 0x40_0000, 4
CPUS = 3
KINDS: dict[str, Callable[[int], Tags]] = {
    "one PCID": lambda cpus: Pcids(1, cpus),
    "three PCIDs": lambda cpus: Pcids(3, cpus),
    "many PCIDs": lambda cpus: Pcids(4095, cpus),
    "ASIDs of 3 bits": lambda cpus: Asids(3, cpus),
    "ASIDs of 16 bits": lambda cpus: Asids(16, cpus),
    "pairs of PCIDs": lambda cpus: Pcids(3, cpus, 1 << 11),
    "pairs of ASIDs": lambda cpus: Asids(4, cpus, 1),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Spaces:
    """Spaces on three CPUs, and what each has in its pages. They come, change and go by chance."""

    def __init__(self, tags: Tags, chance: random.Random) -> None:
        self.board, self.chance, self.tags = Board(FORMATS["x86_64"], cpus=CPUS, tags=tags), chance, tags
        self.page = self.board.format.page_size
        first = self.board.space()
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        map_memory(first, Request(START, PAGES * self.page, 3, flags, None, 0))
        self.contents: dict[AddressSpace, list[bytes]] = {first: [b"\0"] * PAGES}

    def step(self) -> None:
        """One of them on one of the CPUs does something, and looks."""
        board, chance = self.board, self.chance
        space = chance.choice(list(self.contents))
        board.physical.tlb.enter(chance.randrange(CPUS))
        board.percpu[board.physical.tlb.running].take_over()
        board.run_on(space)
        number, told = chance.randrange(PAGES), self.contents[space]
        at = START + number * self.page
        match chance.randrange(8):
            case 0 if len(self.contents) < 10:
                child = space.fork()
                board.spaces.append(child)
                self.contents[child] = list(told)
            case 1 if len(self.contents) > 1:
                del self.contents[space]
                board.spaces.remove(space)
                space.destroy()
                return
            case 2:  # of another space, which may run on another CPU or on none
                other = chance.choice(list(self.contents))
                discard(other, at, at + self.page)
                self.contents[other][number] = b"\0"
            case 3 | 4 | 5:
                told[number] = bytes([chance.randrange(256)])
                board.cpu.copy_to_user(at, told[number])
        self.look(space)

    def look(self, space: AddressSpace) -> None:
        """All of its pages."""
        for number, wanted in enumerate(self.contents[space]):
            seen = bytes(self.board.cpu.copy_from_user(START + number * self.page, 1))
            assert seen == wanted, f"page {number} of space {space.number}"


def _many_steps(kind: str, steps: int, seed: int = 5) -> Spaces:
    spaces = Spaces(KINDS[kind](CPUS), random.Random(seed))
    try:
        for _ in range(steps):
            spaces.step()
    except BaseException:
        spaces.board.abandon()
        raise
    spaces.board.close()
    return spaces


@every_kind
def test_no_cpu_uses_what_it_should_have_dropped(kind: str) -> None:
    tags = _many_steps(kind, 600).tags
    assert tags.kept + tags.behind + tags.fresh == tags.switches > 100
    assert (tags.kept > 0) == (kind != "one PCID")
    assert (tags.rollovers > 0) == (kind in ("ASIDs of 3 bits", "pairs of ASIDs"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "16" not in kind])
def test_a_tag_that_is_used_again_without_a_flush_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tags, "keeps", lambda _self, _valid: True)
    with pytest.raises(AssertionError, match="page"):
        _many_steps(kind, 600)


def test_a_flush_that_is_not_broadcast_to_those_who_left_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asids, "broadcast_to_others", lambda *_arguments: None)
    with pytest.raises(AssertionError, match="page"):
        _many_steps("ASIDs of 16 bits", 600)


def test_an_edit_that_no_generation_counts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "flushed", lambda *_arguments: None)
    with pytest.raises(AssertionError, match="page"):
        _many_steps("three PCIDs", 600)


@pytest.mark.parametrize("kind", ["three PCIDs", "ASIDs of 16 bits"])
def test_who_leaves_before_it_has_flushed_does_so_on_coming_back(kind: str) -> None:
    spaces = Spaces(KINDS[kind](CPUS), random.Random(1))
    board, (space,) = spaces.board, spaces.contents
    for index in (0, 1):
        board.physical.tlb.enter(index)
        board.run_on(space)
        board.cpu.copy_to_user(START, b"x")
    discard(space, START, START + spaces.page)
    assert board.physical.tlb.owes(0)
    board.percpu[0].leave()
    board.physical.tlb.enter(0)
    board.run_on(space)
    spaces.look(space)
    board.close()


@pytest.mark.parametrize("one_page", [True, False])
def test_an_engine_drops_by_tag_what_it_has_under_that_one(engine: Board, one_page: bool) -> None:
    space, size, cpu = engine.space(), engine.format.page_size, engine.cpu
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    map_memory(space, Request(START, 2 * size, 3, flags, None, 0))
    engine.run_on(space)
    for number in range(2):
        cpu.copy_to_user(START + number * size, b"ab"[number : number + 1])
    slots = [space.table.leaf_slot(START + number * size) for number in range(2)]
    words, entries = engine.ram.words, [engine.ram.words[slot] for slot in slots]
    cpu.set_root(space.table.root, 5, keep=True)
    assert cpu.copy_from_user(START, 1) == b"a"
    words[slots[0]] = entries[1]
    cpu.flush_tag(6, START if one_page else None)
    assert cpu.copy_from_user(START, 1) == b"a"
    cpu.flush_tag(5, START if one_page else None)
    assert cpu.copy_from_user(START, 1) == b"b"
    words[slots[0]] = entries[0]
    cpu.set_root(space.table.root, 0)


# ---- who gets which


def _contexts(count: int) -> list[Context]:
    return [Context(number, number << 12, number << 12, None) for number in range(1, count + 1)]


def _visit(tags: Tags, context: Context, index: int = 0, *, owes: bool = False) -> tuple[int, bool]:
    """Go there and leave again."""
    entered = tags.enter(index, context)
    tags.leave(index, context, owes=owes)
    return entered


def test_a_pcid_is_kept_until_the_space_is_edited() -> None:
    tags, (one, other) = Pcids(6, 1), _contexts(2)
    assert [_visit(tags, each) for each in (one, other, one, other)] == [
        (1, False), (2, False), (1, True), (2, True),
    ]  # fmt: skip
    one.flushed(None)
    assert [_visit(tags, each) for each in (one, one, other)] == [(1, False), (1, True), (2, True)]
    other.flushed([0x1000])
    assert _visit(tags, other) == (2, False)
    assert (tags.kept, tags.behind, tags.fresh) == (4, 2, 2)


def test_pcids_are_taken_in_turn_and_are_each_cpu_s_own() -> None:
    tags, spaces = Pcids(2, 2), _contexts(3)
    assert [_visit(tags, each)[0] for each in spaces] == [1, 2, 1]
    assert _visit(tags, spaces[0]) == (2, False)
    assert _visit(tags, spaces[2], 1) == (1, False)
    assert tags.retained(0) == [Retained(1, 3 << 12, 0), Retained(2, 1 << 12, 0)]
    assert tags.retained(1) == [Retained(1, 3 << 12, 0)]


def test_a_cpu_that_leaves_with_a_flush_undone_makes_it_when_it_comes_back() -> None:
    tags, (one, other) = Pcids(6, 1), _contexts(2)
    assert _visit(tags, one, owes=True) == (1, False)
    assert tags.retained(0)[0].generation == -1
    _visit(tags, other)
    assert [_visit(tags, one), _visit(tags, one)] == [(1, False), (1, True)]


def test_a_cpu_knows_of_edits_that_it_was_told_while_it_was_there() -> None:
    tags, (one, other) = Pcids(6, 1), _contexts(2)
    tags.enter(0, one)
    one.flushed(None)
    tags.leave(0, one, owes=False)
    _visit(tags, other)
    assert _visit(tags, one) == (1, True)


@pytest.fixture
def asids() -> Iterator[Asids]:
    """Seven numbers, on two CPUs."""
    board = Board(FORMATS["invented"], cpus=2, tags=Asids(3, 2))
    assert isinstance(board.physical.tags, Asids)
    yield board.physical.tags
    board.close()


def test_an_asid_is_the_same_on_all_cpus(asids: Asids) -> None:
    spaces = _contexts(3)
    assert [_visit(asids, each)[0] for each in spaces] == [1, 2, 3]
    assert [_visit(asids, each, 1)[0] for each in reversed(spaces)] == [3, 2, 1]


def test_after_a_rollover_each_cpu_flushes_once_and_what_runs_keeps_its_number(asids: Asids) -> None:
    spaces = _contexts(8)
    for each in spaces[:7]:
        _visit(asids, each)
    asids.enter(1, spaces[2])
    assert asids.rollovers == 0
    assert _visit(asids, spaces[7]) == (1, False)
    assert (asids.rollovers, asids.behind) == (1, 1)
    assert _visit(asids, spaces[2]) == (3, True)
    asids.leave(1, spaces[2], owes=False)
    assert _visit(asids, spaces[2], 1) == (3, False)
    assert _visit(asids, spaces[3], 1) == (4, True)
    numbers = [each.asid for each in spaces if each.asid >> 3 == asids.generation]
    assert len(set(numbers)) == len(numbers) == 3


def test_after_a_rollover_nobody_gets_the_number_of_who_still_runs(asids: Asids) -> None:
    spaces = _contexts(12)  # the last number was what the other CPU ran with
    asids.enter(1, spaces[0])
    taken = [_visit(asids, each)[0] for each in spaces[1:]]
    assert (taken, asids.rollovers) == ([2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6], 1)
    assert _visit(asids, spaces[0]) == (1, True)


def test_a_full_broadcast_leaves_nothing_of_a_space_where_it_was_left(asids: Asids) -> None:
    one, other = (Context(number, number << 12, number << 12, asids) for number in (1, 2))
    for index in (0, 1):
        _visit(asids, one, index)
        asids.enter(index, other)
    one.flushed([0x1000])
    assert [tag for tag, _root, _seen in asids.retained(1)] == [1, 2]
    one.flushed(None)
    assert [[each.tag for each in asids.retained(index)] for index in (0, 1)] == [[2], [2]]
    assert (_visit(asids, one), asids.kept) == ((1, True), 0)


def test_pairs_differ_in_the_user_s_bit() -> None:
    context = Context(1, 0x1000, 0x2000, None)
    for tags, tag, user in ((Pcids(6, 1, 1 << 11), 1, 0x801), (Asids(8, 1, 1), 2, 3)):
        assert _visit(tags, context)[0] == tag
        assert tags.retained(0) == [Retained(tag, 0x2000, 0), Retained(user, 0x1000, 0)]


@every_kind
def test_captured_tags_go_on_as_they_would_have(kind: str) -> None:
    ways = []
    for cut in (False, True):
        tags, spaces, chance = KINDS[kind](2), _contexts(9), random.Random(1)
        seen = []
        for step in range(200):
            if cut and step == 100:
                known = {each.number: each for each in spaces}
                state, tags = tags.capture(), KINDS[kind](2)
                tags.restore(state, known)
            space = chance.choice(spaces)
            if not chance.randrange(4):
                space.generation += 1
            seen.append(_visit(tags, space, chance.randrange(2)))
        ways.append((seen, tags.capture()))
    assert ways[0] == ways[1]


# ---- the model of what is kept


def test_what_is_kept_is_what_others_have_left_room_for() -> None:
    kept = Kept(1)
    kept.leave(0, 1, 1000)
    kept.leave(0, 2, 400)
    kept.enter(0, 1, keep=True, broadcast=False)
    assert kept.translations == 1000
    kept.leave(0, 1, 1000)
    kept.leave(0, 3, ENTRIES - 300)
    kept.enter(0, 1, keep=True, broadcast=False)
    assert kept.translations == 1000 + 300
    kept.enter(0, 1, keep=False, broadcast=False)
    kept.enter(0, 1, keep=True, broadcast=False)
    kept.enter(0, 3, keep=False, broadcast=True)
    kept.enter(0, 3, keep=True, broadcast=True)
    assert kept.translations == 1000 + 300
