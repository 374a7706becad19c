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
        "--keep-going", "--schedule", "--no-reduction", "--timeout")  # fmt: skip


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


def replay_command(schedule: str) -> str:
    """What replays it: the command as it was typed, with other options for these."""
    ctx = click.get_current_context()
    assert isinstance(ctx.command, Command)
    options, rest = ctx.command.typed_without(ctx, _OWN)
    root = ctx.find_root().info_name or "aether"
    return f"{root} {shlex.join(['run', *options, '--schedule', schedule, *rest])}"


class Replay:
    """A run by a schedule. Its streams are as in a trial: input is read before, none waits for a reader."""

    def __init__(self, written: str, config: Config) -> None:
        """Raises ScheduleError, ConfigError."""
        from aether_emu.explore import schedule

        if config.real_time:
            raise ConfigError("real_time", True, "left out with --schedule: nothing could be repeated")
        self._schedule: Schedule = schedule.read(written)
        self._config = config
        self._outputs: list[PassedOn] = []

    def makers(self, isa: str) -> dict[str, Any]:
        """What makes the machine's scheduler and streams of chance. Raises ScheduleError."""
        from aether_emu.explore.trial import Plan, scheduling

        self._schedule.require(isa, self._config.cpus)
        scheduler, chance = scheduling(Plan(schedule=self._schedule), self._config.seed)
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
        """The run is over: its output has been taken. Say which switches it never came to."""
        from aether_emu.explore.turns import GuidedScheduler

        for output in self._outputs:
            with contextlib.suppress(OSError):
                output.flush()
        scheduler = machine.scheduler
        if not isinstance(scheduler, GuidedScheduler):
            return
        met = {(one.task, one.blocks) for one in scheduler.made}
        missed = [one for one in self._schedule.switches if (one.task, one.blocks) not in met]
        if missed:
            complain(
                f"the run never came to {len(missed)} of the schedule's switches, the first {missed[0]}: "
                "is it another program, or are its options others?"
            )
