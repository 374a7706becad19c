"""Signals: what a process has of them, what a task has, and how one is delivered (signal(7)).

    of a process   actions, signals that any of its tasks may take
    of a task      mask, signals for it alone, alternate stack, the mask that rt_sigsuspend puts back

Faults are *forced*: a program that blocks or ignores the signal of its own fault dies by it, as
under Linux. Others are posted, and delivered when the task is about to go on. The frame that a
handler sees is the ISA's business (`abi`). Masks have bit N-1 for signal N.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from aether_emu.errors import Refused
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import Action, AlternateStack, Delivery, FaultRecord, SignalInfo
from aether_emu.linux.task.wait import Restart
from aether_emu.machine.cpu import Cpu, UserFault

State = dict[str, Any]


class Pending:
    """Signals that were posted and not taken yet.

    `mask` says which there are. `queued` of them have a record of their own, what Linux counts against
    RLIMIT_SIGPENDING; a signal without one is delivered once, and tells its handler nothing.
    """

    def __init__(self) -> None:
        self._records: dict[int, deque[SignalInfo]] = {}  # none is empty
        self.mask = self.queued = 0

    def has(self, number: int) -> bool:
        """Whether one of this number waits."""
        return bool(self.mask >> number - 1 & 1)

    def add(self, info: SignalInfo) -> None:
        """One more, with its record."""
        self._records.setdefault(info.number, deque()).append(info)
        self.queued += 1
        self.mark(info.number)

    def mark(self, number: int) -> None:
        """A signal without a record."""
        self.mask |= 1 << number - 1

    def take(self, blocked: int) -> SignalInfo | None:
        """Remove and return the next that `blocked` lets through: the lowest, a program's own first."""
        ready = self.mask & ~blocked
        if not ready:
            return None
        first = ready & sig.SYNCHRONOUS or ready
        number = (first & -first).bit_length()
        records = self._records.get(number)
        if records is None:
            self.drop(number)
            return SignalInfo(number)
        info = records.popleft()
        self.queued -= 1
        if not records:
            self.drop(number)
        return info

    def drop(self, number: int) -> None:
        """Forget every signal of a number."""
        self.queued -= len(self._records.pop(number, ()))
        self.mask &= ~(1 << number - 1)

    def capture(self) -> State:
        """What waits."""
        return {"mask": self.mask, "records": [tuple(records) for records in self._records.values()]}

    def restore(self, state: State) -> None:
        """Take over what `capture` gave."""
        self.mask = state["mask"]
        self._records = {records[0].number: deque(records) for records in state["records"]}
        self.queued = sum(map(len, self._records.values()))


def forget_opposite(number: int, group: Group) -> None:
    """Signals that stop and SIGCONT undo each other while they wait (Linux: prepare_signal)."""
    if number == sig.SIGCONT:
        for other in sig.STOPPING:
            group.forget(other)
    elif number in sig.STOPPING:
        group.forget(sig.SIGCONT)


def enqueue(pending: Pending, info: SignalInfo, group: Group) -> None:
    """Post one signal of `group`'s. Raises Refused(EAGAIN) when a real-time one finds no room for its record.

    Below the real-time signals a second one of a number is lost. One that the kernel or kill(2) sends gets
    its record whatever the limit, a timer has set its own aside; any other goes without.
    (Linux: __send_signal_locked)
    """
    number, real_time = info.number, info.number >= sig.FIRST_REAL_TIME
    if pending.has(number) and not real_time and not info.of_timer:
        return
    if number == sig.SIGKILL:
        pending.mark(number)
    elif (not real_time and info.code >= 0) or info.of_timer or group.queued_signals < group.signal_limit:
        pending.add(info)
    elif real_time and info.code != sig.SI_USER:
        raise Refused(errno.EAGAIN, "as many signals are queued as RLIMIT_SIGPENDING admits")
    else:
        pending.mark(number)


