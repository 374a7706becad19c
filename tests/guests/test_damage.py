"""One flipped bit in the page table of a running program: what the run ends in, and that nothing is lost.

The program stands in the middle of a run. Every bit of every entry on the way to its code and to its stack
is flipped, one at a time, each in a child of its own, and the program goes on. It must end by itself, by the
signal of the architecture's fault, or by `Damaged`, never in a fault that repeats for ever; and however it
ends, every frame must have been given back afterwards.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aether_emu.config import Config
from aether_emu.errors import EngineError
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, program
from tests.machine.child import outcome_of

MOST_FAULTS = 5_000  # more than the rest of the program makes, and far fewer than an endless fault
BLOCKS = 300_000


@dataclass
class Running:
    """A program in the middle of its run, and the entries on the way to what it uses next."""

    machine: Machine
    entries: dict[int, int] = field(default_factory=dict)  # slot -> level

    @classmethod
    def started(cls, target: Target, name: str, blocks: int, cwd: Path) -> Running:
        machine = Machine(target.isa, config=Config.load(overrides={"page_size": target.page_size}))
        streams = {stream: BufferStream() for stream in ("stdin", "stdout", "stderr")}
        process = machine.load(program(target.isa, name), [name], streams=streams, grants=Grants(cwd=cwd))
        ended = machine.run_for(blocks)
        if ended is not None:
            machine.abandon()
        assert ended is None, "the program has ended already"
        running = cls(machine)
        for va in (machine.cpu.pc, machine.cpu.sp):
            for step in process.mm.walk(va).steps:
                running.entries[int(step.address) - machine.ram.base >> 3] = step.level
        return running

    def flip(self, slot: int, bit: int) -> None:
        """Flip a bit, and let no TLB know better."""
        self.machine.ram.words[slot] ^= 1 << bit
        self.machine.cpu.flush_all()

    def end(self) -> str:
        """Let the program go on to its end, and take the machine apart. LeakError when a frame is left."""
        machine, left = self.machine, MOST_FAULTS
        cpu = machine.cpu
        fault = cpu.on_fault

        def counted(va: int, access: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                cpu.interrupt()
            fault(va, access)

        cpu.on_fault = counted
        process = machine.process
        assert process is not None
        try:
            ended = machine.run_for(BLOCKS)
            how = "goes on"  # what it read in the wrong place made it loop
            if ended is not None:
                how = ended.why.split(":")[0] if ended.signal else "exit"
        except Interrupted:
            raise AssertionError("the same fault came again and again") from None
        except EngineError as error:
            how = f"engine: {error}"
        machine.close()
        return (
            f"{how}{', found at the end' if process.mm.damages and not how.startswith('a damaged') else ''}"
        )


def what_comes_of(running: Running, slot: int, bit: int) -> str:
    """What one flipped bit ends in, tried in a child."""
    reader, writer = os.pipe()

    def scenario() -> None:
        running.flip(slot, bit)
        os.write(writer, running.end().encode())

    killed_by, report = outcome_of(scenario, keep_handlers=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        how = pipe.read().decode()
    level = running.entries[slot]
    assert (killed_by, report) == (0, ""), f"bit {bit} of level {level}: signal {killed_by}\n{report}"
    return how


def tried(running: Running, choose: Callable[[list[tuple[int, int]]], list[tuple[int, int]]]) -> Counter[str]:
    """How often each end came about, over chosen bits of the entries; the machine is used up."""
    bits = [(slot, bit) for slot in sorted(running.entries) for bit in range(64)]
    try:
        return Counter(what_comes_of(running, slot, bit) for slot, bit in choose(bits))
    finally:
        running.machine.close()


def _flip_some(target: Target, share: int, tmp_path: Path) -> None:
    """Flip one of `share` bits of each entry of a path: seeded ones, as many of every entry."""
    running = Running.started(target, "hello", 60, tmp_path)
    levels = set(running.entries.values())
    assert levels == set(range(1, running.machine.format.top + 1))
    chance = random.Random(share)

    def some(bits: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [
            bit
            for slot in sorted(running.entries)
            for bit in chance.sample([bit for bit in bits if bit[0] == slot], 64 // share)
        ]

    ends = tried(running, some)
    assert ends["a damaged page table"] > len(running.entries) * 10 // share, ends
    assert ends["exit"] > 0, ends  # bits that neither the MMU nor anybody else looks at


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_the_bits_of_a_path_end_in_a_fault_or_in_damage_and_no_frame_is_lost(
    target: Target, tmp_path: Path
) -> None:
    """A seeded quarter of the bits of every entry on the way."""
    _flip_some(target, 4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_every_bit_of_a_path_ends_in_a_fault_or_in_damage_and_no_frame_is_lost(
    target: Target, tmp_path: Path
) -> None:
    _flip_some(target, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("name", "blocks"), [("tour", 9_000), ("maps", 30_000), ("workset", 2_000)])
def test_seeded_bits_of_other_programs(
    target: Target, name: str, blocks: int, seed: int, tmp_path: Path
) -> None:
    running = Running.started(target, name, blocks, tmp_path)
    chance = random.Random(seed)
    ends = tried(running, lambda bits: chance.sample(bits, 40))
    assert ends["a damaged page table"] > 0, ends
