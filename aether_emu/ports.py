"""The questions that any layer may ask of the tools around it, each with an answer for when no tool is there.

A layer never imports the tools below it (traces, injectors). It takes one of these protocols as an argument,
with the null object as default, and a tool passes its own. The null objects are the only ones of their kind:
copying or unpickling one gives the same object back, so that `is NO_TRACE` stays true in a restored system.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol


class Trace(Protocol):
    """Listens to what happens. Must not change what it observes."""

    @property
    def enabled(self) -> bool:
        """Whether anyone listens: hot paths ask this before they gather the fields of an event."""

    def event(self, name: str, /, **fields: int | str) -> None:
        """Record that `name` ("fault", "tlb.flush", ...) happened now (in virtual time), with its fields."""


class FailurePoints(Protocol):
    """Decides which of the operations that can fail do fail."""

    def fails(self, point: str) -> bool:
        """Whether the operation passing `point` ("buddy.alloc", ...) has to fail this time.

        Called once for each operation that passes the point, so that a campaign can name the n-th one.
        """


class Checker(Protocol):
    """Looks on from outside, and ends a run by an error when a rule is broken."""

    @property
    def finding(self) -> Exception | None:
        """The error that it has raised, once it has."""

    @property
    def report(self) -> str:
        """All about the finding, several lines; empty without one."""

    def statistics(self) -> dict[str, int]:
        """What it has counted, by name."""

    def check(self) -> None:
        """Raises an AetherError where it has not seen everything."""

    def finish(self) -> None:
        """Nothing is executed any more, and everything was given back: it looks no further."""


_CHECKERS = {"tlbsan": "aether_emu.verify.tlbsan"}


def checker(name: str, machine: Any) -> Checker:
    """The checker of that name, attached to a machine: a tool, imported when a machine asks for it."""
    found: Checker = import_module(_CHECKERS[name]).attach(machine)
    return found


class NoTrace:
    """Nobody listens."""

    enabled = False

    def event(self, name: str, /, **fields: int | str) -> None:
        """Drop the event."""

    def __reduce__(self) -> str:
        return "NO_TRACE"


class NeverFails:
    """No failure is injected."""

    def fails(self, point: str) -> bool:
        """Let every operation go on."""
        return False

    def __reduce__(self) -> str:
        return "NEVER_FAILS"


NO_TRACE = NoTrace()
NEVER_FAILS = NeverFails()
