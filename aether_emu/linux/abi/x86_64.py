"""Linux/x86_64: numbers, limits, the start of a program, and the signal frame.

The frame is the kernel's `struct rt_sigframe` (arch/x86/include/asm/sigframe.h): return address,
ucontext, siginfo; above it, 64-byte aligned, x87 and SSE state (`x86_64_fpu`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import syndrome
from aether_emu.clock import TSC_HZ
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi import x86_64_fpu as fpu
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
_UCONTEXT, _FRAME = 304, 440
_CONTEXT_AT, _MASK_AT = 40, 296  # of the sigcontext and the mask in the ucontext
_UC_STRICT_RESTORE_SS = 4
_UC_FLAGS = 1 | 2 | _UC_STRICT_RESTORE_SS  # UC_FP_XSTATE | UC_SIGCONTEXT_SS
_RED_ZONE = 128
# Exception bits of x87 and SSE alike: invalid, divide by zero, overflow, underflow or denormal, precision.
_FLOAT_CODES = (
    (0x01, sig.FPE_FLTINV),
    (0x04, sig.FPE_FLTDIV),
    (0x08, sig.FPE_FLTOVF),
    (0x12, sig.FPE_FLTUND),
    (0x20, sig.FPE_FLTRES),
)
_OWN_SELECTORS = (regs.USER_CODE, regs.USER_DATA)
_LOCAL, _SELECTOR = 4, 0xFFFC  # bits of a selector: it names the LDT; index and table


_CALL_SIZE = 2  # bytes of the instruction


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
    minimum_signal_stack = _FRAME + 15 + fpu.SIZE + fpu.ALIGNMENT - 1 + 15 & -16  # with room to align both
    smallest_stack = 2048
    has_vsyscalls = True
    counter_hz = TSC_HZ
    time_pages, vdso_above_stack = 4, True

    def __init__(self, virtual_bits: int = 48) -> None:
        self._virtual_bits = virtual_bits
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
        cpu.load_registers(values | fpu.initial_state())

    def finish_call(self, cpu: Cpu, result: int) -> None:
        flags = regs.RFLAGS_FIXED | regs.RFLAGS_IF
        cpu.load_registers({"rax": result & _MASK, "rcx": cpu.pc, "r11": flags})  # Intel SDM 2B SYSCALL

    def restart_call(self, cpu: Cpu, number: int, argument: int) -> None:
        cpu.load_registers({"rax": number, "rip": cpu.pc - _CALL_SIZE & _MASK})

    def child_registers(self, cpu: Cpu, stack: int, tls: int | None) -> dict[str, int]:
        flags = regs.RFLAGS_FIXED | regs.RFLAGS_IF
        changed = {"rax": 0, "rcx": cpu.pc, "r11": flags}  # Intel SDM 2B SYSCALL
        changed["rflags"] = cpu.read("rflags")
        if stack:
            changed["rsp"] = stack
        if tls is not None:
            changed["fs_base"] = tls
        return changed

    # ---- signals

    def fault_signal(self, cpu: Cpu | None, number: int, code: int, va: int, access: int) -> sig.SignalInfo:
        error = syndrome.error_of(access)
        if va >= self.user_end:  # Linux never tells what of the kernel's half is mapped
            error |= syndrome.PRESENT
        return sig.SignalInfo(number, code, va, record=sig.FaultRecord(syndrome.VECTOR_PAGE_FAULT, error, va))

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
            TrapKind.FLOAT: (sig.SIGFPE, _float_code(cpu, trap.vector), pc),
        }[trap.kind]
        return sig.SignalInfo(
            number, code, address, record=sig.FaultRecord(trap.vector, trap.error, address=None)
        )

    def push_frame(self, cpu: Cpu, delivery: sig.Delivery) -> None:
        info, action, stack = delivery.info, delivery.action, delivery.stack
        if not action.flags & sig.SA_RESTORER:
            raise UserFault("the handler has nothing to return to")
        state = cpu.registers()
        below = state["rsp"] - _RED_ZONE & _MASK
        entered = stack.is_entered(action, below)
        top = stack.start + stack.size & _MASK if entered else below
        area = top - fpu.size_of(state) & -fpu.ALIGNMENT
        frame = (area - _FRAME & -16) - 8
        if (entered or stack.contains(state["rsp"])) and not stack.spans(frame):
            raise UserFault("the alternate stack is too small")
        cpu.copy_to_user(area & _MASK, fpu.encode_state(state))
        ucontext = struct.pack("<QQQIIQ", _UC_FLAGS, 0, stack.start, stack.flags, 0, stack.size)
        ucontext += _encode_context(state, delivery, area) + struct.pack("<Q", delivery.mask)
        content = struct.pack("<Q", action.restorer) + ucontext
        if action.flags & sig.SA_SIGINFO:
            content += encode_siginfo(info)
        cpu.copy_to_user(frame & _MASK, content)
        keep = state["rflags"] & ~(regs.RFLAGS_DF | regs.RFLAGS_RF | regs.RFLAGS_TF)
        entered_with = {
            "rip": action.handler,
            "rsp": frame,
            "rdi": info.number,
            "rsi": frame + 8 + _UCONTEXT,
            "rdx": frame + 8,
            "rax": 0,
            "rflags": keep,
        }
        afresh = {name: value for name, value in fpu.initial_state().items() if value != state[name]}
        cpu.load_registers(entered_with | afresh)

    def pop_frame(self, cpu: Cpu, is_below_an_area: Callable[[int], bool]) -> sig.Restored:
        restored, ucontext = sig.Restored(), cpu.sp  # the handler's `ret` has popped the return address
        values: dict[str, int] = {}
        selectors = _OWN_SELECTORS
        try:
            (restored.mask,) = struct.unpack("<Q", cpu.copy_from_user(ucontext + _MASK_AT & _MASK, 8))
            (uc_flags,) = struct.unpack("<Q", cpu.copy_from_user(ucontext, 8))
            words = struct.unpack("<18Q4H5Q", cpu.copy_from_user(ucontext + _CONTEXT_AT & _MASK, 192))
            selectors = _selectors(words[18] | 3, words[21] | 3, uc_flags)
            values |= zip(_CONTEXT, words[:18], strict=True)
            flags = cpu.read("rflags") & ~regs.RFLAGS_USER | values["rflags"] & regs.RFLAGS_USER
            values["rflags"] = flags & ~regs.RFLAGS_RF  # it suppresses breakpoints, and there are none
            values |= fpu.initial_state()  # what is left of a bad one
            if words[26]:
                values |= fpu.read_state(cpu.copy_from_user, words[26])
            start, flags, size = struct.unpack("<QIxxxxQ", cpu.copy_from_user(ucontext + 16, 24))
            restored.stack = sig.AlternateStack(start, flags, size)
            error = self._return_error(*selectors, values["rip"])
            if error is not None:
                record = sig.FaultRecord(syndrome.VECTOR_PROTECTION, error, address=None)
                restored.refused = sig.SignalInfo(
                    sig.SIGSEGV, sig.SI_KERNEL, record=record, selectors=selectors
                )
        except (UserFault, fpu.BadState):
            restored.refused = sig.SignalInfo(sig.SIGSEGV, sig.SI_KERNEL, selectors=selectors)
        cpu.load_registers(values)
        return restored

    def _return_error(self, code: int, stack: int, pc: int) -> int | None:
        """The error code with which the kernel's IRET refuses to go there (Intel SDM 2A); None: it goes."""
        if stack & _LOCAL:  # Linux returns by another way (espfix), which reports no selector
            return 0
        if code != regs.USER_CODE:
            return code & _SELECTOR
        if stack != regs.USER_DATA:
            return stack & _SELECTOR
        sign = pc >> self._virtual_bits - 1
        return 0 if sign not in (0, _MASK >> self._virtual_bits - 1) else None


