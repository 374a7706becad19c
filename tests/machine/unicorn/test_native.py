"""Machine code is what its assembly says; the block counter counts exactly, in Python too."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest

from aether_emu.machine import native
from aether_emu.machine.memory import bus_handler
from aether_emu.machine.unicorn import (
    abort_guard,
    arm64_random,
    arm64_scan,
    block_counter,
    scan_time,
    x86_scan,
)
from aether_emu.machine.unicorn.block_counter import BlockCounter
from tests.machine.unicorn.flat_guest import CODE, FlatGuest, assemble, emu_stop_address, uclib, unicorn

# Three blocks a round when rax is odd, two when it is even; rdx rounds.
LOOP = """
round:
    inc rax
    test al, 1
    jz even
    inc rbx
even:
    inc rcx
    cmp rax, rdx
    jne round
    nop
"""


@pytest.fixture(params=["machine code", "python"])
def callback_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(native, "available", lambda: False)
    return str(request.param)


def counted(source: str) -> tuple[FlatGuest, BlockCounter]:
    guest, counter = FlatGuest(source), BlockCounter(emu_stop_address())
    hook = ctypes.c_size_t()
    add: Any = uclib.uc_hook_add
    status = add(
        ctypes.c_void_p(guest.handle),
        ctypes.byref(hook),
        ctypes.c_int(unicorn.UC_HOOK_BLOCK),
        ctypes.c_void_p(counter.callback),
        ctypes.c_void_p(counter.user_data),
        ctypes.c_uint64(1),
        ctypes.c_uint64(0),
    )
    assert status == 0
    return guest, counter


def sliced(rounds: int, budget: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """State at each slice's end, and the blocks executed in all."""
    guest, counter = counted(LOOP)
    guest["rdx"] = rounds
    trace, blocks, pc = [], 0, CODE
    while pc != guest.end:
        counter.value = budget
        guest.run(pc)
        blocks += budget - counter.value
        pc = guest["rip"]
        assert counter.spent == (pc != guest.end)
        trace.append((pc, guest["rax"], guest["rbx"], guest["rcx"]))
    return trace, blocks


@pytest.mark.parametrize(
    "module", [block_counter, arm64_random, arm64_scan, x86_scan, scan_time, bus_handler, abort_guard]
)
def test_the_bytes_are_what_keystone_makes_of_the_source(module: ModuleType) -> None:
    assert assemble(module.SOURCE) == module.CODE


def test_the_handler_gets_the_address_of_its_table_everywhere() -> None:
    table = bus_handler.GuardTable()
    code = ctypes.string_at(bus_handler.bus_handler(table), len(bus_handler.CODE))
    assert code.count(bus_handler.TABLE_PLACEHOLDER.to_bytes(8, "little")) == 0
    assert code.count(ctypes.addressof(table).to_bytes(8, "little")) == bus_handler.SOURCE.count("movabs")


def test_a_budget_runs_exactly_that_many_blocks_and_stops_before_the_next(callback_kind: str) -> None:
    guest, counter = counted(LOOP)
    guest["rdx"] = 1000
    # Blocks: rounds 1, 3, 5... have three (entry or head, odd, tail), rounds 2, 4, 6... two.
    for budget, expected in [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 1, 1)), (3, (2, 1, 1)), (5, (3, 1, 2))]:
        for register in ("rax", "rbx", "rcx"):
            guest[register] = 0
        counter.value = budget
        guest.run()
        assert (guest["rax"], guest["rbx"], guest["rcx"]) == expected
        assert (counter.value, counter.spent) == (0, True)


@pytest.mark.parametrize("budget", [1, 2, 7, 1000])
def test_slices_repeat_exactly_and_add_up_to_the_unsliced_count(callback_kind: str, budget: int) -> None:
    rounds = 200 if budget < 1000 else 5000
    trace, blocks = sliced(rounds, budget)
    assert sliced(rounds, budget) == (trace, blocks)
    whole_trace, whole_blocks = sliced(rounds, 1 << 62)
    assert trace[-1] == whole_trace[-1]
    assert blocks == whole_blocks
    assert len(trace) == -(-blocks // budget)


def test_machine_code_and_python_agree_on_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    by_code = sliced(500, 13)
    monkeypatch.setattr(native, "available", lambda: False)
    by_python = sliced(500, 13)
    assert by_code == by_python


def test_a_budget_that_is_just_enough_is_not_spent(callback_kind: str) -> None:
    _, blocks = sliced(100, 1 << 62)
    guest, counter = counted(LOOP)
    guest["rdx"] = 100
    counter.value = blocks
    guest.run()
    assert (guest["rip"], counter.value, counter.spent) == (guest.end, 0, False)


def test_a_new_budget_clears_spent(callback_kind: str) -> None:
    guest, counter = counted(LOOP)
    guest["rdx"] = 10
    counter.value = 1
    guest.run()
    assert counter.spent
    counter.value = 1
    assert not counter.spent


def test_a_stop_before_a_block_with_stores_leaves_memory_alone(callback_kind: str) -> None:
    guest, counter = counted("push rax; jmp next; next: push rbx; nop")
    counter.value = 1
    guest.run()
    assert guest["rsp"] == 0x4000 - 8
    assert guest["rip"] == CODE + len(assemble("push rax; jmp next; next: nop")) - 1
