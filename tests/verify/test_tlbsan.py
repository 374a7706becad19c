"""TLBSan finds what is broken in the memory manager, says both places, and has nothing to say otherwise.

`flushes.c` has threads on other CPUs that use the pages which its first thread takes away, by one kind of
operation after another. The manager is broken from the first `sched_yield` on, when all threads are there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aether_emu import state
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tlb import Gather, Tlb
from aether_emu.observe import stats
from aether_emu.system import Machine
from aether_emu.verify.tlbsan import Finding, Sanitizer
from aether_emu.verify.tlbsan.finding import Rule, Unseen

_PROGRAMS = Path(__file__).resolve().parents[1] / "programs" / "bin"
_KINDS = ("unmap", "protect", "share", "move", "discard", "replace", "tables", "shared")
every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])

Broken = Callable[[], bool]
"""Whether the manager is to be broken by now."""


class _Run:
    """`flushes KIND` on a machine with a sanitizer. `late` is true from the first sched_yield on."""

    def __init__(self, isa: str, kind: str, cpus: int = 2, **options: object) -> None:
        self.late = False
        self.output = BufferStream()
        self.machine = Machine(isa, cpus=cpus, ram="64M", seed=7, tlbsan=True, **options)  # type: ignore[arg-type]
        streams = {"stdin": BufferStream(b""), "stdout": self.output, "stderr": BufferStream()}
        self.machine.load(_PROGRAMS / isa / "flushes", ["flushes", kind], streams=streams)
        waiting = self.machine.on_system_call(lambda _call: self._begin(), ["sched_yield"])
        self._stop_waiting = waiting.detach

    def _begin(self) -> None:
        self.late = True

    @property
    def sanitizer(self) -> Sanitizer:
        assert isinstance(self.machine.tlbsan, Sanitizer)
        return self.machine.tlbsan

    def finding(self) -> Finding:
        try:
            with pytest.raises(Finding) as caught:
                self.machine.run()
        finally:
            self.machine.abandon()
        assert self.sanitizer.finding is caught.value
        return caught.value


@every_isa
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_manager_that_is_not_broken_is_clean(isa: str, cpus: int) -> None:
    run = _Run(isa, "all", cpus)
    run.sanitizer.check_every = 50
    with run.machine:
        assert run.machine.run().status == 0
        counts = run.sanitizer.statistics()
    assert bytes(run.output.written).decode() == "".join(f"{kind}: 0 wrong\n" for kind in _KINDS)
    assert counts["stale_translations"] > 20
    assert counts["stale_tables"] > 2
    assert counts["needless_page_flushes"] < counts["page_flushes"] / 10
    assert run.sanitizer.behind == []


@every_isa
def test_a_flush_that_no_other_cpu_hears_of_is_found_when_the_frame_goes_back(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ask = _Run(isa, "unmap"), Tlb._ask
    monkeypatch.setattr(Tlb, "_ask", lambda tlb, *a, **k: None if run.late else ask(tlb, *a, **k))
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.REUSE, 1)
    assert found.edited.place.what == found.relied.place.what == "system call munmap"
    assert found.edited.place.cpu == 0
    assert "flushes (process" in found.edited.place.who
    assert "AddressSpace.unmap" in str(found.edited)
    assert "Gather.finish" in str(found.relied)


@every_isa
def test_a_lost_permission_that_is_not_flushed_is_found_when_the_program_goes_on(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, issue = _Run(isa, "protect"), Gather._issue
    monkeypatch.setattr(Gather, "_issue", lambda gather: None if run.late else issue(gather))
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.RIGHT, 0)
    assert found.edited.place.what == "system call mprotect"
    assert found.relied.place.what == "its program goes on"
    assert "AddressSpace.protect" in str(found.edited)
    assert "RW" in found.entry.split() if isa == "x86_64" else "AP=1" in found.entry.split()


@every_isa
@pytest.mark.parametrize(
    ("kind", "cpus", "rule"),
    [("discard", 1, Rule.REUSE), ("protect", 1, Rule.RIGHT), ("protect", 2, Rule.RIGHT)],
)
def test_a_flush_of_one_page_less_is_found_by_that_page(
    isa: str, kind: str, cpus: int, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, flush = _Run(isa, kind, cpus), Tlb.flush_pages
    run.late = cpus == 1  # alone, nobody yields
    left: list[int] = []

    def too_narrow(tlb: Tlb, mask: int, pages: list[int]) -> object:
        if run.late and len(pages) == 3:
            left.append(pages[-1])
            pages = pages[:-1]
        return flush(tlb, mask, pages)

    monkeypatch.setattr(Tlb, "flush_pages", too_narrow)
    found = run.finding()
    assert found.rule is rule
    assert found.va == left[-1]


@every_isa
def test_what_is_given_back_before_its_flush_is_found(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, finish = _Run(isa, "discard"), Gather.finish

    def hasty(gather: Gather, **more: bool) -> None:
        if run.late:
            gather._free(gather._release(), [])
        finish(gather, **more)

    monkeypatch.setattr(Gather, "finish", hasty)
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.REUSE, 0)
    assert found.edited.place.what == found.relied.place.what == "system call madvise"


@every_isa
def test_a_table_that_is_given_back_before_its_flush_is_found(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, finish = _Run(isa, "tables"), Gather.finish

    def hasty(gather: Gather, **more: bool) -> None:
        if run.late and gather._tables:
            gather._table.free_tables(gather._tables)
            gather._tables = []
        finish(gather, **more)

    monkeypatch.setattr(Gather, "finish", hasty)
    found = run.finding()
    assert found.rule is Rule.TABLE
    assert "AddressSpace.unmap > prune" in str(found.edited)
    assert found.relied.place.what == "system call munmap"


@every_isa
def test_a_cpu_that_a_space_has_forgotten_too_early_is_found_when_it_goes_on(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, protect = _Run(isa, "protect"), AddressSpace.protect

    def forgetful(space: AddressSpace, *more: object) -> None:
        if run.late:
            space.cpus &= ~2
        protect(space, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(AddressSpace, "protect", forgetful)
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.RIGHT, 1)
    assert found.edited.place.what == "system call mprotect"
    assert (found.edited.place.cpu, found.relied.place.cpu) == (0, 1)


@every_isa
def test_a_fork_whose_write_protection_is_not_flushed_is_found(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fork = _Run(isa, "share"), AddressSpace.fork

    def hasty(space: AddressSpace) -> AddressSpace:
        with monkeypatch.context() as patch:
            patch.setattr(Gather, "_issue", lambda _gather: None)
            return fork(space)

    monkeypatch.setattr(AddressSpace, "fork", hasty)
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.RIGHT, 0)
    assert found.edited.place.what in ("system call fork", "system call clone")
    assert "AddressSpace.fork" in str(found.edited)


def test_a_valid_entry_that_becomes_another_valid_one_is_found_on_arm64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, exchange = _Run("arm64", "replace"), PageTable.exchange

    def unbroken(table: PageTable, found: object, entry: int, flush: Callable[[], object]) -> None:
        if not run.late:
            exchange(table, found, entry, flush)  # type: ignore[arg-type]
            return
        table.write(found.start, found.level, found.slot, entry)  # type: ignore[attr-defined]
        flush()

    monkeypatch.setattr(PageTable, "exchange", unbroken)
    found = run.finding()
    assert (found.rule, found.section) == (Rule.BREAK, "Arm ARM R_WHZWS, R_DDMVT")
    assert found.edited.place.what.startswith("fault at 0x")
    assert f"{found.va:#x}"[:-3] in found.edited.place.what
    run = _Run("x86_64", "replace")  # there is no such rule
    run.late = True
    with run.machine:
        assert run.machine.run().status == 0


def test_an_entry_that_is_made_before_others_have_completed_its_break_is_found_on_arm64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, settle = _Run("arm64", "replace"), Tlb.settle
    monkeypatch.setattr(Tlb, "settle", lambda tlb: False if run.late else settle(tlb))
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.BREAK, 1)
    assert "page" in found.entry


@every_isa
def test_a_store_that_nobody_said_is_found_at_the_end(isa: str) -> None:
    run = _Run(isa, "protect", 1)
    machine = run.machine
    assert machine.run().status == 0
    process = machine.process
    assert process is not None
    space = process.mm
    run.sanitizer.check()
    slot = next(iter(space.leaf_tables.values()))
    used = slot + int(np.flatnonzero(machine.ram.array[slot : slot + 512])[0])
    machine.ram.words[used] ^= 2 if isa == "x86_64" else 1 << 7
    with pytest.raises(Unseen, match="unseen"):
        machine.close()


def test_flags_that_the_cpu_sets_are_no_edits() -> None:
    run = _Run("x86_64", "unmap", 1)
    with run.machine:
        assert run.machine.run().status == 0
        run.sanitizer.check()


@every_isa
def test_the_report_has_rule_address_entry_and_both_places(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, issue = _Run(isa, "protect"), Gather._issue
    monkeypatch.setattr(Gather, "_issue", lambda gather: None if run.late else issue(gather))
    found = run.finding()
    lines = found.report.splitlines()
    assert lines[0] == f"tlbsan: a program goes on with a translation that was taken away ({found.section})"
    assert lines[1].split() == ["address", f"{found.va:#x},", "frame", str(found.frame)]
    assert lines[2].startswith("  may hold    CPU 0: 0x")
    assert lines[3].startswith(
        "  edited      CPU 0, flushes (process 1000, task 1000): system call mprotect, at "
    )
    assert lines[4].startswith("  relied on   CPU 0, flushes (process 1000, task 1000): its program goes on")
    assert "\n" not in str(found)


@every_isa
def test_deferred_unmapping_may_go_on_and_lost_permissions_may_not(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keeps(gather: Gather) -> None:
        gather._release()  # nothing is flushed, and nothing given back

    finish = Gather.finish
    for kind, ends_well in (("unmap", True), ("protect", False)):
        run = _Run(isa, kind)
        run.sanitizer.deferred = True
        monkeypatch.setattr(
            Gather, "finish", lambda g, run=run, **k: keeps(g) if run.late else finish(g, **k)
        )
        if ends_well:
            run.machine.run()
            assert run.sanitizer.finding is None
            run.machine.abandon()
        else:
            assert run.finding().rule is Rule.RIGHT


@every_isa
@pytest.mark.parametrize("gets_a_task", [False, True])
def test_a_cpu_that_executes_nothing_may_hold_a_frame_until_it_does(
    isa: str, gets_a_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it wrong that it has been given a task when the frame goes back, and has not begun with it."""
    run, ask = _Run(isa, "discard"), Tlb._ask
    given_back, freed = False, run.sanitizer._freed

    def watched(frame: int) -> None:
        nonlocal given_back
        given_back = True
        freed(frame)
        assert run.sanitizer.finding is None  # but later
        given_back = False

    monkeypatch.setattr(run.sanitizer, "_freed", watched)
    run.sanitizer.idles = lambda cpu: cpu != 0 and not (gets_a_task and given_back)
    free = PageTable.free_tables  # tables must never be held, whatever a CPU executes: they stay here
    monkeypatch.setattr(PageTable, "free_tables", lambda *more: None if run.late else free(*more))
    monkeypatch.setattr(Tlb, "_ask", lambda tlb, *a, **k: None if run.late else ask(tlb, *a, **k))
    found = run.finding()
    assert (found.rule, found.cpu) == (Rule.REUSE, 1)
    assert found.relied.place.what == "system call madvise"  # where it was given back
    assert not given_back  # it was not said there


