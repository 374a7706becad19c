"""Frames that hold code: no CPU may run a translation of bytes that have changed.

The engine translates code once per physical page and notices stores by the guest itself, through
any alias. It does not notice stores by Python, by `copy_to_user` or by another CPU. So a frame
that was ever mapped executable is marked, and a write that the engine cannot see, or the frame's
return to the allocator, drops every CPU's translations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aether_emu.machine.cpu import Cpu
from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.frames.table import Flags, FrameTable

_EXECUTABLE = int(Flags.EXECUTABLE)  # plain: numpy needs 20 us for an operation with an enum


class CodeFrames:
    """Which frames may hold code, and the flush when they change.

    `mutable` is true once code exists outside read-only files: `may_change` makes it so.
    """

    def __init__(self, frames: FrameTable, cpus: Sequence[Cpu], counters: Counters) -> None:
        self._frames, self._cpus, self._n = frames, cpus, counters.n
        self.mutable = False

    def executable(self, frame: int, count: int = 1, *, mutable: bool) -> None:
        """Frames are being mapped executable. `mutable`: something here could still write to them."""
        self._frames.flags_array[frame : frame + count] |= np.uint8(_EXECUTABLE)
        if mutable:
            self.may_change()

    def may_change(self) -> None:
        """From now on code exists that guest stores could reach: tells the CPUs."""
        if not self.mutable:
            self.mutable = True
            for cpu in self._cpus:
                cpu.code_changes = True

    def executable_each(self, frames: NDArray[np.int64], *, mutable: bool) -> None:
        """As `executable`, for frames anywhere; one may stand there more than once."""
        if frames.size:
            self._frames.flags_array[frames] |= np.uint8(_EXECUTABLE)
            if mutable:
                self.may_change()

    def written(self, frame: int, count: int = 1) -> None:
        """Bytes of frames changed behind the engine's back (or are about to be used for something else)."""
        flags = self._frames.flags_array[frame : frame + count]
        if (flags & _EXECUTABLE).any():
            self.flush()

    def retire(self, frames: Sequence[int]) -> None:
        """Frames go back to the allocator: drop translations of them, once for all."""
        flags = self._frames.flags
        code = [frame for frame in frames if flags[frame] & _EXECUTABLE]
        if code:
            for frame in code:
                flags[frame] &= ~_EXECUTABLE
            self.flush()

    def flush(self) -> None:
        """Drop every translated block on every CPU."""
        self._n[Event.FLUSH_CODE] += 1
        for cpu in self._cpus:
            cpu.flush_code()
