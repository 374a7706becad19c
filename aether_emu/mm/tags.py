"""Tags of translations: the number of an address space in the MMU's register, and what is kept under it.

A TLB with tags keeps the translations of address spaces that a CPU has left. Two ways to give out the tags:

    Pcids    x86_64 (Intel SDM 3A 4.10.1): a few for each CPU, as Linux does. A space counts the flushes that
             its edits owed, its *generation*. A CPU remembers, for each of its tags, whose it is and which
             generation it has seen. When it comes back to the space, and that is still the same, all is kept
             (CR3 bit 63). If it is another, or the tag was another space's, the tag is flushed.
    Asids    ARM64 (Arm ARM R_XXNPZ): one number for a space on all CPUs; invalidations are broadcast. When
             all are taken a new generation begins (*rollover*): those that CPUs run with stay theirs, all
             others are free, and each CPU flushes everything before it next changes to an address space.

A CPU that has left a space is not asked to flush for it (`AddressSpace.cpus`). On x86_64 the generation makes
up for that; on ARM64 the broadcast reaches it all the same.

The engine has no tags: it drops everything at each switch. So the numbers are in the real register, what they
keep is modelled, and the figures say how often a CPU with tags would have kept something.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aether_emu.machine.cpu import Cpu
from aether_emu.mm.kept import Kept


class Retained(NamedTuple):
    """What a TLB may hold: translations under `tag`, of the table at physical `root`.

    `generation` is what the CPU has seen of that space's flushes (`Context.generation`); -1 if it may lack
    some of them. An older one than the space's says that the tag is flushed before it is used again.
    """

    tag: int
    root: int
    generation: int


class Context:
    """What tags know of one address space; `number` is the space's own.

    `generation` counts the flushes that its edits owed. `root` is what a program runs with, `kernel_root`
    what the supervisor does: the same, unless they are split. `asid` is the number of ARM64, above it the
    generation of numbers that it belongs to; 0: none yet. `elsewhere`: a bit for each CPU that has left the
    space, and may keep translations under its ASID.
    """

    __slots__ = ("asid", "elsewhere", "generation", "kernel_root", "number", "root", "tags")

    def __init__(self, number: int, root: int, kernel_root: int, tags: Tags | None) -> None:
        self.number, self.root, self.kernel_root, self.tags = number, root, kernel_root, tags
        self.generation = self.asid = self.elsewhere = 0

    def capture(self) -> dict[str, int]:
        """As plain data: all but what it is a part of."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "tags"}

    def restore(self, state: dict[str, int]) -> None:
        """The way back."""
        for name, value in state.items():
            setattr(self, name, value)

    def flushed(self, pages: Sequence[int] | None) -> None:
        """An edit owes a flush of some pages; None: of all of the space."""
        self.generation += 1
        if self.elsewhere and self.tags is not None:
            self.tags.broadcast_to_others(self, pages)


class Tags(ABC):
    """The tags of a machine. A program's differs by `user_bit` from the supervisor's own in that space.

    Figures: `switches` to an address space; `kept`: those that kept what there was under its tag; `behind`:
    those that flushed the tag, for the space was edited meanwhile; `fresh`: those that had to take a tag;
    `rollovers`. `model` estimates what was kept (None: nobody asks). `cpus` are all there are. `reuses()`
    says whether a tag is used without the flush that it owes: see `mm.tlb_faults`.
    """

    cpus: Sequence[Cpu]

    broadcast: bool
    """Whether a flush reaches every CPU, also those that have left the space."""

    def __init__(self, user_bit: int) -> None:
        self.user_bit = user_bit
        self.switches = self.kept = self.behind = self.fresh = self.rollovers = 0
        self.model: Kept | None = None
        self.reuses: Callable[[], bool] = bool

    def keeps(self, valid: bool) -> bool:
        """Whether a CPU goes on with what it holds under the tag, which is `valid` or another's or old."""
        return valid or self.reuses()

    @abstractmethod
    def enter(self, index: int, context: Context) -> tuple[int, bool]:
        """CPU `index` changes to an address space: its tag, and whether the CPU keeps what it holds."""

    @abstractmethod
    def tag(self, index: int, context: Context) -> int:
        """That of the address space where CPU `index` is."""

    @abstractmethod
    def leave(self, index: int, context: Context, *, owes: bool) -> None:
        """CPU `index` leaves it. `owes`: it has not carried out all that it was asked to flush."""

    @abstractmethod
    def broadcast_to_others(self, context: Context, pages: Sequence[int] | None) -> None:
        """A flush of a space, where it reaches the CPUs that have left it. `pages` as `Context.flushed`."""

    @abstractmethod
    def retained(self, index: int) -> list[Retained]:
        """What the TLB of CPU `index` may hold, if it had tags: by tag, the one in use too."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `capture` adds; contexts by their numbers."""

    @abstractmethod
    def take(self, state: dict[str, Any], contexts: dict[int, Context]) -> None:
        """The way back."""

    def _of(self, tag: int, context: Context, generation: int) -> list[Retained]:
        held = [Retained(tag, context.kernel_root, generation)] if self.user_bit else []
        return [*held, Retained(tag | self.user_bit, context.root, generation)]

    def capture(self) -> dict[str, Any]:
        """All of it as plain data, but for the spaces' own part (`mm.capture`)."""
        figures = self.switches, self.kept, self.behind, self.fresh, self.rollovers
        model = None if self.model is None else self.model.capture()
        return {"figures": figures, "model": model, **self.state()}

    def restore(self, state: dict[str, Any], contexts: dict[int, Context]) -> None:
        """Become the captured ones. `contexts` are those of the living spaces, by number."""
        self.switches, self.kept, self.behind, self.fresh, self.rollovers = state["figures"]
        self.take(state, contexts)
        if state["model"] is not None:
            self.measure()
            assert self.model is not None
            self.model.restore(state["model"])

    def measure(self) -> None:
        """From now on, estimate how many translations are kept."""
        if self.model is None:
            self.model = Kept(len(self.cpus))


