"""Which suites there are for which formats, and how one of them is run.

format   a laboratory: x86_64-4level ... arm64-64K-42bit, and x86_64-4level-kvm where the host has it
suite    encodings, entries, permissions, tlb
task     one suite of one format: the piece of work that one process is given
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Leaf, PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.errors import ConfigError, EncodingError
from aether_emu.mm.tables.owed import owes_flush
from aether_emu.verify.cases import arm64 as arm64_cases
from aether_emu.verify.cases import silicon
from aether_emu.verify.cases import x86_64 as x86_cases
from aether_emu.verify.cases.arm64_laboratory import ArmLaboratory
from aether_emu.verify.cases.cases import Chunk, only
from aether_emu.verify.cases.comparison import Tally, run, whole_steps
from aether_emu.verify.cases.laboratory import Laboratory
from aether_emu.verify.cases.tlb import Policy, Selection, TlbTally
from aether_emu.verify.cases.x86_64_laboratory import X86Laboratory
from aether_emu.verify.judging.encodings import engine_chunks, steps

SUITES = ("encodings", "entries", "permissions", "tlb")


@dataclass(frozen=True, slots=True)
class Variant:
    """The encoder for another CPU than the engine's: judged by the specification alone."""

    name: str
    make: Callable[[], PageTableFormat]
    nxe: bool = True
    pke: bool = True


@dataclass(frozen=True, slots=True)
class Format:
    """One format under verification. `share` scales the number of cases: small roots make small batches."""

    name: str
    isa: str
    open: Callable[[], Laboratory]
    ours: Callable[[], PageTableFormat]
    variants: tuple[Variant, ...] = ()
    share: float = 1.0


def _x86(levels: int) -> Format:
    variants = (
        Variant("52 bits: ", lambda: X86Format(levels, 52)),
        Variant("32 bits: ", lambda: X86Format(levels, 32)),
        Variant("52 bits, no NX: ", lambda: X86Format(levels, 52, no_execute=False), nxe=False),
        Variant("46 bits, no keys: ", lambda: X86Format(levels, 46, keys=False), pke=False),
    )
    name = f"x86_64-{levels}level"
    return Format(name, "x86_64", lambda: X86Laboratory(levels), lambda: X86Format(levels), variants)


def _arm(granule: int, bits: int, *, upper: bool = False, share: float = 1.0) -> Format:
    def laboratory() -> Laboratory:
        return ArmLaboratory(granule, bits, upper=upper)

    width = "" if bits == 48 else f"-{bits}bit"
    name = f"arm64-{granule >> 10}K{width}{'-upper' if upper else ''}"
    variants = (
        Variant("48 bits: ", lambda: ArmFormat(granule, bits, 48)),
        Variant("32 bits: ", lambda: ArmFormat(granule, bits, 32)),
    )
    return Format(name, "arm64", laboratory, lambda: ArmFormat(granule, bits), variants, share)


FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        _x86(4),
        _x86(5),
        Format("x86_64-4level-kvm", "x86_64", lambda: silicon.SiliconLaboratory(4), lambda: X86Format(4)),
        _arm(4096, 48),
        _arm(4096, 39),
        _arm(4096, 48, upper=True),
        _arm(16384, 47),
        _arm(16384, 48, share=0.05),
        _arm(65536, 48),
        _arm(65536, 42),
    )
}


_SAME_ENCODER = ("x86_64-4level-kvm", "arm64-4K-upper")
"""Formats whose encoder another one has judged already."""


@dataclass(frozen=True, slots=True)
class Task:
    """One suite of one format. `cases` None is all there are; `only` keeps features that contain it."""

    format: str
    suite: str
    asked: int | None  # for a format of usual size
    seed: int
    only: str = ""

    @property
    def cases(self) -> int | None:
        """How many cases this format is given."""
        return None if self.asked is None else max(1, round(self.asked * FORMATS[self.format].share))


@dataclass(slots=True)
class Outcome:
    """What became of a task. `lines` are for people: who was asked, what was left out and why."""

    task: Task
    tally: Tally
    lines: list[str] = field(default_factory=list)


def tasks(what: str, suite: str, cases: int | None, seed: int, only_features: str = "") -> list[Task]:
    """The tasks for an ISA or a format, and a suite; "all" is all. The order is fixed.

    Raises ConfigError for a name that is neither.
    """
    if what not in ("x86_64", "arm64", "all", *FORMATS):
        raise ConfigError("what", what, f"x86_64, arm64, all, or one of {', '.join(FORMATS)}")
    if suite not in (*SUITES, "all"):
        raise ConfigError("suite", suite, f"{', '.join(SUITES)} or all")
    wanted = [
        Task(item.name, name, cases, seed, only_features)
        for item in FORMATS.values()
        if what in (item.isa, item.name, "all")
        for name in SUITES
        if suite in (name, "all") and not (name == "encodings" and item.name in _SAME_ENCODER)
    ]
    if not wanted:
        raise ConfigError("suite", suite, f"another one for {what}, whose encoder is another format's")
    return wanted


def differential(format: str, suite: str = "permissions", cases: int | None = 20_000, seed: int = 0) -> Tally:
    """Put a suite of one format (a key of FORMATS) to specification and engine; `cases` None is all.

    The tally's `clean` says whether nothing is left to explain, `differences` has the first that are.
    Raises ConfigError for a name there is not, EngineError.
    """
    if format not in FORMATS or suite not in SUITES:
        known = f"one of {', '.join(FORMATS)}; {', '.join(SUITES)}"
        raise ConfigError("format, suite", f"{format}, {suite}", known)
    (task,) = tasks(format, suite, cases, seed)
    return perform(task).tally


