"""Five levels of page tables on x86_64: programs run as with four, and get more addresses if they ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.tables.walk import Mapped
from aether_emu.system import Machine
from tests.guests.running import TARGETS, expected, program, run_guest

X86 = TARGETS[0]
# Not `faults`: addresses that are not canonical with 48 bits are with 57.
COMMANDS = ("hello", "tour", "signals", "smc", "wild", "maps file", "workset file", "privilege")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_program_prints_what_it_prints_with_four_levels(command: str, tmp_path: Path) -> None:
    ran = run_guest(X86, *command.split(), cwd=tmp_path, writable=True, virtual_bits=57)
    assert ran.output == expected("x86_64", command.replace(" ", "-"))
    assert ran.ended == Ended(code=0)


def test_addresses_above_47_bits_are_for_those_who_ask(tmp_path: Path) -> None:
    assert run_guest(X86, "wide", cwd=tmp_path, virtual_bits=57).output == expected("x86_64", "wide-la57")
    assert run_guest(X86, "wide", cwd=tmp_path).output == expected("x86_64", "wide")


def loaded(name: str, cwd: Path) -> tuple[Machine, BufferStream]:
    machine, output = Machine("x86_64", ram="64M", virtual_bits=57), BufferStream()
    streams = {"stdin": BufferStream(), "stdout": output, "stderr": output}
    machine.load(program("x86_64", name), [name], streams=streams, grants=Grants(cwd=cwd))
    return machine, output


def test_a_walk_has_five_steps(tmp_path: Path) -> None:
    machine, _output = loaded("hello", tmp_path)
    assert machine.process is not None
    machine.run()
    walk = machine.process.mm.walk(machine.process.program.entry)
    assert isinstance(walk, Mapped)
    assert [machine.format.level_name(step.level) for step in walk.steps] == [
        "PML5", "PML4", "PDPT", "PD", "PT",
    ]  # fmt: skip
    machine.close()


def test_a_machine_is_captured_and_restored_in_the_middle(tmp_path: Path) -> None:
    machine, output = loaded("wide", tmp_path)
    assert machine.run_for(300) is None
    before = bytes(output.written)
    snapshot = state.capture(machine)
    rest = BufferStream()
    other = state.restore(
        snapshot,
        grants=Grants(cwd=tmp_path),
        streams={"stdin": BufferStream(), "stdout": rest, "stderr": rest},
    )
    machine.run()
    other.run()
    assert before + bytes(rest.written) == bytes(output.written) == expected("x86_64", "wide-la57").encode()
    machine.close()
    other.close()
