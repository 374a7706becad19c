"""What tasks share of their files, descriptors and where they stand: clone(2), unshare(2)."""

from __future__ import annotations

import errno

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import find
from aether_emu.linux.files import flags as fl
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.task import Task
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.task.scripts import SPIN, Several, assemble, made_by

_FS, _FILES = 0x200, 0x400
_THREAD = 0x1_0900  # CLONE_VM, SIGHAND, THREAD
ISAS = ("x86_64", "arm64")


def _shared(one: Task, two: Task) -> tuple[bool, bool]:
    """Whether they share descriptors, and whether directory and umask, found by changing them."""
    fd = one.files.open(fl.AT_FDCWD, b"/dev/null", fl.O_RDONLY)
    try:
        two.files.fstat(fd)
        descriptors = True
    except Refused:
        descriptors = False
    one.files.close(fd)
    one.files.chdir(b"/proc")
    one.files.umask(0o77)
    standing = two.files.getcwd() == b"/proc"
    assert standing == (two.files.mask == 0o77)
    one.files.chdir(b"/")
    one.files.umask(0o22)
    return descriptors, standing


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("flags", [0, _FS, _FILES, _FS | _FILES])
@pytest.mark.parametrize("kind", [sig.SIGCHLD, _THREAD])
def test_descriptors_and_directory_are_shared_independently(isa: str, flags: int, kind: int) -> None:
    with Several(isa) as several:
        task = several.calls(code=SPIN[isa])
        several.machine.entry.switch(task)
        made = made_by(task, "clone", flags | kind)
        assert _shared(task, made) == (bool(flags & _FILES), bool(flags & _FS))
        if made.process is not task.process:
            several.tasks.append(made)


def test_a_child_that_shares_files_has_a_proc_of_its_own() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        made = made_by(task, "clone", _FS | _FILES | sig.SIGCHLD)
        several.tasks.append(made)
        for each in (made, task):
            several.machine.entry.switch(each)
            assert each.files.readlink(fl.AT_FDCWD, b"/proc/self", 100) == b"%d" % each.process.pid


def test_a_thread_unshares_what_it_likes_and_gives_it_back_at_its_end() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        made = made_by(task, "clone", _FS | _FILES | _THREAD)
        assert _shared(task, made) == (True, True)
        unshare = find("unshare")
        assert unshare is not None
        several.machine.entry.switch(made)
        unshare(made, _FS, 0, 0, 0, 0, 0)
        assert _shared(task, made) == (True, False)
        unshare(made, _FILES, 0, 0, 0, 0, 0)
        assert _shared(task, made) == (False, False)
        with pytest.raises(Refused) as refused:
            unshare(made, 0x100, 0, 0, 0, 0, 0)  # CLONE_VM
        assert refused.value.errno == errno.EINVAL
        reading, writing = made.files.pipe()
        end = made.files.table.held(reading)
        made.files.close(writing)
        several.machine.entry.switch(task)
        several.machine.scheduler.add(made)
        made.ended = True
        several.machine.scheduler.settle()
        several.machine.kernel.run_queue.look_at(task.process)
        several.machine.scheduler.settle()
        assert made not in task.process.tasks and not end.is_held


def test_close_range_can_leave_the_others_their_descriptors() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        made = made_by(task, "clone", _FS | _FILES | _THREAD)
        fd = task.files.open(fl.AT_FDCWD, b"/dev/null", fl.O_RDONLY)
        call = find("close_range")
        assert call is not None
        call(made, fd, fd, 2, 0, 0, 0)  # CLOSE_RANGE_UNSHARE
        assert fd in task.files.open_files() and fd not in made.files.open_files()


def test_a_snapshot_keeps_what_is_shared() -> None:
    path = program("x86_64", "hello")
    grants = Grants(cwd=path.parent)
    with Machine("x86_64", ram="32M", aperture="16M", uid=0, gid=0) as machine:
        machine.load(path, grants=grants)
        assert machine.run_for(20) is None
        task = machine.entry.task
        made = made_by(task, "clone", _FILES | _THREAD)
        machine.scheduler.add(made)
        made.files.chdir(b"/proc")
        made.files.mkdir(fl.AT_FDCWD, b"/tmp/root", 0o755)
        made.files.chroot(b"/tmp/root", allowed=True)
        with restore(capture(machine), grants=grants) as again:
            one, two = sorted(again.scheduler.tasks, key=lambda each: each.tid)
            assert one.files.table is two.files.table
            assert one.files.getcwd() != two.files.getcwd() == b"(unreachable)/proc"
            root = two.files.root
            assert one.files.root is None and root is not None and root.link() == b"/tmp/root"


@pytest.mark.parametrize("isa", ISAS)
def test_a_first_thread_that_ends_is_a_zombie_until_the_last_one_ends(isa: str) -> None:
    with Several(isa) as several:
        machine = several.machine
        first = several.calls(code=assemble(machine, [("getpid",)], end="exit"))
        process = first.process
        second = several.thread(first, code=SPIN[isa])
        first.name = b"leader"
        machine.scheduler.run(2000)
        assert first not in process.tasks and second in process.tasks and not process.is_over
        shown = ProcessTexts(process).find(process.pid)
        assert shown is not None and shown.files is None and not shown.is_gone
        status = shown.texts["status"].provide().decode()  # type: ignore[union-attr]  # it is a text
        assert "State:\tZ (zombie)" in status and "Threads:\t2" in status and "Name:\tleader" in status
        assert "VmSize" not in status
        assert shown.texts["maps"].provide() == shown.texts["cmdline"].provide() == b""  # type: ignore[union-attr]  # they are texts
        assert sorted(shown.tasks) == sorted((process.pid, second.tid))
        living = shown.tasks[second.tid].texts["status"].provide().decode()  # type: ignore[union-attr]  # it is a text
        assert "VmSize" in living and f"Tgid:\t{process.pid}" in living
        tgkill = find("tgkill")
        assert tgkill is not None and tgkill(second, process.pid, process.pid, sig.SIGUSR1, 0, 0, 0) == 0
        process.post(sig.SignalInfo(sig.SIGKILL, sig.SI_USER))
        assert several.run() == [128 + sig.SIGKILL]
