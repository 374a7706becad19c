"""Linux/x86_64: numbers, limits, the start of a program, and the signal frame.

The frame is the kernel's `struct rt_sigframe` (arch/x86/include/asm/sigframe.h): return address,
ucontext, siginfo; above it, 64-byte aligned, the 512-byte FXSAVE image (Intel SDM 1 10.5.1). There
is no XSAVE area, since the CPU has no state beyond SSE, and uc_flags says so.
"""

from __future__ import annotations

import errno
import struct

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import syndrome
from aether_emu.errors import Refused
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.siginfo import encode_siginfo
from aether_emu.linux.abi.x86_64_calls import SYSTEM_CALLS
from aether_emu.linux.files.stat import Stat, encode_stat_x86_64
from aether_emu.machine.cpu import Cpu, Trap, TrapKind, UserFault
from aether_emu.policy.aslr import Entropy

_MASK = (1 << 64) - 1
# Order of the general registers in struct sigcontext.
_CONTEXT = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "rflags",
)  # fmt: skip
_UCONTEXT, _SIGCONTEXT, _FRAME, _FXSAVE = 304, 256, 440, 512
_UC_FLAGS = 2 | 4  # UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
_RED_ZONE = 128
_MXCSR_VALID = 0xFFFF


class X86Abi(Abi):
    """The x86_64 interface."""

    isa = "x86_64"
    machine = "x86_64"
    system_calls = SYSTEM_CALLS
    window = (1 << 47) - 4096
    entropy = Entropy(
        mmap_bits=28,
        stack_bits=22,
        stack_offset_bytes=8192,
        heap_bytes=1 << 30,
        image_base=0x5555_5555_4000,
    )
    minimum_signal_stack = _FRAME + _FXSAVE + _RED_ZONE + 64 + 16

    def __init__(self, virtual_bits: int = 48) -> None:
        self.user_end = (1 << virtual_bits - 1) - 4096

    def encode_stat(self, stat: Stat) -> bytes:
        return encode_stat_x86_64(stat)

    def hardware_capabilities(self, cpu: Cpu) -> tuple[int, int]:
        fsgsbase = 2
        return cpu.read("cpuid_1_edx"), fsgsbase

    def start(self, cpu: Cpu, entry: int, stack_pointer: int) -> None:
        values = dict.fromkeys(_CONTEXT, 0)
        values |= {"rip": entry, "rsp": stack_pointer, "rflags": regs.RFLAGS_FIXED | regs.RFLAGS_IF}
        values |= {"fs_base": 0, "gs_base": 0}
        cpu.load_registers(values | _initial_fpu())

    def finish_call(self, cpu: Cpu, result: int) -> None:
        flags = regs.RFLAGS_FIXED | regs.RFLAGS_IF
        cpu.load_registers({"rax": result & _MASK, "rcx": cpu.pc, "r11": flags})  # Intel SDM 2B SYSCALL

    # ---- signals

    def trap_signal(self, cpu: Cpu, trap: Trap) -> sig.SignalInfo:
        pc = cpu.pc
        number, code, address = {
            TrapKind.DIVIDE: (sig.SIGFPE, sig.FPE_INTDIV, pc),
            TrapKind.DEBUG: (sig.SIGTRAP, sig.TRAP_TRACE, pc),
            TrapKind.BREAKPOINT: (sig.SIGTRAP, sig.SI_KERNEL, 0),
            TrapKind.OVERFLOW: (sig.SIGSEGV, sig.SI_KERNEL, 0),
            TrapKind.ILLEGAL: (sig.SIGILL, sig.ILL_ILLOPN, pc),
            TrapKind.PROTECTION: (sig.SIGSEGV, sig.SI_KERNEL, 0),
            TrapKind.NON_CANONICAL: (sig.SIGSEGV, sig.SI_KERNEL, 0),
            TrapKind.STACK: (sig.SIGBUS, sig.SI_KERNEL, 0),
            TrapKind.DEBUGGER: (sig.SIGTRAP, sig.TRAP_BRKPT, pc),
            TrapKind.ALIGNMENT: (sig.SIGBUS, sig.BUS_ADRALN, 0),
            TrapKind.FLOAT: (sig.SIGFPE, 0, pc),
        }[trap.kind]
        return sig.SignalInfo(number, code, address, trap=trap.vector, error=trap.error)

    def push_frame(self, cpu: Cpu, delivery: sig.Delivery) -> None:
        state = cpu.registers()
        stack = delivery.stack
        top = stack.start + stack.size if delivery.switch else state["rsp"] - _RED_ZONE
        image = (top - _FXSAVE) & -64
        frame = ((image - _FRAME) & -16) - 8
        if (delivery.switch or stack.contains(state["rsp"])) and frame < stack.start:
            raise UserFault("the alternate stack is too small")
        info, action = delivery.info, delivery.action
        if not action.flags & sig.SA_RESTORER:
            raise UserFault("the handler has nothing to return to")
        cpu.copy_to_user(image & _MASK, encode_fxsave(state))
        ucontext = struct.pack("<QQQIIQ", _UC_FLAGS, 0, stack.start, stack.flags, 0, stack.size)
        ucontext += _encode_context(state, info, delivery.mask, image, self.user_end)
        ucontext += struct.pack("<Q", delivery.mask)
        content = struct.pack("<Q", action.restorer) + ucontext + encode_siginfo(info)
        cpu.copy_to_user(frame & _MASK, content)
        keep = state["rflags"] & ~(regs.RFLAGS_DF | regs.RFLAGS_RF | regs.RFLAGS_TF)
        cpu.load_registers(
            {
                "rip": action.handler,
                "rsp": frame,
                "rdi": info.number,
                "rsi": frame + 8 + _UCONTEXT,
                "rdx": frame + 8,
                "rax": 0,
                "rflags": keep,
            }
            | _initial_fpu()
        )

    def pop_frame(self, cpu: Cpu) -> sig.Restored:
        ucontext = cpu.sp  # the handler's `ret` has popped the return address
        raw = cpu.copy_from_user(ucontext, _UCONTEXT)
        start, flags, size = struct.unpack_from("<QIxxxxQ", raw, 16)
        words = struct.unpack_from("<18Q", raw, 40)
        (image,) = struct.unpack_from("<Q", raw, 40 + 184)
        (mask,) = struct.unpack_from("<Q", raw, 40 + _SIGCONTEXT)
        values = dict(zip(_CONTEXT, words, strict=True))
        current = cpu.read("rflags")
        values["rflags"] = current & ~regs.RFLAGS_USER | values["rflags"] & regs.RFLAGS_USER
        if image:
            values |= decode_fxsave(cpu.copy_from_user(image, _FXSAVE))
        else:
            values |= _initial_fpu()
        cpu.load_registers(values)
        return sig.Restored(mask, sig.AlternateStack(start, flags & ~sig.SS_ONSTACK, size))


