"""Every edit of a range over a mixture of all that can stand there, on every format, beside a plain model.

References, map counts and what is owed to the TLB are part of the model; `owes_flush` is the rule that
`verify` judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from aether_emu.arch.paging import HeldKind, PageFlags
from aether_emu.errors import MappingError, OutOfFrames
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection, leaf_bits
from aether_emu.mm.tables import edits, transfer
from aether_emu.mm.tables.count import Census, Used, count
from aether_emu.ports import NEVER_FAILS
from tests.mm.tables.mixture import (
    FORMATS,
    NOTED,
    Mixture,
    Recorder,
    Segment,
    cut,
    joined,
    merged,
    segment_of,
)
from tests.mm.tables.test_page import FailsAt

# Tables of 8192 entries take the model long: one seed must do for them.
CASES = [(fmt, seed) for fmt in FORMATS for seed in range(1 if fmt.levels[0].entries > 4096 else 2)]
READ, WRITE, EXECUTE = Protection.READ, Protection.WRITE, Protection.EXECUTE


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def mixture(request: pytest.FixtureRequest) -> Iterator[Mixture]:
    made = Mixture(*request.param)
    made.check()
    yield made
    made.close()


def test_zap_clears_drops_and_returns_what_has_no_frame(mixture: Mixture) -> None:
    for start, end in reversed(mixture.ranges(6)):
        gather = Recorder(mixture.table)
        gone = [s for s in cut(mixture.segments, start, end) if start <= s.page < end and not s.framed]
        owed = mixture.expect(start, end, lambda _segment: None)
        found = edits.zap(mixture.table, gather, *mixture.bytes_of(start, end))
        assert merged(segment_of(mixture.format, item) for item in found) == merged(gone)
        assert joined(gather.owed) == owed
        gather.finish()
        mixture.check()
    assert mixture.segments == []


def test_ranges_that_are_zapped_together_come_out_as_one_by_one(mixture: Mixture) -> None:
    ranges = list(pairwise(sorted({edge for each in mixture.ranges(6) for edge in each})))
    gone = [s for start, end in ranges for s in cut(mixture.segments, start, end) if start <= s.page < end]
    owed = joined(page for start, end in ranges for page in mixture.expect(start, end, lambda _segment: None))
    gather, table, seen = Recorder(mixture.table), mixture.table, list[int]()

    def inspect(used: Used) -> None:
        assert all(table.ram.words[slot] for slot in used.slots.tolist()), "before it is cleared"
        seen.extend(used.pages.tolist())

    found = edits.zap_all(table, gather, [mixture.bytes_of(*each) for each in ranges], inspect)
    assert merged(
        segment_of(mixture.format, item) for item in sorted(found, key=lambda item: item.start)
    ) == (merged(segment for segment in gone if not segment.framed))
    assert joined(gather.owed) == owed
    assert seen
    assert all(any(segment.page <= page < segment.end for segment in gone) for page in set(seen))
    gather.finish()
    mixture.check()
    assert mixture.segments == []


def test_zap_spares_one_kind_of_frame_and_what_has_none(mixture: Mixture) -> None:
    frames = mixture.frames

    def goes(segment: Segment) -> bool:
        first = mixture.first_frame(segment)
        return first is not None and frames.kind[first] != Kind.ANON

    for start, end in reversed(mixture.ranges(4)):
        gather = Recorder(mixture.table)
        owed = mixture.expect(start, end, lambda segment: None if goes(segment) else segment)
        assert edits.zap(mixture.table, gather, *mixture.bytes_of(start, end), spare=Kind.ANON) == []
        assert joined(gather.owed) == owed
        gather.finish()
        mixture.check()
    assert mixture.segments
    assert not any(goes(segment) for segment in mixture.segments)


def test_protect_changes_permissions_and_nothing_else(mixture: Mixture) -> None:
    fmt = mixture.format
    order = [READ | WRITE, Protection.NONE, READ, READ | EXECUTE, Protection.NONE, READ | WRITE | EXECUTE]
    for protection, (start, end) in zip(order, mixture.ranges(len(order)), strict=True):

        def change(segment: Segment, protection: Protection = protection) -> Segment:
            if segment.junk or segment.kind not in (None, HeldKind.NO_ACCESS):
                return segment
            if protection is Protection.NONE:
                return replace(segment, kind=HeldKind.NO_ACCESS, flags=segment.flags & NOTED)
            flags = PageFlags.READ | PageFlags.USER | segment.flags & NOTED
            flags |= PageFlags.EXECUTE if protection & EXECUTE else PageFlags(0)
            return replace(segment, kind=None, flags=flags)

        gather = Recorder(mixture.table)
        owed = mixture.expect(start, end, change)
        shown = edits.protect(
            mixture.table, gather, *mixture.bytes_of(start, end), leaf_bits(fmt, protection)
        )
        code = [s for s in mixture.segments if start <= s.page < end and s.kind is None and not s.junk]
        expected = (
            [first + n for s in code if (first := mixture.first_frame(s)) is not None for n in range(s.pages)]
            if protection & EXECUTE
            else []
        )
        assert sorted(shown.tolist()) == sorted(expected)
        assert joined(gather.owed) == owed
        gather.finish()
        mixture.check()


@pytest.mark.parametrize("flag", [PageFlags.ACCESSED, PageFlags.DIRTY])
def test_age_and_clean_forget_one_thing(mixture: Mixture, flag: PageFlags) -> None:
    edit = edits.age if flag is PageFlags.ACCESSED else edits.clean
    for start, end in reversed(mixture.ranges(4)):
        had = [
            s.pages
            for s in cut(mixture.segments, start, end)
            if start <= s.page < end and s.kind is None and s.flags & flag
        ]
        gather = Recorder(mixture.table)
        owed = mixture.expect(
            start, end, lambda s: s if s.kind is not None else replace(s, flags=s.flags & ~flag)
        )
        assert edit(mixture.table, gather, *mixture.bytes_of(start, end)) == sum(had)
        assert joined(gather.owed) == owed
        gather.finish()
        mixture.check()


def test_count_is_what_the_model_counts_and_changes_nothing(mixture: Mixture) -> None:
    for start, end in mixture.ranges(6):
        before = bytes(mixture.ram.bytes)
        total = Census()
        for census in count(mixture.table, *mixture.bytes_of(start, end)).values():
            total.add(census)
        assert bytes(mixture.ram.bytes) == before
        expected = Census()
        for s in cut(mixture.segments, start, end):
            if start <= s.page < end:
                leaf = s.kind is None and not s.junk
                expected.add(
                    Census(
                        s.pages * leaf,
                        s.pages * bool(leaf and s.flags & PageFlags.ACCESSED),
                        s.pages * bool(leaf and s.flags & PageFlags.DIRTY),
                        s.pages * (s.framed and not leaf),
                        s.pages * (not s.framed and not s.junk),
                        s.pages * s.junk,
                    )
                )
        assert total == expected


@pytest.mark.parametrize("aligned", [True, False])
def test_move_takes_everything_along(mixture: Mixture, aligned: bool) -> None:
    """Large entries stay large where the target is aligned for them."""
    fmt = mixture.format
    run = fmt.levels[2].size >> fmt.page_shift if fmt.top > 3 else fmt.levels[1].contiguous * mixture.block
    for start, wanted in mixture.ranges(4):
        end = wanted if aligned else min(wanted, start + 4 * mixture.block + 3)
        target = -(-mixture.end // run) * run + start % run + (0 if aligned else 1)
        if (target + end - start) << fmt.page_shift > 1 << fmt.virtual_bits:
            continue
        levels = max((f.level for f in mixture.table.cursor(*mixture.bytes_of(start, end))), default=1)
        gather = Recorder(mixture.table)
        moving = [s for s in cut(mixture.segments, start, end) if start <= s.page < end]
        owed = mixture.expect(start, end, lambda _segment: None)
        mixture.segments += [replace(s, page=s.page + target - start) for s in moving]
        transfer.move(mixture.table, gather, *mixture.bytes_of(start, end), target << fmt.page_shift)
        assert joined(gather.owed) == owed
        gather.finish()
        mixture.check()
        there = mixture.table.cursor(*mixture.bytes_of(target, target + end - start))
        if not aligned:
            assert max((f.level for f in there), default=1) == 1
        elif levels == 2 and any(s.pages == mixture.block for s in moving):
            assert max(f.level for f in there) == 2
        mixture.end = max(mixture.end, target + end - start)


def test_a_move_that_finds_no_memory_or_no_room_moves_nothing(mixture: Mixture) -> None:
    fmt = mixture.format
    start, end = mixture.start, mixture.start + 9 * mixture.block + 5
    target = -(-mixture.end // mixture.block) * mixture.block + 1
    before = mixture.read()
    for fails in range(4):
        mixture.buddy.failures = FailsAt(fails)
        gather = Recorder(mixture.table)
        with pytest.raises(OutOfFrames):
            transfer.move(mixture.table, gather, *mixture.bytes_of(start, end), target << fmt.page_shift)
        mixture.buddy.failures = NEVER_FAILS
        assert gather.owed == []
        assert mixture.read() == before
        mixture.check()
    taken = next(s.page for s in mixture.segments if s.page > mixture.start + 4 * mixture.block)
    with pytest.raises(MappingError, match="already"):
        transfer.move(
            mixture.table,
            Recorder(mixture.table),
            *mixture.bytes_of(mixture.start, mixture.start + mixture.block),
            taken << fmt.page_shift,
        )
    mixture.check()


@pytest.mark.parametrize("private", [True, False])
def test_copy_shares_every_frame_and_locks_private_ones(mixture: Mixture, private: bool) -> None:
    without = PageFlags.WRITE if private else PageFlags(0)
    for start, end in mixture.ranges(3):
        child = mixture.new_table()
        gather = Recorder(mixture.table)
        owed = mixture.expect(start, end, lambda s: replace(s, flags=s.flags & ~without))
        copied = [s for s in mixture.segments if start <= s.page < end]
        found = transfer.copy(mixture.table, child, gather, [mixture.bytes_of(start, end)], private=private)
        assert mixture.read(child) == merged(copied)
        assert merged(segment_of(mixture.format, f) for f in found) == merged(
            s for s in copied if not s.framed
        )
        assert joined(gather.owed) == owed
        gather.finish()
        mixture.check(child)
        edits.zap(child, last := Recorder(child), *mixture.bytes_of(start, end))
        last.finish()
        child.destroy()
        mixture.check()


def test_a_copy_that_finds_no_memory_copies_nothing(mixture: Mixture) -> None:
    """Nor of the ranges before the one whose tables cannot be had."""
    before = mixture.read()
    middle = mixture.start + mixture.block
    ranges = [mixture.bytes_of(mixture.start, middle), mixture.bytes_of(middle, mixture.end)]
    for fails in range(3):
        child = mixture.new_table()
        mixture.buddy.failures = FailsAt(fails)
        with pytest.raises(OutOfFrames):
            transfer.copy(mixture.table, child, Recorder(mixture.table), ranges, private=True)
        mixture.buddy.failures = NEVER_FAILS
        assert mixture.read(child) == []
        assert mixture.read() == before
        mixture.check(child)
        child.destroy()
