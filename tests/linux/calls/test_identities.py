"""Users, groups and capabilities: the same calls give a task what they give a thread of the host."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import astuple, replace

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux import credentials as cr
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import find
from aether_emu.linux.credentials import Credentials, of_user
from aether_emu.linux.files import flags as fl
from aether_emu.linux.proc.guard import guard
from aether_emu.linux.task.task import Task
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.calls.twin import NUMBERS
from tests.linux.task.scripts import DATA, SPIN, Several, made_by

_ALL = 0xFFFF_FFFF
_V3 = struct.pack("<Ii", 0x2008_0522, 0)
Step = tuple[object, ...]
_SETPCAP = struct.pack("<6I", 0x100, 0x1FF, 0x2, 0, 0, 0)

SEQUENCES: dict[str, Sequence[Step]] = {
    "the user, for good": [
        ("setuid", 1000), ("setuid", 0), ("setgid", 0), ("setgid", 5), ("setgroups", 0, 0),
        ("setreuid", 0, _ALL), ("setresuid", _ALL, _ALL, 0), ("setuid", _ALL),
    ],
    "the user, and back": [
        ("setresuid", _ALL, 1000, _ALL), ("setgid", 7), ("setuid", 0), ("setresuid", 1, 2, 3),
        ("setresuid", 3, 1, 2), ("setresuid", 4, _ALL, _ALL), ("setreuid", 2, 3), ("setreuid", _ALL, 9),
    ],
    "groups": [
        ("setresgid", 1, 2, 3), ("setregid", 7, 8), ("setregid", _ALL, 7), ("setgid", 9),
        ("setgroups", 3, struct.pack("<3I", 9, 4, 7)), ("setgroups", 1, b"\xff" * 4),
        ("setgroups", 1 << 17, 0), ("getgroups", 0, 0), ("getgroups", 2, bytes(8)), ("getgroups", -1, 0),
    ],
    "the user for files": [
        ("setfsuid", 77), ("setfsuid", _ALL), ("setfsuid", 0), ("setfsgid", 3), ("setfsgid", _ALL),
        ("setresuid", 5, 5, 5), ("setfsuid", 0), ("setfsuid", 6),
    ],
    "capabilities that stay": [
        ("prctl", 8, 2), ("prctl", 8, 1), ("prctl", 7), ("setresuid", 5, 5, 5), ("prctl", 7),
        ("capset", _V3, _SETPCAP), ("prctl", 47, 2, 1, 0, 0), ("prctl", 47, 1, 1, 0, 0),
        ("prctl", 47, 2, 2, 0, 0), ("prctl", 47, 3, 1, 0, 0), ("prctl", 47, 9, 1, 0, 0),
        ("prctl", 47, 2, 1, 1, 0), ("prctl", 47, 4, 0, 0, 0), ("prctl", 47, 4, 1, 0, 0),
    ],
    "fewer capabilities": [
        ("capset", _V3, _SETPCAP), ("capset", _V3, struct.pack("<6I", 0x100, 0x3FF, 2, 0, 0, 0)),
        ("capset", _V3, struct.pack("<6I", 0x200, 0x1FF, 2, 0, 0, 0)), ("capset", _V3, bytes(24)),
        ("capset", struct.pack("<Ii", 0x2008_0522, 1 << 21), bytes(24)), ("capset", bytes(8), bytes(24)),
        ("capget", bytes(8), 0), ("capget", bytes(8), bytes(24)), ("capget", _V3, bytes(24)),
        ("capget", struct.pack("<Ii", 0x1998_0330, 0), bytes(24)),
        ("capget", struct.pack("<Ii", 0x2008_0522, -1), bytes(24)),
        ("capget", struct.pack("<Ii", 0x2008_0522, 1 << 22), bytes(24)),
    ],
    "the bounding set": [
        ("prctl", 23, 3), ("prctl", 24, 3), ("prctl", 23, 3), ("prctl", 23, 99), ("prctl", 24, 99),
        ("setresuid", 5, 5, 5), ("prctl", 24, 4),
    ],
    "securebits": [
        ("prctl", 28, 0x3), ("prctl", 28, 0), ("prctl", 28, 0x1003), ("prctl", 27), ("prctl", 28, 0x7),
        ("setresuid", 5, 5, 5), ("prctl", 28, 3),
    ],
    "no new privileges": [
        ("prctl", 38, 2, 0, 0, 0), ("prctl", 38, 1, 0, 0, 1), ("prctl", 39, 0, 0, 0, 0),
        ("prctl", 38, 1, 0, 0, 0), ("prctl", 39, 0, 0, 0, 0), ("prctl", 39, 1, 0, 0, 0),
    ],
    "who may look": [("prctl", 3), ("prctl", 4, 0), ("prctl", 3), ("prctl", 4, 2), ("prctl", 4, 1)],
}  # fmt: skip


def _told(number: int) -> int:
    return number if number >= 0 else -ctypes.get_errno()


def _line(name: str) -> list[int]:
    base = 16 if name.startswith("Cap") else 10
    with open("/proc/thread-self/status") as status:
        found = next(line for line in status if line.startswith(name + ":"))
    return [int(word, base) for word in found.split()[1:]]


def _of_host() -> Credentials:
    """Whoever this thread of the host is."""
    sets = [_line(name)[0] for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")]
    libc = ctypes.CDLL(None)
    (uid, euid, suid, fsuid), (gid, egid, sgid, fsgid) = _line("Uid"), _line("Gid")
    permitted, effective, *others = sets
    groups, inheritable, bounding, ambient = tuple(_line("Groups")), *others
    identities = (uid, euid, suid, fsuid, gid, egid, sgid, fsgid)
    bits = libc.prctl(27, 0, 0, 0, 0)
    return Credentials(*identities, groups, permitted, effective, inheritable, bounding, ambient, bits)


def _on_the_host(steps: Sequence[Step]) -> list[object]:
    """What each call answers in a child of the test, and who that is then."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        libc, found = ctypes.CDLL(None, use_errno=True), []
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: another test may have changed who this process is
        libc.syscall.restype = ctypes.c_long
        for name, *arguments in steps:
            buffers = [
                ctypes.create_string_buffer(a, len(a)) if isinstance(a, bytes) else a for a in arguments
            ]
            words = [b if isinstance(b, ctypes.Array) else ctypes.c_long(b) for b in buffers]  # type: ignore[arg-type]  # numbers are left
            answer = _told(libc.syscall(ctypes.c_long(NUMBERS[str(name)]), *words, *[ctypes.c_long(0)] * 4))
            raw = [b.raw.hex() for b in buffers if isinstance(b, ctypes.Array)]
            found.append([answer, raw, astuple(_of_host())])
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return list(json.loads(told))