def _initial_fpu() -> dict[str, int]:
    values = {f"xmm{i}": 0 for i in range(16)} | {f"fp{i}": 0 for i in range(8)}
    return values | {"fpcw": regs.FPU_CONTROL, "fpsw": 0, "fptag": regs.FPU_TAGS, "mxcsr": regs.MXCSR}


def _encode_context(
    state: dict[str, int], info: sig.SignalInfo, mask: int, image: int, user_end: int
) -> bytes:
    """struct sigcontext, 256 bytes."""
    segments = (regs.USER_CODE, 0, 0, regs.USER_DATA)
    trap, error, address = info.trap, info.error, 0
    if info.access is not None:
        trap, error = syndrome.VECTOR_PAGE_FAULT, syndrome.error_of(info.access)
        address = info.address
        if address >= user_end:  # Linux never tells what of the kernel's half is mapped
            error |= syndrome.PRESENT
    # Trap 0 is a division's, and what signals carry that no exception made.
    if trap in syndrome.FAULTS and (trap or (info.number, info.code) == (sig.SIGFPE, sig.FPE_INTDIV)):
        state = state | {"rflags": state["rflags"] | regs.RFLAGS_RF}
    return struct.pack(
        "<18Q4H5Q64x",
        *(state[name] & _MASK for name in _CONTEXT),
        *segments,
        *(error, trap, mask, address, image),
    )


def encode_fxsave(state: dict[str, int]) -> bytes:
    """The FXSAVE image of the register names used here."""
    tags = state["fptag"]
    abridged = sum(1 << i for i in range(8) if tags >> 2 * i & 3 != 3)
    top = state["fpsw"] >> 11 & 7
    head = struct.pack(
        "<HHBBHQQII", state["fpcw"], state["fpsw"], abridged, 0, 0, 0, 0, state["mxcsr"], _MXCSR_VALID
    )
    x87 = b"".join(state[f"fp{top + i & 7}"].to_bytes(10, "little") + bytes(6) for i in range(8))
    xmm = b"".join(state[f"xmm{i}"].to_bytes(16, "little") for i in range(16))
    return (head + x87 + xmm).ljust(_FXSAVE, b"\0")


def decode_fxsave(image: bytes) -> dict[str, int]:
    """Register values of an FXSAVE image. Raises Refused(EINVAL) for reserved MXCSR bits."""
    fpcw, fpsw, abridged, mxcsr = struct.unpack_from("<HHBxxxxxxxxxxxxxxxxxxxI", image)
    if mxcsr & ~_MXCSR_VALID:
        raise Refused(errno.EINVAL, "reserved MXCSR bits")
    top = fpsw >> 11 & 7
    values = {"fpcw": fpcw, "fpsw": fpsw, "mxcsr": mxcsr}
    values["fptag"] = sum(3 << 2 * i for i in range(8) if not abridged >> i & 1)
    for i in range(8):
        at = 32 + 16 * i
        values[f"fp{top + i & 7}"] = int.from_bytes(image[at : at + 10], "little")
    for i in range(16):
        at = 160 + 16 * i
        values[f"xmm{i}"] = int.from_bytes(image[at : at + 16], "little")
    return values
