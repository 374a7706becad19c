"""Who listens to a machine, and what they are told.

    observers.attach(fault=show)       told of every fault from now on, in the middle of a run too
    attachment.detach()                not any more

While nobody listens nothing is asked and nothing is gathered: the CPU calls the straight entry points, and
`Entry.plug` puts others in their place when the first listener of a kind comes, and the first ones back
when the last one goes. Listeners change nothing; what decides in the kernel's stead is in `handlers`.

What a listener raises ends the run: it is kept until the CPU has been left, because calls catch what is
raised inside them, and `Scheduler.run` raises it. The event itself takes its course, so that the run can go
on. Listeners are not captured with a machine's state: a restored machine has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from aether_emu.arch.paging import Access
from aether_emu.errors import ClosedError, HandlerError
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.files.files import Files
from aether_emu.linux.task.wait import Wait
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.changes import Change
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import Outcome
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass


class Ending(Protocol):
    """How a process ended, see `process.Ended`."""

    @property
    def code(self) -> int: ...
    @property
    def signal(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def why(self) -> str: ...


class ProcessSeen(Protocol):
    """A process, as listeners see it."""

    @property
    def pid(self) -> int: ...
    @property
    def abi(self) -> Abi: ...
    @property
    def mm(self) -> AddressSpace: ...
    @property
    def files(self) -> Files: ...
    @property
    def ended(self) -> Ending | None: ...


class TaskSeen(Protocol):
    """A task, as listeners see it. `cpu` has its registers, and copies to and from its memory."""

    @property
    def tid(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def process(self) -> ProcessSeen: ...
    @property
    def cpu(self) -> Cpu: ...


@dataclass(frozen=True, slots=True)
class SystemCall:
    """A task makes a call. `name` is "" for a number that the ISA has not."""

    task: TaskSeen
    number: int
    name: str
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call: `result` (-errno when negative), or the `wait` after which it is made again.

    Neither when the call has set the registers itself (rt_sigreturn) or has ended its process. A call that
    waited is answered again when it is done, with `call` equal to what was told first.
    """

    call: SystemCall
    result: int | None
    wait: Wait | None


@dataclass(frozen=True, slots=True)
class FaultSeen:
    """A page fault and its outcome. `address` is exact, `access` tells what was tried and by whom.

    `did` is what was counted meanwhile: FAULT_DEMAND_ZERO; FAULT_COPY, COPIED_PAGES and FLUSH_PAGE; ...
    `in_call` when it was not the program that touched the page, but a system call of it.
    """

    task: TaskSeen
    address: int
    access: Access
    outcome: Outcome
    did: tuple[Event, ...]
    in_call: bool


@dataclass(frozen=True, slots=True)
class SignalSeen:
    """A task takes a signal. `forced` when the task's own instruction made it.

    `handler` is the address of the function that is entered, 0 when there is none: then the signal is
    `fatal`, or nothing happens.
    """

    task: TaskSeen
    info: SignalInfo
    forced: bool
    handler: int
    fatal: bool


@dataclass(frozen=True, slots=True)
class MappingChanged:
    """`[start, end)` is not what it was in the address space whose `number` is `space`: see `Change`."""

    space: int
    change: Change
    start: int
    end: int


def require_callable(handler: object) -> None:
    """Refuse at once what could only fail in the middle of a run. Raises HandlerError."""
    if not callable(handler):
        raise HandlerError(f"{handler!r} cannot be called: a handler or listener is a function")


class Attachment:
    """One or more listeners, attached. As a context manager it detaches them at the end of the block."""

    def __init__(self, detach: Callable[[], None]) -> None:
        self._detach: Callable[[], None] | None = detach

    @property
    def attached(self) -> bool:
        """Whether it still is."""
        return self._detach is not None

    def detach(self) -> None:
        """Tell them nothing more. Safe twice, and from inside a listener."""
        detach, self._detach = self._detach, None
        if detach is not None:
            detach()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_error: object) -> None:
        self.detach()


class Observers:
    """The listeners of one machine, by what they want to hear. Each field is a tuple, in order of coming."""

    def __init__(self, physical: Physical) -> None:
        self._physical = physical
        self.call_entered: tuple[Callable[[SystemCall], object], ...] = ()
        self.call_answered: tuple[Callable[[Answer], object], ...] = ()
        self.fault: tuple[Callable[[FaultSeen], object], ...] = ()
        self.signal: tuple[Callable[[SignalSeen], object], ...] = ()
        self.mapping: tuple[Callable[[MappingChanged], object], ...] = ()
        self.ended: tuple[Callable[[ProcessSeen], object], ...] = ()
        self.plugs: list[Callable[[], None]] = []  # of the entries: they put the fitting callbacks in place
        self.running = False  # inside `Scheduler.run`: what a listener raises is kept for it
        self._kept: BaseException | None = None

    def attach(
        self,
        *,
        call_entered: Callable[[SystemCall], object] | None = None,
        call_answered: Callable[[Answer], object] | None = None,
        fault: Callable[[FaultSeen], object] | None = None,
        signal: Callable[[SignalSeen], object] | None = None,
        mapping: Callable[[MappingChanged], object] | None = None,
        ended: Callable[[ProcessSeen], object] | None = None,
    ) -> Attachment:
        """Tell these functions of what they are named for, until the result is detached.

        A fault is told before the signal that it becomes, an exit after the call that asked for it. A process
        that has ended still has its memory and files then, and is nobody's zombie yet. Raises HandlerError
        for what cannot be called, ClosedError.
        """
        wanted = {
            "call_entered": call_entered,
            "call_answered": call_answered,
            "fault": fault,
            "signal": signal,
            "mapping": mapping,
            "ended": ended,
        }
        chosen = {kind: listener for kind, listener in wanted.items() if listener is not None}
        for listener in chosen.values():
            require_callable(listener)
        if self._physical.ram.closed:
            raise ClosedError
        for kind, listener in chosen.items():
            setattr(self, kind, (*getattr(self, kind), listener))
        self._plug()

        def detach() -> None:
            for kind, listener in chosen.items():
                left = list(getattr(self, kind))
                if listener in left:  # `detach_all` may have been quicker
                    left.remove(listener)
                setattr(self, kind, tuple(left))
            self._plug()

        return Attachment(detach)

    def detach_all(self) -> None:
        """Tell nobody anything more."""
        self.call_entered, self.call_answered, self.fault = (), (), ()
        self.signal, self.mapping, self.ended = (), (), ()
        self._plug()

    def _plug(self) -> None:
        self._physical.on_mapping = self._mapping_changed if self.mapping else None
        for plug in self.plugs:
            plug()

    # ---- telling

    def tell(self, listeners: tuple[Callable[[Any], object], ...], event: object) -> None:
        """Call each of `listeners`, a field of this object, with `event`."""
        for listener in listeners:
            try:
                listener(event)
            except BaseException as raised:
                self.end_run(raised)

    def _mapping_changed(self, space: int, change: Change, start: int, end: int) -> None:
        self.tell(self.mapping, MappingChanged(space, change, start, end))

    # ---- ending the run

    def end_run(self, raised: BaseException) -> None:
        """Have `Scheduler.run` raise this as soon as the CPU is left; at once where nothing runs."""
        if not self.running:
            raise raised
        if self._kept is None:
            self._kept = raised
        for cpu in self._physical.cpus:
            cpu.stop()

    @property
    def ends(self) -> bool:
        """Whether the run is about to end so."""
        return self._kept is not None

    def check(self) -> None:
        """Raise what is kept, if anything is."""
        kept, self._kept = self._kept, None
        if kept is not None:
            raise kept