def _call(task: Task, name: str, *arguments: object) -> list[object]:
    """What a call answers here."""
    cpu, at, words, buffers = task.cpu, DATA, [], []
    for argument in arguments:
        if isinstance(argument, bytes):
            cpu.copy_to_user(at, argument)
            buffers.append((at, len(argument)))
            words.append(at)
            at += 64
        else:
            assert isinstance(argument, int)
            words.append(argument & (1 << 64) - 1)
    function = find(name)
    assert function is not None
    try:
        answer = function(task, *words, *[0] * (6 - len(words)))
    except Refused as refused:
        answer = -refused.errno
    raw = [cpu.copy_from_user(start, length).hex() for start, length in buffers]
    return json.loads(json.dumps([answer, raw, astuple(task.credentials)]))  # type: ignore[no-any-return]  # a list


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_an_identity_changes_as_on_the_host(sequence: str) -> None:
    steps = SEQUENCES[sequence]
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        task.credentials = _of_host()
        for step, expected in zip(steps, _on_the_host(steps), strict=True):
            assert _call(task, *step) == expected, step  # type: ignore[arg-type]  # the first is the name


def test_an_unprivileged_user_is_told_as_much_as_on_the_host() -> None:
    steps: list[Step] = [("setresuid", 1000, 1000, 1000), *(s for each in SEQUENCES.values() for s in each)]
    with Several("arm64") as several:
        task = several.calls(code=SPIN["arm64"])
        several.machine.entry.switch(task)
        task.credentials = _of_host()
        for step, expected in zip(steps, _on_the_host(steps), strict=True):
            assert _call(task, *step) == expected, step  # type: ignore[arg-type]  # the first is the name


