"""What CPUs keep under the tags of address spaces that they have left: legal to hold, and not to use.

A CPU with tags does not drop the translations of a root that it leaves (PCID: Intel SDM 3A 4.10.1; ASID:
Arm ARM R_XXNPZ). An edit of that root puts what it keeps *behind*. Nothing executes with it while the CPU
walks another root under another tag, so frames and tables may be given back. But the tag must have been
flushed when it is used again: for its own root, and for another one all the more (SDM 3A 4.10.4.1).

Where a space has two roots (KPTI) it has two tags. Both roots lead to the same tables, so what holds for the
program's root holds for the supervisor's, and one `Root` stands for both.
"""

from __future__ import annotations

from collections.abc import Iterator

from aether_emu.verify.tlbsan.finding import Where
from aether_emu.verify.tlbsan.roots import Kept, Lost, Root
from aether_emu.verify.tlbsan.rules import Loss
from aether_emu.verify.tlbsan.stale import Stale


class Tagged:
    """The tags of all CPUs, and what each may keep under them.

    A CPU uses one at a time, or two that differ in `user_bit`.

    `by_pages`: invalidations of single pages reach CPUs that have left a root (ARM64's broadcasts).
    """

    def __init__(self, cpus: int, user_bit: int, *, by_pages: bool) -> None:
        self._user_bit, self._by_pages = user_bit, by_pages
        self._kept: list[dict[int, Kept]] = [{} for _ in range(cpus)]
        self._in_use: list[tuple[int, ...]] = [()] * cpus

    def behind(self, root: Root, lost: Lost) -> None:
        """An entry of a root was edited: whoever has left it may keep the old one."""
        by_pages = self._by_pages and lost.level == 1 and not lost.table
        for kept in root.kept.values():
            kept.note(lost, by_pages=by_pages)

    def leave(self, cpu: int, root: Root, owed: Iterator[Lost]) -> None:
        """A CPU leaves a root, and keeps what it holds. `owed`: old entries that it has not dropped."""
        mine = self._kept[cpu]
        held = [(tag, mine[tag]) for tag in self._in_use[cpu] if tag in mine]
        self._in_use[cpu] = ()
        root.kept.update(((cpu, tag), kept) for tag, kept in held)
        for lost in owed:
            for _tag, kept in held:
                kept.note(lost, by_pages=self._by_pages and lost.level == 1 and not lost.table)

    def use(self, cpu: int, tag: int, root: Root, used: Where) -> Kept | None:
        """A CPU walks a root under a tag. Returns what it must not hold there, if that is so."""
        mine = self._kept[cpu]
        self._in_use[cpu] = tags = self._pair(tag)
        for each in tags:
            kept = mine.get(each)
            if kept is None:
                kept = mine[each] = Kept(root, used)
            elif kept.root is not root or kept.lost is not None:
                return kept
            kept.used = used
            root.kept.pop((cpu, each), None)
        return None

    def forget(self, cpu: int, tag: int | None = None) -> None:
        """A CPU holds nothing any more under a tag and its twin, or under any."""
        for each in list(self._kept[cpu]) if tag is None else self._pair(tag):
            self.flush(cpu, each)

    def uses(self, cpu: int, tag: int) -> bool:
        """Whether a CPU walks its root under that tag now."""
        return tag in self._in_use[cpu]

    def flush(self, cpu: int, tag: int, va: int | None = None) -> None:
        """A CPU drops what it keeps under one tag, of one page or of all (INVPCID; TLBI VAE1, ASIDE1)."""
        kept = self._kept[cpu].get(tag)
        if kept is None:
            return
        if va is not None:
            kept.pages.pop(va, None)
            return
        del self._kept[cpu][tag]
        kept.root.kept.pop((cpu, tag), None)

    def _pair(self, tag: int) -> tuple[int, ...]:
        return (tag, tag ^ self._user_bit) if tag and self._user_bit else (tag,)


def owed(behind: list[Stale], cpu: int) -> Iterator[Lost]:
    """What a CPU has not dropped of the root that it leaves, but what needs no flush."""
    for stale in behind:
        if not stale.cpus >> cpu & 1 or (stale.loss is Loss.NOTICE and not stale.table):
            continue
        gone = stale.flushed.get(cpu, ())
        for at, old in enumerate(stale.olds):
            if at not in gone:
                yield Lost(stale.where, stale.address(at), old, stale.level, stale.table)
