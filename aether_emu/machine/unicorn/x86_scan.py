"""Looking at each new x86 block before it runs: does it hold an opcode that has a rule?

A real program has tens of thousands of blocks, most of them harmless. So machine code walks each from
instruction to instruction, by the tables of `x86_blocks`, and only those with a rule reach Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from aether_emu.machine import native
from aether_emu.machine.unicorn import engine
from aether_emu.machine.unicorn.x86_blocks import (
    ESCAPE,
    GROUP_3,
    IMMEDIATE,
    IMMEDIATE_SIZES,
    LOOK,
    MODRM,
    PREFIX,
    PRIMARY,
    REX,
    REX_W,
    SECONDARY,
    needs_look,
)

CODE_BUFFER = 1 << 14  # more than the engine puts into one block
_SLACK = 16  # the longest instruction and one: the walk may look at bytes behind the block

SOURCE = f"""
    push rbx
    push r12
    push r13                        # three pushes: the stack is aligned for the calls below
    mov rbx, rcx                    # user_data: a Scan
    mov r12, rdi
    mov r13, rsi                    # the block: its address, its instructions, its size
    cmp byte ptr [rbx + 24], 0
    je read
    mov esi, {engine.TLB_FLUSH}
    xor eax, eax                    # variable arguments, none in vector registers
    call [rbx + 16]                 # uc_ctl(engine, drop the TLB)
read:
    movzx r8d, word ptr [r13 + 10]
    cmp r8d, {CODE_BUFFER}
    ja done
    lea rcx, [rbx + 608]
    mov edx, 4                      # as the CPU fetches: UC_PROT_EXEC
    mov rsi, [r13]
    mov rdi, r12
    call [rbx]                      # uc_vmem_read(engine, address, access, buffer, size)
    test eax, eax
    jnz done
    lea rsi, [rbx + 608]            # the next byte
    movzx ecx, word ptr [r13 + 10]
    add rcx, rsi                    # the block's end
instruction:
    xor edx, edx                    # its prefixes that change an immediate: 1 is 66, 2 is 67, 4 is REX.W
prefix:
    cmp rsi, rcx
    jae done
    movzx eax, byte ptr [rsi]
    inc rsi
    movzx edi, byte ptr [rbx + rax + 32]
    test dil, {LOOK}
    jnz found
    test dil, {PREFIX | REX | ESCAPE}
    jz opcode
    js escape                       # the highest of the three bits
    and edx, {REX_W - 1}            # a REX before this prefix has no effect
    test dil, {REX}
    jnz rex_prefix
    cmp al, 0x66
    je operand_size
    cmp al, 0x67
    jne prefix
    or edx, 2
    jmp prefix
operand_size:
    or edx, 1
    jmp prefix
rex_prefix:
    shr eax, 1
    and eax, {REX_W}                # REX.W is bit 3
    or edx, eax
    jmp prefix
escape:
    movzx eax, byte ptr [rsi]
    inc rsi
    movzx edi, byte ptr [rbx + rax + 288]
    test dil, {LOOK}
    jnz found
    test dil, dil
    jns opcode
    inc rsi                         # 0F 38 or 0F 3A: a third byte, which changes nothing
opcode:
    test dil, {MODRM}
    jz immediate
    movzx r8d, byte ptr [rsi]       # ModRM
    inc rsi
    mov r9d, r8d
    shr r9d, 6                      # mod
    cmp r9d, 3
    je group_3
    mov r10d, r8d
    and r10d, 7
    cmp r10d, 4
    jne displacement
    movzx r10d, byte ptr [rsi]      # SIB, whose base counts instead
    inc rsi
    and r10d, 7
displacement:
    cmp r9d, 1
    je short_one
    ja long_one
    cmp r10d, 5
    jne group_3
long_one:
    add rsi, 3
short_one:
    inc rsi
group_3:
    mov r9d, edi
    and r9d, {IMMEDIATE}
    cmp r9d, {GROUP_3}
    jne immediate
    test r8d, 0x30
    jnz instruction                 # the operation is 2 or more: no immediate
    and eax, 1
    lea edi, [rax + rax + 1]        # F6: a byte; F7: of the operand's size
immediate:
    and edi, {IMMEDIATE}
    lea edi, [rdx + rdi * 8]
    movzx eax, byte ptr [rbx + rdi + 544]
    add rsi, rax
    jmp instruction
