"""A schedule: where it departs from the calm one, as data, as a word on the command line, and as a file.

The calm schedule lets each task run as long as a turn may be, and delays nothing. A schedule is a list of
departures from it:

    1001@45       task 1001 gives up the CPU when it has executed 45 blocks of its own
    1001@45+3     and 3 instructions of the next one
    1001@45~500   and its CPU, one of several, stands still for 500 ns
    1001x12       task 1001 makes the next 12 steps (--exhaustive: there all of a run are given)
    shootdown:7=2 the eighth decision of the stream "shootdown" is 2 (0 is calm)

Positions are counted in a task's own blocks, so one departure stays where it is when another is left out.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aether_emu.errors import AetherError, toml
from aether_emu.output import Output

CALM = "calm"
DECIDED = ("shootdown", "tlb_fault")
"""Streams whose numbers are decisions of a schedule, 0 being the calm one."""
_SWITCH = re.compile(r"(\d{1,10})@(\d{1,18})(?:\+(\d{1,3}))?(?:~(\d{1,18}))?")
_STEPS = re.compile(r"(\d{1,10})x(\d{1,18})")
_CHOICE = re.compile(r"([a-z][a-z0-9_-]*):(\d{1,19})=(\d{1,20})")
_FORM = (
    "a file that --save wrote, 'calm', or TASK@BLOCKS[+INSTRUCTIONS][~NS], TASKxSTEPS and STREAM:INDEX=VALUE "
    "separated by commas"
)
_LARGEST = 1 << 30  # bytes of a file that is looked at; those that --save writes are far smaller


class ScheduleError(AetherError):
    """A schedule cannot be read, or is for another machine."""


@dataclass(frozen=True, slots=True, order=True)
class Switch:
    """`task` gives up its CPU after `blocks` blocks of its own, and `instructions` of the next.

    Its CPU, one of several, then stands still for `delay` ns of virtual time, as one does that a hypervisor
    takes away for a while: the others get ahead.
    """

    task: int
    blocks: int
    instructions: int = 0
    delay: int = 0

    def __str__(self) -> str:
        cut = f"+{self.instructions}" if self.instructions else ""
        return f"{self.task}@{self.blocks}{cut}" + (f"~{self.delay}" if self.delay else "")


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """The decision number `index`, from 0, of the stream `name` is `value`, which is not 0."""

    name: str
    index: int
    value: int

    def __str__(self) -> str:
        return f"{self.name}:{self.index}={self.value}"


@dataclass(frozen=True, slots=True, order=True)
class Steps:
    """`task` makes the next `count` steps, in the sense of `stepping`."""

    task: int
    count: int

    def __str__(self) -> str:
        return f"{self.task}x{self.count}"


Departure = Switch | Choice | Steps


@dataclass(frozen=True, slots=True)
class Schedule:
    """Switches in the order in which they were made, then choices. `machine` is what a file says it is for:
    `isa` and `cpus`.
    """

    departures: tuple[Departure, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def switches(self) -> list[Switch]:
        """Where tasks give up their CPU."""
        return [one for one in self.departures if isinstance(one, Switch)]

    @property
    def steps(self) -> list[Steps]:
        """Whose steps are next, where they are given one by one."""
        return [one for one in self.departures if isinstance(one, Steps)]

    @property
    def choices(self) -> list[Choice]:
        """The other decisions."""
        return [one for one in self.departures if isinstance(one, Choice)]

    def __str__(self) -> str:
        return ",".join(map(str, self.departures)) or CALM

    def require(self, isa: str, cpus: int) -> None:
        """Raises ScheduleError when it was saved for another machine, decides what no machine asks, or has
        what cannot be followed together.
        """
        if self.steps and len(self.steps) < len(self.departures):
            other = next(one for one in self.departures if not isinstance(one, Steps))
            raise ScheduleError(
                f"schedule {other}: nothing else can stand beside steps such as {self.steps[0]}"
            )  # fmt: skip
        for choice in self.choices:
            if choice.name not in DECIDED:
                raise ScheduleError(f"schedule {choice}: only {' and '.join(DECIDED)} have decisions")
        for name, value in (("isa", isa), ("cpus", cpus)):
            meant = self.machine.get(name, value)
            if meant != value:
                raise ScheduleError(f"the schedule is for {name} = {meant}, and this machine has {value}")


CALM_SCHEDULE = Schedule()


def parse(written: str) -> Schedule | None:
    """The schedule of a word on the command line; None when it is none, and so may be a file."""
    if written == CALM:
        return Schedule()
    departures: list[Departure] = []
    for word in written.split(","):
        if found := _SWITCH.fullmatch(word):
            departures.append(Switch(*(int(number or 0) for number in found.groups())))
        elif found := _STEPS.fullmatch(word):
            departures.append(Steps(int(found[1]), int(found[2])))
        elif found := _CHOICE.fullmatch(word):
            departures.append(Choice(found[1], int(found[2]), int(found[3])))
        else:
            return None
    return Schedule(tuple(departures))


def read(written: str) -> Schedule:
    """The schedule of a word, or of the file that it names. Raises ScheduleError."""
    schedule = parse(written)
    if schedule is not None:
        return schedule
    path = Path(written)
    try:
        if path.stat().st_size > _LARGEST:
            raise ScheduleError(f"--schedule {written}: too large for a schedule")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise ScheduleError(f"--schedule {written} cannot be read ({why}): {_FORM}") from None
    try:
        return _of_file(tomllib.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScheduleError(f"--schedule {written} is no schedule: {_what(error)}") from None


def _what(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _of_file(data: dict[str, Any]) -> Schedule:
    if not data:
        raise ValueError(f"it is empty; the one without departures is called {CALM}")
    departures: list[Departure] = []
    for row in data.get("switch", []):
        numbers = [row["task"], row["blocks"], row.get("instructions", 0), row.get("delay", 0)]
        departures.append(Switch(*map(_whole, numbers)))
    departures += [Steps(_whole(row["task"]), _whole(row["count"])) for row in data.get("steps", [])]
    for row in data.get("choice", []):
        departures.append(Choice(str(row["stream"]), _whole(row["index"]), _whole(row["value"])))
    unknown = data.keys() - {"switch", "steps", "choice", "isa", "cpus", "seed", "finding"}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no part of one")
    return Schedule(tuple(departures), {name: data[name] for name in ("isa", "cpus") if name in data})


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no whole number from 0")
    return value


def save(
    schedule: Schedule, path: Path, *, finding: str, words: Iterable[str] = (), **machine: object
) -> None:
    """Write it as a file, with `finding` and what each switch is in `words`.

    Raises ConfigError, OutputError.
    """
    told = list(words)
    lines = ["# A schedule that aether run --explore found: see docs/how-to/explore.md"]
    lines += [f"{name} = {toml(value)}" for name, value in machine.items()]
    lines.append(f"finding = {toml(finding)}")
    for number, switch in enumerate(schedule.switches):
        lines += ["", "[[switch]]"]
        lines += [f"# {told[number]}"] if number < len(told) else []
        lines += [f"task = {switch.task}", f"blocks = {switch.blocks}"]
        lines += [f"instructions = {switch.instructions}"] if switch.instructions else []
        lines += [f"delay = {switch.delay}"] if switch.delay else []
    for steps in schedule.steps:
        lines += ["", "[[steps]]", f"task = {steps.task}", f"count = {steps.count}"]
    for choice in schedule.choices:
        lines += ["", "[[choice]]", f"stream = {toml(choice.name)}"]
        lines += [f"index = {choice.index}", f"value = {choice.value}"]
    Output("save", path).write(("\n".join(lines) + "\n").encode())
