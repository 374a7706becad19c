"""What the processes of one machine share by System V's numbers: segments, semaphores, message queues."""

from __future__ import annotations

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

        self.physical, self.memory = physical, Memory(ram, physical)
        self.segments = Segments(physical, actor, now)
        self.semaphores = SemaphoreSets(actor, now, self.memory)
        self.messages = MessageQueues(actor, now, self.memory)

    def close(self) -> None:
        """All processes have ended: what nobody removed gives its memory back."""
        for segment in self.segments.all():
            segment.destroy()
        for one in self.semaphores.all():
            one.give_memory_back()
        for queue in self.messages.all():
            queue.give_memory_back()
