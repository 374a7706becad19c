"""A write barrier for a garbage collector: which pages were stored to since the last collection?

Each collection takes the right to write away from the pages that had been stored to. The first store to a
page faults and is noted; all others cost nothing.
"""

from aether_emu import Machine
from aether_emu.arch.paging import Access
from aether_emu.mm.tables.walk import Mapped

with Machine("x86_64", seed=7) as machine:
    process = machine.load("guest/bin/x86_64/stream", ["stream", "1", "3"])  # stores 1 MiB, three times over
    cards = set()

    @machine.on_fault
    def note(fault):
        if fault.access & Access.WRITE and fault.area is not None and fault.area.length == 1 << 20:
            cards.add(fault.page)

    def collect():
        """The pages that were stored to since the last time, write-protected again."""
        stored = sorted(cards)
        cards.clear()
        for page in stored:
            found = process.mm.walk(page)
            if isinstance(found, Mapped):  # it may have been unmapped meanwhile
                leaf = found.steps[-1]
                slot = leaf.address - machine.ram.base >> 3
                machine.ram.words[slot] = machine.format.write_protect(leaf.entry)
        machine.cpu.flush_all()  # less than before: the TLB must hear of it
        return stored

    number = 0
    while machine.run_for(40_000) is None:
        number += 1
        stored = collect()
        print(f"collection {number}: {len(stored)} pages were stored to")
