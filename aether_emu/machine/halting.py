"""Halting a CPU in front of an instruction: the face that debuggers use, whatever the engine behind it.

The guest cannot see it. No byte of its code changes, and what it can count (executed blocks, and so virtual
time) comes out as without: a block that is entered anew after a halt counts once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

Told = Callable[[bool, int, int, int], None]
"""(whether it stores, physical address, size in bytes, value stored) of an access about to be made."""


class Halting(ABC):
    """Where one CPU halts. `on_halt` is called then, outside the engine; `Cpu.stop` in it leaves the run.

    A run that goes on from a breakpoint does not halt at it again at once.

    An instruction that faults and is made again has begun once: `made_again` says so for each such fault.
    """

    on_halt: Callable[[], None]

    @abstractmethod
    def break_at(self, va: int) -> None:
        """Halt whenever the instruction at `va` is about to begin."""

    @abstractmethod
    def unbreak(self, va: int) -> None:
        """Not any more. `va` was given to `break_at`."""

    @abstractmethod
    def step(self, count: int, told: Told | None = None) -> None:
        """Halt when `count` more instructions have been executed, and tell of every access of theirs."""

    @property
    @abstractmethod
    def steps_left(self) -> int | None:
        """How many of them have not begun; None when nobody counts."""

    @abstractmethod
    def end_steps(self) -> None:
        """Count no instructions any more, and tell of no accesses."""

    @property
    @abstractmethod
    def place(self) -> tuple[int, int]:
        """Of the program that ran here: the breakpoint that it goes on from, and the instruction that is made
        again; -1 for none. Who lets another program run here keeps it, and sets it when this one goes on.
        """

    @place.setter
    @abstractmethod
    def place(self, place: tuple[int, int]) -> None: ...

    @abstractmethod
    def made_again(self, *, begun: bool, uncounted: bool) -> None:
        """From a fault's callback: the instruction at pc will be made again, and is the same one.

        It had not `begun` when it could not be fetched.
        `uncounted` when the fault was not the guest's: nor is the block that is entered anew for it.
        """
