"""Bare x86_64 engines: without paging, and at ring 3 behind the smallest page tables."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_64, x86_const

from aether_emu.arch.paging import PageFlags
from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import stubs
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.errors import EngineError
from aether_emu.machine.floors import bare as floors
from aether_emu.machine.unicorn import engine, x86_calibrate
from aether_emu.machine.unicorn.x86_state import ContextState, LiveState, State

_STUB, _FRAME = 0x100, 0x800  # offsets in the supervisor page, after its descriptors
_RSP = 4


class _X86(floors.Floor):
    """What both have: the engine, its registers, and a system call's callback."""

    def _open(self) -> Any:
        uc = engine.open_engine(UC_ARCH_X86, UC_MODE_64, x86_calibrate.MODEL)
        layout, base = x86_calibrate.measure(), x86_calibrate.find_state(uc)
        self._state: State = ContextState(uc, layout) if base is None else LiveState(base, layout)
        return uc

    def _hook_calls(self) -> None:
        """Let `on_system_call` answer."""
        g = self._state.general

        def call(_uc: int, _data: int) -> None:
            try:
                result = self.on_system_call(g[0], g[7], g[6], g[2], g[10], g[8], g[9])
            except BaseException as failure:
                self._fail(failure)
                return
            if result is None:
                self._stop()
            else:
                g[0] = result & floors.MASK

        self._hook(UC_HOOK_INSN, engine.INSTRUCTION(call), x86_const.UC_X86_INS_SYSCALL)


class X86Flat(_X86):
    """The program on an engine without paging. Every address can be read, written and executed."""

    def __init__(self, program: floors.Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)
        self._uc.ctl_exits_enabled(True)  # else `until` would be translated
        self._uc.ctl_set_exits([])
        self._hook_calls()
        self._state.general[_RSP] = self._stack

    def run(self) -> None:
        self._execute(self._entry)


class X86Paged(_X86, floors.Paged):
    """The program at ring 3, reached by an `iretq` in a supervisor page that also has the descriptors."""

    def __init__(self, program: floors.Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)
        page = floors.SUPERVISOR
        supervisor = floors.USED | PageFlags.WRITE | PageFlags.DIRTY | PageFlags.EXECUTE
        self._map(range(page // floors.PAGE, page // floors.PAGE + 1), supervisor)
        gdt = struct.pack(f"<{len(regs.GDT)}Q", *regs.GDT)
        frame = struct.pack(
            "<5Q",
            self._entry,
            regs.USER_CODE,
            regs.RFLAGS_FIXED | regs.RFLAGS_IF,
            self._stack,
            regs.USER_DATA,
        )
        for offset, content in ((0, gdt), (_STUB, stubs.IRET.code), (_FRAME, frame)):
            self.ram.bytes[page + offset : page + offset + len(content)] = content
        x86_calibrate.enable_paging(self._uc, floors.ROOT)
        self._uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, page, len(gdt) - 1, 0))
        self._state.general[_RSP] = page + _FRAME

    def _make_format(self) -> X86Format:
        return X86Format()

    def _hook_faults(self) -> None:
        words, cr2, old = self.ram.words, self._state.cr2, self._state.old_exception
        leaves = floors.LEAVES >> 3
        pop = self.prepared.pop

        def fault(_uc: int, _vector: int, _data: int) -> None:
            try:
                words[leaves + (cr2[0] >> 12)] = pop()
                old[0] = -1
            except IndexError:
                self._fail(EngineError(f"a fault at {cr2[0]:#x} beyond those prepared"))
            except BaseException as failure:  # Ctrl-C arrives between two bytecodes
                self._fail(failure)

        self._hook(UC_HOOK_INTR, engine.INTERRUPT(fault))
        self._hook_calls()

    def _hook_calls_only(self, answer: int) -> None:
        g, cr2 = self._state.general, self._state.cr2

        def call(_uc: int, _data: int) -> None:
            try:
                _arguments = (g[0], g[7], g[6], g[2], g[10], g[8], g[9])
                g[0] = answer
            except BaseException as failure:  # Ctrl-C arrives between two bytecodes
                self._fail(failure)

        def end(_uc: int, _vector: int, _data: int) -> None:
            self._end_at(cr2[0])

        self._hook(UC_HOOK_INSN, engine.INSTRUCTION(call), x86_const.UC_X86_INS_SYSCALL)
        self._hook(UC_HOOK_INTR, engine.INTERRUPT(end))

    def run(self) -> None:
        self._state.old_exception[0] = -1
        self._execute(floors.SUPERVISOR + _STUB)
