"""`aether run` as users meet it: streams, status, options, and how it is stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, ISAS, PATIENCE, PROGRAMS, aether, environment, one_line, start
from tests.guests.running import TARGETS, Target
from tests.linux.exec.crafted import CODE, OPEN_ARGUMENT, OPENED, READ_STDIN, Header, crafted

_HELLO = "hello, world\nargc = {}\n"


def _program(tmp_path: Path, code: dict[str, bytes], isa: str = "x86_64", name: str = "p") -> Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(crafted(isa=isa, code=code[isa]))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("isa", ISAS)
def test_a_program_runs_and_the_isa_is_its_own(isa: str) -> None:
    result = aether("run", PROGRAMS / isa / "hello", "one", "--two", "--debug")
    assert (result.stdout.decode(), result.returncode, result.stderr) == (_HELLO.format(4), 0, b"")


@pytest.mark.parametrize("isa", ISAS)
def test_the_status_is_the_programs_and_stdin_reaches_it(tmp_path: Path, isa: str) -> None:
    program = _program(tmp_path, READ_STDIN, isa)
    assert aether("run", program, stdin=b"12345").returncode == 5
    assert aether("run", program).returncode == 0


def test_death_for_want_of_memory_is_said_in_one_line_below_the_table_that_says_why() -> None:
    result = aether("run", "--ram", "4M", PROGRAMS / "x86_64" / "hog")
    assert result.returncode == 128 + signal.SIGKILL
    *table, last = result.stderr.splitlines()
    assert last == b"aether: %s: killed by out of memory" % str(PROGRAMS / "x86_64" / "hog").encode()
    assert table[0].startswith(b"aether: out of memory: hog (1000) needs a page; ")
    assert len(table) == 4


@pytest.mark.parametrize("isa", ISAS)
def test_timeout_ends_a_spinning_program(isa: str) -> None:
    result = aether("run", "--timeout", "0.2", PROGRAMS / isa / "spin")
    assert result.returncode == 124
    assert result.stderr.endswith(b"spin: stopped by --timeout\n")
    assert result.stderr.count(b"\n") == 1


def test_timeout_ends_a_program_that_waits(tmp_path: Path) -> None:
    child = start("run", "--timeout", "0.2", _program(tmp_path, READ_STDIN))
    try:
        assert child.wait(PATIENCE) == 124, "its stdin is open and empty"
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("isa", ISAS)
def test_an_interrupt_ends_a_spinning_program(isa: str) -> None:
    child = start("run", PROGRAMS / isa / "spin")
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"spinning\n"
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(PATIENCE) == 130
        assert child.stderr is not None
        assert child.stderr.read() == b""
    finally:
        child.kill()
        child.communicate()


def test_an_interrupt_ends_a_program_that_waits(tmp_path: Path) -> None:
    """The program waits once it has taken the first input: it reads, and the wrapper sees it asleep."""
    program = _program(tmp_path, READ_STDIN)
    code = (
        "import sys, time\n"
        "pause = time.sleep\n"
        "def said(seconds):\n"
        "    sys.stderr.write('waiting\\n')\n"
        "    time.sleep = pause\n"
        "    pause(seconds)\n"
        "time.sleep = said\n"
        "from aether_emu.cli.main import main\n"
        "main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(program)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment(),
    )
    try:
        assert child.stderr is not None
        assert child.stderr.readline() == b"waiting\n"
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(PATIENCE) == 130
        assert child.stderr.read() == b""
    finally:
        child.kill()
        child.communicate()


def test_a_broken_pipe_kills_the_program_as_it_would_natively() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "run", str(PROGRAMS / "x86_64" / "hello")]
    result = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, timeout=PATIENCE, env=environment(), check=False
    )
    os.close(write)
    assert result.returncode == 128 + signal.SIGPIPE
    assert result.stderr == b"", "as a shell, which says nothing of it"


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_none_of_our_own_descriptors(tmp_path: Path, closed: int) -> None:
    """Otherwise the guest would read or write the file that happened to get the number. It gets EBADF."""
    program = _program(tmp_path, READ_STDIN) if closed == 0 else PROGRAMS / "x86_64" / "hello"
    shell = f'exec "$@" {closed}<&-'
    native, result = (
        subprocess.run(
            ["sh", "-c", shell, "sh", *command, str(program)],
            input=b"", capture_output=True, timeout=PATIENCE, env=environment(), check=False,
        )
        for command in ([], [*COMMAND, "run"])
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (native.returncode, b"")
    assert result.stdout == (_HELLO.format(1).encode() if closed == 2 else b"")


def test_the_working_directory_is_visible_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    _program(tmp_path, OPEN_ARGUMENT)
    assert aether("run", "./p", "file", cwd=tmp_path).returncode == OPENED
    assert aether("run", "./p", "/etc/passwd", cwd=tmp_path).returncode == errno.ENOENT


def test_bind_shows_one_more_directory(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("shown")
    program = _program(tmp_path, OPEN_ARGUMENT)
    result = aether("run", "--bind", f"{tmp_path}/other:/data:rw", program, "/data/file")
    assert result.returncode == OPENED


def test_root_becomes_the_guests_root(tmp_path: Path) -> None:
    """The program is a path of the guest, so an absolute link leads to what the root holds."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "file").write_text("the guest's")
    (root / "bin" / "open").write_bytes(crafted(isa="arm64", code=OPEN_ARGUMENT["arm64"]))
    (root / "bin" / "open").chmod(0o755)
    (root / "bin" / "linked").symlink_to("/bin/open")
    assert aether("run", "--root", root, "bin/linked", "file").returncode == OPENED, "it stands in /"


