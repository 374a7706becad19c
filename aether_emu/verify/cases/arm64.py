"""The cases of ARM64 stage 1: every bit of every descriptor, and the cross product of permissions.

The twin of `cases.x86_64`, for any granule and width of addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from aether_emu.machine.probe.prober import Operation
from aether_emu.verify.cases.arm64_laboratory import ArmLaboratory
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

_TABLE = 0b11
_PAGE, _BLOCK = 0x743, 0x741  # AF, inner shareable, AP=01, valid; read and written at both levels, executable
_VALID, _TYPE = 1 << 0, 1 << 1
_AF, _PXN, _UXN = 1 << 10, 1 << 53, 1 << 54
_PXN_TABLE, _UXN_TABLE, _NO_USER, _READ_ONLY = 1 << 59, 1 << 60, 1 << 61, 1 << 62
_UNPRIVILEGED = (Operation.UNPRIVILEGED_READ, Operation.UNPRIVILEGED_WRITE)
_STORES = (Operation.WRITE, Operation.MODIFY, Operation.CROSS_WRITE, Operation.UNPRIVILEGED_WRITE)
_NAMES = {1: "L3", 2: "L2", 3: "L1", 4: "L0"}


def _leaves(laboratory: ArmLaboratory) -> tuple[int, ...]:
    """The levels that may hold pages or blocks, from the page up."""
    return (1, *(level for level in laboratory.block_levels if level <= laboratory.levels))


def _size(laboratory: ArmLaboratory, leaf: int) -> str:
    size = 1 << laboratory.paths.geometry.shifts[leaf - 1]
    kind = "page" if leaf == 1 else "block"
    for unit, shift in (("G", 30), ("M", 20)):
        if size >> shift:
            return f"{size >> shift}{unit} {kind}"
    return f"{size >> 10}K {kind}"


def _settings(laboratory: ArmLaboratory, leaf: int) -> list[tuple[Operation, bool]]:
    """Operations with the privileges that can make them. Crossing accesses come with pages alone."""
    return [
        (operation, user)
        for operation in laboratory.operations
        for user in (True, False)
        if (leaf == 1 or operation not in CROSSES) and not (user and operation in _UNPRIVILEGED)
    ]


def _base(laboratory: ArmLaboratory, leaf: Numbers) -> list[Words]:
    """Descriptors that permit everything, with the page or block at level `leaf`."""
    return [
        np.where(leaf == level, np.uint64(_BLOCK if level > 1 else _PAGE), np.uint64(_TABLE))
        for level in range(1, laboratory.levels + 1)
    ]


def _harmless(laboratory: ArmLaboratory, level: int, is_leaf: Bits, operation: Operation) -> Words:
    """The bits that a case may alter.

    Beyond the rule of `Paths`, stores leave alone the address bits below a block's size, and what makes a
    table a block: an engine that takes either seriously would store into another case's page.
    """
    ours, paths = np.ones(1, bool), laboratory.paths
    table, leaf = paths.harmless(level, ~ours)[0], paths.harmless(level, ours)[0]
    if operation in _STORES:
        table, leaf = table & np.uint64(((1 << 64) - 1) ^ _TYPE), leaf & table
    words: Words = np.where(is_leaf, leaf, table)
    return words


# ---- entries


def entries(laboratory: ArmLaboratory, count: int, seed: int) -> Iterator[Chunk]:
    """Each bit of each descriptor alone, stray addresses, seeded combinations: about `count` cases."""
    made = 0
    for chunk in (*_single_bits(laboratory), *_stray_addresses(laboratory)):
        made += chunk.size
        yield chunk
    rng = np.random.default_rng(seed)
    size = max(laboratory.paths.count * 32, 64)
    while made < count:
        chunk = _random_bits(laboratory, rng, min(size, count - made))
        made += chunk.size
        yield chunk


def _single_bits(laboratory: ArmLaboratory) -> Iterator[Chunk]:
    for leaf in _leaves(laboratory):
        levels = range(leaf, laboratory.levels + 1)
        features = tuple(f"{_size(laboratory, leaf)}: {_NAMES[level]} descriptor" for level in levels)
        for operation, user in _settings(laboratory, leaf):
            places = [
                (level, bit)
                for level in levels
                for bit in range(64)
                if int(_harmless(laboratory, level, np.array([level == leaf]), operation)[0]) >> bit & 1
            ]
            leaves = np.full(len(places), leaf, np.int64)
            words = _base(laboratory, leaves)
            for index, (level, bit) in enumerate(places):
                words[level - 1][index] ^= np.uint64(1 << bit)
            feature = np.array([level - leaf for level, _bit in places], np.int64)
            for hpd in (0, 1):
                yield Chunk(leaves, words, operation, user, {"hpd": hpd}, features, feature)


def _stray_addresses(laboratory: ArmLaboratory) -> Iterator[Chunk]:
    """Each address bit from the width up, with and without the top byte ignored; and walks disabled."""
    above = range(laboratory.virtual_bits, 64)
    settings = _settings(laboratory, 1)
    for (operation, user), tbi in product(settings, (0, 1)):
        bits = [bit for bit in above if not (bit == 55 and tbi)]  # that one chooses the other half
        stray = np.uint64(1) << np.array(bits, np.uint64)
        leaf = np.ones(stray.size, np.int64)
        words, named = _base(laboratory, leaf), ("address out of range",)
        yield Chunk(leaf, words, operation, user, {"tbi": tbi}, named, leaf - 1, stray)
    leaf = np.ones(1, np.int64)
    words = _base(laboratory, leaf)
    for operation, user in settings:
        yield Chunk(leaf, words, operation, user, {"epd": 1}, ("walks disabled",), leaf - 1)


def _random_bits(laboratory: ArmLaboratory, rng: np.random.Generator, count: int) -> Chunk:
    settings = _settings(laboratory, 1)
    operation, user = settings[int(rng.integers(len(settings)))]
    places = np.array(_leaves(laboratory))
    leaf = np.ones(count, np.int64) if operation in CROSSES else places[rng.integers(0, len(places), count)]
    words = _base(laboratory, leaf)
    for level in range(1, laboratory.levels + 1):
        words[level - 1] ^= random_flips(rng, count) & _harmless(laboratory, level, leaf == level, operation)
    controls = {name: int(rng.integers(2)) for name in ("wxn", "pan", "uao")}
    controls |= {name: int(rng.random() < 0.15) for name in ("tbi", "epd", "hpd")}
    features = tuple(f"{_size(laboratory, place)}: combined bits" for place in places.tolist())
    return Chunk(leaf, words, operation, user, controls, features, np.searchsorted(places, leaf))


# ---- permissions


def permissions(laboratory: ArmLaboratory, count: int | None, seed: int) -> Iterator[Chunk]:
    """The cross product of permissions, whole or a seeded sample of about `count` cases.

    page and block sizes x leaf (valid, type, AF, AP[2:1], PXN, UXN, nG, DBM, contiguous) x table above it
    (valid, APTable, PXNTable, UXNTable) x one above that (the same locks, one at a time) x operation x
    privilege x WXN PAN UAO HPD. The rule that prunes: an invalid descriptor ends the walk, so the rest of
    it is taken twice only, all clear and all set.
    """
    shapes = {leaf: _shapes(laboratory, leaf) for leaf in _leaves(laboratory)}
    return in_settings(_permission_settings(laboratory), shapes, count, seed)


def permission_count(laboratory: ArmLaboratory) -> int:
    """How many cases the whole product has."""
    sizes = {leaf: _shapes(laboratory, leaf).feature.size for leaf in _leaves(laboratory)}
    return sum(sizes[setting.leaf] for setting in _permission_settings(laboratory))


def _permission_settings(laboratory: ArmLaboratory) -> list[Setting]:
    return [
        Setting(leaf, operation, user, controls)
        for leaf in _leaves(laboratory)
        for operation, user in _settings(laboratory, leaf)
        for controls in _controls()
    ]


def _controls() -> Iterator[dict[str, int]]:
    for wxn, pan, uao, hpd in product((0, 1), repeat=4):
        yield {"wxn": wxn, "pan": pan, "uao": uao, "hpd": hpd}


def _combined(bits: tuple[int, ...]) -> list[int]:
    return [sum(chosen) for chosen in product(*((0, bit) for bit in bits))]


def _leaf_states(leaf: int) -> list[int]:
    """Leaf descriptors without their address, among them those of the wrong type and the invalid ones."""
    right = _VALID | (_TYPE if leaf == 1 else 0)
    bits = (1 << 6, 1 << 7, _AF, 1 << 11, 1 << 51, 1 << 52, _PXN, _UXN)
    states = [right | word for word in _combined(bits)]
    everything = sum(bits)
    if leaf == 1:  # bit 1 clear: reserved. In a block's place it would make a table
        states += [_VALID, _VALID | everything]
    return [*states, 0, _TYPE, everything, _TYPE | everything]


def _shapes(laboratory: ArmLaboratory, leaf: int) -> Shapes:
    """Every combination of descriptors for one page size, and what each one's leaf is called."""
    leaf_states = _leaf_states(leaf)
    locks = (_PXN_TABLE, _UXN_TABLE, _NO_USER, _READ_ONLY)
    above = leaf < laboratory.levels
    table_states = [*(_TABLE | word for word in _combined(locks)), 0, sum(locks)] if above else [0]
    top_states = [_TABLE, *(_TABLE | lock for lock in locks)] if leaf + 1 < laboratory.levels else [0]
    size = _size(laboratory, leaf)
    names = tuple(dict.fromkeys(f"{size}: {_describe(leaf, state)}" for state in leaf_states))
    index = np.array([names.index(f"{size}: {_describe(leaf, state)}") for state in leaf_states], np.int64)
    grid = np.meshgrid(
        np.arange(len(leaf_states)), np.arange(len(table_states)), np.arange(len(top_states)), indexing="ij"
    )
    which = [axis.ravel() for axis in grid]
    words = [np.full(which[0].size, _TABLE, np.uint64) for _ in range(laboratory.levels)]
    words[leaf - 1] = np.array(leaf_states, np.uint64)[which[0]]
    if above:
        words[leaf] = np.array(table_states, np.uint64)[which[1]]
    if leaf + 1 < laboratory.levels:
        words[-1] = np.array(top_states, np.uint64)[which[2]]
    return Shapes(words, index[which[0]], names)


