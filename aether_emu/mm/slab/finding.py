"""What was found wrong with a kernel object, and the report of it: who had it, who let it go."""

from __future__ import annotations

from typing import NamedTuple

from aether_emu.errors import AetherError

_LINE = 16  # bytes of a line of hexadecimal digits


class Track(NamedTuple):
    """Who did something to an object: a task, in a system call, on a CPU, at a virtual time."""

    tid: int
    name: bytes
    call: str
    cpu: int
    time: int

    def __str__(self) -> str:
        name, at = self.name.decode("utf-8", "backslashreplace"), self.time / 10**9
        where = f" in {self.call}" if self.call else ""
        return f"task {self.tid} ({name}){where} on CPU {self.cpu} at {at:.9f} s"


class SlabCorruption(AetherError):
    """Somebody misused an object of the kernel's. `kind` is a word for it, `report` all about it."""

    def __init__(self, kind: str, what: str, lines: list[str]) -> None:
        self.kind, self.report = kind, "\n".join([f"slab: {kind}: {what}", *(f"  {line}" for line in lines)])
        super().__init__(f"slab: {kind}: {what}")


def sides(allocated: Track | None, freed: Track | None) -> list[str]:
    """Lines about both sides."""
    return [f"allocated by {allocated or 'nobody yet'}", f"freed by     {freed or 'nobody yet'}"]


NOBODY_KNOWS = ["who allocated and freed it, nobody knows: slab_debug has no U"]
"""In place of the sides."""


def dump(what: str, address: int, data: bytes) -> list[str]:
    """Bytes, by lines."""
    lines = (data[at : at + _LINE] for at in range(0, min(len(data), 8 * _LINE), _LINE))
    return [f"{what} {address + _LINE * at:#x}: {line.hex(' ')}" for at, line in enumerate(lines)]
