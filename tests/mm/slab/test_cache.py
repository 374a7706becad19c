"""Objects, slabs, free lists, magazines. Every check finds its fault, which without the check goes unseen."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from aether_emu.errors import OutOfFrames
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.slab.cache import KEPT, Cache
from aether_emu.mm.slab.finding import SlabCorruption
from aether_emu.mm.slab.geometry import Debug, geometry, slab_order
from aether_emu.mm.slab.layout import Layout
from aether_emu.mm.slab.magazines import DEPOT, rounds
from aether_emu.mm.slab.slabs import STACK
from tests.mm.slab.board import FRAMES, Board

THING = Layout("thing", ("number", "I"), ("place", "Q"), ("name", "8s"))
EVERY_PAGE = pytest.mark.parametrize("page_shift", [12, 14, 16])


def test_fields_stand_where_a_compiler_would_put_them() -> None:
    assert {name: at for name, (at, _one) in THING.fields.items()} == {"number": 0, "place": 8, "name": 16}
    assert THING.size == 24


@EVERY_PAGE
def test_an_object_is_bytes_of_ram_in_a_frame_of_its_cache(page_shift: int) -> None:
    board = Board(page_shift=page_shift)
    at = board.slabs.take(THING, number=7, place=1 << 60, name=b"first")
    offset = at - board.slabs.bias
    assert bytes(board.memory[offset : offset + 4]) == b"\7\0\0\0"
    assert board.slabs.load(THING, at) == {"number": 7, "place": 1 << 60, "name": b"first"}
    frame = offset >> page_shift
    assert board.frames.kind[frame] == Kind.SLAB and board.frames.refs[frame] == 1
    assert board.slabs.caches[board.frames.owner[frame] - 1].name == "thing"
    board.slabs.put(THING, at)
    board.slabs.close()
    assert board.used == 0 and not board.frames.leaks()


def test_what_a_taken_object_does_not_say_is_zero() -> None:
    board = Board()
    at = board.slabs.take(THING, number=7, place=9)
    board.slabs.put(THING, at)
    assert board.slabs.take(THING) == at
    assert board.slabs.load(THING, at) == {"number": 0, "place": 0, "name": b""}


def test_objects_do_not_overlap_and_are_aligned_to_a_line() -> None:
    for debug in ("", "Z", "P", "U", "FZPU"):
        board = Board(debug)
        taken = sorted(board.slabs.take(THING) for _ in range(300))
        cache = board.slabs.caches[0]
        assert all(b - a >= cache.shape.stride for a, b in pairwise(taken))
        assert not any(at % 64 for at in taken), debug
        assert cache.in_use == 300


def test_the_pointers_of_a_free_list_are_no_addresses_and_lie_in_its_objects() -> None:
    board = Board()
    cache = board.slabs.cache("bytes", 64)
    first = cache.alloc()
    slab = cache.slab_of(first)
    pointers = []
    for address in cache.free_objects(slab):
        at = address + cache.shape.pointer - board.slabs.bias
        pointers.append(int.from_bytes(board.memory[at : at + 8], "little"))
    assert len(set(pointers)) == len(pointers) == slab.count - 1
    assert not any(slab.base <= each < slab.base + cache.length for each in pointers)


def test_two_machines_with_other_seeds_hand_out_in_another_order() -> None:
    orders = []
    for seed in (1, 1, 2):
        board = Board()
        cache = Cache(board.slabs, 1, "bytes", 64)
        board.slabs.caches.append(cache)
        board.chance.seed, board.chance.position = seed, 0
        orders.append([cache.alloc() for _ in range(20)])
    assert orders[0] == orders[1] != orders[2]


def test_an_overwritten_pointer_is_found_before_it_is_used() -> None:
    board = Board()
    cache = board.slabs.cache("bytes", 64)
    slab = cache.slab_of(cache.alloc())
    target = slab.base + 5  # what an attacker would have the next object at
    board.poke(slab.free + cache.shape.pointer, target.to_bytes(8, "little"))
    with pytest.raises(SlabCorruption, match="free list overwritten") as found:
        cache.alloc()
    assert "slab_debug has no U" in found.value.report


def test_a_neighbours_word_too_many_does_not_reach_the_pointer() -> None:
    board = Board()
    cache = board.slabs.cache("bytes", 64)
    taken = [cache.alloc() for _ in range(cache.per_slab - 1)]
    for at in taken:
        board.poke(at, b"A" * 72)
    cache.alloc()


# ---- magazines


def test_a_cpu_that_frees_and_allocates_stays_with_its_own_magazines() -> None:
    board = Board(cpus=2)
    cache = board.slabs.cache("bytes", 64)
    taken = [cache.alloc() for _ in range(10)]
    for at in taken:
        cache.free(at)
    slab = cache.slab_of(taken[0])
    before = slab.free, slab.in_use
    board.cpu = 1
    other = cache.alloc()
    assert other not in taken, "they are another CPU's"
    board.cpu = 0
    assert [cache.alloc() for _ in range(10)] == taken[::-1]
    assert slab.in_use == before[1] + 1
    assert (cache.magazines.hits, cache.magazines.exchanges) == (10, 0)


def test_full_magazines_go_by_the_depot_to_another_cpu() -> None:
    board = Board(cpus=2)
    cache = board.slabs.cache("bytes", 64)
    most = rounds(64)
    taken = [cache.alloc() for _ in range(3 * most)]
    for at in taken:
        cache.free(at)
    assert len(cache.magazines.depot) == 1 and cache.in_use == 0
    board.cpu = 1
    assert cache.alloc() in taken
    assert cache.magazines.exchanges == 2


def test_what_the_depot_does_not_hold_goes_back_to_the_slabs_and_they_to_the_buddy() -> None:
    board = Board()
    cache = board.slabs.cache("bytes", 512)
    taken = [cache.alloc() for _ in range(200)]
    assert board.used > 20
    for at in taken:
        cache.free(at)
    assert cache.in_use == 0 and cache.magazines.count <= (DEPOT + 2) * rounds(512)
    kept = {
        cache.slab_of(at).first for each in (*cache.magazines.depot, *cache.magazines.loaded) for at in each
    }
    assert len(cache.slabs) <= KEPT + len(kept) + rounds(512)
    looked, frames = cache.reap()
    assert looked > 0 < frames and not cache.slabs and board.used == 0


# ---- memory


def test_no_frame_left_is_told_with_nothing_taken() -> None:
    board = Board()
    taken = []
    with pytest.raises(OutOfFrames):
        while True:
            taken.append(board.slabs.take(THING))
    assert len(taken) == FRAMES * 64 and board.buddy.free_frames == 0
    board.slabs.check()
    for at in taken:
        board.slabs.put(THING, at)
    board.slabs.close()
    assert board.used == 0


def test_bytes_come_in_pieces_of_a_page_all_or_none() -> None:
    board = Board()
    pieces = board.slabs.take_bytes(10_000)
    assert len(pieces) == 3
    board.slabs.write(pieces, bytes(range(250)) * 40)
    assert board.slabs.read(pieces, 300, 4000) == (bytes(range(250)) * 40)[4000:4300]
    names = [row.name for row in board.slabs.rows()]
    assert names == ["kmalloc-4k", "kmalloc-2k"]
    board.slabs.put_bytes(pieces, 10_000)
    before = [row.active for row in board.slabs.rows()]
    with pytest.raises(OutOfFrames):
        board.slabs.take_bytes(FRAMES << 13)
    assert before == [row.active for row in board.slabs.rows()] == [0, 0]


@EVERY_PAGE
def test_a_stack_is_16_kib_and_its_end_is_watched(page_shift: int) -> None:
    board = Board(page_shift=page_shift)
    stacks = [board.slabs.take_stack() for _ in range(4)]
    assert board.slabs.stack_bytes == 4 * STACK
    assert board.used << page_shift >= 4 * STACK
    for at in stacks[1:]:
        board.slabs.put_stack(at)
    board.poke(stacks[0], b"deep")
    with pytest.raises(SlabCorruption, match="stack overrun"):
        board.slabs.put_stack(stacks[0])


def test_a_stack_finds_room_in_split_memory_or_takes_nothing() -> None:
    board = Board()
    frames = board.buddy.alloc_bulk(FRAMES).tolist()
    board.buddy.free_bulk(frames[:14:2])
    stack = board.slabs.take_stack()
    assert board.buddy.free_frames == 3
    with pytest.raises(OutOfFrames):
        board.slabs.take_stack()
    assert board.buddy.free_frames == 3
    board.slabs.put_stack(stack)
    assert board.buddy.free_frames == 7 and not board.slabs.stack_bytes


def test_who_keeps_an_object_to_the_end_is_named_by_its_cache() -> None:
    board = Board()
    board.slabs.take(THING)
    board.slabs.take_stack()
    board.slabs.close()
    assert board.slabs.kept() == "1 of thing, 1 stacks" and board.frames.leaks()


def test_until_they_are_opened_nothing_is_taken() -> None:
    board = Board()
    board.slabs.opened = False
    assert board.slabs.take(THING) == 0 == board.slabs.take_stack()
    board.slabs.put(THING, 0)
    board.slabs.store(THING, 0, number=1)
    assert board.slabs.take_bytes(100) == () and board.used == 0


# ---- checks


def test_caches_of_one_size_are_one_only_where_merging_is_on() -> None:
    for merge, count in ((False, 2), (True, 1)):
        board = Board(merge=merge)
        one, other = board.slabs.cache("one", 96), board.slabs.cache("other", 92)
        assert (one is other) is merge and len(board.slabs.caches) == count
    checked = Board("F", merge=True)
    assert checked.slabs.cache("one", 96) is not checked.slabs.cache("other", 96)


def test_checks_are_for_the_named_cache_alone() -> None:
    board = Board("Z", only="one")
    assert board.slabs.cache("one", 64).checks is not None
    assert board.slabs.cache("other", 64).checks is None


def sides(report: str) -> tuple[list[str], list[str]]:
    """The tasks that allocated and freed, in a report."""
    return re.findall(r"allocated by task (\d+)", report), re.findall(r"freed by     task (\d+)", report)


@pytest.mark.parametrize("where", [THING.size, -1])
def test_an_overrun_is_found_by_red_zones_and_both_users_are_named(where: int) -> None:
    for debug in ("", "FPU"):
        board = Board(debug)
        at = board.slabs.take(THING)
        board.poke(at + where, b"!")
        board.slabs.put(THING, at)
    board = Board("ZU")
    taken = [board.slabs.take(THING)]
    board.tid = 1001
    taken += [board.slabs.take(THING) for _ in range(30)]
    board.tid = 1002
    board.poke(taken[0] + where, b"!")
    with pytest.raises(SlabCorruption, match=f"overrun: object {taken[0]:#x}") as found:
        board.slabs.put(THING, taken[0])
    report = found.value.report
    assert "beyond its end" in report if where > 0 else "before its beginning" in report
    assert sides(report)[0][0] == "1000" and "found by     task 1002" in report
    if f"{taken[0] + board.slabs.caches[0].shape.stride:#x}" in report:
        assert "1001" in sides(report)[0], "whose object stands beside it"


def test_a_use_after_free_is_found_by_poison_and_both_sides_are_named() -> None:
    for debug in ("", "FZU"):
        board = Board(debug)
        at = board.slabs.take(THING)
        board.slabs.put(THING, at)
        board.poke(at, b"late")
        assert board.slabs.take(THING) == at
    board = Board("PU")
    at = board.slabs.take(THING)
    board.tid = 1001
    board.slabs.put(THING, at)
    board.poke(at + 4, b"late")
    board.tid = 1002
    with pytest.raises(SlabCorruption, match="use after free") as found:
        board.slabs.take(THING)
    report = found.value.report
    assert sides(report) == (["1000"], ["1001"]) and "found by     task 1002" in report
    assert "bytes 4 to 7" in report


@pytest.mark.parametrize("debug", ["FU", "ZU"])
def test_a_double_free_is_found_and_both_frees_are_named(debug: str) -> None:
    unseen = Board("PU")
    at, between = unseen.slabs.take(THING), unseen.slabs.take(THING)
    for each in (at, between, at):
        unseen.slabs.put(THING, each)
    board = Board(debug)
    at, between = board.slabs.take(THING), board.slabs.take(THING)
    board.tid = 1001
    board.slabs.put(THING, at)
    board.slabs.put(THING, between)
    board.tid = 1002
    with pytest.raises(SlabCorruption, match="double free") as found:
        board.slabs.put(THING, at)
    report = found.value.report
    assert sides(report) == (["1000"], ["1001"]) and "found by     task 1002" in report


def test_unseen_a_double_free_gives_one_object_to_two() -> None:
    board = Board()
    at, between = board.slabs.take(THING), board.slabs.take(THING)
    for each in (at, between, at):
        board.slabs.put(THING, each)
    taken = [board.slabs.take(THING) for _ in range(3)]
    assert taken == [at, between, at]


def test_without_checks_the_slab_itself_sees_an_object_come_back_twice_in_a_row() -> None:
    board = Board()
    at = board.slabs.take(THING)
    board.slabs.put(THING, at)
    board.slabs.put(THING, at)
    with pytest.raises(SlabCorruption, match="double free"):
        board.slabs.close()


def test_an_address_that_is_no_object_is_refused() -> None:
    board = Board("F")
    at = board.slabs.take(THING)
    for wild in (at + 8, at + (1 << 40), board.slabs.bias + (200 << 12)):
        with pytest.raises(SlabCorruption, match="wild pointer"):
            board.slabs.put(THING, wild)
    with pytest.raises(SlabCorruption, match="wild pointer"):
        board.slabs.store(THING, 8, number=1)


def test_a_look_at_everything_finds_what_nobody_has_come_across() -> None:
    board = Board("Z")
    board.slabs.take(THING)
    other = board.slabs.take(THING)
    board.slabs.check()
    board.poke(other + THING.size, b"!")
    with pytest.raises(SlabCorruption, match="overrun"):
        board.slabs.check()


def test_a_slab_wastes_little() -> None:
    for stride in range(8, 9000, 8):
        order = slab_order(stride, 4096)
        length = 4096 << order
        assert length >= stride
        assert length // stride >= 4 or order == 3 or not length % stride, stride
    assert [slab_order(size, 4096) for size in (1024, 2048, 4096)] == [0, 0, 0], "of a row there may be none"
    assert geometry(24, 64, Debug(0)).stride == 64


# ---- state


@pytest.mark.parametrize("debug", ["", "FZPU"])
def test_restored_slabs_go_on_as_the_captured_ones(debug: str) -> None:
    board = Board(debug, cpus=2)
    taken = [board.slabs.take(THING, number=each) for each in range(100)]
    for at in taken[::3]:
        board.slabs.put(THING, at)
    state, frames = board.slabs.capture(), board.frames.capture()
    buddy, memory = board.buddy.capture(), bytes(board.memory)
    again = Board(debug, cpus=2)
    again.frames.restore(frames)
    again.buddy.restore(buddy)
    again.memory[:] = memory
    again.slabs.restore(state)
    again.chance.position = board.chance.position
    again.slabs.check()
    assert again.slabs.rows() == board.slabs.rows()
    assert [again.slabs.take(THING) for _ in range(60)] == [board.slabs.take(THING) for _ in range(60)]
    assert again.slabs.load(THING, taken[1])["number"] == 1
