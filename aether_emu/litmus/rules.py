"""What a CPU may translate by: the adversary's choices, as the manuals limit them.

Time is counted in entry writes, of which each ends a period of one entry's history. A translation was made in
some period, of what the entries said then; which periods count is told by floors, one a CPU and page:

    leaf       leaf translations made before it are invalidated, global ones too
    local      the same for those that are not global (x86_64: a write of CR3)
    table      entries for tables that ended by then are no longer cached for walks
    early      Arm: walks that were made ahead of time, by instructions not yet executed, are no older

What an invalidation does to the floors is here too. What holds in each case, and where that is said:

- Only valid, accessed entries are cached (Intel SDM 3A 4.10.2.2, 4.10.3.1; Arm ARM D8.5, D8.16), but any of
  them, at any time, whether the program asks for the page or not (4.10.2.3).
- Intel: an access may fault by a cached translation that is weaker than memory; the fault drops the
  translations of that page (4.10.4.1, 4.10.4.3). AMD: the walk is made again before a fault (APM 2 5.5.3).
- x86_64: an invalidation is complete when the instruction is; it is this CPU's alone (4.10.4.1, 4.10.5).
  INVLPG drops all cached table entries, of other pages too.
- Arm: an invalidation is complete at the DSB after it, and covers what was visible before it: a store of the
  same CPU only after a DSB. Completion waits for accesses of other CPUs that went by the old translation; the
  own ones need an ISB, or an exception, which stops what was walked ahead (D8.17). That walks are made ahead
  is the architecture without FEAT_ETS2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aether_emu.litmus.laboratory import Path
from aether_emu.litmus.program import Barrier, Entry, Invalidate, Kind, Manual, Slot

History = tuple[tuple[int, Entry], ...]
"""(the period in which it was stored, the entry), the oldest first; the last one is in memory."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed. Each rule can be left out, to show that a suite notices.

    `keeps`: stale translations may be used at all. `completes`: invalidations do something. `ahead`: walks
    are made ahead of time. `upper`: entries for tables are cached. `weaker`: a stale translation may fault.
    """

    keeps: bool = True
    completes: bool = True
    ahead: bool = False
    upper: bool = True
    weaker: bool = True


RULES = {
    Manual.ARM: Rules(ahead=True),
    Manual.INTEL: Rules(),
    Manual.AMD: Rules(weaker=False),
}


class Issued(NamedTuple):
    """An Arm invalidation that no DSB has completed: what it is, and the floor of each page then."""

    what: Invalidate
    floors: tuple[int, ...]


class Asked(NamedTuple):
    """An interrupt that a CPU has not handled: who sent it, and whether it is acknowledged already."""

    sender: int
    work: Invalidate
    early: bool
    acknowledged: bool = False


class Cpu(NamedTuple):
    """What a CPU's translations depend on. The floors have an element for each virtual page."""

    leaf: tuple[int, ...]
    local: tuple[int, ...]
    table: tuple[int, ...]
    early: tuple[int, ...]
    pending: tuple[tuple[Slot, int], ...] = ()  # own entry writes before a DSB, with their periods
    issued: tuple[Issued, ...] = ()
    asked: tuple[Asked, ...] = ()
    unanswered: int = 0  # interrupts it sent that are not acknowledged


def fresh(pages: int) -> Cpu:
    """A CPU at the start: everything that was valid at the start may be cached."""
    zero = (0,) * pages
    return Cpu(zero, zero, zero, zero)


class Choice(NamedTuple):
    """One translation that an access may go by."""

    by: Path
    stale: bool


def choices(
    rules: Rules, cpu: Cpu, page: int, name: str, histories: dict[Slot, History], now: int
) -> list[Choice]:
    """Every translation of a page that the CPU may use, what memory says first."""
    found: dict[Path, bool] = {}
    present = _present(name, histories)
    found[present] = False
    if rules.keeps:
        for period in range(now, -1, -1):
            for by in _walks(rules, cpu, page, name, histories, period):
                if by not in found and _usable(rules, cpu, page, by, period, now):
                    found[by] = True
    return [Choice(by, stale) for by, stale in found.items()]


def _usable(rules: Rules, cpu: Cpu, page: int, by: Path, period: int, now: int) -> bool:
    if rules.ahead and period >= cpu.early[page]:
        return True
    leaf = by[-1][1]
    if not all(entry.cacheable for _, entry in by):
        # A walk now may begin at a cached entry for a table and end at what memory says below it.
        return period == now and rules.upper and len(by) > 1 and by[0][1].cacheable
    return period == now or (
        period >= cpu.leaf[page] and (period >= cpu.local[page] or leaf.everywhere)
    )  # fmt: skip


def _present(name: str, histories: dict[Slot, History]) -> Path:
    upper = Slot(2, name)
    entry = histories[upper][-1][1]
    if entry.kind is not Kind.TABLE:
        return Path(((upper, entry),))
    below = Slot(1, entry.target)
    return Path(((upper, entry), (below, histories[below][-1][1])))


