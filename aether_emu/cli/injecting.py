"""`aether run --inject`: what is put into a run on purpose, and the lines that say so at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aether_emu.cli.app import complain

if TYPE_CHECKING:
    from aether_emu.inject import Injection, Injector
    from aether_emu.linux.debugging import Stopped
    from aether_emu.linux.task.ended import Ended
    from aether_emu.system import Machine

_MOST_LINES = 10


class Injecting:
    """The injections of one run; most runs have none."""

    def __init__(self, wanted: Sequence[Injection]) -> None:
        self._wanted = wanted
        self._injector: Injector | None = None
        self._told = False

    def attach(self, machine: Machine) -> None:
        """The program is loaded and about to start. Raises ConfigError for what this machine has not."""
        if self._wanted:
            from aether_emu.inject import Injector

            self._injector = Injector(machine, self._wanted)

    def run(self, machine: Machine, timeout: float | None) -> Ended | Stopped:
        """As `Machine.run`."""
        return machine.run(timeout) if self._injector is None else self._injector.run(timeout)

    def told(self) -> list[dict[str, str | int]] | None:
        """What was injected, for the statistics; None where nothing was to be."""
        return None if self._injector is None else [each.record() for each in self._injector.done]

    def finish(self) -> None:
        """The run is over, or stopped: say what was injected. Safe twice."""
        if self._injector is None or self._told:
            return
        self._told = True
        self._injector.detach()
        done, missed = self._injector.done, self._injector.missed
        for each in done[:_MOST_LINES]:
            complain(f"injected {each}")
        if len(done) > _MOST_LINES:
            complain(f"injected {len(done) - _MOST_LINES} more")
        if missed:
            complain(f"{missed} of the injections found no page or entry to hit")
        if not done and not missed:
            complain("nothing was injected: what it was to happen at did not come")
