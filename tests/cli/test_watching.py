"""`aether run --strace` and its crash report, as a user meets them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, ISAS, PATIENCE, PROGRAMS, aether, environment, one_line
from tests.small_programs import DATA, EXIT, START, written

CRASH = Path(__file__).parents[1] / "programs" / "bin"


def _lines(text: bytes) -> list[str]:
    return [line.split(" ", 2)[2] for line in text.decode().splitlines()]


@pytest.mark.parametrize("isa", ISAS)
def test_calls_faults_and_the_end_go_to_stderr(isa: str) -> None:
    result = aether("run", "--strace", PROGRAMS / isa / "hello")
    assert result.stdout == b"hello, world\nargc = 1\n"
    lines = _lines(result.stderr)
    assert lines[0].startswith('execve("')
    assert 'write(1, "hello, world\\nargc = 1\\n", 22) = 22' in lines
    assert any(line.startswith("page-fault(0x") for line in lines)
    assert lines[-2:] == ["exit_group(0)                           = ?", "+++ exited with 0 +++"]


def test_a_bare_strace_takes_no_word_behind_it(tmp_path: Path) -> None:
    result = aether("run", "--strace", "--seed", "3", PROGRAMS / "x86_64/hello", "--strace", cwd=tmp_path)
    assert result.stdout == b"hello, world\nargc = 2\n"
    assert list(tmp_path.iterdir()) == []


def test_lines_go_into_a_file_and_are_selected(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    result = aether("run", f"--strace={file}", "--strace-only=write,signal", PROGRAMS / "x86_64/hello")
    assert result.stderr == b""
    assert _lines(file.read_bytes()) == [
        'write(1, "hello, world\\nargc = 1\\n", 22) = 22',
        "+++ exited with 0 +++",
    ]


def test_strace_only_means_strace() -> None:
    result = aether("run", "--strace-only=exit_group", PROGRAMS / "x86_64/hello")
    assert _lines(result.stderr)[0].startswith("exit_group(0)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strace-only=nmap"], ["--strace-only nmap", "did you mean mmap?"]),
        (["--strace-only=mmap,,brk"], ["--strace-only mmap,,brk"]),
        (["--strace=/no/such/folder/file"], ["--strace /no/such/folder/file", "No such file or directory"]),
    ],
)
def test_what_cannot_be_is_refused_before_the_program_starts(options: list[str], words: list[str]) -> None:
    one_line(aether("run", *options, PROGRAMS / "x86_64/hello"), 2, words)


@pytest.mark.parametrize("option", ["--strace", "--strace=/dev/stderr", "--strace=-", "--strace=/dev/stdout"])
def test_a_stream_takes_the_lines_and_keeps_what_it_has(option: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    result = aether("run", option, "--strace-only=write", PROGRAMS / "x86_64/hello")
    streams = [result.stderr, result.stdout.removeprefix(b"hello, world\nargc = 1\n")]
    lines, rest = reversed(streams) if option in ("--strace=-", "--strace=/dev/stdout") else streams
    assert [line.split("(")[0] for line in _lines(lines)] == ["write", "+++ exited with 0 +++"]
    assert rest == b""
    file.write_text("before\n")
    with file.open("a") as stream:
        command = [*COMMAND, "run", option, str(PROGRAMS / "x86_64/hello")]
        subprocess.run(command, stdout=stream, stderr=stream, timeout=PATIENCE, env=environment(), check=True)
    assert file.read_text().startswith("before\n")


def test_a_full_disk_ends_the_run_with_a_line() -> None:
    result = aether("run", "--strace=/dev/full", PROGRAMS / "x86_64/hello")
    one_line(result, 125, ["--strace /dev/full cannot be written: No space left"])


def test_a_full_disk_is_told_under_the_name_of_the_option() -> None:
    result = aether("run", "--stats-json=/dev/full", PROGRAMS / "x86_64/hello")
    assert result.stderr == b"aether: --stats-json /dev/full cannot be written: No space left on device\n"
    assert result.returncode == 125


def test_a_reader_who_goes_away_ends_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "run", f"--strace=/proc/self/fd/{write}", str(PROGRAMS / "x86_64/hello")]
    done = subprocess.run(
        command, capture_output=True, timeout=PATIENCE, env=environment(), pass_fds=[write], check=False
    )
    os.close(write)
    one_line(done, 125, ["Broken pipe"])


def test_a_trace_changes_nothing_that_the_program_or_its_statistics_see(tmp_path: Path) -> None:
    """The tour prints addresses and times; the statistics have the virtual time."""
    results = []
    for options in ([], ["--strace=lines", "--no-crash-report"]):
        done = aether("run", *options, "--stats-json=stats", PROGRAMS / "x86_64/tour", cwd=tmp_path)
        stats = json.loads((tmp_path / "stats").read_text())
        results.append((done.stdout, done.returncode, {k: v for k, v in stats.items() if "wall" not in k}))
    assert results[0] == results[1]
    first = (tmp_path / "lines").read_bytes()
    aether("run", "--strace=lines", PROGRAMS / "x86_64/tour", cwd=tmp_path)
    assert (tmp_path / "lines").read_bytes() == first


def test_a_reader_who_does_not_read_does_not_keep_the_run_from_its_timeout() -> None:
    read, write = os.pipe()
    program, lines = CRASH / "x86_64" / "calls", f"--strace=/proc/self/fd/{write}"
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    done = subprocess.run(
        [*COMMAND, "run", lines, "--timeout", "1", str(program)],
        capture_output=True, timeout=PATIENCE, env=environment(), pass_fds=[write], check=False,
    )  # fmt: skip
    os.close(write)
    os.close(read)
    one_line(done, 124, ["stopped by --timeout"])


def test_a_run_that_is_stopped_shows_the_call_it_waits_in() -> None:
    read, write = os.pipe()
    done = subprocess.run(
        [*COMMAND, "run", "--strace-only=read", "--timeout", "3", str(CRASH / "x86_64" / "crash"), "waits"],
        stdin=read, capture_output=True, timeout=PATIENCE, env=environment(), check=False,
    )  # fmt: skip
    os.close(write)
    os.close(read)
    assert done.returncode == 124
    lines = done.stderr.decode().splitlines()
    assert lines[-2].endswith("read(0, <unfinished ...>")
    assert lines[-1].endswith("stopped by --timeout")


def test_a_deadlock_shows_the_call_it_waits_in() -> None:
    result = aether("run", "--strace-only=%signal", CRASH / "x86_64" / "crash", "sleeps")
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 125, lines
    assert lines[-2].endswith("rt_sigsuspend([], 8 <unfinished ...>")
    assert "deadlock" in lines[-1]


# ---- crashes


@pytest.mark.parametrize("isa", ISAS)
def test_a_crash_is_explained_before_the_last_line(isa: str) -> None:
    program = CRASH / isa / "crash"
    result = aether("run", program, "null")
    text = result.stderr.decode()
    assert result.returncode == 128 + 11
    assert text.splitlines()[0].startswith("Crash of task 1000 (crash) at 0.")
    assert text.splitlines()[-1] == f"aether: {program}: killed by SIGSEGV at 0x10"
    assert max(map(len, text.splitlines()[:-1])) <= 80


def test_no_crash_report_leaves_the_last_line() -> None:
    one_line(aether("run", "--no-crash-report", CRASH / "x86_64/crash", "null"), 139, ["killed by SIGSEGV"])


@pytest.mark.parametrize("way", ["terminated", ""])
def test_what_is_no_crash_is_not_explained(way: str) -> None:
    result = aether("run", CRASH / "x86_64/crash", way)
    assert b"Crash of" not in result.stderr


def test_an_explained_crash_says_so_in_the_trace_too() -> None:
    result = aether("run", "--strace-only=signal", "--no-crash-report", CRASH / "x86_64/crash", "null")
    lines = [line for line in result.stderr.decode().splitlines() if line.startswith("[")]
    assert [line.split(" ", 2)[2] for line in lines] == [
        "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x10} ---",
        "+++ killed by SIGSEGV +++",
    ]


# Six children that store to 0x10, to 0x20, ...; each is waited for, and the program exits with 3.
_CRASHING_CHILDREN = {
    "x86_64": f"""
        mov ebx, 0
    again:
        add ebx, 0x10
        mov eax, 57; syscall
        test eax, eax
        jnz parent
        mov [rbx], ebx
    parent:
        mov edi, eax
        xor esi, esi; xor edx, edx; xor r10, r10
        mov eax, 61; syscall
        cmp ebx, 0x60
        jne again
        mov edi, 3
        {EXIT["x86_64"]}
    """,
    "arm64": f"""
        mov x19, #0
    again:
        add x19, x19, #0x10
        mov x0, #17
        mov x1, #0
        mov x2, #0
        mov x3, #0
        mov x4, #0
        mov x8, #220
        svc #0
        cbnz x0, parent
        str x19, [x19]
    parent:
        mov x1, #0
        mov x2, #0
        mov x3, #0
        mov x8, #260
        svc #0
        cmp x19, #0x60
        bne again
        mov x0, #3
        {EXIT["arm64"]}
    """,
}


@pytest.mark.parametrize("isa", ISAS)
def test_crashes_of_children_are_explained_from_their_own_memory(tmp_path: Path, isa: str) -> None:
    program = written(tmp_path, isa, _CRASHING_CHILDREN[isa])
    result = aether("run", program, cwd=tmp_path)
    assert result.returncode == 3
    text = result.stderr.decode()
    for number in range(1, 5):
        head = re.search(rf"Crash of task {1000 + number} \(program\) at [0-9.]+ s: SIGSEGV\n(.*)\n", text)
        assert head is not None
        assert re.fullmatch(rf"  Process {1000 + number}, made by 1000, ran .*/program", head[1])
        assert f"tried a write to {number * 0x10:#x}, at {START >> 12:#x}" in text
    assert "Crash of task 1005" not in text
    assert text.endswith("\n2 more processes crashed\n")
    assert "cannot be shown" not in text
    sections = text.split("\nCode\n")[1:]
    assert len(sections) == 4
    assert all(re.search(r"=> .*\b(mov|str)\b", section.split("\n\n")[0]) for section in sections)
    assert "killed by" not in text


# A child that exits with 3, for which the program waits at 0x600000.
_WAITS_FOR_CHILD = {
    "x86_64": f"""
        mov eax, 57; syscall
        mov edi, 3
        test eax, eax
        jz over
        mov rdi, -1; mov esi, {DATA}; xor edx, edx; xor r10, r10
        mov eax, 61; syscall
        xor edi, edi
    over:
        {EXIT["x86_64"]}
    """,
    "arm64": f"""
        mov x0, #17
        mov x1, #0
        mov x2, #0
        mov x3, #0
        mov x4, #0
        mov x8, #220
        svc #0
        mov x1, x0
        mov x0, #3
        cbz x1, over
        mov x0, #-1
        mov x1, #{DATA}
        mov x2, #0
        mov x3, #0
        mov x8, #260
        svc #0
        mov x0, #0
    over:
        {EXIT["arm64"]}
    """,
}


@pytest.mark.parametrize("isa", ISAS)
def test_a_call_that_waits_is_in_two_lines_when_another_task_has_one_between(
    tmp_path: Path, isa: str
) -> None:
    program = written(tmp_path, isa, _WAITS_FOR_CHILD[isa])
    result = aether("run", "--strace-only=wait4,exit_group,signal", program, cwd=tmp_path)
    lines = result.stderr.decode().splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [
        f"[{n}]" for n in (1000, 1001, 1001, 1000, 1000, 1000)
    ]
    assert _lines(result.stderr) == [
        "wait4(-1, <unfinished ...>",
        "exit_group(3)                           = ?",
        "+++ exited with 3 +++",
        "<... wait4 resumed>[{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 1001",
        "exit_group(0)                           = ?",
        "+++ exited with 0 +++",
    ]
    times = [line.split()[1] for line in lines]
    assert times == sorted(times)
