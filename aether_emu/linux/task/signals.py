"""Signals: what a process has of them, what a task has, and how one is delivered (signal(7)).

    of a process   actions, signals that any of its tasks may take
    of a task      mask, signals for it alone, alternate stack, the mask that rt_sigsuspend puts back

Faults are *forced*: a program that blocks or ignores the signal of its own fault dies by it, as
under Linux. Others are posted, and delivered when the task is about to go on. The frame that a
handler sees is the ISA's business (`abi`). Masks have bit N-1 for signal N.
"""

from __future__ import annotations

from typing import Any, Protocol

from aether_emu.errors import Refused
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import Action, AlternateStack, Delivery, SignalInfo
from aether_emu.machine.cpu import Cpu, UserFault

State = dict[str, Any]


class Pending:
    """Signals that were posted and not taken yet. Only real-time signals are counted."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[SignalInfo, ...]] = {}  # none is empty

    @property
    def mask(self) -> int:
        """Which signals there are."""
        return sum(1 << number - 1 for number in self._waiting)

    def add(self, info: SignalInfo) -> None:
        """One more. A second one of the same number is lost below the real-time signals."""
        waiting = self._waiting.get(info.number, ())
        if not waiting or info.number >= sig.FIRST_REAL_TIME:
            self._waiting[info.number] = (*waiting, info)

    def take(self, blocked: int) -> SignalInfo | None:
        """Remove and return the lowest one that `blocked` lets through."""
        for number in sorted(self._waiting):
            if not blocked >> number - 1 & 1:
                info, *others = self._waiting.pop(number)
                if others:
                    self._waiting[number] = tuple(others)
                return info
        return None

    def drop(self, number: int) -> None:
        """Forget every signal of a number."""
        self._waiting.pop(number, None)

    def capture(self) -> dict[int, tuple[SignalInfo, ...]]:
        """What waits, by number."""
        return dict(self._waiting)

    def restore(self, state: dict[int, tuple[SignalInfo, ...]]) -> None:
        """Take over what `capture` gave."""
        self._waiting = dict(state)


class ProcessSignals:
    """A process's signals."""

    def __init__(self) -> None:
        self.actions = [Action()] * (sig.SIGNALS + 1)
        self.pending = Pending()

    def is_ignored(self, number: int) -> bool:
        """Whether the signal has no effect under its present action."""
        handler = self.actions[number].handler
        return handler == sig.SIG_IGN or (handler == sig.SIG_DFL and number in sig.IGNORED_BY_DEFAULT)

    def capture(self) -> State:
        return {
            "actions": list(self.actions),
            "pending": self.pending.capture(),
        }

    def restore(self, state: State) -> None:
        self.actions = list(state["actions"])
        self.pending.restore(state["pending"])


class Group(Protocol):
    """A process, as the signals of its tasks see it."""

    @property
    def signals(self) -> ProcessSignals: ...
    @property
    def abi(self) -> Abi: ...
    @property
    def is_over(self) -> bool: ...
    def signal_return(self) -> int: ...
    def die(self, signal: int, why: str) -> None: ...


class Receiver(Protocol):
    """A task, as its signals see it."""

    @property
    def process(self) -> Group: ...
    @property
    def running(self) -> bool: ...
    @property
    def cpu(self) -> Cpu: ...