def test_nothing_is_wrapped_where_there_is_none() -> None:
    with Machine("x86_64", ram="64M") as machine:
        assert machine.tlbsan is None
        assert "free" not in machine.buddy.__dict__
        assert "flush_page" not in machine.cpu.__dict__
        assert isinstance(machine.computer.percpu[0], PerCpu)


@every_isa
def test_a_machine_goes_on_under_it_from_a_captured_state(isa: str) -> None:
    outputs = []
    machine = Machine(isa, ram="64M", seed=7, tlbsan=True)
    streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
    tour = Path(__file__).resolve().parents[2] / "guest" / "bin" / isa / "tour"
    machine.load(tour, ["tour"], streams=streams)
    assert machine.run_for(20_000) is None
    captured = state.capture(machine)
    begun = len(streams["stdout"].written)
    again = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
    for each, given in ((machine, streams), (state.restore(captured, streams=again), again)):
        assert isinstance(each.tlbsan, Sanitizer)
        with each:
            assert each.run().status == 0
            assert each.tlbsan.statistics()["stale_translations"] > 0
        outputs.append(bytes(given["stdout"].written))
    assert outputs[0][begun:] == outputs[1][-len(outputs[0]) + begun :]


@every_isa
def test_a_run_is_the_same_with_it_and_without(isa: str) -> None:
    told = []
    for tlbsan in (True, False):
        with Machine(isa, cpus=3, ram="64M", seed=9, tlbsan=tlbsan) as machine:
            streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
            machine.load(_PROGRAMS / isa / "flushes", ["flushes", "move"], streams=streams)
            stats.prepare(machine)
            assert machine.run().status == 0
            told.append((bytes(streams["stdout"].written), stats.collect(machine, 0)))
    (seen_output, seen), (output, alone) = told
    assert seen.pop("tlbsan")["stale_translations"] > 0
    assert "tlbsan" not in alone
    assert (seen_output, seen) == (output, alone)


