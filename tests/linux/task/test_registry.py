"""How many processes and threads there may be: whoever has a number counts, and zombies have one."""

from __future__ import annotations

import errno

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.task.process import RLIMIT_NPROC, Ended, Process
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
            zombie.vanish()
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
