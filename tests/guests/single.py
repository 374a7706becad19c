"""Single x86_64 instructions, on the machine and on this host: what is each one's outcome?

A small program is made of a list of cases. It runs each case's code in registers and memory that the case
names, to an exception (`int3` where there is no other), and writes what its handler was told. The same file
runs on the machine and, where the host is an x86_64 Linux, natively.
"""

from __future__ import annotations

import os
import platform
import stat
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.machine.unicorn.flat_guest import assemble

GENERAL = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
# Order of the general registers in struct sigcontext.
_CONTEXT = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "rflags",
)  # fmt: skip

CODE, AREA, EDGE = 0x1000_0000, 0x2000_0000, 0x2000_1000
"""Two pages of code; two of data, which meet at EDGE."""
NEAR = 640
"""Bytes on each side of EDGE that an outcome shows."""
_TEXT, _DATA, _STACK, _TOP = 0x40_0000, 0x50_0000, 0x60_0000, 0x60_8000
_RECORD, _RESULT = 2048, 2048
_RECORDS = 0x2000  # from _DATA; before them the result, the alternate stack's description and the FPU's image


class Next(IntEnum):
    """What the page behind EDGE is."""

    WRITABLE = 3
    READ_ONLY = 1
    NO_ACCESS = 0
    ABSENT = 8


@dataclass(frozen=True)
class Case:
    """Code, and the registers it starts with; others hold numbers of their own. rsp is in AREA."""

    code: bytes
    registers: dict[str, int] = field(default_factory=dict)
    page: Next = Next.WRITABLE
    offset: int = 0


@dataclass(frozen=True)
class Outcome:
    """What the handler of the exception was told, and the bytes around EDGE (as far as they can be read)."""

    signal: int
    code: int
    address: int
    error: int
    trap: int
    registers: dict[str, int]
    fpu: bytes
    memory: bytes


_SETUP = f"""
    mov r15, {_DATA}
    lea rdi, [r15 + 0x1800]
    mov eax, 131
    xor esi, esi
    syscall                         # sigaltstack
    mov r14d, 4                     # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV
again:
    mov edi, r14d
    lea rsi, [r15 + 0x1840]
    xor edx, edx
    mov r10d, 8
    mov eax, 13
    syscall                         # rt_sigaction
    inc r14d
    cmp r14d, 12
    jne again
    mov edi, {CODE}
    mov esi, 0x2000
    mov edx, 7
    mov r10d, 0x22
    mov r8, -1
    xor r9d, r9d
    mov eax, 9
    syscall                         # mmap
    lea r14, [r15 + {_RECORDS}]
    jmp next
handler:
    mov r15, {_DATA}
    mov r14, [r15 + 0x1900]
    mov r13, rdx
    mov rdi, r15
    mov ecx, 4
    rep movsq                       # siginfo, as far as the address
    lea rsi, [r13 + 40]
    mov ecx, 23
    rep movsq                       # registers
    mov rsi, [r13 + 40 + 184]
    mov ecx, 64
    rep movsq                       # FXSAVE image
    mov r12, rdi
    mov edi, {AREA}
    mov esi, 0x2000
    mov edx, 3
    mov eax, 10
    syscall                         # mprotect; without the absent page it does the first one only
    mov rdi, r12
    mov esi, {EDGE - NEAR}
    mov ecx, {NEAR // 8}
    rep movsq
    cmp qword ptr [r14 + 16], {Next.ABSENT.value}
    je write
    mov ecx, {NEAR // 8}
    rep movsq
write:
    mov edi, 1
    mov rsi, r15
    mov edx, {_RESULT}
    mov eax, 1
    syscall
    mov rdi, r15
    mov ecx, {_RESULT // 8}
    xor eax, eax
    rep stosq
    add r14, {_RECORD}
next:
    cmp qword ptr [r14 + 8], 0
    jne run
    xor edi, edi
    mov eax, 231
    syscall                         # exit_group
run:
    mov rsp, {_TOP}
    mov [r15 + 0x1900], r14
    mov edi, {AREA}
    mov esi, 0x2000
    mov edx, 3
    mov r10d, 0x32
    mov r8, -1
    xor r9d, r9d
    mov eax, 9
    syscall                         # mmap, fixed
    mov edi, {AREA}
    mov ecx, 0x2000
fill:
    mov eax, ecx
    shr eax, 3
    xor eax, ecx
    mov [rdi], al
    inc rdi
    dec ecx
    jnz fill
    mov edi, {EDGE}
    mov esi, 0x1000
    mov rdx, [r14 + 16]
    cmp rdx, {Next.ABSENT.value}
    mov eax, 10
    mov ecx, 11
    cmove eax, ecx
    syscall                         # mprotect, munmap
    mov edi, {CODE}
    mov ecx, 0x2000
    mov al, 0xcc
    rep stosb
    mov edi, {CODE}
    add rdi, [r14]
    mov [r15 + 0x1908], rdi
    lea rsi, [r14 + 256]
    mov rcx, [r14 + 8]
    rep movsb
    fxrstor [r15 + 0x1a00]
    push qword ptr [r14 + 160]
    popfq
    mov rsp, r14
    mov rax, [rsp + 32]
    mov rcx, [rsp + 40]
    mov rdx, [rsp + 48]
    mov rbx, [rsp + 56]
    mov rbp, [rsp + 72]
    mov rsi, [rsp + 80]
    mov rdi, [rsp + 88]
    mov r8, [rsp + 96]
    mov r9, [rsp + 104]
    mov r10, [rsp + 112]
    mov r11, [rsp + 120]
    mov r12, [rsp + 128]
    mov r13, [rsp + 136]
    mov r14, [rsp + 144]
    mov r15, [rsp + 152]
    mov rsp, [rsp + 64]
    jmp qword ptr [{_DATA + 0x1908}]
restorer:
    mov eax, 15
    syscall
"""


