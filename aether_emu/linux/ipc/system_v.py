"""What the processes of one machine share by System V's numbers: segments, semaphores, message queues."""

from __future__ import annotations

from typing import Any

from aether_emu.clock import VirtualClock
from aether_emu.linux.credentials import Actor
from aether_emu.linux.ipc.identifiers import Memory
from aether_emu.linux.ipc.messages import MessageQueues
from aether_emu.linux.ipc.segments import Segments
from aether_emu.linux.ipc.semaphores import SemaphoreSets
from aether_emu.mm.physical import Physical


class SystemV:
    """All three kinds. Semaphores and messages take `memory` of the kernel, which has `ram` bytes in all."""

    def __init__(self, physical: Physical, actor: Actor, clock: VirtualClock, ram: int) -> None:
        def now() -> int:
            return clock.realtime_ns // 10**9

        self.memory = Memory(ram)
        self.segments = Segments(physical, actor, now)
        self.semaphores = SemaphoreSets(actor, now, self.memory)
        self.messages = MessageQueues(actor, now, self.memory)

    def first(self) -> str | None:
        """One of what there is, by its number and whose it is; None if there is nothing."""
        for segment in self.segments.all():
            return f"System V segment {segment.identifier}, which process {segment.maker} made,"
        for semaphores in self.semaphores.all():
            return f"set {semaphores.identifier} of System V semaphores, which user {semaphores.uid} has,"
        for queue in self.messages.all():
            return f"System V message queue {queue.identifier}, which user {queue.uid} has,"
        return None

    def capture(self) -> list[Any]:
        """Which numbers come next. Of things that exist nothing is captured."""
        return [kind.capture_numbers() for kind in (self.segments, self.semaphores, self.messages)]

    def restore(self, state: list[Any]) -> None:
        """Take over what `capture` gave."""
        segments, semaphores, messages = state
        self.segments.restore_numbers(segments)
        self.semaphores.restore_numbers(semaphores)
        self.messages.restore_numbers(messages)
