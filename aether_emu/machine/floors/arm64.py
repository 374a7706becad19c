"""Bare ARM64 engines: with the MMU off, and at EL0 behind the smallest page tables.

Every exception of this engine arrives at one hook, so one callback serves calls and faults. It must
end the run for any other exception: on return the engine would go on at the same instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unicorn import UC_HOOK_INTR, arm64_const

from aether_emu.arch.arm64 import registers as regs
from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.errors import EngineError
from aether_emu.machine.floors import bare as floors
from aether_emu.machine.unicorn import arm64_calibrate, engine
from aether_emu.machine.unicorn.arm64_state import ArmState

_CALL, _DATA_ABORT = 2, 4  # the engine's own numbers of SVC and of a data abort
_VIRTUAL_BITS = 48  # four levels


class _Arm(floors.Floor):
    """What both have: the engine, x0 to x8, the address of the last abort, and a call's answer."""

    def _open(self) -> Any:
        uc = arm64_calibrate.open_cpu(floors.PAGE)
        self._state = ArmState(uc)
        self._x, self._address = self._state.general, self._state.address
        return uc

    def _answer(self) -> None:
        """Let `on_system_call` answer the call that the program makes."""
        x = self._x
        result = self.on_system_call(x[8], x[0], x[1], x[2], x[3], x[4], x[5])
        if result is None:
            self._stop()
        else:
            x[0] = result & floors.MASK

    def _hook_exceptions(self, exception: Callable[[int, int, int], None]) -> None:
        self._hook(UC_HOOK_INTR, engine.INTERRUPT(exception))

    def _unexpected(self, number: int) -> None:
        pc = self._uc.reg_read(arm64_const.UC_ARM64_REG_PC)
        self._fail(EngineError(f"exception {number} at {pc:#x} on a bare engine"))

    def _start(self) -> None:
        self._uc.reg_write(arm64_const.UC_ARM64_REG_SP, self._stack)
        self._execute(self._entry)


class ArmFlat(_Arm):
    """The program at EL1 with the MMU off. Every address can be read, written and executed."""

    def __init__(self, program: floors.Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)

        def exception(_uc: int, number: int, _data: int) -> None:
            try:
                if number == _CALL:
                    self._answer()
                else:
                    self._unexpected(number)
            except BaseException as failure:
                self._fail(failure)

        self._hook_exceptions(exception)

    def run(self) -> None:
        self._start()


class ArmPaged(_Arm, floors.Paged):
    """The program at EL0. The engine is put there from outside, so there is no supervisor page."""

    def __init__(self, program: floors.Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)
        arm64_calibrate.enable_paging(self._uc, floors.ROOT, regs.tcr_value(floors.PAGE, _VIRTUAL_BITS))
        arm64_calibrate.enter_el(self._uc, regs.PSTATE_EL0)

    def _make_format(self) -> ArmFormat:
        return ArmFormat(floors.PAGE, _VIRTUAL_BITS)

    def _hook_faults(self) -> None:
        words, address, leaves = self.ram.words, self._address, floors.LEAVES >> 3
        pop = self.prepared.pop

        def exception(_uc: int, number: int, _data: int) -> None:
            try:
                if number == _DATA_ABORT:
                    try:
                        words[leaves + (address[0] >> 12)] = pop()
                    except IndexError:
                        self._fail(EngineError(f"a fault at {address[0]:#x} beyond those prepared"))
                elif number == _CALL:
                    self._answer()
                else:
                    self._unexpected(number)
            except BaseException as failure:  # also Ctrl-C, which arrives between two bytecodes
                self._fail(failure)

        self._hook_exceptions(exception)

    def _hook_calls_only(self, answer: int) -> None:
        x, address = self._x, self._address

        def exception(_uc: int, number: int, _data: int) -> None:
            try:
                if number == _CALL:
                    _arguments = (x[8], x[0], x[1], x[2], x[3], x[4], x[5])
                    x[0] = answer
                elif number == _DATA_ABORT:
                    self._end_at(address[0])
                else:
                    self._unexpected(number)
            except BaseException as failure:  # also Ctrl-C, which arrives between two bytecodes
                self._fail(failure)

        self._hook_exceptions(exception)

    def run(self) -> None:
        self._start()
