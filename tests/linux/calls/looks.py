"""Watching how often a long call looks at whether the run is to end, and ending it at a look."""

from __future__ import annotations

import pytest

from aether_emu.machine.cpu import Cpu


class Looks:
    """Watches the flag of a CPU, with `count` looks so far. It is set at each `stop_every`th (0: at none)."""

    def __init__(self, cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.stop_every = 0
        asked = type(cpu).interrupted
        assert isinstance(asked, property) and asked.fget is not None
        really = asked.fget

        def look(cpu: Cpu) -> bool:
            self.count += 1
            if self.stop_every and self.count % self.stop_every == 0:
                cpu.interrupt()
            return bool(really(cpu))

        monkeypatch.setattr(type(cpu), "interrupted", property(look))
