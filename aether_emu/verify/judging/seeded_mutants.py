"""Wrong encoders by a seed: one bit of one operation of a format, chosen at random.

A mistake that changes nothing is none: each mutant is tried against the true format first, and bits that
the architecture leaves to nobody are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, Held, HeldKind, MemoryType, PageFlags, PageTableFormat, Reach
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.verify.judging.edge_mutants import absent, masked
from aether_emu.verify.judging.mutations import (
    ARM_SHAPES,
    X86_SHAPES,
    Alter,
    Mutant,
    Shape,
    blind,
    leaf,
    operation,
    swap,
    table,
)

_OPERATIONS = ("touch", "age", "soil", "clean", "write_protect")
_KINDS = ("swap", "forget", "set", "table", "blind", "operation", "mask", "absent")
_NOBODYS = {"x86_64": (), "arm64": (16, 48, 49, 59, 60, 61, 62, 63)}
"""Bits of a leaf that an MMU ignores and the format gives no meaning: nT, RES0 without LPA2, PBHA."""

_X86_WIDEST: Shape = lambda kind: kind(4, 52)  # type: ignore[call-arg]  # noqa: E731  # a subclass of X86Format
_ARM_WIDEST: Shape = lambda kind: kind(4096, 39, 48)  # type: ignore[call-arg]  # noqa: E731  # likewise

_ALL = PageFlags.READ | PageFlags.WRITE | PageFlags.EXECUTE | PageFlags.USER
_SAMPLE = (
    Attributes(PageFlags.READ),
    Attributes(_ALL | PageFlags.DIRTY | PageFlags.ACCESSED | PageFlags.GLOBAL, software=7),
    Attributes(_ALL, MemoryType.WRITE_PROTECTED),
    Attributes(PageFlags.READ | PageFlags.EXECUTE | PageFlags.DIRTY, MemoryType.WRITE_COMBINING, software=2),
)


def seeded(seed: int, count: int) -> list[Mutant]:
    """`count` different wrong encoders, of both ISAs, every shape and each kind of mistake in turn."""
    made: dict[tuple[str, str], Mutant] = {}
    for mutant in _drawn(np.random.default_rng(seed)):
        made.setdefault((mutant.isa, mutant.name), mutant)
        if len(made) == count:
            break
    return list(made.values())


def _drawn(rng: np.random.Generator) -> Iterator[Mutant]:
    isas: tuple[tuple[str, type[PageTableFormat], tuple[Shape, ...]], ...] = (
        ("x86_64", X86Format, (*X86_SHAPES, _X86_WIDEST)),
        ("arm64", ArmFormat, (*ARM_SHAPES, _ARM_WIDEST)),
    )
    number = 0
    while True:
        isa, base, shapes = isas[number % 2]
        shape = shapes[int(rng.integers(len(shapes)))]
        drawn = _mistake(_KINDS[number // 2 % len(_KINDS)], isa, shape(base), rng)
        number += 1
        if drawn is None:
            continue
        name, alter = drawn
        kind = alter(base)
        if _differ(shape(base), shape(kind)):
            full = f"{name} ({shape(base).name})"
            yield Mutant(full, isa, lambda shape=shape, kind=kind: shape(kind))  # type: ignore[misc]  # bound now


def _mistake(kind: str, isa: str, fmt: PageTableFormat, rng: np.random.Generator) -> tuple[str, Alter] | None:
    """A kind of mistake with a bit of its own; None where that bit is nobody's."""
    levels = [number for number, level in enumerate(fmt.levels, 1) if level.leaf]
    level = levels[int(rng.integers(len(levels)))]
    one, other = rng.permutation(64)[:2].tolist()
    where, name = 1 << one, fmt.level_name(level)
    if one in _NOBODYS[isa] or other in _NOBODYS[isa]:
        return None
    if kind == "swap":
        change = swap(one, other)
        return f"{name} leaf bits {one} and {other} swapped", leaf(
            lambda bits, here: change(bits, here) if here == level else bits
        )
    if kind == "forget":
        return f"{name} leaf bit {one} forgotten", leaf(
            lambda bits, here: bits & ~where if here == level else bits
        )
    if kind == "set":
        return f"{name} leaf bit {one} set", leaf(lambda bits, here: bits | where if here == level else bits)
    if kind == "table":
        if fmt.page_shift <= one < fmt.physical_bits:
            return f"table bit {one} forgotten", table(lambda entry: entry & ~where)
        return None
    if kind == "blind":
        if isa == "arm64" and 12 <= one < max(spec.shift for spec in fmt.levels if spec.leaf):
            return None  # taking no offence at bits that must be 0 is what an MMU does
        return f"decoding blind to bit {one}", blind(where)
    if kind == "mask":
        if fmt.page_shift <= one < fmt.physical_bits:
            return f"address mask without bit {one}", masked(where)
        return None
    if kind == "absent":
        return f"absent entries read without bit {one}", absent(lambda entry: entry & ~where)
    what = _OPERATIONS[int(rng.integers(len(_OPERATIONS)))]
    true = getattr(fmt, what)
    return f"{what} flips bit {one}", operation(what, lambda entry: true(entry) ^ where)


def _differ(true: PageTableFormat, wrong: PageTableFormat) -> bool:
    """Whether a wrong format says anything else than the true one of what this project's words can say."""
    address = 1 << true.physical_bits - 1
    entries = []
    for number, level in enumerate(true.levels, 1):
        if level.leaf:
            entries += [(number, true.leaf_entry(0, one, number)) for one in _SAMPLE]
            if any(true.leaf_entry(0, one, number) != wrong.leaf_entry(0, one, number) for one in _SAMPLE):
                return True
        elif number > 1:
            entries.append((number, true.table_entry(address)))
    places = [1 << bit for bit in range(true.page_shift, true.physical_bits)]
    if any(true.table_entry(at, reach) != wrong.table_entry(at, reach) for at in places for reach in Reach):
        return True
    if any(
        getattr(true, name)(entry) != getattr(wrong, name)(entry)
        for name in _OPERATIONS
        for _level, entry in entries
    ):
        return True
    entries += [(1, true.held_entry(Held(kind, value))) for kind in HeldKind for value in (0, (1 << 48) - 1)]
    return any(
        true.decode(entry ^ 1 << bit, level) != wrong.decode(entry ^ 1 << bit, level)
        for level, entry in entries
        for bit in range(1, 64)
    )
