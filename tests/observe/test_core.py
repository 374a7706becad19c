"""The core of a machine: what is in it, and what is left where it cannot be written."""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from aether_emu.arch.arm64.registers import ASID_SHIFT
from aether_emu.config import Config
from aether_emu.errors import ConfigError
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm import mapping
from aether_emu.mm.mapping import Request
from aether_emu.observe import core
from aether_emu.output import OutputError
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, program


def stopped(folder: Path, target: Target) -> Machine:
    """A machine in the middle of a program."""
    machine = Machine(target.isa, config=Config.load(overrides={"page_size": target.page_size, "ram": "64M"}))
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    try:
        machine.load(program(target.isa, "maps"), ["maps"], streams=streams, grants=Grants(cwd=folder))
        assert machine.run_for(2000) is None
    except BaseException:
        machine.abandon()
        raise
    return machine


def notes(file: ELFFile) -> dict[str, bytes]:
    """The notes of a core by name, the raw bytes behind the header of each."""
    found: dict[str, bytes] = {}
    for segment in file.iter_segments("PT_NOTE"):
        data, at = segment.data(), 0
        while at < len(data):
            name_size, size, _kind = struct.unpack_from("<III", data, at)
            start = at + 12 + (name_size + 3 & ~3)
            found[data[at + 12 : at + 11 + name_size].decode()] = data[start : start + size]
            at = start + (size + 3 & ~3)
    return found


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_core_holds_ram_and_the_file_pages_that_are_mapped(tmp_path: Path, target: Target) -> None:
    machine = stopped(tmp_path, target)
    try:
        core.write_core(machine, tmp_path / "core")
        with (tmp_path / "core").open("rb") as stream:
            file = ELFFile(stream)
            assert (file.header.e_type, file.header.e_machine) == (
                "ET_CORE", {"x86_64": "EM_X86_64", "arm64": "EM_AARCH64"}[target.isa],
            )  # fmt: skip
            ram, *slots = file.iter_segments("PT_LOAD")
            assert (ram["p_paddr"], ram["p_filesz"], ram["p_memsz"]) == (1 << 30, 64 << 20, 64 << 20)
            assert ram.data() == machine.ram.array.tobytes()
            image = program(target.isa, "maps").read_bytes()
            assert [slot["p_paddr"] for slot in slots] == [machine.aperture.base]
            assert slots[0].data().rstrip(b"\0") == image.rstrip(b"\0")
            assert slots[0]["p_memsz"] % target.page_size == 0
    finally:
        machine.close()
    assert (tmp_path / "core").stat().st_blocks * 512 < 16 << 20, "zeros take no space"


def test_what_a_program_keeps_out_of_cores_reads_as_zeros(tmp_path: Path) -> None:
    machine = stopped(tmp_path, TARGETS[0])
    assert machine.process is not None
    space, secret, plain = machine.process.mm, b"a secret of this test", b"no secret of this test"
    try:
        at = mapping.map_memory(space, Request(0, 2 * space.page_size, 3, 0x22, None, 0))
        machine.cpu.copy_to_user(at, secret)
        machine.cpu.copy_to_user(at + space.page_size, plain)
        mapping.advise_memory(space, at, space.page_size, mapping.MADV_DONTDUMP)
        core.write_core(machine, tmp_path / "core")
        written = (tmp_path / "core").read_bytes()
        assert (secret in written, plain in written) == (False, True)
        mapping.advise_memory(space, at, space.page_size, mapping.MADV_DODUMP)
        core.write_core(machine, tmp_path / "core")
        assert secret in (tmp_path / "core").read_bytes()
        assert machine.cpu.copy_from_user(at, len(secret)) == secret
    finally:
        machine.close()


def test_notes_of_x86_64_hold_registers_and_control_registers(tmp_path: Path) -> None:
    machine = stopped(tmp_path, TARGETS[0])
    try:
        core.write_core(machine, tmp_path / "core")
        with (tmp_path / "core").open("rb") as stream:
            found = notes(ELFFile(stream))
        assert list(found) == ["CORE", "QEMU", "AETHER"]
        assert (len(found["CORE"]), len(found["QEMU"])) == (336, 440)
        cpu = machine.cpu
        values = struct.unpack_from("<27Q", found["CORE"], 112)
        assert (values[10], values[16], values[19]) == (cpu.read("rax"), cpu.pc, cpu.sp)
        assert struct.unpack_from("<II", found["QEMU"]) == (1, 440)
        assert struct.unpack_from("<Q", found["QEMU"], 8)[0] == cpu.read("rax")
        assert struct.unpack_from("<Q", found["QEMU"], 8 + 16 * 8)[0] == cpu.pc
        control = struct.unpack_from("<5Q", found["QEMU"], 392)
        assert control == (cpu.read("cr0"), 0, cpu.read("cr2"), cpu.read("cr3"), cpu.read("cr4"))
        ours = struct.unpack("<II6Q", found["AETHER"])
        assert ours[:5] == (1, 56, cpu.read("cr0"), cpu.read("cr3"), cpu.read("cr4"))
        assert ours[5] & 1 << 11
        assert ours[7] == 40
    finally:
        machine.close()


@pytest.mark.parametrize("target", TARGETS[1:], ids=str)
def test_notes_of_arm64_hold_registers_and_both_roots(tmp_path: Path, target: Target) -> None:
    machine = stopped(tmp_path, target)
    try:
        core.write_core(machine, tmp_path / "core")
        with (tmp_path / "core").open("rb") as stream:
            found = notes(ELFFile(stream))
        assert list(found) == ["CORE", "AETHER"]
        assert len(found["CORE"]) == 392
        values = struct.unpack_from("<34Q", found["CORE"], 112)
        cpu = machine.cpu
        assert (values[0], values[31], values[32]) == (cpu.read("x0"), cpu.sp, cpu.pc)
        version, size, _sctlr, low, high, tcr, _mair = struct.unpack("<II5Q", found["AETHER"])
        assert (version, size) == (1, 48)
        assert machine.process is not None
        root = machine.process.mm.table.root
        assert (low, high) == (root | 1 << ASID_SHIFT, machine.kernel_half.table.root)
        assert 64 - (tcr & 63) == machine.format.virtual_bits
        assert {0: 4096, 1: 65536, 2: 16384}[tcr >> 14 & 3] == target.page_size
    finally:
        machine.close()


def test_a_core_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = stopped(tmp_path, TARGETS[0])
    older = tmp_path / "core"
    older.write_text("an older one")

    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(core, "_elf_header", full)
    try:
        with pytest.raises(OutputError, match="No space left on device"):
            core.write_core(machine, older)
    finally:
        machine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["core"]
    assert older.read_text() == "an older one"


def test_places_for_a_core_are_checked_before(tmp_path: Path) -> None:
    core.place(tmp_path / "new")
    (tmp_path / "old").write_text("")
    core.place(tmp_path / "old")
    for path in (tmp_path, tmp_path / "missing" / "core", Path("/dev/full"), Path("/proc/core")):
        with pytest.raises(ConfigError, match="core="):
            core.place(path)
