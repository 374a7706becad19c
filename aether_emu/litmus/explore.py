"""Every interleaving of a litmus test's threads, times every translation that an access may go by.

A state is memory, registers, where each thread is and what each CPU may have cached. What leads from one to
the next is executed (`laboratory`); a state that was reached before is not gone on from twice. Steps that no
other thread can see the time of (most barriers) are taken as soon as they can be: taking them later gives
nothing that is not reached anyway, for all they do is to limit what their own thread may use next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from aether_emu.errors import AetherError
from aether_emu.interruption import checkpoint
from aether_emu.litmus import rules as may
from aether_emu.litmus.conditions import holds
from aether_emu.litmus.laboratory import Laboratory
from aether_emu.litmus.program import (
    DONE,
    FAULT,
    Await,
    Barrier,
    Enter,
    Entry,
    Interrupt,
    Invalidate,
    Kind,
    Litmus,
    Load,
    Manual,
    ReadEntry,
    Slot,
    Store,
    WriteEntry,
)
from aether_emu.litmus.text import registers

MOST_STATES = 200_000


class TooManyStates(AetherError):
    """A test has more states than are gone through."""

    def __init__(self, test: Litmus, states: int) -> None:
        super().__init__(
            f"{test.path}: {test.name} has more than {states:,} states: "
            "fewer threads or operations were expected, or a higher --states"
        )


class State(NamedTuple):
    """Everything that what follows depends on."""

    at: tuple[int, ...]  # by thread, its next operation
    data: tuple[int, ...]
    histories: tuple[may.History, ...]
    registers: tuple[int | str | Entry | None, ...]
    cpus: tuple[may.Cpu, ...]
    now: int


@dataclass(slots=True)
class Explored:
    """What came of a test. `witness`: the steps to an end of which the condition holds; None: there is none.

    `ends` are the registers' values, with what is in memory.
    """

    test: Litmus
    states: int = 0
    executed: int = 0
    planted: int = 0
    witness: list[str] | None = None
    ends: set[str] = field(default_factory=set)

    @property
    def reached(self) -> bool:
        """Whether the condition holds at some end."""
        return self.witness is not None


def explore(
    test: Litmus,
    laboratory: Laboratory,
    rules: may.Rules | None = None,
    *,
    most: int = MOST_STATES,
) -> Explored:
    """Go through all of a test. Raises TooManyStates."""
    return _Exploration(test, laboratory, rules or may.RULES[test.manual], most).perform()


class _Exploration:
    def __init__(self, test: Litmus, laboratory: Laboratory, rules: may.Rules, most: int) -> None:
        self._test, self._lab, self._rules, self._most = test, laboratory, rules, most
        self._pages = test.pages
        self._slots = tuple(test.entries)
        self._names = {key: number for number, key in enumerate(registers(test.threads))}
        self._spaces = {space.name: number for number, space in enumerate(test.spaces)}
        self._setting = may.Setting(
            rules,
            test.manual,
            tuple(self._walked(number, page) for number, page in enumerate(test.pages)),
            test.pages,
            tuple(space.tag for space in test.spaces),
        )
        self._from: dict[State, tuple[State | None, str]] = {}
        self._stack: list[State] = []

    def _walked(self, number: int, page: str) -> may.Walked:
        uppers = tuple(self._test.upper(page, space) for space in range(len(self._test.spaces)))
        slots = {slot for upper in uppers for slot in (upper, Slot(1, upper.name))}
        for thread in self._test.threads:
            for operation in thread:
                action = operation.action
                if isinstance(action, WriteEntry) and action.slot in uppers:
                    slots |= {Slot(1, action.entry.target)} if action.entry.kind is Kind.TABLE else set()
        return may.Walked(number, uppers, frozenset(slots))

    def perform(self) -> Explored:
        test, lab = self._test, self._lab
        lab.place(test)
        executed, planted = lab.executed, lab.planted
        threads = len(test.threads)
        start = State(
            (0,) * threads,
            tuple(test.memory.values()),
            tuple(((0, entry),) for entry in test.entries.values()),
            (None,) * len(self._names),
            (may.fresh(len(self._pages)),) * threads,
            0,
        )
        found = Explored(test)
        self._add(start, None, "")
        while self._stack:
            state = self._stack.pop()
            if not len(self._from) & 63:
                checkpoint()
            if all(at == len(thread) for at, thread in zip(state.at, test.threads, strict=True)):
                self._end(state, found)
            else:
                self._go_on(state)
            if len(self._from) > self._most:
                raise TooManyStates(test, self._most)
        found.states = len(self._from)
        found.executed, found.planted = lab.executed - executed, lab.planted - planted
        return found

    def _add(self, state: State, before: State | None, text: str) -> None:
        if state not in self._from:
            self._from[state] = before, text
            self._stack.append(state)

    def _end(self, state: State, found: Explored) -> None:
        values = {key: state.registers[number] for key, number in self._names.items()}
        known = {key: value for key, value in values.items() if value is not None}
        memory = dict(zip(self._test.memory, state.data, strict=True))
        entries = {slot: history[-1][1] for slot, history in zip(self._slots, state.histories, strict=True)}
        parts = [f"{thread}:{name}={value}" for (thread, name), value in known.items()]
        parts += [f"*{page}={value}" for page, value in memory.items()]
        found.ends.add(" ".join(parts))
        if found.witness is None and holds(self._test.condition, known, memory, entries):
            found.witness = self._steps(state)

    def _steps(self, state: State) -> list[str]:
        steps = []
        at: State | None = state
        while at is not None:
            at, text = self._from[at]
            steps.append(text)
        return steps[-2::-1]

    # ---- from one state to the next

    def _go_on(self, state: State) -> None:
        threads = [
            number for number, thread in enumerate(self._test.threads) if state.at[number] < len(thread)
        ]
        for number in threads:
            if self._unseen(state, number):
                self._step(state, number)
                return
        for number in threads:
            self._step(state, number)
        for number, cpu in enumerate(state.cpus):
            if cpu.asked:
                self._handle(state, number)

    def _unseen(self, state: State, number: int) -> bool:
        action = self._test.threads[number][state.at[number]].action
        return isinstance(action, Barrier) and not (action.invalidations and state.cpus[number].issued)

    def _step(self, state: State, number: int) -> None:
        operation = self._test.threads[number][state.at[number]]
        text = f"thread {number}: {operation.text}"
        at = tuple(one + (index == number) for index, one in enumerate(state.at))
        moved = state._replace(at=at)
        match operation.action:
            case Load() | Store() as action:
                self._access(state, moved, number, action, text)
            case ReadEntry(slot, register):
                self._memory_of(state)
                value = self._lab.read_entry(number, slot)
                self._add(self._noted(moved, number, register, value), state, text)
            case WriteEntry() as action:
                self._add(self._written(state, moved, number, action), state, text)
            case Invalidate() as action:
                self._add(self._invalidated(state, moved, number, action), state, text)
            case Enter(space, flush):
                now = state.now + 1  # a space is left at the end of a period
                cpu = may.entered(
                    self._setting, state.cpus[number], self._spaces[space], now, flush=flush
                )  # fmt: skip
                self._add(self._changed(moved._replace(now=now), number, cpu), state, text)
            case Barrier() as action:
                cpus = may.after_barrier(self._setting, state.cpus, number, action, state.now)
                self._add(moved._replace(cpus=tuple(cpus)), state, text)
            case Interrupt(thread, work, early):
                self._add(
                    self._interrupted(moved, number, thread, may.Asked(number, work, early)), state, text
                )
            case Await():
                if not state.cpus[number].unanswered:
                    self._add(moved, state, text)

    def _memory_of(self, state: State) -> dict[Slot, may.History]:
        """Make the memory that of the state; its histories by entry."""
        histories = dict(zip(self._slots, state.histories, strict=True))
        self._lab.put({slot: history[-1][1] for slot, history in histories.items()}, state.data)
        return histories

    def _access(self, state: State, moved: State, number: int, action: Load | Store, text: str) -> None:
        histories = dict(zip(self._slots, state.histories, strict=True))
        page = self._pages.index(action.page)
        value = action.value if isinstance(action, Store) else None
        for choice in may.choices(self._setting, state.cpus[number], page, histories, state.now):
            if choice.stale and not self._takes(choice, write=value is not None):
                continue
            self._memory_of(state)
            got = self._lab.access(
                number, action.page, value, choice.by, stale=choice.stale, space=state.cpus[number].space
            )
            after = self._recorded(moved._replace(data=self._lab.data()), histories)
            result: int | str = FAULT if got is None else got if value is None else DONE
            after = self._noted(after, number, action.register, result)
            if got is None:
                cpu = may.faulted(self._setting, after.cpus[number], page, after.now)
                after = self._changed(after, number, cpu)
            how = " -> ".join(str(entry) for _, entry in choice.by[-1:])
            self._add(after, state, f"{text}, {'by a stale ' if choice.stale else 'by '}[{how}]: {result}")

    def _takes(self, choice: may.Choice, *, write: bool) -> bool:
        """Whether a CPU would stop at this stale translation rather than walk anew."""
        if self._test.manual is Manual.ARM:
            return True
        permits = choice.by.permits(user=True, write=write)
        # A store by a translation that is not dirty yet walks again, to set the flag (Intel SDM 3A 4.8).
        return (permits and (choice.by[-1][1].dirty or not write)) or (not permits and self._rules.weaker)

    def _recorded(self, state: State, histories: dict[Slot, may.History]) -> State:
        """With what the access has set in entries: accessed and dirty flags."""
        now, after = state.now, list(state.histories)
        for index, slot in enumerate(self._slots):
            entry = self._lab.entry(slot)
            if entry != histories[slot][-1][1]:
                now += 1
                after[index] = (*after[index], (now, entry))
        return state._replace(now=now, histories=tuple(after))

    def _noted(self, state: State, number: int, register: str, value: int | str | Entry) -> State:
        if not register:
            return state
        index = self._names[number, register]
        return state._replace(
            registers=(*state.registers[:index], value, *state.registers[index + 1 :])
        )  # fmt: skip

    def _changed(self, state: State, number: int, cpu: may.Cpu) -> State:
        return state._replace(cpus=(*state.cpus[:number], cpu, *state.cpus[number + 1 :]))

    def _written(self, state: State, moved: State, number: int, action: WriteEntry) -> State:
        self._memory_of(state)
        if action.register:
            moved = self._noted(moved, number, action.register, self._lab.read_entry(number, action.slot))
        self._lab.write_entry(number, action.slot, action.entry)
        index, now = self._slots.index(action.slot), state.now + 1
        history = (*state.histories[index], (now, self._lab.entry(action.slot)))
        moved = moved._replace(
            now=now, histories=(*state.histories[:index], history, *state.histories[index + 1 :])
        )
        if self._test.manual is not Manual.ARM:
            return moved
        cpu = state.cpus[number]
        return self._changed(moved, number, cpu._replace(pending=(*cpu.pending, (action.slot, now))))

    # ---- invalidations and interrupts

    def _invalidated(self, state: State, moved: State, number: int, action: Invalidate) -> State:
        self._memory_of(state)
        cpus = range(len(state.cpus)) if action.everywhere else (number,)
        self._lab.invalidate(list(cpus), action.page)
        cpu = state.cpus[number]
        if self._test.manual is Manual.ARM:
            return self._changed(moved, number, may.issued(self._setting, cpu, action, state.now))
        return self._changed(
            moved, number, may.invalidated(self._setting, cpu, action, state.now)
        )  # fmt: skip

    def _interrupted(self, state: State, number: int, thread: int, asked: may.Asked) -> State:
        sender = state.cpus[number]
        state = self._changed(state, number, sender._replace(unanswered=sender.unanswered + 1))
        target = state.cpus[thread]
        return self._changed(state, thread, target._replace(asked=(*target.asked, asked)))

    def _handle(self, state: State, number: int) -> None:
        """The first interrupt that a CPU was sent: it invalidates and acknowledges, in this order or not."""
        cpu = state.cpus[number]
        asked, *rest = cpu.asked
        text = f"cpu {number}: interrupt of thread {asked.sender}"
        if asked.early and not asked.acknowledged:
            later = (asked._replace(acknowledged=True), *rest)
            after = self._changed(state, number, cpu._replace(asked=later))
            self._add(self._acknowledged(after, asked.sender), state, f"{text}, acknowledged early")
            return
        self._memory_of(state)
        self._lab.invalidate([number], asked.work.page)
        if self._test.manual is Manual.ARM:
            # The handler is `tlbi; dsb`, entered and left by exceptions.
            cpu = may.issued(self._setting, cpu, asked.work, state.now)
            done = Barrier(stores=True, invalidations=True, context=True)
            cpus = [*state.cpus[:number], cpu, *state.cpus[number + 1 :]]
            cpu = may.after_barrier(self._setting, cpus, number, done, state.now)[number]  # fmt: skip
        else:
            cpu = may.invalidated(self._setting, cpu, asked.work, state.now)
        after = self._changed(state, number, cpu._replace(asked=tuple(rest)))
        if not asked.acknowledged:
            after = self._acknowledged(after, asked.sender)
        self._add(after, state, text)

    def _acknowledged(self, state: State, sender: int) -> State:
        cpu = state.cpus[sender]
        return self._changed(state, sender, cpu._replace(unanswered=cpu.unanswered - 1))
