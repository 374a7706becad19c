"""Tasks one after the other, or in processes of their own; the outcomes come in the order of the tasks.

Whoever is interrupted finds in `outcomes` what is complete, and in `under_way` how far the others are.

    parent   --task-->     worker
             <--Progress--   after each chunk
             <--Outcome--    or the error            then it is given the next task
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from aether_emu.errors import AetherError, EngineError
from aether_emu.verify.cases.suites import Outcome, Task, nothing_yet, perform
from aether_emu.workers import Heard, Worker


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is."""

    cases: int
    set_aside: int
    different: int


class InTurn:
    """Performs `tasks` in this process. `hear` is told how many cases were done."""

    def __init__(self, tasks: Sequence[Task], hear: Callable[[Task, int], None]) -> None:
        self._tasks, self._hear = list(tasks), hear
        self.outcomes: dict[Task, Outcome] = {}
        self.under_way: dict[Task, Outcome] = {}

    def perform(self) -> Iterator[Outcome]:
        """The outcomes. Raises EngineError."""
        for task in self._tasks:
            outcome = self.under_way[task] = nothing_yet(task)
            perform(task, partial(self._hear, task), outcome)
            self.outcomes[task] = self.under_way.pop(task)
            yield outcome


class Workers:
    """Performs `tasks` in `count` processes. `started` and `ended` hear their process IDs."""

    def __init__(
        self,
        tasks: Sequence[Task],
        count: int,
        started: Heard = lambda _: None,
        ended: Heard = lambda _: None,
    ) -> None:
        self._tasks, self._count = list(tasks), min(count, len(tasks))
        self._started, self._ended = started, ended
        self._waiting = list(tasks)
        self._workers: list[Worker] = []
        self._busy: dict[Worker, Task] = {}
        self.outcomes: dict[Task, Outcome] = {}
        self.under_way: dict[Task, Outcome] = {}

    def perform(self) -> Iterator[Outcome]:
        """The outcomes. However this ends, no worker is left. Raises what a task raised, EngineError."""
        try:
            for _ in range(self._count):
                self._workers.append(Worker(work, self._started, self._ended))
                self._give(self._workers[-1])
            for task in self._tasks:
                while task not in self.outcomes:
                    for worker in Worker.talking(self._busy):
                        self._hear(worker)
                yield self.outcomes[task]
        finally:
            Worker.end(self._workers)

    def _give(self, worker: Worker) -> None:
        """Let a worker do the next task, if there is one."""
        if self._waiting:
            task = self._busy[worker] = self._waiting.pop(0)
            self.under_way[task] = nothing_yet(task)
            worker.say(task)

    def _hear(self, worker: Worker) -> None:
        task = self._busy[worker]
        try:
            said = worker.hear()
        except (EOFError, OSError):
            status = worker.process.wait()
            raise EngineError(
                f"the worker for {task.format} {task.suite} ended with status {status}"
            ) from None
        if isinstance(said, Progress):
            tally = self.under_way[task].tally
            tally.cases, tally.set_aside, tally.different = said.cases, said.set_aside, said.different
            return
        if isinstance(said, Exception):
            raise said
        del self._busy[worker], self.under_way[task]
        self.outcomes[task] = said
        self._give(worker)


def work(connection: Connection) -> None:
    """The worker's side: perform the tasks that come, until there are no more."""
    while True:
        task = connection.recv()
        outcome = nothing_yet(task)

        def tell(_done: int, outcome: Outcome = outcome) -> None:
            tally = outcome.tally
            connection.send(Progress(tally.cases, tally.set_aside, tally.different))

        try:
            said: Outcome | AetherError = perform(task, tell, outcome)
        except AetherError as error:
            said = error
        connection.send(said)