def nothing_yet(task: Task) -> Outcome:
    """The outcome of a task that has not begun."""
    return Outcome(task, TlbTally() if task.suite == "tlb" else Tally())


def perform(
    task: Task, progress: Callable[[int], None] = lambda _cases: None, into: Outcome | None = None
) -> Outcome:
    """Run one task; `progress` hears how many cases were done. Raises EngineError.

    `into` is filled on the way: a caller who ends the work, by Ctrl-C or from `progress`, has there what was
    found until then.
    """
    item, host = FORMATS[task.format], task.format.endswith("-kvm")
    outcome = nothing_yet(task) if into is None else into
    if task.suite == "encodings":
        _judged(outcome, item, progress)
        return outcome
    if host and (reason := silicon.available()) is not None:
        outcome.lines.append(reason)
        return outcome
    laboratory = item.open()
    try:
        for done in whole_steps(_cases_done(task, item, laboratory, outcome)):
            progress(done)
        return outcome
    finally:
        laboratory.close()


def _judged(outcome: Outcome, item: Format, progress: Callable[[int], None]) -> None:
    """This project's own encoder: by the specification, and a sample of its leaves by the engine."""
    task = outcome.task
    count = _MANY if task.asked is None else task.asked
    fmt = item.ours()
    for done in whole_steps(steps(fmt, item.isa, count, task.seed, outcome.tally, task.only)):
        progress(done)
    for other in item.variants:
        variant = steps(
            other.make(), item.isa, min(count, _FEW), task.seed, outcome.tally, task.only, nxe=other.nxe,
            pke=other.pke, prefix=other.name,
        )  # fmt: skip
        for done in whole_steps(variant):
            progress(done)
    laboratory = item.open()
    try:
        chunks = engine_chunks(fmt, laboratory, round(count * item.share) // 4, task.seed)
        chunks = only(chunks, task.only) if task.only else chunks
        for done in whole_steps(run(laboratory, chunks, outcome.tally)):
            progress(done)
    finally:
        laboratory.close()


def _cases_done(task: Task, item: Format, laboratory: Laboratory, outcome: Outcome) -> Iterator[int]:
    skipped: Counter[str] = Counter()
    on_host = isinstance(laboratory, silicon.SiliconLaboratory)
    if isinstance(laboratory, silicon.SiliconLaboratory):
        outcome.lines.append(laboratory.asked)
        if task.suite == "tlb" and laboratory.blind_to_edits is not None:
            outcome.lines.append(laboratory.blind_to_edits)
            return
    if isinstance(outcome.tally, TlbTally):
        yield from _histories(task, laboratory, outcome.tally, item)
        return
    chunks = _chunks(task, laboratory)
    if task.only:
        chunks = only(chunks, task.only)
    if isinstance(laboratory, silicon.SiliconLaboratory):
        chunks = laboratory.answerable(chunks, skipped)
    if item.share < 1 and task.cases is None and task.suite == "permissions":
        outcome.lines.append(
            f"a sample of {item.share:.0%}: this root has two entries, so cases go two by two"
        )
    yield from run(laboratory, chunks, outcome.tally)
    if on_host:
        outcome.lines += silicon.skips(skipped)


def _chunks(task: Task, laboratory: Laboratory) -> Iterator[Chunk]:
    count = task.cases
    if isinstance(laboratory, X86Laboratory):
        if task.suite == "permissions":
            return x86_cases.permissions(laboratory, count, task.seed)
        return x86_cases.entries(laboratory, _MANY if count is None else count, task.seed)
    assert isinstance(laboratory, ArmLaboratory)
    if task.suite == "permissions":
        share = FORMATS[task.format].share
        if (
            count is None and share < 1
        ):  # so small a root has room for two paths a batch: all cases would take an hour
            count = round(arm64_cases.permission_count(laboratory) * share)
        return arm64_cases.permissions(laboratory, count, task.seed)
    return arm64_cases.entries(laboratory, _MANY if count is None else count, task.seed)


_FEW = 400
"""Cases of an encoder's variants by chance, beside those of every class."""

_MANY = 1_000_000
"""Cases of `entries` where all are asked for: its combinations have no end."""


def _histories(task: Task, laboratory: Laboratory, tally: TlbTally, item: Format) -> Iterator[int]:
    policy, selection = _policy(item.ours()), Selection(task.only, round(1 / item.share))
    if isinstance(laboratory, X86Laboratory):
        return x86_cases.tlb(laboratory, tally, policy, selection)
    assert isinstance(laboratory, ArmLaboratory)
    return arm64_cases.tlb(laboratory, tally, policy, selection)


def _policy(fmt: PageTableFormat) -> Policy:
    """This project's rule, for the leaves that its encoder makes."""

    def made(entry: int, level: int) -> bool:
        decoded = fmt.decode(entry, level)
        if not isinstance(decoded, Leaf):
            return True
        try:
            return fmt.leaf_bits(decoded.attributes, level) == entry
        except EncodingError:
            return False

    def flushes(old: int, new: int, level: int, moved: bool) -> bool | None:
        if not made(old, level) or not made(new, level):
            return None
        return owes_flush(fmt, old, new, level, moved=moved)

    return flushes


def verdict(outcome: Outcome) -> bool:
    """Whether nothing is left to explain."""
    tally = outcome.tally
    missing = isinstance(tally, TlbTally) and any(found.missing for found in tally.findings.values())
    return tally.clean and not missing
