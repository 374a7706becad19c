"""Programs that answer faults themselves go on from captures, also while a fault waits to be answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.calls.user_fault_events import EventWait
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.files.tmp_capture import CaptureError
from aether_emu.linux.files.user_faults import UserFaultFile
from aether_emu.system import Machine
from tests.programs.run import ISAS

_HERE = Path(__file__).resolve().parent


def _streams() -> dict[str, BufferStream]:
    return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}


def _watchers(machine: Machine) -> list[UserFaultFile]:
    """The userfaultfds that somebody has open."""
    processes = [] if machine.process is None else machine.process.registry.processes.values()
    return [
        each.file
        for process in processes
        if not process.released
        for each in process.files.table.descriptors.values()
        if isinstance(each.file, UserFaultFile)
    ]


def _run(name: str, isa: str, slice_: int, cpus: int, directory: Path, *, again: bool) -> dict[str, Any]:
    """What a run of slices told, and how often it went on from a capture, if it is to do that `again`."""
    options: dict[str, Any] = {"ram": "64M", "uid": 0, "gid": 0, "hugepages": "2M=8", "seed": 5, "cpus": cpus}
    machine, streams = Machine(isa, **options), _streams()
    machine.load(_HERE / "bin" / isa / name, [name], grants=Grants(cwd=directory), streams=streams)
    output, ended, captures, waiting = b"", None, 0, 0
    while ended is None:
        ended = machine.run_for(slice_)
        output += bytes(streams["stdout"].written)
        streams["stdout"].written.clear()
        if ended is not None:
            break
        watchers = _watchers(machine)
        try:
            snapshot = state.capture(machine)
        except CaptureError as error:
            assert "a userfaultfd, of which an event was not read, is open" in str(error)
            continue
        captures += bool(watchers)
        waiting += sum(len(each.asking()) for each in watchers)
        if again:
            streams = _streams()
            machine.close()
            machine = state.restore(snapshot, grants=Grants(cwd=directory), streams=streams)
    assert ended.status == 0
    told = {"output": output, "time": machine.clock.now_ns, "captures": captures, "waiting": waiting}
    machine.close()
    return told


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("name", "slice_"), [("userfault", 4_000), ("userfault_events", 5_000), ("hugefault", 3_000)]
)
def test_a_run_goes_on_from_each_of_many_captures(
    isa: str, name: str, slice_: int, cpus: int, tmp_path: Path
) -> None:
    told = _run(name, isa, slice_, cpus, tmp_path, again=True)
    assert told == _run(name, isa, slice_, cpus, tmp_path, again=False)
    assert told["output"] == (_HERE / "expected" / f"{name}.txt").read_bytes()
    assert told["captures"] > 3
    assert told["waiting"] > 0 or name == "userfault_events"


@pytest.mark.parametrize("isa", ISAS)
def test_a_call_that_is_done_but_for_its_event_is_not_made_again(isa: str, tmp_path: Path) -> None:
    """Its maker was woken when the event was read, and has not gone on yet."""
    name, captures = "userfault_events", 0
    machine, streams = Machine(isa, ram="64M", uid=0, gid=0, seed=5), _streams()
    machine.load(_HERE / "bin" / isa / name, [name], grants=Grants(cwd=tmp_path), streams=streams)
    output, ended = b"", None
    while ended is None:
        ended = machine.run_for(100)
        waits = [task.wait for task in machine.scheduler.everybody if isinstance(task.wait, EventWait)]
        if ended is None and any(wait.woken and wait.answer is not None for wait in waits):
            output += bytes(streams["stdout"].written)
            snapshot, streams, captures = state.capture(machine), _streams(), captures + 1
            machine.close()
            machine = state.restore(snapshot, grants=Grants(cwd=tmp_path), streams=streams)
    machine.close()
    assert captures > 0
    assert ended.status == 0
    assert output + bytes(streams["stdout"].written) == (_HERE / "expected" / f"{name}.txt").read_bytes()
