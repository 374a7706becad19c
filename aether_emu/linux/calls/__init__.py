"""System calls, a module for each family; `call_table` is the one table of an ISA.

    memory        the mmap family
    transfer      bytes between files and memory, or files and files
    descriptors   making, duplicating, controlling, syncing and closing descriptors
    paths         making, finding, renaming and removing names
    attributes    what a file is: mode, owner, times, extended attributes
    polling       waiting for one of several, and `epolling`
    signals, time, timers, futexes, process, scheduling
    sequences     membarrier and rseq
    splicing      bytes into pipes and out of them
    locks         locks on files
    sockets       connections between processes, and `messages` with `socket_transfer`
    cloning, executing, waiting    making processes, running programs in them, hearing of their ends
    jobs          sending signals, process groups, sessions; `terminals`: what a terminal asks of a task
    notices       timerfd and pidfd

A function `sys_NAME` serves the call NAME of the ISA's table. It is called with the task that makes the
call, and with six arguments as unsigned 64-bit numbers: it names those it reads and lets `*_` take the
rest. It returns the result as an int (a negative one is -errno), or None when the registers are already as
they should be. It raises `Refused(errno)`, and lets `UserFault` through, which becomes EFAULT; `Wait` when
the task must wait, and then it is called again. A number without a function gets ENOSYS.

Nothing here keeps state: a call finds all of it through its task.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType

from aether_emu.linux.abi import Abi
from aether_emu.linux.calls import (
    attributes,
    cloning,
    descriptors,
    epolling,
    executing,
    futexes,
    jobs,
    locks,
    memory,
    notices,
    paths,
    polling,
    process,
    scheduling,
    sequences,
    signals,
    sockets,
    splicing,
    time,
    timers,
    transfer,
    waiting,
    xattrs,
)

Call = Callable[..., int | None]
FAMILIES: tuple[ModuleType, ...] = (
    memory, transfer, descriptors, paths, attributes, polling, epolling, signals, time, timers, futexes,
    process, scheduling, sequences, cloning, executing, waiting, jobs, notices, sockets, locks, splicing,
    xattrs,
)  # fmt: skip
TABLE_SIZE = 512


def find(name: str) -> Call | None:
    """The function that serves a call, or None."""
    return _functions().get(f"sys_{name}")


@functools.cache
def _functions() -> dict[str, Call]:
    """All that the families have under a call's name, imported or defined; the first family's counts."""
    functions: dict[str, Call] = {}
    for family in reversed(FAMILIES):
        functions.update((name, value) for name, value in vars(family).items() if name.startswith("sys_"))
    return functions


def call_table(abi: Abi) -> tuple[Call | None, ...]:
    """The call for each number of an ISA; None where Linux has one and this has not. Built once."""
    return _table(abi.isa, tuple(abi.system_calls.items()))


@functools.cache
def _table(_isa: str, names: tuple[tuple[int, str], ...]) -> tuple[Call | None, ...]:
    table: list[Call | None] = [None] * TABLE_SIZE
    for number, name in names:
        table[number] = find(name)
    return tuple(table)


def served(names: Mapping[int, str]) -> list[str]:
    """Names of the calls that have a function, for the documentation."""
    return sorted({name for name in names.values() if find(name) is not None})
