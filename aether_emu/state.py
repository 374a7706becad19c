"""The whole state of a machine between two runs, as plain data, and a machine made of it again.

    snapshot = capture(machine)             # after machine.run_for(...) came back with None
    other = restore(snapshot, grants=..., streams=...)
    other.run()                             # goes on as the first would have

A snapshot holds every page of RAM that is not zero (page tables included), the frame table, the
allocator, areas, registers, files, signals, clock and chance. It holds no host memory and no file
contents: files are opened again by their guest paths, through the grants given to `restore`. Only what is
in the machine's own memory is held with its contents: memory files, /tmp and /dev/shm.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from aether_emu.config import Config
from aether_emu.errors import AetherError, Refused
from aether_emu.grants import Grants, checked_grants, complete_streams
from aether_emu.linux.calls import notices, user_faults
from aether_emu.linux.files import capture as files_capture
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.capture import Restored
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.huge_file import HugeFile, restored_contents
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.files.memory_file import Memory, MemoryFile
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.streams import Stream
from aether_emu.linux.files.user_faults import UserFaultFile
from aether_emu.linux.ipc import capture as ipc_capture
from aether_emu.linux.ipc import posix_capture
from aether_emu.linux.ipc.queue_file import QueueFile
from aether_emu.linux.ipc.segments import Segment
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.mappable import file_backing
from aether_emu.linux.proc.guard import guard
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task import places
from aether_emu.linux.task.owners import tell_owner
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import PageWait, Wait
from aether_emu.machine.memory.aperture import ApertureState
from aether_emu.mm import capture as space_capture
from aether_emu.mm.hugetlb import restored_memory
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.objects.special import SpecialMapping
from aether_emu.mm.space import AddressSpace
from aether_emu.system import Machine
from aether_emu.waiting import WaitQueue

State = dict[Any, Any]
T = TypeVar("T")


class StateError(AetherError):
    """The machine cannot be captured now, or the snapshot does not fit what is there."""


def capture(machine: Machine) -> State:
    """Everything about a loaded machine that is not running.

    Raises StateError, CaptureError, ClosedError; also for a mapped file that `restore` could not find again.
    """
    if not isinstance(machine, Machine):
        raise StateError(f"{machine!r} is no Machine: only the state of one can be captured")
    machine.kernel.require_open()
    if machine.observers.running:
        raise StateError("the machine runs: capture it when the run has returned, as stop() in it does")
    process = machine.process
    if process is None or process.ended is not None:
        raise StateError("there is no living process to capture")
    if machine.config.locks != "none":
        raise StateError("a machine whose locks are modelled can't be captured")
    swap = machine.physical.swap
    for part in () if swap is None else swap.parts[1:]:
        raise StateError(f"{part.name} is a swap file of a program: its machine can't be captured")
    machine.scheduler.come_to_rest()
    machine.kernel.settle_books()
    _let_go_of_lost_files(machine, process)
    # These are lost while the registers of others are looked at.
    reservations = [cpu.reservation() for cpu in machine.computer.cpus]
    try:
        return {**_captured(machine, process), "reservations": reservations}
    finally:
        for cpu, reservation in zip(machine.computer.cpus, reservations, strict=True):
            cpu.reserve(reservation)


def _let_go_of_lost_files(machine: Machine, process: Process) -> None:
    """What the page cache keeps of files that no area shows has to be found again: the rest goes."""
    cache = machine.physical.cache
    for file in [] if cache is None else list(cache.unused.values()):
        assert cache is not None and isinstance(file, FileBacking), "it keeps such"
        try:
            with machine.kernel.actor.as_root():
                _opened(process, file.capture(), lambda _file: None)
        except StateError:
            cache.end(file)


def _unused_files(machine: Machine) -> list[FileBacking]:
    """Those that only the page cache knows."""
    cache = machine.physical.cache
    kept = [] if cache is None else list(cache.unused.values())
    return [file for file in kept if isinstance(file, FileBacking)]


def _captured(machine: Machine, process: Process) -> State:
    physical, kernel, registry = machine.physical, machine.kernel, process.registry
    processes = list(registry.processes.values())
    living = [each for each in processes if not each.released]
    spaces = {each.mm.number: each.mm for each in living}
    tasks = machine.scheduler.everybody
    undos = list(dict.fromkeys(task.undo for task in tasks if task.undo is not None))
    files = list(dict.fromkeys((*(each.files for each in living), *(task.files for task in tasks))))
    kinds = Wait, PageWait
    waits = [(task, task.wait) for task in tasks if task.wait is not None and type(task.wait) in kinds]
    waited = [(task, queue) for task, wait in waits if not wait.woken for queue in wait.queues]
    unused = _unused_files(machine)
    backings = [*_backings_of(spaces.values()), *unused]
    devices = [] if machine.board is None else list(machine.board.memories().values())
    memories = [MemoryFile(one, fl.O_RDWR) for one in map(_memory_of, backings) if one is not None]
    try:
        with kernel.actor.as_root():
            captured_files = files_capture.capture(files, memories, [queue for _, queue in waited])
            described = [_describe_backing(process, backing, devices) for backing in backings]
    finally:
        for memory in memories:
            memory.release()
    return {
        "arch": machine.abi.isa,
        "format": machine.format.name,
        "config": machine.config,
        "ram": machine.ram.save(),
        "frames": machine.frames.capture(),
        "buddy": machine.buddy.capture(),
        "aperture": machine.aperture.save(),
        "physical": physical.capture(),
        "tags": None if physical.tags is None else physical.tags.capture(),
        "tlb": physical.tlb.capture(),
        "blocks": [cpu.blocks_state() for cpu in machine.computer.cpus],
        "cpus": places.capture_cpus(machine.entries, machine.scheduler),
        "clock": machine.clock.capture(),
        "streams": machine.streams.capture(),
        "kernel": kernel.capture(),
        "backings": described,
        "unused_files": [file.number for file in unused],
        "spaces": [space_capture.capture(space) for space in spaces.values()],
        "processes": [each.capture() for each in processes],
        "space_of": {each.pid: each.mm.number for each in living},
        "files_of": {each.pid: files.index(each.files) for each in living},
        "numbers": (registry.last, registry.vdso),
        "files_of_tasks": {task.tid: files.index(task.files) for task in tasks},
        "tasks": [(task.process.pid, task.capture()) for task in machine.scheduler.everybody],
        "sleepers": [task.tid for task in machine.scheduler.sleepers],
        "lines": places.capture_lines(kernel),
        "undos": {task.tid: undos.index(task.undo) for task in tasks if task.undo is not None},
        "system_v": None if kernel.system_v is None else ipc_capture.capture(kernel.system_v, undos),
        "posix_queues": None if kernel.posix_queues is None else posix_capture.capture(kernel.posix_queues),
        "board": None if machine.board is None else machine.board.capture(),
        "files": captured_files,
        "stands": _stands(waited, captured_files["waited"]),
    }


def _stands(waited: Sequence[tuple[Task, WaitQueue]], names: Sequence[object]) -> dict[int, State]:
    """By task: the numbers of the queues that it stands in, and its places there.

    Only of who waits for open files alone: others make their calls again, and wait anew.
    """
    stands: dict[int, State] = {}
    for number, (task, queue) in enumerate(waited):
        stands.setdefault(task.tid, {})[number] = queue.place_of(task)
    return {
        tid: numbers
        for tid, numbers in stands.items()
        if all(names[number] is not None for number in numbers)
    }


def restore(
    state: State, *, grants: Grants | None = None, streams: Mapping[str, Stream] | None = None
) -> Machine:
    """A machine that goes on where the captured one stood. Raises StateError, ConfigError, CaptureError."""
    if not isinstance(state, dict) or not isinstance(state.get("config"), Config):
        raise StateError(f"{reprlib.repr(state)} is no state of a machine, as capture() gives it")
    config: Config = state["config"]
    grants = checked_grants(grants)
    machine = Machine(state["arch"], config=replace(config, tlbsan=False))  # not to hear of what is done here
    try:
        if machine.format.name != state["format"]:
            tables = f"{state['format']} tables does not fit a machine with {machine.format.name} tables"
            raise StateError(f"a snapshot with {tables}")
        with machine.kernel.actor.as_root():
            _fill(machine, state, grants, complete_streams({} if streams is None else streams))
        machine.kernel.actor.credentials = machine.entry.task.credentials
        if config.tlbsan:
            machine.sanitize()
    except BaseException:
        machine.abandon()
        raise
    return machine


def _fill(machine: Machine, state: State, grants: Grants, streams: Mapping[str, Stream]) -> None:
    # What is made here first gets numbers that nothing captured has, and those that were captured later.
    objects, slabs = machine.physical.objects, machine.physical.slabs
    slabs.opened = False  # what is made here stands in RAM already, which is loaded below
    objects.last = state["physical"]["last_owner"]
    processes, spaces = _processes(machine, state)
    first = processes[0]
    machine.process = first
    for process, described in zip(processes, state["processes"], strict=True):
        process.restore(described)
    for process, described in zip(processes, state["processes"], strict=True):
        process.restore_children(described)
    machine.namespace = machine.new_namespace(first.program.path.decode(), grants)
    machine.namespace.executed = first.registry.executed
    if state["posix_queues"] is not None:
        numbered = first.registry.processes
        posix_capture.restore(machine.kernel.with_posix_queues(), state["posix_queues"], numbered)
    watching = _Watching(machine, spaces)
    restored = _restore_files(machine.namespace, processes, state, streams, watching)
    guard(first)
    for process, described in zip(processes, state["processes"], strict=True):
        if described["terminal"] is not None:
            process.terminal = machine.namespace.terminals.numbered(described["terminal"])
    # From here on the machine's own first allocations are overwritten by what was captured.
    machine.frames.restore(state["frames"])
    machine.buddy.restore(state["buddy"])
    machine.ram.load(state["ram"])
    last = objects.last
    machine.physical.restore(state["physical"])
    objects.last = last
    if machine.board is not None:
        machine.board.restore(state["board"])
    undos = _restore_system_v(machine, state)
    backings, keys = _restore_backings(first, restored, state)
    machine.aperture.load(_with_keys(state["aperture"], keys))
    for described in state["spaces"]:
        shown = {backing.number: backing for backing in backings}
        watchers = watching.watchers.get(described["number"], {})
        space_capture.restore(spaces[described["number"]], described, shown, watchers)
    if machine.physical.cache is not None:
        for backing in backings:
            if isinstance(backing, FileBacking) and backing.number in state["unused_files"]:
                machine.physical.cache.unused[backing.number] = backing
    if state["system_v"] is not None:
        ipc_capture.finish(machine.kernel.with_system_v(), state["system_v"])
    objects.last = state["physical"]["last_owner"]
    tasks, waiting = _restore_tasks(machine, first, restored, undos, state)
    for task, described in waiting:
        _wait_anew(machine, task, described)
    machine.scheduler.let_sleep([tasks[tid] for tid in state["sleepers"]])
    # To let them wait has cost nothing, and no time has passed.
    machine.physical.counters.n[:] = state["physical"]["counters"]
    machine.clock.restore(state["clock"])
    machine.streams.restore(state["streams"])
    machine.kernel.restore(state["kernel"], tasks)
    for process, described in zip(processes, state["processes"], strict=True):
        process.restore_timers(described)
    if machine.board is not None:
        machine.board.go_on(state["board"])
    _restore_cpus(machine, state, tasks, spaces)
    slabs.opened = True


def _processes(machine: Machine, state: State) -> tuple[list[Process], dict[int, AddressSpace]]:
    """The processes without what they are made of, and their address spaces by number."""
    spaces = {described["number"]: machine.new_space() for described in state["spaces"]}
    users: set[int] = set()
    processes: list[Process] = []
    for described in state["processes"]:
        number = state["space_of"].get(described["pid"])
        if number is None:  # a zombie has nothing
            space = machine.new_space()
            space.destroy()
        else:
            space = spaces[number]
            space.users += number in users
            users.add(number)
        registry = processes[0].registry if processes else None
        processes.append(
            Process(machine.kernel, space, described["program"], pid=described["pid"], registry=registry)
        )
    registry = processes[0].registry
    registry.last, registry.vdso = state["numbers"]
    return processes, spaces


class _Watching:
    """The userfaultfds, and which areas each watches: by the number of the space, and the area's start."""

    def __init__(self, machine: Machine, spaces: Mapping[int, AddressSpace]) -> None:
        self._machine, self._spaces = machine, spaces
        self.watchers: dict[int, dict[int, UserFaultFile]] = {}

    def file(self, described: State) -> UserFaultFile:
        """One as it was captured, with those who wait for its answers. Its program may be gone."""
        number = described["space"]
        space = self._spaces.get(number)
        if space is None:
            space = self._machine.new_space()
            space.let_go()
        file = user_faults.restored(described, space, self._machine.kernel)
        self.watchers.setdefault(number, {}).update(dict.fromkeys(described["watched"], file))
        return file


