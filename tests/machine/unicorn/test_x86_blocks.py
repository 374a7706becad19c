"""Which instructions of an x86 block are stopped at, told from their bytes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.machine.unicorn.x86_blocks import Found, Special, first_special, suspicious
from tests.machine.unicorn.flat_guest import assemble

AT = 0x40_0000

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


@pytest.mark.parametrize("source", ILLEGAL)
def test_vector_code_in_vex_encoding_is_illegal(source: str) -> None:
    code = assemble(source)
    assert first_special(code, AT) == Found(0, len(code), Special.ILLEGAL)


@pytest.mark.parametrize("source", PRIVILEGED)
def test_port_access_and_what_raises_the_wrong_exception_is_privileged(source: str) -> None:
    code = assemble(source)
    assert first_special(code, AT) == Found(0, len(code), Special.PRIVILEGED)


@pytest.mark.parametrize("source", ORDINARY)
def test_what_the_engine_executes_rightly_is_left_alone(source: str) -> None:
    assert first_special(assemble(source, AT), AT) is None


@pytest.mark.parametrize("instruction", ["rdrand", "rdseed"])
@pytest.mark.parametrize(
    ("register", "number", "width"),
    [("ebx", 3, 4), ("rbx", 3, 8), ("bx", 3, 2), ("r9", 9, 8), ("r9d", 9, 4), ("r15w", 15, 2), ("rsp", 4, 8)],
)
def test_a_random_instruction_names_its_register_and_width(
    instruction: str, register: str, number: int, width: int
) -> None:
    code = assemble(f"{instruction} {register}")
    assert first_special(code, AT) == Found(0, len(code), Special.RANDOM, number, width)


def test_reading_the_processors_number_is_not_random() -> None:
    assert first_special(b"\xf3\x0f\xc7\xf8", AT) is None  # rdpid rax


def test_the_first_one_is_found_behind_ordinary_instructions() -> None:
    before = assemble("mov eax, 0xc5f1fec2\nadd rax, rbx")
    code = before + assemble("vpaddd xmm0, xmm1, xmm2\nrdrand eax")
    assert first_special(code, AT) == Found(len(before), 4, Special.ILLEGAL)


@given(
    before=st.lists(st.sampled_from(ORDINARY), max_size=4),
    special=st.sampled_from([*ILLEGAL, *PRIVILEGED, "rdrand rcx", "rdseed r8w"]),
)
def test_every_special_instruction_looks_suspicious_wherever_it_stands(
    before: list[str], special: str
) -> None:
    start = b"".join(assemble(source) for source in before)
    code = start + assemble(special)
    assert suspicious(code)
    found = first_special(code, AT)
    assert found is not None
    assert (found.offset, found.size) == (len(start), len(code) - len(start))


@given(st.binary(max_size=64))
def test_any_bytes_are_classified_without_an_error(code: bytes) -> None:
    found = first_special(code, AT)
    assert found is None or (suspicious(code) and 0 <= found.offset < len(code))
