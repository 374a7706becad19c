"""One task: a thread of a process, on a CPU or off it, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from aether_emu.clock import LAST_NS
from aether_emu.errors import shown
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.credentials import Credentials
from aether_emu.linux.files.files import Files
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.observers import SignalSeen
from aether_emu.linux.task.body import RUNNING, SLEEPS, SLEEPS_DEEPLY, Body
from aether_emu.linux.task.futex import FutexWait
from aether_emu.linux.task.process import NAME_MAX, Process
from aether_emu.linux.task.real_time import RealTimeWatch, watch_real_time
from aether_emu.linux.task.resource_limits import RLIMIT_MEMLOCK
from aether_emu.linux.task.scheduling import ORDINARY, Scheduling
from aether_emu.linux.task.sequences import Sequences
from aether_emu.linux.task.signals import TaskSignals
from aether_emu.linux.task.timers import ProcessorTimers
from aether_emu.linux.task.usage import Usage
from aether_emu.linux.task.wait import PageWait, Restart, Unfinished, Wait
from aether_emu.machine.cpu import Cpu, Saved, UserFault
from aether_emu.mm.space import AddressSpace
from aether_emu.waiting import HostQueue, WaitQueue

_OF_WAIT = ("what", "deadline", "progress", "interrupted", "restart", "pauses")


class Task:
    """A task. It is a member of its process from the moment it is made.

    On a CPU, the CPU has its registers; off it, `registers` has them (empty before it first ran). `wait`
    is None while it can run; with it, it stands in the queues of `wait` until one is woken. `call` is the
    system call in progress, (number, arguments), to be made again when the wait is over; None when it waits
    for a page: the instruction is made again then. `robust_list` is (head, length) as the program gave them.
    `set_child_tid` is where its number is to be written before its first instruction, `clear_child_tid` where
    it is to be cleared at its end; 0 is nowhere. `files` are its process's, but for a thread that unshared
    its descriptors, or where it stands. `ended` is set once it has ended, alone or with its process. `body`
    is what it is in the machine's memory.
    """

    def __init__(self, process: Process, tid: int | None = None, body: Body | None = None) -> None:
        self.process = process
        self.tid = process.pid if tid is None else tid
        self.body = Body(process.kernel.physical.slabs) if body is None else body
        self._name = process.program.path.rsplit(b"/", 1)[-1][:NAME_MAX]
        self.ended = False
        self.signals = TaskSignals(self)
        self._saved: Saved | None = None  # its state off the CPU, but for what `_changes` has
        self._changes: dict[str, int] = {}
        self.wait: Wait | None = None
        self.call: tuple[int, tuple[int, ...]] | None = None
        self.set_child_tid = self.clear_child_tid = 0
        self.robust_list = (0, 0)
        self.usage = Usage()
        self.waits = 0  # how often it gave up its CPU to wait
        self.wait_number = 0  # when its wait began: who waits longer has the lower one
        self.in_line = False  # whether it is in the run queue
        self.home = 0  # the CPU that it runs on, or ran on last
        self.affinity = (1 << len(process.kernel.cpus)) - 1  # those that it may run on, a bit each
        self._told_home = 0  # what `sequences` say of it
        self.ready_at = 0  # since when it stands in line, in virtual ns
        self.turn = 0  # blocks left of its turn while it does not run
        self.cut = 0  # instructions that the turn has beyond its last whole block
        self.scheduling = ORDINARY
        self.sequences: Sequences | None = None
        self.processor: ProcessorTimers | None = None  # once somebody set a timer by its time
        self.real_time: RealTimeWatch | None = None  # once RLIMIT_RTTIME concerns it
        self.left = False  # whether another has run since
        self.yields = False  # sched_yield(2): its turn is over
        self.undo: Undo | None = None  # what it did to semaphores, once somebody asks for it or shares it
        self._cpu: Cpu | None = None
        self._last_cpu: Cpu | None = None
        self._walk: Callable[[AddressSpace], None]
        self.files: Files = process.files
        self._credentials = process.credentials
        self.no_new_privileges = 0
        self.called = -1  # the number of the call that it makes, where somebody notes that; -1: none
        self.death_signal = 0  # what its process gets when the thread that made that ends
        process.tasks.append(self)
        process.registry.tasks[self.tid] = self
        process.embody(self)

    def __repr__(self) -> str:
        name = shown(self.name)
        state = f"waits for {self.wait.what}" if self.wait is not None else "can run"
        return f"<Task {self.tid} {name}: {state}>"

    @property
    def name(self) -> bytes:
        """What it is called."""
        return self._name

    @name.setter
    def name(self, name: bytes) -> None:
        self._name = name
        self.body.note(comm=name)

    # ---- on a CPU and off it

    @property
    def running(self) -> bool:
        """Whether a CPU has its registers."""
        return self._cpu is not None

    @property
    def working(self) -> bool:
        """Whether it is the one that executes, or whose call is made, now: on the CPU that works."""
        return self._cpu is not None and self.process.kernel.entry.task is self

    def is_on(self, cpu: Cpu) -> bool:
        """Whether that CPU has its registers."""
        return self._cpu is cpu

    @property
    def cpu(self) -> Cpu:
        """The CPU it is on, which every system call of it may ask for."""
        assert self._cpu is not None, f"task {self.tid} is on no CPU"
        return self._cpu

    def enter(self, cpu: Cpu, walk: Callable[[AddressSpace], None]) -> None:
        """Put it on `cpu`, which has its address space already; `walk` gives the CPU another."""
        self._cpu, self._walk = cpu, walk
        self.process.kernel.actor.credentials = self._credentials
        if self._saved is not None:
            cpu.restore(self._saved)
        if self._changes:
            cpu.load_registers(self._changes)
            self._changes = {}
        self.signals.arm()

    def leave(self) -> None:
        """Take it off its CPU."""
        cpu = self.cpu
        self._saved, self._last_cpu, self._cpu = cpu.save(self._saved), cpu, None
        self.left = True

    def begin_as(self, maker: Task, changes: dict[str, int]) -> None:
        """Begin where `maker` stands in its call, but for these registers."""
        self._saved, self._last_cpu, self._changes = maker.cpu.save(), maker.cpu, changes

    @property
    def registers(self) -> dict[str, int]:
        """What it has, off its CPU: by name, to be read and set."""
        if self._saved is not None:
            cpu = self._last_cpu
            assert cpu is not None, "some CPU saved it"
            present = cpu.save()
            cpu.restore(self._saved)
            self._saved, self._changes = None, cpu.registers() | self._changes
            cpu.restore(present)
        return self._changes

    @registers.setter
    def registers(self, values: dict[str, int]) -> None:
        self._saved, self._changes = None, values

    def move_to(self, space: AddressSpace) -> None:
        """Its process goes on in another address space. Not inside a callback of its CPU."""
        self.process.mm = space
        self.body.note(mm=space.object)
        self._walk(space)

    @property
    def credentials(self) -> Credentials:
        """Who it is."""
        return self._credentials

    @credentials.setter
    def credentials(self, who: Credentials) -> None:
        self._credentials = who
        self.body.note(uid=who.uid, gid=who.gid)
        if self._cpu is not None:
            self.process.kernel.actor.credentials = who
        if self.tid == self.process.pid:
            self.process.credentials = who
            self.process.limits.apply(RLIMIT_MEMLOCK)

    def become(self, who: Credentials) -> None:
        """Be somebody else from now on; what that lends is not for others of the user to look into."""
        if who.lends_rights(self._credentials):
            self.process.dumpable = self.death_signal = 0
        if who.uid != self._credentials.uid:
            self.process.registry.has_several_users = True
        self.credentials = who

    def may_inspect(self, process: Process, *, real: bool) -> bool:
        """Whether it may look into a process (ptrace(2), "ptrace access mode checking")."""
        dumpable = bool(process.dumpable)
        return process is self.process or self._credentials.may_inspect(
            process.credentials, dumpable=dumpable, real=real
        )

    @property
    def shares_descriptors(self) -> bool:
        """Whether another task has its table of descriptors."""
        return self.files.table.users > 1 or any(
            other is not self and other.files is self.files for other in self.process.tasks
        )

    def unshare_files(self, *, table: bool, standing: bool) -> None:
        """Have descriptors, or cwd, root and umask, that no other task has."""
        process, before = self.process, self.files
        shown = process.kernel.show(process)
        self.files = before.fork(shown, shares_table=not table, shares_standing=not standing)
        if self.tid == process.pid:
            process.files = self.files
        if all(each.files is not before for each in process.tasks):
            before.close_all()

    @property
    def user_end(self) -> int:
        """Where its address space ends."""
        return self.process.abi.user_end

    def abort_sequence(self) -> None:
        """It was interrupted: see `sequences`."""
        self.left = False
        if self.sequences is not None:
            self.sequences.abort(self)
        if self.sequences is not None and self._told_home != self.home:
            self.tell_home()

    def tell_home(self) -> None:
        """Its CPU's number stands where it has registered for restartable sequences."""
        assert self.sequences is not None, "it has registered"
        self._told_home = self.home
        try:
            self.sequences.tell_cpu(self.cpu, self.home)
        except UserFault:
            self.sequences.fail(self)

    def set_scheduling(self, wanted: Scheduling) -> None:
        """Share the CPU like that from its next turn on."""
        before, self.scheduling = self.scheduling, wanted
        watch_real_time(self)
        self.process.kernel.run_queue.reschedule(self, before)

    def set_affinity(self, allowed: int) -> None:
        """Run on these CPUs alone, a bit each, from its next turn on."""
        self.affinity = allowed
        if not allowed >> self.home & 1:
            queue = self.process.kernel.run_queue
            if self.in_line:
                queue.remove(self)
                queue.add(self)
            else:
                self.end_turn()

    def yield_cpu(self) -> None:
        """sched_yield(2): its turn is over, if another can run."""
        if self.process.kernel.run_queue.is_wanted:
            self.yields = True
            self.stop()

    def end_turn(self) -> None:
        """It has armed a timer: the next turn ends when that is due."""
        self.yields = True
        self.stop()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, alone or with its process."""
        return self.ended or self.process.ended is not None

    def stop(self) -> None:
        """Leave the CPU's run loop when its current callback returns; nothing if it is on none."""
        if self._cpu is not None:
            self._cpu.stop()

    def end(self) -> None:
        """It ends in its own call, and its process goes on."""
        self.clear_number()
        self.ended = True
        self.stop()

    def leave_semaphores(self) -> None:
        """It ends, or shares no longer what is taken back then (SEM_UNDO)."""
        undo, self.undo = self.undo, None
        if undo is not None:
            undo.leave(self.process.pid)

    def clear_number(self) -> None:
        """It ends: its number becomes 0 where others of its memory wait for that (CLONE_CHILD_CLEARTID)."""
        address, self.clear_child_tid = self.clear_child_tid, 0
        mm, futexes = self.process.mm, self.process.kernel.futexes
        if not address or (len(self.process.tasks) < 2 and mm.users < 2):
            return
        with suppress(UserFault):  # Linux tells nobody
            self.cpu.copy_to_user(address, bytes(4))
        queue = futexes.waiting(futexes.key(mm, address, private=False))
        for waiter in queue or ():
            waiter.wake()
            break

    def takes(self, info: SignalInfo, *, forced: bool, handler: int, fatal: bool) -> None:
        """It takes a signal: whoever listens is told, before anything changes."""
        observers = self.process.kernel.observers
        if observers.signal:
            observers.tell(observers.signal, SignalSeen(self, info, forced, handler, fatal))

    def end_turn_of(self, *, preempted: bool) -> None:
        """It has left its CPU, or goes on in another turn."""
        if preempted:
            self.usage.preemptions += 1
            self.process.usage.preemptions += 1
        if self.real_time is not None and (self.process.stop_signal or self._sleeps):
            self.real_time.has_slept()
        if self.process.processor is not None:
            self.process.processor.look()
        if self.processor is not None:
            self.processor.look()

    @property
    def _sleeps(self) -> bool:
        return self.wait is not None and not isinstance(self.wait, Unfinished)

    def used(self) -> Usage:
        """What it has used until now."""
        self.process.kernel.settle_books()
        return self.usage

    def processor_time_left(self) -> int | None:
        """ns of a processor's time until a timer that runs by its own, or by its process's, is due."""
        own, shared = self.processor, self.process.processor
        if own is None and shared is None:
            return None
        left = [each.left() for each in (own, shared) if each is not None]
        return min((each for each in left if each is not None), default=None)

    # ---- waiting

    def start_waiting(self, wait: Wait, call: tuple[int, tuple[int, ...]] | None) -> None:
        """Stand in the queues of `wait`; `call` is to be made again afterwards."""
        self.wait, self.call = wait, call
        wait.stopped_at = None
        if not isinstance(wait, Unfinished):
            self.waits += 1
            self.body.note(state=SLEEPS_DEEPLY if isinstance(wait, PageWait) else SLEEPS)
        self.begins_to_wait()
        for queue in wait.queues:
            queue.add(self)

    def begins_to_wait(self) -> None:
        """Who stands in a queue already has waited longer."""
        kernel = self.process.kernel
        kernel.waits_begun += 1
        self.wait_number = kernel.waits_begun

    def leave_queues(self) -> None:
        """The wait is over, for whatever reason."""
        assert self.wait is not None
        for queue in self.wait.queues:
            queue.remove(self)

    def wake(self) -> None:
        """See `waiting.Waiter`: a queue it stands in was woken."""
        assert self.wait is not None, f"task {self.tid} stands in a queue and does not wait"
        self.wait.woken = True
        self.leave_queues()
        self.body.note(state=RUNNING)
        self.process.kernel.run_queue.add(self)

    def done_waiting(self) -> None:
        """What it waited for is over and done with."""
        self.wait = self.call = None
        self.body.note(state=RUNNING)

    def can_go_on(self) -> bool:
        """Whether it is worth running it now."""
        if self.process.stop_signal:
            return False
        wait = self.wait
        if wait is None or wait.woken or wait.stopped_at is not None:
            return True
        if wait.ends_by_time and self.has_waited_until(wait.deadline):
            return True
        return wait.ends_by_signal and self.signals.interrupts()

    def hear(self, number: int) -> None:
        """A signal came to its process or a task of it: its call may wait for that."""
        if self.wait is not None and self.wait.signals >> number - 1 & 1 and not self.wait.woken:
            self.wake()

    @property
    def was_stopped(self) -> bool:
        """Whether its process was stopped while the call in progress waited."""
        return self.wait is not None and self.wait.stopped_at is not None

    @property
    def waits_on(self) -> bool:
        """Whether the call in progress is to be made again: a stop has ended some."""
        return not self.was_stopped or (self.wait is not None and self.wait.restart is not Restart.NEVER)

    def stop_waiting(self, now: int) -> None:
        """Its process is stopped: a call leaves its wait, as for any signal (Linux: signal_pending)."""
        wait = self.wait
        if wait is not None and wait.ends_by_signal and not wait.woken and wait.stopped_at is None:
            wait.stopped_at = now

    def go_on_waiting(self, now: int) -> None:
        """Its process goes on, and so does a timeout that stood still."""
        wait = self.wait
        if wait is not None and wait.pauses and wait.stopped_at is not None and wait.deadline is not None:
            wait.deadline, wait.stopped_at = wait.deadline + now - wait.stopped_at, now

    def signalled(self) -> None:
        """It may have a signal to take: one that waits may go on."""
        if self._cpu is None or self.wait is not None:
            self.process.kernel.run_queue.look_at(self.process)

    # ---- what calls ask

    def deadline(self, after: int | None) -> int | None:
        """When the call in progress gives up, in virtual ns: `after` ns from when it was first made.

        None is never, and so is whatever lies behind the end of time.
        """
        wait = self.wait
        if wait is not None and (wait.deadline is not None or not isinstance(wait, Unfinished)):
            return wait.deadline
        if after is None:
            return None
        until = self.process.kernel.clock.now_ns + after
        return until if until < LAST_NS else None

    def has_waited_until(self, deadline: int | None) -> bool:
        """Whether virtual time has come to `deadline`."""
        return deadline is not None and self.process.kernel.clock.now_ns >= deadline

    @property
    def progress(self) -> tuple[int, ...]:
        """What the call in progress had done when it last waited; empty the first time."""
        return self.wait.progress if self.wait is not None else ()

    def checkpoint(self, *progress: int) -> None:
        """For long calls: let the run end here if it is to end. The call is made again with `progress`."""
        if self.cpu.interrupted:
            raise Unfinished(*progress, deadline=None if self.wait is None else self.wait.deadline)

    # ---- state

    def capture(self) -> dict[str, Any]:
        """Everything about it. A wait is captured as the call that is to be made again."""
        in_page = isinstance(self.wait, PageWait) and not self.wait.woken  # of an access that is made again
        waits = self.wait is not None and (self.call is not None or in_page)
        return {
            "tid": self.tid,
            "name": self.name,
            "body": self.body.capture(),
            "credentials": self._credentials,
            "no_new_privileges": self.no_new_privileges,
            "death_signal": self.death_signal,
            "registers": dict(self.registers) if self._cpu is None else self._cpu.registers(),
            "signals": self.signals.capture(),
            "set_child_tid": self.set_child_tid,
            "clear_child_tid": self.clear_child_tid,
            "robust_list": self.robust_list,
            "usage": copy(self.usage),
            "scheduling": self.scheduling,
            "real_time": 0 if self.real_time is None else self.real_time.count,
            "sequences": self.sequences,
            "left": self.left,
            "place": (self.home, self.affinity, self.ready_at, self._told_home),
            "waits": self.waits,
            "turn": self.turn,
            "cut": self.cut,
            "call": self.call,
            "in_line": self.in_line,
            "wait": self._captured_wait(self.wait) if waits and self.wait else None,
        }

    def _captured_wait(self, wait: Wait) -> dict[str, Any]:
        """What the call that is made again needs, or the wait itself."""
        return {
            "what": wait.what,
            "deadline": wait.deadline,
            "progress": wait.progress,
            "goes_on": wait.woken,
            "interrupted": wait.interrupted,
            "restart": wait.restart,
            "pauses": wait.pauses,
            "stopped_at": wait.stopped_at,
            "number": self.wait_number,
            "at_host": any(isinstance(queue, HostQueue) for queue in wait.queues),
            "kept": self._kept_wait(wait),
            "page": isinstance(wait, PageWait) and not wait.woken,
            "answer": wait.answer,
        }

    def _kept_wait(self, wait: Wait) -> dict[str, Any] | None:
        """A wait that is captured as it is: what it waits for, or has got, a call made anew would not see."""
        kernel = self.process.kernel
        if isinstance(wait, FutexWait):
            return None if wait.woken else wait.capture(kernel.futexes)
        if kernel.posix_queues is not None:
            from aether_emu.linux.ipc import posix_capture  # noqa: PLC0415  # few programs use it

            kept = posix_capture.capture_wait(wait)
            if kept is not None:
                return kept
        if kernel.system_v is None:
            return None
        from aether_emu.linux.ipc.capture import capture_wait  # noqa: PLC0415  # few programs use it

        return capture_wait(wait)

    def restore(self, state: dict[str, Any], queues: Sequence[WaitQueue] = ()) -> None:
        """Take over what `capture` gave. A call in progress goes on to wait in `queues`.

        Without any it stands in none until its call is made again, unless it waits at a futex, by System V or
        at a message queue; who waits for the host makes it in his turn. So does who waits for a page in the
        program, and makes his access again.
        """
        self.body.restore(state["body"])
        self.name, self.registers = state["name"], dict(state["registers"])
        self.home, self.affinity = state["place"][:2]
        self.credentials, self.no_new_privileges = state["credentials"], state["no_new_privileges"]
        self.death_signal = state["death_signal"]
        self.set_child_tid = state["set_child_tid"]
        self.signals.restore(state["signals"])
        self.usage = copy(state["usage"])
        self.clear_child_tid, self.robust_list = state["clear_child_tid"], state["robust_list"]
        if state["real_time"]:  # made before `set_scheduling`, which would make one that counts anew
            self.real_time = RealTimeWatch(self, state["real_time"])
        self.set_scheduling(state["scheduling"])
        self.sequences = state["sequences"]
        self.waits, self.turn, self.cut = state["waits"], state["turn"], state["cut"]
        if state["wait"] is not None and (state["call"] is not None or queues):
            described = state["wait"]
            wait = self._restored_wait(described, queues)
            self.start_waiting(wait, state["call"])
            wait.stopped_at, self.waits = described["stopped_at"], state["waits"]
            makes_anew = described["at_host"] and not state["in_line"] and wait.stopped_at is None
            if described["goes_on"]:
                self.wake()
            elif makes_anew and not queues:
                self.waits -= 1  # it is counted when it waits anew
                self.wake()

    def restore_place(self, state: dict[str, Any]) -> None:
        """Be where it was, whatever others have brought it to since."""
        self.home, self.affinity, self.ready_at, self._told_home = state["place"]
        self.left = state["left"]

    def _restored_wait(self, state: dict[str, Any], queues: Sequence[WaitQueue]) -> Wait:
        kernel, kept = self.process.kernel, state["kept"]
        if kept is None:
            wait = Wait(queues, **{name: state[name] for name in _OF_WAIT})
            if state["page"] and queues:
                return PageWait(queues[0], wait)
            if state["answer"] is not None:
                wait.answer = state["answer"]
            return wait
        if kept["kind"] == "futex":
            return FutexWait.restored(kernel.futexes, kept)
        if kept["kind"].endswith("by priority"):
            from aether_emu.linux.ipc import posix_capture  # noqa: PLC0415  # few programs use it

            return posix_capture.restored_wait(kernel.with_posix_queues(), self, kept)
        from aether_emu.linux.ipc.capture import restored_wait  # noqa: PLC0415  # few programs use it

        return restored_wait(kernel.with_system_v(), self, self.undo, kept)
