"""Replaying one schedule (`aether run --schedule`), and the command that does it."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from aether_emu.cli.app import complain
from aether_emu.cli.options import Command
from aether_emu.config import Config
from aether_emu.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from aether_emu.explore.schedule import Schedule
    from aether_emu.explore.trial import PassedOn
    from aether_emu.linux.files.streams import Stream
    from aether_emu.system import Machine

_MOST_INPUT = 64 << 20  # bytes of stdin that are given to each trial
_OWN = ("--explore", "--exhaustive", "--jobs", "--budget", "--same-output", "--expect", "--save",
        "--keep-going", "--schedule", "--no-reduction", "--stuck-after", "--timeout")  # fmt: skip


def program_input() -> bytes:
    """What trials read from stdin: all that comes by it, and nothing from a terminal. Raises MachineError."""
    try:
        if os.isatty(0):
            return b""
        pieces, size = [], 0
        while piece := os.read(0, 1 << 20):
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_INPUT:
                raise MachineError(
                    f"stdin has more than {_MOST_INPUT >> 20} MiB: too much to give to each run"
                )
        return b"".join(pieces)
    except OSError:  # closed, or a directory
        return b""


def replay_command(schedule: str, most: int = 0) -> str:
    """What replays it: the command as it was typed, with other options for these. One that would not end
    works as much as `most`.
    """
    ctx = click.get_current_context()
    assert isinstance(ctx.command, Command)
    options, rest = ctx.command.typed_without(ctx, _OWN)
    until = ["--stuck-after", str(most)] if most else []
    root = ctx.find_root().info_name or "aether"
    return f"{root} {shlex.join(['run', *options, '--schedule', schedule, *until, *rest])}"


class Replay:
    """A run by a schedule. Its streams are as in a trial: input is read before, none waits for a reader."""

    def __init__(self, written: str, config: Config, stuck_after: tuple[float, int] | None) -> None:
        """Raises ScheduleError, ConfigError."""
        from aether_emu.explore import schedule

        if config.real_time:
            raise ConfigError("real_time", True, "left out with --schedule: nothing could be repeated")
        self._schedule: Schedule = schedule.read(written)
        self._most = 0
        if stuck_after is not None:
            _factor, self._most = stuck_after
            if not self._most:
                raise ConfigError("stuck_after", stuck_after, "a number of blocks with --schedule")
            if self._schedule.steps:
                raise ConfigError("stuck_after", stuck_after, "left out with a schedule of steps")
        self._config = config
        self._outputs: list[PassedOn] = []

    def makers(self, isa: str) -> dict[str, Any]:
        """What makes the machine's scheduler and streams of chance. Raises ScheduleError."""
        from aether_emu.explore.trial import Plan, scheduling

        self._schedule.require(isa, self._config.cpus)
        scheduler, chance = scheduling(Plan(schedule=self._schedule, most=self._most), self._config.seed)
        return {"scheduler": scheduler, "chance": chance}

    def streams(self) -> dict[str, Stream]:
        """The program's."""
        from aether_emu.explore.trial import PassedOn
        from aether_emu.linux.files.streams import BufferStream

        self._outputs = [PassedOn(fd) for fd in (1, 2)]
        return {
            "stdin": BufferStream(program_input()),
            "stdout": self._outputs[0],
            "stderr": self._outputs[1],
        }

    def finish(self, machine: Machine) -> None:
        """The run is over: its output has been taken. Say what of the schedule it never came to."""
        from aether_emu.explore.guides import DecidedStreams
        from aether_emu.explore.turns import GuidedScheduler

        for output in self._outputs:
            with contextlib.suppress(OSError):
                output.flush()
        scheduler, streams = machine.scheduler, machine.streams
        if not isinstance(scheduler, GuidedScheduler) or not isinstance(streams, DecidedStreams):
            return
        met = {(one.task, one.blocks) for one in scheduler.made}
        switches = [one for one in self._schedule.switches if (one.task, one.blocks) not in met]
        decided = {choice for each in streams.decisions for choice in each.made}
        choices = [one for one in self._schedule.choices if one not in decided]
        for missed, kind in ((switches, "switches"), (choices, "decisions")):
            if missed:
                complain(
                    f"the run never came to {len(missed)} of the schedule's {kind}, the first {missed[0]}: "
                    "is it another program, or are its options others?"
                )
