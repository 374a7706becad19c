"""Which CPU has what, as plain data and back: who stands in its line, whose registers and memory it has.

A machine is captured between two turns, and when every CPU has carried out what it was asked to flush. The
TLBs and the translated code of the captured CPUs are not held: a restored CPU begins with none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aether_emu.linux.entry import Entry
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.lines import Lines
from aether_emu.linux.task.scheduler import Scheduler
from aether_emu.linux.task.task import Task
from aether_emu.mm.space import AddressSpace

State = dict[str, Any]


def capture_lines(kernel: Kernel) -> State:
    """Who stands in line, by task number, the first one first; and how far each CPU has come."""
    queue = kernel.run_queue
    if isinstance(queue, Lines):
        return {"tasks": [[task.tid for task in line] for line in queue.lines], "cpus": queue.capture()}
    return {"tasks": [[task.tid for task in queue]], "cpus": None}


def capture_cpus(entries: Sequence[Entry], scheduler: Scheduler) -> list[State]:
    """Of each CPU: the living task that it has the registers of, the space it walks."""
    living = set(scheduler.everybody)
    captured = []
    for entry in entries:
        task = getattr(entry, "task", None)  # none before the first that ran there
        on = task is not None and task in living and task.is_on(entry.cpu)
        captured.append(
            {
                "task": task.tid if on and task is not None else None,
                "walked": entry.percpu.walked,
            }
        )
    return captured


def restore_lines(kernel: Kernel, state: State, tasks: Mapping[int, Task]) -> None:
    """Let tasks stand where they did. On one CPU they have come to their line in that order already."""
    queue = kernel.run_queue
    if isinstance(queue, Lines):
        lines = [[tasks[tid] for tid in line] for line in state["tasks"]]
        queue.restore(state["cpus"], lines)


def restore_cpus(
    entries: Sequence[Entry],
    state: Sequence[State],
    tasks: Mapping[int, Task],
    spaces: Mapping[int, AddressSpace],
) -> None:
    """Put tasks on the CPUs that had them, and let each CPU walk what it did."""
    for task in tasks.values():
        if task.running:
            task.leave()
    for entry, described in zip(entries, state, strict=True):
        entry.percpu.leave()
        if described["task"] is not None:
            entry.switch(tasks[described["task"]])
    for entry, described in zip(entries, state, strict=True):
        percpu, walked = entry.percpu, described["walked"]
        if percpu.walked == walked:
            continue
        if walked is None:
            percpu.leave()
        else:
            percpu.enter(spaces[walked])
