"""Straight code that runs into a page which cannot be fetched: all before it happens, and the pc is exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.arch.paging import Access
from aether_emu.arch.x86_64 import registers as regs
from aether_emu.machine.cpu import ExitReason, TrapKind
from tests.machine.unicorn.bare_x86 import (
    ANY,
    CODE,
    CODE2,
    DATA,
    READ_EXECUTE,
    READ_ONLY,
    READ_WRITE,
    TOP,
    BareX86,
)
from tests.machine.unicorn.flat_guest import assemble

ABSENT = 0x1234_5000
FETCH, PRESENT = int(Access.USER | Access.EXECUTE), int(Access.PRESENT)
INCREMENT = bytes.fromhex("ff07")  # inc dword ptr [rdi]
NOP = b"\x90"


@pytest.fixture(params=[True, False], ids=["live state", "state by API"])
def bare(request: pytest.FixtureRequest) -> Iterator[BareX86]:
    made = BareX86(request.param)
    made.words[made.slot(CODE2)] = 0
    made.cpu.flush_all()
    made["rdi"], made["rsi"] = DATA, ABSENT
    yield made
    made.cpu.close()


def counted(bare: BareX86) -> int:
    return bare.words[bare.data >> 3]


def at_the_end(bare: BareX86, code: bytes, *, budget: int | None = None) -> ExitReason:
    """Run code whose last byte is the last of its page."""
    return bare.run(code, at=CODE2 - len(code), budget=budget).reason


@pytest.mark.parametrize("length", [2, 3, 64, 511, 512, 513, 4096])
def test_what_comes_before_the_page_happens_once(bare: BareX86, length: int) -> None:
    at_the_end(bare, INCREMENT + NOP * (length - 2))
    assert bare.faults == [(CODE2, FETCH, CODE2)]
    assert counted(bare) == 1


@pytest.mark.parametrize("next_page", [READ_WRITE, READ_ONLY])
def test_a_page_that_may_not_be_executed_is_like_an_absent_one(bare: BareX86, next_page: int) -> None:
    bare.map(CODE2, next_page)
    at_the_end(bare, INCREMENT + NOP * 20)
    assert bare.faults == [(CODE2, FETCH | PRESENT, CODE2)]
    assert counted(bare) == 1


def test_a_fault_of_earlier_code_comes_first(bare: BareX86) -> None:
    at_the_end(bare, INCREMENT + assemble("mov rax, [rsi]") + NOP * 20)
    assert bare.faults == [(ABSENT, int(Access.USER | Access.READ), CODE2 - 23)]
    assert counted(bare) == 1


@pytest.mark.parametrize("source", ["div ecx", "ud2", "int3", "hlt", "in al, dx", "rdrand eax", "syscall"])
def test_another_exception_or_a_call_of_earlier_code_comes_first(bare: BareX86, source: str) -> None:
    bare["rcx"] = 0
    at_the_end(bare, INCREMENT + assemble(source) + NOP * 20)
    events = len(bare.traps) + len(bare.calls)
    assert (events, bare.faults) == ((0, [(CODE2, FETCH, CODE2)]) if source == "rdrand eax" else (1, []))
    assert counted(bare) == 1


@pytest.mark.parametrize(
    "cut",
    [
        assemble("mov eax, 0x11223344")[:3],
        assemble("movabs rax, 0x1122334455667788")[:1],
        bytes.fromhex("66f30f"),
        b"\x66" * 8,
        b"\x66" * 15,
        b"\x0f",
        b"\xc5\xf1",
    ],
    ids=bytes.hex,
)
def test_an_instruction_that_the_page_cuts_is_where_the_fault_is(bare: BareX86, cut: bytes) -> None:
    at_the_end(bare, INCREMENT + NOP * 5 + cut)
    assert bare.faults == [(CODE2, FETCH, CODE2 - len(cut))]
    assert counted(bare) == 1


def test_an_instruction_that_is_too_long_in_its_own_page_needs_no_other(bare: BareX86) -> None:
    at_the_end(bare, INCREMENT + b"\x66" * 15 + NOP)
    assert [(trap.kind, pc) for trap, pc in bare.traps] == [(TrapKind.PROTECTION, CODE2 - 16)]
    assert (counted(bare), bare.faults) == (1, [])


def test_a_page_that_comes_is_fetched_in_its_turn(bare: BareX86) -> None:
    seen: list[tuple[int, int, int]] = []

    def bring(va: int, access: int) -> None:
        seen.append((va, access, bare.cpu.pc))
        bare.fill(bare.map(va & -4096, READ_EXECUTE if access == FETCH else READ_WRITE), b"\x0f\x05")

    bare.cpu.on_fault = bring
    at_the_end(bare, INCREMENT + assemble("mov [rsi], rax") + NOP * 20)
    assert [(va, pc - CODE2) for va, _access, pc in seen] == [(ABSENT, -23), (CODE2, 0)]
    assert bare.calls == [(0, CODE2 + 2)]
    assert counted(bare) == 1


def test_a_handler_of_an_earlier_fault_decides_about_the_page(bare: BareX86) -> None:
    seen: list[int] = []

    def repair(va: int, _access: int) -> None:
        seen.append(va)
        bare.map(ABSENT, READ_WRITE)
        bare.fill(bare.map(CODE2, READ_EXECUTE), b"\x0f\x05")

    bare.cpu.on_fault = repair
    at_the_end(bare, INCREMENT + assemble("mov [rsi], rax") + NOP * 20)
    assert seen == [ABSENT]
    assert bare.calls


def test_a_page_that_went_away_under_known_code_faults_in_its_turn(bare: BareX86) -> None:
    bare.fill(bare.map(CODE2, READ_EXECUTE), b"\x0f\x05")
    at_the_end(bare, INCREMENT + NOP * 20)
    bare.words[bare.slot(CODE2)] = 0
    bare.cpu.flush_page(CODE2)
    bare.go(CODE2 - 22)
    assert bare.faults == [(CODE2, FETCH, CODE2)]
    assert counted(bare) == 2


def test_code_that_changes_what_comes_behind_it_runs_what_it_wrote(bare: BareX86) -> None:
    bare.map(CODE, ANY, pa=bare.code)
    bare.cpu.flush_all()
    bare["rsi"], bare["rbx"] = CODE2 - 1, 0
    at_the_end(bare, assemble("mov word ptr [rsi - 1], 0xc3ff") + NOP * 20)  # inc ebx
    assert bare.faults == [(CODE2, FETCH, CODE2)]
    assert bare["rbx"] == 1


@pytest.mark.parametrize("source", ["rep stosb", "rep movsb", "repne scasb"])
def test_a_repeated_instruction_goes_through_all_its_turns(bare: BareX86, source: str) -> None:
    bare["rcx"], bare["rax"], bare["rsi"] = 40, 7, DATA + 100
    at_the_end(bare, assemble(source) + NOP * 20)
    assert bare.faults == [(CODE2, FETCH, CODE2)]
    assert (bare["rcx"], bare["rdi"]) == (0, DATA + 40)


def test_a_loop_beside_the_end_of_the_page_keeps_its_blocks_whole(bare: BareX86) -> None:
    bare["rcx"] = 1000
    bare.cpu.count_blocks()
    at_the_end(bare, assemble("again: inc dword ptr [rdi]\nnop\nnop\nnop\ndec ecx\njnz again\nnop"))
    assert counted(bare) == 1000
    assert bare.cpu.blocks < 1020


def test_the_guest_sees_no_flag_of_it(bare: BareX86) -> None:
    at_the_end(bare, assemble("pushfq\npop rbx") + NOP * 20)
    assert bare["rbx"] & ~regs.RFLAGS_IF == regs.RFLAGS_FIXED
    assert bare.faults == [(CODE2, FETCH, CODE2)]


def test_the_guests_own_single_steps_stay(bare: BareX86) -> None:
    bare.fill(bare.code + 0xFF0, INCREMENT + NOP * 14)
    bare["rflags"] = bare["rflags"] | regs.RFLAGS_TF
    bare.go(CODE + 0xFF0)
    while not bare.faults:
        bare.cpu.run()
    assert [pc for _trap, pc in bare.traps] == [CODE + 0xFF2 + i for i in range(15)]
    assert {trap.kind for trap, _pc in bare.traps} == {TrapKind.DEBUG}
    assert bare.faults == [(CODE2, FETCH, CODE2)]


def test_a_budget_that_ends_on_the_way_leaves_nothing_behind(bare: BareX86) -> None:
    """Another task may run next, whose first block is whole."""
    assert at_the_end(bare, INCREMENT + NOP * 20, budget=5) is ExitReason.BUDGET
    assert bare.cpu.pc == CODE2 - 16
    before = bare.cpu.blocks
    bare.fill(bare.code, NOP * 5 + b"\x0f\x05")
    bare.cpu.pc = CODE
    bare.cpu.run(100)
    assert bare.calls
    assert bare.cpu.blocks - before == 1
    bare.cpu.pc = CODE2 - 16
    bare.cpu.run(100)
    assert bare.faults == [(CODE2, FETCH, CODE2)]
    assert counted(bare) == 1


def test_code_behind_a_hole_is_met_in_its_turn(bare: BareX86) -> None:
    bare.map(CODE2, READ_EXECUTE, pa=0x4000_0000)
    assert at_the_end(bare, INCREMENT + NOP * 20) is ExitReason.BUS
    assert (counted(bare), bare.cpu.pc) == (1, CODE2)


def test_a_jump_into_the_last_bytes_and_a_return_stay_as_they_are(bare: BareX86) -> None:
    bare.fill(bare.code, assemble(f"mov rax, {CODE2 - 4}\ncall rax\nsyscall"))
    bare.fill(bare.code + 0xFFC, INCREMENT + NOP + b"\xc3")
    bare["rsp"] = TOP
    bare.go()
    assert bare.calls
    assert (bare.faults, counted(bare), bare["rsp"]) == ([], 1, TOP)
