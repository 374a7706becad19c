"""A computer without a personality: two CPUs over one RAM, in two address spaces and in the same one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.computer import Computer, LeakError, lowest_kernel_base, unicorn_cpus
from aether_emu.errors import ConfigError
from aether_emu.machine.cpu import ExitReason
from aether_emu.mm.fault import RESOLVED, AccessError, Outcome
from aether_emu.mm.limits import Limits
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from tests.mm.board import ENGINES, MIB, user_end
from tests.mm.instructions import ArmInstructions, Instructions, X86Instructions

CODE, PRIVATE, SHARED = 0x40_0000, 0x50_0000, 0x60_0000
READ_WRITE, READ_EXECUTE = Protection.READ | Protection.WRITE, Protection.READ | Protection.EXECUTE

COUNT = {
    # again: inc qword ptr [rdi]; inc qword ptr [rsi]; jmp again
    "x86_64": bytes.fromhex("48ff07 48ff06 ebf8"),
    # again: ldr x0, [x1]; add x0, x0, #1; str x0, [x1]; the same at [x2]; b again
    "arm64": bytes.fromhex("200040f9 00040091 200000f9 400040f9 00040091 400000f9 faffff17"),
}
"""Adds one to the words at the first and the second address, for ever: one block each time."""
ADDRESSES = {"x86_64": ("rdi", "rsi"), "arm64": ("x1", "x2")}


class Pair:
    """Two CPUs and what their programs met: a fault that is not resolved stops the CPU."""

    def __init__(self, name: str) -> None:
        fmt = ENGINES[name]
        self.isa = "arm64" if isinstance(fmt, ArmFormat) else "x86_64"
        self.instructions: Instructions = ArmInstructions() if self.isa == "arm64" else X86Instructions()
        self.end, self.page = user_end(fmt), fmt.page_size
        self.computer: Computer[Any] = Computer(
            fmt,
            unicorn_cpus(self.isa, fmt, ticks=lambda _hz: 0, random=lambda: 0),
            ram=64 * MIB,
            aperture=8 * MIB,
            cpus=2,
            kernel_base=lowest_kernel_base(fmt),
        )
        self.spaces: list[AddressSpace] = []
        self.refused: list[tuple[int, Outcome]] = []  # (CPU, outcome)
        for cpu in self.computer.cpus:
            cpu.on_system_call = lambda *_arguments, cpu=cpu: cpu.stop()

    def space(self) -> AddressSpace:
        limits = Limits(user_base=0x1_0000, user_end=self.end, areas=100, stack=MIB)
        self.spaces.append(self.computer.new_space(limits))
        return self.spaces[-1]

    def enter(self, index: int, space: AddressSpace) -> None:
        """CPU `index` runs `space`, whose pages come as its program touches them."""
        percpu = self.computer.percpu[index]
        cpu: Any = percpu.cpu

        def fault(va: int, access: int) -> None:
            outcome = percpu.fault(va, access)
            if outcome is not RESOLVED:
                self.refused.append((index, outcome))
                cpu.stop()

        cpu.on_fault = fault
        cpu.resolve = lambda va, access: percpu.fault(va, access) is RESOLVED
        self.computer.enter(space, index)

    def load(self, index: int, space: AddressSpace, code: bytes) -> None:
        """Put a program into a space that CPU `index` is in, and the CPU at its beginning."""
        self.computer.percpu[index].take_over()
        cpu = self.computer.cpus[index]
        area = space.new_area(CODE, CODE + self.page, READ_WRITE)
        space.insert(area)
        cpu.copy_to_user(CODE, code)
        space.protect(area, CODE, CODE + self.page, READ_EXECUTE)
        cpu.pc = CODE

    def word(self, index: int, va: int) -> int:
        return int.from_bytes(self.computer.cpus[index].copy_from_user(va, 8), "little")

    def close(self) -> None:
        if self.computer.closed:
            return
        self.computer.rest()
        for space in self.spaces:
            space.destroy()
        self.computer.close()


@pytest.fixture(params=ENGINES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


def test_two_cpus_run_two_spaces_in_turn_with_pages_of_their_own_and_one_they_share(pair: Pair) -> None:
    memory = SharedMemory(pair.computer.physical, 1)
    for index in (0, 1):
        space, cpu = pair.space(), pair.computer.cpus[index]
        pair.enter(index, space)
        pair.load(index, space, COUNT[pair.isa])
        space.insert(space.new_area(PRIVATE, PRIVATE + pair.page, READ_WRITE))
        space.insert(
            space.new_area(SHARED, SHARED + pair.page, READ_WRITE, shared=True, backing=memory, offset=0)
        )
        for register, address in zip(ADDRESSES[pair.isa], (PRIVATE, SHARED), strict=True):
            cpu.write(register, address)
    for _ in range(10):
        for index, budget in ((0, 30), (1, 50)):
            assert pair.computer.run(index, budget).reason is ExitReason.BUDGET
    counts = [pair.word(index, PRIVATE) for index in (0, 1)]
    assert pair.refused == []
    # A block that a fault interrupts counts once more when it goes on.
    assert 290 <= counts[0] <= 300
    assert 490 <= counts[1] <= 500
    assert [pair.word(index, SHARED) for index in (0, 1)] == [sum(counts)] * 2


@pytest.mark.parametrize("editor", [0, 1])
def test_what_one_cpu_unmaps_the_other_cannot_read_at_its_next_access(pair: Pair, editor: int) -> None:
    space, computer, code = pair.space(), pair.computer, pair.instructions
    pair.enter(0, space)
    pair.load(0, space, code.load + code.system_call)
    pair.enter(1, space)
    space.insert(space.new_area(PRIVATE, PRIVATE + pair.page, READ_WRITE))
    computer.cpus[0].copy_to_user(PRIVATE, (77).to_bytes(8, "little"))

    def reads(index: int) -> int:
        cpu = computer.cpus[index]
        cpu.pc = CODE
        cpu.write(code.address, PRIVATE)
        cpu.write(code.value, 0)
        assert computer.run(index).reason is ExitReason.STOPPED
        return int(cpu.read(code.value))

    other = 1 - editor
    assert [reads(other), reads(editor)] == [77, 77]  # each has it in its own TLB, and `editor` runs last
    space.unmap(PRIVATE, PRIVATE + pair.page)
    assert [reads(other), reads(editor)] == [0, 0]
    assert pair.refused == [(index, AccessError(PRIVATE, mapped=False)) for index in (other, editor)]


def test_a_frame_that_is_still_held_at_the_end_is_named(pair: Pair) -> None:
    frame = pair.computer.buddy.alloc()
    pair.computer.rest()
    with pytest.raises(LeakError, match=rf"1 frame\(s\) leaked: frame {frame} \(KERNEL, owner 0\)"):
        pair.computer.close()
    assert pair.computer.closed


@pytest.mark.parametrize("cpus", [0, 65])
def test_a_computer_has_1_to_64_cpus(cpus: int) -> None:
    fmt = ENGINES["x86_64"]
    make = unicorn_cpus("x86_64", fmt, ticks=lambda _hz: 0, random=lambda: 0)
    with pytest.raises(ConfigError, match=f"cpus.*{cpus}.*1 to 64"):
        Computer(fmt, make, ram=16 * MIB, aperture=8 * MIB, cpus=cpus, kernel_base=lowest_kernel_base(fmt))
