"""Tasks one after the other, or in processes of their own; the outcomes come in the order of the tasks.

Whoever is interrupted finds in `outcomes` what is complete, and in `under_way` how far the others are.

    parent   --task-->     worker                    engines do not fork: each worker is a new Python
             <--Progress--   after each chunk
             <--Outcome--    or the error            then it is given the next task

A worker stands outside the terminal's foreground, so that Ctrl-C is the parent's alone; it ends when the
parent closes the pipe, and with the first thing it says to a parent that has gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

from aether_emu.errors import AetherError, EngineError
from aether_emu.verify.cases.suites import Outcome, Task, nothing_yet, perform

_CODE = "import sys; from aether_emu.verify.cases.workers import work; work(int(sys.argv[1]))"


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
        started: Callable[[int], None] = lambda _pid: None,
        ended: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        self._tasks, self._count = list(tasks), min(count, len(tasks))
        self._started, self._ended = started, ended
        self._waiting = list(tasks)
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self._busy: dict[Connection, Task] = {}
        self.outcomes: dict[Task, Outcome] = {}
        self.under_way: dict[Task, Outcome] = {}

    def perform(self) -> Iterator[Outcome]:
        """The outcomes. However this ends, no worker is left. Raises what a task raised, EngineError."""
        try:
            for _ in range(self._count):
                self._give(self._start())
            for task in self._tasks:
                while task not in self.outcomes:
                    for connection in wait(list(self._busy)):
                        assert isinstance(connection, Connection)
                        self._hear(connection)
                yield self.outcomes[task]
        finally:
            self._kill()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            connection = Connection(ours.detach())
            paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,
            )
        self._processes[connection] = process
        self._started(process.pid)
        return connection

    def _give(self, connection: Connection) -> None:
        """Let a worker do the next task, if there is one."""
        if self._waiting:
            task = self._busy[connection] = self._waiting.pop(0)
            self.under_way[task] = nothing_yet(task)
            with contextlib.suppress(BrokenPipeError):  # it has died: _hear() finds out, and says so
                connection.send(task)

    def _hear(self, connection: Connection) -> None:
        task = self._busy[connection]
        try:
            said = connection.recv()
        except (EOFError, OSError):
            status = self._processes[connection].wait()
            raise EngineError(
                f"the worker for {task.format} {task.suite} ended with status {status}"
            ) from None
        if isinstance(said, Progress):
            tally = self.under_way[task].tally
            tally.cases, tally.set_aside, tally.different = said.cases, said.set_aside, said.different
            return
        if isinstance(said, Exception):
            raise said
        del self._busy[connection], self.under_way[task]
        self.outcomes[task] = said
        self._give(connection)

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        for connection, process in self._processes.items():
            process.wait()
            connection.close()
            self._ended(process.pid)
        self._processes.clear()


def work(fd: int) -> None:
    """The worker's side: perform the tasks that come by descriptor `fd`, until there are no more."""
    connection = Connection(fd)
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
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
