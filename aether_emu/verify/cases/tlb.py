"""What a TLB may still say after an entry was edited: which flush is owed, and whether it is enough.

A case is a history of one page:   access   edit the entry   flush nothing, the page, or all   access

After a flush the second access must go by the new entry. Without one the architecture allows the old
answer too, for a translation that was valid may be cached (Intel SDM 3A 4.10; Arm ARM R_SQBCS), but no
third one. From the specification alone follows which edits owe a flush: those after which some access
would succeed by the old entry and not do the same by the new one. A flush after any other edit is
needless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from aether_emu.interruption import checkpoint
from aether_emu.machine.probe.prober import Operation
from aether_emu.verify.cases.cases import Answers, Bits, Chunk, Numbers, Words, differing
from aether_emu.verify.cases.comparison import Asked, Tally, record
from aether_emu.verify.cases.laboratory import Laboratory, chosen_from, joined

FLUSHES = ("no flush", "page flush", "full flush")

Policy = Callable[[int, int, int, bool], bool | None]
"""(old leaf, new leaf, level, whether it names another page) -> whether an editor of tables flushes.

The leaves come without their addresses. None: it never makes that edit.
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """One kind of edit: `clear` and `set` bits of the leaf; `moves` points it at another page."""

    name: str
    clear: int = 0
    set: int = 0
    moves: bool = False


@dataclass(frozen=True, slots=True)
class Histories:
    """The leaf entries, without address, before and after, and the kind of each edit."""

    before: Words
    after: Words
    moves: Bits
    kind: Numbers
    names: tuple[str, ...]


@dataclass(slots=True)
class Finding:
    """What was learned of one kind of edit."""

    histories: int = 0
    owed: int = 0  # histories whose edit owes a flush
    stale: int = 0  # second accesses that went by the old entry, with no flush between
    missing: int = 0  # owed, and the policy does not flush
    needless: int = 0  # not owed, and the policy flushes


