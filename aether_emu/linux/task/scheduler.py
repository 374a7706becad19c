"""Who runs next: the outermost loop of a machine.

    next task --> Entry.switch --> its call again, if it waited --> cpu.run --> why did it come back?
        |
        no task can run: idle
            the host has brought something       wake who waits for it
            somebody waits until some time       advance the clock to the earliest deadline
            somebody waits for the host          `pause` a little, and look again
            else                                 Deadlock

Only this file idles, advances the clock for a wait, and finds deadlocks. (What events cost advances it too,
in `Kernel.charge`.) Tasks stand in a line: the first that can go on runs, and goes to the end. So one seed
gives one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aether_emu.errors import AetherError, EngineError
from aether_emu.linux.abi.signal import SIGKILL
from aether_emu.linux.entry import Entry
from aether_emu.linux.files.streams import StreamFile
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.process import Ended, Process
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import ExitReason
from aether_emu.machine.memory.aperture import ApertureFile, BackingFailed, BeyondEnd
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import lowest_address
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.waiting import HostQueue

TURN = 10_000
"""Blocks that a task executes before another one that can run gets its turn."""


class Interrupted(Exception):
    """The run was ended from outside (Ctrl-C, a timeout)."""


class Deadlock(AetherError):
    """Every task waits for something that nobody can bring about. `waiting` are the tasks."""

    def __init__(self, waiting: Sequence[Task]) -> None:
        self.waiting = tuple(waiting)
        whats = [task.wait.what for task in waiting if task.wait is not None]
        if len(whats) == 1:
            super().__init__(f"deadlock: the program waits for {whats[0]}, and nothing can end the wait")
            return
        each = (
            f"task {task.tid} ({task.name.decode('utf-8', 'backslashreplace')}) waits for {what}"
            for task, what in zip(waiting, whats, strict=True)
        )
        super().__init__(f"deadlock: {', '.join(each)}, and nothing can end that")


class Scheduler:
    """Runs tasks on one CPU.

    `tasks` are the living ones, the next to be asked first. `pause` sleeps a little while only the host can
    bring something, and raises when the run is to end. `lost_pages` names the file pages that vanished under
    the guest since the last call.
    """

    def __init__(
        self,
        kernel: Kernel,
        entry: Entry,
        *,
        pause: Callable[[], None],
        lost_pages: Callable[[], list[tuple[ApertureFile, int]]],
    ) -> None:
        self.kernel, self.entry = kernel, entry
        self.tasks: list[Task] = []
        self.first: Process | None = None
        self._pause, self._lost_pages = pause, lost_pages

    def add(self, task: Task) -> None:
        """Run the task when its turn comes. The first one's process is the one that the run is about."""
        if self.first is None:
            self.first = task.process
        self.tasks.append(task)

    def run(self, budget: int | None = None) -> bool:
        """Run until every task has ended (True), or for `budget` blocks (False).

        Raises Interrupted, Deadlock, EngineError, and what a listener raised.
        """
        observers = self.kernel.observers
        observers.running = True
        try:
            return self._run(budget)
        finally:
            observers.running = False

    def _run(self, budget: int | None) -> bool:
        cpu, check = self.entry.cpu, self.kernel.observers.check
        limit = None if budget is None else cpu.blocks + budget
        while self.settle():
            check()
            if cpu.take_interrupt():
                raise Interrupted
            task = self._next()
            if task is None:
                self._idle()
                continue
            self.entry.switch(task)
            if task.wait is not None:
                self.entry.resume()
                if task.wait is not None:
                    continue
            self.entry.before_user()
            check()
            if not task.is_over and not task.process.stop_signal and self._turn(limit):
                check()
                return False
        check()
        return True

    def settle(self) -> bool:
        """Take in tasks that are new, let go of those that have ended. Whether the run goes on."""
        if self.first is not None and self.first.is_over and not self._is_heard():
            self._end_all()
        registry = self.first.registry if self.first is not None else None
        if registry is not None and registry.arrivals:
            for arrived in registry.arrivals:
                assert isinstance(arrived, Task)
                self.tasks.append(arrived)
            registry.arrivals.clear()
        for task in [task for task in self.tasks if task.is_over]:
            self._let_go(task)
        return bool(self.tasks)

    def _let_go(self, task: Task) -> None:
        """A task has ended. With the last one of its process, that has too."""
        self.tasks.remove(task)
        if task.wait is not None:
            task.leave_queues()
            task.done_waiting()
        process = task.process
        process.registry.tasks.pop(task.tid, None)
        if task in process.tasks and len(process.tasks) > 1:
            process.tasks.remove(task)
            return
        self.kernel.observers.tell(self.kernel.observers.ended, process)
        if process.mm.users == 1 and process is not self.first:
            self.entry.percpu.leave_space(process.mm)
        process.release()

    def _is_heard(self) -> bool:
        """Whether a process that is left may write to the run's output: then its end is waited for."""
        return any(
            isinstance(file, StreamFile) and file.writable
            for task in self.tasks
            for file in task.process.files.open_files().values()
        )

    def _end_all(self) -> None:
        """The first process has ended, and nobody listens to those that are left: they are killed."""
        for task in self.tasks:
            task.process.end(Ended(signal=SIGKILL, why="the end of the first process"))

    def _next(self) -> Task | None:
        """The next task that can go on, which goes to the end of the line; None if all wait."""
        now = self._now()
        for task in self.tasks:
            if task.can_go_on(now):
                self.tasks.remove(task)
                self.tasks.append(task)
                return task
        return None

    def _now(self) -> int:
        """Virtual time in ns. It passes for one who sleeps while others run; alone, only by `_idle`."""
        if any(task.wait is None for task in self.tasks) and any(
            task.wait is not None and task.wait.deadline is not None for task in self.tasks
        ):
            return self.kernel.observe_time()
        return self.kernel.clock.now_ns

    def _turn(self, limit: int | None) -> bool:
        """Enter the CPU for one turn, up to `limit` blocks in all. Whether that limit was reached."""
        cpu = self.entry.cpu
        turn = None if limit is None else limit - cpu.blocks
        if len(self.tasks) > 1:
            turn = TURN if turn is None else min(turn, TURN)
        ended = self.entry.run(turn)
        match ended.reason:
            case ExitReason.STOPPED:
                pass
            case ExitReason.BUDGET:
                return limit is not None and cpu.blocks >= limit
            case ExitReason.INTERRUPTED:
                raise Interrupted
            case ExitReason.BUS:  # an entry points at no memory: the engine does not say which
                self.entry.lost(cpu.pc)
            case ExitReason.STRAY:
                self._lose_pages()
            case _:
                raise EngineError(f"at {cpu.pc:#x}: {ended.detail}")
        return False

    # ---- idling

    def _idle(self) -> None:
        """No task can run: let the host, or time, bring on what one of them waits for. Raises Deadlock."""
        waits = [task.wait for task in self.tasks if task.wait is not None]
        of_host = [queue for wait in waits for queue in wait.queues if isinstance(queue, HostQueue)]
        arrived = [queue for queue in of_host if queue.arrived()]
        deadlines = [wait.deadline for wait in waits if wait.ends_by_time and wait.deadline is not None]
        if arrived:
            for queue in arrived:
                queue.wake()
        elif deadlines:
            self.kernel.clock.idle_until(min(deadlines))
        elif of_host:
            self._pause()
        elif self.first is not None and self.first.is_over:
            self._end_all()  # nothing can come of them
        else:
            raise Deadlock(self.tasks)

    # ---- files that shrink under the guest

    def _lose_pages(self) -> None:
        """Pages of files that the host took away under the guest: unmap them, SIGBUS for those that are gone.

        A page that is larger than the host's may have lost a part only. It goes on from there, with zeros.
        """
        files = self.kernel.file_backings
        for file, page in self._lost_pages():
            backing = files.showing(file)
            if backing is None:
                continue
            try:
                files.unmap_pages(backing, page, 1)
            except TableDamaged as error:
                self.entry.damaged(error.damaged)
                return
            try:
                backing.frames(page, 1, write=False)
                continue
            except (BeyondEnd, BackingFailed):
                pass
            space = self.entry.task.process.mm
            address = lowest_address(backing, page, space)
            area = None if address is None else space.areas.find(address)
            if address is None or area is None:
                continue
            if area.protection & Protection.EXECUTE:
                # Perhaps it was only translated, ahead of its turn: forget that, its fault comes in time.
                self.kernel.physical.code.flush()
            else:
                self.entry.lost(address)
