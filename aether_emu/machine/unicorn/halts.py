"""Where a Unicorn CPU halts in front of an instruction: breakpoints, and after so many instructions.

A hook on a single address costs nothing elsewhere, and the guest cannot see it: no byte of its code changes.
Steps are counted by a hook on every address, which is there only while steps are left. What an instruction
loads and stores is told by a third kind while somebody asks (`step`), with physical addresses.

An instruction that faults, and is made again after the fault, has begun once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from unicorn import UC_HOOK_CODE, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MEM_WRITE

from aether_emu.machine.cpu import Cpu
from aether_emu.machine.halting import Halting, Told
from aether_emu.machine.unicorn import engine

MEMORY = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)


class Halts(Halting):
    """Of `cpu`, whose engine is `handle`. `uncount` takes back the count of one block.

    Translations know only the hooks that were there before: they are dropped with each that comes.
    `hit` is set when it has halted. `last` is the address of the breakpoint that it goes on from: the next
    instruction is not halted at again. `again` is that of an instruction that is made again after a fault.
    """

    def __init__(self, cpu: Cpu, handle: int, uncount: Callable[[], None]) -> None:
        self._cpu, self._handle, self._uncount = cpu, handle, uncount
        self.on_halt = cpu.stop
        self._at_place = engine.CODE(self._place)
        self._at_each = engine.CODE(self._each)
        self._at_access = MEMORY(self._access)
        self._places: dict[int, int] = {}  # breakpoint -> its hook
        self._each_hook: int | None = None
        self._memory_hooks: list[int] = []
        self._told: Told | None = None
        self._left = 0
        self._asked = -1  # the instruction that a hook has asked about, in front of which nothing has stopped
        self.hit = False
        self.last = self.again = -1

    # ---- what to halt at

    def break_at(self, va: int) -> None:
        if va not in self._places:
            self._places[va] = engine.hook_add(self._handle, UC_HOOK_CODE, self._at_place, only_at=va)
            self._cpu.flush_code()

    def unbreak(self, va: int) -> None:
        engine.hook_del(self._handle, self._places.pop(va))

    def step(self, count: int, told: Told | None = None) -> None:
        self._left, fresh = count, False
        if self._each_hook is None:
            self._each_hook = engine.hook_add(self._handle, UC_HOOK_CODE, self._at_each)
            fresh = True
        if told is not None and not self._memory_hooks:
            kinds = (UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE)
            self._memory_hooks = [engine.hook_add(self._handle, kind, self._at_access) for kind in kinds]
            fresh = True
        self._told = told
        if fresh:
            self._cpu.flush_code()

    @property
    def steps_left(self) -> int | None:
        return None if self._each_hook is None else self._left

    def end_steps(self) -> None:
        if self._each_hook is not None:  # with a hook the engine drops the translations that know it
            engine.hook_del(self._handle, self._each_hook)
            self._each_hook = None
        self._told = None
        while self._memory_hooks:
            engine.hook_del(self._handle, self._memory_hooks.pop())

    def go_past(self) -> None:
        """Not to halt once more at a breakpoint where the run goes on."""
        self.last = self._cpu.pc

    @property
    def place(self) -> tuple[int, int]:
        return self.last, self.again

    @place.setter
    def place(self, place: tuple[int, int]) -> None:
        self.last, self.again = place

    def made_again(self, *, begun: bool, uncounted: bool) -> None:
        if begun:
            self.again = self._cpu.pc
        if uncounted:
            self._uncount()

    # ---- asked in front of instructions

    @property
    def halts_anywhere(self) -> bool:
        """Whether there are breakpoints, or steps are counted."""
        return bool(self._places) or self._each_hook is not None

    def halts_at(self, pc: int) -> bool:
        """Whether the instruction at `pc`, which would begin now, must not."""
        again, self.again = self.again, -1
        if pc == again:
            return False
        last, self.last = self.last, -1
        if (pc in self._places and pc != last) or (self._each_hook is not None and self._left == 0):
            self.hit = True
            return True
        self._left -= self._each_hook is not None
        return False

    def halts_instead(self, pc: int) -> bool:
        """The same for one that something is done in place of, unless its hook was asked already."""
        if not self.halts_anywhere:
            return False
        asked, self._asked = self._asked == pc, -1
        return not asked and self.halts_at(pc)

    def _place(self, _uc: int, pc: int, _size: int, _data: int) -> None:
        if self._each_hook is None and pc in self._places:
            self._ask(pc)

    def _each(self, _uc: int, pc: int, _size: int, _data: int) -> None:
        if self._each_hook is not None and not pc >> 63:  # the supervisor's stubs are nobody's instructions
            self._ask(pc)

    def _ask(self, pc: int) -> None:
        self._asked = pc
        if self.halts_at(pc):
            self._asked = -1
            engine.emu_stop(self._handle)

    def _access(self, _uc: int, kind: int, physical: int, size: int, value: int, _data: int) -> None:
        if self._told is not None:
            self._told(kind == UC_MEM_WRITE, physical, size, value & (1 << 64) - 1)
