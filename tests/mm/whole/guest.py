"""A program that does what it is told: system calls, loads and stores of each of its threads, on the CPU.

Every worker (a thread) has a block of memory with its next order, and a pipe that it sleeps on while it has
none. When an order is done the worker makes a call of its own (`TELL`) with the result, or the signal that
it got; whoever answers that call has written the next order, whom to wake, and whether to sleep.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from tests.linux.exec.crafted import CODE, EXECUTE, READ, WRITE, Header, crafted
from tests.small_programs import assembled

START, HANDLER, DATA = 0x40_0000 + CODE, 0x40_0000 + CODE + 0x600, 0x60_0000
BLOCK = 0x8000  # bytes of a worker: its order, its scratch, and its stack, which signal frames go to
SCRATCH = 0x200
TELL = "sched_rr_get_interval"
NO_ONE = -1
ORDER = struct.Struct("<Q6QQQ")

CALL, LOAD, STORE, ADD, STAMP, SUM, CLONE, JUMP, COUNT = range(9)

_X86_64 = """
    test r15, r15
    jnz tell
    movabs r15, {data}
tell:
    lea rsp, [r15 + {stack}]
    mov rdi, r12
    mov rsi, r13
    mov rdx, r14
    mov r10, rbp
    mov eax, 148
    syscall
    mov rdi, [r15 + 72]
    test rdi, rdi
    js second
    lea rsi, [r15 + 96]
    mov edx, 1
    mov eax, 1
    syscall
second:
    mov rdi, [r15 + 80]
    test rdi, rdi
    js sleep
    lea rsi, [r15 + 96]
    mov edx, 1
    mov eax, 1
    syscall
sleep:
    mov rdi, [r15 + 88]
    test rdi, rdi
    js awake
    lea rsi, [r15 + 96]
    mov edx, 1
    xor eax, eax
    syscall
awake:
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor ebp, ebp
    mov rbx, [r15 + 64]
    mov rcx, [r15]
    mov rdi, [r15 + 8]
    mov rsi, [r15 + 16]
    mov rdx, [r15 + 24]
    mov r10, [r15 + 32]
    mov r8, [r15 + 40]
    mov r9, [r15 + 48]
    mov rax, [r15 + 56]
    cmp rcx, 1
    je load
    cmp rcx, 2
    je store
    cmp rcx, 3
    je add
    cmp rcx, 4
    je stamp
    cmp rcx, 5
    je sum
    cmp rcx, 7
    je jump
    cmp rcx, 6
    je clone
    cmp rcx, 8
    je count
    syscall
    mov r12, rax
    jmp tell
clone:
    syscall
    mov r12, rax
    test rax, rax
    jnz tell
    mov r15, rbx
    jmp tell
load:
    mov r12, [rdi]
    jmp tell
store:
    mov [rdi], rsi
    jmp tell
add:
    lock xadd [rdi], rsi
    mov r12, rsi
    jmp tell
stamp:
    mov [rdi], rsi
    add rsi, r8
    add rdi, r10
    dec rdx
    jnz stamp
    jmp tell
sum:
    rol r12, 1
    add r12, [rdi]
    add rdi, r10
    dec rdx
    jnz sum
    jmp tell
jump:
    call rdi
    jmp tell
count:
    lock add qword ptr [rdi], 1
    dec rdx
    jnz count
    jmp tell
"""
_X86_64_HANDLER = """
    mov r13, rdi
    movsxd r14, dword ptr [rsi + 8]
    mov rbp, [rsi + 16]
    xor r12d, r12d
    mov rax, {start}
    jmp rax
"""
_ARM64 = """
    cbnz x19, tell
    mov x19, #{data}