def _restore_files(
    namespace: Namespace,
    processes: list[Process],
    state: State,
    streams: Mapping[str, Stream],
    watching: _Watching,
) -> Restored:
    """Give each process its files; several may share what is in them, and threads may have their own."""
    living = {process.pid: process for process in processes if process.pid in state["files_of"]}
    owners = {index: living[pid] for pid, index in state["files_of"].items()}
    of_tasks = state["files_of_tasks"]
    for pid, task in state["tasks"]:
        owners.setdefault(of_tasks[task["tid"]], living[pid])
    sources = [ProcessTexts(owners[index]) for index in sorted(owners)]

    def give(index: int, files: Files) -> None:
        for pid, process in living.items():
            if state["files_of"][pid] == index:
                process.files = files

    def notice(described: State, viewer: Files) -> OpenFile:
        if described["kind"] == UserFaultFile.kind:
            return watching.file(described)
        process = next(process for process in owners.values() if process.files is viewer)
        if described["kind"] == HugeFile.kind:
            return HugeFile(
                restored_contents(process.kernel.physical, described["contents"]), described["flags"]
            )
        if described["kind"] == QueueFile.kind:
            return posix_capture.reopened(process.kernel.with_posix_queues(), described)
        process.kernel.caller = lambda: (process, process.arrived)  # who waits for its signals
        return notices.restored(described, process)

    tell = partial(tell_owner, processes[0].registry)
    kernel = processes[0].kernel
    caller = kernel.caller
    try:
        return files_capture.restore(state["files"], namespace, sources, streams, give, notice, tell)
    finally:
        kernel.caller = caller