# ---- a new program


def test_execve_gives_root_what_it_may_have_and_others_their_ambient_capabilities() -> None:
    root = of_user(0, 0)
    bounded = replace(root, bounding=0xF0, permitted=0, effective=0, inheritable=0x1)
    assert (bounded.executed().permitted, bounded.executed().effective) == (0xF1, 0xF1)
    effective = replace(root, euid=5)
    assert (effective.executed().permitted, effective.executed().effective) == (cr.EVERY, 0)
    assert (effective.executed().suid, effective.executed().fsuid, effective.is_secure) == (5, 5, True)
    locked = replace(root, securebits=cr.NOROOT | cr.KEEP_CAPS)
    assert (locked.executed().permitted, locked.executed().securebits) == (0, cr.NOROOT)
    user = replace(of_user(5, 5), permitted=0xFF, effective=2, inheritable=2, ambient=2)
    assert (user.executed().permitted, user.executed().effective, user.is_secure) == (2, 2, False)


# ---- other processes


def _two(several: Several, one: Credentials, two: Credentials) -> tuple[Task, Task]:
    """The first is on the CPU."""
    first = several.calls(code=SPIN[several.isa])
    several.machine.entry.switch(first)
    second = made_by(first, "fork")
    several.tasks.append(second)
    first.credentials, second.credentials = one, two
    guard(first.process)
    return first, second


def test_signals_go_to_processes_of_the_same_user() -> None:
    with Several("x86_64") as several:
        one, two = _two(several, of_user(1000, 1000), of_user(1001, 1001))
        pid = two.process.group = two.process.pid
        for name, *arguments in (("kill", pid), ("kill", -pid), ("tkill", pid), ("tgkill", pid, pid)):
            assert _call(one, str(name), *arguments, sig.SIGUSR1)[0] == -errno.EPERM
        assert not two.process.signals.pending.mask and not two.signals.pending.mask
        two.process.session = one.process.session
        assert _call(one, "kill", pid, sig.SIGCONT)[0] == 0
        one.credentials = replace(one.credentials, euid=1001)
        assert _call(one, "kill", pid, sig.SIGUSR1)[0] == 0
        one.credentials = replace(of_user(7, 7), effective=1 << cr.KILL)
        assert _call(one, "kill", pid, sig.SIGUSR1)[0] == 0


def test_limits_and_priorities_are_the_users_own() -> None:
    with Several("x86_64") as several:
        one, two = _two(several, of_user(1000, 1000), of_user(1001, 1001))
        pid = two.process.pid
        assert _call(one, "prlimit64", pid, 4, 0, 0)[0] == -errno.EPERM
        assert _call(one, "setpriority", 0, pid, 5)[0] == -errno.EPERM
        assert _call(one, "sched_setscheduler", pid, 3, struct.pack("<i", 0))[0] == -errno.EPERM
        one.credentials = of_user(0, 0)
        assert _call(one, "prlimit64", pid, 4, 0, 0)[0] == 0
        assert _call(one, "setpriority", 0, pid, -5)[0] == 0


def _refusal(task: Task, path: str, flags: int = fl.O_RDONLY) -> int:
    try:
        task.files.close(task.files.open(fl.AT_FDCWD, path.encode(), flags))
    except Refused as refused:
        return refused.errno
    return 0


