"""The devices of one machine, made as its configuration asks: their memory, and their names in /dev."""

from __future__ import annotations

from typing import Any

from aether_emu.config import Config, picture_size
from aether_emu.linux.devices.framebuffer import Framebuffer
from aether_emu.linux.files.synthetic import Device
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.physical import Physical


class Board:
    """They. Raises OutOfFrames when RAM does not hold their memory."""

    def __init__(self, physical: Physical, config: Config) -> None:
        self.framebuffer: Framebuffer | None = None
        size = picture_size(config.framebuffer)
        if size is not None:
            self.framebuffer = Framebuffer(physical, *size)

    def memories(self) -> dict[str, DeviceMemory]:
        """The memory of each, by its name."""
        return {} if self.framebuffer is None else {"/dev/fb0": self.framebuffer.memory}

    def nodes(self) -> dict[bytes, Device]:
        """What stands in /dev."""
        return {} if self.framebuffer is None else {b"fb0": self.framebuffer.node()}

    def close(self) -> None:
        """Give back their memory, which no program shows any more."""
        for memory in self.memories().values():
            memory.close()

    def capture(self) -> dict[str, Any]:
        """Where their memory is; its bytes are in RAM."""
        return {name: (memory.number, memory.first) for name, memory in self.memories().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Be the captured ones. The frame table and the direct map are as they were there."""
        for name, memory in self.memories().items():
            number, first = state[name]
            assert memory.first == first, "the same configuration gives the same frames"
            memory.renumber(number)
