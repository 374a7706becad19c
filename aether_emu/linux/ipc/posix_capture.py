"""POSIX message queues as plain data, and back: with their messages, who is told, and who waits at them.

Those that have a name come back by it, those that are only open by their number, as do the waits: a call made
anew would lose or send twice what its wait has brought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.ipc.posix_queues import (
    Attributes,
    Message,
    PosixQueue,
    PosixQueues,
    QueueWait,
    ReceiveWait,
    Registration,
    SendWait,
    Told,
)
from aether_emu.linux.ipc.queue_file import QueueFile
from aether_emu.linux.task.wait import Wait
from aether_emu.waiting import Waiter

State = dict[str, Any]
_SAME = ("mode", "uid", "gid", "user", "device", "size", "is_named", "bytes")


def capture(queues: PosixQueues) -> State:
    """All that there is."""
    return {"next": queues.next, "queues": [_describe(queue) for queue in queues.all.values()]}


def _describe(queue: PosixQueue) -> State:
    told = queue.registration
    return {
        "number": queue.number,
        "name": queue.name,
        "attributes": astuple(queue.attributes),
        "inode": astuple(queue.inode),
        "is": {name: getattr(queue, name) for name in _SAME},
        "messages": [astuple(message) for message in queue.messages],
        "told": told
        and (told.process.pid, told.notify, told.signal, told.value, told.program is told.process.program),
    }


def restore(queues: PosixQueues, state: State, processes: Mapping[int, Told]) -> None:
    """Take over what `capture` gave; `processes` are by their numbers."""
    made = []
    for described in state["queues"]:
        attributes = Attributes(*described["attributes"])
        queue = PosixQueue(queues, described["number"], described["name"], attributes)
        queue.inode = Inode(*described["inode"])
        queue.messages = [Message(*each) for each in described["messages"]]
        for name, value in described["is"].items():
            setattr(queue, name, value)
        if described["told"]:
            pid, notify, signal, value, same = described["told"]
            process = processes[pid]
            program = process.program if same else None
            queue.registration = Registration(process, notify, signal, value, program)
        made.append(queue)
    queues.place(made)
    queues.next = state["next"]


def reopened(queues: PosixQueues, described: State) -> QueueFile:
    """An open file of one."""
    return QueueFile(queues.all[described["queue"]], described["flags"])


def capture_wait(wait: Wait) -> State | None:
    """A wait at one of them; None for another."""
    if not isinstance(wait, QueueWait):
        return None
    return {
        "kind": "sends by priority" if isinstance(wait, SendWait) else "receives by priority",
        "at": wait.queue.number,
        "name": wait.queue.name,
        "rank": wait.rank,
        "deadline": wait.deadline,
        "ended": wait.ended,
        "message": None if wait.message is None else astuple(wait.message),
    }


def restored_wait(queues: PosixQueues, task: Waiter, state: State) -> Wait:
    """The captured wait of a task."""
    queue = queues.all.get(state["at"])
    if queue is None:  # its last descriptor was closed: only time or a signal ends the wait
        queue = PosixQueue(queues, state["at"], state["name"], Attributes(0, 0))
    message = None if state["message"] is None else Message(*state["message"])
    wait: QueueWait
    if state["kind"] == "sends by priority":
        wait = SendWait(task, queue, state["rank"], message or Message(0, b""))
    else:
        wait = ReceiveWait(task, queue, state["rank"])
    wait.message, wait.ended, wait.deadline = message, state["ended"], state["deadline"]
    return wait
