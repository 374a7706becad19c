"""An encoder under judgement: does each entry that a format makes mean, by the manual, what was asked for?

    encode   every leaf of a product of neutral attributes, below tables of the format's own making, walked
             by the specification: address, rights of both privileges, accessed, dirty, global, guarded,
             contiguous, memory type, key; then what is done to leaves later, and what the format reads back
    tables   every address bit and every reach: where they lead, what they leave
    decode   random words, and leaves and tables with each bit wrong, at every level: what the format takes
             them for
    classes  (`judge.classes`) each address bit by itself, absent and held entries of every class, the data

The judge is `verify.spec`; the format may be anybody's. Cases are counted like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from aether_emu.arch.paging import (
    Attributes,
    Leaf,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Reach,
)
from aether_emu.errors import EncodingError
from aether_emu.machine.probe.prober import Operation
from aether_emu.verify.cases.cases import Chunk, Words, random_flips
from aether_emu.verify.cases.comparison import Tally, whole_steps
from aether_emu.verify.cases.laboratory import Laboratory
from aether_emu.verify.judging.classes import data, every_address_bit, every_bit, not_present
from aether_emu.verify.judging.judged import Judged, compare, tell
from aether_emu.verify.judging.readings import (
    RIGHTS,
    Kind,
    Meaning,
    Shape,
    by_attributes,
    by_decoding,
    by_specification,
    must_be_zero,
    nothing,
)

RES0 = "res0-is-malformed"
"""The format reports address bits that must be 0 and that an MMU ignores: counted as known."""

_AT_ONCE = 10_000  # cases that are judged together
_ONES = (1 << 64) - 1


def judge(fmt: PageTableFormat, isa: str, cases: int = 20_000, seed: int = 0) -> Tally:
    """Judge an encoder, ours or another, by the specification of `isa` ("x86_64" or "arm64").

    `cases` is about how many of them each way. The tally's `clean` says whether nothing is left to explain,
    `differences` has the first that are.
    """
    tally = Tally()
    for _done in whole_steps(steps(fmt, isa, cases, seed, tally)):
        pass
    return tally


def steps(
    fmt: PageTableFormat,
    isa: str,
    count: int,
    seed: int,
    tally: Tally,
    only: str = "",
    *,
    nxe: bool = True,
    pke: bool = True,
    prefix: str = "",
) -> Iterator[int]:
    """Judge an encoder by about `count` cases each way; yields how many as they are done.

    `prefix` is put in front of the features' names; those are kept that contain `only`. An x86_64 format
    for EFER.NXE or CR4.PKE clear is judged with `nxe` or `pke` False.
    """
    shifts = tuple(level.shift for level in fmt.levels)
    judged = Judged(
        fmt, Shape(isa, shifts, fmt.virtual_bits, fmt.physical_bits, nxe, pke),
        np.random.default_rng(seed), tally, only, prefix,
    )  # fmt: skip
    share = max(1, count // fmt.top)
    for level in range(1, fmt.top + 1):
        for start in range(0, share, _AT_ONCE):
            part = min(_AT_ONCE, share - start)
            yield _leaves(judged, level, part)
            yield _decodings(judged, level, _words(judged, level, part))
        yield _decodings(judged, level, every_bit(judged, level))
        yield every_address_bit(judged, level)
        yield _tables(judged, level)
        yield _refusals(judged, level)
        yield not_present(judged, level)
        yield data(judged, level)


# ---- leaves


def _leaves(judged: Judged, level: int, count: int) -> int:
    """Leaves at one level that the format makes, and what is done to them."""
    fmt, shape = judged.fmt, judged.shape
    asked, entries, addresses = [], [], []
    wished = judged.addresses(count, fmt.levels[level - 1].size).tolist()
    for address, attributes in zip(wished, _attributes(judged.rng, count), strict=True):
        try:
            entries.append(fmt.leaf_entry(address, attributes, level))
        except EncodingError:
            continue
        asked.append(attributes)
        addresses.append(address)
    if not asked:
        return 0
    words, name = np.array(entries, np.uint64), f"{fmt.level_name(level)} leaf"
    granted = np.array([bool(one.flags & PageFlags.WRITE) for one in asked])
    soiled = np.array([bool(one.flags & PageFlags.DIRTY) for one in asked])
    wanted = by_attributes(
        shape, np.array(addresses, np.uint64), asked, noted=soiled | np.bool_(fmt.hardware_dirty)
    )
    path = judged.path(words.size)
    done = compare(
        judged, f"encode: {name}", level, words, wanted, by_specification(shape, level, words, path)
    )
    for operation, changed, setting, clearing in (
        ("read back", words, 0, 0),
        ("touch", fmt.touch(words), PageFlags.ACCESSED, 0),
        ("age", fmt.age(words), 0, PageFlags.ACCESSED),
        ("soil", fmt.soil(words), PageFlags.DIRTY, 0),
        ("clean", fmt.clean(words), 0, PageFlags.DIRTY),
        ("write-protect", fmt.write_protect(words), 0, PageFlags.WRITE),
    ):
        becomes = [replace(one, flags=PageFlags((one.flags | setting) & ~clearing)) for one in asked]
        if changed is not words:
            noted = np.array([bool(one.flags & PageFlags.DIRTY) for one in becomes])
            noted |= np.bool_(fmt.hardware_dirty)
            expected = by_attributes(shape, wanted.address, becomes, noted=noted)
            after = by_specification(shape, level, changed, path)
            done += compare(judged, f"{operation}: {name}", level, changed, expected, after)
        done += _read_back(judged, f"{operation}: {name}, read back", level, changed, addresses, becomes)
    same = (fmt.writable(words) != 0) == granted
    done += tell(judged, f"writable: {name}", level, words, same, "as asked", "otherwise")
    noted_now = ((fmt.accessed(words) != 0) == wanted.accessed) & ((fmt.dirty(words) != 0) == soiled)
    done += tell(judged, f"noted: {name}", level, words, noted_now, "as asked", "otherwise")
    return done + _one_by_one(judged, level, words[:50])


def _attributes(rng: np.random.Generator, count: int) -> list[Attributes]:
    """A seeded sample, the same for everybody: a format refuses what it cannot say."""
    flags = [
        PageFlags(sum(chosen, PageFlags(0)))
        for chosen in product(*((flag, PageFlags(0)) for flag in PageFlags))
    ]
    readable = [one for one in flags if one & PageFlags.READ]
    order = [flags[place] for place in rng.permutation(len(flags)).tolist()]
    first = [readable[place] for place in rng.permutation(len(readable)).tolist()]
    kinds = list(MemoryType)
    return [
        Attributes(
            (order if number % 5 == 4 else first)[number % (len(flags) if number % 5 == 4 else len(first))],
            kinds[kind],
            key if number % 4 == 0 else 0,
            software & (7 if number % 2 else 1023),
            number % 6 == 1,
        )
        for number, (kind, key, software) in enumerate(
            zip(
                rng.integers(0, len(kinds), count).tolist(),
                rng.integers(0, 16, count).tolist(),
                rng.integers(0, 1024, count).tolist(),
                strict=True,
            )
        )
    ]


def _read_back(
    judged: Judged, feature: str, level: int, words: Words, addresses: list[int], asked: list[Attributes]
) -> int:
    """Decoding gives everything that was asked for, bits of software included."""
    wanted = [Leaf(address, one) for address, one in zip(addresses, asked, strict=True)]
    decoded = [judged.fmt.decode(word, level) for word in words.tolist()]
    same = np.array([one == other for one, other in zip(wanted, decoded, strict=True)], bool)
    return tell(
        judged, feature, level, words, same, lambda at: repr(wanted[at]), lambda at: repr(decoded[at])
    )


def _one_by_one(judged: Judged, level: int, words: Words) -> int:
    """What is done to an array is done to each of its entries."""
    fmt = judged.fmt
    same = np.full(words.size, True)
    for name in ("touch", "age", "soil", "clean", "write_protect", "writable", "accessed", "dirty"):
        operation: Callable[..., object] = getattr(fmt, name)
        single = np.array([operation(word) for word in words.tolist()], np.uint64)
        same &= single == operation(words)
    feature = f"one by one: {fmt.level_name(level)} leaf"
    return tell(judged, feature, level, words, same, "as in an array", "otherwise")


def _refusals(judged: Judged, level: int) -> int:
    """What a format must take at levels with leaves, and what no format may."""
    fmt, shape, spec = judged.fmt, judged.shape, judged.fmt.levels[level - 1]
    arm = shape.isa == "arm64"
    always = PageFlags.READ | (PageFlags(0) if arm or shape.nxe else PageFlags.EXECUTE)
    flags = [
        always | sum(chosen, PageFlags(0))
        for chosen in product(*((PageFlags(0), flag) for flag in PageFlags if flag is not PageFlags.GUARDED))
    ]
    asked = [Attributes(one, kind) for one, kind in product(dict.fromkeys(flags), MemoryType)]
    asked += [Attributes(always, key=key) for key in range(1, 16) if shape.pke and not arm]
    asked += [Attributes(always | PageFlags.GUARDED)] if arm else []
    asked += [Attributes(PageFlags.EXECUTE | PageFlags.USER)] if arm else []
    asked += [Attributes(always, contiguous=True)] if spec.contiguous > 1 else []
    taken = np.array([_accepts(fmt, 0, one, level) for one in asked])
    numbers = np.zeros(taken.size, np.uint64)
    done = tell(
        judged, f"accepted: {spec.name} leaf", level, numbers, taken == spec.leaf,
        lambda at: f"a leaf of {asked[at]!r}" if spec.leaf else "no leaves here",
        lambda at: "taken" if taken[at] else "refused",
    )  # fmt: skip
    wrong = [1 << bit for bit in (*range(spec.shift), *range(shape.physical_bits, 64))]
    refused = np.array([not _accepts(fmt, address, Attributes(always), level) for address in wrong])
    feature = f"refused addresses: {spec.name} leaf"
    done += tell(judged, feature, level, np.array(wrong, np.uint64), refused, "refused", "taken")
    odd = [Attributes(always, software=1 << bit) for bit in range(16)] + [Attributes(always, software=-1)]
    odd += [Attributes(always, key=1 << bit) for bit in range(8)] + [Attributes(always, key=-1)]
    odd += [Attributes(always, contiguous=True), Attributes(always | PageFlags.GUARDED)]
    odd = [one for one in odd if _accepts(fmt, 0, one, level)]
    words = np.array([fmt.leaf_entry(0, one, level) & _ONES for one in odd], np.uint64)
    return done + _read_back(judged, f"taken or refused: {spec.name} leaf", level, words, [0] * len(odd), odd)


def _accepts(fmt: PageTableFormat, address: int, attributes: Attributes, level: int) -> bool:
    try:
        fmt.leaf_entry(address, attributes, level)
    except EncodingError:
        return False
    return True


# ---- tables


def _tables(judged: Judged, level: int) -> int:
    """Entries that point at a table by each of its address bits, of every reach."""
    if level == 1:
        return 0
    fmt, shape, done = judged.fmt, judged.shape, 0
    bits = range(shape.shifts[0], shape.physical_bits)
    places = [0, *(1 << place for place in bits), *judged.addresses(100, shape.page).tolist()]
    addresses = np.array(places, np.uint64)
    path = judged.path(addresses.size)
    for reach in Reach:
        words = np.array([fmt.table_entry(place, reach) for place in places], np.uint64)
        wanted = _promised(shape.isa, addresses, reach)
        meant = by_specification(shape, level, words, path)
        feature = f"table, {reach.name.lower()}: {fmt.level_name(level)} entry"
        done += compare(judged, feature, level, words, wanted, meant, without=("accessed",))
    return done


def _promised(isa: str, addresses: Words, reach: Reach) -> Meaning:
    """What tables of a reach leave: on x86_64 none keeps the supervisor from executing."""
    n = addresses.size
    users = reach is not Reach.SUPERVISOR
    rights = {name: np.full(n, users or not name.startswith("user")) for name in RIGHTS}
    if isa == "arm64" and reach is Reach.USER:
        rights["execute"] = np.full(n, False)
    return replace(nothing(n), kind=np.full(n, int(Kind.TABLE), np.int64), address=addresses, **rights)


# ---- decoding


def _words(judged: Judged, level: int, count: int) -> Words:
    """Random words; many within the physical width, of those many right but for up to three bits."""
    fmt, rng = judged.fmt, judged.rng
    words = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    words |= np.where(rng.random(count) < 0.9, np.uint64(1), np.uint64(0))
    narrow = (1 << fmt.physical_bits) - 1 & ~(fmt.page_size - 1) | 0xFFF | 0xFFF << 52
    which = rng.random(count)
    words = np.where(which < 0.8, words & np.uint64(narrow), words)
    aligned = np.uint64(-fmt.levels[level - 1].size & _ONES | 0xFFF)
    words = np.where(which < 0.6, words & aligned, words)
    return np.where(which < 0.4, words ^ random_flips(rng, count), words)


def _decodings(judged: Judged, level: int, words: Words) -> int:
    """What the format takes words at one level for."""
    fmt, shape, name = judged.fmt, judged.shape, judged.fmt.level_name(level)
    taken = by_decoding(fmt, shape, words, [fmt.decode(word, level) for word in words.tolist()])
    meant = by_specification(shape, level, words, judged.path(words.size))
    without = ["coherent"]  # what a format shows neither of leaves nor of tables
    if shape.isa == "arm64":
        taken, meant = _as_shown(taken), _as_shown(meant)
        meant = _reported(judged, level, words, taken, meant)
    meant, taken = _ignoring(meant), _ignoring(taken)
    done = compare(judged, f"decode: {name} entry", level, words, meant, taken, without=without)
    following = [fmt.next_table(word, level) for word in words.tolist()]
    table, leaf = taken.kind == Kind.TABLE, meant.kind == Kind.LEAF
    right = np.array([one is not None for one in following]) == table
    right &= ~table | (np.array([one or 0 for one in following], np.uint64) == meant.address)
    done += tell(
        judged, f"next table: {name} entry", level, words, right,
        lambda at: hex(int(meant.address[at])) if table[at] else "no table",
        lambda at: "no table" if following[at] is None else hex(following[at] or 0),
    )  # fmt: skip
    leaves = words[leaf]
    places = np.array([fmt.leaf_address(word, level) for word in leaves.tolist()], np.uint64)
    wanted = meant.address[leaf]
    return done + tell(
        judged, f"leaf address: {name} entry", level, leaves, places == wanted,
        lambda at: hex(int(wanted[at])), lambda at: hex(int(places[at])),
    )  # fmt: skip


def _as_shown(meaning: Meaning) -> Meaning:
    """Of a user's leaf attributes say nothing about the supervisor (Arm: PXN beside USER is lost)."""
    named = meaning.user_read | meaning.user_execute
    others = (meaning.kind != Kind.LEAF) | ~named
    return replace(
        meaning,
        read=meaning.read & others,
        write=meaning.write & others,
        execute=meaning.execute & others,
    )


