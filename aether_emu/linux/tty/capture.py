"""Pseudo-terminals as plain data, and back: pairs by their numbers, then the open files of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.tty.modes import Modes
from aether_emu.linux.tty.pty import Pty, PtyTerminal, Terminals

State = dict[str, Any]
_PLAIN = (
    "session", "foreground", "exclusive", "has_master", "locked", "packet", "status", "was_left",
    "wants_room", "master_wants_room",
)  # fmt: skip
"""What of a pair is captured as it is."""


def capture(terminals: Terminals) -> list[State]:
    """All pairs. The console captures itself."""
    return [_describe(pty) for pty in terminals.by_number.values() if isinstance(pty, Pty)]


def _describe(pty: Pty) -> State:
    return {
        "number": pty.number,
        "modes": list(astuple(pty.modes)),
        "size": list(pty.size),
        "ways": [bytes(way) for way in _ways(pty)],
        "output": pty.output.capture(),
        "discipline": pty.discipline.capture(),
        **{name: getattr(pty, name) for name in _PLAIN},
    }


def _ways(pty: Pty) -> tuple[bytearray, ...]:
    """What is on its way: at the master, to it, and to the terminal."""
    return pty.inbox, pty.to_master.pending, pty.to_slave.pending


def make(state: Sequence[State], terminals: Terminals) -> None:
    """Pairs with these numbers, which nobody has open."""
    for described in state:
        terminals.add(described["number"])


def reopen(described: State, terminals: Terminals) -> OpenFile:
    """An open file of one of them, as it was captured."""
    pty = terminals.by_number[described["pty"]]
    assert isinstance(pty, Pty), "`make` has made it"
    flags, name = described["flags"], described["name"]
    stat, fs = Stat(*described["stat"]), StatFs(*described["fs"])
    if described["master"]:
        master = terminals.open_master(pty, flags, stat, fs, name)
        master.stop_output(described["held"])
        return master
    file = PtyTerminal(pty, flags, stat, fs, name)
    file.hung_up = described["held"]
    return file


def restore(state: Sequence[State], terminals: Terminals) -> None:
    """What was in them, and whose they were. Whoever had them open has them open again."""
    for described in state:
        pty = terminals.by_number[described["number"]]
        assert isinstance(pty, Pty), "`make` has made it"
        _fill(pty, described)


def _fill(pty: Pty, described: State) -> None:
    input_, output, control, local, line, characters, (of_input, of_output) = described["modes"]
    pty.modes = Modes(input_, output, control, local, line, characters, (of_input, of_output))
    pty.discipline.change(pty.modes)
    for way, data in zip(_ways(pty), described["ways"], strict=True):
        way[:] = data
    pty.output.restore(described["output"])
    pty.discipline.restore(described["discipline"])
    lines, columns, width, height = described["size"]
    pty.size = lines, columns, width, height
    for name in _PLAIN:
        setattr(pty, name, described[name])
