"""Which instructions of an x86 block are stopped at, told from their bytes alone."""

from __future__ import annotations

import itertools

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.machine.unicorn.x86_blocks import (
    Found,
    Special,
    first_special,
    has_rule,
    instructions,
    special_at,
)
from aether_emu.machine.unicorn.x86_calibrate import MODEL
from tests.machine.unicorn.flat_guest import CODE, assemble, unicorn

ILLEGAL = [
    "vpaddd xmm0, xmm1, xmm2",
    "vpaddd ymm0, ymm1, ymm2",
    "vaddps xmm0, xmm1, [rax + rbx * 4 + 0x1234]",
    "vpxor xmm8, xmm9, xmm10",
    "vzeroupper",
    "vfmadd231ps xmm0, xmm1, xmm2",
    "vpgatherdd xmm0, [rax + xmm1 * 4], xmm2",
]
PRIVILEGED = [
    "in al, dx", "in eax, 0x60", "out dx, ax", "out 0x80, al", "insb", "rep insd", "outsb", "rep outsw",
    "rdpmc", "sysexit",
]  # fmt: skip
ORDINARY = [
    "andn rax, rcx, rdx",
    "shlx rax, rdx, rcx",
    "bextr eax, ebx, ecx",
    "blsr rax, rbx",
    "pdep rax, rbx, rcx",
    "rorx rax, rbx, 5",
    "mulx rax, rbx, rcx",
    "mov eax, 0xc5c5c5c5",
    "sub rsp, 0x6c",
    "mov ecx, 0xc7c70f",
    "cmpxchg8b [rdi]",
    "cmpxchg16b [rdi]",
    "xsavec [rdi]",
    "movups xmm0, [rsp - 0x20]",
    "mov rdi, rsp",
]


def needs_look(code: bytes) -> bool:
    """Whether any instruction of a block has a rule."""
    return any(has_rule(instruction) for instruction in instructions(code))


@pytest.mark.parametrize("source", ILLEGAL)
def test_vector_code_in_vex_encoding_is_illegal(source: str) -> None:
    code = assemble(source)
    assert first_special(code) == Found(0, len(code), Special.ILLEGAL)


@pytest.mark.parametrize("source", PRIVILEGED)
def test_port_access_and_what_raises_the_wrong_exception_is_privileged(source: str) -> None:
    code = assemble(source)
    assert first_special(code) == Found(0, len(code), Special.PRIVILEGED)


@pytest.mark.parametrize("source", ORDINARY)
def test_what_the_engine_executes_rightly_is_left_alone(source: str) -> None:
    assert first_special(assemble(source)) is None


@pytest.mark.parametrize(
    "source", ["mov eax, 0xc5c5c5c5", "sub rsp, 0x6c", "mov ecx, 0xc7c70f", "mov rdi, rsp"]
)
def test_bytes_that_only_look_like_a_special_opcode_need_no_look(source: str) -> None:
    assert not needs_look(assemble(source))


@pytest.mark.parametrize("instruction", ["rdrand", "rdseed"])
@pytest.mark.parametrize(
    ("register", "number", "width"),
    [("ebx", 3, 4), ("rbx", 3, 8), ("bx", 3, 2), ("r9", 9, 8), ("r9d", 9, 4), ("r15w", 15, 2), ("rsp", 4, 8)],
)
def test_a_random_instruction_names_its_register_and_width(
    instruction: str, register: str, number: int, width: int
) -> None:
    code = assemble(f"{instruction} {register}")
    assert first_special(code) == Found(0, len(code), Special.RANDOM, number, width)


def test_reading_the_processors_number_is_not_random() -> None:
    assert first_special(b"\xf3\x0f\xc7\xf8") is None  # rdpid rax


def test_the_first_one_is_found_behind_ordinary_instructions() -> None:
    before = assemble("mov eax, 0xc5f1fec2\nadd rax, rbx")
    code = before + assemble("vpaddd xmm0, xmm1, xmm2\nrdrand eax")
    assert first_special(code) == Found(len(before), 4, Special.ILLEGAL)


