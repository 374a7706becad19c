"""Machine-code routines for x86_64 hosts, as bytes beside their assembly, and the same in Python.

They run in places where Python is too slow or too dangerous: in front of every block the guest executes, for
every system register it reads, and inside a SIGBUS handler. The bytes are what keystone makes of the sources;
a test assembles them again.
Where `available()` is False, callers get Python callbacks with the same signature and behaviour.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable

from aether_emu.machine.memory import host


@functools.cache
def available() -> bool:
    """Whether this host can run the machine code: x86_64, 64-bit, Linux."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


BLOCK_COUNTER_SOURCE = """
    sub qword ptr [rcx], 1          # user_data: a Count
    js spent
    ret
spent:
    add qword ptr [rcx], 1          # this block will not run: it costs nothing
    mov byte ptr [rcx + 16], 1
    jmp qword ptr [rcx + 8]         # uc_emu_stop(engine), whose argument is still in rdi
"""
BLOCK_COUNTER_CODE = bytes.fromhex("488329017801c348830101c6411001ff6108")


class Count(ctypes.Structure):
    """What the block hook's user data points to: `stop` is the address of `uc_emu_stop`."""

    _fields_ = (("value", ctypes.c_int64), ("stop", ctypes.c_uint64), ("spent", ctypes.c_bool))
    value: int
    stop: int
    spent: bool


_BlockCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
StopFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


def _count_block(engine: int, _address: int, _size: int, user_data: int) -> None:
    count = Count.from_address(user_data)
    if count.value > 0:
        count.value -= 1
    else:
        count.spent = True
        StopFunction(count.stop)(engine)


_python_callback = _BlockCallback(_count_block)


@functools.cache
def _block_counter_address() -> int:
    if available():
        return host.map_code(BLOCK_COUNTER_CODE)
    return ctypes.cast(_python_callback, ctypes.c_void_p).value or 0


class BlockCounter:
    """Counts executed blocks down and stops the engine before the first one that is too many.

    Install `callback` and `user_data`, two addresses, by `uc_hook_add` as a UC_HOOK_BLOCK for all addresses,
    and keep this object as long as the engine. Set `value` before a run; the blocks executed are the
    difference afterwards, exactly: the engine checks for a stop between a block's hook and its first
    instruction (`gen_tb_start` in Unicorn 2.1.4's translator), so the block that is too many neither runs
    nor counts, and the program counter is its first instruction. `spent` tells that stop from others.
    """

    def __init__(self, stop_function: int) -> None:
        """`stop_function` is the address of `uc_emu_stop`."""
        self._count = Count(0, stop_function, False)
        self.callback = _block_counter_address()
        self.user_data = ctypes.addressof(self._count)

    @property
    def value(self) -> int:
        """Blocks that may still run, never negative. Setting it clears `spent`."""
        return self._count.value

    @value.setter
    def value(self, blocks: int) -> None:
        self._count.spent = False
        self._count.value = blocks

    def suspend(self) -> tuple[int, bool]:
        """Count nothing until `resume`, to which the result goes."""
        kept = self._count.value, self._count.spent
        self._count.value = 1 << 62
        return kept

    def resume(self, kept: tuple[int, bool]) -> None:
        """Go on where `suspend` was called."""
        self._count.value, self._count.spent = kept

    @property
    def spent(self) -> bool:
        """Whether the counter stopped the engine since `value` was set."""
        return self._count.spent


RANDOM_FILTER_SOURCE = """
    movabs rax, 0x400000002         # rdx: a SystemAccess; its CRm and CRn
    cmp [rdx], rax
    jne pass
    movabs rax, 0x300000003         # op1 and op0
    cmp [rdx + 8], rax
    jne pass
    cmp dword ptr [rdx + 16], 1     # op2: 0 is RNDR, 1 is RNDRRS
    ja pass
    jmp [rcx]                       # user_data: the address of the callback, which gets our arguments
pass:
    xor eax, eax                    # the engine executes the instruction itself
    ret
"""
RANDOM_FILTER_CODE = bytes.fromhex(
    "48b80200000004000000483902751848b80300000003000000483942087508837a10017702ff2131c0c3"
)


