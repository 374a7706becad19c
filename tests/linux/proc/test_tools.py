"""What process tools read in /proc: sockets, namespaces, the call in progress, how likely to be killed."""

from __future__ import annotations

import errno
import re
import struct

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.calls import find
from aether_emu.linux.credentials import of_user
from aether_emu.linux.files import flags as fl
from aether_emu.linux.proc.guard import guard
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.task import Task
from tests.linux.task.scripts import DATA, SPIN, Several, made_by


def _read(task: Task, path: str) -> str:
    fd = task.files.open(fl.AT_FDCWD, path.encode(), fl.O_RDONLY)
    try:
        data = task.files.read(fd, 1 << 16)
        assert isinstance(data, bytes)
        return data.decode()
    finally:
        task.files.close(fd)


def _call(task: Task, name: str, *arguments: int) -> int:
    function = find(name)
    assert function is not None
    return int(function(task, *arguments, *[0] * (6 - len(arguments))) or 0)


def _running(several: Several) -> Task:
    task = several.calls(code=SPIN[several.isa])
    several.machine.entry.switch(task)
    guard(task.process)
    return task


def test_sockets_stand_in_the_tables_of_their_kind() -> None:
    with Several("x86_64") as several:
        task = _running(several)
        listener = _call(task, "socket", 2, 1)
        task.cpu.copy_to_user(DATA, struct.pack("<H", 2) + b"\x1f\x90" + bytes((127, 0, 0, 1)) + bytes(8))
        assert _call(task, "bind", listener, DATA, 16) == 0 and _call(task, "listen", listener, 5) == 0
        client = _call(task, "socket", 2, 1)
        assert _call(task, "connect", client, DATA, 16) == 0
        lines = _read(task, "/proc/net/tcp").splitlines()
        inode = task.files.fstat(listener).ino
        assert lines[1].split()[:4] == ["0:", "0100007F:1F90", "00000000:0000", "0A"]
        assert lines[1].split()[9] == str(inode)
        assert lines[2].split()[2:4] == ["0100007F:1F90", "01"]
        six = _call(task, "socket", 10, 2)
        task.cpu.copy_to_user(
            DATA, struct.pack("<H", 10) + b"\x00\x35" + bytes(4) + bytes(15) + b"\x01" + bytes(4)
        )
        task.credentials = of_user(0, 0)
        assert _call(task, "bind", six, DATA, 28) == 0
        assert "00000000000000000000000001000000:0035" in _read(task, "/proc/self/net/udp6")
        assert len(_read(task, "/proc/net/udp").splitlines()) == 1
        pair = _call(task, "socketpair", 1, 1, 0, DATA)
        assert not pair and len(_read(task, "/proc/net/unix").splitlines()) == 3
        assert "    lo:" in _read(task, "/proc/net/dev")


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_the_call_in_which_a_process_waits_is_shown(isa: str) -> None:
    with Several(isa) as several:
        sleeper = several.calls(("ppoll", 0, 0, 0, 0, 8))
        with pytest.raises(Exception, match="deadlock"):
            several.machine.scheduler.run()
        watcher = _running(several)
        found = ProcessTexts(sleeper.process).find(sleeper.process.pid)
        assert found is not None
        shown = found.texts["syscall"].provide().split()  # type: ignore[union-attr]  # it is a text
        numbers = {name: n for n, name in several.machine.abi.system_calls.items()}
        assert shown[:2] == [b"%d" % numbers["ppoll"], b"0x0"] and len(shown) == 9
        assert _read(watcher, "/proc/self/syscall") == "running\n"
        assert re.fullmatch(r"\d+ 0 \d+\n", _read(watcher, "/proc/self/schedstat"))


def test_a_process_is_made_likelier_to_be_killed_by_itself_and_less_likely_by_root() -> None:
    with Several("x86_64") as several:
        task = _running(several)
        first, path = int(_read(task, "/proc/self/oom_score")), b"/proc/self/oom_score_adj"
        fd = task.files.open(fl.AT_FDCWD, path, fl.O_RDWR)
        assert task.files.write(fd, b"500\n") == 4
        assert int(_read(task, "/proc/self/oom_score")) == pytest.approx(first + 333, abs=1)
        child = made_by(task, "fork")
        several.tasks.append(child)
        assert (child.process.oom_adjustment, child.process.oom_least) == (500, 0)
        for wrong, number in ((b"-1", errno.EACCES), (b"1001", errno.EINVAL), (b"x", errno.EINVAL)):
            with pytest.raises(Refused) as refused:
                task.files.write(fd, wrong)
            assert refused.value.errno == number
        task.credentials = of_user(0, 0)
        task.files.write(fd, b"-1000")
        assert (int(_read(task, "/proc/self/oom_score")), _read(task, path.decode())) == (0, "-1000\n")
        task.files.close(fd)


def test_numbers_of_the_machine_are_those_that_tools_ask_for() -> None:
    with Several("x86_64") as several:
        task = _running(several)
        counters = dict(line.split() for line in _read(task, "/proc/vmstat").splitlines())
        assert int(counters["nr_free_pages"]) == several.machine.buddy.free_frames and "pswpin" in counters
        assert re.fullmatch(
            r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n", _read(task, "/proc/sys/kernel/random/uuid")
        )
        boot = "/proc/sys/kernel/random/boot_id"
        assert _read(task, boot) == _read(task, boot) != _read(task, "/proc/sys/kernel/random/uuid")
        links = {
            name: task.files.readlink(fl.AT_FDCWD, f"/proc/self/ns/{name}".encode(), 99)
            for name in ("mnt", "pid")
        }
        assert links["mnt"].startswith(b"mnt:[") and links["pid"].startswith(b"pid:[")
        assert _read(task, "/proc/self/uid_map").split() == ["0", "0", "4294967295"]