def test_the_inside_of_a_process_is_its_users() -> None:
    with Several("x86_64") as several:
        one, two = _two(several, of_user(1000, 1000), of_user(1001, 1001))
        folder = f"/proc/{two.process.pid}"
        for name in ("environ", "maps", "smaps", "mem", "pagemap", "auxv", "cwd", "exe", "fd", "fdinfo"):
            assert _refusal(one, f"{folder}/{name}") == errno.EACCES, name
            assert _refusal(one, f"/proc/self/{name}") == 0 or name == "exe"
        for name in ("cwd", "exe", "root", "fd/1"):
            with pytest.raises(Refused, match="EACCES"):
                one.files.readlink(fl.AT_FDCWD, f"{folder}/{name}".encode(), 100)
        for name in ("", "status", "stat", "cmdline", "limits"):
            assert _refusal(one, f"{folder}/{name}") == 0, name
        assert one.files.stat(fl.AT_FDCWD, folder.encode()).uid == 1001
        assert one.files.stat(fl.AT_FDCWD, f"{folder}/environ".encode()).uid == 1001
        one.credentials = of_user(1001, 1001)
        assert _refusal(one, f"{folder}/environ") == 0
        two.process.dumpable = 0
        assert one.files.stat(fl.AT_FDCWD, f"{folder}/environ".encode()).uid == 0
        assert _refusal(one, f"{folder}/environ") == _refusal(one, f"{folder}/maps") == errno.EACCES
        one.credentials = of_user(0, 0)
        assert _refusal(one, f"{folder}/environ") == 0


# ---- files


def _attempt(task: Task, name: str, *arguments: object) -> int:
    """0, or the errno that a method of `Files` refuses with."""
    try:
        getattr(task.files, name)(*arguments)
    except Refused as refused:
        return refused.errno
    return 0


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_files_in_memory_have_owners_that_others_must_respect(isa: str) -> None:
    here = fl.AT_FDCWD
    with Several(isa, uid=0, gid=0) as several:
        task, _ = _two(several, of_user(0, 0), of_user(0, 0))
        files = task.files
        files.mkdir(here, b"/tmp/d", 0o755)
        for name, mode in ((b"own", 0o600), (b"group", 0o640), (b"d/inside", 0o666)):
            files.close(files.open(here, b"/tmp/" + name, fl.O_CREAT | fl.O_RDWR, mode))
        files.chown(here, b"/tmp/group", 0, 44)
        files.chmod(here, b"/tmp/d/inside", 0o666)
        files.mkdir(here, b"/tmp/closed", 0o700)
        task.credentials = replace(of_user(1000, 1000), groups=(44,))
        denied, not_owner = errno.EACCES, errno.EPERM
        assert _refusal(task, "/tmp/own") == _refusal(task, "/tmp/group", fl.O_RDWR) == denied
        assert _refusal(task, "/tmp/group") == 0
        assert _refusal(task, "/tmp/group", fl.O_NOATIME) == not_owner
        assert _refusal(task, "/tmp/closed") == _refusal(task, "/tmp/closed/x") == denied
        assert _attempt(task, "chdir", b"/tmp/closed") == denied
        assert _attempt(task, "mkdir", here, b"/tmp/d/x", 0o777) == denied
        assert _attempt(task, "unlink", here, b"/tmp/d/inside") == denied
        assert (
            _attempt(task, "unlink", here, b"/tmp/own")
            == _attempt(task, "rmdir", here, b"/tmp/d")
            == not_owner
        )
        assert _attempt(task, "rename", here, b"/tmp/own", here, b"/tmp/mine") == not_owner
        assert _attempt(task, "chmod", here, b"/tmp/own", 0o666) == not_owner
        assert _attempt(task, "chown", here, b"/tmp/own", 1000, 1000) == not_owner
        assert _attempt(task, "utimens", here, b"/tmp/own", 1, 1) == not_owner
        task.files.utimens(here, b"/tmp/d/inside", 5, 5, touches=True)
        assert _attempt(task, "truncate", b"/tmp/group", 0) == denied
        task.files.close(task.files.open(here, b"/tmp/mine", fl.O_CREAT | fl.O_RDWR, 0o6755))
        found = task.files.stat(here, b"/tmp/mine")
        assert (found.uid, found.gid) == (1000, 1000)
        assert _attempt(task, "chown", here, b"/tmp/mine", -1, 45) == not_owner
        task.files.chown(here, b"/tmp/mine", -1, 44)
        assert task.files.stat(here, b"/tmp/mine").mode & 0o7777 == 0o755
        assert _attempt(task, "access", here, b"/tmp/own", os.R_OK) == denied
        task.credentials = replace(of_user(0, 0), uid=1000)
        assert _attempt(task, "access", here, b"/tmp/own", os.R_OK) == denied, "the real user is asked about"
        assert _attempt(task, "access", here, b"/tmp/own", os.R_OK, fl.AT_EACCESS) == 0