def _walks(
    rules: Rules, cpu: Cpu, page: int, name: str, histories: dict[Slot, History], period: int
) -> Iterator[Path]:
    """The walks that could be made in a period: from memory's upper entry then, or a cached older one."""
    slot = Slot(2, name)
    for upper, current in _uppers(rules, cpu, page, histories[slot], period):
        if upper.kind is Kind.TABLE:
            below = Slot(1, upper.target)
            yield Path(((slot, upper), (below, _at(histories[below], period))))
        elif current:
            yield Path(((slot, upper),))


def _uppers(rules: Rules, cpu: Cpu, page: int, history: History, period: int) -> Iterator[tuple[Entry, bool]]:
    """(entry, whether memory held it in that period)."""
    for number, (start, entry) in enumerate(history):
        if start > period:
            return
        end = history[number + 1][0] if number + 1 < len(history) else period + 1
        if end > period:
            yield entry, True
        elif rules.upper and entry.cacheable and (end > cpu.table[page] or period < cpu.table[page]):
            yield entry, False


def _at(history: History, period: int) -> Entry:
    """What an entry was in a period."""
    found = history[0][1]
    for start, entry in history:
        if start > period:
            break
        found = entry
    return found


# ---- invalidations


def invalidated(rules: Rules, cpu: Cpu, what: Invalidate, pages: Sequence[str], now: int) -> Cpu:
    """The CPU after an invalidation of its own that is complete (x86_64)."""
    if not rules.completes:
        return cpu
    covered = [not what.page or what.page == name for name in pages]
    if not what.globals_too:
        return cpu._replace(local=_raised(cpu.local, [now] * len(pages)), table=(now,) * len(pages))
    leaf = _raised(cpu.leaf, [now if hit else 0 for hit in covered])
    return cpu._replace(leaf=leaf, table=(now,) * len(pages))


def issued(cpu: Cpu, what: Invalidate, tables: Sequence[frozenset[Slot]], now: int) -> Cpu:
    """The CPU after an invalidation that waits for a DSB (Arm). `tables`: the entries that a page goes by."""
    return cpu._replace(issued=(*cpu.issued, Issued(what, _visible(cpu, tables, now))))


def _visible(cpu: Cpu, tables: Sequence[frozenset[Slot]], now: int) -> tuple[int, ...]:
    """By page, the period that this CPU's own walks are sure to have come to: its stores may be under way."""
    return tuple(
        min((period - 1 for slot, period in cpu.pending if slot in slots), default=now) for slots in tables
    )


def after_barrier(
    rules: Rules, cpus: Sequence[Cpu], number: int, what: Barrier, pages: Sequence[str],
    tables: Sequence[frozenset[Slot]], now: int,
) -> list[Cpu]:  # fmt: skip
    """All CPUs after a barrier of one."""
    after = list(cpus)
    own = cpus[number]
    if what.invalidations:
        for one in own.issued:
            for index, cpu in enumerate(after):
                if one.what.everywhere or index == number:
                    after[index] = _completed(rules, cpu, one, pages, own=index == number)
        after[number] = after[number]._replace(issued=())
    if what.stores:
        after[number] = after[number]._replace(pending=())
    if what.context:
        after[number] = synchronised(after[number], tables, now)
    return after


def _completed(rules: Rules, cpu: Cpu, one: Issued, pages: Sequence[str], *, own: bool) -> Cpu:
    if not rules.completes:
        return cpu
    wanted = [
        floor if one.what.page in ("", name) else 0 for name, floor in zip(pages, one.floors, strict=True)
    ]
    cpu = cpu._replace(leaf=_raised(cpu.leaf, wanted))
    if not one.what.leaf:
        cpu = cpu._replace(table=_raised(cpu.table, wanted))
    if not own:
        cpu = cpu._replace(early=_raised(cpu.early, wanted))
    return cpu


def synchronised(cpu: Cpu, tables: Sequence[frozenset[Slot]], now: int) -> Cpu:
    """The CPU after a context synchronisation event: nothing that was walked ahead is used."""
    return cpu._replace(early=_raised(cpu.early, _visible(cpu, tables, now)))


def faulted(manual: Manual, cpu: Cpu, page: int, tables: Sequence[frozenset[Slot]], now: int) -> Cpu:
    """The CPU after a fault of an access to a page: an exception, on x86_64 one that invalidates."""
    if manual is Manual.ARM:
        return synchronised(cpu, tables, now)
    raised = [now if number == page else 0 for number in range(len(cpu.leaf))]
    return cpu._replace(
        leaf=_raised(cpu.leaf, raised), local=_raised(cpu.local, raised), table=_raised(cpu.table, raised)
    )


def _raised(floors: tuple[int, ...], to: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(max, floors, to))
