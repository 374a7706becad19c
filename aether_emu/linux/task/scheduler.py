"""Who runs next: the outermost loop of a machine.

    first in line --> Entry.switch --> its call again, if it waited --> cpu.run --> why did it come back?
        |
        nobody in line: idle
            the host has brought something       wake who waits for it
            somebody waits until some time       advance the clock to the earliest deadline
            somebody waits for the host          `pause` a little, and look again
            else                                 Deadlock

Only this file idles, advances the clock for a wait, and finds deadlocks. (What events cost advances it too,
in `Kernel.charge`.) Tasks stand in a line (`run_queue`): the first runs, and goes to the end. A task that
waits is looked at when something happens to it, never on the way to another.

A turn is over after a number of blocks that is drawn from the seed's stream "scheduler", when another can
run: many are short, so that different seeds interleave tasks differently, few are long, so that switching
costs little. A task that runs alone has no turn, until the call that lets another run too. So one seed gives
one run, and what the host does meanwhile changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aether_emu.errors import EngineError
from aether_emu.linux.abi.signal import SIGKILL
from aether_emu.linux.entry import Entry
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.streams import StreamFile
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task import family
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.ksm import RUN
from aether_emu.linux.task.lines import Lines
from aether_emu.linux.task.lost_pages import lose_pages
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.robust import leave_locks
from aether_emu.linux.task.run_queue import RunQueue
from aether_emu.linux.task.scheduling import FIFO, NICE_0_WEIGHT, ORDINARY
from aether_emu.linux.task.sleepers import Sleepers
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.machine.cpu import ExitReason
from aether_emu.machine.memory.aperture import ApertureFile
from aether_emu.waiting import HostQueue

SHORT, CLASSES = 8, 8
LONGEST_TURN = SHORT << 2 * (CLASSES - 1)
"""Blocks that a task executes at most before another one that can run gets its turn: a turn has up to 8, or
up to 32, ... or up to this many, each class and each length in it equally likely."""
_CUT_ONE_IN, _DEEPEST_CUT = 4, 8
_BUDGET = ExitReason.BUDGET  # to look an Enum's member up takes 0.1 us
_LOOK_AGAIN = 1000  # turns after which those who wait for the host are asked for, though others run


class Interrupted(Exception):
    """The run was ended from outside (Ctrl-C, a timeout)."""


class Pause(Exception):
    """Carries out of the scheduler what a run returns that stops before the end: a `debugging.Stopped`."""

    def __init__(self, stopped: Any) -> None:
        super().__init__(str(stopped))
        self.stopped = stopped


def _may_speak(files: Files) -> bool:
    """Whether a writable standard stream is open."""
    return any(file.kind == StreamFile.kind and file.writable for file in files.open_files().values())


class Scheduler:
    """Runs tasks on the CPUs of `entries`. `entry` is that of the CPU that works.

    `pause` sleeps a little while only the host can bring something, and raises when the run is to end.
    `lost_pages` names the file pages that vanished under the guest since the last call.
    """

    def __init__(
        self,
        kernel: Kernel,
        entries: Sequence[Entry],
        *,
        pause: Callable[[], None],
        lost_pages: Callable[[], list[tuple[ApertureFile, int]]],
    ) -> None:
        self.kernel, self._entries, self.entry = kernel, entries, entries[0]
        self.first: Process | None = None
        self._pause, self._lost_pages = pause, lost_pages
        cpus = [each.cpu for each in entries]
        self._take_interrupt: Callable[[], bool] = cpus[0].take_interrupt
        if len(cpus) > 1:
            self._take_interrupt = lambda: any([cpu.take_interrupt() for cpu in cpus])
        self._tasks: dict[Task, None] = {}
        self._queue: RunQueue[Task, Process] | Lines[Task, Process] = kernel.run_queue
        self._lines = self._queue if isinstance(self._queue, Lines) else None
        self._line = self._queue if isinstance(self._queue, RunQueue) else self._queue.lines[0]
        self._sleepers = Sleepers(self._tasks)
        self._of_host: dict[Task, Wait] = {}  # who waits for the host, perhaps no longer
        self._chance = kernel.streams.stream("scheduler")
        self._turn_end: int | None = None  # the count of blocks at which the turn is over; None: never
        self._turns = 0
        self._cut_off: Task | None = None  # who ran when the last run had executed its blocks
        self.stopped: Task | None = None
        """Who ran when the last run was ended from outside: what is left of its turn comes first then."""
        self._speaker: Task | None = None  # who was last found to be left with the run's output

    @property
    def tasks(self) -> list[Task]:
        """The living ones, those that can run in the order in which they will."""
        return list(dict.fromkeys((*self._queue, *self._tasks)))

    @property
    def everybody(self) -> list[Task]:
        """The living ones, in the order in which they came."""
        return list(self._tasks)

    @property
    def sleepers(self) -> list[Task]:
        """Those that some time wakes, in the order in which it does."""
        return self._sleepers.in_order()

    def know(self, tasks: Sequence[Task]) -> None:
        """These come, in this order; `add` has one of them run."""
        self._tasks.update(dict.fromkeys(tasks))

    def let_sleep(self, tasks: Sequence[Task]) -> None:
        """Time wakes these, as `sleepers` told."""
        for task in tasks:
            if task.wait is not None and not task.wait.woken:
                self._note_wait(task, task.wait)

    def add(self, task: Task) -> None:
        """Run the task when its turn comes. The first one's process is the one that the run is about."""
        if self.first is None:
            self.first = task.process
        self._tasks[task] = None
        self._queue.add(task)

    def remove(self, task: Task) -> None:
        """Do not run it any more."""
        self._tasks.pop(task, None)
        self._queue.remove(task)

    def run(self, budget: int | None = None) -> bool:
        """Run until every task has ended (True), or for `budget` blocks (False).

        Raises Interrupted, Deadlock, EngineError, and what a listener raised.
        """
        kernel = self.kernel
        kernel.observers.running = True
        kernel.clock.begin()
        try:
            limit = None if budget is None else kernel.blocks + budget
            task, self._cut_off = self._cut_off, None
            if task is not None and self._is_alone(task) and self._go_on(task, limit, budget):
                self._cut_off = task
                return False
            return self._run(limit)
        finally:
            kernel.observers.running = False
            kernel.clock.rest()

    def _run(self, limit: int | None) -> bool:
        check, lines, take_interrupt = self.kernel.observers.check, self._lines, self._take_interrupt
        khugepaged, ksm, kswapd = self.kernel.khugepaged, self.kernel.ksm, self.kernel.kswapd
        while self.settle():
            check()
            if take_interrupt():
                raise Interrupted
            if khugepaged is not None and khugepaged.runs:
                khugepaged.look(self.kernel.time_now())
            if kswapd is not None and kswapd.due:
                kswapd.look()
            if ksm.run == RUN:
                ksm.look(self.kernel.time_now())
            task = self._next()
            if task is None:
                if not self._queue.news:  # a timer may have sent a signal
                    self._idle()
                continue
            if task is not self.kernel.accounted:
                self.kernel.account_to(task)
            if self._work(task, limit):
                check()
                self._cut_off = task
                if lines is not None:
                    self.come_to_rest()
                return False
        check()
        if lines is not None:
            self.kernel.clock.go_to(max(self.kernel.time_now(), *lines.times))
        return True

    def _is_alone(self, task: Task) -> bool:
        """Whether there is nothing to do before this one goes on in its program, for itself or another.

        The run before was cut off while it ran. Then the whole of `_run` would be spent to find that out.
        """
        kernel, first = self.kernel, self.first
        if self._queue.count != 1 or not task.in_line or self._queue.news or self._lines is not None:
            return False
        if self._sleepers.heap or self._of_host or kernel.timers.heap or self.stopped is not None:
            return False
        khugepaged, kswapd = kernel.khugepaged, kernel.kswapd
        if kernel.ksm.run == RUN or (khugepaged is not None and khugepaged.runs) or (kswapd and kswapd.due):
            return False
        if (
            first is None
            or first.ended is not None
            or first.registry.arrivals
            or task is not kernel.accounted
        ):
            return False
        if task.turn or task.cut or task.processor is not None or task.process.processor is not None:
            return False
        return task.can_go_on() and self.entry.goes_on(task)

    def _go_on(self, task: Task, limit: int | None, left: int | None) -> bool:
        """Give the CPU to one that is alone, whose turn only `limit` ends. Whether that was reached."""
        queue = self._line
        queue.take()
        try:
            reached = self._execute(task, limit, left, None)
        except BaseException:
            self._end_turn(task, ended=True)
            raise
        if reached and not queue.count:
            task.end_turn_of(preempted=True)
            queue.put_first(task)
        else:
            self._end_turn(task, ended=self.kernel.observers.ends)
        return reached

    def _work(self, task: Task, limit: int | None) -> bool:
        """Give a task the CPU for a turn. Whether `limit` was reached, which ends the run."""
        kernel, lines = self.kernel, self._lines
        if lines is not None:
            lines.working = True
        ended = True
        try:
            reached = self._let_run(task, limit)
            ended = kernel.observers.ends
        finally:
            if lines is not None:
                lines.working = False
                kernel.time_now()
            self._end_turn(task, ended=ended)
        return reached

    def _end_turn(self, task: Task, *, ended: bool) -> None:
        """A task has left the CPU; `ended`: because the run is ended."""
        task.end_turn_of(preempted=task.wait is None and not task.is_over and not ended)
        self._stand_back(task)
        self.stopped = task if ended else None

    def _let_run(self, task: Task, limit: int | None) -> bool:
        """Let a task go on until something ends that. Whether it was `limit`, a count of blocks."""
        lines = self._lines
        if not self.entry.goes_on(task):
            self.entry.switch(task)
            if task.wait is not None:
                self.entry.resume()
                if task.wait is not None or (lines is not None and lines.held[lines.at]):
                    return False
            self.entry.before_user()
            self.kernel.observers.check()
            if task.is_over or task.process.stop_signal:
                return False
        if lines is not None and lines.held[lines.at]:
            return False
        return self._turn(task, limit)

    def come_to_rest(self) -> None:
        """Between two runs of so many blocks: nothing is on its way.

        With several CPUs that goes for shootdowns too: who waits for one waits no longer. And TLBs are empty,
        as those of a machine that goes on from there: what a CPU may use after it was taken away is what it
        has used since.
        """
        self.settle()
        self.stopped = None
        if self._lines is not None:
            self.kernel.physical.tlb.settle()
            for cpu in self.kernel.cpus:
                cpu.flush_all()

    def resume(self) -> None:
        """A machine was restored: the CPU works that did."""
        if self._lines is not None:
            self._work_on(self._lines, self._lines.at)

    def settle(self) -> bool:
        """Take in tasks that are new, let go of those that have ended. Whether the run goes on."""
        if self.first is not None and self.first.ended is not None and not self._is_heard():
            self._end_all()
        registry = self.first.registry if self.first is not None else None
        if registry is not None and registry.arrivals:
            for arrived in registry.arrivals:
                assert isinstance(arrived, Task)
                self.know((arrived,))
                if arrived.wait is None:
                    self._queue.add(arrived)
            registry.arrivals.clear()
        news = self._queue.news
        while news:
            process = next(iter(news))
            del news[process]
            self._look_at(process)
        return bool(self._tasks)

    def _look_at(self, process: Process) -> None:
        """A signal or an end came to a process."""
        for task in list(process.tasks):
            assert isinstance(task, Task)
            if task not in self._tasks:
                continue
            if task.is_over:
                self._let_go(task)
            elif task.can_go_on():
                self._queue.add(task)

    def _let_go(self, task: Task) -> None:
        """A task has ended. With the last one of its process, that has too."""
        self.remove(task)
        task.set_scheduling(ORDINARY)
        leave_locks(task)
        task.leave_semaphores()
        if task.wait is not None:
            task.leave_queues()
            task.done_waiting()
        process = task.process
        process.disembody(task)
        if self.kernel.accounted is task:
            self.kernel.account_to(None)
        task.usage.hand_transfers(process.usage)
        if task.tid == process.pid:
            process.name_left = task.name
        if process.registry.tasks.get(task.tid) is task:
            del process.registry.tasks[task.tid]
        if task in process.tasks and len(process.tasks) > 1:
            process.tasks.remove(task)
            process.leave_files(task.files)
            if process.children:
                family.thread_ended(process, task)
            return
        self.kernel.observers.tell(self.kernel.observers.ended, process)
        if process.mm.users == 1 and process is not self.first:
            for entry in self._entries:
                entry.percpu.leave_space(process.mm)
        process.release()

    def _is_heard(self) -> bool:
        """Whether a process that is left may write to the run's output: then its end is waited for."""
        if self._speaker is not None and not self._speaker.is_over and _may_speak(self._speaker.files):
            return True
        self._speaker = next((task for task in self._tasks if _may_speak(task.files)), None)
        return self._speaker is not None

    def _end_all(self) -> None:
        """The first process has ended, and nobody listens to those that are left: they are killed."""
        for task in self._tasks:
            task.process.end(Ended(signal=SIGKILL, why="the end of the first process"))

    # ---- who is next

    def _next(self) -> Task | None:
        """The first in line that can go on, on the CPU that works next; None if all wait."""
        stopped, self.stopped = self.stopped, None
        if self._lines is not None:
            if stopped is not None and (stopped.turn or stopped.cut) and self._line.first is stopped:
                self.entry.percpu.goes_on = True
            else:
                self._change_cpu(self._lines)
        if self._sleepers.heap or self.kernel.timers.heap:
            first = self._line.first
            if first is None or not (first.turn or first.cut):
                self._wake_sleepers()
        if self._of_host:
            self._turns += 1
            if self._turns >= _LOOK_AGAIN:
                self._turns = 0
                self._ask_host()
        lines = self._lines
        while True:
            while (task := self._line.take()) is not None:
                if lines is not None and task.ready_at > self.kernel.clock.now_ns:
                    self.kernel.clock.go_to(task.ready_at)
                if not task.is_over and task.can_go_on():
                    return task  # the others are looked at when their process goes on, or ends
            if lines is None or not len(lines):
                return None
            self._change_cpu(lines)

    def _change_cpu(self, lines: Lines[Task, Process]) -> None:
        """Let the CPU work that is to work next."""
        lines.times[lines.at] = self.kernel.clock.now_ns
        tlb = self.kernel.physical.tlb
        if lines.holding:
            tlb.settle_idle()
            lines.grant()
        lines.balance()
        index = lines.earliest()
        if index is None and tlb.settle():  # who executes nothing more has not acknowledged
            lines.grant()
            index = lines.earliest()
        if index is None or index == lines.at:
            return
        self._work_on(lines, index)
        self.kernel.clock.go_to(lines.times[index])

    def _work_on(self, lines: Lines[Task, Process], index: int) -> None:
        lines.at, self._line, self.entry = index, lines.lines[index], self._entries[index]
        self.entry.work()

    def _wake_sleepers(self) -> None:
        """Who sleeps, and whose time has come, can go on.

        Time passes for one who sleeps while others run; alone, only by `_idle`.
        """
        deadline, timers = self._first_deadline(), self.kernel.timers
        if deadline is None:
            return
        now = self.kernel.time_now() if self._queue else self.kernel.clock.now_ns
        timers.fire(now)
        deadline = self._sleepers.first()
        while deadline is not None and deadline <= now:
            self._queue.add(self._sleepers.take())
            deadline = self._sleepers.first()

    def _first_deadline(self) -> int | None:
        """When the first who sleeps wakes, or the first timer is due, in virtual ns."""
        if not (self._sleepers.heap or self.kernel.timers.heap):
            return None
        sleeper, timer = self._sleepers.first(), self.kernel.timers.first()
        return timer if sleeper is None else sleeper if timer is None else min(sleeper, timer)

    def _stand_back(self, task: Task) -> None:
        """A task has left the CPU: it stands in line, or waits."""
        queue, wait, lines = self._line, task.wait, self._lines
        if lines is not None:
            task.ready_at = self.kernel.clock.now_ns
        if task.process.ended is not None:
            queue.look_at(task.process)
        elif task.ended:
            self._let_go(task)
        elif task.can_go_on():
            if lines is not None and not task.affinity >> task.home & 1:
                task.turn = task.cut = 0
                task.yields = False
                lines.add(task)
                return
            # Whether its CPU waits for others: for a shootdown, or a modelled lock.
            held = lines is not None and bool(lines.held[lines.at])
            goes_on = task.turn or task.cut or task.scheduling.policy == FIFO
            if held or (goes_on and not task.yields):
                queue.put_first(task)
            else:
                task.turn = task.cut = 0
                queue.add(task)
        elif wait is not None:
            task.turn = task.cut = 0
            self._note_wait(task, wait)
        task.yields = False

    def _note_wait(self, task: Task, wait: Wait) -> None:
        """A task begins to wait: who else than its queues must think of it?"""
        if wait.ends_by_time and wait.deadline is not None:
            self._sleepers.add(task, wait, wait.deadline)
        self.watch_host(task)

    def watch_host(self, task: Task) -> None:
        """Look for what the host brings to a task that waits, if it waits for that."""
        wait = task.wait
        if wait is not None and any(isinstance(queue, HostQueue) for queue in wait.queues):
            self._of_host[task] = wait

    # ---- turns

    def _length(self, task: Task) -> int:
        """How many blocks a turn of it has. Some end in the midst of a block, after so many instructions."""
        drawn = (
            self._chance.u64()
        )  # one number for all, whose parts are independent: bounds are powers of two
        task.cut = 0 if drawn % _CUT_ONE_IN else 1 + drawn // _CUT_ONE_IN % _DEEPEST_CUT
        drawn //= _CUT_ONE_IN * _DEEPEST_CUT
        length = 1 + drawn // CLASSES % (SHORT << 2 * (drawn % CLASSES))
        weight = task.scheduling.weight
        if weight == NICE_0_WEIGHT:
            return length
        heaviest = max(min(weight, NICE_0_WEIGHT), self._line.heaviest)
        return max(1, length * weight // heaviest)

    def _begun(self, task: Task) -> int | None:
        """How many blocks the turn has that begins now; None: as many as there are."""
        turn = self._length(task) if self._queue.count else None
        deadline, of_processor = self._first_deadline(), task.processor_time_left()
        if of_processor is not None:
            due = self.kernel.clock.now_ns + of_processor
            deadline = due if deadline is None else min(deadline, due)
        khugepaged = self.kernel.khugepaged
        if khugepaged is not None and khugepaged.runs:
            due = khugepaged.due
            deadline = due if deadline is None else min(deadline, due)
        if self.kernel.ksm.run == RUN:
            due = self.kernel.ksm.due
            deadline = due if deadline is None else min(deadline, due)
        if deadline is None:
            return turn
        until = self._blocks_to(deadline)
        return until if turn is None else min(turn, until)

    def _share(self) -> None:
        """Another task can run since a moment ago: who runs alone is in a turn from now on."""
        self._queue.came = None
        length = self._length(self.entry.task)
        end = self.entry.cpu.blocks + length
        if self._turn_end is None or end < self._turn_end:
            self._turn_end = end
            self.entry.cpu.limit(length)

    def _blocks_to(self, deadline: int) -> int:
        """How many blocks bring virtual time to a deadline, if nothing else costs time."""
        left, cost = deadline - self.kernel.clock.now_ns, self.kernel.clock.costs.block
        return max(1, min(LONGEST_TURN, -(-left // cost) if cost else LONGEST_TURN))

    def _turn(self, task: Task, limit: int | None) -> bool:
        """Enter the CPU for one turn, up to `limit` blocks in all. Whether that limit was reached."""
        left = None if limit is None else limit - self.kernel.blocks
        cut = 0 if task.turn else task.cut
        if not cut:
            return self._execute(task, limit, left, task.turn or self._begun(task))
        task.cut = 0
        self.entry.cpu.cut(cut)
        return self._execute(task, limit, left, 1, cut)

    def _execute(
        self, task: Task, limit: int | None, left: int | None, turn: int | None, cut: int = 0
    ) -> bool:
        """Enter the CPU for a turn of so many blocks, of which one is cut short; None: without an end."""
        cpu, queue = self.entry.cpu, self._queue
        start = cpu.blocks
        self._turn_end = None if turn is None else start + turn
        if not queue.count:
            queue.came = self._share
        if self._lines is None:
            self._line.told = cpu.stop
        budget = turn if left is None else left if turn is None else min(turn, left)
        try:
            ended = self.entry.run(budget)
        finally:
            queue.came = self._line.told = None
            stop = cpu.blocks
            task.turn = 0 if cut or self._turn_end is None else max(0, self._turn_end - stop)
        if ended.reason is _BUDGET:
            if left is not None and stop >= start + left:
                return True
            return bool(task.cut and not task.turn) and self._turn(task, limit)
        match ended.reason:
            case ExitReason.STOPPED:
                if cut and stop == start:  # in the midst of the block
                    task.cut = cpu.cut_left
            case ExitReason.INTERRUPTED:
                if cut and stop == start:
                    task.cut = cut
                raise Interrupted
            case ExitReason.BUS:  # an entry points at no memory: the engine does not say which
                self.entry.lost(cpu.pc)
            case ExitReason.STRAY:
                lose_pages(self.entry, self._lost_pages())
            case _:
                raise EngineError(f"at {cpu.pc:#x}: {ended.detail}")
        return False

    # ---- idling

    def _idle(self) -> None:
        """No task can run: let the host, or time, bring on what one of them waits for. Raises Deadlock."""
        if self._ask_host():
            return
        deadline = self._first_deadline()
        if deadline is not None:
            self.kernel.clock.idle_until(deadline)
        elif self._of_host:
            clock = self.kernel.clock
            before = clock.now_ns
            self._pause()
            clock.idle_ns += clock.now_ns - before  # time of the host, if that is the machine's
        elif freed := [task for task in self._tasks if task.can_go_on()]:
            for task in freed:  # somebody outside the run has changed what they wait for
                self._queue.add(task)
        elif self.first is not None and self.first.is_over:
            self._end_all()  # nothing can come of them
        else:
            raise Deadlock(self.tasks)

    def _ask_host(self) -> bool:
        """Wake who waits for something that the host has brought. Whether there was anything."""
        arrived = []
        for task, wait in list(self._of_host.items()):
            if task.wait is not wait or wait.woken or task not in self._tasks:
                del self._of_host[task]
                continue
            arrived += [queue for queue in wait.queues if isinstance(queue, HostQueue) and queue.arrived()]
        for queue in arrived:
            queue.wake()
        return bool(arrived)
