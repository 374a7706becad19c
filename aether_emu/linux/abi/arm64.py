"""Linux/arm64: numbers, limits, the start of a program, and the signal frame.

The frame is the kernel's `struct rt_sigframe_user_layout` (arch/arm64/kernel/signal.c): siginfo,
ucontext with an FPSIMD record and an ESR record in its reserved space, then a frame record.
"""

from __future__ import annotations

import struct

from aether_emu.arch.arm64 import id_registers, syndrome
from aether_emu.clock import COUNTER_HZ
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.arm64_calls import SYSTEM_CALLS
from aether_emu.linux.abi.siginfo import SIZE as _SIGINFO
from aether_emu.linux.abi.siginfo import encode_siginfo
from aether_emu.linux.files.stat import Stat, encode_stat_arm64
from aether_emu.machine.cpu import Cpu, Trap, TrapKind, UserFault
from aether_emu.policy.aslr import Entropy

_GENERAL = tuple(f"x{i}" for i in range(31))
_CONTEXT_AT = 176  # of the sigcontext inside the ucontext
_RESERVED_AT = _CONTEXT_AT + 288
_UCONTEXT = _RESERVED_AT + 4096
_FRAME = _SIGINFO + _UCONTEXT
_FPSIMD_MAGIC, _ESR_MAGIC = 0x4650_8001, 0x4553_5201
_FPSIMD_SIZE, _ESR_SIZE = 528, 16
_SYNDROME_SHOWN = 0x3F << 26 | 1 << 25 | 1 << 8 | 1 << 6 | 0x3F  # EC, IL, CM, WnR, status

_RANDOM_PAGE_BITS = {4096: 18, 16384: 16, 65536: 14}  # Linux: CONFIG_ARCH_MMAP_RND_BITS, STACK_RND_MASK


