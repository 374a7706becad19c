"""Catch a use of freed memory: what the program unmaps is kept apart, and nobody gets it again."""

from aether_emu import Machine
from aether_emu.mm.mapping import protect_memory

with Machine("x86_64", seed=7) as machine:
    process = machine.load("guest/bin/x86_64/freed", ["freed"])
    freed = {}  # range of addresses -> where it was freed

    @machine.on_system_call(names=["munmap"])
    def keep(call):
        start, length = call.arguments[:2]
        freed[range(start, start + length)] = call.task.cpu.pc
        protect_memory(process.mm, start, length, 0)  # PROT_NONE instead: every access faults
        return 0

    @machine.on_fault
    def check(fault):
        for block, where in freed.items():
            if fault.address in block:
                offset = fault.address - block.start
                print(f"the code at {fault.pc:#x} uses byte {offset} of a block that was freed at {where:#x}")
                return fault.deny()
        return None

    print(machine.run())