def _known(contexts: dict[int, Context], number: int, roots: tuple[int, int]) -> Context:
    """The context of a space, or of one that is gone."""
    found = contexts.get(number)
    return found if found is not None else Context(number, *roots, None)


class _Slots:
    """The tags of one CPU: tag `slot + 1` is that of `owners[slot]`, which it knows as of `seen[slot]`."""

    __slots__ = ("following", "of", "owners", "seen")

    def __init__(self, count: int) -> None:
        self.owners: list[Context | None] = [None] * count
        self.seen = [0] * count
        self.of: dict[Context, int] = {}  # the inverse of `owners`
        self.following = 0  # the slot that is taken next


class Pcids(Tags):
    """`count` tags for each of `cpus` CPUs: PCIDs 1 to `count`. PCID 0 is that of the kernel's own table.

    A space that has none takes them in turn, whoever had it before.
    """

    broadcast = False

    def __init__(self, count: int, cpus: int, user_bit: int = 0) -> None:
        super().__init__(user_bit)
        self._count = count
        self._slots = [_Slots(count) for _ in range(cpus)]

    def enter(self, index: int, context: Context) -> tuple[int, bool]:
        """See `Tags.enter`."""
        mine, self.switches = self._slots[index], self.switches + 1
        at = mine.of.get(context)
        if at is None:
            at = mine.following
            mine.following = (at + 1) % self._count
            before = mine.owners[at]
            if before is not None:
                del mine.of[before]
            mine.owners[at], mine.of[context] = context, at
            self.fresh += 1
            keep = before is not None and self.keeps(False)
        else:
            valid = mine.seen[at] == context.generation
            keep = self.keeps(valid)
            self.kept += valid
            self.behind += not valid
        mine.seen[at] = context.generation
        return at + 1, keep

    def tag(self, index: int, context: Context) -> int:
        """See `Tags.tag`."""
        return self._slots[index].of[context] + 1

    def leave(self, index: int, context: Context, *, owes: bool) -> None:
        """See `Tags.leave`. While it was there, it was asked to make every flush."""
        mine = self._slots[index]
        mine.seen[mine.of[context]] = -1 if owes else context.generation

    def broadcast_to_others(self, context: Context, pages: Sequence[int] | None) -> None:
        """Nothing: the generation tells them when they come back."""

    def retained(self, index: int) -> list[Retained]:
        """See `Tags.retained`."""
        mine, held = self._slots[index], []
        for slot, (owner, seen) in enumerate(zip(mine.owners, mine.seen, strict=True)):
            if owner is not None:
                held += self._of(slot + 1, owner, seen)
        return held

    def state(self) -> dict[str, Any]:
        """See `Tags.state`."""
        return {
            "slots": [
                (
                    [None if o is None else (o.number, (o.root, o.kernel_root)) for o in mine.owners],
                    list(mine.seen),
                    mine.following,
                )
                for mine in self._slots
            ]
        }

    def take(self, state: dict[str, Any], contexts: dict[int, Context]) -> None:
        """See `Tags.take`."""
        for mine, (owners, seen, following) in zip(self._slots, state["slots"], strict=True):
            mine.owners = [None if each is None else _known(contexts, *each) for each in owners]
            mine.seen, mine.following = list(seen), following
            mine.of = {owner: slot for slot, owner in enumerate(mine.owners) if owner is not None}


