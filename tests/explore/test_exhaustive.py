"""Trying all interleavings: equivalent ones once, and the final states are those of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.explore.exhaustive import Ends, Exhaustive
from aether_emu.explore.search import Budget
from aether_emu.explore.trial import Job, Plan, perform
from tests.explore.jobs import job, orders, race
from tests.guests.running import ISAS
from tests.small_programs import DATA, written

# Two threads: each loads a word, adds one and stores it; the first ends the program with what it stored.
_THREAD = 0x50F00
_RACE = {
    "x86_64": f"""
        mov edi, {_THREAD}; mov esi, {DATA + 0x1000}; xor edx, edx; xor r10, r10; xor r8, r8
        mov eax, 56; syscall
        mov rbx, {DATA}
        mov rdx, rax
        mov rdi, [rbx]
        inc rdi
        mov [rbx], rdi
        mov eax, 231
        mov ecx, 60
        test rdx, rdx
        cmovz eax, ecx
        syscall
    """,
    "arm64": f"""
        mov x0, #{_THREAD & 0xFFFF}
        movk x0, #{_THREAD >> 16}, lsl #16
        mov x1, #{DATA + 0x10000 - 0x10000}
        add x1, x1, #0x1000
        mov x2, #0
        mov x3, #0
        mov x4, #0
        mov x8, #220
        svc #0
        mov x19, #{DATA}
        mov x20, x0
        ldr x0, [x19]
        add x0, x0, #1
        str x0, [x19]
        mov x8, #94
        cbnz x20, over
        mov x8, #93
    over:
        svc #0
    """,
}


def _all(of: Job, *, reduced: bool = True, budget: Budget | None = None) -> Ends:
    return Exhaustive(of, budget or Budget(), reduced=reduced).run()


@pytest.mark.parametrize("isa", ISAS)
def test_with_reduction_the_final_states_are_those_of_all_interleavings(isa: str, tmp_path: Path) -> None:
    of = job(written(tmp_path, isa, _RACE[isa]), isa)
    everything, reduced = _all(of, reduced=False), _all(of)
    assert everything.complete and reduced.complete
    assert set(everything.finals) == set(reduced.finals)
    assert len(everything.finals) >= 3
    assert reduced.runs < everything.runs
    assert everything.runs == 20  # of three steps and three


@pytest.mark.parametrize("isa", ISAS)
def test_a_lost_update_is_found_and_its_steps_replay_it(isa: str) -> None:
    of = orders(isa, "lost", "1")
    known = _all(of)
    assert known.complete and known.finding is not None and known.found_by is not None
    assert {final.stdout.begins for final in known.finals} == {b"2 of 2\n", b"1 of 2\n"}
    assert known.runs == 12 and known.abandoned == 0
    again = perform(of, Plan(schedule=known.found_by))
    assert (again.status, again.stdout.begins) == (1, b"1 of 2\n")


def test_a_message_is_read_whole_or_not_at_all() -> None:
    known = _all(orders("arm64", "message"))
    assert known.complete and known.finding is None
    assert {final.stdout.begins for final in known.finals} == {b"no message yet\n", b"the message is 42\n"}


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_petersons_lock_holds_in_every_interleaving_and_a_broken_one_does_not(isa: str) -> None:
    whole, broken = _all(orders(isa, "peterson")), _all(orders(isa, "broken"))
    assert whole.complete and whole.finding is None
    assert broken.complete and broken.finding is not None


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lost", "message"])
def test_more_final_states_agree_with_all_interleavings(what: str) -> None:
    of = orders("arm64", what)
    everything, reduced = _all(of, reduced=False), _all(of)
    assert set(everything.finals) == set(reduced.finals)
    assert reduced.runs * 10 < everything.runs


def test_a_budget_ends_it_with_an_estimate() -> None:
    known = _all(orders("arm64", "peterson"), budget=Budget(runs=10))
    assert not known.complete and known.runs == 10
    assert known.estimated > 10


def test_a_budget_of_seconds_ends_it_in_the_middle_of_a_run() -> None:
    known = _all(race("x86_64"), budget=Budget(seconds=0.05))
    assert not known.complete and known.runs == 0
