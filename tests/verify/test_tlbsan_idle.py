"""What TLBSan lets a CPU hold that had nothing to execute, and for how long: until it works again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.tlb import Tlb
from aether_emu.system import Machine
from aether_emu.verify.tlbsan import Finding
from aether_emu.verify.tlbsan.finding import Rule
from tests.verify.small_tables import PAGE, Tables

_PROGRAMS = Path(__file__).resolve().parents[1] / "programs" / "bin"
every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])


def _taken_away(isa: str, *numbers: int, idle: bool = True) -> Tables:
    """CPU 0 has taken pages away and dropped them, while CPU 1 had nothing to execute; or it had."""
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    sanitizer.idles = lambda cpu: idle and cpu == 1
    with tables.edit():
        for number in numbers:
            tables.put(3, number, 0)
    for number in numbers:
        sanitizer.flush_page(0, number * PAGE)
    return tables


@every_isa
def test_a_cpu_that_idles_may_hold_a_frame_and_drops_it_before_it_works(isa: str) -> None:
    tables = _taken_away(isa, 2, 3)
    sanitizer = tables.sanitizer
    sanitizer.freed_many(np.array([18, 19]))
    sanitizer.to_user(0)
    sanitizer.idles = lambda _cpu: False  # it gets a task, and catches up
    sanitizer.freed(18)
    for number in (2, 3):
        sanitizer.flush_page(1, number * PAGE)
    sanitizer.works(1)
    sanitizer.to_user(1)
    assert sanitizer.behind == []


@every_isa
@pytest.mark.parametrize("dropped", [(), (2,)])
def test_it_must_have_caught_up_when_it_works_for_the_kernel_alone(
    isa: str, dropped: tuple[int, ...]
) -> None:
    """Its kernel might copy to or from the program's memory by what it holds; no program need go on."""
    tables = _taken_away(isa, 2, 3)
    sanitizer = tables.sanitizer
    sanitizer.freed_many(np.array([18, 19]))
    for number in dropped:
        sanitizer.flush_page(1, number * PAGE)
    with pytest.raises(Finding) as caught:
        sanitizer.works(1)
    first = 3 if dropped else 2
    found = caught.value
    assert (found.rule, found.cpu, found.va, found.frame) == (Rule.REUSE, 1, first * PAGE, 16 + first)


@every_isa
def test_what_has_not_gone_back_is_no_matter_of_reuse(isa: str) -> None:
    """Of two pages one went, and that one was dropped: the other is judged as a lost right."""
    tables = _taken_away(isa, 2, 3)
    sanitizer = tables.sanitizer
    sanitizer.freed(18)
    sanitizer.flush_page(1, 2 * PAGE)
    sanitizer.to_user(0)
    sanitizer.works(1)
    with pytest.raises(Finding) as caught:
        sanitizer.to_user(1)
    assert (caught.value.rule, caught.value.va) == (Rule.RIGHT, 3 * PAGE)


@every_isa
def test_who_executed_when_a_page_went_may_not_hold_its_frame_even_if_it_idles_later(isa: str) -> None:
    tables = _taken_away(isa, 2, idle=False)
    tables.sanitizer.idles = lambda cpu: cpu == 1
    with pytest.raises(Finding) as caught:
        tables.sanitizer.freed(18)
    assert (caught.value.rule, caught.value.cpu) == (Rule.REUSE, 1)


@every_isa
def test_who_woke_without_catching_up_is_spared_no_more_when_it_idles_again(isa: str) -> None:
    tables = _taken_away(isa, 2)
    sanitizer = tables.sanitizer
    sanitizer.works(1)  # the frame has not gone yet
    sanitizer.works(0)
    with pytest.raises(Finding) as caught:
        sanitizer.freed(18)
    assert (caught.value.rule, caught.value.cpu) == (Rule.REUSE, 1)


