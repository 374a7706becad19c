"""What the scheduler does when the only process waits: look at the host's streams, or give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.files.streams import StreamFile
from aether_emu.machine.memory.aperture import ApertureFile


class Waiter(Protocol):
    """Waits on the kernel's behalf, and hears of file pages that the host took away."""

    def wait(self, reason: WouldBlock) -> bool:
        """True when it is worth asking again, False when nothing can ever change."""

    def lost_pages(self) -> list[tuple[ApertureFile, int]]:
        """File pages that vanished under the guest since the last call."""


class HostWaiter:
    """Waits for the host's input. `pause` sleeps a little and raises when the run is to end.

    `lost` names the file pages that the bus guard had to replace.
    """

    def __init__(self, pause: Callable[[], None], lost: Callable[[], list[tuple[ApertureFile, int]]]) -> None:
        self._pause, self._lost = pause, lost

    def wait(self, reason: WouldBlock) -> bool:
        if not isinstance(reason.file, StreamFile):
            return bool(reason.file.poll() & reason.events)
        while not reason.file.poll() & reason.events:
            self._pause()
        return True

    def lost_pages(self) -> list[tuple[ApertureFile, int]]:
        return self._lost()
