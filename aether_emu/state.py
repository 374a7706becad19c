"""The whole state of a machine between two runs, as plain data, and a machine made of it again.

    snapshot = capture(machine)             # after machine.run_for(...) came back with None
    other = restore(snapshot, grants=..., streams=...)
    other.run()                             # goes on as the first would have

A snapshot holds every page of RAM that is not zero (page tables included), the frame table, the
allocator, areas, registers, files, signals, clock and chance. It holds no host memory and no file
contents: files are opened again by their guest paths, through the grants given to `restore`.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Mapping
from typing import Any

from aether_emu.config import Config
from aether_emu.errors import AetherError, Refused
from aether_emu.linux.calls.mappable import file_backing
from aether_emu.linux.files import capture as files_capture
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.streams import Stream
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.table import FrameTable
from aether_emu.mm.objects.backing import Backing, FileBacking, SharedMemory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.page import PageTable
from aether_emu.system import Grants, Machine, standard_streams

State = dict[str, Any]


class StateError(AetherError):
    """The machine cannot be captured now, or the snapshot does not fit what is there."""


def capture(machine: Machine) -> State:
    """Everything about a loaded machine that is not running. Raises StateError, CaptureError."""
    process = machine.process
    if process is None or process.ended is not None:
        raise StateError("there is no living process to capture")
    space, physical, kernel = process.mm, machine.physical, machine.kernel
    backings = _backings_of(space)
    return {
        "arch": machine.abi.isa,
        "format": machine.format.name,
        "config": machine.config,
        "ram": machine.ram.save(),
        "frames": {name: column.copy() for name, column in machine.frames.columns().items()},
        "buddy": _dump_buddy(machine.buddy),
        "aperture": machine.aperture.save(),
        "physical": {
            "next_owner": physical.next_owner,
            "zero_frame": physical.zero_frame,
            "counters": list(physical.counters.n),
            "mutable_code": physical.code.mutable,
        },
        "clock": dataclasses.asdict(machine.clock),
        "streams": machine.streams.capture(),
        "kernel": kernel.capture(),
        "blocks": machine.cpu.blocks_state(),
        "backings": [_describe_backing(backing) for backing in backings],
        "space": _describe_space(space, backings),
        "process": process.capture(),
        "tasks": [task.capture() for task in machine.scheduler.tasks],
        "files": files_capture.capture([process.files]),
    }


def restore(
    state: State, *, grants: Grants | None = None, streams: Mapping[str, Stream] | None = None
) -> Machine:
    """A machine that goes on where the captured one stood. Raises StateError, ConfigError, CaptureError."""
    config: Config = state["config"]
    machine = Machine(state["arch"], config=config)
    try:
        if machine.format.name != state["format"]:
            tables = f"{state['format']} tables does not fit a machine with {machine.format.name} tables"
            raise StateError(f"a snapshot with {tables}")
        _fill(machine, state, grants or Grants(), streams if streams is not None else standard_streams())
    except BaseException:
        machine.abandon()
        raise
    return machine


def _fill(machine: Machine, state: State, grants: Grants, streams: Mapping[str, Stream]) -> None:
    space = machine.new_space()
    process = Process(machine.kernel, space, state["process"]["program"])
    machine.process = process
    process.restore(state["process"])
    tasks = [Task(process) for _ in state["tasks"]]
    machine.namespace = machine.new_namespace(process.program.path.decode(), grants)
    sources = [ProcessTexts(process)]
    restored = files_capture.restore(state["files"], machine.namespace, sources, streams)
    (process.files,) = restored.processes
    # From here on the machine's own first allocations are overwritten by what was captured.
    for name, column in machine.frames.columns().items():
        column[:] = state["frames"][name]
    _load_buddy(machine, state["buddy"])
    machine.ram.load(state["ram"])
    physical = state["physical"]
    machine.physical.next_owner = physical["next_owner"]
    machine.physical.zero_frame = physical["zero_frame"]
    machine.physical.counters.n[:] = physical["counters"]
    machine.physical.code.mutable = physical["mutable_code"]
    backings = [_restore_backing(process, described) for described in state["backings"]]
    machine.aperture.load(state["aperture"])
    _restore_space(space, state["space"], backings)
    for field, value in state["clock"].items():
        if field != "costs":
            setattr(machine.clock, field, value)
    machine.streams.restore(state["streams"])
    machine.kernel.restore(state["kernel"])
    machine.cpu.restore_blocks(state["blocks"])
    for task, described in zip(tasks, state["tasks"], strict=True):
        task.restore(described)
        machine.scheduler.add(task)
    machine.entry.switch(tasks[0])


# ---- the allocator


class _Pickler(pickle.Pickler):
    """The frame table is named, not copied: it is captured by itself."""

    def persistent_id(self, item: object) -> str | None:
        return "frames" if isinstance(item, FrameTable) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, frames: FrameTable) -> None:
        super().__init__(io.BytesIO(data))
        self._frames = frames

    def persistent_load(self, name: object) -> FrameTable:
        assert name == "frames", f"unknown object {name!r} in a snapshot"
        return self._frames


def _dump_buddy(buddy: Buddy) -> bytes:
    out = io.BytesIO()
    _Pickler(out).dump(buddy)
    return out.getvalue()


def _load_buddy(machine: Machine, data: bytes) -> None:
    """Take the captured state over into the machine's own allocator, whose ready list others hold."""
    loaded = _Unpickler(data, machine.frames).load()
    cache = machine.buddy.cache
    cache[:] = loaded.cache
    fields = loaded.__dict__ | {"cache": cache, "_ready": cache}
    machine.buddy.__dict__.update(fields)


