"""Ctrl-C at any moment of any command: status 130, no traceback, no verdict, no half file, and no waiting.

The moments are seeded. One of each command is tried here, forty in the slow sweep, which tells the longest
time from the signal to the end. SIGINT is held back until Python runs, as `scripts/aether` does.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keystone
import pytest

from tests.cli.command import COMMAND, PATIENCE, PROGRAMS, environment
from tests.linux.exec.crafted import READ_STDIN, crafted

MOST = 10  # seconds to end: far more than the half of one that is promised, for hosts with other work
FEW, MANY = 1, 40
MODULE = (sys.executable, "-m", "aether_emu")
INSTALLED = (sys.executable, str(Path(sys.executable).with_name("aether")))
SPIN = str(PROGRAMS / "x86_64" / "spin")

# mmap(0, 64 MiB, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0); munmap(it); and again
LONG_CALLS = """
again: mov eax, 9; xor edi, edi; mov esi, 0x4000000; mov edx, 3; mov r10d, 0x8022; mov r8, -1; xor r9d, r9d
       syscall; mov rdi, rax; mov esi, 0x4000000; mov eax, 11; syscall; jmp again
"""
# write(1, rsp - 0x10000, 0x10000), and again
WRITES = """
again: mov eax, 1; mov edi, 1; lea rsi, [rsp - 0x10000]; mov edx, 0x10000; syscall; jmp again
"""
# fork(), and again in each of both
FORKS = "again: mov eax, 57; syscall; jmp again"


def assembled(source: str) -> bytes:
    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source)
    return bytes(code)


@dataclass(frozen=True)
class Scene:
    """A command, and in how many seconds of it the moments lie. `{}` in an argument is an empty folder.

    `started`: how it is called. `ends`: it ends by itself some time. `full`: its standard output is a pipe
    that nobody reads.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    ends: bool = False
    full: bool = False
    programs: tuple[tuple[str, Callable[[], bytes]], ...] = ()
    started: tuple[str, ...] = tuple(COMMAND)


def guest(name: str, code: Callable[[], bytes], *options: str, **settings: Any) -> Scene:
    return Scene(
        f"run {name}",
        ("run", *options, "{}/p"),
        1.5,
        programs=(("p", lambda: crafted(code=code())),),
        **settings,
    )


