"""The cases of x86_64: every bit of every entry, and the cross product of permissions.

Both are made in an order that depends on nothing but the seed, in chunks of one operation, privilege
and setting of the control bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from aether_emu.machine.probe.prober import Operation
from aether_emu.verify.cases.cases import (
    Bits,
    Chunk,
    Numbers,
    Setting,
    Shapes,
    Words,
    in_settings,
    random_flips,
)
from aether_emu.verify.cases.laboratory import CROSSES
from aether_emu.verify.cases.tlb import (
    EVERYTHING,
    Edit,
    Policy,
    Selection,
    TlbTally,
    histories,
    run_histories,
)
from aether_emu.verify.cases.x86_64_laboratory import X86Laboratory

_GOOD, _LARGE = 0x67, 0xE7  # present, writable, user, accessed, dirty; and PS
_P, _W, _U, _A, _D, _PS, _NX = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7, 1 << 63
_RESERVED = 1 << 51  # beyond every emulated CPU's physical width
_KEY = 1 << 59  # protection key 1 in the leaf
_SIZES = {1: "4K", 2: "2M", 3: "1G"}
_NAMES = ("PT", "PD", "PDPT", "PML4", "PML5")
_LEAVES = (1, 2, 3)


def _operations(leaf: int) -> list[Operation]:
    """Crossing accesses come with 4K pages alone: the neighbour is another entry of the same table."""
    return [operation for operation in X86Laboratory.operations if leaf == 1 or operation not in CROSSES]


def _base(laboratory: X86Laboratory, leaf: Numbers) -> list[Words]:
    """Entries that permit everything, with the page at level `leaf`."""
    return [
        np.where(leaf == level, np.uint64(_LARGE if level > 1 else _GOOD), np.uint64(_GOOD))
        for level in range(1, laboratory.levels + 1)
    ]


def _harmless(laboratory: X86Laboratory, level: int, is_leaf: Bits) -> Words:
    ours = np.ones(1, bool)
    paths = laboratory.paths
    words: Words = np.where(is_leaf, paths.harmless(level, ours)[0], paths.harmless(level, ~ours)[0])
    return words


# ---- entries


def entries(laboratory: X86Laboratory, count: int, seed: int) -> Iterator[Chunk]:
    """Each bit of each entry alone, then seeded combinations, to `count` cases or a little more."""
    made = 0
    for chunk in _single_bits(laboratory):
        made += chunk.size
        yield chunk
    rng = np.random.default_rng(seed)
    size = laboratory.paths.count * 32
    while made < count:
        chunk = _random_bits(laboratory, rng, min(size, count - made))
        made += chunk.size
        yield chunk


def _single_bits(laboratory: X86Laboratory) -> Iterator[Chunk]:
    for leaf in _LEAVES:
        places = [
            (level, bit)
            for level in range(leaf, laboratory.levels + 1)
            for bit in range(64)
            if int(_harmless(laboratory, level, np.array([level == leaf]))[0]) >> bit & 1
        ]
        features = tuple(
            f"{_SIZES[leaf]} page: {_NAMES[level - 1]} entry" for level in range(leaf, laboratory.levels + 1)
        )
        leaves = np.full(len(places), leaf, np.int64)
        words = _base(laboratory, leaves)
        for index, (level, bit) in enumerate(places):
            words[level - 1][index] ^= np.uint64(1 << bit)
        feature = np.array([level - leaf for level, _bit in places], np.int64)
        for operation, user, nxe in product(_operations(leaf), (True, False), (1, 0)):
            yield Chunk(leaves, words, operation, user, {"nxe": nxe}, features, feature)


def _random_bits(laboratory: X86Laboratory, rng: np.random.Generator, count: int) -> Chunk:
    operation = laboratory.operations[int(rng.integers(len(laboratory.operations)))]
    leaf = np.ones(count, np.int64) if operation in CROSSES else rng.integers(1, 4, count)
    words = _base(laboratory, leaf)
    for level in range(1, laboratory.levels + 1):
        words[level - 1] ^= random_flips(rng, count) & _harmless(laboratory, level, leaf == level)
    controls = {name: int(rng.integers(2)) for name in ("wp", "smep", "smap", "ac", "pke", "nxe")}
    controls["pkru"] = int(rng.integers(1 << 30))
    features = tuple(f"{size} page: combined bits" for size in _SIZES.values())
    return Chunk(leaf, words, operation, bool(rng.integers(2)), controls, features, leaf - 1)


# ---- permissions


def permissions(laboratory: X86Laboratory, count: int | None, seed: int) -> Iterator[Chunk]:
    """The cross product of permissions, whole or a seeded sample of about `count` cases.

    page sizes x leaf (P W U NX A D reserved) x table above it (the same but D) x the root (W U NX)
    x operation x privilege x WP SMEP SMAP AC NXE x keys (off, on, on with AD, on with WD). The rule
    that prunes: an entry that is not present or has a reserved bit set ends the walk, so the rest of it
    is taken twice only, all clear and all set.
    """
    shapes = {leaf: _shapes(laboratory, leaf) for leaf in _LEAVES}
    return in_settings(_permission_settings(), shapes, count, seed)


def permission_count(laboratory: X86Laboratory) -> int:
    """How many cases the whole product has."""
    sizes = {leaf: _shapes(laboratory, leaf).feature.size for leaf in _LEAVES}
    return sum(sizes[setting.leaf] for setting in _permission_settings())


def _permission_settings() -> list[Setting]:
    return [
        Setting(leaf, operation, user, controls)
        for leaf in _LEAVES
        for operation in _operations(leaf)
        for user in (True, False)
        for controls in _controls()
    ]


def _controls() -> Iterator[dict[str, int]]:
    for wp, smep, smap, ac, nxe in product((1, 0), repeat=5):
        for pke, rights in ((0, 0), (1, 0), (1, 1), (1, 2)):  # key 1: nothing, access, write disabled
            yield {
                "wp": wp,
                "smep": smep,
                "smap": smap,
                "ac": ac,
                "nxe": nxe,
                "pke": pke,
                "pkru": rights << 2,
            }


def _states(bits: tuple[int, ...]) -> list[int]:
    """Combinations of `bits`, the first of which is P and the last a reserved one, pruned by the rule."""
    present, *middle, reserved = bits
    combined = [sum(chosen) for chosen in product(*((0, bit) for bit in middle))]
    everything = sum(middle)
    return [
        *(present | word for word in combined),
        0,
        everything,
        present | reserved,
        present | reserved | everything,
    ]


def _shapes(laboratory: X86Laboratory, leaf: int) -> Shapes:
    """Every combination of entries for one page size, and what each one's leaf is called."""
    leaf_states = _states((_P, _W, _U, _NX, _A, _D, _RESERVED))
    table_states = _states((_P, _W, _U, _NX, _A, _RESERVED))
    above = [_P | _A | sum(chosen) for chosen in product((0, _W), (0, _U), (0, _NX))]
    names = tuple(dict.fromkeys(_leaf_name(leaf, state) for state in leaf_states))
    index = np.array([names.index(_leaf_name(leaf, state)) for state in leaf_states], np.int64)
    grid = np.meshgrid(
        np.arange(len(leaf_states)), np.arange(len(table_states)), np.arange(len(above)), indexing="ij"
    )
    which = [axis.ravel() for axis in grid]
    words = [np.full(which[0].size, _GOOD, np.uint64) for _ in range(laboratory.levels)]
    extra = _KEY | (_PS if leaf > 1 else 0)
    words[leaf - 1] = np.array([state | extra for state in leaf_states], np.uint64)[which[0]]
    words[leaf] = np.array(table_states, np.uint64)[which[1]]
    top = laboratory.levels - 1
    words[top] = np.where(top == leaf, words[top], np.array(above, np.uint64)[which[2]])
    return Shapes(words, index[which[0]], names)


