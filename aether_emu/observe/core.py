"""The machine's memory as an ELF core, in the shape of QEMU's dump-guest-memory.

    ELF header, program headers
    PT_NOTE    CORE/NT_PRSTATUS: the registers; QEMU/0 on x86_64: cr0 to cr4; AETHER/1: what governs paging
    PT_LOAD    RAM at p_paddr; then each bound slot of the file aperture, so that file pages are there too

AETHER/1 is two words of 32 bits, version 1 and the note's size, and words of 64 bits:

    x86_64     CR0, CR3, CR4, IA32_EFER, IA32_PAT, MAXPHYADDR
    arm64      SCTLR_EL1, TTBR0_EL1, TTBR1_EL1, TCR_EL1, MAIR_EL1

The file appears under its name when all of it is written. Pages that hold only zeros are holes in it, and so
are those that a program asked to leave out (MADV_DONTDUMP): they read as zeros.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aether_emu.arch.arm64 import registers as arm
from aether_emu.arch.x86_64 import registers as x86
from aether_emu.errors import AetherError, Refused
from aether_emu.machine.memory.aperture import SLOT_SIZE
from aether_emu.mm.allocation import AreaFlags
from aether_emu.mm.frames.table import Kind
from aether_emu.output import Output
from aether_emu.system import Machine

_EM = {"x86_64": 62, "arm64": 183}
_ET_CORE, _PT_LOAD, _PT_NOTE, _NT_PRSTATUS = 4, 1, 4, 1
_HEADER, _SEGMENT, _ALIGN = 64, 56, 4096
_MOST = 0xFFFE  # program headers that the ELF header can count
_GENERAL = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
)  # fmt: skip
_QEMU_ORDER = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
_CODE_FLAGS, _DATA_FLAGS = 0x00AF_FB00, 0x00CF_F300  # second words of flat user descriptors


class CoreError(AetherError):
    """A core cannot hold the machine; nothing of it is left."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A bound slot's physical address and contents, whole pages."""

    address: int
    data: bytes


def place(path: Path) -> Output:
    """Where a core can be written, before the program runs. Raises ConfigError."""
    return Output("core", path, regular=True)


def write_core(machine: Machine, path: Path | Output) -> None:
    """Write the memory of a machine that is not running.

    Raises OutputError when the host cannot, CoreError, and ConfigError for a bad path; nothing is left then.
    """
    output = path if isinstance(path, Output) else place(path)
    with output.open() as file:
        _write(machine, file)