class SystemAccess(ctypes.Structure):
    """`uc_arm64_cp_reg`: the register that an `mrs` is about to read."""

    _fields_ = (
        ("crn", ctypes.c_uint32),
        ("crm", ctypes.c_uint32),
        ("op0", ctypes.c_uint32),
        ("op1", ctypes.c_uint32),
        ("op2", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    )
    crn: int
    crm: int
    op0: int
    op1: int
    op2: int


_ReadCallback = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)


def _filter_read(engine: int, target: int, access: int, user_data: int) -> int:
    read = SystemAccess.from_address(access)
    if (read.op0, read.op1, read.crn, read.crm) != (3, 3, 2, 4) or read.op2 > 1:
        return 0
    callback = _ReadCallback(ctypes.c_uint64.from_address(user_data).value)
    return int(callback(engine, target, access, user_data))


_python_filter = _ReadCallback(_filter_read)


@functools.cache
def _random_filter_address() -> int:
    if available():
        return host.map_code(RANDOM_FILTER_CODE)
    return ctypes.cast(_python_filter, ctypes.c_void_p).value or 0


class RandomReads:
    """Answers a guest's RNDR and RNDRRS by `answer` and lets every other `mrs` pass (Arm ARM D19.2, RNDR).

    Install `callback` and `user_data`, two addresses, by `uc_hook_add` as a UC_HOOK_INSN for
    UC_ARM64_INS_MRS, and keep this object as long as the engine. `answer` gets the engine's number of the
    target register; the instruction itself is skipped. It must not raise.
    """

    def __init__(self, answer: Callable[[int], None]) -> None:
        def read(_engine: int, target: int, _access: int, _user_data: int) -> int:
            answer(target)
            return 1

        self._read = _ReadCallback(read)
        self._pointer = ctypes.c_uint64(ctypes.cast(self._read, ctypes.c_void_p).value or 0)
        self.callback = _random_filter_address()
        self.user_data = ctypes.addressof(self._pointer)


CODE_BUFFER = 1 << 13  # more than the engine puts into one block

BLOCK_SCAN_SOURCE = f"""
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
BLOCK_SCAN_CODE = bytes.fromhex(
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


@functools.cache
def _block_scan_address() -> int:
    if available():
        return host.map_code(BLOCK_SCAN_CODE)
    return ctypes.cast(_python_scan, ctypes.c_void_p).value or 0


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
        self._scan = Scan(read_function, ctypes.cast(self._found, ctypes.c_void_p).value or 0)
        self.callback = _block_scan_address()
        self.user_data = ctypes.addressof(self._scan)


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


BUS_HANDLER_SOURCE = f"""
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
BUS_HANDLER_CODE = bytes.fromhex(
    "49b81eabe7b17a1eab07837e08000f8e9a000000488b46104d8b084d85c90f848a000000493b41087206493b41107205"
    "4d8b09ebe653525657504c89cb4889c74881e700f0ffffbe00100000ba0300000041ba3240000049c7c0ffffffff4531"
    "c9b8090000000f05483d00f0ffff772fb901000000f0480fc14b2881e1ff030000488b0424488944cb30488b43184885"
    "c07406488b7b20ffd04883c4205bc3585f5e5a5b49b81eabe7b17a1eab07498b40084883f801773f7206837e08007e36"
    "bf07000000498d701031d241ba08000000b80d0000000f05b8270000000f0589c7b8ba0000000f0589c6ba07000000b8"
    "ea0000000f05c3ffe0"
)


def bus_handler(table: GuardTable) -> int:
    """Address of a SIGBUS handler, for SA_SIGINFO, that works on `table`. Only where `available()`."""
    placeholder = TABLE_PLACEHOLDER.to_bytes(8, "little")
    return host.map_code(BUS_HANDLER_CODE.replace(placeholder, ctypes.addressof(table).to_bytes(8, "little")))
