"""What a litmus test says: pages, entries, threads of operations, a condition on the end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

FAULT, DONE = "fault", "ok"
"""What a register holds after an access that faulted, or after a store that did not."""


class Kind(Enum):
    """What an entry leads to."""

    INVALID = "invalid"
    PAGE = ""
    BLOCK = "block"
    TABLE = "table"


class Entry(NamedTuple):
    """The meaning of an entry, without any ISA's bits. `target` names a physical page or a leaf table."""

    kind: Kind
    target: str = ""
    write: bool = True
    user: bool = True
    everywhere: bool = False  # global: kept when the address space changes
    accessed: bool = True
    dirty: bool = True

    @property
    def cacheable(self) -> bool:
        """Whether a TLB may keep it: valid, and accessed (Intel SDM 3A 4.10.2.3; Arm ARM R_XCLRD)."""
        return self.kind is not Kind.INVALID and self.accessed

    def used(self) -> Entry:
        """The same without what hardware records in it: how entries are compared."""
        return self._replace(accessed=True, dirty=True)

    def __str__(self) -> str:
        words = [self.kind.value, self.target]
        words += [word for word, shown in zip(FLAGS, self.flags(), strict=True) if shown]
        return " ".join(filter(None, words))

    def flags(self) -> tuple[bool, ...]:
        """Which of `FLAGS` describe it."""
        leads = self.kind is not Kind.INVALID
        return (not self.write, not self.user, self.everywhere, leads and not self.accessed,
                leads and not self.dirty)  # fmt: skip


FLAGS = ("ro", "kernel", "global", "old", "clean")
INVALID = Entry(Kind.INVALID)


class Space(NamedTuple):
    """An address space: tables of its own, and the tag (PCID, ASID) of translations made by them."""

    name: str  # empty for the one in which threads begin
    tag: int = 0


class Slot(NamedTuple):
    """One entry in memory. `level` 1 is the leaf of a table, 2 the entry for a virtual page's table.

    What stands in another address space than the first has its name behind a dot: `pde(x.b)`.
    """

    level: int
    name: str

    def __str__(self) -> str:
        return f"{'pte' if self.level == 1 else 'pde'}({self.name})"


# ---- operations


@dataclass(frozen=True, slots=True)
class Load:
    """A user's load from a virtual page."""

    page: str
    register: str


@dataclass(frozen=True, slots=True)
class Store:
    """A user's store to a virtual page; `register` gets `ok` or `fault`."""

    page: str
    value: int
    register: str = ""


@dataclass(frozen=True, slots=True)
class ReadEntry:
    """The supervisor loads an entry."""

    slot: Slot
    register: str


@dataclass(frozen=True, slots=True)
class WriteEntry:
    """The supervisor stores an entry; with `register` it gets the old one in the same step."""

    slot: Slot
    entry: Entry
    register: str = ""


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Translations of `page`, or of all pages where that is empty, are dropped.

    `everywhere`: on all CPUs. `leaf`: the last level alone. `globals_too`: global ones are dropped as well.
    `tag`: those with this tag; None: with any; `OWN`: with that of the space in which the CPU is.
    """

    page: str
    everywhere: bool = False
    leaf: bool = False
    globals_too: bool = True
    tag: int | None = None


OWN = -1


@dataclass(frozen=True, slots=True)
class Enter:
    """Translate by another space from now on. `flush`: nothing with its tag is kept, but global ones."""

    space: str
    flush: bool


@dataclass(frozen=True, slots=True)
class Barrier:
    """`stores`: this CPU's earlier stores are complete. `invalidations`: so are its earlier invalidations.

    `context`: what follows is fetched, and translated, anew.
    """

    stores: bool = False
    invalidations: bool = False
    context: bool = False


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ask another thread's CPU to invalidate, by an interrupt. `early`: it acknowledges before it does."""

    thread: int
    work: Invalidate
    early: bool = False


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until every interrupt that this thread sent is acknowledged."""


Action = Load | Store | ReadEntry | WriteEntry | Invalidate | Enter | Barrier | Interrupt | Await


class Operation(NamedTuple):
    """An action with the text that says so, for reports."""

    action: Action
    text: str


# ---- conditions


class Value(NamedTuple):
    """What something is compared with: a number, `fault` or `ok`, or an entry."""

    value: int | str | Entry


class Register(NamedTuple):
    """A thread's register; `flag` names one of what hardware records in an entry that it holds."""

    thread: int
    name: str
    flag: str = ""


class Memory(NamedTuple):
    """A physical page's word at the end."""

    page: str


class Stored(NamedTuple):
    """An entry at the end, or one `flag` of it."""

    slot: Slot
    flag: str = ""


class Equal(NamedTuple):
    """The left side has the value."""

    left: Register | Memory | Stored
    right: Value


class Not(NamedTuple):
    """The other way round."""

    what: Condition


class Both(NamedTuple):
    """And."""

    left: Condition
    right: Condition


class Either(NamedTuple):
    """Or."""

    left: Condition
    right: Condition


Condition = Equal | Not | Both | Either


class Manual(Enum):
    """Whose rules decide what a TLB may keep."""

    ARM = "arm"
    INTEL = "intel"
    AMD = "amd"


@dataclass(frozen=True, slots=True)
class Litmus:
    """One test, as its file has it."""

    name: str
    isa: str
    manual: Manual
    summary: str
    allowed: bool  # the published verdict on the condition
    source: str
    like: str  # what other suites call the same shape
    out_of_reach: str  # why an allowed end is not reached here; empty: it has to be
    memory: dict[str, int]  # physical pages with their first word
    entries: dict[Slot, Entry]  # as they are at the start
    spaces: tuple[Space, ...]  # the first one has no name
    threads: tuple[tuple[Operation, ...], ...]
    condition: Condition
    text: str  # of the condition
    path: str

    @property
    def pages(self) -> tuple[str, ...]:
        """The virtual pages."""
        return tuple(slot.name for slot in self.entries if slot.level == 2 and "." not in slot.name)

    def upper(self, page: str, space: int) -> Slot:
        """The entry for a page's table in a space."""
        name = self.spaces[space].name
        return Slot(2, f"{page}.{name}" if name else page)