def _leaf_name(leaf: int, state: int) -> str:
    size = _SIZES[leaf]
    if not state & _P:
        return f"{size} page: not present"
    if state & _RESERVED:
        return f"{size} page: reserved bit"
    rights = ("user" if state & _U else "supervisor", "writable" if state & _W else "read-only")
    return f"{size} page: {rights[0]}, {rights[1]}, {'no-execute' if state & _NX else 'executable'}"


# ---- histories for the TLB

_TLB_EDITS = (
    Edit("nothing changed"),
    Edit("made present", set=_P),
    Edit("present cleared", clear=_P),
    Edit("another page", moves=True),
    Edit("write removed", clear=_W),
    Edit("write granted", set=_W),
    Edit("user removed", clear=_U),
    Edit("user granted", set=_U),
    Edit("execute removed", set=_NX),
    Edit("execute granted", clear=_NX),
    Edit("accessed cleared", clear=_A),
    Edit("dirty cleared", clear=_D),
)


def tlb(
    laboratory: X86Laboratory, tally: TlbTally, policy: Policy, selection: Selection = EVERYTHING
) -> Iterator[int]:
    """Histories of pages of each size; see `cases.tlb`."""
    for leaf in _LEAVES:
        size = _PS if leaf > 1 else 0
        states = [size | sum(bits) for bits in product(*((0, bit) for bit in (_P, _W, _U, _NX, _A, _D)))]
        table, wanted = [_GOOD] * laboratory.levels, histories(states, _TLB_EDITS, _P, selection)
        yield from run_histories(laboratory, table, leaf, wanted, tally, policy)
