"""The devices of one machine, made as its configuration asks: their memory, registers, and names in /dev."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from aether_emu.config import Config
from aether_emu.linux.devices.dma import CopyEngine
from aether_emu.linux.devices.framebuffer import Framebuffer
from aether_emu.linux.devices.registers import Bank, RegisterPage
from aether_emu.linux.devices.timer import Timer
from aether_emu.linux.files.synthetic import Device
from aether_emu.linux.kernel import Kernel
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.space import AddressSpace
from aether_emu.rules import device_names, picture_size


class Waits(Protocol):
    """A device that does something at a time."""

    @property
    def deadline(self) -> int | None: ...
    def expire(self) -> None: ...


class Board:
    """They. Registers have the frames from physical `register_base` on. Raises OutOfFrames."""

    def __init__(self, kernel: Kernel, config: Config, register_base: int) -> None:
        self._kernel = kernel
        physical = kernel.physical
        self.framebuffer: Framebuffer | None = None
        self.timer: Timer | None = None
        self.copier: CopyEngine | None = None
        size, frame = picture_size(config.framebuffer), register_base - physical.frames.base
        frame >>= physical.frames.page_shift
        pages: list[RegisterPage] = []
        try:
            if size is not None:
                self.framebuffer = Framebuffer(physical, *size)
            if "timer" in device_names(config.devices):
                self.timer = Timer(physical, frame + len(pages), kernel.observe_time, self._run_until)
                pages.append(self.timer)
            if "dma" in device_names(config.devices):
                self.copier = CopyEngine(
                    physical, frame + len(pages), kernel.observe_time, self._run_until, self._space
                )
                pages.append(self.copier)
        except BaseException:
            self.close()
            raise
        if pages:
            page_size = 1 << physical.frames.page_shift
            bank = Bank(pages, page_size)
            for cpu in kernel.cpus:
                cpu.show_registers(register_base, len(pages) * page_size, bank)

    def _run_until(self, device: Waits) -> None:
        """Have a device expire when its time has come, and the turn of who set it end then."""
        kernel = self._kernel
        kernel.timers.add(device, device.expire)
        task = getattr(kernel.entry, "task", None) if hasattr(kernel, "entry") else None
        cost = kernel.clock.costs.block
        if task is None or device.deadline is None or not cost:
            return
        task.yields = True
        left = device.deadline - kernel.clock.now_ns
        if left <= cost << 40:
            kernel.entry.cpu.limit(max(1, -(-left // cost)))

    def _space(self) -> AddressSpace:
        """The memory of who makes the call that is served."""
        space: AddressSpace = self._kernel.entry.task.process.mm
        return space

    def memories(self) -> dict[str, DeviceMemory]:
        """The memory of each, by its name."""
        devices = (self.framebuffer, self.timer, self.copier)
        return {each.memory.name: each.memory for each in devices if each is not None}

    def nodes(self) -> dict[bytes, Device]:
        """What stands in /dev."""
        named: dict[bytes, Callable[[], Device]] = {}
        if self.framebuffer is not None:
            named[b"fb0"] = self.framebuffer.node
        if self.timer is not None:
            named[b"timer0"] = self.timer.node
        if self.copier is not None:
            named[b"dma0"] = self.copier.node
        return {name: make() for name, make in named.items()}

    def close(self) -> None:
        """Give back their memory, which no program shows any more."""
        for memory in self.memories().values():
            memory.close()

    def capture(self) -> dict[str, Any]:
        """Where their memory is, whose bytes are in RAM, and what they know."""
        memories = {name: (memory.number, memory.first) for name, memory in self.memories().items()}
        return {
            "memories": memories,
            "timer": None if self.timer is None else self.timer.capture(),
            "copier": None if self.copier is None else self.copier.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Have the captured memory. The frame table and the direct map are as they were there."""
        for name, memory in self.memories().items():
            number, first = state["memories"][name]
            assert memory.first == first, "the same configuration gives the same frames"
            memory.renumber(number)

    def go_on(self, state: dict[str, Any]) -> None:
        """Know what they knew. The clock is as it was there."""
        if self.timer is not None:
            self.timer.restore(state["timer"])
        if self.copier is not None:
            self.copier.restore(state["copier"])