def test_environment_variables_are_those_given(tmp_path: Path) -> None:
    """openat(argv[1]) becomes openat(envp[0]) without an argument: "K=V" names a file."""
    (tmp_path / "K=V").write_text("")
    moved = OPEN_ARGUMENT["x86_64"].replace(
        bytes([0x48, 0x8B, 0x74, 0x24, 16]), bytes([0x48, 0x8B, 0x74, 0x24, 24])
    )
    (tmp_path / "p").write_bytes(crafted(code=moved))
    (tmp_path / "p").chmod(0o755)
    assert aether("run", "--env", "K=V", "p", cwd=tmp_path).returncode == OPENED
    assert aether("run", "--env", "K=W", "p", cwd=tmp_path).returncode == errno.ENOENT
    assert aether("run", "p", cwd=tmp_path).returncode == errno.EFAULT, "nothing is inherited"


def test_a_configuration_file_counts_and_an_option_counts_more(tmp_path: Path) -> None:
    config, report = tmp_path / "c.toml", tmp_path / "stats.json"
    config.write_text('ram = "6M"\nseed = 3\n')

    def ram(*options: str) -> int:
        result = aether(
            "run", "--config", config, "--stats-json", report, *options, PROGRAMS / "x86_64" / "hello"
        )
        assert result.returncode == 0, result.stderr
        size = json.loads(report.read_text())["memory"]["ram_bytes"]
        assert isinstance(size, int)
        return size

    assert ram() == 6 << 20
    assert ram("--ram", "7M") == 7 << 20


def test_a_program_is_the_user_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p"
    # getuid() * 16 + getgid() is the status
    path.write_bytes(
        crafted(code=bytes.fromhex("b866000000 0f05 89c3 b868000000 0f05 c1e304 01d8 89c7 b8e7000000 0f05"))
    )
    path.chmod(0o755)
    for uid, gid in ((0, 7), (2, 1)):
        assert aether("run", "--uid", str(uid), "--gid", str(gid), str(path)).returncode == 16 * uid + gid
    one_line(aether("run", "--uid", "-1", str(path)), 2, ["--uid -1"])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_output_and_statistics_are_the_same_on_every_run_with_one_seed(
    tmp_path: Path, target: Target
) -> None:
    def run(seed: int) -> tuple[bytes, str]:
        path = tmp_path / "stats.json"
        options = ("--seed", str(seed), "--granule", str(target.page_size), "--stats-json", str(path))
        result = aether("run", *options, PROGRAMS / target.isa / "clock", "raw", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        report, wall = path.read_text().split('"wall_seconds"')
        assert float(wall.strip(": }\n")) > 0
        return result.stdout, report

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]


