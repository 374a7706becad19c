"""What an injection does: bits that flip in RAM and in registers, behind the memory manager's back.

Nothing is flushed, and nobody is told, as when a cell of memory loses its charge: what a TLB holds it goes on
holding. Only translated code is made anew where its bytes change, since the engine keeps what no CPU does.
"""

from __future__ import annotations

from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.mm.tables.walk import Mapped


def flip_pte(process: Process, address: int, bit: int, level: int = 1) -> str:
    """Flip a bit of the entry of `level` by which `address` is translated; says which, "" if there is none.

    A leaf of a higher level has none below it. Raises AddressError for no address of the format.
    """
    space = process.mm
    steps = {step.level: step for step in space.walk(address).steps}
    if level not in steps:
        return ""
    place = int(steps[level].address)
    ram = space.physical.ram
    before = ram.words[place - ram.base >> 3]
    ram.words[place - ram.base >> 3] = before ^ 1 << bit
    name = space.table.format.levels[level - 1].name
    became = f"{before:#018x} -> {before ^ 1 << bit:#018x}"
    return f"bit {bit} of the {name} entry of {address:#x}, at {place:#x}: {became}"


def flip_data(process: Process, address: int, bit: int) -> str:
    """Flip a bit of the page at `address`, the bit's number taken within the page; says which.

    "" where the process shows no page of RAM, as one of a host's file.
    """
    space = process.mm
    size, ram = space.page_size, space.physical.ram
    page = address & -size
    found = space.walk(page)
    if not isinstance(found, Mapped):
        return ""
    place = int(found.address) + (bit % (size << 3) >> 3)
    if not 0 <= place - ram.base < ram.size:
        return ""
    ram.bytes[place - ram.base] ^= 1 << (bit & 7)
    va = page + (bit % (size << 3) >> 3)
    space.written(va, 1)
    return f"bit {bit & 7} of the byte at {va:#x}, {place:#x} in RAM"


def flip_register(task: Task, name: str, bit: int) -> str:
    """Flip a bit of a register of a task that is on a CPU; says what became of it."""
    cpu = task.cpu
    before = cpu.read(name)
    cpu.write(name, before ^ 1 << bit)
    return f"bit {bit} of {name}: {before:#x} -> {before ^ 1 << bit:#x}"
