"""One run of the program under one schedule, and what came of it.

A trial's output goes nowhere: its length and digest are kept, and the beginning. Its input is the same for
every trial.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from aether_emu.config import Config
from aether_emu.errors import AetherError, TimedOut
from aether_emu.explore.guides import DecidedStreams, Drawn, Guide, Replayed, Short, Span, few
from aether_emu.explore.schedule import CALM_SCHEDULE, Choice, Schedule, Switch
from aether_emu.explore.stepping import Followed, SteppingScheduler, in_steps
from aether_emu.explore.turns import GuidedScheduler, Place, called
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.scheduler import Scheduler
from aether_emu.random import Stream, Streams
from aether_emu.system import Machine

_KEPT = 1 << 16  # bytes of an output that are kept
_HELD = 1 << 20  # bytes that a reader may be behind


@dataclass(frozen=True, slots=True)
class Job:
    """What all trials of an exploration run. `timeout` is in seconds of the host."""

    isa: str
    program: str
    argv: tuple[str, ...]
    env: dict[str, str]
    grants: Grants
    config: Config
    stdin: bytes = b""
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one trial runs: by `schedule` if there is one, else by `strategy` with chance of its own.

    `spans` and `time_ns` are those of the calm run. `number` tells trials apart. `most` is how much it may
    work until it counts as one without an end; 0: any amount.
    """

    number: int = 0
    strategy: str = ""
    schedule: Schedule | None = None
    spans: tuple[Span, ...] = ()
    time_ns: int = 0
    describes: bool = False
    most: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """An output: its length in bytes, its digest, and how it begins."""

    length: int = 0
    digest: bytes = b""
    begins: bytes = b""


_NOTHING = Told()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial. `kind` is "ended", "error", "timeout" or "lost" (its process died, `why`).

    `error` is the class of an error that ended the run, `why` is in words. `schedule` is what ran, `order`
    the number of the interleaving, `blocks`, `time_ns` (virtual) and `work` how long it was, `spans` where
    tasks shared the machine.
    """

    kind: str
    status: int = 0
    signal: int = 0
    error: str = ""
    why: str = ""
    stdout: Told = _NOTHING
    schedule: Schedule = CALM_SCHEDULE
    order: bytes = b""
    blocks: int = 0
    time_ns: int = 0
    work: int = 0
    spans: tuple[Span, ...] = ()
    words: tuple[str, ...] = field(default=(), compare=False)


class Digested(BufferStream):
    """An output of which a digest is left."""

    def __init__(self) -> None:
        super().__init__()
        self._digest, self._length = blake2b(digest_size=16), 0

    def write(self, data: bytes) -> int:
        """See `Stream.write`."""
        self._length += len(data)
        self._digest.update(data)
        if len(self.written) < _KEPT:
            self.written += data[: _KEPT - len(self.written)]
        return len(data)

    @property
    def told(self) -> Told:
        """What was written."""
        return Told(self._length, self._digest.digest(), bytes(self.written))


class PassedOn(BufferStream):
    """An output that takes all at once, as in a trial, and passes it on to a descriptor of the host."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> int:
        """See `Stream.write`."""
        self.written += data
        self._pass(wait=len(self.written) > _HELD)
        return len(data)

    def flush(self) -> None:
        """Wait until the reader has taken everything."""
        self._pass(wait=True)

    def _pass(self, *, wait: bool) -> None:
        while self.written and self._room.poll(None if wait else 0):
            taken = os.write(self._fd, self.written[: select.PIPE_BUF])
            del self.written[:taken]


def digest(content: bytes) -> Told:
    """What an output of this content is told as."""
    stream = Digested()
    stream.write(content)
    return stream.told


