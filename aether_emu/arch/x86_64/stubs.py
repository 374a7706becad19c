"""Ring-0 code that the machine keeps in its supervisor text page, as bytes with their assembly.

A test assembles each source and compares. All stubs end in `hlt`, which ends a run of the engine.
"""

from __future__ import annotations

from aether_emu.records import dataclass


@dataclass(frozen=True, slots=True)
class Stub:
    """One routine: where it sits in the text page, its source, its bytes."""

    offset: int
    source: str
    code: bytes


IRET = Stub(0x000, "iretq", bytes.fromhex("48cf"))
INVLPG = Stub(0x010, "invlpg [rdi]; hlt", bytes.fromhex("0f013ff4"))
LOAD = Stub(0x020, "mov rax, [rdi]; hlt", bytes.fromhex("488b07f4"))
STORE = Stub(0x030, "mov [rdi], rax; hlt", bytes.fromhex("488907f4"))
LOAD_ALLOWED = Stub(0x040, "stac; mov rax, [rdi]; clac; hlt", bytes.fromhex("0f01cb488b070f01caf4"))
STORE_ALLOWED = Stub(0x050, "stac; mov [rdi], rax; clac; hlt", bytes.fromhex("0f01cb4889070f01caf4"))
JUMP = Stub(0x060, "jmp rdi", bytes.fromhex("ffe7"))
FEATURES = Stub(0x080, "mov eax, 1; cpuid; mov eax, edx; hlt", bytes.fromhex("b8010000000fa289d0f4"))
HALT = Stub(0x090, "hlt", bytes.fromhex("f4"))

ALL: tuple[Stub, ...] = (*(IRET, INVLPG, LOAD, STORE, LOAD_ALLOWED, STORE_ALLOWED, JUMP, FEATURES, HALT),)
