"""Who a terminal's signals reach, orphaned groups, and what the end of a session's leader means (setpgid(2)).

A process is looked at as far as this needs it, so that processes themselves can ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo


class Controlling(Protocol):
    """A terminal, as far as a session has it. `is_outer`: the true leader is not of this machine."""

    number: int
    is_outer: bool
    session: int
    foreground: int


class Worker(Protocol):
    """A process. `terminal` is its controlling terminal, `former_foreground` the group that was in front when
    that was taken from it, 0 is none.
    """

    terminal: Controlling | None
    former_foreground: int
    stop_signal: int
    released: bool

    @property
    def pid(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def parent(self) -> Worker | None: ...
    def post(self, info: SignalInfo) -> object: ...
    def notices(self, number: int) -> bool: ...


class Family(Protocol):
    """All processes (`registry.Registry`)."""

    def group(self, number: int) -> Iterable[Worker]: ...
    def session(self, number: int) -> Iterable[Worker]: ...


def post_to_group(family: Family, group: int, *numbers: int) -> None:
    """Signals of the kernel's to every process of a group, one after the other."""
    for number in numbers:
        for process in family.group(group):
            if not process.is_over:
                process.post(SignalInfo(number, sig.SI_KERNEL))


def is_orphaned(family: Family, group: int, without: Worker | None = None) -> bool:
    """Whether no member of a group has a parent in another group of the session."""
    return not any(
        member is not without
        and not member.released
        and member.parent is not None
        and member.parent.group != group
        and member.parent.session == member.session
        for member in family.group(group)
    )


def has_ended(family: Family, process: Worker, children: Sequence[Worker]) -> None:
    """A process has ended, and others care for its children: groups that nobody can wake any more are woken.

    They hear SIGHUP, and go on, if a member is stopped.
    """
    parent = process.parent
    if parent is not None and parent.group != process.group and parent.session == process.session:
        _wake_orphans(family, process.group, process)
    for child in children:
        if child.group != process.group and child.session == process.session:
            _wake_orphans(family, child.group, None)


def _wake_orphans(family: Family, group: int, without: Worker | None) -> None:
    if is_orphaned(family, group, without) and any(member.stop_signal for member in family.group(group)):
        post_to_group(family, group, sig.SIGHUP, sig.SIGCONT)


def take_terminal(process: Worker, terminal: Controlling) -> None:
    """It becomes the controlling terminal of the session that the process leads."""
    process.terminal, process.former_foreground = terminal, 0
    terminal.session, terminal.foreground = process.session, process.group


def lose_terminal(family: Family, session: int) -> None:
    """No process of a session has a controlling terminal any more."""
    for process in family.session(session):
        process.terminal = None


def leave_terminal(family: Family, process: Worker, *, ends: bool) -> None:
    """A session's leader gives up the terminal, at its end or before: who is in front hears SIGHUP."""
    if process.pid != process.session:
        return
    terminal = process.terminal
    former, process.former_foreground = process.former_foreground, 0
    if terminal is not None and terminal.is_outer and ends:
        return
    if terminal is None:
        if ends and former:
            post_to_group(family, former, sig.SIGHUP, sig.SIGCONT)
        return
    if terminal.foreground:
        post_to_group(family, terminal.foreground, sig.SIGHUP, *(() if ends else (sig.SIGCONT,)))
    terminal.session = terminal.foreground = 0
    lose_terminal(family, process.session)


def takes_key(family: Family, terminal: Controlling, number: int) -> bool:
    """Whether the signal of a key is the program's: a shell has put another group in front of its own, or
    somebody in front handles, ignores or blocks it.
    """
    return terminal.foreground != terminal.session or any(
        not process.is_over and process.notices(number) for process in family.group(terminal.foreground)
    )


def hang_up(family: Family, terminal: Controlling) -> None:
    """The terminal of a session is gone: its leader hears SIGHUP, and goes on."""
    for process in family.session(terminal.session):
        if process.terminal is terminal:
            process.terminal = None
        if process.pid == process.session and not process.is_over:
            for number in (sig.SIGHUP, sig.SIGCONT):
                process.post(SignalInfo(number, sig.SI_KERNEL))
            process.former_foreground = terminal.foreground
