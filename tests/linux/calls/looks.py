"""Watching how often a long call looks at whether the run is to end, and ending it at a look."""

from __future__ import annotations

import pytest

from aether_emu.machine.cpu import Cpu


class Looks:
    """Watches the flag of a CPU, with `count` looks so far.

    It is set at each `stop_every`th (0: at none) of the first `stops_until`, and at each from `ends_at` on.
    """

    def __init__(self, cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.stop_every = 0
        self.stops_until = self.ends_at = 1 << 62
        asked = type(cpu).interrupted
        assert isinstance(asked, property) and asked.fget is not None
        really = asked.fget

        def look(cpu: Cpu) -> bool:
            self.count += 1
            stops = self.stop_every and self.count % self.stop_every == 0 and self.count <= self.stops_until
            if stops or self.is_over:
                cpu.interrupt()
            return bool(really(cpu))

        monkeypatch.setattr(type(cpu), "interrupted", property(look))

    @property
    def is_over(self) -> bool:
        """Whether the run is to end for good."""
        return self.count >= self.ends_at