tell:
    mov x9, #{stack}
    add x9, x19, x9
    mov sp, x9
    mov x0, x20
    mov x1, x21
    mov x2, x22
    mov x3, x23
    mov x8, #127
    svc #0
    ldr x0, [x19, #72]
    tbnz x0, #63, second
    add x1, x19, #96
    mov x2, #1
    mov x8, #64
    svc #0
second:
    ldr x0, [x19, #80]
    tbnz x0, #63, sleep
    add x1, x19, #96
    mov x2, #1
    mov x8, #64
    svc #0
sleep:
    ldr x0, [x19, #88]
    tbnz x0, #63, awake
    add x1, x19, #96
    mov x2, #1
    mov x8, #63
    svc #0
awake:
    mov x20, #0
    mov x21, #0
    mov x22, #0
    mov x23, #0
    ldr x24, [x19, #64]
    ldr x9, [x19]
    ldr x0, [x19, #8]
    ldr x1, [x19, #16]
    ldr x2, [x19, #24]
    ldr x3, [x19, #32]
    ldr x4, [x19, #40]
    ldr x5, [x19, #48]
    ldr x8, [x19, #56]
    cmp x9, #1
    b.eq load
    cmp x9, #2
    b.eq store
    cmp x9, #3
    b.eq add
    cmp x9, #4
    b.eq stamp
    cmp x9, #5
    b.eq sum
    cmp x9, #7
    b.eq jump
    cmp x9, #6
    b.eq clone
    cmp x9, #8
    b.eq count
    svc #0
    mov x20, x0
    b tell
clone:
    svc #0
    mov x20, x0
    cbnz x0, tell
    mov x19, x24
    b tell
load:
    ldr x20, [x0]
    b tell
store:
    str x1, [x0]
    b tell
add:
    ldxr x20, [x0]
    add x9, x20, x1
    stxr w10, x9, [x0]
    cbnz w10, add
    b tell
stamp:
    str x1, [x0]
    add x1, x1, x4
    add x0, x0, x3
    subs x2, x2, #1
    b.ne stamp
    b tell
sum:
    ldr x9, [x0]
    ror x20, x20, #63
    add x20, x20, x9
    add x0, x0, x3
    subs x2, x2, #1
    b.ne sum
    b tell
jump:
    blr x0
    b tell
count:
    ldxr x9, [x0]
    add x9, x9, #1
    stxr w10, x9, [x0]
    cbnz w10, count
    subs x2, x2, #1
    b.ne count
    b tell
"""
_ARM64_HANDLER = """
    mov x21, x0
    ldrsw x22, [x1, #8]
    ldr x23, [x1, #16]
    mov x20, #0
    mov x9, #{high}
    add x9, x9, #{low}
    br x9
"""
_SOURCES = {"x86_64": (_X86_64, _X86_64_HANDLER), "arm64": (_ARM64, _ARM64_HANDLER)}
RETURNS = {"x86_64": 0xC3, "arm64": 0xD65F_03C0}
"""A word that, executed, returns."""


def written(folder: Path, isa: str) -> Path:
    """The program as a file."""
    values = {"data": DATA, "stack": BLOCK - 16, "start": START, "high": START & ~0xFFF, "low": START & 0xFFF}
    work, handler = (
        assembled(isa, source.format(**values), at)
        for source, at in zip(_SOURCES[isa], (START, HANDLER), strict=True)
    )
    code = work.ljust(HANDLER - START, b"\0") + handler
    headers = (
        Header(flags=READ | EXECUTE),
        Header(flags=READ | WRITE, address=DATA, file_size=0, memory_size=2 * BLOCK),
    )
    path = folder / "worker"
    path.write_bytes(crafted(headers, isa=isa, code=code))
    path.chmod(0o755)
    return path


class Order(NamedTuple):
    """What one worker is to do: an operation on arguments; `number` is the system call's.

    `block` is where a new thread, or a fork, has its own.
    """

    operation: int
    arguments: tuple[int, ...] = ()
    number: int = 0
    block: int = 0

    def packed(self) -> bytes:
        """As the worker reads it, up to whom it wakes."""
        padded = (*self.arguments, *[0] * (6 - len(self.arguments)))
        return ORDER.pack(self.operation, *(each & (1 << 64) - 1 for each in padded), self.number, self.block)


class Outcome(NamedTuple):
    """What became of an order: a result, or a signal with its code and address."""

    result: int
    signal: int = 0
    code: int = 0
    address: int = 0
