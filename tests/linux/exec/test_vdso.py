"""The vDSO: what its images hold, where it lies, and what becomes of its pages when processes come and go."""

from __future__ import annotations

import errno
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from aether_emu.clock import EPOCH_NS
from aether_emu.config import Config
from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.exec import stack, vdso
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.proc.texts import maps_text
from aether_emu.mm.allocation import Area
from aether_emu.mm.fault import BusError
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import protect_memory, unmap_memory
from aether_emu.mm.protection import Protection
from aether_emu.mm.user import UserFaulted, UserMemory
from aether_emu.observe.core import write_core
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, expected, program, run_guest

X86_64 = TARGETS[0]
_CALLS = ("clock_gettime", "gettimeofday", "clock_getres")
NAMES = {
    "x86_64": (
        "LINUX_2.6",
        {f"{prefix}{name}" for name in (*_CALLS, "time", "getcpu") for prefix in ("", "__vdso_")},
    ),
    "arm64": ("LINUX_2.6.39", {f"__kernel_{name}" for name in (*_CALLS, "rt_sigreturn")}),
}
BAD = 8  # an address where nothing is
PAGES_OF_DATA = {"x86_64": 4, "arm64": 2}

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def _elf(contents: bytes) -> ELFFile:
    return ELFFile(io.BytesIO(contents))


def _symbols(contents: bytes) -> dict[str, str]:
    """The version of each name that an image defines."""
    elf = _elf(contents)
    sections: dict[str, Any] = {section.name: section for section in elf.iter_sections()}
    definitions = sections[".gnu.version_d"].iter_versions()
    versions = {version["vd_ndx"]: next(names).name for version, names in definitions}
    found = {}
    for i, symbol in enumerate(sections[".dynsym"].iter_symbols()):
        if symbol["st_shndx"] not in ("SHN_UNDEF", "SHN_ABS"):
            found[symbol.name] = versions[sections[".gnu.version"].get_symbol(i)["ndx"] & 0x7FFF]
    return found


def _host_image() -> bytes:
    """This host's own vDSO, out of this process."""
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[vdso]"))
    start, end = (int(address, 16) for address in line.split()[0].split("-"))
    with Path("/proc/self/mem").open("rb") as memory:
        memory.seek(start)
        return memory.read(end - start)


# ---- images


@every_target
def test_an_image_has_linuxs_names_and_versions(target: Target) -> None:
    version, names = NAMES[target.isa]
    assert _symbols(vdso.image(target.isa, target.page_size)) == dict.fromkeys(names, version)


def test_the_host_has_the_same_names_and_versions() -> None:
    ours = _symbols(vdso.image("x86_64", 4096))
    assert _symbols(_host_image()).items() >= ours.items()


@every_target
def test_an_image_is_one_segment_in_one_page_and_needs_no_relocation(target: Target) -> None:
    elf = _elf(vdso.image(target.isa, target.page_size))
    segments = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    shape = [(s["p_offset"], s["p_vaddr"], s["p_flags"], s["p_align"]) for s in segments]
    assert shape == [(0, 0, 5, target.page_size)]
    assert segments[0]["p_memsz"] <= 4096
    sections = {section.name for section in elf.iter_sections()}
    assert sections >= {".hash", ".gnu.hash", ".eh_frame", ".eh_frame_hdr", ".text"}
    assert not sections & {".rela.dyn", ".rel.dyn", ".got", ".data", ".bss", ".plt"}


def test_handlers_return_to_what_unwinders_know_a_signal_frame_by() -> None:
    """mov x8, #139; svc #0, with a nop before and no entry in the unwind table (arm64's sigreturn.S)."""
    contents = vdso.image("arm64", 4096)
    at = vdso.symbol(contents, b"__kernel_rt_sigreturn")
    assert contents[at - 4 : at + 8] == bytes.fromhex("1f2003d5 681180d2 010000d4")
    frames = _elf(contents).get_dwarf_info().EH_CFI_entries()
    covered = [entry.header for entry in frames if isinstance(entry, FDE)]
    assert len(covered) == 3, "the functions"
    assert not any(h["initial_location"] <= at < h["initial_location"] + h["address_range"] for h in covered)


# ---- places


