"""What a task is in the machine's memory: a task_struct, and a kernel stack while it lives.

    head (pid 0) <--> first thread of a process <--> that of another <--> ... <--> head      next, previous
                            ^ group_leader
                      its other threads

The fields are true at any time, so that whoever has an image of RAM finds processes in it without asking
Python: from `head` by the list, to `mm` and the root of its tables. The task_struct of a process's first
thread stays until its parent has waited for it; the stack goes with the thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aether_emu.mm.slab.layout import Layout
from aether_emu.mm.slab.slabs import Slabs

TASK = Layout(
    "task_struct",
    ("state", "I"),
    ("exit_state", "I"),
    ("pid", "i"),
    ("tgid", "i"),
    ("uid", "I"),
    ("gid", "I"),
    ("stack", "Q"),
    ("mm", "Q"),
    ("real_parent", "Q"),
    ("group_leader", "Q"),
    ("next", "Q"),
    ("previous", "Q"),
    ("start_time", "Q"),
    ("comm", "16s"),
)
RUNNING, SLEEPS, SLEEPS_DEEPLY, STOPPED = 0, 1, 2, 4
"""`state`, as Linux has it (TASK_RUNNING, INTERRUPTIBLE, UNINTERRUPTIBLE, __TASK_STOPPED)."""
ZOMBIE = 0x20
"""`exit_state` of who has ended, and was not waited for (EXIT_ZOMBIE)."""


class Body:
    """One task's. Its address is 0 where the machine keeps no objects."""

    __slots__ = ("_slabs", "address", "listed", "stack")

    def __init__(self, slabs: Slabs) -> None:
        """Raises OutOfFrames, with nothing taken."""
        self._slabs, self.listed = slabs, False
        self.stack = slabs.take_stack()
        try:
            self.address = slabs.take(TASK, stack=self.stack)
        except BaseException:
            slabs.put_stack(self.stack)
            raise

    def note(self, **fields: Any) -> None:
        """Write fields."""
        if self.address:
            self._slabs.store(TASK, self.address, **fields)

    def fields(self) -> dict[str, Any]:
        """What they say."""
        return self._slabs.load(TASK, self.address)

    def leave_stack(self) -> None:
        """Its thread is gone."""
        self._slabs.put_stack(self.stack)
        self.stack = 0
        self.note(stack=0)

    def free(self) -> None:
        """Nobody knows it any more."""
        if self.listed:
            self._unlist()
        if self.stack:
            self.leave_stack()
        address, self.address = self.address, 0
        self._slabs.put(TASK, address)

    # ---- the list of processes

    def enlist(self, head: int) -> None:
        """Stand at the end of the list of first threads."""
        if self.address and not self.listed:
            self.listed, slabs = True, self._slabs
            last = slabs.load(TASK, head)["previous"]
            slabs.store(TASK, self.address, next=head, previous=last)
            slabs.store(TASK, last, next=self.address)
            slabs.store(TASK, head, previous=self.address)

    def _unlist(self) -> None:
        self.listed, slabs = False, self._slabs
        between = self.fields()
        slabs.store(TASK, between["previous"], next=between["next"])
        slabs.store(TASK, between["next"], previous=between["previous"])

    # ---- state

    def capture(self) -> tuple[int, int, bool]:
        """Where it stands."""
        return self.address, self.stack, self.listed

    def restore(self, state: tuple[int, int, bool]) -> None:
        """Stand there."""
        self.address, self.stack, self.listed = state


def make_head(slabs: Slabs) -> int:
    """The head of the list of processes: a task that never runs (Linux: init_task, the swapper)."""
    head = slabs.take(TASK, comm=b"swapper")
    slabs.store(TASK, head, next=head, previous=head, group_leader=head)
    return head


def walk(slabs: Slabs, head: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every task_struct of the list but the head, by its address, with its fields: read from RAM alone."""
    at = slabs.load(TASK, head)["next"]
    while at != head:
        fields = slabs.load(TASK, at)
        yield at, fields
        at = fields["next"]