@dataclass(slots=True)
class TlbTally(Tally):
    """A tally, with findings by kind of edit."""

    findings: dict[str, Finding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Selection:
    """Of all histories those whose edit's name contains `only`, and of these every `step`-th."""

    only: str = ""
    step: int = 1


EVERYTHING = Selection()


def histories(
    states: list[int], edits: tuple[Edit, ...], present: int, selection: Selection
) -> Histories | None:
    """Every edit of every state that changes something in what is or becomes `present`; None: no such.

    An edit without bits stays, as what changes nothing.
    """
    rows = []
    for kind, edit in enumerate(edits):
        for state in states if selection.only in edit.name else ():
            changed = state & ~edit.clear | edit.set
            effective = changed != state or edit.moves or not edit.clear | edit.set
            if effective and (state | changed) & present:
                rows.append((state, changed, edit.moves, kind))
    if not rows:
        return None
    before, after, moves, kinds = zip(*rows[:: selection.step], strict=True)
    return Histories(
        np.array(before, np.uint64),
        np.array(after, np.uint64),
        np.array(moves),
        np.array(kinds, np.int64),
        tuple(edit.name for edit in edits),
    )


def run_histories(
    laboratory: Laboratory,
    table: list[int],
    leaf: int,
    wanted: Histories | None,
    tally: TlbTally,
    policy: Policy,
) -> Iterator[int]:
    """Try histories of leaves at level `leaf`, with every pair of accesses; yields how many as they are done.

    `table` are the entries above the leaf and, unused, at and below it; level 1 first.
    """
    if wanted is None:
        return
    for kind in np.unique(wanted.kind).tolist():  # sorted, so that the report's order is always the same
        tally.findings.setdefault(wanted.names[kind], Finding())
    owed = np.zeros(wanted.kind.size, bool)
    accesses = [
        (operation, user)
        for operation in (Operation.READ, Operation.WRITE, Operation.FETCH)
        for user in (True, False)
    ]
    for operation, user in accesses:
        before = _chunk(laboratory, table, leaf, wanted, operation, user, after=False)
        after = _chunk(laboratory, table, leaf, wanted, operation, user, after=True)
        old, new = _expected(laboratory, before), _expected(laboratory, after)
        owed |= ~old.fault & (_apart(old, new) | _unnoticed(laboratory, before, after, old, new))
        for first, first_user in accesses:
            for flush in FLUSHES:
                warm = _chunk(laboratory, table, leaf, wanted, first, first_user, after=False)
                seen = _tried(laboratory, warm, after, flush)
                stale = _apart(new, seen)
                allowed = ~stale
                if flush == FLUSHES[0]:
                    allowed |= ~_apart(old, seen)
                    _count_stale(tally, wanted, stale & allowed)
                # Which allowed answer comes depends on the size of a TLB, and is no result.
                shown = chosen_from(allowed, new, seen)
                asked = Asked(after, *laboratory.place(after), new, shown, flush)
                record(tally, asked, ~allowed)
                yield wanted.kind.size
    _judge_policy(tally, wanted, leaf, owed, policy)


def _chunk(
    laboratory: Laboratory, table: list[int], leaf: int, wanted: Histories, operation: Operation, user: bool,
    *, after: bool,
) -> Chunk:  # fmt: skip
    n = wanted.kind.size
    words = [np.full(n, entry, np.uint64) for entry in table]
    words[leaf - 1] = wanted.after if after else wanted.before
    if after:  # the neighbour in front of the page: one page lower
        page = np.uint64(laboratory.other_page(leaf))
        words[leaf - 1] = np.where(wanted.moves, words[leaf - 1] ^ page, words[leaf - 1])
    leaves = np.full(n, leaf, np.int64)
    return Chunk(leaves, words, operation, user, {}, wanted.names, wanted.kind)


def _expected(laboratory: Laboratory, chunk: Chunk) -> Answers:
    return laboratory.expected(chunk, *laboratory.place(chunk))


def _apart(one: Answers, other: Answers) -> Bits:
    """Whether two accesses ended differently; what they left in the entries is not asked."""
    return differing(
        Answers(one.fault, one.code, one.where, one.hole, one.physical, [], [], blind=one.blind),
        Answers(other.fault, other.code, other.where, other.hole, other.physical, [], blind=other.blind),
    )


def _unnoticed(laboratory: Laboratory, before: Chunk, after: Chunk, old: Answers, new: Answers) -> Bits:
    """Whether the new entry would note the access (accessed, dirty), and a cached old one would not."""
    was, now = laboratory.place(before)[0], laboratory.place(after)[0]
    noted_by_old = np.any([a != b for a, b in zip(old.after, was, strict=True)], axis=0)
    noted_by_new = np.any([a != b for a, b in zip(new.after, now, strict=True)], axis=0)
    return np.asarray(~new.fault & noted_by_new & ~noted_by_old)


def _tried(laboratory: Laboratory, warm: Chunk, cold: Chunk, flush: str) -> Answers:
    """Access by the entries of `warm`, edit to those of `cold`, flush, access again."""
    paths, parts = laboratory.paths, []
    entries, first = laboratory.place(warm)
    edited, second = laboratory.place(cold)
    for start in range(0, warm.size, paths.count):
        checkpoint()
        part = slice(start, start + paths.count)
        paths.install([words[part] for words in entries], laboratory.neighbour, laboratory.prober.own_entries)
        laboratory.answers(warm.operation, laboratory.attempt(warm, first[part]), first[part])
        paths.edit([words[part] for words in edited])
        if flush == FLUSHES[1]:
            laboratory.invalidate(second[part])
        tried = laboratory.attempt(cold, second[part], flush=flush == FLUSHES[2])
        parts.append(laboratory.answers(cold.operation, tried, second[part]))
    return joined(parts)


def _count_stale(tally: TlbTally, wanted: Histories, stale: Bits) -> None:
    counts = Counter(wanted.kind[stale].tolist())
    for kind, count in counts.items():
        tally.findings[wanted.names[kind]].stale += count


def _judge_policy(tally: TlbTally, wanted: Histories, leaf: int, owed: Bits, policy: Policy) -> None:
    for old, new, moves, kind, due in zip(
        wanted.before.tolist(), wanted.after.tolist(), wanted.moves.tolist(), wanted.kind.tolist(),
        owed.tolist(), strict=True,
    ):  # fmt: skip
        found = tally.findings[wanted.names[kind]]
        found.histories += 1
        found.owed += due
        flushes = policy(old, new, leaf, moves)
        if flushes is not None:
            found.missing += due and not flushes
            found.needless += flushes and not due
