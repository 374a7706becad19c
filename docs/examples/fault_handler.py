"""Your own fault handler: fresh memory is no longer zero, and a program that counts on zeros shows it."""

from aether_emu import Machine
from aether_emu.mm.tables.walk import NotMapped

PATTERN = b"\xa5" * 4096

with Machine("x86_64", seed=7) as machine:
    process = machine.load("guest/bin/x86_64/tour", ["tour"])

    @machine.on_fault
    def fill(fault):
        area = fault.area
        asked_for = area is not None and not area.name and area.backing is None and area.start >> 40
        if asked_for and isinstance(fault.walk, NotMapped):
            return fault.map(PATTERN)  # a page with these bytes; then the access is made again
        return None  # the memory manager decides

    print(machine.run())
