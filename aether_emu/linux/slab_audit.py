"""Whether the kernel's objects say what is so: their bytes in RAM, held against what Python knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aether_emu.linux.ipc.objects import HEAD, SEM, SEM_SIZE
from aether_emu.linux.ipc.system_v import SystemV
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.body import STOPPED, TASK, ZOMBIE, walk
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Unfinished
from aether_emu.mm.slab.finding import SlabCorruption
from aether_emu.mm.slab.layout import Layout
from aether_emu.mm.slab.layouts import CACHED, MM
from aether_emu.mm.slab.slabs import STACK_END, Slabs


def audit(kernel: Kernel, processes: list[Process]) -> list[str]:
    """A line for each field that is not true; none of a healthy machine. Raises SlabCorruption."""
    slabs = kernel.physical.slabs
    slabs.check()
    wrong = [line for process in processes for line in _of_process(slabs, process)]
    known = [process.body.address for process in processes if process.body is not None]
    listed = [address for address, _fields in walk(slabs, kernel.task_list)]
    if sorted(known) != sorted(listed):
        wrong.append(f"the list of processes has {len(listed)}, and there are {len(known)}")
    swap = kernel.physical.swap
    for slot, address in {} if swap is None else swap.objects.items():
        assert swap is not None, "it has objects"
        wrong += _differences(slabs, CACHED, address, slot=slot, frame=swap.frame_of(slot))
    return wrong if kernel.system_v is None else wrong + list(_of_system_v(slabs, kernel.system_v))


def require_truth(kernel: Kernel, processes: list[Process]) -> None:
    """Raises SlabCorruption for objects that do not say what is so."""
    wrong = audit(kernel, processes)
    if wrong:
        raise SlabCorruption("untrue object", wrong[0], wrong[1:])


def _differences(slabs: Slabs, layout: Layout, address: int, **wanted: Any) -> list[str]:
    there = slabs.load(layout, address)
    return [
        f"{layout.name} {address:#x}: {name} is {there[name]!r}, not {value!r}"
        for name, value in wanted.items()
        if there[name] != value
    ]


def _of_process(slabs: Slabs, process: Process) -> Iterator[str]:
    head, parent = process.kernel.task_list, process.parent
    parents = head if parent is None or parent.body is None else parent.body.address
    first = 0 if process.body is None else process.body.address
    family = {"tgid": process.pid, "real_parent": parents, "group_leader": first}
    for task in process.tasks:
        assert isinstance(task, Task), "a member"
        if not task.body.stack:  # it is over, and stands in the process's body below
            continue
        who, state = task.credentials, {"mm": process.mm.object, "exit_state": 0}
        owner = {"uid": who.uid, "gid": who.gid, "comm": task.name, "stack": task.body.stack}
        state["state"] = _state_of(process, task, slabs.load(TASK, task.body.address)["state"])
        yield from _differences(slabs, TASK, task.body.address, pid=task.tid, **family, **owner, **state)
        at = task.body.stack - slabs.bias
        if int.from_bytes(slabs.memory[at : at + 8], "little") != STACK_END:
            yield f"the kernel stack of task {task.tid} has lost its end"
    if not process.released:
        mm = process.mm
        root, end = {"pgd": mm.table.root}, mm.limits.user_end
        yield from _differences(slabs, MM, mm.object, number=mm.number, task_size=end, **root)
    elif process.body is not None:
        yield from _differences(slabs, TASK, first, pid=process.pid, stack=0, exit_state=ZOMBIE, **family)


def _state_of(process: Process, task: Task, told: int) -> int:
    """What its state must be: how deeply it sleeps is left to the object."""
    if process.stop_signal and not task.is_over:
        return STOPPED
    wait = task.wait
    sleeps = wait is not None and not wait.woken and not isinstance(wait, Unfinished)
    return (told if told in (1, 2) else 1) if sleeps else 0


def _of_system_v(slabs: Slabs, system: SystemV) -> Iterator[str]:
    for kind in (system.segments, system.semaphores, system.messages):
        for one in kind.all():
            found = {"id": one.identifier, "key": one.key & 0xFFFF_FFFF, "mode": one.mode}
            owners = {"uid": one.uid, "gid": one.gid, "cuid": one.creator_uid, "cgid": one.creator_gid}
            yield from _differences(slabs, one.layout, one.kernel_object, **found, **owners)
    for each in system.semaphores.all():
        for at, value in enumerate(zip(each.values, each.changers, strict=True)):
            raw = memoryview(each.bytes.read(SEM.size, at * SEM_SIZE))
            there = SEM.unpack(raw, 0)
            if (there["semval"], there["sempid"]) != value:
                yield f"semaphore {at} of set {each.identifier} is {there}, not {value}"
    for queue in system.messages.all():
        counts = {"qnum": len(queue.messages), "cbytes": queue.bytes, "qbytes": queue.most_bytes}
        yield from _differences(slabs, queue.layout, queue.kernel_object, lspid=queue.sender, **counts)
        for message in queue.messages:
            if len(message.bytes.read(HEAD + message.size)) != HEAD + message.size:
                yield f"a message of queue {queue.identifier} is not in memory"
