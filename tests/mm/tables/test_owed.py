"""The rule that edits ask for a kind of entry is the one that `verify` judges entry by entry."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from aether_emu.arch.paging import Held, HeldKind, PageTableFormat
from aether_emu.errors import EncodingError
from aether_emu.mm.tables.count import kinds
from aether_emu.mm.tables.owed import owes, owes_flush
from tests.arch.formats import EVERY_FORMAT
from tests.arch.test_paging import expressible


def entries(fmt: PageTableFormat, level: int) -> list[int]:
    """A leaf of each combination of attributes, each held kind, junk and nothing."""
    leaves: list[int] = []
    for number, attributes in enumerate(expressible(fmt, level)):
        try:
            leaves.append(fmt.leaf_entry(number % 7 << fmt.levels[level - 1].shift, attributes, level))
        except EncodingError:
            continue
    held = [fmt.held_entry(Held(kind, 3)) for kind in HeldKind]
    return [0, fmt.page_size, *held, *leaves]


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_every_kind_of_change_is_judged_as_each_of_its_entries(fmt: PageTableFormat) -> None:
    for level, spec in enumerate(fmt.levels, 1):
        if not spec.leaf:
            continue
        chosen = entries(fmt, level)
        array = np.array(chosen, np.uint64)
        step = max(1, len(chosen) // 60)
        groups = kinds(fmt, array, level)
        members = [array if mask is None else array[mask] for _kind, mask in groups]
        assert sorted(np.concatenate(members).tolist()) == sorted(entry for entry in chosen if entry)
        for ((old, _), olds), ((new, _), news) in product(
            list(zip(groups, members, strict=True))[::step], list(zip(groups, members, strict=True))[::step]
        ):
            answers = {
                owes_flush(fmt, int(a), int(b), level, moved=False) for a, b in product(olds[:3], news[:3])
            }
            assert answers == {owes(fmt, old, new, level)}
        for (old, _), olds in zip(groups, members, strict=True):
            for entry in olds[:3].tolist():
                assert owes(fmt, old, 0, level) == owes_flush(fmt, entry, 0, level, moved=True)