@pytest.mark.parametrize(
    ("text", "size"), [("4K", 4096), ("16K", 16384), ("16384", 16384), ("64k", 65536), ("64KiB", 65536)]
)
def test_granule_is_the_page_size_of_an_arm64_machine(tmp_path: Path, text: str, size: int) -> None:
    report = tmp_path / "stats.json"
    result = aether("run", "--granule", text, "--stats-json", report, PROGRAMS / "arm64" / "hello")
    assert (result.stdout.decode(), result.returncode, result.stderr) == (_HELLO.format(1), 0, b"")
    assert json.loads(report.read_text())["page_size"] == size


def test_granule_counts_more_than_the_configuration_file(tmp_path: Path) -> None:
    config, report = tmp_path / "c.toml", tmp_path / "stats.json"
    config.write_text('page_size = "16K"\n')
    for options, size in ((("--granule", "64K"), 65536), ((), 16384)):
        program = PROGRAMS / "arm64" / "hello"
        result = aether("run", "--config", config, "--stats-json", report, *options, program)
        assert result.returncode == 0, result.stderr
        assert json.loads(report.read_text())["page_size"] == size


@pytest.mark.parametrize("text", ["8K", "32K", "4X", "0", "", "-4096", "4096.0", "2M"])
def test_a_granule_that_no_machine_has_is_one_line(text: str) -> None:
    one_line(
        aether("run", f"--granule={text}", PROGRAMS / "arm64" / "hello"),
        2,
        [f"--granule {text or repr(text)} "],
    )


@pytest.mark.parametrize("text", ["16K", "64K"])
def test_a_granule_that_x86_64_does_not_have_is_one_line(text: str) -> None:
    said = one_line(aether("run", "--granule", text, PROGRAMS / "x86_64" / "hello"), 2)
    assert f"--granule {text} is not possible on x86_64: pages are 4K there (see aether run --help)" in said
    assert aether("run", "--granule", "4K", PROGRAMS / "x86_64" / "hello").returncode == 0


@pytest.mark.parametrize("text", ["16K", "64K"])
def test_a_program_that_was_laid_out_for_smaller_pages_is_one_line(tmp_path: Path, text: str) -> None:
    """Linked for 4 KiB alone; then with code and data in one page of the larger kind."""
    code = Header(address=0x401000)
    unaligned = crafted([code], isa="arm64", entry=0x401000 + CODE)
    shared = crafted(
        [code.but(address=0x400000), Header(flags=6, offset=0x1000, address=0x401000)], isa="arm64"
    )
    for content, words in ((unaligned, "not aligned to pages"), (shared + shared, "different permissions")):
        (tmp_path / "p").write_bytes(content)
        (tmp_path / "p").chmod(0o755)
        said = one_line(aether("run", "--granule", text, "p", cwd=tmp_path), 126, [words])
        assert f"of {text} (see --granule)" in said
        assert aether("run", "p", cwd=tmp_path).returncode == 7


def test_stats_are_a_table_on_stderr() -> None:
    result = aether("run", "--stats", PROGRAMS / "x86_64" / "hello")
    assert result.stdout.decode() == _HELLO.format(1)
    for words in (b"page-table pages", b"system calls", b"wall time"):
        assert words in result.stderr


def test_an_interrupted_run_still_has_statistics(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    assert (
        aether("run", "--timeout", "0.2", "--stats-json", path, PROGRAMS / "x86_64" / "spin").returncode
        == 124
    )
    data = json.loads(path.read_text())
    assert data["exit_status"] is None
    assert set(data["faults"]) >= {"demand_zero", "file"}


def test_a_timeout_ends_what_follows_the_run_too(tmp_path: Path) -> None:
    """Nobody reads the pipe that the statistics go to."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = aether("run", "--timeout", "1", "--stats-json", pipe, PROGRAMS / "x86_64" / "hello")
    assert result.returncode == 124
    assert result.stderr.endswith(b"hello: stopped by --timeout\n")
