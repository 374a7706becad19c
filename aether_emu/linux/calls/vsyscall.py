"""The vsyscall page of x86_64: calls of old programs to fixed addresses, which the kernel carries out.

Nothing is mapped there. A fetch from the page is a fault; if it is of the first byte of one of its three
functions, the call is made, and its return too (Linux 6.6: `emulate_vsyscall`, with vsyscall=xonly). To read
the page is refused as anywhere in the kernel's half. None of it counts as a system call.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.linux.calls.scheduling import sys_getcpu
from aether_emu.linux.calls.time import sys_gettimeofday, sys_time
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault

PAGE = 0xFFFF_FFFF_FF60_0000
SIZE = 4096
# Offset -> the function, and how many bytes each of its pointers is for.
_FUNCTIONS: dict[int, tuple[Callable[..., int], tuple[int, ...]]] = {
    0: (sys_gettimeofday, (16, 8)),
    0x400: (sys_time, (8,)),
    0x800: (sys_getcpu, (4, 4)),
}


def call(task: Task, address: int) -> int | None:
    """Make the call that the program at `address` of the page has made, and return from it.

    The answer is None, or a pointer that leads out of the user's half, with nothing done. Raises UserFault
    where no function begins, and for a stack or a pointer that cannot be used.
    """
    cpu, end = task.cpu, task.process.abi.user_end
    if address - PAGE not in _FUNCTIONS:
        raise UserFault("no function begins there")
    function, sizes = _FUNCTIONS[address - PAGE]
    caller = int.from_bytes(cpu.copy_from_user(cpu.sp, 8), "little")
    pointers = (cpu.read("rdi"), cpu.read("rsi"))
    for pointer, size in zip(pointers, sizes, strict=False):
        if pointer > end - size:
            return pointer
    cpu.write("rax", function(task, *pointers))
    cpu.pc, cpu.sp = caller, cpu.sp + 8
    return None
