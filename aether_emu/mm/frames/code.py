"""Frames that hold code: no CPU may run a translation of bytes that have changed.

The engine translates code once per physical page and notices stores by the guest itself, through
any alias. It does not notice stores by Python, by `copy_to_user` or by another CPU. So a frame
that was ever mapped executable is marked, and a write that the engine cannot see drops every CPU's
translations. A frame that goes back to its allocator only becomes *stale*: nothing executes there, so its
translations can wait for the day on which it is mapped executable again, or another reason to drop all.
What a process that ends leaves behind costs the others nothing.

Some programs write their code at one address and run it at another: both show pages of one file or memory
object. A CPU is told of such frames, in blocks: its engine may take the second store for a harmless one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aether_emu.machine.cpu import Cpu
from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.frames.table import Flags, FrameTable

# Plain numbers: numpy needs 20 us for an operation with an enum.
_EXECUTABLE, _STALE = int(Flags.EXECUTABLE), int(Flags.STALE)
# Bytes of a watched block: the engine looks through them all, so they are few; stores there are slow.
_BLOCK = 1 << 18


class CodeFrames:
    """Which frames may hold code, and the flush when they change.

    `mutable` is true once code exists outside read-only files: `may_change` makes it so.
    """

    def __init__(self, frames: FrameTable, cpus: Sequence[Cpu], counters: Counters) -> None:
        self._frames, self._cpus, self._n = frames, cpus, counters.n
        self.mutable = False
        self._stale: list[int] = []  # frames with that flag, each once
        self._watched: set[int] = set()  # blocks of memory that CPUs watch, by their addresses
        for cpu in cpus:
            cpu.holds_code = self.holds

    def executable(self, frame: int, count: int = 1, *, mutable: bool, shared: bool = False) -> None:
        """Frames are being mapped executable.

        `mutable`: something here could still write to them; `shared`: by another address than this.
        """
        if self._stale and (self._frames.flags_array[frame : frame + count] & _STALE).any():
            self.flush()
        self._frames.flags_array[frame : frame + count] |= np.uint8(_EXECUTABLE)
        if mutable:
            self.may_change()
        if shared:
            self._watch(np.arange(frame, frame + count))

    def holds(self, physical: int) -> bool:
        """Whether code may have run from the frame at an address since it was last given back."""
        frames = self._frames
        number = physical - frames.base >> frames.page_shift
        return not 0 <= number < frames.count or bool(frames.flags[number] & _EXECUTABLE)

    def may_change(self) -> None:
        """From now on code exists that guest stores could reach: tells the CPUs."""
        if not self.mutable:
            self.mutable = True
            for cpu in self._cpus:
                cpu.code_changes = True

    def become_shared(self, frame: int, count: int) -> None:
        """Frames, some of which may be mapped executable, can be written by other addresses from now on."""
        self.may_change()
        flags = self._frames.flags_array[frame : frame + count]
        self._watch((flags & _EXECUTABLE).nonzero()[0] + frame)

    def _watch(self, frames: NDArray[np.int64]) -> None:
        """Have the CPUs look at each store to these frames."""
        blocks = {self._frames.address(frame) & -_BLOCK for frame in frames.tolist()}
        for block in sorted(blocks - self._watched):
            self._watched.add(block)
            for cpu in self._cpus:
                cpu.watch_stores(block, _BLOCK)

    def executable_each(self, frames: NDArray[np.int64], *, mutable: bool, shared: bool = False) -> None:
        """As `executable`, for frames anywhere; one may stand there more than once."""
        if frames.size:
            if self._stale and (self._frames.flags_array[frames] & _STALE).any():
                self.flush()
            self._frames.flags_array[frames] |= np.uint8(_EXECUTABLE)
            if mutable:
                self.may_change()
            if shared:
                self._watch(frames)

    def written(self, frame: int, count: int = 1) -> None:
        """Bytes of frames changed behind the engine's back (or are about to be used for something else)."""
        flags = self._frames.flags_array[frame : frame + count]
        if (flags & _EXECUTABLE).any():
            self.flush()

    def retire(self, frames: Sequence[int]) -> None:
        """Frames go back to their allocator: what is translated of them is stale."""
        flags = self._frames.flags
        code = [frame for frame in frames if flags[frame] & _EXECUTABLE]
        for frame in code:
            flags[frame] = flags[frame] & ~_EXECUTABLE | _STALE
        self._stale += code

    def retire_range(self, first: int, count: int) -> None:
        """As `retire`, for `count` frames from `first` on."""
        flags = self._frames.flags_array[first : first + count]
        self.retire(((flags & _EXECUTABLE).nonzero()[0] + first).tolist())

    def capture(self) -> tuple[bool, list[int]]:
        """What the frame table does not know: whether code may change, and the blocks that are watched."""
        return self.mutable, sorted(self._watched)

    def restore(self, state: tuple[bool, list[int]]) -> None:
        """The frame table was restored; become the captured one on other CPUs."""
        self._stale = (self._frames.flags_array & _STALE).nonzero()[0].tolist()
        mutable, watched = state
        if mutable:
            self.may_change()
        self._watched = set(watched)
        for cpu in self._cpus:
            for block in watched:
                cpu.watch_stores(block, _BLOCK)

    def flush(self) -> None:
        """Drop every translated block on every CPU."""
        self._n[Event.FLUSH_CODE] += 1
        if self._stale:
            self._frames.flags_array[self._stale] &= np.uint8(~_STALE & 0xFF)
            self._stale.clear()
        for cpu in self._cpus:
            cpu.flush_code()