@every_isa
def test_a_table_is_never_left_to_a_cpu_that_idles(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    sanitizer.idles = lambda cpu: cpu == 1
    with tables.edit():
        for number in range(8):
            tables.put(3, number, 0)
        tables.put(2, 0, 0)
    sanitizer.flush_all(0)
    with pytest.raises(Finding) as caught:
        sanitizer.freed(3)
    assert (caught.value.rule, caught.value.cpu) == (Rule.TABLE, 1)


@every_isa
def test_a_flag_that_went_before_it_fell_asleep_was_no_reason_to_ask_it(isa: str) -> None:
    """It had something to execute when the page lost its accessed flag, and nothing when it went."""
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        old = tables.leaf(18) & ~(1 << 5 if isa == "x86_64" else 1 << 10)
        tables.put(3, 2, old)
    sanitizer.flush_page(0, 2 * PAGE)
    sanitizer.to_user(0)
    sanitizer.idles = lambda cpu: cpu == 1
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * PAGE)
    sanitizer.freed(18)
    with pytest.raises(Finding):
        sanitizer.works(1)


@every_isa
def test_who_has_said_that_it_flushes_may_hold_a_frame_until_it_has(isa: str) -> None:
    for flushes in (True, False):
        tables = _taken_away(isa, 2, idle=False)
        sanitizer = tables.sanitizer
        sanitizer.acknowledging.append(1)
        sanitizer.freed(18)
        sanitizer.acknowledging.pop()
        if flushes:
            sanitizer.flush_page(1, 2 * PAGE)
            sanitizer.works(1)
            assert sanitizer.behind == []
        else:
            with pytest.raises(Finding) as caught:
                sanitizer.works(1)
            assert caught.value.rule is Rule.REUSE


def _run(program: str, way: str = "flushed", *, seed: int = 1, **more: Any) -> Machine:
    options = more | {"seed": seed, "shootdown": way, "shootdown_delay": 64}
    machine = Machine("x86_64", cpus=3, ram="64M", tlbsan=True, **options)
    streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
    machine.load(_PROGRAMS / "x86_64" / program, [program], streams=streams)
    return machine


@pytest.mark.parametrize("way", ["flushed", "early", "deferred"])
def test_threads_that_sleep_on_cpus_of_their_own_are_clean(way: str) -> None:
    """As the idle threads of Go's scheduler do, while another one gives memory back."""
    for seed in (1, 2):
        with _run("lazy", way, seed=seed) as machine:
            assert machine.run().status == 0
            assert machine.physical.tlb.way.lazily > 0


def test_a_wake_up_that_forgets_one_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    remember = Tlb._remember

    def forgetful(tlb: Tlb, index: int, pages: list[int] | None) -> None:
        remember(tlb, index, pages if pages is None else pages[:-1])

    monkeypatch.setattr(Tlb, "_remember", forgetful)
    machine = _run("lazy")
    try:
        with pytest.raises(Finding) as caught:
            machine.run()
    finally:
        machine.abandon()
    assert caught.value.rule in (Rule.REUSE, Rule.RIGHT)
    assert caught.value.cpu != 0


def test_a_cpu_that_acknowledges_early_and_then_forgets_to_flush_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop_pages = Tlb._drop_pages

    def forgetful(tlb: Tlb, index: int, pages: list[int], *, counts: bool = True) -> None:
        drop_pages(tlb, index, pages if index == tlb.running else [], counts=counts)

    monkeypatch.setattr(Tlb, "_drop_pages", forgetful)
    machine = _run("flushes", "early")
    try:
        with pytest.raises(Finding) as caught:
            machine.run()
    finally:
        machine.abandon()
    assert caught.value.rule in (Rule.REUSE, Rule.RIGHT)


def test_memory_that_goes_before_anybody_has_acknowledged_early_is_found_at_once() -> None:
    """Early acknowledgement spares the CPU that flushes next, not those that go on with what they hold."""
    machine = _run("flushes", "early", tlb_fault="free-early")
    try:
        with pytest.raises(Finding) as caught:
            machine.run()
    finally:
        machine.abandon()
    assert caught.value.rule is Rule.REUSE
    assert "_freed" in {entry.name for entry in caught.traceback}  # not when the other CPU works again