# ---- memory


def _backings_of(space: AddressSpace) -> list[Backing]:
    found: list[Backing] = []
    for area in space.areas:
        if area.backing is not None and area.backing not in found:
            found.append(area.backing)
    return found


def _describe_backing(backing: Backing) -> State:
    if isinstance(backing, SharedMemory):
        described: State = {"kind": "shared", "pages": backing.pages, "frames": backing.frames_by_page()}
    elif isinstance(backing, FileBacking):
        writable = backing.file.writable
        described = {"kind": "file", "name": backing.name, "key": backing.key, "writable": writable}
    else:
        raise StateError(f"a mapping of {backing.name} cannot be captured")
    return described | {"number": backing.number}


def _restore_backing(process: Process, described: State) -> Backing:
    physical = process.kernel.physical
    if described["kind"] == "shared":
        shared = SharedMemory(physical, described["pages"])
        shared.restore(described["number"], described["frames"])
        return shared
    path, writable = described["name"].encode("utf-8", "surrogateescape"), described["writable"]
    try:
        fd = process.files.open(fl.AT_FDCWD, path, fl.O_RDWR if writable else fl.O_RDONLY)
    except Refused as refused:
        raise StateError(f"{described['name']}, which is mapped, cannot be opened again: {refused}") from None
    try:
        file = process.files.table.file(fd)
        if not isinstance(file, HostData) or file.key != described["key"]:
            raise StateError(f"{described['name']}, which is mapped, is another file now")
        backing = file_backing(process.kernel, file, writable=writable)
        backing.number = described["number"]
        return backing
    finally:
        process.files.close(fd)


def _describe_space(space: AddressSpace, backings: list[Backing]) -> State:
    areas = []
    for area in space.areas:
        fields = {
            "start": area.start,
            "end": area.end,
            "protection": area.protection,
            "shared": area.shared,
            "offset": area.offset,
            "maximum": area.maximum,
            "grows_down": area.grows_down,
            "no_reserve": area.no_reserve,
            "name": area.name,
        }
        backing = None if area.backing is None else backings.index(area.backing)
        areas.append((fields, backing, area.was_writable_executable))
    return {
        "number": space.number,
        "table": space.table.capture(),
        "areas": areas,
        "mmap_base": space.mmap_base,
        "heap": (space.heap_start, space.heap_end),
        "reserved": space.reserved,
        "limits": (space.limits.stack, space.limits.address_space),
    }


def _restore_space(space: AddressSpace, state: State, backings: list[Backing]) -> None:
    space.number = state["number"]
    table: PageTable = space.table
    table.restore(state["table"])
    for fields, backing, was_writable_executable in state["areas"]:
        kept = {key: value for key, value in fields.items() if key not in ("start", "end", "protection")}
        area: Area = space.new_area(fields["start"], fields["end"], fields["protection"], **kept)
        if backing is not None:
            area.backing = backings[backing]
            area.set_protection(area.protection, area.denied, area.bits)
        area.was_writable_executable = was_writable_executable
        space.adopt(area)
    space.mmap_base = state["mmap_base"]
    space.heap_start, space.heap_end = state["heap"]
    space.reserved = state["reserved"]
    space.limits.stack, space.limits.address_space = state["limits"]
    space.rebuild_fault()
