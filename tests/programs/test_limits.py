"""What a program can make grow has its limit, and everything is given back.

The errno or signal is Linux's, and the host's memory is bounded. `limits` has a scene for each; what it
prints was recorded on Linux as a user of its own, but for the full file system, which is the machine's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.programs.run import HOST_ISA, ISAS

_HERE = Path(__file__).resolve().parent
RAM = 64  # MiB
MORE = 96  # MiB that the emulator may take beyond its first run: all of RAM, and half of that again
PATIENCE = 300
SCENES = {
    "processes": "processes: 39, then EAGAIN\nreaped: 39\n" * 2,
    "zombies": "zombies: 39, then EAGAIN\nreaped: 39\n" * 2,
    "threads": "threads: 39, then EAGAIN\n" * 2,
    "descriptors": "open: 61, then EMFILE\npipe: 30, then EMFILE\nsocketpair: 30, then EMFILE\n",
    "pipes": "a pipe that nobody reads: 16, then EINTR\na pipe without readers: -1, then EPIPE\n",
    "sockets": "connections that nobody accepts: 4, then EAGAIN\n"
    "datagrams that nobody receives: 1, then EAGAIN\n"
    "descriptors that nobody receives: 65, then ETOOMANYREFS\n",
    "files": "a file: 1, then ENOSPC\n" * 2,
    "timers": "timers: 50, then EAGAIN\n" * 2 + "queued signals: 50, then EAGAIN\n",
    "handlers": "a handler that faults: signal 11\n" * 3,
    "orphans": "a chain: 1\nreaped: 1\n",
    "groups": "groups: made\n",
}
_OF_ANY_USER = ("descriptors", "pipes", "sockets", "handlers")
_OF_A_NEW_USER = ("processes", "zombies", "threads", "timers", "orphans", "groups")
_OF_THE_HOST = _OF_ANY_USER + (_OF_A_NEW_USER if os.getuid() == 0 else ())
NEW_USER = 1_000_000  # from here on users have no processes; only the superuser can become one


def _of_this_process(field: str) -> int:
    """A field of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(field))


def _run(isa: str, scene: str, blocks: int | None = None, **options: object) -> str:
    """What the scene prints; closing the machine fails if a frame is left."""
    out = BufferStream()
    machine = Machine(isa, ram=f"{RAM}M", seed=3, **options)  # type: ignore[arg-type]  # as in scripts.py
    try:
        streams = {"stdin": BufferStream(), "stdout": out, "stderr": BufferStream()}
        machine.load(_HERE / "bin" / isa / "limits", ["limits", scene], streams=streams)
        if blocks is None:
            assert machine.run().status == 0
        else:
            assert machine.run_for(blocks) is None
        tasks = machine.process.registry.count if machine.process is not None else 0
        assert tasks <= (RAM << 3 if options else 40), "more tasks than there may be"
    finally:
        machine.close()
    return bytes(out.written).decode()


def everything(isa: str) -> None:
    """In a process of its own: every scene, one after another, and bombs that never end."""
    _run(isa, "nothing")
    first, descriptors = _of_this_process("VmRSS"), sorted(os.listdir("/proc/self/fd"))
    for scene, expected in SCENES.items():
        printed = _run(isa, scene)
        assert printed == expected, (scene, printed)
        assert sorted(os.listdir("/proc/self/fd")) == descriptors, f"{scene}: descriptors are left"
    _run(isa, "bomb", 200_000)
    _run(isa, "bomb", 20_000, uid=0)  # whom only the machine's size limits
    assert sorted(os.listdir("/proc/self/fd")) == descriptors, "descriptors are left"
    assert _of_this_process("VmHWM") - first < MORE, f"{_of_this_process('VmHWM')} MiB, {first} before"


@pytest.mark.parametrize("isa", ISAS)
def test_every_limit_is_met_and_everything_is_given_back(isa: str) -> None:
    command = [sys.executable, "-c", f"from {__name__} import everything; everything({isa!r})"]
    subprocess.run(command, cwd=_HERE.parents[1], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("scene", _OF_THE_HOST)
def test_the_host_says_the_same(scene: str) -> None:
    with (_HERE / "bin" / HOST_ISA / "limits").open("rb") as file:  # whose folder may be closed to others
        done = subprocess.run(
            ["limits", scene],
            executable=f"/proc/self/fd/{file.fileno()}",
            pass_fds=[file.fileno()],
            user=None if os.getuid() else NEW_USER + os.getpid(),  # not that of a test beside this one
            extra_groups=None if os.getuid() else [],
            capture_output=True,
            check=True,
            timeout=PATIENCE,
        )
    assert done.stdout.decode() == SCENES[scene]
