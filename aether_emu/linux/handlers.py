"""Who decides in the kernel's stead: handlers of faults and of system calls.

    fault --> handlers, the last that came first --None--> the manager's own decision
                                     \\-an outcome: that is it
    call  --> handlers of its name, likewise     --None--> the call
                                     \\-a number: that is its result, and the call is not made

As with listeners (`observers`), nobody pays while there is none: `Entry` is given another function to ask,
and its own one back. What a handler raises ends the run, and the kernel decides. They are no part of a
machine's state: a restored machine has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from aether_emu.arch.paging import Access, Attributes, PageFlags
from aether_emu.errors import ConfigError, HandlerError, suggestion, whole
from aether_emu.linux.entry import Entry
from aether_emu.linux.observers import Attachment, require_callable
from aether_emu.linux.task.process import Process
from aether_emu.linux.watching import permitted_by
from aether_emu.mm.allocation import Area
from aether_emu.mm.fault import RESOLVED, AccessError, BusError, Faults, Outcome, Resolved
from aether_emu.mm.own_page import put_page
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.walk import Mapped, Walk

_MASK = (1 << 64) - 1
_MOST_TRIES = 8  # times that one access may be called resolved and fault again: more means no progress


class Fault:
    """A page fault that waits for its outcome. `address` is the exact virtual one, not its page's; `access`
    has the bits of `Access`: what was tried, and by whom.

    `area` is the one that contains the address, or None. `in_call` when not the program itself touches the
    page but the kernel for it: a call that reads or writes user memory, MAP_POPULATE, mlock, /proc/self/mem;
    or `Process.read` and `write`. What a handler touches by those is the manager's to decide, and so is what
    a debugger's access does in spite of the area's protection.
    """

    def __init__(self, entry: Entry, address: int, access: int, *, in_call: bool) -> None:
        self._entry = entry
        self.task, self.address, self.access, self.in_call = entry.task, address, Access(access), in_call

    @property
    def process(self) -> Process:
        """Whose fault it is."""
        return self.task.process

    @property
    def page(self) -> int:
        """The address of the page."""
        return self.address & -self.process.mm.page_size

    @property
    def pc(self) -> int:
        """Where the program is: at the instruction, or behind the call."""
        return self.task.cpu.pc

    @property
    def area(self) -> Area | None:
        """The area that contains the address now; None where nothing is mapped."""
        return self.process.mm.areas.find(self.address)

    @property
    def walk(self) -> Walk:
        """What the tables say now."""
        return self.process.mm.walk(self.address)

    # ---- outcomes

    def map(
        self,
        content: bytes | int = b"",
        flags: PageFlags | None = None,
        *,
        bits: int | None = None,
    ) -> Resolved:
        """Show a page of these bytes (zeros behind them), or a frame by its number; then access it again.

        The entry gets what the area's protection asks for, or exactly `flags`, or exactly `bits`: as the
        manual lays them out, without the address. What the MMU makes of them is the program's to see.
        Raises MappingError, see `mm.own_page.put_page`; EncodingError for flags that the format has not.
        """
        area = self.area
        if area is None:
            raise HandlerError(f"{self.address:#x} is in no area: map one first (process.mm), or deny()")
        if flags is not None and bits is not None:
            raise HandlerError("flags or bits, not both")
        if not isinstance(content, bytes | bytearray | memoryview):
            content = whole("content", content, "bytes, or a frame's number")
        if flags is not None and not isinstance(flags, PageFlags):
            raise ConfigError("flags", flags, "a PageFlags, such as PageFlags.READ | PageFlags.USER")
        if bits is not None and not 0 <= whole("bits", bits) < 1 << 64:
            raise ConfigError("bits", bits, "64 bits of an entry")
        if flags is not None:
            bits = self.process.mm.table.format.leaf_bits(Attributes(flags))
        put_page(self.process.mm, area, self.address, content, bits)
        return RESOLVED

    def deny(self) -> AccessError:
        """Refuse the access: SIGSEGV (SEGV_ACCERR in an area, else SEGV_MAPERR), or EFAULT of a call."""
        return AccessError(self.address, self.area is not None)

    def bus_error(self) -> BusError:
        """There is nothing behind the page: SIGBUS (BUS_ADRERR), or EFAULT of a call."""
        return BusError(self.address)

    def decide(self) -> Outcome:
        """Let the manager decide now, and see what it did: return that, or something else."""
        return self._entry.manager(self.address, int(self.access))

    def __repr__(self) -> str:
        how = "|".join(one.name.lower() for one in Access if one & self.access and one.name)
        return f"<Fault {how} at {self.address:#x}, pc {self.pc:#x}, {self.area or 'in no area'}>"


class Call:
    """A system call that is about to be made, with six `arguments`. `name` is "" for an unknown number."""

    def __init__(self, entry: Entry, number: int, arguments: tuple[int, ...]) -> None:
        self._entry = entry
        self.task, self.number, self.arguments = entry.task, number & 0xFFFF_FFFF, arguments
        self.name = entry.kernel.abi.system_calls.get(self.number, "")
        self.made = False
        self.result: int | None = None

    @property
    def process(self) -> Process:
        """Who calls."""
        return self.task.process

    def make(self, *arguments: int) -> int | None:
        """Have the kernel make it now, with other arguments if there are any; its result, -errno if negative.

        None for a call that has to wait (it is answered later, and no handler hears of it), that has set the
        registers itself, or that has ended the process.
        """
        if self.made:
            raise HandlerError(f"{self.name}: the call is made already")
        if len(arguments) > len(self.arguments):
            most = len(self.arguments)
            raise HandlerError(f"{self.name}: a call has {most} arguments, not {len(arguments)}")
        arguments = tuple(whole("argument", argument) & _MASK for argument in arguments)
        self.made = True
        given = (*arguments, *self.arguments[len(arguments) :])
        self.result = self._entry.make_call(self.number, *given)
        return self.result

    def __repr__(self) -> str:
        return f"<Call {self.name or self.number}({', '.join(map(hex, self.arguments))})>"


def _goes_through(fault: Fault) -> bool:
    """Whether the tables permit the access now: a loop may map, touch and unmap one page for ever."""
    walked, fmt = fault.walk, fault.process.mm.table.format
    return isinstance(walked, Mapped) and bool(fault.access & permitted_by(fmt, walked.attributes.flags))


FaultHandler = Callable[[Fault], Outcome | None]
CallHandler = Callable[[Call], int | None]


class Handlers:
    """The handlers of a machine, the last that came first. `entries` are those of its CPUs."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries, self._kernel = entries, entries[0].kernel
        self._faults: tuple[FaultHandler, ...] = ()
        self._calls: tuple[tuple[CallHandler, frozenset[str]], ...] = ()
        self._manager = Faults(self._kernel.physical)
        self._asking = False  # what a handler touches itself is no fault to ask about
        self._last, self._tries = (0, 0, 0), 0  # the last access that a handler called resolved

    def on_fault(self, handler: FaultHandler) -> Attachment:
        """Ask it about every fault from now on, until the result is detached. Raises HandlerError."""
        require_callable(handler)
        self._faults = (handler, *self._faults)
        self._plug()

        def detach() -> None:
            left = list(self._faults)
            left.remove(handler)
            self._faults = tuple(left)
            self._plug()

        return Attachment(detach)

    def on_system_call(self, handler: CallHandler, names: Collection[str]) -> Attachment:
        """Ask it about every call of those names, of all without a name, likewise. Raises HandlerError."""
        require_callable(handler)
        known = set(self._kernel.abi.system_calls.values())
        for name in names:
            if name not in known:
                isa = self._kernel.abi.isa
                raise HandlerError(f"{isa} has no system call {name!r}{suggestion(name, sorted(known))}")
        item = handler, frozenset(names)
        self._calls = (item, *self._calls)
        self._plug()

        def detach() -> None:
            left = list(self._calls)
            left.remove(item)
            self._calls = tuple(left)
            self._plug()

        return Attachment(detach)

    def _plug(self) -> None:
        for entry in self._entries:
            entry.ask(
                partial(self._fault, entry) if self._faults else None,
                partial(self._call, entry) if self._calls else None,
            )
        self._kernel.physical.decide = self._brought if self._faults else None

    # ---- deciding

    def _brought(self, space: AddressSpace, va: int, access: int) -> Outcome:
        """A fault that the CPU has no part in: of MAP_POPULATE, mlock, /proc/self/mem, `Process.read`."""
        entry = self._kernel.entry
        task = getattr(entry, "task", None)
        if self._asking or task is None or space is not task.process.mm:
            return self._manager.resolve(space, va, access)
        return self._fault(entry, va, access, True)

    def _fault(self, entry: Entry, va: int, access: int, in_call: bool) -> Outcome:
        fault = Fault(entry, va, access, in_call=in_call)
        self._asking = True
        try:
            outcome = self._ask(fault)
        finally:
            self._asking = False
        return entry.manager(va, access) if outcome is None else outcome

    def _ask(self, fault: Fault) -> Outcome | None:
        for handler in self._faults:
            try:
                outcome = handler(fault)
                if outcome is not None:
                    self._check(fault, handler, outcome)
                    return RESOLVED if isinstance(outcome, Resolved) else outcome
            except BaseException as raised:
                self._kernel.observers.end_run(raised)
        return None

    def _check(self, fault: Fault, handler: FaultHandler, outcome: object) -> None:
        name = getattr(handler, "__name__", repr(handler))
        if not isinstance(outcome, Outcome):
            raise HandlerError(f"{name} returned {outcome!r}: a fault's handler returns None or an outcome")
        here = fault.pc, fault.address, int(fault.access)
        again = here == self._last and isinstance(outcome, Resolved) and not _goes_through(fault)
        self._tries = self._tries + 1 if again else 0
        self._last = here
        if self._tries == _MOST_TRIES:
            self._tries = 0
            raise HandlerError(
                f"{name} calls the fault at {fault.address:#x} resolved, but the access faults every time"
            )

    def _call(self, entry: Entry, number: int, *arguments: int) -> int | None:
        call = Call(entry, number, arguments)
        for handler, names in self._calls:
            if names and call.name not in names:
                continue
            try:
                result = handler(call)
                if result is not None and (not isinstance(result, int) or isinstance(result, bool)):
                    raise HandlerError(
                        f"the handler of {call.name} returned {result!r}, not a number or None"
                    )
            except BaseException as raised:
                self._kernel.observers.end_run(raised)
                result = None
            if call.made:
                waits = call.result is None
                return call.result if waits or result is None else result
            if result is not None:
                entry.count_call(call.number)
                return result
        return entry.make_call(number, *arguments)