def _write(machine: Machine, file: BinaryIO) -> None:
    notes = _notes(machine)
    slots = _slots(machine)
    count = 2 + len(slots)
    if count > _MOST:
        raise CoreError(f"core: {count} ranges of memory are more than an ELF header can count")
    ram = machine.ram
    at = _HEADER + count * _SEGMENT
    headers = [_segment(_PT_NOTE, at, 0, len(notes))]
    start = -(-(at + len(notes)) // _ALIGN) * _ALIGN
    headers.append(_segment(_PT_LOAD, start, ram.base, ram.size))
    place = start + ram.size
    for slot in slots:
        headers.append(_segment(_PT_LOAD, place, slot.address, len(slot.data)))
        place += len(slot.data)
    file.write(_elf_header(machine.abi.isa, count) + b"".join(headers) + notes)
    private = _not_to_be_dumped(machine)
    for number, page in ram.save().items():
        if number in private:
            continue
        file.seek(start + number * ram.page_size - ram.base)
        file.write(page)
    file.seek(start + ram.size)
    for slot in slots:
        file.write(slot.data)
    file.truncate(place)


def _not_to_be_dumped(machine: Machine) -> frozenset[int]:
    """Pages of RAM that belong to areas which the program took out of cores (MADV_DONTDUMP)."""
    if machine.process is None:
        return frozenset()
    space, frames = machine.process.mm, machine.frames
    found: set[int] = set()
    for area in space.areas:
        if area.flags & AreaFlags.NO_DUMP:
            shown = space.shown(area.start, area.end)
            own = shown[np.isin(frames.kind_array[shown], (Kind.ANON, Kind.SHARED, Kind.HUGETLB))]
            found |= {frames.address(frame) >> frames.page_shift for frame in own.tolist()}
    return frozenset(found)


def _elf_header(isa: str, count: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return ident + struct.pack(
        "<HHIQQQIHHHHHH", _ET_CORE, _EM[isa], 1, 0, _HEADER, 0, 0, _HEADER, _SEGMENT, count, 0, 0, 0
    )


def _segment(kind: int, offset: int, physical: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 0, offset, 0, physical, size, size if kind == _PT_LOAD else 0, 0)


def _slots(machine: Machine) -> list[_Slot]:
    """What the file aperture shows, as the files are now, without what lies behind their ends."""
    aperture, page = machine.aperture, machine.config.page_size
    found = []
    for bound in sorted(aperture.save().bound, key=lambda bound: bound.index):
        address = aperture.base + bound.index * SLOT_SIZE
        try:
            data = aperture.owner_of(address)[0].read(bound.extent * SLOT_SIZE, SLOT_SIZE)
        except Refused:  # the host cannot read it any more: then it is not there
            continue
        if data:
            found.append(_Slot(address, data.ljust(-(-len(data) // page) * page, b"\0")))
    return found


# ---- notes


def _note(name: bytes, kind: int, data: bytes) -> bytes:
    name += b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name.ljust(-(-len(name) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")


def _notes(machine: Machine) -> bytes:
    root = _root(machine)
    return _x86_notes(machine, root) if machine.abi.isa == "x86_64" else _arm_notes(machine, root)


def _root(machine: Machine) -> int:
    """CR3 or TTBR0_EL1, PCID or ASID and all, where the first process runs; else its table's address."""
    percpu, x86_64 = machine.entry.percpu, machine.abi.isa == "x86_64"
    if machine.process is None:
        return machine.kernel_half.table.root if x86_64 else 0
    if percpu.inside and percpu.space is machine.process.mm:
        return machine.cpu.read("cr3" if x86_64 else "ttbr0_el1")
    return machine.process.mm.table.root


def _status(registers: bytes) -> bytes:
    """elf_prstatus of Linux: the process ID of CPU 0 at 32, the registers at 112, pr_fpvalid behind."""
    data = bytearray(112)
    struct.pack_into("<I", data, 32, 1)
    return bytes(data) + registers + bytes(8)


def _x86_notes(machine: Machine, root: int) -> bytes:
    cpu = machine.cpu
    values = cpu.registers()
    selectors = (x86.USER_CODE, x86.USER_DATA)
    general = [values[name] for name in _GENERAL]
    status = struct.pack(
        "<27Q", *general, (1 << 64) - 1, values["rip"], selectors[0], values["rflags"], values["rsp"],
        selectors[1], values["fs_base"], values["gs_base"], 0, 0, 0, 0,
    )  # fmt: skip
    control = (cpu.read("cr0"), 0, cpu.read("cr2"), root, cpu.read("cr4"))
    qemu = struct.pack("<18Q", *(values[name] for name in _QEMU_ORDER))
    segments = (
        (selectors[0], _CODE_FLAGS, 0), (0, 0, 0), (0, 0, 0),
        (0, 0, values["fs_base"]), (0, 0, values["gs_base"]),
        (selectors[1], _DATA_FLAGS, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0),
    )  # fmt: skip
    for selector, flags, base in segments:  # cs ds es fs gs ss ldt tr gdt idt
        qemu += struct.pack("<IIIIQ", selector, 0xFFFF_FFFF if flags else 0, flags, 0, base)
    qemu += struct.pack("<6Q", *control, 0)  # kernel_gs_base behind them
    qemu = struct.pack("<II", 1, 8 + len(qemu)) + qemu
    ours = (control[0], root, control[4], x86.EFER_KERNEL, x86.PAT_VALUE, machine.format.physical_bits)
    return _note(b"CORE", _NT_PRSTATUS, _status(status)) + _note(b"QEMU", 0, qemu) + _our_note(ours)


def _arm_notes(machine: Machine, root: int) -> bytes:
    values = machine.cpu.registers()
    general = [values[f"x{number}"] for number in range(31)]
    status = struct.pack("<34Q", *general, values["sp"], values["pc"], values["nzcv"])
    ours = (
        arm.SCTLR_VALUE, root, machine.cpu.read("ttbr1_el1"), machine.cpu.read("tcr_el1"), arm.MAIR_VALUE,
    )  # fmt: skip
    return _note(b"CORE", _NT_PRSTATUS, _status(status)) + _our_note(ours)


def _our_note(words: tuple[int, ...]) -> bytes:
    data = struct.pack(f"<{len(words)}Q", *words)
    return _note(b"AETHER", 1, struct.pack("<II", 1, 8 + len(data)) + data)
