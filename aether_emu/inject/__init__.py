"""Faults put into a run on purpose: flipped bits, refused allocations, failing calls.

    injector = attach(machine, "pte:bit=1,level=2,at=fault#100")
    machine.run()
    print(injector.done)

What may be injected, and when, is in `plan`; how it is done, in `sites`.
"""

from __future__ import annotations

from aether_emu.inject.injector import Injected, Injector, attach
from aether_emu.inject.plan import Injection, parse
from aether_emu.inject.sites import flip_data, flip_pte

__all__ = ["Injected", "Injection", "Injector", "attach", "flip_data", "flip_pte", "parse"]
