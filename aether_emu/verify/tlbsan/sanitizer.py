"""The events, and what each means for what a CPU may hold.

    hint, edited        entries change: who walks the root may go on with what they said before
    flush_page, flush_all, flush_tag    a CPU drops what it may hold
    set_root                            a CPU with tags keeps it: it must not be behind then     rule (e)
    freed, slot_freed   a frame goes back to the allocator, or shows another file: nobody may hold it
                                                                                          rules (a), (c)
    to_user             a CPU goes on with a program: it must not hold what was taken away       rule (b)

The order of events is total, since all CPUs work on one thread of the host. So an operation has *returned*
when the CPU that began it goes on with a program, and from then on no CPU may execute with what it took away.
While it has not (its CPU waits for acknowledgements) others may. On ARM64 an entry that was made invalid must
not be made another valid one in the same operation, before every CPU has completed the flush: rule (d).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from aether_emu.machine.memory.ram import Ram
from aether_emu.verify.tlbsan.breaks import skipped
from aether_emu.verify.tlbsan.evidence import held, others
from aether_emu.verify.tlbsan.finding import Finding, Place, Rule, Where, callers
from aether_emu.verify.tlbsan.kept import Tagged, owed
from aether_emu.verify.tlbsan.roots import Lost, Root, Table, lowest
from aether_emu.verify.tlbsan.rules import Loss, Rules
from aether_emu.verify.tlbsan.shadow import Shadow
from aether_emu.verify.tlbsan.stale import Behind, Stale
from aether_emu.verify.tlbsan.taken import Taken, taken, taken_from_before

Entered = tuple[int, ...]

_COUNTED = (
    "edits", "stale_translations", "stale_tables", "changes_of_root", "page_flushes", "needless_page_flushes",
    "full_flushes", "needless_full_flushes", "tag_flushes",
)  # fmt: skip


class Sanitizer:
    """What all CPUs of one computer may hold, and whether anybody relies on more than that.

    `who(cpu)` names the task of a CPU, `what(cpu, entered)` what it is about, `now()` is virtual time in ns.
    With `deferred`, pages that were unmapped may be used until their flush comes: only (a), (c), (d) and what
    takes rights from pages that stay are judged. `idles(cpu)` says whether a CPU has nothing to execute, so
    that nobody asks it to flush, and it does by itself before it works again. Such a one may hold frames that
    were taken away meanwhile until it works, for a program or for the kernel alone; tables it may not. Who
    had something to execute when a frame was taken away may not hold it, though it idles by the time it goes.
    A CPU of `acknowledging` has said that it flushes, and does so next.
    Every `check_every` ways back to a program all tables are compared with RAM (0: at the end alone).

    After a finding it is quiet.
    """

    def __init__(
        self,
        rules: Rules,
        ram: Ram,
        frames: int,
        cpus: int,
        *,
        deferred: bool = False,
        check_every: int = 0,
    ) -> None:
        self.rules, self.deferred, self.check_every = rules, deferred, check_every
        self.finding: Finding | None = None
        self.quiet = False
        self.who: Callable[[int], str] = lambda _cpu: "no task"
        self.what: Callable[[int, Entered], str] = lambda _cpu, _entered: "the kernel's own work"
        self.now: Callable[[], int] = lambda: 0
        self.idles: Callable[[int], bool] = lambda _cpu: False
        self.acknowledging: list[int] = []
        self._tagged: Tagged | None = None  # where CPUs have no tags they drop what they leave
        page_shift = rules.format.shifts[0]
        self._behind = Behind(ram.base, page_shift, frames, rules.address)
        self.behind = self._behind.behind
        """What is stale now; empty most of the time."""
        self.held = self._behind.held
        self._shadow = Shadow(rules, ram, self._edited, self._unlinked)
        self.leaf_shift, self.keys = self._shadow.leaf_shift, self._shadow.keys
        self.roots: dict[int, Root] = {}
        self.root_frames: set[int] = set()
        self.at: list[Root | None] = [None] * cpus  # the root that each CPU walks
        self.touched: list[Root] = []
        """Roots that the operation under way may have edited."""
        self.cpu = 0  # the one that works
        self.entered: Entered = ()
        """What the kernel was entered for: a call's number, or an address and an access; () for neither."""
        self.place: Place | None = None
        """The operation under way, from the first edit that took something away on."""
        self._functions: tuple[CodeType, ...] = ()
        self.counts: Counter[str] = Counter()
        self._all_tables = rules.isa == "x86_64"
        self._events = 0
        self._inside = False  # a flush that is part of another event
        self._seen = False  # nothing is edited before the event under way is over

    def have_tags(self, user_bit: int) -> None:
        """TLBs have tags. Those of a program and of the supervisor differ in `user_bit`, if they do."""
        self._tagged = Tagged(len(self.at), user_bit, by_pages=not self._all_tables)

    # ---- edits

    def hint(self, root: Root, start: int, end: int) -> None:
        """The level-1 entries of `[start, end)` may be edited next."""
        if not self.quiet:
            self._begin(root)
            self._shadow.hint(root, start, end)

    def hint_page(self, root: Root, va: int) -> None:
        """The level-1 entry of `va` may be edited next."""
        if not self.quiet and self._shadow.hint_page(root, va):
            self._begin(root)

    def hint_upper(self, root: Root) -> None:
        """Entries above level 1 may be edited."""
        if not self.quiet:
            self._begin(root)
            root.upper = True

    def _begin(self, root: Root) -> None:
        if root not in self.touched:
            self.touched.append(root)
        if root.cpus or root.kept:
            self._functions = callers()

    def look(self) -> None:
        """See what was edited so far."""
        for root in self.touched:
            self._shadow.watches_new = not self._all_tables and bool(self.behind or root.kept)
            self._shadow.look(root)

    def _here(self) -> Where:
        """Where the operation under way is now."""
        return self._operation().at(callers())

    def _operation(self) -> Place:
        """The operation under way."""
        if self.place is None:
            self.place = Place(self.cpu, self.who(self.cpu), self.what(self.cpu, self.entered), self.now())
        return self.place

    def _edited(self, root: Root, level: int, va: int, edits: list[tuple[int, int, int]]) -> None:
        self.counts["edits"] += len(edits)
        if not root.cpus and not root.kept:
            return
        rules, shift = self.rules, self.rules.format.shifts[level - 1]
        if not self._all_tables:
            self._judge_breaks(root, level, va, edits)
            for each in list(taken_from_before(rules, root, self.behind, level, va, edits)):
                self._leave(root, level, va, shift, each)
        for each in taken(rules, root, level, edits):
            self._leave(root, level, va, shift, each)

    def _leave(self, root: Root, level: int, va: int, shift: int, what: Taken) -> None:
        where = self._operation().at(self._functions)
        if self._tagged is not None and root.kept and (what.table or what.loss is Loss.RIGHT):
            for number, old in zip(what.numbers, what.olds, strict=True):
                self._tagged.behind(root, Lost(where, va + (number << shift), old, level, what.table))
        if not what.cpus:
            return
        self.counts["stale_tables" if what.table else "stale_translations"] += len(what.numbers)
        stale = Stale(
            root.address, level, va, shift, what.numbers, what.olds, what.cpus, what.loss, where,
            absent=what.absent, leaves=what.leaves, table=what.table,
        )  # fmt: skip
        others = what.cpus & ~(1 << self.cpu)
        stale.idle = sum(
            1 << cpu for cpu in range(others.bit_length()) if others >> cpu & 1 and self.idles(cpu)
        )
        self._behind.add(stale)

    def _unlinked(self, root: Root, table: Table) -> None:
        """A table was taken out: walkers may still know where it lies (SDM 3A 4.10.3; Arm ARM R_SQBCS)."""
        if root.cpus or root.kept:
            shift = self.rules.format.shifts[table.level]
            gone = Taken([0], [0], Loss.NOTICE, root.cpus, absent=True, table=table.address)
            self._leave(root, table.level + 1, table.va, shift, gone)

    # ---- (d) break before make

    def _judge_breaks(self, root: Root, level: int, va: int, edits: list[tuple[int, int, int]]) -> None:
        for found in skipped(self.rules, root, self.behind, self.place, level, va, edits):
            edited = found.where or self._operation().at(self._functions)
            self._find(Rule.BREAK, found.va, found.old, level, found.cpu, edited, self._here())

    # ---- flushes

    def flush_page(self, cpu: int, va: int) -> None:
        """A CPU invalidates one address of the root that it walks."""
        if self.quiet or self._inside:
            return
        self.look()
        self.counts["page_flushes"] += 1
        if not self._drop_page(cpu, va):
            self.counts["needless_page_flushes"] += 1

    def _drop_page(self, cpu: int, va: int) -> bool:
        """A CPU holds one page no more of the root that it walks. Whether that was stale."""
        root, served = self.at[cpu], False
        for stale in self.behind:
            if stale.cpus >> cpu & 1 and root is not None and stale.root == root.address:
                served |= stale.drop_page(cpu, va, all_tables=self._all_tables)
        if served:
            self._behind.sweep()
        return served

    def flush_all(self, cpu: int) -> None:
        """A CPU drops everything that it holds; of what it keeps under other tags nobody may expect that."""
        if self.quiet or self._inside:
            return
        self.look()
        self.counts["full_flushes"] += 1
        if not self._drop_all(cpu):
            self.counts["needless_full_flushes"] += 1

    def _drop_all(self, cpu: int) -> bool:
        """A CPU holds nothing any more of the root that it walks. Whether there was something stale."""
        served = False
        for stale in self.behind:
            if stale.cpus >> cpu & 1:
                stale.drop(cpu)
                served = True
        if served:
            self._behind.sweep()
        return served

    def flush_tag(self, cpu: int, tag: int, va: int | None, change: Callable[[], object]) -> None:
        """A CPU drops what it holds under a tag, of one page or of all: `change` does it."""
        tagged = self._tagged
        if self.quiet or tagged is None:
            change()
            return
        self.look()
        self._do(change)
        self.counts["tag_flushes"] += 1
        if not tagged.uses(cpu, tag):
            tagged.flush(cpu, tag, va)
        elif va is None:
            self._drop_all(cpu)
        else:
            self._drop_page(cpu, va)

    def _do(self, change: Callable[[], object]) -> None:
        """Flushes that are part of an event are none of their own."""
        self._inside = True
        try:
            change()
        finally:
            self._inside = False

    # ---- (e): other roots, and tags

    def set_root(
        self, cpu: int, address: int, change: Callable[[], object], tag: int = 0, *, keep: bool = False
    ) -> Root | None:
        """A CPU walks another root from now on: `change` does it. Without tags it keeps nothing.

        With them it keeps what it leaves; `keep`: also what it has under `tag`. Otherwise that is dropped, on
        ARM64 with everything else.
        """
        if self.quiet:
            change()
            return None
        self.look()
        self._do(change)
        self.counts["changes_of_root"] += 1
        old, bit, address = self.at[cpu], 1 << cpu, address & self.rules.address  # without a tag
        if old is not None:
            old.cpus &= ~bit
            if self._tagged is not None:
                self._tagged.leave(cpu, old, owed(self.behind, cpu))
        self._drop_all(cpu)
        root = self.roots.get(address)
        if root is None:
            root = self.roots[address] = self._shadow.adopt(address)
            self.root_frames.add(self._behind.frame(address))
        elif root.pending:
            self._shadow.catch_up(root)
        root.cpus |= bit
        self.at[cpu] = root
        if self._tagged is not None:
            self._use_tag(self._tagged, cpu, tag, root, keep=keep)
        return root

    def _use_tag(self, tagged: Tagged, cpu: int, tag: int, root: Root, *, keep: bool) -> None:
        if not keep:
            tagged.forget(cpu, tag if self._all_tables else None)
        here = Place(
            cpu, self.who(cpu), f"a change to the root {root.address:#x} under tag {tag}", self.now()
        )
        wrong = tagged.use(cpu, tag, root, here.at(callers()))
        if wrong is None:
            return
        relied, lost = here.at(callers()), wrong.lost
        if wrong.root is root and lost is not None:
            self._find(Rule.TAG, lost.va, lost.old, lost.level, cpu, lost.where, relied, table=lost.table)
        self._say(others(wrong, self.rules.isa, self._behind, cpu, relied))

    # ---- (a), (c): frames given back

    def freed(self, frame: int, count: int = 1) -> None:
        """Frames go back to the allocator."""
        if self.quiet:
            return
        if self.touched and not self._seen:
            self.look()
        if not self.behind and not self.roots:
            return
        for each in range(frame, frame + count):
            self._freed(each)

    def freed_together(self, free: Callable[[], object]) -> None:
        """`free` gives frames back, one by one or many at once, and edits no table: one look is for all.

        A call that goes through much memory touches hundreds of tables, and gives back thousands of frames.
        """
        if self.touched and not self.quiet:
            self.look()
        self._seen = True
        try:
            free()
        finally:
            self._seen = False

    def freed_many(self, frames: npt.NDArray[np.int64]) -> None:
        """As `freed`, for single frames."""
        if self.quiet:
            return
        if not self._seen:
            self.look()
        if self.behind:
            for frame in frames.tolist():
                self._freed(frame)

    def slot_freed(self, address: int, length: int) -> None:
        """Frames outside the allocator show something else next: those of a slot of the file aperture.

        There are few of these events, so that every table is searched for entries that lead there as well.
        """
        if self.quiet:
            return
        self.look()
        self._judge_frames(self._behind.frame(address), length >> self.rules.format.shifts[0])
        for root in self.roots.values():
            self._shadow.catch_up(root)
            for va, level, entry in self._shadow.showing(root, address, length):
                here, cpu = self._here(), lowest(root.cpus) if root.cpus else self.cpu
                self._find(Rule.REUSE, va, entry, level, cpu, here, here, done="left")

    def _judge_frames(self, frame: int, count: int = 1) -> None:
        for stale, position, cpu in self._behind.holding(frame, count):
            if stale.table:
                self._find(
                    Rule.TABLE, stale.va, 0, stale.level, cpu, stale.where, self._here(), table=stale.table
                )
            elif self._may_wait(stale, cpu):
                stale.freed.setdefault(position, self._here())
            else:
                self._find_at(Rule.REUSE, stale, position, cpu, self._here())

    def _freed(self, frame: int) -> None:
        if self.held[frame]:
            self._judge_frames(frame)
        if frame in self.root_frames:
            self.root_frames.discard(frame)
            root = self.roots.pop(self._behind.address(frame))
            if root in self.touched:
                self.touched.remove(root)
            if root.cpus:
                here, cpu = self._here(), lowest(root.cpus)
                self._find(Rule.TABLE, 0, 0, self._shadow.top, cpu, here, here, table=root.address)
            root.close()

    def _may_wait(self, stale: Stale, cpu: int) -> bool:
        """Whether a CPU drops an entry before it works again, so that the frame may go before.

        A notice alone is no reason to ask anybody, so whoever idles by now has not been asked for that one.
        """
        if stale.idle >> cpu & 1 or cpu in self.acknowledging:
            return True
        return stale.loss is Loss.NOTICE and self.idles(cpu)

    def _judge_given_back(self, cpu: int) -> None:
        """A CPU works: it must have dropped what it was spared while it had nothing to execute."""
        for stale in self.behind:
            position = stale.given_back(cpu) if stale.freed else None
            if position is not None:
                self._find_at(Rule.REUSE, stale, position, cpu, stale.freed[position])
            stale.idle &= ~(1 << cpu)

    # ---- (b): programs go on

    def to_user(self, cpu: int) -> None:
        """A CPU goes on with a program: what it did before has returned."""
        if self.quiet:
            if self.finding is not None:
                raise self.finding  # somebody has caught it on its way
            return
        if self.touched:
            self.look()
            for root in self.touched:
                self._shadow.end(root)
            self.touched.clear()
        place = self.place
        if place is not None and place.cpu == cpu:
            place.returned, self.place = True, None
        self.entered = ()
        if self.behind:
            self._judge_given_back(cpu)
            self._judge_rights(cpu)
        if self.check_every:
            self._events += 1
            if not self._events % self.check_every:
                self.check()

    def works(self, cpu: int) -> None:
        """A CPU works in the kernel from now on. Another one leaves its operation as it is, for a while."""
        if self.cpu == cpu:
            return
        if self.touched and self.finding is None:
            self.look()
            for root in self.touched:
                self._shadow.end(root)
            self.touched.clear()
        self.cpu, self.place, self.entered = cpu, None, ()
        if self.behind and not self.quiet:
            self._judge_given_back(cpu)

    def _judge_rights(self, cpu: int) -> None:
        dropped = False
        for stale in self.behind:
            if stale.where.place.cpu == cpu:
                stale.where.place.returned = True
            if not stale.cpus >> cpu & 1:
                continue
            if stale.loss is Loss.NOTICE and not stale.table:
                if self._all_tables:  # x86_64: what becomes of an entry without the flag is judged as lost
                    stale.drop(cpu)
                    dropped = True
                continue
            if stale.table or not stale.where.place.returned or (self.deferred and stale.absent):
                continue
            self._find_at(Rule.RIGHT, stale, stale.first(cpu), cpu, self._going_on(cpu))
        if dropped:
            self._behind.sweep()

    def _going_on(self, cpu: int) -> Where:
        return Place(cpu, self.who(cpu), "its program goes on", self.now()).at(())

    def _find_at(self, rule: Rule, stale: Stale, position: int, cpu: int, relied: Where) -> None:
        va = stale.address(position)
        self._find(rule, va, stale.olds[position], stale.level, cpu, stale.where, relied)

    def _find(
        self,
        rule: Rule,
        va: int,
        old: int,
        level: int,
        cpu: int,
        edited: Where,
        relied: Where,
        *,
        table: int = 0,
        done: str = "edited",
    ) -> None:
        self._say(
            held(
                self.rules, self._behind, rule, va, old, level, cpu, edited, relied,
                table=table, done=done,
            )
        )  # fmt: skip

    def _say(self, finding: Finding) -> NoReturn:
        self.finding, self.quiet = finding, True
        raise finding

    # ---- the end

    def check(self) -> None:
        """Compare every table with RAM. Raises Unseen for a store that nobody hinted at."""
        if self.quiet:
            return
        for root in list(self.roots.values()):
            self._shadow.compare(root)

    @property
    def report(self) -> str:
        """All about the finding; empty without one."""
        return "" if self.finding is None else self.finding.report

    def finish(self) -> None:
        """CPUs execute nothing any more, and no program has memory: what goes now was never a program's."""
        self.quiet = True

    def statistics(self) -> dict[str, int]:
        """What was counted, by name. Stale is what a CPU may have held when it was edited or taken out."""
        return {name: self.counts[name] for name in _COUNTED}