def _restore_backings(
    process: Process, restored: Restored, state: State
) -> tuple[list[Backing], dict[object, FileKey]]:
    """What is mapped, and the keys that memory files have now, by those that they had."""
    memories = iter(restored.mapped)
    keys: dict[object, FileKey] = {}
    backings = []
    for described in state["backings"]:
        if described["kind"] == "memory":
            file = next(memories)
            assert isinstance(file, HostData), "a memory file was captured"
            keys[described["key"]] = file.key
            backings.append(_shown(process, file, described))
        else:
            backings.append(_restore_backing(process, described))
    for file in restored.mapped:
        file.let_go()
    return backings, keys


def _place(described: State, line: list[int]) -> tuple[bool, int]:
    """Who waits comes first, in the order in which they began to: they stand in their queues before any other
    runs, who may wake them. The others keep the order of their turns.
    """
    if _waits(described):
        return False, described["wait"]["number"]
    return True, line.index(described["tid"]) if described["in_line"] else len(line)


def _waits(task: State) -> bool:
    return task["wait"] is not None and not task["wait"]["goes_on"] and not task["in_line"]


def _restore_system_v(machine: Machine, state: State) -> list[Undo]:
    """System V's objects, and the undo lists of tasks, each with as many users as it has."""
    users = list(state["undos"].values())
    undos = [Undo(users.count(index)) for index in range(len(set(users)))]
    if state["system_v"] is not None:
        ipc_capture.restore(machine.kernel.with_system_v(), state["system_v"], undos)
    return undos