done:
    pop r13
    pop r12
    pop rbx
    ret
found:
    mov rdi, r12
    mov rsi, r13
    mov rcx, rbx
    mov rax, [rbx + 8]
    pop r13
    pop r12
    pop rbx
    jmp rax
"""
CODE = bytes.fromhex(
    "53415441554889cb4989fc4989f5807b1800740abe0b00004031c0ff5310450fb7450a4181f8004000000f8716010000"
    "488d8b60020000ba04000000498b75004c89e7ff1385c00f85f9000000488db360020000410fb74d0a4801f131d24839"
    "ce0f83df0000000fb60648ffc60fb67c032040f6c7100f85d000000040f6c7e07446782483e20340f6c74075123c6674"
    "093c6775c983ca02ebc483ca01ebbfd1e883e00409c2ebb60fb60648ffc60fb6bc032001000040f6c7100f858c000000"
    "4084ff790348ffc640f6c7087462440fb60648ffc64589c141c1e9064183f903742d4589c24183e2074183fa04750b44"
    "0fb61648ffc64183e2074183f901740c77064183fa0575074883c60348ffc64189f94183e1074183f907751441f7c030"
    "0000000f8533ffffff83e0018d7c000183e7078d3cfa0fb6843b200200004801c6e916ffffff415d415c5bc34c89e74c"
    "89ee4889d9488b4308415d415c5bffe0"
)


class Scan(ctypes.Structure):
    """What the scan's user data points to: the addresses of `uc_vmem_read`, the callback and `uc_ctl`."""

    _fields_ = (
        ("read", ctypes.c_uint64),
        ("found", ctypes.c_uint64),
        ("control", ctypes.c_uint64),
        ("changes", ctypes.c_uint64),
        ("primary", ctypes.c_uint8 * 256),
        ("secondary", ctypes.c_uint8 * 256),
        ("immediates", ctypes.c_uint8 * 64),
        ("code", ctypes.c_uint8 * (CODE_BUFFER + _SLACK)),
    )
    read: int
    found: int
    control: int
    changes: int


_EdgeCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_ReadFunction = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t
)
_ControlFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)


def _scan_block(handle: int, block: int, previous: int, user_data: int) -> None:
    scan = Scan.from_address(user_data)
    if scan.changes:
        _ControlFunction(scan.control)(handle, engine.TLB_FLUSH)
    address = ctypes.c_uint64.from_address(block).value
    size = ctypes.c_uint16.from_address(block + 10).value
    code = user_data + Scan.code.offset
    if size > CODE_BUFFER or _ReadFunction(scan.read)(handle, address, 4, code, size):
        return
    if needs_look(ctypes.string_at(code, size)):
        _EdgeCallback(scan.found)(handle, block, previous, user_data)


_python_scan = _EdgeCallback(_scan_block)


class BlockScan:
    """Looks at each freshly translated x86 block before it runs.

    `found` gets the address and the bytes of one with an opcode that has a rule. It must not raise.
    While `changes` is true, every new block drops the TLB. Install `callback` and `user_data`, two addresses,
    by `uc_hook_add` as a UC_HOOK_EDGE_GENERATED, and keep this object as long as the engine.
    """

    def __init__(self, found: Callable[[int, bytes], None]) -> None:
        def call(_engine: int, block: int, _previous: int, user_data: int) -> None:
            size = ctypes.c_uint16.from_address(block + 10).value
            code = ctypes.string_at(user_data + Scan.code.offset, size)
            found(ctypes.c_uint64.from_address(block).value, code)

        self._found = _EdgeCallback(call)
        address = ctypes.cast(self._found, ctypes.c_void_p).value or 0
        self._scan = Scan(engine.VMEM_READ_ADDRESS, address, engine.CTL_ADDRESS, 0)
        self._scan.primary[:] = PRIMARY
        self._scan.secondary[:] = SECONDARY
        self._scan.immediates[:] = IMMEDIATE_SIZES
        self.callback = native.routine(CODE, _python_scan)
        self.user_data = ctypes.addressof(self._scan)

    @property
    def changes(self) -> bool:
        """Whether each new block drops the TLB."""
        return bool(self._scan.changes)

    @changes.setter
    def changes(self, changes: bool) -> None:
        self._scan.changes = changes