def _ignoring(meaning: Meaning) -> Meaning:
    """Bits that must be 0 and are ignored are no part of what a leaf or a table says."""
    malformed = meaning.kind == Kind.MALFORMED
    return replace(meaning, bits=np.where(malformed, meaning.bits, np.uint64(0)))


def _reported(judged: Judged, level: int, words: Words, taken: Meaning, meant: Meaning) -> Meaning:
    """Where the format reports exactly the address bits that must be 0: counted, and as it says."""
    there = (meant.kind == Kind.LEAF) | (meant.kind == Kind.TABLE)
    stray = must_be_zero(judged.shape, level, words, meant.kind == Kind.TABLE)
    known = there & (taken.kind == Kind.MALFORMED) & (stray != 0) & (taken.bits == stray)
    if judged.only in f"{judged.prefix}decode: {judged.fmt.level_name(level)} entry":
        judged.tally.known[RES0] += int(known.sum())
    reported = replace(nothing(words.size), kind=np.full(words.size, int(Kind.MALFORMED)), bits=stray)
    return Meaning(
        *(
            np.where(known, getattr(reported, name), getattr(meant, name))
            for name in Meaning.__slots__
        )
    )  # fmt: skip


# ---- the engine


def engine_chunks(fmt: PageTableFormat, laboratory: Laboratory, count: int, seed: int) -> Iterator[Chunk]:
    """About `count` accesses to leaves of the format's making, for `comparison.run`: does an MMU agree?"""
    rng = np.random.default_rng(seed)
    leaves = [number for number, level in enumerate(fmt.levels, 1) if level.leaf]
    settings = list(product(leaves, (Operation.READ, Operation.WRITE, Operation.FETCH), (True, False), Reach))
    share = max(1, count // len(settings))
    for leaf, operation, user, reach in settings:
        words: list[int] = []
        for attributes in _attributes(rng, 8 * share + 64):
            if len(words) == share:
                break
            try:
                words.append(fmt.leaf_bits(attributes, leaf))
            except EncodingError:
                continue
        if not words:
            continue
        n = len(words)
        table = np.full(n, fmt.table_entry(0, reach), np.uint64)
        entries = [table.copy() for _level in fmt.levels]
        entries[leaf - 1] = np.array(words, np.uint64)
        feature = (f"engine: {fmt.level_name(leaf)} leaf, tables for {reach.name.lower()}",)
        yield Chunk(np.full(n, leaf), entries, operation, user, {}, feature, np.zeros(n, np.int64))