def _describe(leaf: int, state: int) -> str:
    if not state & _VALID or (leaf == 1 and not state & _TYPE):
        return "invalid"
    if not state & _AF:
        return "access flag clear"
    who = "user" if state & 1 << 6 else "privileged"
    rights = "read-only" if state & 1 << 7 else "writable"
    execute = {0: "executable", _PXN: "PXN", _UXN: "UXN", _PXN | _UXN: "PXN UXN"}[state & (_PXN | _UXN)]
    return f"{who}, {rights}, {execute}"


# ---- histories for the TLB

_TLB_EDITS = (
    Edit("nothing changed"),
    Edit("made valid", set=_VALID),
    Edit("valid cleared", clear=_VALID),
    Edit("another page", moves=True),
    Edit("write removed", set=1 << 7),
    Edit("write granted", clear=1 << 7),
    Edit("user removed", clear=1 << 6),
    Edit("user granted", set=1 << 6),
    Edit("PXN set", set=_PXN),
    Edit("PXN cleared", clear=_PXN),
    Edit("UXN set", set=_UXN),
    Edit("UXN cleared", clear=_UXN),
    Edit("access flag cleared", clear=_AF),
    Edit("access flag set", set=_AF),
)


def tlb(
    laboratory: ArmLaboratory, tally: TlbTally, policy: Policy, selection: Selection = EVERYTHING
) -> Iterator[int]:
    """Histories of pages and blocks of each size; see `cases.tlb`."""
    for leaf in _leaves(laboratory):
        kind = 3 << 8 | (_TYPE if leaf == 1 else 0)
        bits = (_VALID, 1 << 6, 1 << 7, _PXN, _UXN, _AF)
        states = [kind | sum(chosen) for chosen in product(*((0, bit) for bit in bits))]
        table, wanted = [_TABLE] * laboratory.levels, histories(states, _TLB_EDITS, _VALID, selection)
        yield from run_histories(laboratory, table, leaf, wanted, tally, policy)