def _restore_tasks(
    machine: Machine, first: Process, files: Restored, undos: list[Undo], state: State
) -> tuple[dict[int, Task], list[tuple[Task, State]]]:
    """All tasks by number; those that wait, the longest-waiting first, with what is captured of them."""
    machine.scheduler.first = first
    processes, waiting = first.registry.processes, []
    tasks = {described["tid"]: Task(processes[pid], described["tid"]) for pid, described in state["tasks"]}
    machine.scheduler.know(list(tasks.values()))
    for described in state["processes"]:
        order = described["tasks"].index
        processes[described["pid"]].tasks.sort(key=lambda task: order(task.tid))
    line = [tid for line in state["lines"]["tasks"] for tid in line]
    in_order = sorted((each for _pid, each in state["tasks"]), key=lambda each: _place(each, line))
    for described in in_order:
        task = tasks[described["tid"]]
        task.files = files.processes[state["files_of_tasks"][task.tid]]
        if task.tid in state["undos"]:
            task.undo = undos[state["undos"][task.tid]]
        places = state["stands"].get(task.tid, {})
        queues = [queue for number in places if (queue := files.waited[number]) is not None]
        task.restore(described, queues)
        for queue, place in zip(queues, places.values(), strict=True):
            queue.stand_at(task, place)
        if _waits(described) and queues:
            machine.scheduler.watch_host(task)
        elif _waits(described) and task.wait is None:  # an access of its own, which it makes again
            machine.scheduler.add(task)
        elif _waits(described) and not described["wait"]["at_host"]:
            waiting.append((task, described))
        elif described["in_line"] or (task.wait is not None and task.wait.woken):  # who is stopped is not
            machine.scheduler.add(task)
    return tasks, waiting