class ProcessSignals:
    """A process's signals."""

    def __init__(self) -> None:
        self.actions = [Action()] * (sig.SIGNALS + 1)
        self.pending = Pending()

    def reset(self, *, keeps_ignored: bool) -> None:
        """Another program begins: no handlers, and what was ignored stays so if it `keeps_ignored`."""
        ignored = (keeps_ignored and action.handler == sig.SIG_IGN for action in self.actions)
        self.actions = [Action(sig.SIG_IGN) if each else Action() for each in ignored]

    def is_ignored(self, number: int) -> bool:
        """Whether the signal has no effect under its present action."""
        handler = self.actions[number].handler
        return handler == sig.SIG_IGN or (handler == sig.SIG_DFL and number in sig.IGNORED_BY_DEFAULT)

    def stops(self, number: int) -> bool:
        """Whether the signal stops the process under its present action."""
        return number in sig.STOPPING and self.actions[number].handler == sig.SIG_DFL

    def capture(self) -> State:
        return {
            "actions": list(self.actions),
            "pending": self.pending.capture(),
        }

    def restore(self, state: State) -> None:
        self.actions = list(state["actions"])
        self.pending.restore(state["pending"])


class Member(Protocol):
    """Another task of the same process."""

    @property
    def signals(self) -> TaskSignals: ...
    @property
    def is_over(self) -> bool: ...


class Group(Protocol):
    """A process, as the signals of its tasks see it."""

    @property
    def tasks(self) -> Sequence[Member]: ...
    def taken(self, info: SignalInfo) -> SignalInfo: ...

    @property
    def signals(self) -> ProcessSignals: ...
    @property
    def abi(self) -> Abi: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def queued_signals(self) -> int: ...
    @property
    def signal_limit(self) -> int: ...
    def has_memory_above(self, address: int) -> bool: ...
    def forget(self, number: int) -> None: ...
    def signalled(self, number: int) -> None: ...
    def signal_return(self) -> int: ...
    def die(self, signal: int, why: str) -> None: ...
    def can_stop(self, number: int) -> bool: ...
    def stop(self, signal: int) -> None: ...


class Receiver(Protocol):
    """A task, as its signals see it."""

    @property
    def process(self) -> Group: ...
    @property
    def running(self) -> bool: ...
    @property
    def cpu(self) -> Cpu: ...
    def takes(self, info: SignalInfo, *, forced: bool, handler: int, fatal: bool) -> None: ...
    def signalled(self) -> None: ...
    def abort_sequence(self) -> None: ...


