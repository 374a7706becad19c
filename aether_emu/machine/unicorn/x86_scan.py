"""Looking at each new x86 block before it runs: does it hold an opcode that has a rule?

A real program has tens of thousands of blocks, most of them harmless. So machine code walks each from
instruction to instruction, by the tables of `x86_blocks`, and only instructions with a rule reach Python.
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
    has_rule,
    instructions,
)

CODE_BUFFER = 1 << 14  # more than the engine puts into one block
_SLACK = 16  # the longest instruction and one: the walk may look at bytes behind the block

SOURCE = f"""
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 24                     # the stack is aligned for the calls below
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
    lea r14, [rbx + 608]            # the next byte
    movzx r15d, word ptr [r13 + 10]
    add r15, r14                    # the block's end
instruction:
    mov [rsp + 8], r14              # where it begins
    xor ebp, ebp                    # its prefixes that change an immediate: 1 is 66, 2 is 67, 4 is REX.W
prefix:
    cmp r14, r15
    jae done
    movzx eax, byte ptr [r14]
    inc r14
    movzx edi, byte ptr [rbx + rax + 32]
    test dil, {LOOK}
    jnz look
known:
    test dil, {PREFIX | REX | ESCAPE}
    jz opcode
    js escape                       # the highest of the three bits
    and ebp, {REX_W - 1}            # a REX before this prefix has no effect
    test dil, {REX}
    jnz rex_prefix
    cmp al, 0x66
    je operand_size
    cmp al, 0x67
    jne prefix
    or ebp, 2
    jmp prefix
operand_size:
    or ebp, 1
    jmp prefix
rex_prefix:
    shr eax, 1
    and eax, {REX_W}                # REX.W is bit 3
    or ebp, eax
    jmp prefix
escape:
    movzx eax, byte ptr [r14]
    inc r14
    movzx edi, byte ptr [rbx + rax + 288]
    test dil, {LOOK}
    jnz look
    test dil, dil
    jns opcode
    inc r14                         # 0F 38 or 0F 3A: a third byte, which changes nothing
opcode:
    test dil, {MODRM}
    jz immediate
    movzx r8d, byte ptr [r14]       # ModRM
    inc r14
    mov r9d, r8d
    shr r9d, 6                      # mod
    cmp r9d, 3
    je group_3
    mov r10d, r8d
    and r10d, 7
    cmp r10d, 4
    jne displacement
    movzx r10d, byte ptr [r14]      # SIB, whose base counts instead
    inc r14
    and r10d, 7
displacement:
    cmp r9d, 1
    je short_one
    ja long_one
    cmp r10d, 5
    jne group_3
long_one:
    add r14, 3
short_one:
    inc r14
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
    lea edi, [rbp + rdi * 8]
    movzx eax, byte ptr [rbx + rdi + 544]
    add r14, rax
    jmp instruction
look:
    mov [rsp], eax
    mov [rsp + 4], edi
    mov rdx, [rsp + 8]
    sub rdx, rbx
    sub edx, 608
    mov rsi, r13
    mov rdi, rbx
    call [rbx + 8]                  # found(user_data, block, offset of the instruction)
    test eax, eax
    jnz done
    mov eax, [rsp]
    mov edi, [rsp + 4]
    jmp known                       # an opcode behind 0F that has a rule leads to no further table
done:
    add rsp, 24
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"""
CODE = bytes.fromhex(
    "535541544155415641574883ec184889cb4989fc4989f5807b1800740abe0b00004031c0ff5310450fb7450a4181f800"
    "4000000f874c010000488d8b60020000ba04000000498b75004c89e7ff1385c00f852f0100004c8db360020000450fb7"
    "7d0a4d01f74c8974240831ed4d39fe0f8310010000410fb60649ffc60fb67c032040f6c7100f85cc00000040f6c7e074"
    "47782483e50340f6c74075123c6674093c6775c883cd02ebc383cd01ebbed1e883e00409c5ebb5410fb60649ffc60fb6"
    "bc032001000040f6c7100f85870000004084ff790349ffc640f6c7087462450fb60649ffc64589c141c1e9064183f903"
    "742d4589c24183e2074183fa04750b450fb61649ffc64183e2074183f901740c77064183fa0575074983c60349ffc641"
    "89f94183e1074183f907751441f7c0300000000f852cffffff83e0018d7c000183e7078d7cfd000fb6843b2002000049"
    "01c6e90effffff890424897c2404488b5424084829da81ea600200004c89ee4889dfff530885c0750c8b04248b7c2404"
    "e906ffffff4883c418415f415e415d415c5d5bc3"
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
_FoundFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
_ControlFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)


def _scan_block(handle: int, block: int, _previous: int, user_data: int) -> None:
    scan = Scan.from_address(user_data)
    if scan.changes:
        _ControlFunction(scan.control)(handle, engine.TLB_FLUSH)
    address = ctypes.c_uint64.from_address(block).value
    size = ctypes.c_uint16.from_address(block + 10).value
    code = user_data + Scan.code.offset
    if size > CODE_BUFFER or _ReadFunction(scan.read)(handle, address, 4, code, size):
        return
    found = _FoundFunction(scan.found)
    for instruction in instructions(ctypes.string_at(code, size)):
        if has_rule(instruction) and found(user_data, block, instruction.offset):
            break


_python_scan = _EdgeCallback(_scan_block)


class BlockScan:
    """Looks at each freshly translated x86 block before it runs.

    `found` gets the address and the bytes of a block, and the offset of an instruction that has a rule. It
    answers whether that is enough of the block, and must not raise.
    While `changes` is true, every new block drops the TLB. Install `callback` and `user_data`, two addresses,
    by `uc_hook_add` as a UC_HOOK_EDGE_GENERATED, and keep this object as long as the engine.
    """

    def __init__(self, found: Callable[[int, bytes, int], bool]) -> None:
        def call(user_data: int, block: int, offset: int) -> int:
            size = ctypes.c_uint16.from_address(block + 10).value
            code = ctypes.string_at(user_data + Scan.code.offset, size)
            return found(ctypes.c_uint64.from_address(block).value, code, offset)

        self._found = _FoundFunction(call)
        self._scan = Scan(engine.VMEM_READ_ADDRESS, native.address_of(self._found), engine.CTL_ADDRESS, 0)
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
