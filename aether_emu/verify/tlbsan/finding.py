"""A rule that was broken, and the two places: where an entry was edited, and who relied on that."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import CodeType, FrameType

from aether_emu.errors import AetherError

_DEPTH = 16  # callers that are looked at
_SHOWN = 4  # functions that a place names
_MANAGER = f"{os.sep}mm{os.sep}"  # in the path of its files


class Rule(Enum):
    """What must hold, and where the manuals say why."""

    REUSE = "a frame is given back before its flush"
    RIGHT = "a program goes on with a translation that was taken away"
    TABLE = "a table is given back before its flush"
    BREAK = "break before make is skipped"
    TAG = "a tag is used again without its flush"

    @property
    def section(self) -> dict[str, str]:
        """The manual's section, or rules, by ISA."""
        return _SECTIONS[self]


# Sections of the SDM are those of editions in which paging is chapter 4; in later ones it is chapter 5, with
# the same numbers behind that. Rules of the Arm ARM keep their names when an issue numbers sections anew.
_SECTIONS = {
    Rule.REUSE: {"x86_64": "Intel SDM 3A 4.10.4.4", "arm64": "Arm ARM R_GPPYH, R_LXHLD"},
    Rule.RIGHT: {"x86_64": "Intel SDM 3A 4.10.4.2", "arm64": "Arm ARM R_GPPYH, R_LXHLD"},
    Rule.TABLE: {"x86_64": "Intel SDM 3A 4.10.3.1", "arm64": "Arm ARM R_SQBCS, R_RVJDB"},
    Rule.BREAK: {"x86_64": "", "arm64": "Arm ARM R_WHZWS, R_DDMVT"},
    Rule.TAG: {"x86_64": "Intel SDM 3A 4.10.4.1", "arm64": "Arm ARM R_XXNPZ, R_GPPYH"},
}


@dataclass(slots=True)
class Place:
    """What a CPU is about, from its way into the kernel to its way back into a program.

    `returned`: its program has gone on since, so that everybody may rely on what was done.
    """

    cpu: int
    who: str
    what: str
    time: int  # virtual ns
    returned: bool = False

    def at(self, functions: tuple[CodeType, ...]) -> Where:
        """This place, with the functions that were at work."""
        return Where(self, functions)


@dataclass(frozen=True, slots=True)
class Where:
    """A place and the functions that were at work there, the innermost first.

    Those of the memory manager are shown, the outermost first.
    """

    place: Place
    functions: tuple[CodeType, ...]

    def __str__(self) -> str:
        place = self.place
        names = " > ".join(_names(self.functions))
        by = f", in {names}" if names else ""
        return f"CPU {place.cpu}, {place.who}: {place.what}, at {place.time} ns{by}"


def _names(functions: tuple[CodeType, ...]) -> Iterator[str]:
    shown = 0
    for code in reversed(functions):
        name, inside = code.co_qualname, _MANAGER in code.co_filename
        if shown < _SHOWN and inside and "<" not in name and not name.startswith("PerCpu."):
            shown += 1
            yield name


def callers() -> tuple[CodeType, ...]:
    """The functions that are at work, the innermost first: quick, for it is asked before each edit."""
    found: list[CodeType] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(found) < _DEPTH:
        found.append(frame.f_code)
        frame = frame.f_back
    return tuple(found)


class Finding(AetherError):
    """A broken rule. `str()` is one line; `report` has everything, a line each.

    `cpu` may still hold `entry`, an old translation of `va`; `frame` is the page frame or table concerned.
    `edited` is where the entry was changed, `relied` where that was relied on. Where another address space
    had a tag, `edited` is where that one was walked last, and `done` says so.
    """

    def __init__(
        self,
        rule: Rule,
        isa: str,
        *,
        va: int,
        frame: int | None,
        cpu: int,
        entry: str,
        edited: Where,
        relied: Where,
        done: str = "edited",
    ) -> None:
        self.rule, self.va, self.frame, self.cpu, self.entry = rule, va, frame, cpu, entry
        self.edited, self.relied, self.done = edited, relied, done
        self.section = rule.section[isa]
        super().__init__(
            f"tlbsan: {rule.value}: CPU {cpu} may still hold {va:#x} as {entry}, "
            f"{done} by {edited.place.what} of {edited.place.who}"
        )

    @property
    def report(self) -> str:
        """Several lines for a person."""
        frame = "none that is known" if self.frame is None else str(self.frame)
        return "\n".join(
            (
                f"tlbsan: {self.rule.value} ({self.section})",
                f"  address     {self.va:#x}, frame {frame}",
                f"  may hold    CPU {self.cpu}: {self.entry}",
                f"  {self.done:<11} {self.edited}",
                f"  relied on   {self.relied}",
            )
        )


class Unseen(AetherError):
    """A table changed without the sanitizer's notice, so that its answers are worth nothing."""
