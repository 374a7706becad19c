"""Kernel objects in RAM: programs see what they take, and a misuse is found with both its sides."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.slab_audit import audit
from aether_emu.linux.task.body import TASK, walk
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.slab.finding import SlabCorruption
from aether_emu.mm.slab.layouts import MM
from aether_emu.observe.stats import collect
from aether_emu.system import Machine
from tests.programs.run import ISAS, LARGER_PAGES

_HERE = Path(__file__).resolve().parent
_WATCHED = """\
pipes: 40 more of pipe_inode_info, 0 left
pipes: 40 more of kmalloc-1k, 0 left
children: 40 more of task_struct, 0 left
children: 40 more of mm_struct, 0 left
semaphores: 40 more of sem_array, 0 left
semaphores: 40 more of kmalloc-512, 0 left
segments: 40 more of shmid_kernel, 0 left
messages: 40 more of kmalloc-192, 0 left
stacks: 640 KiB more, 0 left
slabs: more, as slabinfo has it: yes
"""


def _loaded(isa: str, scene: str, **options: object) -> tuple[Machine, BufferStream]:
    out = BufferStream()
    machine = Machine(isa, **{"ram": "64M", "uid": 0, **options})  # type: ignore[arg-type]  # as in scripts.py
    streams = {"stdin": BufferStream(), "stdout": out, "stderr": BufferStream()}
    machine.load(_HERE / "bin" / isa / "slabs", ["slabs", scene], streams=streams)
    return machine, out


def _printed(isa: str, scene: str, **options: object) -> str:
    machine, out = _loaded(isa, scene, **options)
    with machine:
        assert machine.run().status == 0
    return bytes(out.written).decode()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("debug", ["none", "FZPU"])
def test_a_program_sees_what_it_takes_and_that_it_is_given_back(isa: str, debug: str) -> None:
    assert _printed(isa, "watch", slab_debug=debug) == _WATCHED


@pytest.mark.parametrize(("isa", "page_size"), LARGER_PAGES)
def test_larger_pages_hold_more_objects(isa: str, page_size: int) -> None:
    assert _printed(isa, "watch", page_size=page_size) == _WATCHED


@pytest.mark.parametrize("isa", ISAS)
def test_pipes_take_memory_until_there_is_none(isa: str) -> None:
    printed = _printed(isa, "pipes", ram="16M", open_files=16384)
    assert printed == "pipes: then ENFILE\nonce half are closed: some again\n"


@pytest.mark.parametrize("isa", ISAS)
def test_threads_take_a_stack_each(isa: str) -> None:
    assert _printed(isa, "threads", ram="16M") == "threads: then EAGAIN\nstacks: 16 KiB each\n"


@pytest.mark.parametrize("isa", ISAS)
def test_objects_say_what_is_so_at_any_time(isa: str) -> None:
    machine, _out = _loaded(isa, "busy")
    with machine:
        looks = 0
        while machine.run_for(300) is None:
            assert audit(machine.kernel, machine.processes) == []
            looks += 1
        assert looks > 20


@pytest.mark.parametrize("isa", ISAS)
def test_processes_are_found_in_ram_with_the_roots_of_their_tables(isa: str) -> None:
    machine, _out = _loaded(isa, "busy")
    with machine:
        while len(machine.processes) < 20:
            assert machine.run_for(2000) is None
        slabs, told = machine.physical.slabs, {}
        for _at, fields in walk(slabs, machine.kernel.task_list):
            told[fields["pid"]] = fields["comm"], slabs.load(MM, fields["mm"])["pgd"] if fields["mm"] else 0
        assert told == {
            each.pid: (each.name, 0 if each.released else each.mm.table.root) for each in machine.processes
        }


@pytest.mark.parametrize("isa", ISAS)
def test_a_restored_machine_has_the_captured_objects(isa: str) -> None:
    machine, out = _loaded(isa, "busy", slab_debug="FZPU")
    with machine:
        while len(machine.processes) < 20:
            assert machine.run_for(2000) is None
        snapshot = state.capture(machine)
        assert machine.run().status == 0
        rows = machine.physical.slabs.rows()
    again = BufferStream()
    streams = {"stdin": BufferStream(), "stdout": again, "stderr": BufferStream()}
    with state.restore(snapshot, streams=streams) as other:
        assert audit(other.kernel, other.processes) == []
        assert other.run().status == 0
        assert other.physical.slabs.rows() == rows
    assert bytes(again.written) == bytes(out.written) == b"done\n"


# ---- misuse


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("fault", "kind", "debug"),
    [
        ("overrun", "overrun", "ZU"),
        ("use-after-free", "use after free", "PU"),
        ("double-free", "double free", "FU"),
        ("free-list", "free list overwritten", "U"),
    ],
)
def test_a_misuse_is_found_with_both_sides(isa: str, fault: str, kind: str, debug: str) -> None:
    machine, _out = _loaded(isa, "busy", slab_fault=fault, slab_debug=debug, slab_fault_one_in=30, seed=4)
    with pytest.raises(SlabCorruption) as found:
        machine.run()
        machine.close()  # where everything is looked at, for the magazines may have served all until then
    machine.abandon()
    assert found.value.kind == kind
    report = found.value.report
    if fault != "free-list":  # whose object may never have been anybody's
        assert re.search(r"allocated by task \d+ \(slabs\) in \w+ on CPU 0 at 0\.\d+ s", report), report
    if fault in ("use-after-free", "double-free"):
        assert re.search(r"freed by     task \d+ \(slabs\)", report), report
    assert re.search(r"found by     task \d+ \(slabs\)", report), report


@pytest.mark.parametrize("fault", ["overrun", "use-after-free"])
def test_without_the_check_the_misuse_goes_unseen(fault: str) -> None:
    machine, out = _loaded("x86_64", "busy", slab_fault=fault, slab_fault_one_in=30, seed=4)
    try:
        assert machine.run().status == 0
    finally:
        machine.abandon()
    assert bytes(out.written) == b"done\n"


def test_the_command_prints_the_report_and_ends_by_125() -> None:
    program = str(_HERE / "bin" / "x86_64" / "slabs")
    parameters = ("uid=0", "slab_fault=double-free", "slab_debug=FU", "slab_fault_one_in=20")
    sets = [word for each in parameters for word in ("--set", each)]
    command = [sys.executable, "-m", "aether_emu", "run", *sets, program, "busy"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 125 and "Traceback" not in ended.stderr
    assert re.match(r"slab: double free: object 0x\w+ of cache \w+: ", ended.stderr)
    assert "\n  allocated by task 1" in ended.stderr and "\n  freed by     task 1" in ended.stderr


# ---- accounts


def test_statistics_tell_of_the_caches() -> None:
    machine, _out = _loaded("x86_64", "busy")
    with machine:
        machine.run()
        told = collect(machine, 0.0)["slabs"]
        caches = machine.physical.slabs.caches
        assert told["frames"] == int((machine.frames.kind_array == Kind.SLAB).sum())
        assert told["allocated"] == sum(cache.allocated for cache in caches) > 500
        assert 0 < told["from_magazines"] < told["allocated"]


def test_what_is_free_comes_back_when_memory_is_short() -> None:
    machine, _out = _loaded("x86_64", "busy")
    with machine:
        while len(machine.processes) < 30:
            assert machine.run_for(2000) is None
        machine.run()
        slabs, buddy, n = machine.physical.slabs, machine.buddy, machine.physical.counters.n
        before, scanned = slabs.used_frames, n[Event.SLABS_SCANNED]
        taken = buddy.alloc_bulk(buddy.free_frames).tolist()
        more = buddy.alloc()
        assert slabs.used_frames < before and n[Event.SLABS_SCANNED] > scanned
        slabs.check()
        buddy.free(more)
        machine.physical.free(taken)


def test_an_untrue_object_is_told() -> None:
    machine, _out = _loaded("x86_64", "busy")
    with machine:
        assert machine.process is not None and machine.process.body is not None
        body = machine.process.body
        machine.physical.slabs.store(TASK, body.address, uid=7)
        wrong = audit(machine.kernel, machine.processes)
        assert wrong == [f"task_struct {body.address:#x}: uid is 7, not 0"]
        machine.physical.slabs.store(TASK, body.address, uid=0)


@pytest.mark.parametrize("isa", ISAS)
def test_cached_slots_have_objects_and_reclaim_asks_for_free_ones(isa: str) -> None:
    machine = Machine(isa, ram="8M", swap="64M", seed=3)
    streams = {"stdin": BufferStream(), "stdout": BufferStream(), "stderr": BufferStream()}
    machine.load(
        _HERE.parent.parent / "guest" / "bin" / isa / "swap", ["swap", "fill", "12"], streams=streams
    )
    with machine:
        swap, most, ended = machine.physical.swap, 0, None
        assert swap is not None
        while ended is None and most < 100:
            ended = machine.run_for(20_000)
            rows = {row.name: row.active for row in machine.physical.slabs.rows()}
            assert rows.get("swap_cache", 0) == len(swap.objects) == swap.cached
            assert audit(machine.kernel, machine.processes) == []
            most = max(most, swap.cached)
        assert most > 0
        reclaim, n = machine.physical.reclaim, machine.physical.counters.n
        assert reclaim is not None
        slabs = machine.physical.slabs
        slabs.put(MM, slabs.take(MM))  # it stays in a magazine
        before = n[Event.SLABS_SCANNED]
        reclaim.make_room(1)
        assert n[Event.SLABS_SCANNED] > before