def _program(cases: list[Case]) -> bytes:
    """The ELF file: text, data with a record for each case, a stack."""
    text = assemble(_SETUP, _TEXT + 0x1000)
    after_handler = text.index(assemble(f"mov r15, {_DATA}\nmov r14, [r15 + 0x1900]"))
    data = bytearray(_RECORDS + _RECORD * (len(cases) + 1))
    struct.pack_into("<QIIQ", data, 0x1800, _STACK, 0, 0, 0x4000)
    flags = 4 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000  # SA_SIGINFO | RESTORER | ONSTACK | NODEFER
    restorer = _TEXT + 0x1000 + len(text) - 7
    struct.pack_into("<4Q", data, 0x1840, _TEXT + 0x1000 + after_handler, flags, restorer, 0)
    struct.pack_into("<HHBxHQQII", data, 0x1A00, 0x37F, 0, 0, 0, 0, 0, 0x1F80, 0)
    for number in range(16):
        data[0x1A00 + 160 + 16 * number : 0x1A00 + 176 + 16 * number] = bytes(
            (number * 16 + i) ^ 0x5A for i in range(16)
        )
    for number, case in enumerate(cases):
        registers = {name: 0x1111 * (i + 1) << 20 for i, name in enumerate(GENERAL)}
        registers |= {"rsp": EDGE - 512, "rflags": 0x202} | case.registers
        record = struct.pack("<4Q", case.offset, len(case.code), case.page, 0)
        record += struct.pack("<17Q", *(registers[name] & 2**64 - 1 for name in (*GENERAL, "rflags")))
        record = record.ljust(256, b"\0") + case.code
        start = _RECORDS + number * _RECORD
        data[start : start + len(record)] = record
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, _TEXT + 0x1000, 64, 0, 0, 64, 56, 3, 64, 0, 0
    )
    for flags, offset, va, size in (
        (5, 0x1000, _TEXT + 0x1000, len(text)),
        (6, 0x2000, _DATA, len(data)),
        (6, 0, _STACK, 0),
    ):
        memory = 0x8000 if va == _STACK else size
        head += struct.pack("<IIQQQQQQ", 1, flags, offset, va, va, size, memory, 0x1000)
    return head.ljust(0x1000, b"\0") + text.ljust(0x1000, b"\0") + bytes(data)


def _outcomes(raw: bytes) -> list[Outcome]:
    outcomes = []
    for start in range(0, len(raw), _RESULT):
        signal, _errno, code, address = struct.unpack_from("<3ixxxxQ", raw, start)
        words = struct.unpack_from("<23Q", raw, start + 32)
        fpu = raw[start + 216 : start + 728]
        memory = raw[start + 728 : start + 728 + 2 * NEAR]
        registers = dict(zip(_CONTEXT, words, strict=False))
        image = fpu[:6] + fpu[24:28] + fpu[32:416]  # without the last instruction's addresses
        outcomes.append(Outcome(signal, code, address, words[19], words[20], registers, image, memory))
    return outcomes


def on_the_machine(cases: list[Case], folder: Path) -> list[Outcome]:
    """What the machine makes of the cases."""
    path = _write(cases, folder)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine("x86_64")
    try:
        machine.load(str(path), [str(path)], streams=streams)
        ended = machine.run()
    finally:
        machine.close()
    assert ended.status == 0, ended
    return _outcomes(bytes(streams["stdout"].written))


def on_the_host(cases: list[Case], folder: Path) -> list[Outcome]:
    """What this host makes of them."""
    ran = subprocess.run([_write(cases, folder)], stdout=subprocess.PIPE, check=True)
    return _outcomes(ran.stdout)


def _write(cases: list[Case], folder: Path) -> Path:
    path = folder / "single"
    path.write_bytes(_program(cases))
    os.chmod(path, path.stat().st_mode | stat.S_IXUSR)
    return path


def silicon() -> frozenset[str]:
    """The features that an x86_64 Linux host's CPU has; empty on other hosts."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next(line for line in lines if line.startswith("flags")).split()[2:])
