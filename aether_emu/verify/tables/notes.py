"""What the notes of an ELF core tell about the CPU that walked the tables.

QEMU's own note (name "QEMU", x86_64 alone) holds cr0 to cr4. Ours (name "AETHER", type 1) begins with
two words of 32 bits, a version and its size, and goes on with words of 64 bits, as below. Linux's VMCOREINFO
(type 0) is text; of it NUMBER(sme_mask) is read.

    x86_64   CR0, CR3, CR4, IA32_EFER, IA32_PAT, MAXPHYADDR
    arm64    SCTLR_EL1, TTBR0_EL1, TTBR1_EL1, TCR_EL1, MAIR_EL1
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

_QEMU_CONTROL, _OURS = 392, 8  # offsets of the first control register in either note
_PAE, _LA57, _SMEP, _NXE, _WXN = 1 << 5, 1 << 12, 1 << 20, 1 << 11, 1 << 19
_GRANULES = {0: 4, 1: 64, 2: 16}  # TCR_EL1.TG0 (Arm ARM D19.2.147), in KiB
_PHYSICAL = (32, 36, 40, 42, 44, 48, 52)  # TCR_EL1.IPS
_DS = 1 << 59  # TCR_EL1.DS: descriptors of LPA2
_SME_MASK = re.compile(rb"^NUMBER\(sme_mask\)=(-?[0-9]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Registers:
    """None: the file does not tell. `roots` are CR3, or TTBR0_EL1 and TTBR1_EL1, as the registers hold them.

    `memory_types` is IA32_PAT or MAIR_EL1.
    """

    isa: str | None = None
    format: str | None = None
    roots: tuple[int | None, int | None] = (None, None)
    physical_bits: int | None = None
    memory_types: int | None = None
    nxe: bool | None = None
    smep: bool | None = None
    wxn: bool | None = None
    encryption_bit: int | None = None  # the address bit that selects no memory


def registers_of(isa: str, notes: Sequence[memoryview]) -> Registers:
    """What a core of `isa` tells: of several CPUs, the first. Notes that make no sense tell nothing."""
    found = Registers(isa)
    for name, kind, data in (note for part in notes for note in _each(part)):
        if name == b"VMCOREINFO" and isa == "x86_64" and (mask := _SME_MASK.search(bytes(data))):
            word = int(mask[1]) & (1 << 64) - 1
            if word and not word & word - 1 and 32 <= word.bit_length() - 1 < 52:
                found = replace(found, encryption_bit=word.bit_length() - 1)
        if name == b"AETHER" and kind == 1:
            return (_ours_x86 if isa == "x86_64" else _ours_arm)(found, data)
        told = found.roots[0] is not None
        if name == b"QEMU" and isa == "x86_64" and len(data) >= _QEMU_CONTROL + 40 and not told:
            control = struct.unpack_from("<5Q", data, _QEMU_CONTROL)
            found = _x86(found, control[3], control[4])
    return found


def _each(part: memoryview) -> Iterator[tuple[bytes, int, memoryview]]:
    """(name, type, description) of each note (System V ABI, chapter 5, note section)."""
    at = 0
    while at + 12 <= len(part):
        name_size, size, kind = struct.unpack_from("<3I", part, at)
        at += 12
        data = at + (name_size + 3 & ~3)
        if data + size > len(part):
            return
        yield bytes(part[at : at + name_size]).rstrip(b"\0"), kind, part[data : data + size]
        at = data + (size + 3 & ~3)


def _x86(found: Registers, cr3: int, cr4: int) -> Registers:
    if not cr4 & _PAE:  # no four levels without it: the CPU had not reached long mode
        return found
    levels = 5 if cr4 & _LA57 else 4
    return replace(found, format=f"x86_64-{levels}level", roots=(cr3, None), smep=bool(cr4 & _SMEP))


def _ours_x86(found: Registers, data: memoryview) -> Registers:
    if len(data) < _OURS + 48:
        return found
    _cr0, cr3, cr4, efer, pat, bits = struct.unpack_from("<6Q", data, _OURS)
    if not 32 <= bits <= 52:
        return found
    told = _x86(found, cr3, cr4)
    return replace(told, nxe=bool(efer & _NXE), memory_types=pat, physical_bits=bits)


def _ours_arm(found: Registers, data: memoryview) -> Registers:
    if len(data) < _OURS + 40:
        return found
    sctlr, low, high, tcr, mair = struct.unpack_from("<5Q", data, _OURS)
    granule, virtual, size = _GRANULES.get(tcr >> 14 & 3), 64 - (tcr & 63), tcr >> 32 & 7
    if granule is None or size >= len(_PHYSICAL):
        return found
    wide = "-lpa" if granule == 64 and size == 6 else "-lpa2" if granule != 64 and tcr & _DS else ""
    return replace(
        found,
        format=f"arm64-{granule}K" + ("" if virtual == 48 else f"-{virtual}bit") + wide,
        roots=(low, high),
        physical_bits=_PHYSICAL[size],
        memory_types=mair,
        wxn=bool(sctlr & _WXN),
    )
