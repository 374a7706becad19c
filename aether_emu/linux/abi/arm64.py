"""Linux/arm64: numbers, limits, the start of a program, and the signal frame.

The frame is the kernel's `struct rt_sigframe_user_layout` (arch/arm64/kernel/signal.c): siginfo,
ucontext with an FPSIMD record and an ESR record in its reserved space, then a frame record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from aether_emu.arch.arm64 import id_registers, syndrome
from aether_emu.arch.arm64 import registers as regs
from aether_emu.clock import COUNTER_HZ
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.arm64_calls import SYSTEM_CALLS
from aether_emu.linux.abi.arm64_records import (
    FPSIMD_SIZE,
    RESERVED,
    BadRecords,
    decode_fpsimd,
    encode_records,
    find_fpsimd,
)
from aether_emu.linux.abi.siginfo import SIZE as _SIGINFO
from aether_emu.linux.abi.siginfo import encode_siginfo
from aether_emu.linux.files.stat import Stat, encode_stat_arm64
from aether_emu.machine.cpu import Cpu, Trap, TrapKind, UserFault
from aether_emu.policy.aslr import Entropy

_GENERAL = tuple(f"x{i}" for i in range(31))
_CONTEXT_AT = 176  # of the sigcontext inside the ucontext
_RESERVED_AT = _CONTEXT_AT + 288
_FRAME = _SIGINFO + _RESERVED_AT + RESERVED
_STACK_AT, _MASK_AT, _GENERAL_AT = _SIGINFO + 16, _SIGINFO + 40, _SIGINFO + _CONTEXT_AT + 8
_SYNDROME_SHOWN = 0x3F << 26 | 1 << 25 | 1 << 8 | 1 << 6 | 0x3F  # EC, IL, CM, WnR, status

_RANDOM_PAGE_BITS = {4096: 18, 16384: 16, 65536: 14}  # Linux: CONFIG_ARCH_MMAP_RND_BITS, STACK_RND_MASK


class ArmAbi(Abi):
    """The arm64 interface."""

    isa = "arm64"
    machine = "aarch64"
    system_calls = SYSTEM_CALLS
    minimum_signal_stack = _FRAME + 16 + 16  # the frame record, and what alignment may take
    smallest_stack = 5120
    signal_return = b"__kernel_rt_sigreturn"
    broadcasts = True
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

    def restart_call(self, cpu: Cpu, number: int, argument: int) -> None:
        cpu.load_registers({"x0": argument, "x8": number, "pc": cpu.pc - 4})

    def child_registers(self, cpu: Cpu, stack: int, tls: int | None) -> dict[str, int]:
        changed = {"x0": 0}
        if stack:
            changed["sp"] = stack
        if tls is not None:
            changed["tpidr_el0"] = tls
        return changed

    # ---- signals

    def fault_signal(self, cpu: Cpu | None, number: int, code: int, va: int, access: int) -> sig.SignalInfo:
        word = syndrome.abort_of(access) if cpu is None else cpu.syndrome & _SYNDROME_SHOWN
        shown = va if cpu is None or regs.untagged(cpu.fault_address) != va else cpu.fault_address
        if va >= self.user_end:
            word = syndrome.hidden(word)
        return sig.SignalInfo(number, code, shown, record=sig.FaultRecord(error=word, address=va))

    def trap_signal(self, cpu: Cpu, trap: Trap) -> sig.SignalInfo:
        match trap.kind:
            case TrapKind.BREAKPOINT:  # leaves what an earlier fault recorded (brk_handler)
                return sig.SignalInfo(sig.SIGTRAP, sig.TRAP_BRKPT, cpu.pc)
            case TrapKind.ALIGNMENT:
                of_data = trap.vector == syndrome.EC_DATA_LOWER
                record = sig.FaultRecord(
                    error=trap.error, address=regs.untagged(trap.address) if of_data else 0
                )
                return sig.SignalInfo(sig.SIGBUS, sig.BUS_ADRALN, trap.address, record=record)
        return sig.SignalInfo(sig.SIGILL, sig.ILL_ILLOPC, cpu.pc, record=sig.FaultRecord())

    def untagged(self, address: int) -> int:
        return regs.untagged(address)

    def push_frame(self, cpu: Cpu, delivery: sig.Delivery) -> None:
        state, stack = cpu.registers(), delivery.stack
        info, action = delivery.info, delivery.action
        entered = stack.is_entered(action, state["sp"])
        top = stack.start + stack.size if entered else state["sp"]
        record = (top & -16) - 16
        frame = record - _FRAME
        if not 0 <= frame <= self.user_end - (top - frame):
            raise UserFault("no such stack, or a pointer to it with a tag")
        ucontext = struct.pack("<QQQIIQ", 0, 0, stack.start, stack.flags, 0, stack.size)
        ucontext += struct.pack("<Q", delivery.mask).ljust(_CONTEXT_AT - len(ucontext), b"\0")
        ucontext += _encode_context(state, delivery.record)
        cpu.copy_to_user(frame + _SIGINFO, ucontext)
        cpu.copy_to_user(record, struct.pack("<QQ", state["x29"], state["x30"]))
        values = {
            "x0": info.number,
            "x29": record,
            "x30": action.restorer if action.flags & sig.SA_RESTORER else delivery.signal_return,
            "sp": frame,
            "pc": regs.untagged(action.handler),
        }
        if action.flags & sig.SA_SIGINFO:
            cpu.copy_to_user(frame, encode_siginfo(info))
            values |= {"x1": frame, "x2": frame + _SIGINFO}
        cpu.load_registers(values)

    def pop_frame(self, cpu: Cpu, is_below_an_area: Callable[[int], bool]) -> sig.Restored:
        restored, frame = sig.Restored(), cpu.sp
        values: dict[str, int] = {}
        try:
            if frame % 16 or frame + _FRAME > self.user_end:
                raise UserFault("a frame lies in the user's half, aligned to 16 bytes")
            self._read_frame(cpu, frame, restored, values)
            start, flags, size = struct.unpack("<QIxxxxQ", cpu.copy_from_user(frame + _STACK_AT, 24))
            restored.stack = sig.AlternateStack(start, flags, size)
        except (UserFault, BadRecords):
            at = values.get("sp", frame)
            code = sig.SEGV_ACCERR if is_below_an_area(regs.untagged(at)) else sig.SEGV_MAPERR
            restored.refused = sig.SignalInfo(sig.SIGSEGV, code, at, record=sig.FaultRecord())
        cpu.load_registers(values)
        return restored

    def _read_frame(self, cpu: Cpu, frame: int, restored: sig.Restored, values: dict[str, int]) -> None:
        """A frame's mask and, into `values`, its registers, as far as it is good. Words that cannot be read
        are 0. Raises UserFault or BadRecords behind what is to be restored all the same.
        """
        unreadable = 0

        def word(offset: int) -> int:
            nonlocal unreadable
            try:
                return int.from_bytes(cpu.copy_from_user(frame + offset, 8), "little")
            except UserFault:
                unreadable += 1
                return 0

        mask = word(_MASK_AT)
        if not unreadable:
            restored.mask = mask
        try:
            words = struct.unpack("<34Q", cpu.copy_from_user(frame + _GENERAL_AT, 34 * 8))
        except UserFault:
            words = tuple(word(_GENERAL_AT + 8 * i) for i in range(34))
        values |= zip((*_GENERAL, "sp", "pc"), words[:33], strict=True)
        values["pc"], values["nzcv"] = regs.untagged(values["pc"]), words[33] & regs.PSTATE_FLAGS
        if unreadable or words[33] & regs.PSTATE_NOT_USER:
            raise UserFault("registers that a program cannot have")
        records = frame + _SIGINFO + _RESERVED_AT
        found = find_fpsimd(cpu.copy_from_user, frame, records, self.user_end)
        values |= decode_fpsimd(cpu.copy_from_user(found, FPSIMD_SIZE))


def _encode_context(state: dict[str, int], record: sig.FaultRecord) -> bytes:
    """struct sigcontext: registers, then records up to a zero one."""
    context = struct.pack("<Q31Q", record.address or 0, *(state[name] for name in _GENERAL))
    context += struct.pack("<QQQ", state["sp"], state["pc"], state["nzcv"] & regs.PSTATE_FLAGS)
    context = context.ljust(_RESERVED_AT - _CONTEXT_AT, b"\0")
    return context + encode_records(state, record.error)
