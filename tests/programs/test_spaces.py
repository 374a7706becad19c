"""Address spaces in turn, by `spaces.c`: with few tags and many, and with the two halves split (KPTI)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_emu.arch.arm64 import registers as arm
from aether_emu.arch.arm64 import stubs as arm_stubs
from aether_emu.arch.paging import PageFlags
from aether_emu.arch.x86_64 import registers as x86
from aether_emu.arch.x86_64 import stubs as x86_stubs
from aether_emu.computer import RAM_BASE
from aether_emu.errors import ConfigError
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.kernel_half import DATA, TEXT
from aether_emu.mm.tables.walk import Mapped
from aether_emu.observe import stats
from aether_emu.observe.core import place, write_core
from aether_emu.system import Machine
from aether_emu.verify.tables.formats import Right
from aether_emu.verify.tables.images import image_of
from aether_emu.verify.tables.survey import Leaves, survey
from aether_emu.verify.tables.walking import open_tables
from tests import moments
from tests.programs.run import ISAS

_HERE = Path(__file__).resolve().parent
_REGISTER = {"x86_64": "cr3", "arm64": "ttbr0_el1"}
every_isa = pytest.mark.parametrize("isa", ISAS)


def _machine(isa: str, out: BufferStream, visitors: int, **options: Any) -> Machine:
    machine = Machine(isa, ram="64M", seed=7, **options)
    streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
    machine.load(_HERE / "bin" / isa / "spaces", ["spaces", str(visitors)], streams=streams)
    return machine


def _run(isa: str, visitors: int, **options: Any) -> dict[str, Any]:
    """The statistics of a run that saw nothing wrong."""
    out = BufferStream()
    with _machine(isa, out, visitors, **options) as machine:
        stats.prepare(machine)
        assert machine.run().status == 0
        told = stats.collect(machine, 0)
    assert bytes(out.written).decode() == (
        f"{visitors + 1} processes came and went, 0 saw what was not theirs; here 0\n"
    )
    return told


def test_more_address_spaces_than_asids_roll_over() -> None:
    few, many = _run("arm64", 270, asid_bits=8), _run("arm64", 12)
    assert (few["tags"]["rollovers"], many["tags"]["rollovers"]) == (1, 0)
    assert few["tags"]["flushed_after_rollover"] == 1
    assert many["tags"]["kept"] > 40


def test_few_pcids_keep_less_and_none_keep_nothing() -> None:
    six, two, one, none = (_run("x86_64", 12, pcids=count) for count in (6, 2, 1, 0))
    assert six["tags"]["kept"] > two["tags"]["kept"] > one["tags"]["kept"] == 0
    assert six["tags"]["translations_kept_modelled"] > two["tags"]["translations_kept_modelled"] > 0
    assert "tags" not in none
    assert len({told["virtual_ns"] for told in (six, two, one, none)}) == 1


@every_isa
def test_several_cpus_see_nothing_of_others(isa: str) -> None:
    told = [json.dumps(_run(isa, 12, cpus=3, kpti=kpti)) for kpti in (False, False, True)]
    assert told[0] == told[1] != told[2]


def test_a_cpu_that_comes_back_flushes_for_the_edits_that_others_made() -> None:
    with Machine("x86_64", ram="64M", cpus=4, seed=7) as machine:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        machine.load(_HERE / "bin" / "x86_64" / "told", ["told", "a b"], streams=streams)
        assert machine.run().status == 0
        assert machine.physical.tags is not None
        assert machine.physical.tags.behind > 0


@every_isa
def test_the_supervisor_s_leaves_are_global_and_a_program_s_are_not(isa: str, tmp_path: Path) -> None:
    with _machine(isa, BufferStream(), 1) as machine:
        write_core(machine, place(tmp_path / "core"))
    leaves = survey(open_tables(tmp_path / "core")).leaves
    bit = 1 << 8 if isa == "x86_64" else 1 << 11  # G, and nG, whose sense is the opposite
    is_global = (leaves.entry & np.uint64(bit) != 0) != (isa == "arm64")
    of_supervisor = leaves.address >> np.uint64(63) != 0
    assert of_supervisor.any()
    assert not of_supervisor.all()
    assert (is_global == of_supervisor).all()


@every_isa
def test_the_register_holds_the_table_and_the_tag_of_who_runs(isa: str) -> None:
    seen: dict[int, set[int]] = {}
    with _machine(isa, BufferStream(), 4) as machine:

        @machine.on_system_call
        def look(_call: object) -> None:
            process = machine.entry.task.process
            register = machine.cpu.read(_REGISTER[isa])
            shift = arm.ASID_SHIFT if isa == "arm64" else 0
            assert register & ~(0xFFF << shift) == process.mm.table.root
            seen.setdefault(process.pid, set()).add(register >> shift & 0xFFF)

        assert machine.run().status == 0
        if isa == "x86_64":
            assert machine.cpu.read("cr4") & x86.CR4_PCIDE
        else:
            assert arm.TCR_EL1.named(machine.cpu.read("tcr_el1"))["AS"] == 1
    assert len(seen) == 6
    assert all(0 not in tags for tags in seen.values())
    long_lived = [seen[pid] for pid in sorted(seen)[:2]]
    assert not long_lived[0] & long_lived[1]


def test_without_pcids_cr3_has_none_and_with_asids_of_8_bits_tcr_says_so() -> None:
    with _machine("x86_64", BufferStream(), 1, pcids=0) as machine:
        assert machine.cpu.read("cr3") == machine.entry.task.process.mm.table.root
        assert not machine.cpu.read("cr4") & x86.CR4_PCIDE
    with _machine("arm64", BufferStream(), 1, asid_bits=8) as machine:
        assert "AS" not in arm.TCR_EL1.named(machine.cpu.read("tcr_el1"))


# ---- the two halves split


@every_isa
def test_split_only_the_way_in_is_mapped_of_the_supervisor_s_half(isa: str, tmp_path: Path) -> None:
    shown = {}
    for kpti in (False, True):
        with _machine(isa, BufferStream(), 1, kpti=kpti) as machine:
            core = tmp_path / f"{kpti}.core"
            write_core(machine, place(core))
        leaves = survey(open_tables(core)).leaves
        shown[kpti] = {start for start in leaves.address.tolist() if start >> 63}
    assert shown[True] == {TEXT, DATA}
    assert shown[False] > shown[True]


def _executable(leaves: Leaves) -> bool:
    """Whether a program may execute anything of them."""
    return bool((leaves.rights & np.uint16(Right.USER_EXECUTE)).any())


def _load(machine: Machine, va: int) -> bool:
    """Whether the supervisor's privilege reads there, by the tables that the CPU walks now."""
    cpu: Any = machine.cpu
    if machine.abi.isa == "x86_64":
        return cpu.supervisor(x86_stubs.LOAD, rdi=va).fault is None
    return cpu.supervisor(arm_stubs.LOAD, x1=va).fault is None


