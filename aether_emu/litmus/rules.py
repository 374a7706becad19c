"""What a CPU may translate by: the adversary's choices, as the manuals limit them.

Time is counted in periods: an entry write ends one, and so does a change of the address space. A translation
was made in some period, of what the entries said then, in a space that the CPU was in. Which periods count is
told by floors, of each CPU; `leaf` and `table` are for a page and the tag of a space:

    leaf       leaf translations made before it are invalidated, but for global ones
    table      entries for tables that ended by then are no longer cached for walks
    everywhere for a page: global leaf translations made before it are invalidated
    early      for a page, on Arm: walks made ahead of time, by instructions not yet executed, are no older

What an invalidation does to the floors is here too. What holds in each case, and where that is said:

- Only valid, accessed entries are cached (Intel SDM 3A 4.10.2.3, 4.10.3.1; Arm ARM R_XCLRD), but any of
  them, at any time, whether the program asks for the page or not (4.10.2.3; R_SQBCS).
- Intel: an access may fault by a cached translation that is weaker than memory; the fault drops the
  translations of that page (4.10.4.1, 4.10.4.3). AMD: the walk is made again before a fault (APM 2 5.5.3).
- x86_64: an invalidation is complete when the instruction is; it is this CPU's alone (4.10.4.1, 4.10.5).
  INVLPG drops all cached table entries, of other pages too (by AMD's manual, while EFER.TCE is clear).
- Arm: an invalidation is complete at the DSB after it, and covers what was visible before it: a store of the
  same CPU only after a DSB. Completion waits for accesses of other CPUs that went by the old translation; the
  own ones need an ISB, or an exception, which stops what was walked ahead (R_LXHLD, R_PSMWS, R_BLDZX). That
  walks are made ahead is the architecture without FEAT_ETS2.

Sections of the SDM are those of editions in which paging is chapter 4; in later ones it is chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aether_emu.litmus.laboratory import Path
from aether_emu.litmus.program import OWN, Barrier, Entry, Invalidate, Kind, Manual, Slot

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
    """What a CPU's translations depend on. Floors have an element for each page, and each tag within it."""

    leaf: tuple[tuple[int, ...], ...]
    table: tuple[tuple[int, ...], ...]
    everywhere: tuple[int, ...]
    early: tuple[int, ...]
    spaces: tuple[tuple[int, int], ...] = ((0, 0),)  # (the period in which it was entered, its number)
    pending: tuple[tuple[Slot, int], ...] = ()  # own entry writes before a DSB, with their periods
    issued: tuple[Issued, ...] = ()
    asked: tuple[Asked, ...] = ()
    unanswered: int = 0  # interrupts it sent that are not acknowledged

    @property
    def space(self) -> int:
        """The one it is in."""
        return self.spaces[-1][1]


class Walked(NamedTuple):
    """A page as the rules see it: its number, and by space its upper entry."""

    number: int
    uppers: tuple[Slot, ...]
    slots: frozenset[Slot]  # every entry that a walk of it may read at some time


class Setting(NamedTuple):
    """What stays the same through a test."""

    rules: Rules
    manual: Manual
    pages: tuple[Walked, ...]
    names: tuple[str, ...]  # of the pages
    tags: tuple[int, ...]  # by space


TAGS = 10
"""How many tags there are; a real CPU has 4,096 or 65,536."""


def fresh(pages: int) -> Cpu:
    """A CPU at the start: everything that was valid at the start may be cached."""
    floors = ((0,) * TAGS,) * pages
    return Cpu(floors, floors, (0,) * pages, (0,) * pages)


class Choice(NamedTuple):
    """One translation that an access may go by."""

    by: Path
    stale: bool


Histories = dict[Slot, History]


def choices(setting: Setting, cpu: Cpu, page: int, histories: Histories, now: int) -> list[Choice]:
    """Every translation of a page that the CPU may use, what memory says first."""
    found: dict[Path, bool] = {_present(setting.pages[page].uppers[cpu.space], histories): False}
    if setting.rules.keeps:
        for period in range(now, -1, -1):
            for space in _spaces_in(cpu, period, now):
                for by in _walks(setting, cpu, page, space, histories, period):
                    if by not in found and _usable(setting, cpu, page, by, space, period, now):
                        found[by] = True
    return [Choice(by, stale) for by, stale in found.items()]


def _spaces_in(cpu: Cpu, period: int, now: int) -> list[int]:
    """The spaces whose tables the CPU walked in a period, the present one first."""
    ends = [start for start, _ in cpu.spaces[1:]] + [now + 1]
    found = [space for (start, space), end in zip(cpu.spaces, ends, strict=True) if start <= period < end]
    return found[::-1]


def _usable(setting: Setting, cpu: Cpu, page: int, by: Path, space: int, period: int, now: int) -> bool:
    if setting.rules.ahead and period >= cpu.early[page]:
        return True
    leaf, tag, own = by[-1][1], setting.tags[space], setting.tags[cpu.space]
    if not all(entry.cacheable for _, entry in by):
        # A walk now may begin at a cached entry for a table and end at what memory says below it.
        return period == now and setting.rules.upper and len(by) > 1 and by[0][1].cacheable
    if period == now and space == cpu.space:
        return True
    if leaf.everywhere:
        return period >= cpu.everywhere[page]
    return tag == own and period >= cpu.leaf[page][tag]


