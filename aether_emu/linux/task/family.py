"""What a process's parent hears of it, who takes in its children, and when its number is free (wait(2)).

A process is looked at as far as this needs it, so that processes themselves can ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.credentials import Credentials
from aether_emu.linux.task.children import Children
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.registry import Registry
from aether_emu.linux.task.resource_limits import RLIMIT_CORE
from aether_emu.linux.task.signals import ProcessSignals
from aether_emu.linux.task.usage import Usage
from aether_emu.waiting import WaitQueue

INIT = 1
"""The parent of orphans: nobody, who waits for each of them at once."""
_SECOND = 10**9  # ns
_TICKS = 100  # of siginfo's times, in a second


class Thread(Protocol):
    """A task of a process."""

    @property
    def death_signal(self) -> int: ...
    @property
    def tid(self) -> int: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def is_over(self) -> bool: ...


class Relative(Protocol):
    """A process. Its `parent` and `children` are of its own kind."""

    parent: Any
    outer_parent: int
    children: Children[Any]
    changed: WaitQueue
    registry: Registry[Any, Any]
    credentials: Credentials
    signals: ProcessSignals
    usage: Usage
    usage_of_children: Usage
    ended: Ended | None
    exit_signal: int
    made_by: int
    untold: str
    released: bool

    @property
    def pid(self) -> int: ...
    @property
    def tasks(self) -> Sequence[Thread]: ...
    @property
    def limits(self) -> dict[int, tuple[int, int]]: ...
    @property
    def reaps_orphans(self) -> bool: ...
    @property
    def is_over(self) -> bool: ...
    def post(self, info: SignalInfo) -> object: ...
    def forget_body(self) -> None: ...
    def used(self) -> Usage: ...


P = TypeVar("P", bound=Relative)


def tell_parent(process: P, code: int, status: int) -> None:
    """There is news for the parent: SIGCHLD, as far as it wants one, and it is woken."""
    parent = process.parent
    if parent is None:
        return
    number = process.exit_signal if process.is_over else sig.SIGCHLD
    action = parent.signals.actions[number] if 0 < number <= sig.SIGNALS else None
    if action is not None and (process.is_over or not action.flags & sig.SA_NOCLDSTOP):
        used = process.used()
        time, system = used.time * _TICKS // _SECOND, used.system * _TICKS // _SECOND
        uid, times = process.credentials.uid, (time - system, system)
        parent.post(SignalInfo(number, code, pid=process.pid, uid=uid, value=status, used=times))
    parent.children.tell(process)
    parent.changed.wake()


def tell_of_end(process: P, parent: P) -> None:
    """Its parent hears that it is a zombie; one that wants none is rid of it."""
    tell_parent(process, *how_it_ended(process))
    action = parent.signals.actions[process.exit_signal] if process.exit_signal == sig.SIGCHLD else None
    if action is not None and (action.handler == sig.SIG_IGN or action.flags & sig.SA_NOCLDWAIT):
        vanish(process)
        parent.changed.wake()


def how_it_ended(process: P) -> tuple[int, int]:
    """si_code and si_status of the end."""
    assert process.ended is not None, "it has ended"
    signal = process.ended.signal
    if not signal:
        return sig.CLD_EXITED, process.ended.code
    dumps = signal in sig.DUMPING and process.limits[RLIMIT_CORE][0] > 0
    return sig.CLD_DUMPED if dumps else sig.CLD_KILLED, signal


def parent_takes_usage(process: P) -> None:
    """It was waited for: what it and its own children used counts as its parent's children's."""
    if process.parent is not None:
        process.parent.usage_of_children.add(process.used().plus(process.usage_of_children))


def orphan_children(process: P) -> list[P]:
    """Their parent is gone: a near ancestor takes them (PR_SET_CHILD_SUBREAPER), or init."""
    children = list(process.children)
    ancestor = process.parent if children and process.registry.reapers else None
    while ancestor is not None and (not ancestor.reaps_orphans or ancestor.is_over):
        ancestor = ancestor.parent
    for child in children:
        process.children.remove(child)
        child.parent, child.outer_parent, child.exit_signal = ancestor, INIT, sig.SIGCHLD
        _tell_of_death(process, process.credentials, child)
        if ancestor is not None:
            adopt(ancestor, child)
            ancestor.changed.wake()
            if child.released:
                tell_of_end(child, ancestor)
        elif child.released:
            vanish(child)
    return children


def adopt(parent: P, child: P) -> None:
    """Be the one who hears of `child` from now on."""
    child.parent = parent
    parent.children.add(child)
    if child.released or child.untold:
        parent.children.tell(child)


def _tell_of_death(parent: P, who: Credentials, child: P) -> None:
    """The child's parent has ended, or the thread of it that made the child, which was `who`.

    The child gets the signal of each thread that has asked for one (PR_SET_PDEATHSIG), if `who` may send it.
    """
    for thread in child.tasks:
        if thread.death_signal and not child.is_over and who.may_signal(thread.credentials):
            child.post(SignalInfo(thread.death_signal, sig.SI_USER, pid=parent.pid, uid=who.uid))


def thread_ended(process: P, ended: Thread) -> None:
    """A thread of it has ended, and it goes on: another is the parent of what that one made."""
    others = [task.tid for task in process.tasks if not task.is_over]
    for child in process.children:
        if child.made_by == ended.tid and others:
            child.made_by = others[0]
            _tell_of_death(process, ended.credentials, child)


def vanish(process: P) -> None:
    """Nobody waits for it any more: its number is free."""
    if process.parent is not None:
        process.parent.children.remove(process)
    if process.registry.leave(process):
        process.registry.zombies -= process.released
        process.forget_body()
