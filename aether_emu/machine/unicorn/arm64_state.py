"""The ARM64 CPU state that hooks read and write: live views into the engine, or the API alone (slower)."""

from __future__ import annotations

from typing import Any

from unicorn import arm64_const

from aether_emu.machine import native
from aether_emu.machine.unicorn import arm64_calibrate, engine
from aether_emu.machine.unicorn.x86_state import Field, HiddenField, RegisterField

GENERAL = (
    *(arm64_const.UC_ARM64_REG_X0 + i for i in range(29)),
    arm64_const.UC_ARM64_REG_X29,
    arm64_const.UC_ARM64_REG_X30,
)


class ArmState:
    """`general` are x0 to x30; the others have one element. `live` tells which kind it is.

    `reserved` is where a saved context has the address of an exclusive store to come.
    `syndrome` and `address` are those of the last exception, which no register of the API shows.
    """

    general: Field
    pc: Field
    syndrome: Field
    address: Field

    def __init__(self, uc: Any, *, live: bool = True) -> None:
        layout, handle = arm64_calibrate.measure(), engine.handle_of(uc)
        base = arm64_calibrate.find_state(uc) if live else None
        self.live = base is not None
        self.reserved = layout.context + layout.exclusive
        if base is not None:
            self.general = engine.view(base, "Q", 31)
            self.pc = engine.view(base + layout.pc, "Q", 1)
            self.syndrome = engine.view(base + layout.syndrome, "I", 1)
            self.address = engine.view(base + layout.address, "Q", 1)
            return
        self._keep = uc.context_save()
        context = native.address_of(self._keep.context)
        first = context + layout.context
        self.general = RegisterField(handle, GENERAL)
        self.pc = RegisterField(handle, (arm64_const.UC_ARM64_REG_PC,))
        self.syndrome = HiddenField(handle, context, first + layout.syndrome, "I")
        self.address = HiddenField(handle, context, first + layout.address, "Q")
