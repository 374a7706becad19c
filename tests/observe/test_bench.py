"""The benchmarks' arithmetic, and that each side of each figure does the work that it is timed for."""

from __future__ import annotations

import gc
import io
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from aether_emu.cli.bench import measure_all
from aether_emu.errors import ConfigError, ProgramError
from aether_emu.linux.files.pipe import Pipe
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.scheduler import Scheduler
from aether_emu.linux.task.signals import TaskSignals
from aether_emu.linux.task.task import Task
from aether_emu.machine.floors import bare as floors
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.batch import Batch
from aether_emu.mm.compaction import Compaction
from aether_emu.mm.counters import Event
from aether_emu.mm.reclaim import Reclaim
from aether_emu.mm.tables import page
from aether_emu.observe.bench import (
    batch,
    calls,
    catalogue,
    edits,
    execution,
    faults,
    growth,
    guests,
    hugepages,
    migrate,
    real,
    report,
    shootdown,
    startup,
    swap,
    switching,
    tables,
)
from aether_emu.observe.bench.figure import (
    BenchError,
    Figure,
    NotMeasured,
    Result,
    collector_off,
    measure,
)
from aether_emu.system import Machine

ISA = "x86_64"

on_each_isa = pytest.mark.parametrize("isa", guests.ABIS)


def _figure(
    ours: Callable[[], float] = lambda: 1.0,
    floor: Callable[[], float] = lambda: 1.0,
    *,
    repetitions: int = 1,
    goal: float = 3.0,
) -> Figure:
    return Figure(
        "name", ISA, "what is done", "program 5", "the floor", "unit", ours, floor, repetitions, goal
    )


# ---- figures


def test_the_sides_take_turns_and_the_ratio_is_the_median_of_the_pairs_ratios() -> None:
    order: list[str] = []
    times: dict[str, Iterator[float]] = {"ours": iter([2.0, 9.0, 8.0]), "floor": iter([1.0, 3.0, 1.0])}

    def side(name: str) -> Callable[[], float]:
        def once() -> float:
            order.append(name)
            return next(times[name])

        return once

    result = measure(_figure(side("ours"), side("floor"), repetitions=3), lambda: order.append("step"))
    assert order == ["ours", "floor", "step"] * 3
    assert result.pairs == ((2.0, 1.0), (9.0, 3.0), (8.0, 1.0))
    assert (result.ratios, result.ratio) == ([2.0, 3.0, 8.0], 3.0)
    assert (result.ours, result.floor) == (8.0, 1.0), "medians of each side"


@pytest.mark.parametrize(("ours", "met"), [(2.9, True), (3.0, True), (3.1, False)])
def test_a_goal_is_met_up_to_the_ratio_it_names(ours: float, met: bool) -> None:
    assert Result(_figure(goal=3.0), ((ours, 1.0),)).met is met


def test_a_side_that_takes_no_time_did_nothing() -> None:
    with pytest.raises(BenchError, match="name/x86_64: no time passed"):
        measure(_figure(floor=lambda: 0.0))


def test_the_collector_is_off_only_while_the_clock_runs() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"), collector_off():
        assert not gc.isenabled()
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_off():
            pass
        assert not gc.isenabled(), "the caller's setting stays"
    finally:
        gc.enable()


# ---- what the sides do


@on_each_isa
def test_a_round_without_faults_is_taken_off_a_round_with_faults(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 107.0, 109.0])
    monkeypatch.setattr(faults, "now", lambda: next(clock))
    mmap, madvise, write = guests.numbers(isa, "mmap", "madvise", "write")
    asked: list[int] = []

    def kernel(number: int, *_: int) -> int:
        asked.append(number)
        return 5

    windows = faults.Windows(isa, kernel)
    answers = [windows(number, 0, 0, 0, 0, 0, 0) for number in (write, mmap, madvise, madvise, write)]
    assert answers == [5, 5, 0, 0, 5]
    assert asked == [write, mmap, write], "madvise must not reach the kernel: the pages stay"
    assert windows.per_fault(10) == pytest.approx((7.0 - 2.0) / 10)
    windows.marks.pop()
    with pytest.raises(BenchError, match="2 marks"):
        windows.per_fault(10)