class TaskSignals:
    """A task's signals.

    `blocked` never holds SIGKILL or SIGSTOP. `suspended_mask` is what `blocked` was before a call lent the
    task another mask, and None at all other times.
    """

    def __init__(self, task: Receiver) -> None:
        self._task = task
        self.blocked = 0
        self.pending = Pending()
        self.suspended_mask: int | None = None
        self.stack = AlternateStack()

    def blocks(self, number: int) -> bool:
        """Whether the task takes no signal of this number now."""
        return bool(self.blocked >> number - 1 & 1)

    # ---- sending

    def force(self, info: SignalInfo) -> None:
        """A fault of the program itself: deliver now, or die by it when that is not possible."""
        action = self._task.process.signals.actions[info.number]
        if action.handler in (sig.SIG_DFL, sig.SIG_IGN) or self.blocks(info.number):
            self._die(info)
        else:
            self._enter(info, action)

    def post(self, info: SignalInfo) -> None:
        """A signal for this task alone, delivered when it is about to go on and does not block it."""
        if self.blocks(info.number) or not self._task.process.signals.is_ignored(info.number):
            self.pending.add(info)
            self.update()

    def update(self) -> None:
        """Tell the CPU whether there is something to deliver when the system call returns."""
        if self._task.running:
            self._task.cpu.return_work = self.deliver if self.ready() else None

    def ready(self) -> int:
        """The signals that are pending and not blocked, as a mask."""
        return (self.pending.mask | self._task.process.signals.pending.mask) & ~self.blocked

    def interrupts(self) -> bool:
        """Whether one of those ends a wait: it has a handler, or it kills."""
        ready, shared = self.ready(), self._task.process.signals
        return bool(ready) and any(
            ready >> number - 1 & 1 and not shared.is_ignored(number) for number in range(1, sig.SIGNALS + 1)
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

    def deliver(self) -> None:
        """Enter the handlers of what is pending and not blocked, or do the default."""
        process = self._task.process
        while not process.is_over:
            info = self.pending.take(self.blocked) or process.signals.pending.take(self.blocked)
            if info is None:
                break
            action = process.signals.actions[info.number]
            if action.handler == sig.SIG_DFL:
                if info.number not in sig.IGNORED_BY_DEFAULT and info.number not in sig.STOPPING:
                    self._die(info)
            elif action.handler != sig.SIG_IGN:
                self._enter(info, action)
        self.end_suspension()
        self.update()

    def _enter(self, info: SignalInfo, action: Action) -> None:
        cpu, process = self._task.cpu, self._task.process
        on_stack = self.stack.contains(cpu.sp)
        switch = (
            bool(action.flags & sig.SA_ONSTACK) and not self.stack.flags & sig.SS_DISABLE and not on_stack
        )
        mask = self.blocked if self.suspended_mask is None else self.suspended_mask
        delivery = Delivery(info, action, mask, self.stack, switch, process.signal_return())
        try:
            process.abi.push_frame(cpu, delivery)
        except UserFault:
            failed = SignalInfo(sig.SIGSEGV, sig.SI_KERNEL)
            if info.number == sig.SIGSEGV:
                self._die(failed)
            else:
                self.force(failed)
            return
        self.suspended_mask = None
        if self.stack.flags & sig.SS_AUTODISARM:
            self.stack = AlternateStack()
        if action.flags & sig.SA_RESETHAND:
            reset = Action(sig.SIG_DFL, action.flags, action.restorer, action.mask)
            process.signals.actions[info.number] = reset
        self.blocked |= action.mask & ~sig.UNBLOCKABLE
        if not action.flags & sig.SA_NODEFER:
            self.blocked |= 1 << info.number - 1
        self.update()

    def go_back(self) -> None:
        """rt_sigreturn(2): a bad frame is SIGSEGV."""
        try:
            restored = self._task.process.abi.pop_frame(self._task.cpu)
        except (UserFault, Refused):
            self.force(SignalInfo(sig.SIGSEGV, sig.SI_KERNEL))
            return
        self.blocked = restored.mask & ~sig.UNBLOCKABLE
        if not self.stack.contains(self._task.cpu.sp):
            self.stack = restored.stack
        self.update()

    def _die(self, info: SignalInfo) -> None:
        where = f" at {info.address:#x}" if info.is_fault else ""
        self._task.process.die(info.number, f"{sig.name_of(info.number)}{where}")

    # ---- state

    def capture(self) -> State:
        return {
            "blocked": self.blocked,
            "pending": self.pending.capture(),
            "suspended_mask": self.suspended_mask,
            "stack": self.stack,
        }

    def restore(self, state: State) -> None:
        self.blocked, self.suspended_mask = state["blocked"], state["suspended_mask"]
        self.stack = state["stack"]
        self.pending.restore(state["pending"])
