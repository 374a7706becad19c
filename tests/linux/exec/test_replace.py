"""execve where memory is out: a refusal that leaves the old program as it was, or the end of the process."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.exec import replace as replace_module
from aether_emu.linux.exec.loader import load_program
from aether_emu.linux.exec.replace import replace_program
from aether_emu.linux.files.flags import AT_FDCWD
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.task import Task
from aether_emu.mm.overcommit import NEVER
from aether_emu.system import Machine
from tests.guests.running import program

ISAS = ("x86_64", "arm64")


def loaded(isa: str) -> tuple[Machine, Task, BufferStream]:
    made = Machine(isa, ram="64M")
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    process = made.load(program(isa, "hello"), ["hello"], streams=streams)
    (task,) = process.tasks
    assert isinstance(task, Task)
    return made, task, streams["stdout"]


def replace(task: Task) -> None:
    replace_program(task, AT_FDCWD, task.process.program.path, [b"again"], [], 0)


@pytest.mark.parametrize("isa", ISAS)
def test_without_a_frame_for_its_table_it_is_refused_and_the_program_goes_on(isa: str) -> None:
    made, task, out = loaded(isa)
    before, buddy = task.process.mm, made.buddy
    held = [buddy.alloc() for _ in range(buddy.free_frames)]
    with pytest.raises(Refused) as refused:
        replace(task)
    assert refused.value.errno == errno.ENOMEM
    assert task.process.mm is before
    for frame in held:
        buddy.free(frame)
    assert made.run().code == 0
    assert b"argc = 1" in bytes(out.written)
    made.close()


@pytest.mark.parametrize("isa", ISAS)
def test_without_a_frame_for_its_image_the_process_is_killed(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, task, _out = loaded(isa)
    made.entries[0].switch(task)
    held, load = list[int](), load_program

    def load_without_memory(*arguments: Any) -> None:
        held.extend(made.buddy.alloc() for _ in range(made.buddy.free_frames))
        load(*arguments)

    monkeypatch.setattr(replace_module, "load_program", load_without_memory)
    replace(task)
    assert task.process.ended is not None
    assert task.process.ended.signal == signal.SIGKILL, "as the out-of-memory killer does it"
    for frame in held:
        made.buddy.free(frame)
    made.close()


@pytest.mark.parametrize("isa", ISAS)
def test_in_mode_2_the_old_image_is_not_counted_beside_the_new_one(isa: str) -> None:
    made, task, out = loaded(isa)
    made.entries[0].switch(task)
    overcommit = made.physical.overcommit
    charged = overcommit.committed
    overcommit.mode, overcommit.kbytes = NEVER, (charged * 3 // 2 >> 10) + 1
    overcommit.admin_reserve = overcommit.user_reserve = 0
    replace(task)
    assert task.process.ended is None
    assert overcommit.committed == charged
    assert made.run().code == 0
    assert b"argc = 1" in bytes(out.written)
    made.close()
    assert overcommit.committed == 0