class ArmAbi(Abi):
    """The arm64 interface."""

    isa = "arm64"
    machine = "aarch64"
    system_calls = SYSTEM_CALLS
    minimum_signal_stack = _FRAME + 16
    signal_return = b"__kernel_rt_sigreturn"
    counter_hz = COUNTER_HZ
    time_pages, vdso_above_stack = 2, False

    def __init__(self, page_size: int = 4096, virtual_bits: int = 48) -> None:
        self.user_end = self.window = 1 << virtual_bits
        bits = _RANDOM_PAGE_BITS[page_size]
        self.entropy = Entropy(
            mmap_bits=bits,
            stack_bits=bits,
            stack_offset_bytes=page_size,
            heap_bytes=1 << 30,
            image_base=2 * self.user_end // 3 & -page_size,
        )

    def encode_stat(self, stat: Stat) -> bytes:
        return encode_stat_arm64(stat)

    def hardware_capabilities(self, cpu: Cpu) -> tuple[int, int]:
        """What the engine executes correctly, and that ID registers may be read (`id_registers`)."""
        return id_registers.hardware_capabilities()

    def start(self, cpu: Cpu, entry: int, stack_pointer: int) -> None:
        values = dict.fromkeys((*_GENERAL, "nzcv", "tpidr_el0", "fpcr", "fpsr"), 0)
        values |= {f"v{i}": 0 for i in range(32)}
        cpu.load_registers(values | {"pc": entry, "sp": stack_pointer})

    def finish_call(self, cpu: Cpu, result: int) -> None:
        cpu.write("x0", result & (1 << 64) - 1)

    # ---- signals

    def trap_signal(self, cpu: Cpu, trap: Trap) -> sig.SignalInfo:
        if trap.kind is TrapKind.ALIGNMENT:
            return sig.SignalInfo(sig.SIGBUS, sig.BUS_ADRALN, trap.address, error=trap.error)
        if trap.kind is TrapKind.BREAKPOINT:  # for this and what is undefined, frames show no syndrome
            return sig.SignalInfo(sig.SIGTRAP, sig.TRAP_BRKPT, cpu.pc)
        return sig.SignalInfo(sig.SIGILL, sig.ILL_ILLOPC, cpu.pc)

    def push_frame(self, cpu: Cpu, delivery: sig.Delivery) -> None:
        state, stack = cpu.registers(), delivery.stack
        top = stack.start + stack.size if delivery.switch else state["sp"]
        record = (top & -16) - 16
        frame = record - _FRAME & -16
        if (delivery.switch or stack.contains(state["sp"])) and frame < stack.start:
            raise UserFault("the alternate stack is too small")
        info, action = delivery.info, delivery.action
        ucontext = struct.pack("<QQQIIQ", 0, 0, stack.start, stack.flags, 0, stack.size)
        ucontext += struct.pack("<Q", delivery.mask).ljust(_CONTEXT_AT - len(ucontext), b"\0")
        ucontext += _encode_context(state, info, cpu.syndrome)
        cpu.copy_to_user(frame, (encode_siginfo(info) + ucontext).ljust(_FRAME, b"\0"))
        cpu.copy_to_user(record, struct.pack("<QQ", state["x29"], state["x30"]))
        cpu.load_registers(
            {
                "x0": info.number,
                "x1": frame,
                "x2": frame + _SIGINFO,
                "x29": record,
                "x30": action.restorer if action.flags & sig.SA_RESTORER else delivery.signal_return,
                "sp": frame,
                "pc": action.handler,
            }
        )

    def pop_frame(self, cpu: Cpu) -> sig.Restored:
        if cpu.sp & 15:
            raise UserFault("a frame is aligned to 16 bytes")
        raw = cpu.copy_from_user(cpu.sp + _SIGINFO, _UCONTEXT)
        start, flags, size = struct.unpack_from("<QIxxxxQ", raw, 16)
        (mask,) = struct.unpack_from("<Q", raw, 40)
        words = struct.unpack_from("<31QQQQ", raw, _CONTEXT_AT + 8)
        values = dict(zip((*_GENERAL, "sp", "pc"), words[:33], strict=True))
        values["nzcv"] = words[33] & 0xF000_0000
        magic, length, fpsr, fpcr = struct.unpack_from("<IIII", raw, _RESERVED_AT)
        if magic == _FPSIMD_MAGIC and length == _FPSIMD_SIZE:
            values |= {"fpsr": fpsr, "fpcr": fpcr}
            for i in range(32):
                at = _RESERVED_AT + 16 + 16 * i
                values[f"v{i}"] = int.from_bytes(raw[at : at + 16], "little")
        cpu.load_registers(values)
        return sig.Restored(mask, sig.AlternateStack(start, flags & ~sig.SS_ONSTACK, size))


def _encode_context(state: dict[str, int], info: sig.SignalInfo, word: int) -> bytes:
    """struct sigcontext: registers, then records up to a zero one. `word` is the last abort's syndrome."""
    address, esr = 0, 0
    if info.access is not None:
        address, esr = info.address, _shown_syndrome(word, info.address)
    elif info.is_fault:
        esr = info.error
    context = struct.pack("<Q31Q", address, *(state[name] for name in _GENERAL))
    context += struct.pack("<QQQ", state["sp"], state["pc"], state["nzcv"] & 0xF000_0000)
    context = context.ljust(_RESERVED_AT - _CONTEXT_AT, b"\0")
    context += struct.pack("<IIII", _FPSIMD_MAGIC, _FPSIMD_SIZE, state["fpsr"], state["fpcr"])
    context += b"".join(state[f"v{i}"].to_bytes(16, "little") for i in range(32))
    if esr:
        context += struct.pack("<IIQ", _ESR_MAGIC, _ESR_SIZE, esr)
    return context


def _shown_syndrome(word: int, address: int) -> int:
    """What Linux shows of an abort's syndrome: nothing of the kernel's tables (`set_thread_esr`)."""
    if not address >> 55 & 1:
        return word & _SYNDROME_SHOWN
    return word & _SYNDROME_SHOWN & ~0x3F | syndrome.FSC_TRANSLATION