@pytest.fixture(params=TARGETS, ids=str)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with a program that has not run yet."""
    machine = _loaded(request.param)
    yield machine
    machine.close()


def _loaded(target: Target, name: str = "hello", **options: object) -> Machine:
    sizes = {"page_size": target.page_size, "ram": "16M", "aperture": "4M"}
    machine = Machine(target.isa, config=Config.load(overrides=sizes | options))
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    path = program(target.isa, name)
    machine.load(path, [name], grants=Grants(cwd=path.parent), streams=streams)
    return machine


def _name(x86: bool, function: str) -> bytes:
    return f"{'__vdso_' if x86 else '__kernel_'}{function}".encode()


def _areas(machine: Machine) -> dict[str, Area]:
    assert machine.process is not None
    return {area.name: area for area in machine.process.mm.areas}


def test_a_program_is_told_where_it_is(machine: Machine) -> None:
    areas, process = _areas(machine), machine.process
    assert process is not None
    data, code, page = areas["[vvar]"], areas["[vdso]"], process.mm.page_size
    auxiliary = dict(struct.iter_unpack("<QQ", process.program.auxiliary))
    assert list(auxiliary)[:2] == [stack.AT_SYSINFO_EHDR, stack.AT_MINSIGSTKSZ]
    assert auxiliary[stack.AT_SYSINFO_EHDR] == code.start == data.end
    assert (data.length // page, code.length // page) == (PAGES_OF_DATA[process.abi.isa], 1)
    image = vdso.image(process.abi.isa, page)
    assert machine.cpu.copy_from_user(code.start, page) == image.ljust(page, b"\0")
    permissions = [line.split()[1] for line in maps_text(process).decode().splitlines() if "[vv" in line]
    assert permissions == ["r--p"]


def test_only_the_first_page_of_time_data_is_there(machine: Machine) -> None:
    process, data = machine.process, _areas(machine)["[vvar]"]
    assert process is not None
    memory = UserMemory(process.mm)
    assert memory.read(data.start, 32) == vdso.time_data(process.abi, EPOCH_NS)
    for address in range(data.start + process.mm.page_size, data.end, process.mm.page_size):
        with pytest.raises(UserFaulted) as caught:
            memory.read(address, 1)
        assert caught.value.outcome == BusError(address)


def test_on_x86_64_it_lies_above_the_stack_within_the_same_table() -> None:
    places = set()
    for seed in range(6):
        machine = _loaded(X86_64, seed=seed)
        areas = _areas(machine)
        above = areas["[vvar]"].start - areas["[stack]"].end
        assert above >= 0
        assert areas["[vdso]"].end - 1 >> 21 in (areas["[stack]"].end >> 21, (areas["[stack]"].end >> 21) + 1)
        places.add(above)
        machine.close()
    assert len(places) > 1


def test_on_arm64_it_lies_where_a_mapping_goes(machine: Machine) -> None:
    process, areas = machine.process, _areas(machine)
    assert process is not None
    if process.abi.isa == "arm64":
        assert areas["[vdso]"].end == process.mm.mmap_base


@every_target
def test_without_randomisation_it_lies_at_the_top_of_where_mappings_go(target: Target) -> None:
    machine = _loaded(target, aslr=False)
    assert machine.process is not None
    assert _areas(machine)["[vdso]"].end == machine.process.mm.mmap_base
    machine.close()


# ---- clocks


@every_target
@pytest.mark.parametrize("block", [1, 999])
def test_its_clocks_are_those_of_the_system_calls_whatever_a_block_costs(
    target: Target, block: int, tmp_path: Path
) -> None:
    costs = {"block": block, "system_call": 1_234_567_891}
    ran = run_guest(target, "vdso", cwd=tmp_path, clock=costs)
    assert ran.output == expected(target.isa, "vdso")


@every_target
def test_only_the_clocks_that_it_leaves_to_the_kernel_are_system_calls(
    target: Target, tmp_path: Path
) -> None:
    """The program asks each of 16 clocks twice by the vDSO and once by the call; five clocks cost no call."""
    machines: list[Machine] = []
    run_guest(target, "vdso", cwd=tmp_path, before=machines.append)
    calls = machines[0].kernel.calls_by_name()
    assert calls["clock_gettime"] == 16 + 2 * (16 - 5)
    assert calls["clock_getres"] == 16 + (16 - 5)
    assert "gettimeofday" not in calls


@pytest.mark.parametrize("function", ["clock_gettime", "clock_getres", "gettimeofday"])
def test_a_bad_pointer_faults_at_its_first_word(machine: Machine, function: str) -> None:
    process = machine.process
    assert process is not None
    x86, clock = process.abi.isa == "x86_64", (BAD if function == "gettimeofday" else 1)
    at = vdso.symbol(vdso.image(process.abi.isa, process.mm.page_size), _name(x86, function))
    names = ("rip", "rdi", "rsi") if x86 else ("pc", "x0", "x1")
    where = _areas(machine)["[vdso]"].start + at
    values = (where, clock, 0 if clock == BAD else BAD)
    machine.cpu.load_registers(dict(zip(names, values, strict=True)))
    faults: list[int] = []
    machine.on_fault(lambda fault: faults.append(int(fault.address)))
    machine.run()
    assert faults[-1] == BAD


# ---- pages


def test_its_pages_take_memory_when_they_are_touched_and_give_it_back(machine: Machine) -> None:
    process, areas = machine.process, _areas(machine)
    assert process is not None
    before = machine.frames.census()[Kind.SHARED]
    memory = UserMemory(process.mm)
    memory.read(areas["[vdso]"].start, 1)
    memory.read(areas["[vvar]"].start, 1)
    assert machine.frames.census()[Kind.SHARED] == before + 2
    process.mm.unmap(areas["[vvar]"].start, areas["[vdso]"].end)
    machine.physical.tlb.settle()
    assert machine.frames.census()[Kind.SHARED] == before


def test_its_code_does_not_make_code_count_as_changeable(tmp_path: Path) -> None:
    """Where code may change, every new block costs a look: the kernel's own code never does."""
    for target in TARGETS[:2]:
        machine = _loaded(target)
        areas = _areas(machine)
        assert machine.process is not None
        UserMemory(machine.process.mm).read(areas["[vdso]"].start, 1)
        assert not machine.physical.code.mutable
        machine.close()