@given(
    before=st.lists(st.sampled_from(ORDINARY), max_size=4),
    special=st.sampled_from([*ILLEGAL, *PRIVILEGED, "rdrand rcx", "rdseed r8w"]),
)
def test_every_special_instruction_is_found_wherever_it_stands(before: list[str], special: str) -> None:
    start = b"".join(assemble(source) for source in before)
    code = start + assemble(special)
    assert needs_look(code)
    found = first_special(code)
    assert found is not None
    assert (found.offset, found.size) == (len(start), len(code) - len(start))
    assert special_at(code, len(start)) == found
    assert special_at(code[:-1], len(start)) is None, "cut off"


@given(st.binary(max_size=64))
def test_any_bytes_are_classified_without_an_error(code: bytes) -> None:
    found = first_special(code)
    assert found is None or (needs_look(code) and 0 <= found.offset < len(code))


# ---- lengths: what capstone, and the engine itself, make of every opcode

NOPS, HLT = b"\x90" * 8, b"\xf4"  # behind an instruction that is shorter than thought, others are as long
PREFIXES = [b"", b"\x66", b"\x67", b"\xf2", b"\x66\x49", b"\x48\x66"]
ESCAPES = [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]
OPERANDS = [
    bytes([modrm, sib])
    for modrm in (0x00, 0x05, 0x0C, 0x44, 0x88, 0xC0, 0xD1, 0x3C, 0xF8, 0x71)
    for sib in (0x20, 0x25)
]
# Of no consequence: a branch ends its block, and so does what is undefined or the supervisor's alone.
BRANCHES = {0xC2, 0xE8, 0xE9, *range(0x0F80, 0x0F90)}
NOT_EXECUTED = {
    *range(0x0F20, 0x0F24),
    0x0FA6,
    0x0FA7,
    0x0FB9,
    0x0FFF,
}  # mov of control registers, Padlock, UD
# The engine takes any operand of these for a register; with one in memory they are undefined.
REGISTERS_ONLY = {0x0F50, 0x0F73, 0x0F78, 0x0FC5, 0x0FD6}


def encodings(escape: bytes, opcode: int) -> list[bytes]:
    """The opcode with many operands, cut off or filled up to 15 bytes, without prefixes."""
    return [(escape + bytes([opcode]) + operand + bytes(15))[:11] for operand in OPERANDS]


@pytest.mark.parametrize("prefix", PREFIXES, ids=bytes.hex)
def test_instructions_are_as_long_as_capstone_says(prefix: bytes) -> None:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    compared = 0
    for escape, opcode in itertools.product(ESCAPES, range(256)):
        for code in encodings(escape, opcode):
            theirs = next(decoder.disasm_lite(prefix + code, 0), None)
            if theirs is None or theirs[2] == "vmread":
                continue
            ours = next(instructions(prefix + code))
            if ours.opcode in NOT_EXECUTED or (ours.opcode in BRANCHES and b"\x66" in prefix):
                continue
            compared += 1
            assert ours.size == theirs[1], (prefix + code).hex()
    assert compared > 5000


@pytest.mark.parametrize("prefix", PREFIXES, ids=bytes.hex)
def test_a_block_has_the_instructions_that_the_engine_counts_in_it(prefix: bytes) -> None:
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64, MODEL)
    uc.mem_map(CODE, 0x1000)
    counted = 0
    for escape, opcode in itertools.product(ESCAPES, range(256)):
        if int.from_bytes(escape + bytes([opcode])) in NOT_EXECUTED | REGISTERS_ONLY:
            continue
        code = b"".join(prefix + code + NOPS for code in encodings(escape, opcode)) + HLT
        uc.mem_write(CODE, code)
        uc.ctl_flush_tb()
        _pc, count, size = uc.ctl_request_cache(CODE)
        ours = list(instructions(code[:size]))
        if len(ours) != count - 1:  # else the engine met an undefined instruction, and read only its start
            counted += count
            assert (len(ours), sum(each.size for each in ours)) == (count, size), code[:size].hex()
    assert counted > 5000