def scheduling(plan: Plan, seed: int) -> tuple[Callable[..., Scheduler], Callable[[int], Streams]]:
    """What makes the scheduler and the streams of a machine (`Machine(scheduler=, chance=)`) for a plan."""
    if plan.schedule is not None and plan.schedule.steps:
        return partial(SteppingScheduler, choose=Followed(plan.schedule.steps)), Streams
    chance = Stream(seed, f"explore {plan.number}")
    given = plan.schedule.choices if plan.schedule is not None else []
    guide: Guide
    if plan.schedule is not None:
        guide = Replayed(plan.schedule.switches)
    elif plan.strategy == "few" and plan.spans:
        guide = few(chance, plan.spans, plan.time_ns)
    elif plan.strategy == "short":
        guide = Short(chance, plan.spans)
    else:
        guide = Drawn(chance)
    trial = None if plan.schedule is not None else chance.u64()
    scheduler = partial(GuidedScheduler, guide=guide, chance=chance, most=plan.most)
    return scheduler, partial(DecidedStreams, trial=trial, given=given)


def perform(job: Job, plan: Plan) -> Outcome:
    """Run it. Raises what makes the program impossible to load: ProgramError, ConfigError."""
    scheduler, chance = scheduling(plan, job.config.seed)
    machine = Machine(job.isa, config=job.config, scheduler=scheduler, chance=chance)
    out = Digested()
    streams = {"stdin": BufferStream(job.stdin), "stdout": out, "stderr": Digested()}
    try:
        machine.load(job.program, job.argv, env=job.env, grants=job.grants, streams=streams)
        return _outcome(machine, plan, out, job.timeout)
    finally:
        if not machine.computer.closed:
            machine.abandon()


def _outcome(machine: Machine, plan: Plan, out: Digested, timeout: float) -> Outcome:
    kind, status, signal, error, why = "ended", 0, 0, "", ""
    try:
        ended = machine.run(timeout=timeout)
        status, signal, why = ended.status, ended.signal, str(ended)
    except TimedOut as late:
        kind, why = "timeout", str(late)
    except AetherError as raised:
        kind, error, why = "error", type(raised).__name__, str(raised)
    outcome = Outcome(
        kind,
        status,
        signal,
        error,
        why,
        out.told,
        blocks=machine.kernel.blocks,
        time_ns=machine.kernel.time_seen(),
        **_scheduled(machine, plan),
    )
    if kind == "ended":
        try:
            machine.close()
        except AetherError as raised:
            return replace(outcome, kind="error", error=type(raised).__name__, why=str(raised))
    return outcome


def _scheduled(machine: Machine, plan: Plan) -> dict[str, Any]:
    """What the scheduler of a run knows of it: fields of an Outcome."""
    scheduler = machine.scheduler
    if isinstance(scheduler, SteppingScheduler):
        return {"schedule": in_steps(scheduler.events)}
    assert isinstance(scheduler, GuidedScheduler), "it was made so"
    return {
        "schedule": Schedule((*scheduler.made, *_choices(machine))),
        "order": scheduler.order,
        "work": scheduler.work,
        "spans": scheduler.spans,
        "words": tuple(map(_in_words, scheduler.made, scheduler.places)) if plan.describes else (),
    }


def _choices(machine: Machine) -> list[Choice]:
    streams = machine.streams
    assert isinstance(streams, DecidedStreams), "it was made so"
    return [choice for each in streams.decisions for choice in each.made]


def _in_words(switch: Switch, place: Place) -> str:
    """What a switch is: which task, where in the program, who ran next."""
    symbol = place.task.process.symbols.at(place.pc)
    where = f"{place.pc:#x}"
    if symbol is not None:
        offset = place.pc - symbol.address
        where += f" ({symbol.name}+{offset:#x})" if offset else f" ({symbol.name})"
    then = "itself" if place.then is None else called(place.then)
    after = f"{switch.blocks:,} block{'s' * (switch.blocks != 1)}"
    if switch.instructions:
        after += f" and {switch.instructions} instruction{'s' * (switch.instructions != 1)}"
    return f"after {after} of its own {called(place.task)} stops in front of {where}; then {then} runs"
