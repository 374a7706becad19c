"""Trials in processes of their own; the outcomes come in the order of the plans, whatever ends first.

    parent   --Job, then Plan-->   worker
             <--Outcome--                          or the error that says that nothing can be run

A worker that dies is replaced, and its trial tried once more; if that one dies too, its outcome is "lost".
One that says nothing for much longer than a trial may take is killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection

from aether_emu.errors import AetherError, EngineError
from aether_emu.explore.trial import Job, Outcome, Plan, perform
from aether_emu.workers import Heard, Worker

_AHEAD = 4  # trials for each worker that may be done before the first that is not
_PATIENCE = 20.0  # seconds beyond a trial's timeout, for a start under load


class _Worker(Worker):
    """One process, and what it is at."""

    ticket: int | None = None
    plan = Plan()
    tries = 0
    until = 0.0


class Crew:
    """Performs trials of `job` in `count` processes. `started` and `ended` hear their process IDs.

    `deaths` has a line for each worker that died.
    """

    def __init__(
        self, job: Job, count: int, started: Heard = lambda _pid: None, ended: Heard = lambda _pid: None
    ) -> None:
        self._job, self._count = job, count
        self._started, self._ended = started, ended
        self._workers: list[_Worker] = []
        self._tickets = 0
        self._done: dict[int, Outcome] = {}
        self.deaths: list[str] = []

    def perform(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Outcome]]:
        """Each plan with its outcome. Whoever stops asking leaves the rest. Raises as `trial.perform`."""
        source, order, given = iter(plans), list[int](), dict[int, Plan]()
        more = True
        while more or order:
            while more and len(order) < _AHEAD * self._count and (worker := self._free()) is not None:
                plan = next(source, None)
                if plan is None:
                    more = False
                    break
                self._tickets += 1
                order.append(self._tickets)
                given[self._tickets] = plan
                self._give(worker, self._tickets, plan, tries=1)
            if order and order[0] in self._done:
                ticket = order.pop(0)
                yield given.pop(ticket), self._done.pop(ticket)
            elif any(each.ticket is not None for each in self._workers):
                self._listen(order)  # perhaps to one that is still at what nobody waits for any more

    def close(self) -> None:
        """End all workers."""
        Worker.end(self._workers)

    # ---- processes

    def _free(self) -> _Worker | None:
        for worker in self._workers:
            if worker.ticket is None:
                return worker
        return self._start() if len(self._workers) < self._count else None

    def _start(self) -> _Worker:
        worker = _Worker(work, self._started, self._ended)
        self._workers.append(worker)
        worker.say(self._job)
        return worker

    def _give(self, worker: _Worker, ticket: int, plan: Plan, tries: int) -> None:
        worker.ticket, worker.plan, worker.tries = ticket, plan, tries
        worker.until = time.monotonic() + self._job.timeout + _PATIENCE
        worker.say(plan)

    def _listen(self, wanted: list[int]) -> None:
        busy = [each for each in self._workers if each.ticket is not None]
        soonest = min(each.until for each in busy)
        for worker in Worker.talking(busy, max(0.0, soonest - time.monotonic())):
            self._hear(worker, wanted)
        now = time.monotonic()
        for worker in busy:
            if worker.ticket is not None and worker.until < now:
                worker.process.kill()

    def _hear(self, worker: _Worker, wanted: list[int]) -> None:
        ticket = worker.ticket
        assert ticket is not None, "it is busy"
        try:
            said = worker.hear()
        except (EOFError, OSError):
            self._replace(worker, ticket, wanted)
            return
        worker.ticket = None
        if isinstance(said, AetherError):
            raise said
        if ticket in wanted:  # nobody waits for the others any more
            self._done[ticket] = said

    def _replace(self, worker: _Worker, ticket: int, wanted: list[int]) -> None:
        """A worker has died."""
        plan = worker.plan
        self._workers.remove(worker)
        status = worker.bury()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self.deaths.append(f"the worker of trial {plan.number} {how}")
        if ticket not in wanted:
            return
        if worker.tries > 1:
            self._done[ticket] = Outcome("lost", why=f"its process {how}, twice")
        else:
            self._give(self._start(), ticket, plan, tries=2)


def work(connection: Connection) -> None:
    """The worker's side: perform what comes, until nothing does."""
    job = connection.recv()
    while True:
        plan = connection.recv()
        try:
            said: Outcome | AetherError = perform(job, plan)
        except AetherError as error:
            said = error
        except Exception as error:  # a bug of ours: told as one, with the trial that shows it
            said = EngineError(f"trial {plan.number}: {type(error).__name__}: {error}")
        connection.send(said)
