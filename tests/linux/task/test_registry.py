"""How many processes and threads there may be: whoever has a number counts, and zombies have one."""

from __future__ import annotations

import errno

import pytest

from aether_emu.computer import LeakError
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.task import family
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.resource_limits import RLIMIT_NPROC
from aether_emu.system import Machine
from tests.linux.task.scripts import Several

ISAS = ("x86_64", "arm64")
_THREAD = 0x1_0F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD


def _zombie(parent: Process) -> Process:
    child = parent.fork(shares_memory=True)
    child.files = parent.files
    child.end(Ended(code=0))
    child.release()
    return child


def test_zombies_are_among_those_that_there_may_be() -> None:
    with Several("x86_64") as several:
        parent = several.calls(("exit_group", 0)).process
        registry = parent.registry
        assert isinstance(several.machine, Machine)
        registry.most = registry.count + 2
        zombies = [_zombie(parent), _zombie(parent)]
        with pytest.raises(Refused) as refused:
            registry.number()
        assert refused.value.errno == errno.EAGAIN
        for zombie in zombies:
            family.vanish(zombie)
        assert registry.number() not in registry.processes
        several.run()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("flags", [sig.SIGCHLD, _THREAD], ids=["process", "thread"])
def test_all_but_the_superuser_are_bound_by_rlimit_nproc(isa: str, flags: int) -> None:
    with Several(isa, uid=1000) as several:
        several.calls(("clone", flags, 0, 0, 0, 0)).process.limits[RLIMIT_NPROC] = (0, 0)
        assert several.run() == [-errno.EAGAIN & 0xFF]


@pytest.mark.parametrize("isa", ISAS)
def test_the_superuser_is_not(isa: str) -> None:
    with Several(isa, uid=0) as several:
        several.calls(("clone", _THREAD, 0, 0, 0, 0)).process.limits[RLIMIT_NPROC] = (0, 0)
        assert several.run() != [-errno.EAGAIN & 0xFF]


def _numbered(parent: Process, number: int) -> Process:
    child = parent.fork(shares_memory=True)
    shown = parent.kernel.show(child)
    child.files = parent.files.fork(shown, shares_table=True, shares_standing=True)
    child.group = number
    return child


def test_groups_and_sessions_are_found_by_number_and_keep_theirs_from_others() -> None:
    with Several("x86_64") as several:
        parent = several.calls(("exit_group", 0)).process
        registry = parent.registry
        before = registry.group(parent.group)
        younger, older = _numbered(parent, 5000), _numbered(parent, 5001)
        older.group = 5000
        assert registry.group(5000) == [younger, older]
        assert registry.session_of(5000) == parent.session
        assert registry.group(5001) == [] and not registry.is_used(5001)
        older.session = 6000
        assert registry.is_used(5000) and registry.is_used(6000)
        for child in (younger, older):
            child.end(Ended(code=0))
            child.release()
        assert registry.group(5000) == [younger, older], "a zombie is a member"
        for child in (younger, older):
            family.vanish(child)
        assert not registry.is_used(5000) and not registry.is_used(6000)
        assert registry.group(parent.group) == before
        several.run()


def test_a_wait_asks_those_with_news_alone_the_oldest_first() -> None:
    with Several("x86_64") as several:
        parent = several.calls(("exit_group", 0)).process
        first, second, third = (_numbered(parent, 5000) for _ in range(3))
        assert parent.children.news() == []
        for child in (third, first):
            child.end(Ended(code=0))
            child.release()
        second.stop(sig.SIGSTOP)
        assert parent.children.news() == [first, second, third]
        family.vanish(first)
        second.die(sig.SIGKILL, "the end of the test")
        second.release()
        assert parent.children.news() == [second, third], "told once, whatever it is"
        for child in (second, third):
            family.vanish(child)
        assert len(parent.children) == 0
        several.run()


def test_orphans_go_to_the_nearest_who_wants_them_with_their_news() -> None:
    with Several("x86_64") as several:
        top = several.calls(("exit_group", 0)).process
        middle = _numbered(top, 5000)
        child, dead = _numbered(middle, 5000), _zombie(middle)
        top.reaps_orphans = True
        middle.end(Ended(code=0))
        middle.release()
        assert [child.parent, dead.parent] == [top, top]
        assert top.children.news() == [middle, dead]
        top.reaps_orphans = False
        assert top.registry.reapers == 0
        for one in (child, dead, middle):
            if not one.released:
                one.end(Ended(code=0))
                one.release()
            family.vanish(one)
        several.run()


@pytest.mark.parametrize("isa", ISAS)
def test_a_child_whose_memory_nobody_gives_back_is_a_leak(isa: str) -> None:
    """The machine's own audit sees a process that was really forked."""
    several = Several(isa)
    parent = several.calls(("clone", sig.SIGCHLD, 0, 0, 0, 0), ("ppoll", 0, 0, 0, 0, 0)).process
    with pytest.raises(Deadlock):
        several.run()
    (child,) = parent.children
    assert child.mm is not parent.mm
    child.mm.users += 1
    with pytest.raises(LeakError, match="kernel objects: 1 of mm_struct"):
        several.__exit__()
    assert several.machine.kernel.closed