def test_what_is_made_in_a_directory_of_a_group_is_the_groups() -> None:
    here = fl.AT_FDCWD
    with Several("x86_64", uid=0, gid=0) as several:
        task, _ = _two(several, of_user(0, 0), of_user(0, 0))
        files = task.files
        files.mkdir(here, b"/tmp/shared", 0o777)
        files.chown(here, b"/tmp/shared", -1, 50)
        files.chmod(here, b"/tmp/shared", 0o2777)
        task.credentials = of_user(1000, 1000)
        files.mkdir(here, b"/tmp/shared/d", 0o755)
        files.close(files.open(here, b"/tmp/shared/f", fl.O_CREAT | fl.O_WRONLY, 0o2755))
        d, f = (files.stat(here, b"/tmp/shared/" + name) for name in (b"d", b"f"))
        assert (d.gid, d.mode & 0o7000, f.gid, f.mode & 0o7000) == (50, 0o2000, 50, 0)


# ---- roots


def test_a_root_is_chosen_by_the_superuser_and_nothing_above_it_is_found() -> None:
    here = fl.AT_FDCWD
    with Several("x86_64", uid=0, gid=0) as several:
        task, other = _two(several, of_user(0, 0), of_user(0, 0))
        files = task.files
        for path in (b"/tmp/r", b"/tmp/r/in"):
            files.mkdir(here, path, 0o755)
        files.close(files.open(here, b"/tmp/out", fl.O_CREAT | fl.O_WRONLY, 0o666))
        files.symlink(b"/in", here, b"/tmp/r/link")
        task.credentials = of_user(1000, 1000)
        assert _call(task, "chroot", b"/tmp/r\0")[0] == -errno.EPERM
        assert _call(task, "chroot", b"/tmp/none\0")[0] == -errno.ENOENT
        task.credentials = of_user(0, 0)
        assert _call(task, "chroot", b"/tmp/r\0")[0] == 0
        assert files.getcwd().startswith(b"(unreachable)/")
        files.chdir(b"/../../link/..")
        assert files.getcwd() == b"/"
        for path in (b"/out", b"../out", b"/../out", b"/tmp/out"):
            assert _attempt(task, "stat", here, path) == errno.ENOENT
        fd = files.open(here, b"/in", fl.O_RDONLY)
        assert files.stat(here, b"/link").is_directory
        assert other.files.stat(here, b"/tmp/out").uid == 0, "each has its own"
        files.close(fd)


def test_a_snapshot_keeps_who_a_task_is_and_what_it_may_not_open_any_more() -> None:
    path = program("x86_64", "hello")
    grants = Grants(cwd=path.parent)
    with Machine("x86_64", ram="8M", aperture="4M", uid=0, gid=0) as machine:
        machine.load(path, grants=grants)
        assert machine.run_for(20) is None
        task = machine.entry.task
        fd = task.files.open(fl.AT_FDCWD, b"/tmp/own", fl.O_CREAT | fl.O_RDWR, 0o600)
        listing = task.files.open(fl.AT_FDCWD, b"/proc/self/environ", fl.O_RDONLY)
        task.become(replace(of_user(7, 8), groups=(3, 4)))
        task.no_new_privileges = 1
        with restore(capture(machine), grants=grants) as again:
            other = again.entry.task
            assert other.credentials == task.credentials == again.kernel.actor.credentials
            assert (other.no_new_privileges, other.process.dumpable) == (1, 0)
            assert other.files.stat(fl.AT_FDCWD, b"/tmp/own").uid == 0
            other.files.fstat(fd), other.files.fstat(listing)
            assert _refusal(other, "/tmp/own") == errno.EACCES