def _present(upper: Slot, histories: Histories) -> Path:
    entry = histories[upper][-1][1]
    if entry.kind is not Kind.TABLE:
        return Path(((upper, entry),))
    below = Slot(1, entry.target)
    return Path(((upper, entry), (below, histories[below][-1][1])))


def _walks(
    setting: Setting, cpu: Cpu, page: int, space: int, histories: Histories, period: int
) -> Iterator[Path]:
    """The walks that could be made in a period: from memory's upper entry then, or a cached older one."""
    slot = setting.pages[page].uppers[space]
    floor = cpu.table[page][setting.tags[space]]
    for upper, current in _uppers(setting.rules, floor, histories[slot], period):
        if upper.kind is Kind.TABLE:
            below = Slot(1, upper.target)
            yield Path(((slot, upper), (below, _at(histories[below], period))))
        elif current:
            yield Path(((slot, upper),))


def _uppers(rules: Rules, floor: int, history: History, period: int) -> Iterator[tuple[Entry, bool]]:
    """(entry, whether memory held it in that period)."""
    for number, (start, entry) in enumerate(history):
        if start > period:
            return
        end = history[number + 1][0] if number + 1 < len(history) else period + 1
        if end > period:
            yield entry, True
        elif rules.upper and entry.cacheable and (end > floor or period < floor):
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


def invalidated(setting: Setting, cpu: Cpu, what: Invalidate, now: int) -> Cpu:
    """The CPU after an invalidation of its own that is complete (x86_64)."""
    if not setting.rules.completes:
        return cpu
    floors = [now if what.page in ("", name) else 0 for name in setting.names]
    # Cached entries for tables go as a whole, whatever the page (Intel SDM 3A 4.10.4.1).
    tables = [now] * len(floors)
    return _floored(setting, cpu, what, floors, tables)


def _floored(
    setting: Setting, cpu: Cpu, what: Invalidate, floors: Sequence[int], tables: Sequence[int]
) -> Cpu:
    tag = setting.tags[cpu.space] if what.tag == OWN else what.tag
    cpu = cpu._replace(
        leaf=_raised_of(cpu.leaf, floors, tag), table=_raised_of(cpu.table, tables, tag)
    )  # fmt: skip
    return cpu._replace(everywhere=_raised(cpu.everywhere, floors)) if what.globals_too else cpu


def entered(setting: Setting, cpu: Cpu, space: int, now: int, *, flush: bool) -> Cpu:
    """The CPU in another space from the period `now` on; with `flush` as a write of CR3 does it."""
    cpu = cpu._replace(spaces=(*cpu.spaces, (now, space)))
    if not flush:
        return cpu
    return invalidated(setting, cpu, Invalidate("", globals_too=False, tag=OWN), now)


def issued(setting: Setting, cpu: Cpu, what: Invalidate, now: int) -> Cpu:
    """The CPU after an invalidation that waits for a DSB (Arm)."""
    return cpu._replace(issued=(*cpu.issued, Issued(what, _visible(setting, cpu, now))))


def _visible(setting: Setting, cpu: Cpu, now: int) -> tuple[int, ...]:
    """By page, the period that this CPU's own walks are sure to have come to: its stores may be under way."""
    return tuple(
        min((period - 1 for slot, period in cpu.pending if slot in page.slots), default=now)
        for page in setting.pages
    )


def after_barrier(setting: Setting, cpus: Sequence[Cpu], number: int, what: Barrier, now: int) -> list[Cpu]:
    """All CPUs after a barrier of one."""
    after = list(cpus)
    if what.invalidations:
        for one in cpus[number].issued:
            for index, cpu in enumerate(after):
                if one.what.everywhere or index == number:
                    after[index] = _completed(setting, cpu, one, own=index == number)
        after[number] = after[number]._replace(issued=())
    if what.stores:
        after[number] = after[number]._replace(pending=())
    if what.context:
        after[number] = synchronised(setting, after[number], now)
    return after


def _completed(setting: Setting, cpu: Cpu, one: Issued, *, own: bool) -> Cpu:
    if not setting.rules.completes:
        return cpu
    floors = [
        floor if one.what.page in ("", name) else 0
        for name, floor in zip(setting.names, one.floors, strict=True)
    ]
    tables = [0] * len(floors) if one.what.leaf else floors
    cpu = _floored(setting, cpu, one.what, floors, tables)
    hit = one.what.tag in (None, setting.tags[cpu.space])
    return cpu if own or not hit else cpu._replace(early=_raised(cpu.early, floors))


def synchronised(setting: Setting, cpu: Cpu, now: int) -> Cpu:
    """The CPU after a context synchronisation event: nothing that was walked ahead is used."""
    return cpu._replace(early=_raised(cpu.early, _visible(setting, cpu, now)))


def faulted(setting: Setting, cpu: Cpu, page: int, now: int) -> Cpu:
    """The CPU after a fault of an access to a page: an exception, on x86_64 one that invalidates."""
    if setting.manual is Manual.ARM:
        return synchronised(setting, cpu, now)
    floors = [now if number == page else 0 for number in range(len(setting.pages))]
    return _floored(setting, cpu, Invalidate("", tag=OWN), floors, floors)


def _raised(floors: tuple[int, ...], to: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(max, floors, to))


def _raised_of(
    floors: tuple[tuple[int, ...], ...], to: Sequence[int], tag: int | None
) -> tuple[tuple[int, ...], ...]:
    """`floors` raised for one tag, or for all."""
    return tuple(
        tuple(max(old, new) if tag in (None, each) else old for each, old in enumerate(page))
        for page, new in zip(floors, to, strict=True)
    )
