"""Looking at each new ARM64 block before it runs: is it misaligned, does it read RNDR?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from aether_emu.machine import native

CODE_BUFFER = 1 << 13  # more than the engine puts into one block

SOURCE = f"""
    push rbx
    push r12
    push r13                        # three pushes: the stack is aligned for the call below
    mov rbx, rcx                    # user_data: a Scan
    mov r12, rdi
    mov r13, rsi                    # the block: its address, its instructions, its size
    test byte ptr [r13], 3          # a misaligned address
    jnz found
    movzx r8d, word ptr [r13 + 10]
    cmp r8d, {CODE_BUFFER}
    ja done
    lea rcx, [rbx + 16]
    mov edx, 4                      # as the CPU fetches: UC_PROT_EXEC
    mov rsi, [r13]
    call [rbx]                      # uc_vmem_read(engine, address, access, buffer, size)
    test eax, eax
    jnz done
    movzx ecx, word ptr [r13 + 10]
    shr ecx, 2
    jz done
    lea rdi, [rbx + 16]
next:
    mov eax, [rdi]
    and eax, -64                    # without op2's low bit and the target
    cmp eax, 0xd53b2400             # mrs of RNDR or RNDRRS
    je found
    add rdi, 4
    dec ecx
    jnz next
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
    "53415441554889cb4989fc4989f541f64500037549450fb7450a4181f8002000007735488d4b10ba04000000498b7500"
    "ff1385c07522410fb74d0ac1e9027418488d7b108b0783e0c03d00243bd5740e4883c704ffc975ec415d415c5bc34c89"
    "e74c89ee4889d9488b4308415d415c5bffe0"
)


class Scan(ctypes.Structure):
    """What the scan's user data points to: `read` is the address of `uc_vmem_read`."""

    _fields_ = (
        ("read", ctypes.c_uint64),
        ("found", ctypes.c_uint64),
        ("code", ctypes.c_uint8 * CODE_BUFFER),
    )
    read: int
    found: int


_EdgeCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_ReadFunction = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t
)


def _scan_block(engine: int, block: int, previous: int, user_data: int) -> None:
    scan = Scan.from_address(user_data)
    address = ctypes.c_uint64.from_address(block).value
    size = ctypes.c_uint16.from_address(block + 10).value
    code = user_data + Scan.code.offset
    found = bool(address & 3)
    if not found and size <= CODE_BUFFER and not _ReadFunction(scan.read)(engine, address, 4, code, size):
        words = (ctypes.c_uint32 * (size // 4)).from_address(code)
        found = any(word & -64 & 0xFFFF_FFFF == 0xD53B_2400 for word in words)
    if found:
        _EdgeCallback(scan.found)(engine, block, previous, user_data)


_python_scan = _EdgeCallback(_scan_block)


class BlockScan:
    """Looks at each freshly translated ARM64 block before it runs.

    `found` gets the address of one that starts misaligned, or that reads RNDR or RNDRRS. It must not raise.
    `read_function` is the address of `uc_vmem_read`. Install `callback` and `user_data`, two addresses, by
    `uc_hook_add` as a UC_HOOK_EDGE_GENERATED, and keep this object as long as the engine.
    """

    def __init__(self, read_function: int, found: Callable[[int], None]) -> None:
        def call(_engine: int, block: int, _previous: int, _user_data: int) -> None:
            found(ctypes.c_uint64.from_address(block).value)

        self._found = _EdgeCallback(call)
        self._scan = Scan(read_function, native.address_of(self._found))
        self.callback = native.routine(CODE, _python_scan)
        self.user_data = ctypes.addressof(self._scan)