@pytest.mark.parametrize(
    ("way", "program"),
    [("early", "flushes"), pytest.param("flushed", "shootdown", marks=pytest.mark.slow)],
)
def test_shootdowns_that_take_their_time_give_nothing_back_too_early(way: str, program: str) -> None:
    """A table is not acknowledged early; a frame waits for CPUs of other address spaces that showed it."""
    for seed in range(3):
        machine = Machine(
            "x86_64", cpus=4, ram="64M", seed=seed, tlbsan=True, shootdown=way, shootdown_delay=64
        )
        streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
        with machine:
            machine.load(_PROGRAMS / "x86_64" / program, [program], streams=streams)
            assert machine.run().status == 0


@pytest.mark.parametrize(
    ("isa", "program", "fault", "rules"),
    [
        ("x86_64", "flushes", "drop", {Rule.REUSE, Rule.RIGHT, Rule.TABLE}),
        ("x86_64", "flushes", "late", {Rule.REUSE, Rule.RIGHT, Rule.TABLE}),
        ("x86_64", "flushes", "narrow", {Rule.REUSE, Rule.RIGHT}),
        ("x86_64", "flushes", "free-early", {Rule.REUSE}),
        ("x86_64", "lazy", "no-wake", {Rule.REUSE}),
        ("arm64", "flushes", "no-break", {Rule.BREAK}),
        ("x86_64", "spaces", "reuse-tag", {Rule.TAG}),
    ],
)
def test_a_shootdown_that_goes_wrong_on_purpose_is_found(
    isa: str, program: str, fault: str, rules: set[Rule]
) -> None:
    for seed in (1, 2):
        machine = Machine(isa, cpus=3, ram="64M", seed=seed, tlbsan=True, tlb_fault=fault, shootdown_delay=64)
        streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
        machine.load(_PROGRAMS / isa / program, [program], streams=streams)
        try:
            with pytest.raises(Finding) as caught:
                machine.run()
        finally:
            machine.abandon()
        assert caught.value.rule in rules


