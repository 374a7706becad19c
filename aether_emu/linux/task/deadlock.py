"""Why nothing goes on: every task waits for what nobody can bring about."""

from __future__ import annotations

from collections.abc import Sequence

from aether_emu.errors import AetherError, shown
from aether_emu.linux.abi.signal import name_of
from aether_emu.linux.task.task import Task

_MOST_NAMED = 20  # tasks that a message names


class Deadlock(AetherError):
    """Every task waits for something that nobody can bring about. `waiting` are the tasks."""

    def __init__(self, waiting: Sequence[Task]) -> None:
        self.waiting = tuple(waiting)
        if len(waiting) == 1:
            super().__init__(f"deadlock: the program {_plight(waiting[0])}, and nothing can end that")
            return
        each = [f"{_called(task)} {_plight(task)}" for task in waiting[:_MOST_NAMED]]
        if len(waiting) > _MOST_NAMED:
            each.append(f"{len(waiting) - _MOST_NAMED} more wait")
        super().__init__(f"deadlock: {', '.join(each)}, and nothing can end that")


def _called(task: Task) -> str:
    """A task by number and name, and the process of a thread that is not its first."""
    name = shown(task.name)
    if task.tid == task.process.pid:
        return f"process {task.tid} ({name})"
    return f"thread {task.tid} ({name}) of process {task.process.pid}"


def _plight(task: Task) -> str:
    """Why it does not run."""
    stopped = task.process.stop_signal
    if stopped:
        return f"is stopped by {name_of(stopped)}"
    return f"waits for {task.wait.what if task.wait is not None else 'nothing'}"
