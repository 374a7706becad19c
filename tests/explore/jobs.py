"""What the tests explore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from aether_emu.config import Config
from aether_emu.explore.trial import Job, Outcome, Plan, perform
from aether_emu.grants import Grants

ROOT = Path(__file__).parents[2]


def job(path: Path, isa: str, *arguments: str, cpus: int = 1) -> Job:
    """A job that runs that program on a small machine."""
    config = Config.load(overrides={"ram": "16M", "aperture": "4M", "cpus": cpus})
    return Job(isa, str(path), (path.name, *arguments), {}, Grants(cwd=path.parent), config, timeout=30.0)


def race(isa: str, cpus: int = 1) -> Job:
    """Two threads that increment a counter without a lock."""
    return job(ROOT / "tests/programs/bin" / isa / "threads", isa, "race", "60", cpus=cpus)


def orders(isa: str, *arguments: str, cpus: int = 1) -> Job:
    """Two threads of a few steps."""
    return job(ROOT / "guest/bin" / isa / "orders", isa, *arguments, cpus=cpus)


class Here:
    """Performs trials in this process: nobody has to start others."""

    def __init__(self, of: Job) -> None:
        self._job = of

    def perform(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Outcome]]:
        """See `Performs`."""
        for plan in plans:
            yield plan, perform(self._job, plan)