class TaskSignals:
    """A task's signals.

    `blocked` never holds SIGKILL or SIGSTOP. `suspended_mask` is what `blocked` was before a call lent the
    task another mask, and None at all other times. `record` is what frames show of the last fault.
    `interrupted_call` is (number, first argument, when it restarts) of a call that a signal has ended a
    moment ago, and that the program may make anew.
    """

    def __init__(self, task: Receiver) -> None:
        self._task = task
        self.blocked = 0
        self.pending = Pending()
        self.suspended_mask: int | None = None
        self.stack = sig.DISARMED
        self.record = FaultRecord()
        self.interrupted_call: tuple[int, int, Restart] | None = None

    def blocks(self, number: int) -> bool:
        """Whether the task takes no signal of this number now."""
        return bool(self.blocked >> number - 1 & 1)

    # ---- sending

    def force(self, info: SignalInfo) -> None:
        """A fault of the program itself: deliver now, or die by it when that is not possible."""
        record = info.record
        if record is not None:
            kept = self.record.address if record.address is None else record.address
            self.record = replace(record, address=kept)
        action = self._task.process.signals.actions[info.number]
        if action.handler in (sig.SIG_DFL, sig.SIG_IGN) or self.blocks(info.number):
            self._die(info, forced=True)
        else:
            self._enter(info, action, forced=True)

    def post(self, info: SignalInfo) -> bool:
        """A signal for this task alone, delivered when it is about to go on and does not block it.

        Whether it waits: one that is ignored does not. Raises Refused(EAGAIN), see `enqueue`.
        """
        forget_opposite(info.number, self._task.process)
        process = self._task.process
        if not self.blocks(info.number) and process.signals.is_ignored(info.number):
            return False
        enqueue(self.pending, info, process)
        self.update()
        process.signalled(info.number)
        return True

    def take(self, wanted: int) -> SignalInfo | None:
        """Take the next of `wanted` that waits, blocked or not, without its handler; the task's own first."""
        process = self._task.process
        taken = self.pending.take(~wanted) or process.signals.pending.take(~wanted)
        self.update()
        return None if taken is None else process.taken(taken)

    @property
    def waiting(self) -> int:
        """The signals that wait for the task or its process, blocked or not, as a mask."""
        return self.pending.mask | self._task.process.signals.pending.mask

    def update(self) -> None:
        """What is pending or blocked has changed: tell the CPU, or who has the task wait."""
        self.arm()
        self._task.signalled()

    def arm(self) -> None:
        """Tell the CPU whether there is something to deliver when the system call returns."""
        if self._task.running:
            self._task.cpu.return_work = self.deliver if self.ready() else None

    def ready(self) -> int:
        """The signals that are pending and not blocked, as a mask."""
        shared = self._task.process.signals.pending.mask
        if shared:
            shared = self._left_to(shared)
        return (self.pending.mask | shared) & ~self.blocked

    def _left_to(self, shared: int) -> int:
        """Those of the process that no task before this one takes (Linux: complete_signal asks in order)."""
        for task in self._task.process.tasks:
            if task.signals is self:
                break
            if not task.is_over:
                shared &= task.signals.blocked
        return shared

    def interrupts(self) -> bool:
        """Whether one of those ends a wait: it has a handler, or it kills. After a stop the wait goes on."""
        ready, shared = self.ready(), self._task.process.signals
        return bool(ready) and any(
            ready >> number - 1 & 1 and not shared.is_ignored(number) and not shared.stops(number)
            for number in range(1, sig.SIGNALS + 1)
        )

    # ---- another mask for the time of a call

    def suspend(self, mask: int) -> None:
        """rt_sigsuspend(2), ppoll(2): block `mask` instead, until the call ends or a handler has run."""
        self.suspended_mask, self.blocked = self.blocked, mask & ~sig.UNBLOCKABLE
        self.update()

    def end_suspension(self) -> None:
        """The call ended without a handler: the mask is what it was."""
        if self.suspended_mask is not None:
            self.blocked, self.suspended_mask = self.suspended_mask, None
            self.update()

    # ---- delivering

    @property
    def in_call(self) -> bool:
        """Whether a call that has ended left something to settle, though no signal is there to deliver."""
        return self.interrupted_call is not None or self.suspended_mask is not None

    def deliver(self) -> None:
        """Enter the handlers of what is pending and not blocked, or do the default."""
        process = self._task.process
        while not process.is_over:
            info = self.pending.take(self.blocked)
            info = info or process.signals.pending.take(
                self.blocked | ~self._left_to(process.signals.pending.mask)
            )
            if info is None:
                break
            info = process.taken(info)
            action = process.signals.actions[info.number]
            if action.handler not in (sig.SIG_DFL, sig.SIG_IGN):
                self._enter(info, action, forced=False)
            elif process.signals.is_ignored(info.number):
                self._task.takes(info, forced=False, handler=0, fatal=False)
            elif info.number in sig.STOPPING:
                self._task.takes(info, forced=False, handler=0, fatal=False)
                if process.can_stop(info.number):
                    process.stop(info.number)
                    self.update()
                    return  # what the call has lent or left is settled when the process goes on
            else:
                self._die(info, forced=False)
        self._restart()
        self.end_suspension()
        self.update()

    def _restart(self) -> None:
        """The call that a signal has ended is made anew, if it may be and no handler has run since."""
        call, self.interrupted_call = self.interrupted_call, None
        if call is not None:
            self._task.process.abi.restart_call(self._task.cpu, call[0], call[1])

    def _enter(self, info: SignalInfo, action: Action, *, forced: bool) -> None:
        cpu, process = self._task.cpu, self._task.process
        call, restarts = self.interrupted_call, action.flags & sig.SA_RESTART
        if call is not None and (call[2] is Restart.ALWAYS or (restarts and call[2] is Restart.BY_ACTION)):
            self._restart()
        self.interrupted_call = None
        if info.is_fault and not action.flags & sig.SA_EXPOSE_TAGBITS:
            info = self._without_tag(info)
        self._task.takes(info, forced=forced, handler=action.handler, fatal=False)
        self._task.abort_sequence()
        mask = self.blocked if self.suspended_mask is None else self.suspended_mask
        delivery = Delivery(info, action, mask, self.stack, self.record, process.signal_return())
        if action.flags & sig.SA_RESETHAND:  # even if the frame cannot be built
            process.signals.actions[info.number] = replace(action, handler=sig.SIG_DFL)
        try:
            process.abi.push_frame(cpu, delivery)
        except UserFault:
            failed = SignalInfo(sig.SIGSEGV, sig.SI_KERNEL)
            if info.number == sig.SIGSEGV:
                self._die(failed, forced=True)
            else:
                self.force(failed)
            return
        self.suspended_mask = None
        if self.stack.flags & sig.SS_AUTODISARM:
            self.stack = sig.DISARMED
        self.blocked |= action.mask & ~sig.UNBLOCKABLE
        if not action.flags & sig.SA_NODEFER:
            self.blocked |= 1 << info.number - 1
        self.update()

    def _without_tag(self, info: SignalInfo) -> SignalInfo:
        """As a handler is told it that asked for no tags. A breakpoint's address is no tagged pointer."""
        if (info.number, info.code) == (sig.SIGTRAP, sig.TRAP_BRKPT):
            return info
        return replace(info, address=self._task.process.abi.untagged(info.address))

    def go_back(self) -> None:
        """rt_sigreturn(2): a bad frame is SIGSEGV. What was read before the bad part stays in force."""
        process, cpu = self._task.process, self._task.cpu
        restored = process.abi.pop_frame(cpu, process.has_memory_above)
        if restored.mask is not None:
            self.blocked = restored.mask & ~sig.UNBLOCKABLE
        if restored.stack is not None:
            with suppress(Refused):  # Linux reports no error but that of reading it
                self.change_stack(restored.stack)
        if restored.refused is not None:
            self.force(restored.refused)
        self.update()

    def change_stack(self, wanted: AlternateStack) -> None:
        """sigaltstack(2). Raises Refused: EPERM while a handler runs on it, EINVAL, ENOMEM."""
        if self.stack.contains(self._task.cpu.sp):
            raise Refused(errno.EPERM, "the program runs on the alternate stack")
        mode = wanted.flags & ~sig.SS_AUTODISARM
        if mode not in (0, sig.SS_DISABLE, sig.SS_ONSTACK):
            raise Refused(errno.EINVAL, "unknown flags")
        smallest = self._task.process.abi.smallest_stack
        if mode == sig.SS_DISABLE:
            wanted = AlternateStack(flags=wanted.flags)
        elif wanted.size < smallest:
            raise Refused(errno.ENOMEM, f"at least {smallest} bytes")
        self.stack = wanted

    def _die(self, info: SignalInfo, *, forced: bool) -> None:
        self._task.takes(info, forced=forced, handler=0, fatal=True)
        where = f" at {info.address:#x}" if info.is_fault else ""
        self._task.process.die(info.number, f"{sig.name_of(info.number)}{where}")

    # ---- state

    def capture(self) -> State:
        return {
            "blocked": self.blocked,
            "pending": self.pending.capture(),
            "suspended_mask": self.suspended_mask,
            "interrupted_call": self.interrupted_call,
            "stack": self.stack,
            "record": self.record,
        }

    def restore(self, state: State) -> None:
        self.blocked, self.suspended_mask = state["blocked"], state["suspended_mask"]
        self.interrupted_call = state["interrupted_call"]
        self.stack, self.record = state["stack"], state["record"]
        self.pending.restore(state["pending"])
