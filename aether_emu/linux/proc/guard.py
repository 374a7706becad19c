"""Whom a process's folder in /proc belongs to, and who may look into it (proc(5), ptrace(2))."""

from __future__ import annotations

from functools import partial

from aether_emu.linux.credentials import Actor, Credentials
from aether_emu.linux.task.process import Member, Process
from aether_emu.linux.task.registry import Registry

Everybody = Registry[Process, Member]


def guard(process: Process) -> None:
    """Let nobody look into another user's processes by /proc. `process` is any of the machine's."""
    rights, registry, actor = process.files.namespace.rights, process.registry, process.kernel.actor
    rights.process_owner = partial(_owner_of, registry)
    rights.may_inspect = partial(_may_inspect, registry, actor)


def _of_number(registry: Everybody, number: int) -> tuple[Process, Credentials] | None:
    """The process of a number or a thread's, and who that is."""
    task = registry.tasks.get(number)
    if task is not None:
        return task.process, task.credentials
    process = registry.processes.get(number)
    return None if process is None else (process, process.credentials)


def _owner_of(registry: Everybody, number: int, folder: bool) -> tuple[int, int]:
    """See `Rights.process_owner` (Linux: task_dump_owner)."""
    found = _of_number(registry, number)
    if found is None or not (folder or found[0].dumpable):
        return 0, 0
    return found[1].euid, found[1].egid


def _may_inspect(registry: Everybody, actor: Actor, number: int) -> bool:
    """See `Rights.may_inspect`: those of the same process always."""
    found = _of_number(registry, number)
    if found is None or any(task.working for task in found[0].tasks):
        return True
    who = actor.credentials
    return who.may_inspect(found[1], dumpable=bool(found[0].dumpable))