def _wait_anew(machine: Machine, task: Task, described: State) -> None:
    """Let a task wait that did: it makes its call again, to stand in the queues of what it waits for.

    Time stands at its beginning meanwhile, so that none is over. Who is stopped, and gets a signal when he
    goes on, would hear of that.
    """
    stopped_at = described["wait"]["stopped_at"]
    if described["wait"]["kept"] is None and not (stopped_at is not None and task.signals.interrupts()):
        assert task.wait is not None, "it waits"
        task.wait.stopped_at = None
        machine.entry.switch(task)
        machine.entry.resume()
        task.waits = described["waits"]
        if task.wait is None:  # the file that it waits for has changed meanwhile
            machine.scheduler.add(task)
        else:
            task.wait.stopped_at = stopped_at


def _restore_cpus(
    machine: Machine, state: State, tasks: dict[int, Task], spaces: Mapping[int, AddressSpace]
) -> None:
    """Who is on each CPU, and in its line. To put them there has had effects, which do not count."""
    physical = machine.physical
    machine.entry.task = next(iter(tasks.values()))  # if nobody is on the CPU that works
    places.restore_cpus(machine.entries, state["cpus"], tasks, spaces)
    if physical.tags is not None:
        for described in state["spaces"]:
            spaces[described["number"]].context.restore(described["context"])
        physical.tags.restore(state["tags"], {number: space.context for number, space in spaces.items()})
        for percpu in machine.computer.percpu:
            percpu.rejoin()
    for _pid, described in state["tasks"]:
        tasks[described["tid"]].restore_place(described)
    places.restore_lines(machine.kernel, state["lines"], tasks)
    machine.scheduler.resume()
    physical.tlb.restore(state["tlb"])
    machine.buddy.restore(state["buddy"])
    physical.counters.n[:] = state["physical"]["counters"]
    for cpu, blocks, reservation in zip(
        machine.computer.cpus, state["blocks"], state["reservations"], strict=True
    ):
        cpu.restore_blocks(blocks)
        cpu.reserve(reservation)