@every_isa
def test_split_the_direct_map_faults_for_the_supervisor_too(isa: str) -> None:
    for kpti in (False, True):
        with _machine(isa, BufferStream(), 1, kpti=kpti) as machine:
            assert _load(machine, machine.kernel_base + RAM_BASE) != kpti
            assert _load(machine, TEXT)
            assert machine.run().status == 0


def test_split_the_supervisor_s_root_maps_all_and_executes_nothing_of_the_program() -> None:
    with _machine("x86_64", BufferStream(), 1, kpti=True) as machine:
        space, cpu = machine.entry.task.process.mm, machine.cpu
        assert cpu.read("cr3") == space.table.root | 0x801
        assert machine.entry.percpu.retained() == [(1, space.kernel_root, 0), (0x801, space.table.root, 0)]
        cpu.copy_from_user(cpu.pc, 1)  # a page of code is there
        image = image_of(machine.ram.bytes, machine.ram.base)
        of_program, of_kernel = (
            survey(open_tables(image, root=root, format=machine.format.name)).leaves
            for root in (space.table.root, space.kernel_root)
        )
        assert set(of_program.address.tolist()) < set(of_kernel.address.tolist())
        assert [_executable(each) for each in (of_program, of_kernel)] == [True, False]
        direct_map = machine.kernel_half.table.walk(machine.kernel_base + RAM_BASE)
        assert isinstance(direct_map, Mapped)
        assert not direct_map.attributes.flags & PageFlags.GLOBAL
        cpu.set_root(space.kernel_root, 1)
        assert _load(machine, machine.kernel_base + RAM_BASE)
        assert cpu.copy_from_user(cpu.sp, 8)
        cpu.set_root(space.table.root, 0x801, keep=True)
        assert machine.run().status == 0


@every_isa
def test_split_every_way_in_and_out_takes_time(isa: str) -> None:
    whole, split = _run(isa, 4), _run(isa, 4, kpti=True)
    assert "kpti" not in whole
    switches = split["kpti"]["root_switches_modelled"]
    assert switches > 2 * sum(split["system_calls"].values())
    assert split["virtual_ns"] - whole["virtual_ns"] == split["kpti"]["virtual_ns"] == 100 * switches
    dearer = _run(isa, 4, kpti=True, clock={"kpti_switch": 1000})
    assert dearer["kpti"] == {"root_switches_modelled": switches, "virtual_ns": 1000 * switches}


def test_split_without_tags_every_way_in_and_out_flushes() -> None:
    told = _run("x86_64", 4, kpti=True, pcids=0)
    assert told["kpti"]["virtual_ns"] == (100 + 500) * told["kpti"]["root_switches_modelled"]


# ---- state and refusals


@every_isa
def test_tags_and_both_roots_are_part_of_a_capture(isa: str) -> None:
    options: dict[str, Any] = {"kpti": True, **({"pcids": 2} if isa == "x86_64" else {"asid_bits": 8})}
    words = ["spaces", "10"]
    whole = moments.run(isa, words, **options)
    assert whole.status == 0
    pauses = moments.seeded(whole.blocks, 12, isa)
    assert moments.run(isa, words, pauses, **options) == whole
    paused, restored = (
        moments.run(isa, words, pauses, captured=captured, switches=True, **options)
        for captured in (False, True)
    )
    assert restored == paused


@pytest.mark.parametrize(
    ("isa", "options", "words"),
    [
        ("x86_64", {"asid_bits": 8}, "asid_bits=8 is not possible on x86_64: they are arm64's"),
        ("arm64", {"pcids": 2}, "pcids=2 is not possible on arm64: they are x86_64's"),
        ("x86_64", {"kpti": True, "pcids": 2048}, "pcids=2048.*at most 2047 with kpti"),
    ],
)
def test_tags_that_there_are_not_are_refused(isa: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Machine(isa, **options)