class Asids(Tags):
    """ASIDs of `bits` bits, the same on all of `cpus` CPUs. ASID 0 is nobody's.

    With `user_bit` 1 each space has two that differ in the last bit: half as many spaces have one.
    """

    broadcast = True

    def __init__(self, bits: int, cpus: int, user_bit: int = 0) -> None:
        super().__init__(user_bit)
        self._bits, self._step = bits, user_bit + 1
        self.generation = 1
        self._taken = bytearray((1 << bits) // self._step)  # by number / step
        self._taken[0] = 1
        self._following = 1  # where the search for one that is free goes on
        self._active: list[Context | None] = [None] * cpus  # whose a CPU runs with, in this generation
        self._reserved: list[int] = [
            0
        ] * cpus  # what it ran with when this generation began, if it still does
        self._pending = 0  # CPUs that flush everything before they next change to a space
        self._held: list[dict[int, Context]] = [{} for _ in range(cpus)]

    def enter(self, index: int, context: Context) -> tuple[int, bool]:
        """See `Tags.enter`. What is not kept is everything, whatever its tag."""
        self.switches += 1
        bit, had = 1 << index, context.elsewhere >> index & 1
        if context.asid >> self._bits != self.generation:
            self._renew(context)
        valid = not self._pending & bit
        keep, number = self.keeps(valid), context.asid & (1 << self._bits) - 1
        if not keep:
            self._forget(index)
        self._pending &= ~bit
        if not valid:
            self.behind += 1
        elif had:
            self.kept += 1
        else:
            self.fresh += 1
        self._active[index], self._held[index][number] = context, context
        context.elsewhere &= ~bit
        return number, keep

    def tag(self, index: int, context: Context) -> int:
        """See `Tags.tag`."""
        return context.asid & (1 << self._bits) - 1

    def leave(self, index: int, context: Context, *, owes: bool) -> None:
        """See `Tags.leave`. Its ASID stays reserved until the CPU runs with another one.

        A broadcast would have reached the CPU by now: what it owes it makes up for at once.
        """
        if not owes:
            context.elsewhere |= 1 << index
            return
        number = self.tag(index, context)
        for tag in dict.fromkeys((number, number | self.user_bit)):
            self.cpus[index].flush_tag(tag)
        self._held[index].pop(number, None)

    def broadcast_to_others(self, context: Context, pages: Sequence[int] | None) -> None:
        """TLBI VAE1IS of each page, or ASIDE1IS: who keeps something of the space drops that too."""
        number = self.tag(0, context)
        for index, (cpu, held) in enumerate(zip(self.cpus, self._held, strict=True)):
            if not context.elsewhere >> index & 1:
                continue
            for tag in dict.fromkeys((number, number | self.user_bit)):
                for va in (None,) if pages is None else pages:
                    cpu.flush_tag(tag, va)
            if pages is None:
                held.pop(number, None)
        if pages is None:
            context.elsewhere = 0

    def retained(self, index: int) -> list[Retained]:
        """See `Tags.retained`. Nobody lacks a flush: they are broadcast."""
        held = sorted(self._held[index].items())
        return [each for number, owner in held for each in self._of(number, owner, owner.generation)]

    def _forget(self, index: int) -> None:
        """CPU `index` drops everything."""
        for context in self._held[index].values():
            context.elsewhere &= ~(1 << index)
        self._held[index].clear()

    def _renew(self, context: Context) -> None:
        """Give a space a number of this generation: the one that it had, if nobody else took it."""
        before, mask = context.asid, (1 << self._bits) - 1
        if before:
            renewed = self.generation << self._bits | before & mask
            if before in self._reserved:
                self._reserved = [renewed if each == before else each for each in self._reserved]
                context.asid = renewed
                return
            place = (before & mask) // self._step
            if not self._taken[place]:
                self._taken[place] = 1
                context.asid = renewed
                return
        place = self._taken.find(0, self._following)
        if place < 0:
            self._roll_over()
            place = self._taken.find(0)
        self._taken[place], self._following = 1, place
        context.asid = self.generation << self._bits | place * self._step

    def _roll_over(self) -> None:
        """Begin a generation: only what CPUs run with is taken, and each CPU has something to flush."""
        self.rollovers += 1
        self.generation += 1
        self._taken = bytearray(len(self._taken))
        self._taken[0] = 1
        mask = (1 << self._bits) - 1
        for index, context in enumerate(self._active):
            if context is not None:
                self._reserved[index] = context.asid
            self._active[index] = None
            self._taken[(self._reserved[index] & mask) // self._step] = 1
        self._pending = (1 << len(self._active)) - 1

    def state(self) -> dict[str, Any]:
        """See `Tags.state`."""

        def named(context: Context) -> tuple[int, tuple[int, int]]:
            return context.number, (context.root, context.kernel_root)

        return {
            "generation": self.generation,
            "taken": [place for place, taken in enumerate(self._taken) if taken],
            "following": self._following,
            "active": [None if each is None else named(each) for each in self._active],
            "reserved": list(self._reserved),
            "pending": self._pending,
            "held": [{number: named(each) for number, each in held.items()} for held in self._held],
        }

    def take(self, state: dict[str, Any], contexts: dict[int, Context]) -> None:
        """See `Tags.take`."""
        self.generation, self._following = state["generation"], state["following"]
        self._taken, self._reserved = bytearray(len(self._taken)), list(state["reserved"])
        for place in state["taken"]:
            self._taken[place] = 1
        self._active = [None if each is None else _known(contexts, *each) for each in state["active"]]
        self._pending = state["pending"]
        self._held = [
            {number: _known(contexts, *each) for number, each in held.items()} for held in state["held"]
        ]
