"""The SIGBUS handler in machine code, and the tables that it and `bus_guard` share.

No Python may run in a signal handler that interrupts the engine: it could meet any lock.
"""

from __future__ import annotations

import ctypes

from aether_emu.machine.memory import host

TABLE_PLACEHOLDER = 0x7AB1E_7AB1E_7AB1E
"""Stands in the SIGBUS handler where the address of its table goes."""

RING_ENTRIES = 1024


class GuardedRange(ctypes.Structure):
    """One guarded host range and the faults in it: a node of the handler's list."""

    _fields_ = (
        ("next", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("stop_function", ctypes.c_uint64),
        ("stop_argument", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("ring", ctypes.c_uint64 * RING_ENTRIES),
    )
    next: int
    start: int
    end: int
    stop_function: int
    stop_argument: int
    faults: int
    ring: ctypes.Array[ctypes.c_uint64]


class GuardTable(ctypes.Structure):
    """What the SIGBUS handler reads. `default` stays zero: the kernel's `struct sigaction` of SIG_DFL."""

    _fields_ = (
        ("first", ctypes.c_uint64),
        ("previous", ctypes.c_uint64),
        ("default", ctypes.c_uint64 * 4),
    )
    first: int
    previous: int


SOURCE = f"""
    movabs r8, {TABLE_PLACEHOLDER:#x}   # GuardTable
    cmp dword ptr [rsi + 8], 0      # si_code: what kill(2) sends is not positive, and has no address
    jle chain
    mov rax, [rsi + 16]             # si_addr
    mov r9, [r8]
next:
    test r9, r9                     # GuardedRange
    jz chain
    cmp rax, [r9 + 8]
    jb skip
    cmp rax, [r9 + 16]
    jb found
skip:
    mov r9, [r9]
    jmp next

found:
    push rbx
    push rdx
    push rsi
    push rdi
    push rax                        # five pushes: the stack is aligned for the call below
    mov rbx, r9
    mov rdi, rax
    and rdi, -4096
    mov esi, 4096
    mov edx, {host.PROT_READ | host.PROT_WRITE}
    mov r10d, {host.MAP_PRIVATE | host.MAP_ANONYMOUS | host.MAP_NORESERVE | host.MAP_FIXED}
    mov r8, -1
    xor r9d, r9d
    mov eax, 9                      # mmap
    syscall
    cmp rax, -4096
    ja refused
    mov ecx, 1
    lock xadd [rbx + 40], rcx
    and ecx, {RING_ENTRIES - 1}
    mov rax, [rsp]
    mov [rbx + rcx * 8 + 48], rax
    mov rax, [rbx + 24]
    test rax, rax
    jz done
    mov rdi, [rbx + 32]
    call rax
done:
    add rsp, 32
    pop rbx
    ret

refused:
    pop rax
    pop rdi
    pop rsi
    pop rdx
    pop rbx
    movabs r8, {TABLE_PLACEHOLDER:#x}
chain:
    mov rax, [r8 + 8]
    cmp rax, 1                      # SIG_DFL is 0, SIG_IGN is 1
    ja other
    jb default
    cmp dword ptr [rsi + 8], 0      # a fault cannot be ignored, a signal can
    jle ignore
default:
    mov edi, 7                      # SIGBUS
    lea rsi, [r8 + 16]
    xor edx, edx
    mov r10d, 8
    mov eax, 13                     # rt_sigaction: the default action, from now on
    syscall
    mov eax, 39                     # getpid
    syscall
    mov edi, eax
    mov eax, 186                    # gettid
    syscall
    mov esi, eax
    mov edx, 7
    mov eax, 234                    # tgkill: pending until this handler returns
    syscall
ignore:
    ret
other:
    jmp rax
"""
CODE = bytes.fromhex(
    "49b81eabe7b17a1eab07837e08000f8e9a000000488b46104d8b084d85c90f848a000000493b41087206493b41107205"
    "4d8b09ebe653525657504c89cb4889c74881e700f0ffffbe00100000ba0300000041ba3240000049c7c0ffffffff4531"
    "c9b8090000000f05483d00f0ffff772fb901000000f0480fc14b2881e1ff030000488b0424488944cb30488b43184885"
    "c07406488b7b20ffd04883c4205bc3585f5e5a5b49b81eabe7b17a1eab07498b40084883f801773f7206837e08007e36"
    "bf07000000498d701031d241ba08000000b80d0000000f05b8270000000f0589c7b8ba0000000f0589c6ba07000000b8"
    "ea0000000f05c3ffe0"
)


def bus_handler(table: GuardTable) -> int:
    """Address of a SIGBUS handler, for SA_SIGINFO, that works on `table`. Only where `native.available()`."""
    placeholder = TABLE_PLACEHOLDER.to_bytes(8, "little")
    return host.map_code(CODE.replace(placeholder, ctypes.addressof(table).to_bytes(8, "little")))
