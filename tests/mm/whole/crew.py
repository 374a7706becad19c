"""A machine whose guest workers are given orders, and what each of them comes to.

    crew = Crew(isa, folder, scenario, ram="8M", ...)      # `scenario` yields orders and is sent outcomes
    crew.run()                                             # until it waits for no more

The scenario is a generator: it yields a dict from workers to orders, which are all under way at the same
time, and gets a dict from workers to outcomes when all are done. It runs in the midst of the guest's last
call, so that flushes that others still owe are not hurried.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aether_emu.grants import Grants
from aether_emu.linux.handlers import Call
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import Process
from aether_emu.system import Machine
from tests.mm.whole.guest import BLOCK, CALL, CLONE, DATA, NO_ONE, SCRATCH, TELL, Order, Outcome, written
from tests.small_programs import streams

Orders = dict["Worker", Order]
Scenario = Generator[Orders, dict["Worker", Outcome], Any]
_CLONE_THREAD = 0x50F00  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM
_SIGCHLD = 17


@dataclass(eq=False)
class Worker:
    """A thread of the guest. `reads` and `writes` are the ends of the pipe that it sleeps on."""

    name: str
    block: int
    reads: int = NO_ONE
    writes: int = NO_ONE
    process: Process | None = None
    tid: int = 0

    @property
    def scratch(self) -> int:
        """Memory for what a call of this worker reads or writes besides."""
        return self.block + SCRATCH

    def __repr__(self) -> str:
        return self.name


class Crew:
    """Workers "a1" and "a2" are the threads of the first process, "b1" and "b2" of its child."""

    def __init__(self, isa: str, folder: Path, **options: Any) -> None:
        self.isa = isa
        self.machine = Machine(isa, **options)
        self.numbers = {name: number for number, name in self.machine.abi.system_calls.items()}
        self.workers = {name: Worker(name, DATA) for name in ("a1", "a2", "b1", "b2")}
        path = written(folder, isa)
        self.machine.load(path, ["worker"], grants=Grants(cwd=folder), streams=streams())
        self.machine.on_system_call(self._told, [TELL])
        first = self.workers["a1"]
        first.process, first.tid = self.machine.process, self._tids()[0]
        self._by_tid = {first.tid: first}
        self._under_way: list[Worker] = [first]
        self._expected: list[Worker] = []
        self._outcomes: dict[Worker, Outcome] = {}
        self._scenario: Scenario | None = None
        self._begun = False
        self._stopped: Worker | None = None

    def _tids(self) -> list[int]:
        return [task.tid for task in self.machine.scheduler.tasks]

    # ---- running

    def run(self, scenario: Scenario, timeout: float = 600) -> Ended | None:
        """Have the orders of a scenario carried out; how the program ended, if it did."""
        self._scenario, self._begun, teller = scenario, False, self._stopped
        if teller is not None:
            self._stopped = None
            self._next(teller)
            if self._stopped is not None:
                return None
        ended = self.machine.run(timeout)
        return ended if isinstance(ended, Ended) else None

    def _told(self, call: Call) -> int:
        """A worker has done what it was to do, or is new."""
        worker = self._by_tid.get(call.task.tid)
        if worker is None:
            worker = self._expected.pop(0)
            worker.process, worker.tid = call.process, call.task.tid
            self._by_tid[worker.tid] = worker
        result, signal, code = (value - (value >> 63 << 64) for value in call.arguments[:3])
        self._under_way.remove(worker)
        self._outcomes[worker] = Outcome(result, signal, code, call.arguments[3])
        if self._under_way:
            self._write(worker, 72, struct.pack("<3q", NO_ONE, NO_ONE, worker.reads))
        else:
            self._next(worker)
        return 0

    def _next(self, teller: Worker) -> None:
        """Give out the next orders; `teller` wakes the others."""
        assert self._scenario is not None
        outcomes, self._outcomes = self._outcomes, {}
        begun, self._begun = self._begun, True
        try:
            orders = self._scenario.send(outcomes) if begun else next(self._scenario)
        except StopIteration:
            self._stopped = teller
            if self.machine.observers.running:
                self.machine.stop()
            return
        last = self.numbers["exit_group"]
        self._under_way = [each for each in orders if orders[each].number != last] + self._expected
        for worker, order in orders.items():
            self._write(worker, 0, order.packed())
        others = [worker.writes for worker in orders if worker is not teller]
        assert len(others) <= 2
        wakes = (others + [NO_ONE] * 2)[:2]
        self._write(teller, 72, struct.pack("<3q", *wakes, NO_ONE if teller in orders else teller.reads))

    def _write(self, worker: Worker, at: int, data: bytes) -> None:
        assert worker.process is not None
        worker.process.write(worker.block + at, data)

    # ---- orders

    def call(self, name: str, *arguments: int) -> Order:
        """A system call by its name."""
        return Order(CALL, arguments, self.numbers[name])

    def thread(self, creator: Worker, worker: Worker) -> Order:
        """A new thread beside the `creator`, to be called `worker`."""
        worker.block = next(block for block in (DATA, DATA + BLOCK) if block != creator.block)
        self._expected.append(worker)
        arguments = (_CLONE_THREAD, worker.block + BLOCK - 16, 0, 0, 0)
        return Order(CLONE, arguments, self.numbers["clone"], worker.block)

    def fork(self, parent: Worker, worker: Worker) -> Order:
        """A fork, to be called `worker`, which goes on with the memory of its parent."""
        worker.block = parent.block
        self._expected.append(worker)
        return Order(CLONE, (_SIGCHLD, 0, 0, 0, 0), self.numbers["clone"], parent.block)

    def forget(self, workers: Iterable[Worker]) -> None:
        """They are gone."""
        for worker in workers:
            self._by_tid.pop(worker.tid, None)
            worker.process, worker.tid = None, 0

    def born(self) -> None:
        """A new worker has come, or could not: nobody is expected any more."""
        self._expected.clear()
