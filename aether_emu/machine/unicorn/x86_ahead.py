"""Instruction fetches that fault ahead of execution: put off until the instruction's turn comes.

The engine translates a whole block before any of it runs, into the next page too. A page of code that
cannot be fetched so faults while pc is at the block's first instruction: the work before it is not done
yet, and a fault of that work would come first. Such a fault is not taken. The instruction at pc runs
alone instead, in the interrupt shadow (Intel SDM 3A 6.8.3), where the engine's blocks are one instruction
long and nothing else differs for a user. Behind it the engine translates, and faults, again: until the
instruction that needs the page is at pc itself.
"""

from __future__ import annotations

from aether_emu.machine.unicorn.x86_state import State

_PAGE_SHIFT = 12  # the smallest page: inside a larger one an instruction runs alone once more than it has to


class LookAhead:
    """Tells which fetch faults belong to the instruction at pc. `shadow` is that bit of hflags."""

    def __init__(self, state: State, shadow: int) -> None:
        self._rip, self._cr2, self._hflags = state.rip, state.cr2, state.hflags
        self._shadow = shadow
        self._cast = False  # whether the bit may still be set

    def put_off(self) -> bool:
        """Whether a fetch fault at CR2 came too early. Then one instruction runs before it can come again."""
        if not (self._cr2[0] ^ self._rip[0]) >> _PAGE_SHIFT:
            return False
        return self.alone()

    def alone(self) -> bool:
        """Let the instruction at pc run alone. False when it was to already."""
        if self.running_alone:
            return False
        self._hflags[0] = self._hflags[0] | self._shadow
        self._cast = True
        return True

    @property
    def running_alone(self) -> bool:
        """Whether the instruction at pc was to run alone."""
        return bool(self._hflags[0] & self._shadow)

    def forget(self) -> None:
        """A run begins, perhaps another task's: how its first block ends depends on nothing before."""
        if self._cast:
            self._cast = False
            self._hflags[0] = self._hflags[0] & ~self._shadow
