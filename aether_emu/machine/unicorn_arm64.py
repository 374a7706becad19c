"""The ARM64 CPU on Unicorn: bring-up, the exception hook, and the traps that facts have shown.

The CPU rests at EL0 between runs. Every exception arrives at one hook with a class number of the
engine's own; the true syndrome is in the CPU state. Engine behaviour handled here (unicorn 2.1.4):
- target pages are 1 KiB unless set before anything else (`calibrate_arm64.open_cpu`).
- a PSTATE write does not change the effective level: a system-register write must follow.
- TTBR0 writes flush nothing when the ASID stays: `set_root` drops the TLB itself.
- CNTVCT_EL0 is the host's: CNTKCTL_EL1 is 0, so reads trap and answer from the virtual clock.
- IC IVAU is a no-op: SCTLR_EL1.UCI is 0, so cache maintenance traps and drops translations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from unicorn import UC_HOOK_INTR, arm64_const

from aether_emu.arch.arm64 import registers as regs
from aether_emu.arch.arm64 import stubs, syndrome
from aether_emu.errors import EngineError
from aether_emu.machine import calibrate_arm64, engine
from aether_emu.machine.cpu import Trap, TrapKind
from aether_emu.machine.state_views import Field, HiddenField, RegisterField
from aether_emu.machine.unicorn_cpu import MASK, UnicornCpu

_SVC, _FETCH_ABORT, _DATA_ABORT, _UNDEFINED, _BREAKPOINT = 2, 3, 4, 1, 7
_INSTRUCTION = 4
_MAINTENANCE = (1, 3, 7)  # op0, op1, CRn of cache maintenance by address
_IC_IVAU = (5, 1)  # CRm, op2
_CNTFRQ, _CNTPCT, _CNTVCT = (3, 3, 14, 0, 0), (3, 3, 14, 0, 1), (3, 3, 14, 0, 2)

NUMBERS: dict[str, int] = {
    **{f"x{i}": arm64_const.UC_ARM64_REG_X0 + i for i in range(29)},
    "x29": arm64_const.UC_ARM64_REG_X29,
    "x30": arm64_const.UC_ARM64_REG_X30,
    "sp": arm64_const.UC_ARM64_REG_SP,
    "nzcv": arm64_const.UC_ARM64_REG_NZCV,
    "tpidr_el0": arm64_const.UC_ARM64_REG_TPIDR_EL0,
    "fpcr": arm64_const.UC_ARM64_REG_FPCR,
    "fpsr": arm64_const.UC_ARM64_REG_FPSR,
    **{f"v{i}": arm64_const.UC_ARM64_REG_V0 + i for i in range(32)},
}


@dataclass(frozen=True, slots=True)
class SupervisorResult:
    """What an EL1 stub left: x0, and the fault that ended it as (va, access), if any."""

    x0: int
    fault: tuple[int, int] | None


class ArmCpu(UnicornCpu):
    """One ARM64 CPU; parameters as `X86Cpu`. `time_stamp` gives ticks of CNTVCT_EL0 at `frequency`."""

    isa = "arm64"

    def __init__(
        self,
        ranges: list[tuple[int, int, int]],
        *,
        time_stamp: Callable[[], int],
        frequency: int,
        live_state: bool = True,
    ) -> None:
        super().__init__(calibrate_arm64.open_cpu(), ranges)
        self._time_stamp, self._frequency = time_stamp, frequency
        layout = calibrate_arm64.measure()
        base = calibrate_arm64.find_state(self._uc) if live_state else None
        self.live_state = base is not None
        self.general: Field
        self._pc: Field
        self._syndrome: Field
        self._address: Field
        if base is not None:
            self.general = engine.view(base, "Q", 31)
            self._pc = engine.view(base + layout.pc, "Q", 1)
            self._syndrome = engine.view(base + layout.syndrome, "I", 1)
            self._address = engine.view(base + layout.address, "Q", 1)
        else:
            self._context = self._uc.context_save()
            context = int(ctypes.cast(self._context.context, ctypes.c_void_p).value or 0)
            first = context + layout.context
            self.general = RegisterField(self._handle, tuple(NUMBERS[f"x{i}"] for i in range(31)))
            self._pc = RegisterField(self._handle, (arm64_const.UC_ARM64_REG_PC,))
            self._syndrome = HiddenField(self._handle, context, first + layout.syndrome, "I")
            self._address = HiddenField(self._handle, context, first + layout.address, "Q")
        self._text = 0

    # ---- bring-up

    @staticmethod
    def text_page() -> bytes:
        """The supervisor text page: every stub at its offset."""
        page = bytearray(4096)
        for stub in stubs.ALL:
            page[stub.offset : stub.offset + len(stub.code)] = stub.code
        return bytes(page)

    @staticmethod
    def data_page(_va: int) -> bytes:
        """The supervisor data page: nothing that this CPU's hardware would read."""
        return bytes(4096)

    def boot(self, root: int, text: int, _data: int) -> None:
        """Turn translation on with `root` for the kernel half, and rest at EL0."""
        calibrate_arm64.enable_paging(self._uc, root)
        self._text = text
        self._add_hook(UC_HOOK_INTR, engine.INTERRUPT(self._exception_hook()))
        calibrate_arm64.enter_el(self._uc, regs.PSTATE_EL0)

    def _exception_hook(self) -> Callable[[int, int, int], None]:
        handle, x = self._handle, self.general
        status, address = self._syndrome, self._address
        access_of, is_abort = syndrome.access_of, syndrome.is_translation_abort
        known: dict[int, int] = {}  # syndrome -> access, filled as they occur

        def exception(_uc: int, number: int, _data: int) -> None:
            try:
                if number == _SVC:
                    result = self.on_system_call(x[8], x[0], x[1], x[2], x[3], x[4], x[5])
                    if result is not None:
                        x[0] = result & MASK
                    if self.return_work is not None:
                        self.return_work()
                elif number in (_DATA_ABORT, _FETCH_ABORT) and is_abort(word := status[0]):
                    access = known.get(word)
                    if access is None:
                        access = known[word] = int(access_of(word))
                    va = address[0]
                    self.on_fault(va if va >> 55 & 1 else va & (1 << 56) - 1, access)
                else:
                    self._other(number)
            except BaseException as failure:
                self._fail(failure)
            if self._exit is not None or self._interrupted:
                engine.emu_stop(handle)

        return exception

    def _other(self, number: int) -> None:
        word = self._syndrome[0]
        kind = word >> 26
        if number == _BREAKPOINT:
            self.on_trap(Trap(TrapKind.BREAKPOINT, kind, word))
        elif number in (_DATA_ABORT, _FETCH_ABORT):
            self.on_trap(Trap(TrapKind.ALIGNMENT, kind, word, self._address[0]))
        elif kind == syndrome.EC_SYSREG and self._emulate(word):
            self.pc = self.pc + _INSTRUCTION
        elif kind == syndrome.EC_WFX:
            self.pc = self.pc + _INSTRUCTION  # waiting for an interrupt that never comes: go on
        elif number == _UNDEFINED:
            self.on_trap(Trap(TrapKind.ILLEGAL, kind, word))
        else:
            raise EngineError(f"unexpected exception {number} (syndrome {word:#x}) at {self.pc:#x}")

    def _emulate(self, word: int) -> bool:
        """A trapped system register or instruction (Arm ARM D19.2.37, ISS of EC 0x18)."""
        op0, op2, op1 = word >> 20 & 3, word >> 17 & 7, word >> 14 & 7
        crn, target, crm, read = word >> 10 & 15, word >> 5 & 31, word >> 1 & 15, word & 1
        if read and (op0, op1, crn, crm, op2) in (_CNTFRQ, _CNTPCT, _CNTVCT):
            is_frequency = (op0, op1, crn, crm, op2) == _CNTFRQ
            value = self._frequency if is_frequency else self._time_stamp()
            if target != 31:
                self.general[target] = value
            return True
        if (op0, op1, crn) == _MAINTENANCE:
            if (crm, op2) == _IC_IVAU:
                self.flush_code()
            return True
        return False

    # ---- translation

    def set_root(self, root: int) -> None:
        self._uc.cpr_write(*regs.TTBR0_EL1, root)
        self.flush_all()

    def flush_page(self, va: int) -> None:
        self._uc.cpr_write(*regs.TLBI_VAE1, va >> 12 & (1 << 44) - 1)

    def supervisor(self, stub: stubs.Stub, *, x0: int = 0, x1: int = 0, pan: bool = True) -> SupervisorResult:
        """Run an EL1 stub, with PAN set unless told otherwise; all registers survive."""
        saved = self._uc.context_save()
        flags = self.read("nzcv")
        faults: list[tuple[int, int]] = []

        def record(va: int, access: int) -> None:
            faults.append((va, access))
            engine.emu_stop(self._handle)

        self.on_fault, kernel = record, self.on_fault
        calibrate_arm64.enter_el(self._uc, regs.PSTATE_EL1 | (regs.PSTATE_PAN if pan else 0))
        self.general[0], self.general[1] = x0, x1
        code = engine.emu_start_nested(self._handle, self._text + stub.offset, 0, 0, 0)
        result = self.general[0]
        self.on_fault = kernel
        self._uc.context_restore(saved)
        calibrate_arm64.enter_el(self._uc, regs.PSTATE_EL0)
        self.write("nzcv", flags)
        if code:
            raise EngineError(f"stub at {stub.offset:#x}: engine error {code}")
        return SupervisorResult(result, faults[0] if faults else None)

    # ---- registers

    def read(self, name: str) -> int:
        if name == "pc":
            return self.pc
        return int(self._uc.reg_read(NUMBERS[name]))

    def write(self, name: str, value: int) -> None:
        if name == "pc":
            self.pc = value
        else:
            self._uc.reg_write(NUMBERS[name], value)

    @property
    def pc(self) -> int:
        return self._pc[0]

    @pc.setter
    def pc(self, value: int) -> None:
        self._pc[0] = value & MASK

    @property
    def sp(self) -> int:
        return self.read("sp")

    @sp.setter
    def sp(self, value: int) -> None:
        self.write("sp", value & MASK)

    def registers(self) -> dict[str, int]:
        return {name: self.read(name) for name in ("pc", *NUMBERS)}
