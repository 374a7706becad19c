"""System V's objects as plain data, and back: with who waits at them, and what is taken back at an end.

    objects    --> numbers, keys, owners, times, values, messages; the frames of segments
    undo lists --> numbered as the caller has them; each set says what it has noted for which
    waits      --> as they are, for a call made anew would lose or do twice what the wait has brought

Segments come back before the areas that show them, and their times after those: to be shown is an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from aether_emu.linux.ipc.identifiers import Identifiers, Shared
from aether_emu.linux.ipc.messages import Message, MessageQueue, ReceiveWait, SendWait, Wanted
from aether_emu.linux.ipc.objects import HEAD, Bytes
from aether_emu.linux.ipc.segments import Segment
from aether_emu.linux.ipc.semaphores import Operation, SemaphoreSet, SemaphoreWait
from aether_emu.linux.ipc.system_v import SystemV
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.task.wait import Wait
from aether_emu.mm import hugetlb
from aether_emu.waiting import Waiter

State = dict[str, Any]
S = TypeVar("S", bound=Shared)

_SHARED = ("kernel_object", "mode", "uid", "gid", "creator_uid", "creator_gid", "change_time", "removed")
_OF_SEGMENT = (*_SHARED, "key", "user", "attach_time", "detach_time")
_OF_SET = (*_SHARED, "operation_time")
_OF_QUEUE = (*_SHARED, "most_bytes", "bytes", "sender", "receiver", "send_time", "receive_time")


def _fields(one: Shared, names: Sequence[str]) -> State:
    return {"key": one.key, "identifier": one.identifier, "is": {name: getattr(one, name) for name in names}}


def _take_over(one: Shared, described: State) -> None:
    for name, value in described["is"].items():
        setattr(one, name, value)


# ---- objects


def capture(system: SystemV, undos: Sequence[Undo]) -> State:
    """All that there is. `undos` are those of all tasks, which their numbers are of."""
    segments, sets, queues = system.segments, system.semaphores, system.messages
    return {
        "numbers": [kind.capture_numbers() for kind in (segments, sets, queues)],
        "memory": system.memory.used,
        "segments": [_describe_segment(segment) for segment in segments.all()],
        "sets": [
            {
                **_fields(one, _OF_SET),
                "values": list(one.values),
                "changers": list(one.changers),
                "pieces": one.bytes.pieces,
                "noted": [(undos.index(undo), list(noted)) for undo, noted in one.undos.items()],
            }
            for one in sets.all()
        ],
        "queues": [
            {
                **_fields(one, _OF_QUEUE),
                "messages": [(each.type, each.data, each.bytes.pieces) for each in one.messages],
            }
            for one in queues.all()
        ],
        "undos": [[one.identifier for one in undo.sets if isinstance(one, SemaphoreSet)] for undo in undos],
    }


def _describe_segment(segment: Segment) -> State:
    return {
        **_fields(segment, _OF_SEGMENT),
        "size": segment.size,
        "maker": segment.maker,
        "number": segment.number,
        "contents": segment.contents(),
    }


def restore(system: SystemV, state: State, undos: Sequence[Undo]) -> None:
    """Take over what `capture` gave, for undo lists of which nobody has anything noted."""
    for described in state["segments"]:
        size, contents = described["size"], described["contents"]
        pool = hugetlb.pool_of_size(system.physical, contents["huge"]) if "huge" in contents else None
        segment = system.segments.new(described["identifier"], described["key"], size, pool)
        segment.maker = described["maker"]
        segment.take_over(described["number"], contents)
        _put_back(system.segments, segment)
    sets: dict[int, SemaphoreSet] = {}
    for described in state["sets"]:
        number, values = described["identifier"], described["values"]
        one = SemaphoreSet(system.semaphores, described["key"], number, 0, len(values))
        one.values[:], one.changers[:] = values, described["changers"]
        one.bytes.pieces = described["pieces"]
        one.undos = {undos[index]: list(noted) for index, noted in described["noted"]}
        _take_over(one, described)
        sets[number] = _put_back(system.semaphores, one)
        system.semaphores.used += len(values)
    for undo, noted in zip(undos, state["undos"], strict=True):
        undo.sets = {sets[number]: None for number in noted}
    for described in state["queues"]:
        queue = MessageQueue(system.messages, described["key"], described["identifier"], 0)
        queue.messages = [_kept(system, *each) for each in described["messages"]]
        _take_over(queue, described)
        _put_back(system.messages, queue)
    system.memory.used = state["memory"]
    of_segments, of_sets, of_queues = state["numbers"]
    system.segments.restore_numbers(of_segments)
    system.semaphores.restore_numbers(of_sets)
    system.messages.restore_numbers(of_queues)


def _kept(system: SystemV, kind: int, data: bytes, pieces: tuple[int, ...]) -> Message:
    """A message of a queue, whose bytes have come back with RAM."""
    message = Message(kind, data)
    message.bytes = Bytes(system.physical, HEAD + len(data), pieces)
    return message


def _put_back(kind: Identifiers[S], one: S) -> S:
    """It can be found again by the number that it had."""
    kind.place(one)
    return one


def finish(system: SystemV, state: State) -> None:
    """The areas show their segments again: what that changed of them is as it was."""
    for described in state["segments"]:
        segment = system.segments.numbered(described["identifier"])
        _take_over(segment, described)
        if segment.removed:
            segment.let_go()  # only the areas hold it


# ---- waits


def capture_wait(wait: Wait) -> State | None:
    """A wait at one of them; None for another."""
    match wait:
        case SemaphoreWait():
            return {
                "kind": "semaphores",
                "deadline": wait.deadline,
                "at": _found(wait.semaphores),
                "pid": wait.pid,
                "operations": [tuple(operation) for operation in wait.operations],
                "blocking": tuple(wait.blocking),
                "undoes": wait.undo is not None,
                "status": wait.status,
            }
        case ReceiveWait():
            message = wait.message
            return {
                "kind": "receives",
                "at": _found(wait.queue),
                "pid": wait.pid,
                "wanted": (wait.wanted.how, wait.wanted.type),
                "most": wait.most,
                "status": wait.status,
                "message": None if message is None else (message.type, message.data),
            }
        case SendWait():
            return {"kind": "sends", "at": _found(wait.queue), "size": wait.size}
    return None


def _found(one: Shared) -> tuple[int, bool]:
    return one.identifier, one.removed


def restored_wait(system: SystemV, task: Waiter, undo: Undo | None, state: State) -> Wait:
    """The captured wait of a task."""
    if state["kind"] == "semaphores":
        semaphores, blocking = _set_at(system, *state["at"]), Operation(*state["blocking"])
        operations = [Operation(*each) for each in state["operations"]]
        noted = undo if state["undoes"] else None
        wait = SemaphoreWait(task, state["pid"], semaphores, operations, blocking, noted, state["deadline"])
        wait.status = state["status"]
        return wait
    queue = _queue_at(system, *state["at"])
    if state["kind"] == "sends":
        return SendWait(queue, state["size"])
    received = ReceiveWait(task, state["pid"], queue, Wanted(*state["wanted"]), state["most"])
    received.status = state["status"]
    received.message = None if state["message"] is None else Message(*state["message"])
    return received


def _set_at(system: SystemV, number: int, removed: bool) -> SemaphoreSet:
    """The set; one that was removed is only what the wait knows of it."""
    if not removed:
        return system.semaphores.numbered(number)
    gone = SemaphoreSet(system.semaphores, 0, number, 0, 0)
    gone.removed = True
    return gone


def _queue_at(system: SystemV, number: int, removed: bool) -> MessageQueue:
    """The queue, likewise."""
    if not removed:
        return system.messages.numbered(number)
    gone = MessageQueue(system.messages, 0, number, 0)
    gone.removed = True
    return gone
