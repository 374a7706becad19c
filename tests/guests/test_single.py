"""Rare x86_64 instructions and their faults are what silicon makes of them.

The expected outcomes were recorded on an Intel Xeon (family 6, model 85) under Linux. Where the host is an
x86_64 Linux the same program runs on it too, and all registers, the FPU's state and the memory must be
equal. `OPEN` marks what the manuals leave open, where another maker's CPU may tell another address or pc.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.guests.single import AREA, CODE, EDGE, Case, Next, Outcome, on_the_host, on_the_machine, silicon
from tests.machine.unicorn.flat_guest import assemble

ABSENT, READ_ONLY, NO_ACCESS = Next.ABSENT, Next.READ_ONLY, Next.NO_ACCESS
HOLE = 1 << 47  # the first address that is not canonical
OPEN = True


class Told(NamedTuple):
    """What a handler was told. `pc` is an offset into the code."""

    signal: str
    code: int
    address: int = 0
    error: int = 0
    trap: int = 0
    pc: int = 0


ILL, GP = Told("ILL", 2, CODE, 0, 6), Told("SEGV", 128, trap=13)
SS, DONE = Told("BUS", 128, trap=12), "done"


def fault(address: int, error: int, pc: int = 0) -> Told:
    """A page fault."""
    return Told("SEGV", 2 if error & 1 or (error == 4 and address >> 12 == 0) else 1, address, error, 14, pc)


class Row(NamedTuple):
    """One case and what comes of it. `needs` is a CPU feature that the host may lack."""

    name: str
    code: bytes
    registers: dict[str, int]
    page: Next
    told: Told | str
    open: bool = False
    needs: str = ""


def row(
    source: str | bytes,
    told: Told | str,
    page: Next = Next.WRITABLE,
    *,
    open: bool = False,  # as the manuals' word
    needs: str = "",
    **registers: int,
) -> Row:
    code = source if isinstance(source, bytes) else assemble(source)
    name = source if isinstance(source, str) else source.hex()
    where = " ".join(f"{register}={value:x}" for register, value in registers.items())
    return Row(f"{name} {where} {page.name}", code, registers, page, told, open, needs)


LONG_STORES = [
    row("fxsave [rdi]", fault(EDGE + 255, 6), ABSENT, rdi=EDGE - 256, open=OPEN),
    row("fxsave64 [rdi]", fault(EDGE + 255, 7), READ_ONLY, rdi=EDGE - 256, open=OPEN),
    row("fxrstor [rdi]", fault(EDGE + 255, 4), ABSENT, rdi=EDGE - 256, open=OPEN),
    row("xor edx, edx\nmov eax, 3\nxsave [rdi]", fault(EDGE + 319, 6, 7), ABSENT, rdi=EDGE - 256, open=OPEN),
    row("fld1\nfnsave [rdi]", fault(EDGE + 57, 6, 2), ABSENT, rdi=EDGE - 50, open=OPEN),
    row("fld1\nfnsave [rdi]", fault(EDGE, 7, 2), READ_ONLY, rdi=EDGE - 3, open=OPEN),
    row("fld1\nfnstenv [rdi]", fault(EDGE + 15, 6, 2), ABSENT, rdi=EDGE - 12, open=OPEN),
    *(
        row(prefix + code, fault(EDGE + size - behind, error), ABSENT, rdi=EDGE + 1 - behind, open=OPEN)
        for code, wide, narrow, error in (
            (b"\xd9\x27", 28, 14, 4),  # FLDENV
            (b"\xd9\x37", 28, 14, 6),  # FNSTENV
            (b"\xdd\x27", 108, 94, 4),  # FRSTOR
            (b"\xdd\x37", 108, 94, 6),  # FNSAVE
        )
        for prefix, size, first in ((b"", wide, 4), (b"\x66", narrow, 2))
        for behind in (first + 1, size)
    ),
    *(
        row("fld1\nfbstp [rdi]", fault(EDGE, error, 2), page, rdi=EDGE - before)
        for page, error in ((ABSENT, 6), (READ_ONLY, 7))
        for before in (1, 7)  # with 8 or 9 the CPU of the records stores those first
    ),
    row("fld1\nfbstp [rdi]", DONE, ABSENT, rdi=EDGE - 10),
    row("fxsave [rdi]", DONE, rdi=EDGE - 256, open=OPEN),  # the mask of MXCSR is the model's
    row("fxsave [rdi + 4]", GP, ABSENT, rdi=EDGE - 256),
    row("pcmpeqd xmm2, xmm2\nmaskmovdqu xmm1, xmm2", fault(EDGE + 5, 6, 4), ABSENT, rdi=EDGE - 3, open=OPEN),
    row("pcmpeqd xmm2, xmm2\nmaskmovdqu xmm1, xmm2", fault(EDGE, 7, 4), READ_ONLY, rdi=EDGE - 8),
    row("pcmpeqd xmm2, xmm2\nmaskmovdqu xmm1, xmm2", DONE, rdi=EDGE - 8),
    row("pcmpeqd xmm2, xmm2\nmaskmovdqu xmm1, xmm2", GP._replace(pc=4), rdi=HOLE),
]
ENTERS = [
    row("enter 16, 0", fault(AREA - 16, 6), rsp=AREA + 8, rbp=AREA + 0x800),
    row("enter 0x1000, 0", fault(AREA + 0xF8 - 0x1000, 6), rsp=AREA + 0x100, rbp=AREA + 0x800),
    row("enter 0x8000, 31", fault(AREA - 0x8000, 6), rsp=AREA + 0x100, rbp=AREA + 0x800),
    row("enter 8, 1", fault(AREA - 8, 6), rsp=AREA, rbp=AREA + 0x800),
    row("enter 64, 3", DONE, rsp=AREA + 0x400, rbp=AREA + 0x800),
    row("enter 8, 0", SS, rsp=HOLE + 0x1000),
]
CACHE = [
    row(code, told, page, rdi=address, needs=needs)
    for code, needs in (
        (b"\x0f\xae\x3f", "clflush"),
        (b"\x66\x0f\xae\x3f", "clflushopt"),
        (b"\x66\x0f\xae\x37", "clwb"),
    )
    for address, told, page in (
        (EDGE + 5, fault(EDGE + 5, 4), ABSENT),
        (EDGE + 5, Told("SEGV", 2, EDGE + 5, 4, 14), NO_ACCESS),
        (EDGE + 5, DONE, READ_ONLY),
        (HOLE, GP, ABSENT),
        (1 << 63, GP, ABSENT),
    )
]
BASES = [
    row(f"wr{base}base rax", GP if value in (HOLE, 1 << 63) else DONE, rax=value, needs="fsgsbase")
    for base in ("fs", "gs")
    for value in (HOLE, 1 << 63, HOLE - 1, 5)
]
LOCKED = [
    row(b"\xf0" + assemble(source), ILL, rdi=AREA + 0x100, rax=1)
    for source in (
        *("add rax, rbx", "nop", "mov rax, rbx", "mov [rdi], rax", "inc rax", "jmp [rdi]", "cmp [rdi], rax"),
        *("test [rdi], rax", "xor rax, [rdi]", "push rax", "movups [rdi], xmm0", "bt [rdi], rax", "ret"),
        *("xchg rax, rbx", "shl qword ptr [rdi], 1", "stosq", "lea rax, [rdi]", "call rax", "sete [rdi]"),
        *("mul qword ptr [rdi]", "bswap eax", "fld1", "syscall", "xadd rax, rbx", "cmpxchg rax, rbx"),
        *("cpuid", "mfence", "imul rax, [rdi]", "rdrand eax", "enter 8, 0", "fxsave [rdi]", "int3"),
    )
]
LOCKABLE = [
    row(b"\xf0" + assemble(source), DONE, rdi=AREA + 0x100, rax=1)
    for source in (
        *("add [rdi], rax", "or [rdi], rax", "adc [rdi], eax", "sbb [rdi], ax", "and [rdi], al"),
        *("sub [rdi], rax", "xor [rdi], rax", "add qword ptr [rdi], 5", "xor byte ptr [rdi], 5"),
        *("xchg [rdi], rax", "not qword ptr [rdi]", "neg byte ptr [rdi]", "inc dword ptr [rdi]"),
        *(
            "dec byte ptr [rdi]",
            "bts [rdi], rax",
            "btr [rdi], rax",
            "btc [rdi], rax",
            "btc qword ptr [rdi], 3",
        ),
        *("cmpxchg [rdi], rbx", "xadd [rdi], rbx", "cmpxchg8b [rdi]", "cmpxchg16b [rdi]"),
    )
]
STACK = [
    row(source, SS, rsp=HOLE + 0x1000, rbp=HOLE + 0x1000, rdi=AREA, rax=CODE)
    for source in (
        *("mov rax, [rsp]", "mov [rbp], rax", "push rax", "pop rax", "call rax", "ret", "leave", "pushfq"),
        *("popfq", "lock inc qword ptr [rsp]", "movups xmm0, [rsp]", "mov rax, [rbp + rdi]", "call [rsp]"),
        *("jmp [rsp]", "push [rdi]", "ret 8", "iretq", "push fs", "push 5"),
    )
] + [
    row("mov rax, [rbp * 2]", GP, rbp=HOLE + 0x1000),
    row("mov rax, [rdi + rbp]", GP, rdi=AREA, rbp=HOLE),
    row("mov rax, fs:[rsp]", GP, rsp=HOLE),
    row("mov rax, [r13]", GP, r13=HOLE),
    row("mov rax, [r12]", GP, r12=HOLE),
    row(b"\x3e\x48\x8b\x04\x24", SS, rsp=HOLE),
    row(b"\x36\x48\x8b\x07", GP, rdi=HOLE),
    row("push [rdi]", GP, rdi=HOLE),
    row("hlt", GP, rsp=AREA + 0x400),
]
OTHERS = [
    row(b"\xf1", Told("TRAP", 1, CODE + 1, 0, 1, 1), open=OPEN),  # ICEBP
    row(b"\x66\xf1", Told("TRAP", 1, CODE + 2, 0, 1, 2), open=OPEN),
    row(b"\xcd\x01", GP._replace(error=10)),
    row("int3", Told("TRAP", 128, 0, 0, 3, 1)),
    row("mov cr5, rax", ILL),
    row("mov rax, cr9", ILL),
    row("mov cr3, rax", GP),
    row("mov dr0, rax", GP),
]
_WORDS = "mov dword ptr [rsp + {0}], {1}\nmov dword ptr [rsp + {0} + 4], 0\n"
_FRAME = (CODE + 0x80, 0x33, 0x603, AREA + 0x700, 0x2B)


def frame(width: int, **changed: int) -> bytes:
    """Code that puts what a far return pops onto the stack."""
    words = [
        changed.get(name, word) for name, word in zip(("pc", "cs", "fl", "sp", "ss"), _FRAME, strict=True)
    ]
    return assemble("".join(_WORDS.format(i * width, word) for i, word in enumerate(words)))


_IRETQ, _RETFQ, _RETF = b"\x48\xcf", b"\x48\xcb", b"\xcb"
_BACK = Told("TRAP", 128, 0, 0, 3, 0x81)
FAR = [
    *(row(frame(8) + code, _BACK) for code in (_IRETQ, _RETFQ, b"\x48\xca\x08\x00")),
    *(row(frame(4) + code, _BACK) for code in (b"\xcf", _RETF, b"\xca\x10\x00")),
    row(frame(8, cs=0x10) + _RETFQ, GP._replace(error=0x10, pc=len(frame(8, cs=0x10)))),
    row(frame(8, cs=0) + _IRETQ, GP._replace(pc=len(frame(8, cs=0)))),
    row(_RETFQ, fault(EDGE, 4), ABSENT, rsp=EDGE - 8),
    row(_IRETQ, fault(EDGE + 8, 4), ABSENT, rsp=EDGE - 8, open=OPEN),
    row(_RETF, SS, rsp=HOLE),
]
NEGATIONS = [
    row(
        assemble(f"mov {size} ptr [rdi], {value}") + b"\xf0" + assemble(f"neg {size} ptr [rdi]"),
        DONE,
        rdi=EDGE - 2,
    )
    for size, most in (("byte", 1 << 7), ("word", 1 << 15), ("dword", 1 << 31), ("qword", 0x7FFF_FFFF))
    for value in (0, 1, 16, 0x7F, most)
]
_LOAD = "mov rax, {0}\nmov [rdi], rax\n"
OVERREADS = [
    row(assemble(_LOAD.format(value)) + code, DONE, ABSENT, rdi=EDGE - 8)
    for code in (
        *(b"\x0f\x5a\x0f", b"\x44\x0f\x5a\x3f", b"\xf3\x0f\xe6\x0f"),  # CVTPS2PD, CVTDQ2PD
        *(b"\x66\x0f\x3a\x0b\x0f" + bytes([mode]) for mode in (8, 9, 10, 11, 12)),  # ROUNDSD
        *(b"\x66\x0f\x3a\x0a\x4f\x04" + bytes([mode]) for mode in (8, 9, 10, 11, 12)),  # ROUNDSS
    )
    for value in (
        *(0x3FC0_0000_BFC0_0000, 0x4009_21FB_5444_2D18, 0xC004_0000_0000_0000, 0x8000_0000_7F80_0000),
        *(0x7FC1_2345_FFC0_0001, 0xFFF0_0000_0000_0000, 0xBFE0_0000_4020_0000, 0x43E0_0000_4B80_0001),
    )
] + [
    row(b"\x0f\x5a\x0f", fault(EDGE, 4), ABSENT, rdi=EDGE - 7),
    row(b"\x66\x0f\x3a\x0a\x0f\x08", fault(EDGE, 4), ABSENT, rdi=EDGE - 3),
    row(b"\xf3\x0f\xe6\x0f", fault(EDGE, 4), ABSENT, rdi=EDGE),
]
FLAGS = [
    row(rex + code, DONE, rax=rax, rflags=rflags)
    for rex in (b"", b"\x40", b"\x43", b"\x48", b"\x66\x4f")
    for code in (b"\x9e", b"\x9f")
    for rax in (0x1234_5678_9ABC_0000, 0xFFFF, 0xD500, 0x2A00)
    for rflags in (0x202, 0xAD7)
]
ENDS = [
    *(row("mov rax, [rdi]", GP, rdi=HOLE - distance) for distance in (1, 4, 7)),
    *(row("mov [rdi], rax", GP, rdi=HOLE - distance) for distance in (1, 7)),
    row("mov rax, [rdi]", Told("SEGV", 1, HOLE - 8, 5, 14), rdi=HOLE - 8),
    row("mov eax, [rdi]", Told("SEGV", 1, HOLE - 4, 5, 14), rdi=HOLE - 4),
    row("mov al, [rdi]", Told("SEGV", 1, HOLE - 1, 5, 14), rdi=HOLE - 1),
    row("add ax, [rdi]", GP, rdi=HOLE - 1),
    row("movups xmm0, [rdi]", GP, rdi=HOLE - 15),
    row("movups [rdi], xmm0", GP, rdi=HOLE - 8),
    row("movsd xmm0, [rdi]", Told("SEGV", 1, HOLE - 8, 5, 14), rdi=HOLE - 8),
    row("mov rax, [rsp]", SS, rsp=HOLE - 4),
    row("pop rax", SS, rsp=HOLE - 4),
    row("push rax", SS, rsp=HOLE + 4),
    row("ret", SS, rsp=HOLE - 1),
    row("pop rax", Told("SEGV", 1, HOLE - 8, 5, 14), rsp=HOLE - 8),
]
ROWS = [
    *ENDS,
    *FLAGS,
    *OVERREADS,
    *NEGATIONS,
    *LONG_STORES,
    *ENTERS,
    *CACHE,
    *BASES,
    *LOCKED,
    *LOCKABLE,
    *STACK,
    *OTHERS,
    *FAR,
]
_SIGNALS = {4: "ILL", 5: "TRAP", 7: "BUS", 8: "FPE", 11: "SEGV"}


def cases(rows: list[Row]) -> list[Case]:
    return [Case(row.code + b"\xcc" * 160, row.registers, row.page) for row in rows]


def told(outcome: Outcome) -> Told:
    pc = outcome.registers["rip"] - CODE
    return Told(_SIGNALS[outcome.signal], outcome.code, outcome.address, outcome.error, outcome.trap, pc)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The outcome of every row on the machine."""
    outcomes = on_the_machine(cases(ROWS), tmp_path_factory.mktemp("single"))
    assert len(outcomes) == len(ROWS)
    return {row.name: outcome for row, outcome in zip(ROWS, outcomes, strict=True)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_rare_instruction_is_what_silicon_makes_of_it(row: Row, ours: dict[str, Outcome]) -> None:
    end = Told("TRAP", 128, 0, 0, 3, len(row.code) + 1)
    assert told(ours[row.name]) == (end if row.told == DONE else row.told)


def test_this_host_agrees_with_the_recorded_outcomes(ours: dict[str, Outcome], tmp_path: Path) -> None:
    rows = [row for row in ROWS if row.needs in ("", *silicon())]
    if not silicon():
        assert not [row for row in rows if row.needs]  # another ISA: the recorded outcomes stand alone
        return
    differ = []
    for row, native in zip(rows, on_the_host(cases(rows), tmp_path), strict=True):
        mine = ours[row.name]
        if row.open:
            same = (native.signal, native.code, native.trap) == (mine.signal, mine.code, mine.trap)
        else:
            same = native == mine
        if not same:
            differ.append((row.name, told(native), told(mine)))
    assert not differ
