"""The run's own streams: a shell with real redirections does the same with them natively and emulated.

The shell around the run goes on with the same descriptors, so that where the guest left them shows too.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, PATIENCE, environment
from tests.programs.run import HOST_ISA, ISAS

pytestmark = pytest.mark.debian


_OLD = b"hello world, this is old\nsecond\n"
_LINES = b"".join(b"%d\n" % number for number in range(1, 20001))

_CASES = [
    ("$B head -n 2; read x; echo $x; $B sed -n 2q; read y; echo $y; $B cat | $B wc -l", "< in"),
    ("read a; read b; echo $a $b", "< in"),
    ("$B tail -n 1; $B stat -L -c '%F %s' /dev/stdin; [ -f /dev/stdin ]; echo $?", "< in"),
    ("$B cat /dev/stdin | $B head -n 1; $B cat /dev/stdin | $B wc -l; $B head -n 1", "< in"),
    ("$B dd bs=5 skip=1 count=1 2>&-; $B dd bs=4 count=1 2>&-", "< in"),
    ("echo one; echo two >&2; echo three", "> out 2>&1"),
    ("echo one; echo two >&2; echo three", ">> out 2>&1"),
    ("echo a > /dev/stdout; echo b >> /dev/stdout; echo c", ">> out"),
    ("echo no >&0; read x <&1; echo $?", "< in > out"),
    ("read a; echo $a; echo new >&0; $B cat", "<> out"),
    ("$B dd bs=3 count=1 < in 2>&-; $B dd bs=2 seek=4 count=1 conv=notrunc < in 2>&-", "> out"),
    ("$B flock -n 0 && ! $B flock -n in echo no; $B flock -u 0; $B flock -n in echo yes", "< in"),
    ("trap '' XFSZ; ulimit -f 1; $B head -c 5000 /dev/zero; echo $? >&2", ">> out"),
    ("$B truncate -s 5 /dev/stdout; echo z", ">> out"),
    ("[ in -ef /dev/stdin ]; echo $? >&2; echo x; [ -c /dev/fd/1 ]; echo $? >&2", "< in > /dev/full"),
    ("$B stat -L -c '%F %t %T' /dev/stdin; $B cat; echo no >&0", "< /dev/null"),
    ("$B cat; [ -e /dev/stdin ]; echo $?", "<&-"),
    ("echo hi; echo $? >&2", ">&-"),
    ("$B stat -L -c %F /dev/stdin; $B head -c 3", "< <(echo hello)"),
    ("read x; echo $x; [ -f /dev/stdin ] && $B stat -L -c %h /dev/stdin", '<<< "$(cat in)"'),
]  # fmt: skip


def _programs(static: Path, isa: str) -> Path:
    return static / isa / "bin"


def _emulated(static: Path, isa: str, folder: Path, *words: str) -> list[str]:
    """The command that runs a program of Debian's in `folder`, which it may write."""
    programs, own = _programs(static, isa), [f"--uid={os.getuid()}", f"--gid={os.getgid()}"]
    binds = [
        f"--bind={programs}:/programs",
        f"--bind={folder}:{folder}:rw",
        "--env=B=/programs/busybox",
        f"--env=W={folder}",
    ]
    return [*COMMAND, "run", *own, *binds, f"{programs}/bash-static", *words]


def _redirected(
    folder: Path, command: list[str], redirection: str, native: dict[str, str]
) -> dict[str, object]:
    """Run a command, then builtins that go on reading and writing. What all that left."""
    folder.mkdir()
    (folder / "in").write_bytes(_LINES)
    (folder / "out").write_bytes(_OLD)
    around = f"{{ {shlex.join(command)}; echo status $?; read rest; echo rest $rest; }} {redirection}"
    done = subprocess.run(
        ["bash", "-c", around, "around"],
        cwd=folder, env=environment() | native, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**left, "stdout": done.stdout, "stderr": done.stderr}


_EACH = [(ISAS[number % 2], *case) for number, case in enumerate(_CASES)]
_OTHERS = [(ISAS[(number + 1) % 2], *case) for number, case in enumerate(_CASES)]


@pytest.mark.parametrize(("isa", "script", "redirection"), _EACH)
def test_redirections_mean_the_same_as_natively(
    static: Path, tmp_path: Path, isa: str, script: str, redirection: str
) -> None:
    """Each case on one ISA in turn: streams are the host's, whatever the guest. Others are marked slow."""
    _compare(static, tmp_path, isa, script, redirection)


@pytest.mark.slow
@pytest.mark.parametrize(("isa", "script", "redirection"), _OTHERS)
def test_redirections_mean_the_same_on_the_other_isa(
    static: Path, tmp_path: Path, isa: str, script: str, redirection: str
) -> None:
    _compare(static, tmp_path, isa, script, redirection)


def _compare(static: Path, tmp_path: Path, isa: str, script: str, redirection: str) -> None:
    here, words = _programs(static, HOST_ISA), ["-c", f"cd $W; {script}", "guest"]
    folder = tmp_path / "native"
    native = {"B": f"{here}/busybox", "W": str(folder)}
    expected = _redirected(folder, [f"{here}/bash-static", *words], redirection, native)
    folder = tmp_path / "emulated"
    assert _redirected(folder, _emulated(static, isa, folder, *words), redirection, {}) == expected


def _status(static: Path, folder: Path, script: str, stdin: int) -> tuple[int, bytes]:
    command = _emulated(static, HOST_ISA, folder, "-c", script, "guest")
    done = subprocess.run(
        command,
        stdin=stdin,
        cwd=folder,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_file_outside_of_all_grants_has_no_name_and_gives_no_more_than_its_mode(
    static: Path, tmp_path: Path
) -> None:
    granted, secret = tmp_path / "granted", tmp_path / "secret"
    granted.mkdir()
    secret.write_bytes(b"handed over")
    script = """
        $B readlink /proc/self/fd/0; read x < /dev/stdin; echo $x
        echo more >> /dev/stdin; : > /proc/self/fd/0; : <> /dev/stdin; $B head -c 6
    """
    with secret.open("rb") as stdin:
        status, said = _status(static, granted, script, stdin.fileno())
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 6, "where the guest stopped"
    assert status == 0
    assert said.startswith(b"/stdin\nhanded over\n")
    assert said.count(b"Permission denied") == 3
    assert secret.read_bytes() == b"handed over"


def test_a_socket_is_one(static: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"hello\n")
        script = "read x; echo $x >&0; $B stat -L -c %F /dev/stdin; : < /dev/stdin"
        _, said = _status(static, tmp_path, script, theirs.fileno())
        assert ours.recv(9) == b"hello\n"
    assert said.startswith(b"socket\n")
    assert said.endswith(b"/dev/stdin: No such device or address\n")
