"""The vsyscall page of x86_64: calls of old programs to fixed addresses, which the kernel carries out.

Nothing is mapped there. A fetch from the page is a fault; if it is of the first byte of one of its three
functions, the call is made, and its return too (Linux 6.6: `emulate_vsyscall`, with vsyscall=xonly). To read
the page is refused as anywhere in the kernel's half. None of it counts as a system call.
"""

from __future__ import annotations

from aether_emu.linux.calls import find
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault

PAGE = 0xFFFF_FFFF_FF60_0000
SIZE = 4096
# Offset -> the call, and how many bytes each of its pointers is for.
_CALLS: dict[int, tuple[str, tuple[int, ...]]] = {
    0: ("gettimeofday", (16, 8)),
    0x400: ("time", (8,)),
    0x800: ("getcpu", (4, 4)),
}


def call(task: Task, address: int) -> int | None:
    """Make the call that the program at `address` of the page has made, and return from it.

    The answer is None, or a pointer that leads out of the user's half, with nothing done. Raises UserFault
    where no function begins, and for a stack or a pointer that cannot be used.
    """
    cpu, end = task.cpu, task.process.abi.user_end
    if address - PAGE not in _CALLS:
        raise UserFault("no function begins there")
    name, sizes = _CALLS[address - PAGE]
    function = find(name)
    caller = int.from_bytes(cpu.copy_from_user(cpu.sp, 8), "little")
    pointers = (cpu.read("rdi"), cpu.read("rsi"))
    for pointer, size in zip(pointers, sizes, strict=False):
        if pointer > end - size:
            return pointer
    result = function(task, *pointers) if function is not None else None
    assert result is not None, "these calls are served, and have results"
    cpu.write("rax", result)
    cpu.pc, cpu.sp = caller, cpu.sp + 8
    return None
