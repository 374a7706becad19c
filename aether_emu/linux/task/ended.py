"""How a process ended."""

from __future__ import annotations

from aether_emu.records import dataclass


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: by `exit` with `code`, or by `signal` (0 is none).

    `why` says in words what brought the signal, such as "SIGSEGV at 0x10"; it is empty after an `exit`.
    """

    code: int = 0
    signal: int = 0
    why: str = ""

    @property
    def status(self) -> int:
        """The exit status as a shell shows it: 128+N for signal N."""
        return 128 + self.signal if self.signal else self.code & 0xFF

    def __str__(self) -> str:
        """In words: "exit status 3", "killed by SIGSEGV at 0x10"."""
        return f"killed by {self.why or self.signal}" if self.signal else f"exit status {self.status}"