@on_each_isa
@pytest.mark.parametrize("resident", [False, True])
def test_both_sides_of_a_fault_figure_fault_once_for_each_page(
    resident: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[Ram] = []
    monkeypatch.setattr(faults, "_touch", touched.append)
    figure = faults.figure(isa, 4.0, resident=resident, pages=64)
    assert figure.program == "touch 64 2"
    figure.ours()
    figure.floor()  # compares the outputs, and that no prepared entry is left
    assert len(touched) == (2 if resident else 0)


@on_each_isa
def test_a_machine_that_does_not_fault_is_not_measured(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "Event", SimpleNamespace(FAULT_DEMAND_ZERO=Event.FAULT_BUS))
    with pytest.raises(BenchError, match="fewer faults than pages"):
        faults.figure(isa, 4.0, pages=64).ours()


def test_touching_makes_memory_resident_and_keeps_it() -> None:
    ram = Ram(0, 64 * floors.PAGE, floors.PAGE)
    ram.words[5] = 77
    assert ram.resident_bytes() == floors.PAGE
    faults._touch(ram)
    assert (ram.resident_bytes(), ram.words[5]) == (ram.size, 77)
    ram.close()


@on_each_isa
def test_every_call_of_a_call_figure_is_made(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = calls.figure(isa, 3.0, calls=50)
    assert figure.program == "getppid 50"
    figure.ours()
    figure.floor()
    monkeypatch.setattr(guests.Loaded, "output", b"31\n")  # hexadecimal: 49
    with pytest.raises(BenchError, match="of 50 calls"):
        figure.ours()


@on_each_isa
@pytest.mark.parametrize(
    "work",
    [
        execution.Work("alu", "", "alu", (1,), (20,)),
        execution.Work("stream", "", "stream", (1, 1), (1, 2), 1 << 20),
        execution.Work("stream-paged", "", "stream", (1, 1), (1, 2), 1 << 20, paged=True),
        execution.Work("randload", "", "randload", (1, 1), (1, 50), 1 << 20),
    ],
    ids=lambda work: work.name,
)
def test_both_sides_of_an_execution_figure_compute_the_same(
    work: execution.Work, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = execution.figure(isa, work, 1.0)
    assert (figure.name, figure.isa) == (f"exec-{work.name}", isa)
    assert ("page tables" in figure.floor_is) is work.paged
    other = guests.FLAT if work.paged else guests.PAGED
    monkeypatch.delitem(other, isa)
    figure.ours()
    figure.floor()  # compares the outputs


def test_the_measured_works_are_the_ones_with_goals_and_ask_for_enough_memory() -> None:
    assert [f"exec-{work.name}" for work in execution.WORKS] == list(catalogue.GOALS["exec"])
    for work in execution.WORKS:
        assert len(work.little) == len(work.much)
        assert work.memory == (work.much[0] << 20 if len(work.much) == 2 else 0)


def test_stores_have_a_floor_of_the_same_work_whose_data_cannot_be_executed() -> None:
    flat, paged = (work for work in execution.WORKS if work.program == "stream")
    assert (flat.paged, paged.paged) == (False, True)
    assert (flat.little, flat.much) == (paged.little, paged.much)


def test_outputs_that_differ_are_refused() -> None:
    guests.same_output("p", b"1\n", b"1\n")
    for ours, floor in ((b"1\n", b"2\n"), (b"", b"")):
        with pytest.raises(BenchError, match="p: printed"):
            guests.same_output("p", ours, floor)


@on_each_isa
def test_a_map_figure_maps_every_page_and_its_floor_stores_as_many_tables(
    isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = tables.figure(isa, 5.0, length=8 << 20)
    assert "2,048 entries" in figure.what
    assert figure.floor_is == "4 numpy stores of 4 KiB"
    figure.ours()
    rams: list[Ram] = []

    class Kept(Ram):
        def close(self) -> None:
            rams.append(self)

    monkeypatch.setattr(tables, "Ram", Kept)
    figure.floor()
    (ram,) = rams
    assert ram.resident_bytes() == 4 * floors.PAGE, "before anything is read"
    assert int((ram.array != 0).sum()) == 2048
    Ram.close(ram)
    monkeypatch.setattr(page.PageTable, "map", lambda *_: None)
    with pytest.raises(BenchError, match="last page is not mapped"):
        figure.ours()


@on_each_isa
@pytest.mark.parametrize("name", ["switch-threads", "switch-processes", "process", "signal", "pipe"])
def test_the_kernel_does_the_work_that_is_timed(isa: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noting(owner: type, method: str) -> None:
        truly = getattr(owner, method)

        def noted(*arguments: object) -> object:
            done.append(method)
            return truly(*arguments)

        monkeypatch.setattr(owner, method, noted)

    noting(Task, "enter")
    noting(TaskSignals, "go_back")
    noting(Pipe, "take")
    noting(Process, "release")
    figure = switching.figure(isa, name, 5.0, times=6)
    assert figure.ours() > 0
    expected = {"signal": "go_back", "pipe": "take", "process": "release"}.get(name, "enter")
    assert done.count(expected) >= 6
    done.clear()
    assert figure.floor() > 0
    assert done.count(expected) < 6


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_growth_measures_the_same_work_twice(isa: str) -> None:
    for name in ("protect", "move", "unmap", "fork"):
        figure = growth.figure(isa, name, 1.5, large=128 << 20, repetitions=1)
        assert figure.ours() > 0 < figure.floor()
    for figure in (growth.page(isa, 1.5, large=64 << 20), growth.sparse(isa, 1.3, repetitions=1)):
        assert figure.ours() > 0 < figure.floor()


@on_each_isa
@pytest.mark.parametrize("name", ["protect", "protect-exec", "move", "unmap", "fork"])
def test_both_sides_of_an_edit_make_the_same_entries(
    isa: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = edits.figure(isa, name, 5.0, length=8 << 20)
    assert "2,048" in figure.what
    assert figure.floor_is.startswith("4 numpy")
    assert figure.ours() > 0
    assert figure.floor() > 0
    work = replace(edits.WORKS[name], ours=lambda _mapped: None)
    monkeypatch.setitem(cast("dict[str, object]", edits.WORKS), name, work)
    figure = edits.figure(isa, name, 5.0, length=8 << 20)
    figure.ours()
    with pytest.raises(BenchError, match="different"):
        figure.floor()


@on_each_isa
@pytest.mark.parametrize("name", ["protect", "unmap", "populate"])
def test_a_batch_is_measured_with_what_one_by_one_takes(
    isa: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = batch.figure(isa, name, 5.0, pages=64)
    assert "64 operations" in figure.what
    assert figure.ours() > 0 < figure.floor()
    assert figure.shares()["one by one"] > 0
    assert figure.shares() is figure.shares(), "measured once"
    monkeypatch.setattr(Batch, "__exit__", lambda *_: None)
    with pytest.raises(BenchError, match="not as they were to be"):
        figure.ours()


@on_each_isa
def test_a_range_is_populated_by_both_sides(isa: str) -> None:
    figure = batch.populated(isa, 5.0, pages=2048)
    assert "2,048" in figure.what
    assert figure.ours() > 0 < figure.floor()


@on_each_isa
def test_compaction_moves_the_pages_that_are_timed(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_ROWS", 2)
    monkeypatch.setattr(migrate, "_MEMORY", 16 << 20)
    figure = migrate.figure(isa, 30.0)
    assert figure.ours() > 0 < figure.floor()
    assert migrate.growth(isa, 1.3).ours() > 0
    monkeypatch.setattr(Compaction, "make", lambda _self, _order: None)
    with pytest.raises(BenchError, match="0 pages moved"):
        figure.ours()


@on_each_isa
def test_pages_go_to_swap_and_come_back(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_PAGES", 600)
    figure = swap.figure(isa, 4.0)
    assert "600" in figure.what
    assert figure.ours() > 0
    assert figure.floor() > 0
    assert swap.growth(isa, 1.3).ours() > 0
    monkeypatch.setattr(Reclaim, "take", lambda _self, _frames: 0)
    with pytest.raises(BenchError, match="did not go"):
        figure.ours()


def test_a_child_finds_the_package_and_may_keep_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    program = "import sys, aether_emu; assert not sys.dont_write_bytecode"
    assert startup.cpu_seconds(("-c", program)) > 0


def test_a_child_that_fails_is_not_measured() -> None:
    with pytest.raises(BenchError, match="ValueError: why"):
        startup.cpu_seconds(("-c", "raise ValueError('why')"))
    with pytest.raises(BenchError, match="exit status 3"):
        startup.cpu_seconds(("-c", "raise SystemExit(3)"))


@on_each_isa
def test_a_start_figure_warms_each_side_once(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def child(arguments: tuple[str, ...]) -> float:
        ran.append("ours" if arguments[-2:] == ("run", str(guests.path_of(isa, "hello"))) else "floor")
        return 1.0

    monkeypatch.setattr(startup, "cpu_seconds", child)
    figure = startup.figure(isa, 1.4, repetitions=2)
    measure(figure)
    assert ran == ["ours", "ours", "floor", "floor", "ours", "floor"]


# ---- several CPUs


@on_each_isa
@pytest.mark.parametrize("cpus", [1, 3])
def test_every_cpu_flushes_on_both_sides_of_a_shootdown(
    isa: str, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    with Machine(isa) as machine:
        engine = type(machine.cpu)
    flush = engine.flush_page

    def counted(self: Any, va: int) -> None:
        flushed.append(va)
        flush(self, va)

    monkeypatch.setattr(engine, "flush_page", counted)
    figure = shootdown.figure(isa, cpus, 5.0, flushes=1)
    assert figure.ours() > 0
    assert len([va for va in flushed if va == max(set(flushed), key=flushed.count)]) >= 10 * cpus
    flushed.clear()
    assert figure.floor() > 0
    assert len(flushed) == 10 * cpus
    assert len(set(flushed)) == 1


@on_each_isa
def test_slices_are_cut_on_our_side_alone(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int | None] = []
    run = Scheduler.run

    def counted(self: Scheduler, budget: int | None = None) -> bool:
        runs.append(budget)
        return run(self, budget)

    monkeypatch.setattr(Scheduler, "run", counted)
    figure = shootdown.slices(isa, "slices-loop", 3.0, share=1000)
    assert figure.ours() > 0
    assert runs == [shootdown.SLICE] * 3
    runs.clear()
    assert figure.floor() > 0
    assert runs == [None]
    runs.clear()
    figure = shootdown.slices(isa, "slices-counted", 3.0, share=1000)
    assert figure.ours() > 0 < figure.floor()
    assert runs[:3] == [shootdown.SLICE] * 3
    assert len(runs) == 4 and (runs[3] or 0) > 1 << 30


# ---- programs of the host


def test_pythons_own_program_is_found_for_its_isa_alone() -> None:
    isa = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]
    other = next(each for each in guests.ABIS if each != isa)
    assert Path(real.find("python3", isa)).samefile(sys.executable)
    with pytest.raises(NotMeasured, match=f"the host's is for {isa}"):
        real.find("python3", other)
    with pytest.raises(NotMeasured, match="not on this host"):
        real.find("no-such-program", isa)


def test_a_script_is_no_program_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotMeasured, match="not on this host"):
        real.find("tool", ISA)


HELLO = real.Work("hello", "says hello", ("a", "b"))


@on_each_isa
def test_the_two_runs_of_a_program_print_the_same_and_count_as_they_should(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[bool] = []

    class Watched(Machine):
        def close(self) -> None:
            counted.append(self.cpu.blocks > 0)
            super().close()

    monkeypatch.setattr(real, "Machine", Watched)
    path, work = str(guests.path_of(isa, "clock")), real.Work("clock", "reads clocks", ())
    runs = [real.run(isa, path, work, counting=counting) for counting in (True, False)]
    assert len({run.output for run in runs}) == 1
    assert runs[0].output
    assert counted == [True, False]
    for run in runs:
        assert min(run.faults, run.calls, run.scan, run.engine, run.start) > 0
        assert run.total == pytest.approx(run.engine + run.faults + run.calls + run.scan)


@on_each_isa
def test_a_real_figure_compares_a_whole_run_with_the_engines_share_of_it(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    printed = dict.fromkeys((True, False), b"out")
    disturbed = dict.fromkeys(printed, 0)

    def run(*_: object, counting: bool = True) -> real.Timed:
        asked.append(counting)
        total = 3.0 + 2 * counting + disturbed[counting]
        return real.Timed(total, 0.5, 0.25, 1.25, 0.125, printed[counting])

    monkeypatch.setattr(real, "find", lambda name, of: f"/{name}/{of}")
    monkeypatch.setattr(real, "run", run)
    figure = real.figure(isa, HELLO, 1.15, repetitions=2)
    result = measure(figure)
    assert asked == [True, *[True, False] * 2], "a first run for warmth"
    assert result.pairs == ((5.0, 3.0),) * 2
    shares = {
        "engine": 1,
        "counting": 2,
        "scan": 1.25,
        "faults": 0.5,
        "system calls": 0.25,
        "start, apart": 0.125,
    }
    assert figure.shares() == shares
    data = report.as_data([result], {}, {"other/isa": "why"})
    assert data["figures"][0]["shares"] == shares
    assert data["not_measured"] == {"other/isa": "why"}
    console = Console(width=200, file=io.StringIO())
    console.print(report.as_table([result]))
    assert isinstance(console.file, io.StringIO)
    assert "engine 1 s, counting 2 s, scan 1.25 s, faults 500 ms" in console.file.getvalue()
    disturbed[True] = 7
    assert measure(figure).pairs == ((12.0, 10.0),) * 2, "a disturbed run is compared with itself"
    assert figure.shares()["counting"] == 2, "that of the quickest runs"
    disturbed[True] = 0
    printed[False] = b"else"
    with pytest.raises(BenchError, match="hello: printed"):
        measure(figure)


def test_a_program_that_ends_otherwise_or_does_not_start_is_left_out() -> None:
    path = guests.path_of(ISA, "hello")
    with pytest.raises(NotMeasured, match="status 0"):
        real.run(ISA, str(path), replace(HELLO, status=1))
    with pytest.raises(NotMeasured, match="no-such-file"):
        real.run(ISA, str(path.with_name("no-such-file")), HELLO)


def test_figures_that_cannot_be_measured_here_do_not_stop_the_others() -> None:
    def absent() -> float:
        raise NotMeasured("not on this host")

    results: list[Result] = []
    left_out: dict[str, str] = {}
    measure_all([_figure(ours=absent), replace(_figure(), name="next")], results, left_out)
    assert [result.figure.label for result in results] == [f"next/{ISA}"]
    assert left_out == {f"name/{ISA}": "not on this host"}


# ---- guests


def test_a_missing_guest_program_is_named() -> None:
    with pytest.raises(ProgramError, match="checkout") as refused:
        guests.path_of(ISA, "nonesuch")
    assert refused.value.exit_status == 127


@on_each_isa
def test_the_least_kernel_knows_its_calls_and_no_more(isa: str) -> None:
    mmap, write, leave = guests.numbers(isa, "mmap", "write", "exit_group")
    kernel = guests.LeastKernel(isa, lambda address, length: b"%d+%d" % (address, length))
    assert kernel(mmap, 0, 5000, 0, 0, 0, 0) == floors.FREE
    assert kernel(mmap, 0, 1, 0, 0, 0, 0) == floors.FREE + 2 * floors.PAGE
    assert kernel(write, 1, 40, 7, 0, 0, 0) == 7
    assert kernel.output == b"40+7"
    assert kernel(leave, 0, 0, 0, 0, 0, 0) is None
    with pytest.raises(BenchError, match="40\\+7"):
        kernel(leave, 1, 0, 0, 0, 0, 0)
    with pytest.raises(BenchError, match="system call 4096"):
        kernel(4096, 0, 0, 0, 0, 0, 0)


@on_each_isa
def test_a_program_that_fails_on_the_machine_is_not_measured(isa: str) -> None:
    with guests.on_machine(isa, "alu", ()) as loaded, pytest.raises(BenchError, match="status 1"):
        loaded.run()


# ---- catalogue and report


def _labels(*names: str) -> list[str]:
    return [figure.label for figure in catalogue.figures(names)]


@on_each_isa
@pytest.mark.parametrize("name", ["collapse", "split"])
def test_both_sides_of_a_huge_page_do_their_work(isa: str, name: str) -> None:
    figure = catalogue.figures([f"{name}/{isa}"])[0]
    assert figure.ours() > 0
    assert figure.floor() > 0
    assert hugepages.growth(isa, name, 1.3).ours() > 0


def test_a_name_means_its_figures_on_every_isa_and_none_means_all() -> None:
    both = [f"{name}/{isa}" for name in (*catalogue.GOALS["exec"], "map") for isa in ("x86_64", "arm64")]
    assert _labels("map", "exec") == both
    assert _labels() == _labels(*catalogue.GOALS)
    names = (
        "fault syscall exec map unmap protect move fork populate batch growth swap collapse split migrate "
        "switch process signal pipe start shootdown cpus"
    )
    assert list(catalogue.GOALS) == [*names.split(), "real", "tlbsan"]


def test_the_documentation_has_a_line_for_each_name() -> None:
    page = (guests.SOURCE_TREE / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(catalogue.GOALS)
    for work in real.WORKS:
        assert work.name in page


def test_a_name_with_an_isa_means_its_figures_there() -> None:
    assert _labels("fault/arm64") == ["fault/arm64", "fault-resident/arm64"]
    assert _labels("map", "start/x86_64", "map/arm64") == ["map/x86_64", "map/arm64", "start/x86_64"]


def test_a_figure_has_the_same_goal_on_every_isa() -> None:
    goals = {name: goal for group in catalogue.GOALS.values() for name, goal in group.items()}
    for isa in guests.ABIS:
        found = {figure.name: figure.goal for figure in catalogue.figures() if figure.isa == isa}
        assert found == goals


def test_unknown_names_are_refused() -> None:
    for name in ("walk", "walk/arm64", "arm64", "map/vax", "map/", "/arm64", "map/arm64/x86_64", ""):
        with pytest.raises(ConfigError, match=f"benchmark='{name}'") as refused:
            catalogue.figures(["fault", name])
        for words in (
            "fault, syscall, exec, map, unmap, protect, move, fork, populate, batch, growth, swap, collapse, "
            "split, migrate, switch, process, signal, pipe, start, shootdown, cpus",
            "cpus, real, tlbsan",
            "/x86_64 or /arm64",
        ):
            assert words in str(refused.value)


def test_json_holds_every_pair_and_the_versions() -> None:
    result = Result(_figure(), ((4e-6, 1e-6), (2e-6, 1e-6), (6e-6, 1e-6)))
    data = json.loads(report.as_json(report.as_data([result], report.versions("1.2.3"))))
    assert data["versions"]["aether_emu"] == "1.2.3"
    assert all(data["versions"][name] for name in ("python", "unicorn", "numpy"))
    (row,) = data["figures"]
    assert row["pairs"] == [[4e-6, 1e-6], [2e-6, 1e-6], [6e-6, 1e-6]]
    assert row["ratio"] == {"median": 4.0, "min": 2.0, "max": 6.0}
    named = {key: row[key] for key in ("name", "isa", "what", "program", "floor_is", "unit", "goal", "met")}
    assert named == {
        "name": "name",
        "isa": ISA,
        "what": "what is done",
        "program": "program 5",
        "floor_is": "the floor",
        "unit": "unit",
        "goal": 3.0,
        "met": False,
    }
    assert (row["ours"], row["floor"]) == (4e-6, 1e-6)


def test_the_table_says_what_program_and_whether_the_target_is_met() -> None:
    missed = Result(_figure(goal=3.0), ((4e-6, 1e-6),))
    met = Result(_figure(goal=5.0), ((4e-6, 1e-6),))
    console = Console(width=120, file=io.StringIO())
    console.print(report.as_table([missed, met]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for words in (
        "what is done",
        "name/x86_64",
        "program 5",
        "floor: the floor",
        "4 us",
        "1 us",
        "4.00..4.00",
    ):
        assert text.count(words) == 2, words
    assert text.index("MISSED") < text.index("met")
    assert "<= 3" in text
    assert "<= 5" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (2.5, "2.5 s"), (0.4567, "457 ms"), (1e-3, "1 ms"), (2.345e-6, "2.35 us"), (3.2e-8, "32 ns")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