_SWEEP = [
    (isa, cpus, program, way, delay, seed)
    for isa in ("x86_64", "arm64")
    for cpus in (2, 4)
    for program in ("flushes", "shootdown", "cpus", "threads")
    for way in ("flushed", "early", "deferred")
    for delay in (0, 64, 4000)
    for seed in range(1, 5)
]


@pytest.mark.slow
@pytest.mark.parametrize(("isa", "cpus", "program", "way", "delay", "seed"), _SWEEP)
def test_every_way_to_acknowledge_is_clean(
    isa: str, cpus: int, program: str, way: str, delay: int, seed: int
) -> None:
    machine = Machine(isa, cpus=cpus, ram="64M", seed=seed, tlbsan=True, shootdown=way, shootdown_delay=delay)
    out = BufferStream()
    streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
    with machine:
        machine.load(_PROGRAMS / isa / program, [program], streams=streams)
        ended = machine.run()
    lately = way == "deferred" and program == "shootdown"  # it may store late, and says so
    assert ended.status == 0 or (lately and bytes(out.written).endswith(b"stray 0, torn 0\n"))


@every_isa
def test_pages_that_go_together_are_looked_for_together(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that gives back thousands of pages would otherwise look through all its tables for each."""
    run, looks, look = _Run(isa, "unmap"), 0, Sanitizer.look

    def counted(self: Sanitizer) -> None:
        nonlocal looks
        looks += 1
        look(self)

    machine = run.machine
    assert machine.run_for(20) is None
    assert machine.process is not None
    space, cpu, counts = machine.process.mm, machine.kernel.cpus[0], list[int]()
    monkeypatch.setattr(Sanitizer, "look", counted)
    for pages in (4, 28):
        start, end = 0x10_0000_0000, 0x10_0000_0000 + pages * space.page_size
        space.insert(space.new_area(start, end, Protection.READ | Protection.WRITE))
        for page in range(start, end, space.page_size):
            cpu.copy_to_user(page, b"x")
        looks = 0
        space.unmap(start, end)
        counts.append(looks)
    machine.abandon()
    assert counts[0] == counts[1] > 0