# ---- memory


def _backings_of(spaces: Iterable[AddressSpace]) -> list[Backing]:
    areas = (area for space in spaces for area in space.areas)
    return list(dict.fromkeys(area.backing for area in areas if area.backing is not None))


def _memory_of(backing: Backing) -> Memory | None:
    """The memory file that it shows, if it is one."""
    contents = backing.contents if isinstance(backing, FileBacking) else None
    return contents if isinstance(contents, Memory) else None


def _describe_backing(process: Process, backing: Backing, devices: Collection[DeviceMemory]) -> State:
    """Raises StateError for a file that could not be opened again, and for a device that is none of these."""
    described = backing.capture()
    if _memory_of(backing) is not None:
        return described | {"kind": "memory"}
    if isinstance(backing, FileBacking):
        _opened(process, described, lambda _file: None)
    if isinstance(backing, DeviceMemory) and backing not in devices:
        raise StateError(f"{backing.name} is a device of the caller's making, which no machine makes again")
    return described


def _restore_backing(process: Process, described: State) -> Backing:
    """Of what is no memory file."""
    if described["kind"] == "segment":
        segment = process.kernel.physical.objects.find(described["number"])
        assert isinstance(segment, Segment), "it was restored before"
        return segment
    if described["kind"] == "shared":
        return SharedMemory.restored(process.kernel.physical, described)
    if described["kind"] == "device":
        device = process.kernel.physical.objects.find(described["number"])
        assert isinstance(device, DeviceMemory), "it was restored before"
        return device
    if described["kind"] == "hugetlb file":
        return restored_contents(process.kernel.physical, described)
    if described["kind"] == "hugetlb":
        return restored_memory(process.kernel.physical, described)
    if described["kind"] == "special":
        return SpecialMapping.restored(process.kernel.physical, described)
    return _opened(process, described, lambda file: _shown(process, file, described))


def _shown(process: Process, file: HostData, described: State) -> Backing:
    backing = file_backing(process.kernel, file, writable=described["writable"], name=described["name"])
    backing.renumber(described["number"])
    backing.failed.restore(described["failed"])
    backing.failures_known = described["failures_known"]
    return backing


def _opened(process: Process, described: State, use: Callable[[HostData], T]) -> T:
    """What `use` makes of a mapped file, opened by its path. Raises StateError if it is not the same."""
    path, writable = described["name"].encode("utf-8", "surrogateescape"), described["writable"]
    try:
        fd = process.files.open(fl.AT_FDCWD, path, fl.O_RDWR if writable else fl.O_RDONLY)
    except Refused as refused:
        raise StateError(f"{described['name']}, which is mapped, cannot be opened again: {refused}") from None
    try:
        file = process.files.table.file(fd)
        if not isinstance(file, HostData) or file.key != described["key"]:
            raise StateError(f"{described['name']}, which is mapped, is another file now")
        return use(file)
    finally:
        process.files.close(fd)


def _with_keys(aperture: ApertureState, keys: Mapping[object, FileKey]) -> ApertureState:
    """The slots of files that are others now, by `keys`."""
    bound = tuple(replace(slot, key=keys.get(slot.key, slot.key)) for slot in aperture.bound)
    return replace(aperture, bound=bound)