OUTPUTS = ("--stats", "--stats-json", "{}/stats", "--core", "{}/core")
REPORTS = ("--report", "{}/report", "--junit", "{}/junit")
SCENES = (
    Scene("run spin", ("run", SPIN), 1.5),
    Scene("run spin on arm64", ("run", str(PROGRAMS / "arm64" / "spin")), 1.5),
    Scene("run with outputs", ("run", *OUTPUTS, SPIN), 1.5),
    guest("waiting for input", lambda: READ_STDIN["x86_64"]),
    guest("in long calls", lambda: assembled(LONG_CALLS)),
    guest("in traced calls", lambda: assembled(LONG_CALLS), "--strace={}/trace"),
    guest("a fork bomb", lambda: assembled(FORKS), "--ram", "256M"),
    guest("into a full pipe", lambda: assembled(WRITES), full=True),
    Scene("verify", ("verify", "--full", *REPORTS), 4),
    Scene("verify with workers", ("verify", "--full", "--jobs", "2", *REPORTS), 4),
    Scene("litmus", ("litmus", "--json", "{}/json"), 1.5, ends=True),
    Scene("bench", ("bench", "--json", "{}/json"), 4),
    Scene("pt into a full pipe", ("pt", "walk", "IMAGE", *map(hex, range(0, 4 << 20, 4096))), 1.0, full=True),
    Scene("pt show", ("pt", "show", "IMAGE"), 1.0, ends=True),
    Scene("pt lint", ("pt", "lint", "IMAGE"), 1.0, ends=True),
    Scene("pt lint --execute", ("pt", "lint", "--execute", "IMAGE"), 2.0, ends=True),
    Scene(
        "pt walk --json",
        ("pt", "walk", "--json", "IMAGE", *map(hex, range(0, 4 << 20, 4096))),
        1.0,
        ends=True,
    ),
    Scene("pt who", ("pt", "who", "IMAGE", *map(hex, range(0, 4 << 20, 4096))), 1.0, ends=True),
    Scene("pt diff", ("pt", "diff", "IMAGE", "OTHER"), 1.0, ends=True),
    Scene("pt show --execute", ("pt", "show", "--execute", "IMAGE"), 2.0, ends=True),
    Scene("demo", ("demo",), 1.0, ends=True),
    Scene("config", ("config",), 0.2, ends=True),
    Scene("man", ("man",), 0.4, ends=True),
    Scene("completion", ("completion", "bash"), 0.2, ends=True),
    Scene("help", ("--help",), 0.2, ends=True),
    Scene("python -m", ("run", SPIN), 0.5, started=MODULE),
    Scene("the installed command", ("run", SPIN), 0.5, started=INSTALLED),
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of a program with some thousand pages; in "core2" that of another one."""
    path = tmp_path_factory.mktemp("image") / "core"
    for name, *program in ((path, "touch", "30000", "1"), (f"{path}2", "maps")):
        program[0] = str(PROGRAMS / "x86_64" / program[0])
        command = [*COMMAND, "run", "--core", str(name), *program]
        subprocess.run(command, env=environment(), capture_output=True, timeout=PATIENCE, check=True)
    return path


def hold_back() -> None:
    """In the child, before Python: SIGINT waits until the command asks for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


@dataclass(frozen=True)
class Ended:
    """How it ended. `seconds`: from the signal on; `early`: it had ended before."""

    status: int
    seconds: float
    early: bool
    output: bytes
    errors: bytes


def interrupted(scene: Scene, folder: Path, image: Path, moment: float, *, terminal: bool) -> Ended:
    """Start it and send SIGINT at that moment: from a `terminal`, to all its processes, or to the first."""
    arguments = [
        argument.replace("{}", str(folder)).replace("IMAGE", str(image)).replace("OTHER", f"{image}2")
        for argument in scene.arguments
    ]
    read, write = os.pipe()
    child = subprocess.Popen(
        [*scene.started, *arguments],
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
        preexec_fn=hold_back,  # noqa: PLW1509  # it only blocks a signal
    )
    os.close(write)
    output, errors = bytearray(), bytearray()

    def take(fd: int, into: bytearray) -> None:
        while data := os.read(fd, 1 << 16):
            into.extend(data)

    assert child.stderr is not None
    pipes = (
        [(child.stderr.fileno(), errors)] if scene.full else [(read, output), (child.stderr.fileno(), errors)]
    )
    readers = [threading.Thread(target=take, args=pipe) for pipe in pipes]
    for reader in readers:
        reader.start()
    try:
        early = True
        try:
            child.wait(moment)
        except subprocess.TimeoutExpired:
            early = False
            (os.killpg if terminal else os.kill)(child.pid, signal.SIGINT)
        begun = time.monotonic()
        status = child.wait(MOST)
        return Ended(status, time.monotonic() - begun, early, bytes(output), bytes(errors))
    finally:
        child.kill()
        child.wait()
        for reader in readers:  # they end when the last process that has the pipes does
            reader.join(MOST)
            assert not reader.is_alive(), "a worker is left"
        assert child.stdin is not None
        child.stdin.close()
        child.stderr.close()
        os.close(read)


def sweep(scene: Scene, folder: Path, image: Path, count: int, seed: int = 0) -> float:
    """The longest time that it took to end, in seconds. From a terminal and by kill(1) in turn."""
    chance, longest = random.Random(f"{scene.name} {seed}"), 0.0
    first = chance.randrange(2)
    for number in range(count):
        for name, content in scene.programs:
            (folder / name).write_bytes(content())
            (folder / name).chmod(0o755)
        before = {path.name for path in folder.iterdir()}
        moment = scene.seconds * (number + chance.random()) / count
        ended = interrupted(scene, folder, image, moment, terminal=bool((number + first) % 2))
        what = f"{scene.name} at {moment:.3f} s: {ended}"
        if scene.ends and ended.status != 130:
            assert ended.status in (0, 1) and ended.output, what
        else:
            assert ended.status == 130, what
            assert not ended.early, what
        assert b"Traceback" not in ended.output + ended.errors, what
        assert b"nothing is left to explain" not in ended.output, what
        left = {path.name: path for path in folder.iterdir() if path.name not in before}
        assert left.keys() <= {"stats", "core", "trace"}, what  # those of a run tell how far it came
        for name, path in left.items():
            text = path.read_bytes()
            assert text[:2] in (b"{\n", b"\x7fE") or (name == "trace" and text[-1:] in (b"\n", b"")), what
            path.unlink()
        longest = max(longest, ended.seconds)
    return longest


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_ctrl_c_at_any_moment_ends_the_command(scene: Scene, tmp_path: Path, image: Path) -> None:
    sweep(scene, tmp_path, image, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_ctrl_c_at_forty_moments_ends_the_command(
    scene: Scene, tmp_path: Path, image: Path, record_property: Callable[[str, object], None]
) -> None:
    longest = sweep(scene, tmp_path, image, MANY, seed=1)
    record_property("longest", longest)
    print(f"{scene.name}: {1000 * longest:.0f} ms at most")


_IN_SET_NAME = """
from aether_emu.cli import main
class Member:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt
def perform(program):
    class Kinds:
        one = Member()
main._perform = perform
main.main()
"""


def test_an_interrupt_that_python_turns_into_another_exception_is_one_still() -> None:
    """Before 3.12 that is a RuntimeError, as when the enums of a module are made."""
    ended = subprocess.run(
        [sys.executable, "-c", _IN_SET_NAME], capture_output=True, timeout=MOST, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, b"")


def test_an_interrupted_run_tells_its_statistics_so_far(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    child = subprocess.Popen(
        [*COMMAND, "run", "--stats", "--stats-json", str(path), SPIN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"spinning\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=MOST)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 130
    assert b"so far" in errors
    assert b"blocks executed" in errors
    assert b'"exit_status": null' in path.read_bytes()


def test_a_second_ctrl_c_does_not_wait() -> None:
    """Whoever is stuck while it tells what it has: here the output is a pipe that nobody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    child = subprocess.Popen(
        [*COMMAND, "verify", "x86_64-4level", "--suite", "tlb"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=hold_back,  # noqa: PLW1509  # it only blocks a signal
    )
    try:
        for _ in range(2):
            child.send_signal(signal.SIGINT)
        assert child.wait(MOST) == 130
    finally:
        child.kill()
        child.communicate()
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("source", [WRITES, FORKS], ids=["into a full pipe", "a fork bomb"])
def test_a_timeout_ends_a_program_that_works_without_end(tmp_path: Path, source: str) -> None:
    program = tmp_path / "p"
    program.write_bytes(crafted(code=assembled(source)))
    program.chmod(0o755)
    child = subprocess.Popen(
        [*COMMAND, "run", "--timeout", "0.3", str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert child.wait(PATIENCE) == 124
    finally:
        child.kill()
        child.communicate()


HALTS_LATE = """
import sys, time
from aether_emu import system
run = system.Machine.run
def late(self, timeout=None):
    try:
        return run(self, timeout)
    finally:
        time.sleep(1)  # a long call, in the midst of which it cannot be left
system.Machine.run = late
from aether_emu.cli.main import main
sys.argv[1:] = ["run", "--timeout", "0.3", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("options", "tells"), [(("--stats",), True), ((), False)])
def test_after_a_timeout_what_was_asked_for_is_written_though_the_machine_halts_late(
    options: tuple[str, ...], tells: bool
) -> None:
    command = [sys.executable, "-c", HALTS_LATE, *options, SPIN]
    started = time.monotonic()
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 124
    assert (b"wall time" in done.stderr) is tells
    assert done.stderr.endswith(b"stopped by --timeout\n")
    assert time.monotonic() - started < PATIENCE / 2


def test_a_timeout_ends_a_command_that_waits_though_nobody_takes_the_line(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    options = ["run", "--timeout", "0.3", "--stats-json", str(fifo), str(PROGRAMS / "x86_64" / "hello")]
    command = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *COMMAND, *options]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    try:
        assert child.wait(MOST + 10) == 124
    finally:
        child.kill()
        child.wait()


HALF_WRITTEN = """
import time
from aether_emu.cli.interrupts import interrupts
from aether_emu.output import Output
interrupts.watch()
output = Output("core", "core", regular=True)
with output.open() as file:
    file.write(b"half")
    print("now", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_nothing_half_written_stays_when_a_signal_ends_the_command(
    number: signal.Signals, named: bool, tmp_path: Path
) -> None:
    """Where a file can be written without a name not even SIGKILL leaves one."""
    code = "import os; os.O_TMPFILE = os.O_DIRECTORY\n" if named else ""
    child = subprocess.Popen(
        [sys.executable, "-c", code + HALF_WRITTEN], stdout=subprocess.PIPE, cwd=tmp_path, env=environment()
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        assert len(list(tmp_path.iterdir())) == named
        child.send_signal(number)
        killed = number == signal.SIGKILL
        assert child.wait(MOST) == (-number if killed else 128 + number)
        assert len(list(tmp_path.iterdir())) == (killed and named)
    finally:
        child.kill()
        child.communicate()


def test_a_hangup_that_the_caller_ignores_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        options = ["run", "--timeout", "1", str(PROGRAMS / "x86_64" / "spin")]
        child = subprocess.Popen([*COMMAND, *options], stderr=subprocess.DEVNULL, env=environment())
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        while child.poll() is None:
            child.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        assert child.returncode == 124
    finally:
        child.kill()
        child.wait()