def _selectors(code: int, stack: int, uc_flags: int) -> tuple[int, int]:
    """CS and SS that a frame asks for. Without UC_STRICT_RESTORE_SS a bad SS is mended (force_valid_ss)."""
    if code == regs.USER_CODE and not uc_flags & _UC_STRICT_RESTORE_SS:
        stack = regs.USER_DATA
    return code, stack


def _float_code(cpu: Cpu, vector: int) -> int:
    """si_code of a floating-point exception: the first unmasked one in the order of the manual."""
    if vector == syndrome.VECTOR_SIMD:
        control = cpu.read("mxcsr")
        raised = control & ~(control >> 7)
    else:
        raised = cpu.read("fpsw") & ~cpu.read("fpcw")
    return next((code for bits, code in _FLOAT_CODES if raised & bits), 0)


def _encode_context(state: dict[str, int], delivery: sig.Delivery, area: int) -> bytes:
    """struct sigcontext, 256 bytes."""
    info, record = delivery.info, delivery.record
    code, stack = info.selectors or _OWN_SELECTORS
    flags = state["rflags"] & ~regs.RFLAGS_RF
    if info.record is not None and info.selectors is None and record.trap not in syndrome.TRAPS:
        flags |= regs.RFLAGS_RF  # as a fault pushes it (Intel SDM 3B 18.3.1.1)
    return struct.pack(
        "<18Q4H5Q64x",
        *(state[name] & _MASK for name in _CONTEXT[:-1]),
        *(flags, code, 0, 0, stack),
        *(record.error, record.trap, delivery.mask, record.address or 0, area & _MASK),
    )