@pytest.mark.parametrize("end", [0, 1])
def test_neither_end_of_its_data_is_unmapped_alone(machine: Machine, end: int) -> None:
    assert machine.process is not None
    space, data = machine.process.mm, _areas(machine)["[vvar]"]
    with pytest.raises(Refused) as refused:
        unmap_memory(space, data.start + end * space.page_size, data.length - space.page_size)
    assert refused.value.errno == errno.EINVAL
    unmap_memory(space, data.start, data.length)
    assert "[vvar]" not in _areas(machine)


def test_a_program_that_stores_into_it_has_its_own_copy(machine: Machine) -> None:
    process, code = machine.process, _areas(machine)["[vdso]"]
    assert process is not None
    image = vdso.image(process.abi.isa, code.length)
    protect_memory(process.mm, code.start, code.length, Protection.READ | Protection.WRITE)
    machine.cpu.copy_to_user(code.start + 0x100, b"mine")
    assert machine.cpu.copy_from_user(code.start, code.length) == (
        image[:0x100] + b"mine" + image[0x104:].ljust(code.length - 0x104, b"\0")
    )


def test_a_forked_process_has_the_same(machine: Machine) -> None:
    process, areas = machine.process, _areas(machine)
    assert process is not None
    memory = UserMemory(process.mm)
    image = memory.read(areas["[vdso]"].start, process.mm.page_size)
    child = process.mm.fork()
    try:
        shown = UserMemory(child)
        assert shown.read(areas["[vdso]"].start, process.mm.page_size) == image
        assert shown.read(areas["[vvar]"].start, 32) == vdso.time_data(process.abi, EPOCH_NS)
    finally:
        child.destroy()


@every_target
def test_a_machine_that_is_restored_in_the_middle_goes_on_alike(target: Target, tmp_path: Path) -> None:
    """Its code and data, and the handler that returns into it where mremap has put it."""
    blocks = _blocks(target)
    for part in (0.1, 0.5, 0.9):
        machine = _loaded(target, "vdso")
        assert machine.run_for(int(blocks * part)) is None
        state = capture(machine)
        machine.close()
        out = BufferStream()
        streams = {"stdin": BufferStream(), "stdout": out, "stderr": out}
        again = restore(state, grants=Grants(cwd=program(target.isa, "vdso").parent), streams=streams)
        try:
            assert again.run().status == 0
            assert out.written
            assert expected(target.isa, "vdso").endswith(out.written.decode())
        finally:
            again.close()


def _blocks(target: Target) -> int:
    machine = _loaded(target, "vdso")
    assert machine.run_for(1 << 40) is not None
    blocks = machine.cpu.blocks
    machine.close()
    return blocks


def test_a_core_holds_it(tmp_path: Path) -> None:
    machine = _loaded(X86_64, "vdso")
    assert machine.run_for(4000) is None
    write_core(machine, tmp_path / "core")
    machine.close()
    assert vdso.image("x86_64", 4096) in (tmp_path / "core").read_bytes()
