"""Your own demand pager: the pages of a mapping come from a file, and those that were changed go back to it.

The program knows nothing of the file: it has mapped 8,192 pages of fresh memory, and touches six of them.
"""

import os
import tempfile

from aether_emu import Machine
from aether_emu.arch.paging import PageFlags
from aether_emu.mm.tables.walk import Mapped, NotMapped

PAGES, PAGE = 8192, 4096

with tempfile.TemporaryFile() as store, Machine("arm64", seed=7) as machine:
    for page in range(PAGES):
        os.pwrite(store.fileno(), bytes([page % 100]), page * PAGE)
    process = machine.load("guest/bin/arm64/tour", ["tour"])
    read, written = [], []

    @machine.on_fault
    def page_in(fault):
        area = fault.area
        if area is None or area.length != PAGES * PAGE or not isinstance(fault.walk, NotMapped):
            return None
        number = (fault.page - area.start) // PAGE
        read.append(number)
        return fault.map(os.pread(store.fileno(), PAGE, number * PAGE))

    @machine.on_system_call(names=["munmap"])
    def page_out(call):
        start, length = call.arguments[:2]
        if length == PAGES * PAGE:
            for page in range(start, start + length, PAGE):
                found = process.mm.walk(page)
                if isinstance(found, Mapped) and found.attributes.flags & PageFlags.DIRTY:
                    os.pwrite(store.fileno(), process.read(page, PAGE), page - start)
                    written.append((page - start) // PAGE)
        # None: and now the call itself

    print(machine.run())
    print("read from the file:", *read)
    print("written back:", *written)
    print("page 511 of the file now begins with", *os.pread(store.fileno(), 1, 511 * PAGE))
