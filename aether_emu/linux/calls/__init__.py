"""System calls, a class for each family; `build_table` binds them to a process.

A method `sys_NAME` serves the call NAME of the ISA's table. Arguments arrive as unsigned 64-bit
numbers, six of them always: a method names those it reads and lets `*_` take the rest. It returns
the result as an int (a negative one is -errno), or None when the registers are already as they
should be; it raises `Refused(errno)`, and lets `UserFault` through, which becomes EFAULT. A number
whose method does not exist gets ENOSYS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aether_emu.linux.calls.files import FileCalls
from aether_emu.linux.calls.memory import MemoryCalls
from aether_emu.linux.calls.process import ProcessCalls
from aether_emu.linux.calls.signals import SignalCalls
from aether_emu.linux.calls.time import TimeCalls

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

Call = Callable[..., int | None]
TABLE_SIZE = 512


def build_table(process: Process) -> list[Call | None]:
    """The call for each number of the process's ISA; None where Linux has one and this has not."""
    families = (
        MemoryCalls(process),
        FileCalls(process),
        SignalCalls(process),
        TimeCalls(process),
        ProcessCalls(process),
    )
    table: list[Call | None] = [None] * TABLE_SIZE
    for number, name in process.abi.system_calls.items():
        for family in families:
            call = getattr(family, f"sys_{name}", None)
            if call is not None:
                table[number] = call
                break
    return table


def served(names: dict[int, str]) -> list[str]:
    """Names of the calls that have a method, for the documentation."""
    families = (MemoryCalls, FileCalls, SignalCalls, TimeCalls, ProcessCalls)
    return sorted({name for name in names.values() if any(hasattr(f, f"sys_{name}") for f in families)})
