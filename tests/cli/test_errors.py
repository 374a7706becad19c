"""What `aether` says when something is wrong: one line on stderr and the shell's exit status."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aether_emu.grants import is_in_memory
from tests.cli.command import COMMAND, PATIENCE, PROGRAMS, aether, environment, one_line
from tests.linux.exec.crafted import INTERP, Header, crafted, data_header

_HELLO = str(PROGRAMS / "x86_64" / "hello")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "(see aether --help)"]),
        (["run"], ["Missing argument", "(see aether run --help)"]),
        (["run", "--nope", _HELLO], ["--nope"]),
        (["run", "--ram"], ["--ram", "requires an argument (see aether run --help)"]),
        (["pt", "show", "--json=3", "i"], ["--json", "(see aether pt show --help)"]),
        (["run", "--core", "-", _HELLO], ["--core - ", "not standard output"]),
        (["run", "--timeout", "soon", _HELLO], ["--timeout"]),
        (["run", "--timeout", "-1", _HELLO], ["--timeout -1 ", "more than 0"]),
        (["run", "--timeout", "inf", _HELLO], ["--timeout inf ", "more than 0"]),
        (["run", "--timeout", "nan", _HELLO], ["--timeout nan ", "more than 0"]),
        (["run", "--timeout", "0", _HELLO], ["--timeout 0 ", "more than 0"]),
        (["run", "--timeout", "1e300", _HELLO], ["--timeout 1e300 ", "at most 1,000,000,000"]),
        (["run", "--grnule", "4K", _HELLO], ["--grnule", "--granule"]),
        (["run", "--seed", "x", _HELLO], ["--seed x ", "a whole number"]),
        (["run", "--seed", "1_0", _HELLO], ["--seed 1_0 ", "a whole number"]),
        (["run", "--timeout", " 5", _HELLO], ["--timeout  5 ", "seconds"]),
        (["pt", "walk", "--root", "1_0", "i", "0"], ["--root 1_0 ", "hexadecimal"]),
        (["run", "--config", "", _HELLO], ["--config '' ", "the name of a file"]),
        (["run", "--root", "", _HELLO], ["--root '' ", "the name of a directory"]),
        (["rum", _HELLO], ["No such command 'rum'", "'run'?"]),
        (["run", "--bind", "/etc:relative", _HELLO], ["--bind /etc:relative ", "has no .. (see"]),
        (["run", "--seed", str(1 << 64), _HELLO], [f"--seed {1 << 64} ", "18446744073709551615"]),
        (
            ["run", "--la57", str(PROGRAMS / "arm64" / "hello")],
            ["--la57 is not possible on arm64", "48 or 39"],
        ),
        (["run", "--ram", "3x", _HELLO], ["--ram 3x "]),
        (["run", "--ram", "1M", _HELLO], ["--ram 1M ", "from 2M"]),
        (["run", "--seed", "-1", _HELLO], ["--seed -1 "]),
        (["run", "--config", "/missing.toml", _HELLO], ["/missing.toml"]),
        (["run", "--bind", "here", _HELLO], ["--bind here ", "HOST:GUEST"]),
        (["run", "--bind", "/missing:/data", _HELLO], ["/missing"]),
        (["run", "--bind", "/proc:/data", _HELLO], ["/proc", "kernel"]),
        (["run", "--env", "NAME", _HELLO], ["NAME=VALUE"]),
        (["run", "--set", "ram", _HELLO], ["--set ram ", "NAME=VALUE"]),
        (["run", "--set", "ram=3", _HELLO], ["--set ram=3 ", "from 2M"]),
        (["run", "--set", "shootdown=never", _HELLO], ["--set shootdown=never ", "deferred"]),
        (["run", "--set", "clock.blok=3", _HELLO], ["--set clock.blok=3 ", "clock.block?"]),
        (["run", "--cpus", "65", _HELLO], ["--cpus 65 ", "from 1 to 64"]),
        (["run", "--cpus", "0", _HELLO], ["--cpus 0 ", "from 1 to 64"]),
        (["run", "--root", "/missing", "hello"], ["/missing"]),
        (["run", "--stats-json", "/missing/file", _HELLO], ["--stats-json /missing/file "]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_bad_option(arguments: list[str], words: list[str]) -> None:
    if "--stats-json" in arguments:
        result = aether(*arguments)
        assert (result.returncode, result.stderr.count(b"\n")) == (2, 1), "the program ran before"
    else:
        one_line(aether(*arguments), 2, words)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 127, "no such file"),
        (b"", 126, "not an ELF program"),
        (b"#!/bin/sh\n", 126, "script"),
        (crafted(machine=243), 126, "RISCV"),
        (crafted()[:0x50], 126, "the program headers are cut off"),
    ],
)
def test_a_bad_program(tmp_path: Path, content: bytes | None, status: int, words: str) -> None:
    if content is not None:
        program(tmp_path / "p", content)
    one_line(
        aether("run", "./p", cwd=tmp_path),
        status,
        [f"aether: ./p: {words}" if content is None else "aether: ./p: ", words],
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed = 1\n\npage_sise = '16K'\n", ["c.toml:3: page_sise = \"16K\" is no parameter: did"]),
        ("[clock]\nblok = 3\n", ["c.toml:2: clock.blok = 3 ", "did you mean clock.block?"]),
        ("system_call = 3\n", ["c.toml:1: system_call = 3 ", "did you mean clock.system_call?"]),
        ("[clock]\nRAM = '1G'\n", ["c.toml:2: ", "did you mean ram?"]),
        ("granule = '16K'\n", ["c.toml:1: granule = \"16K\" ", "did you mean page_size?"]),
        ("zzz = 3\n", ["c.toml:1: zzz = 3 is no parameter: known are ram, "]),
        ("ram = true\n", ["c.toml:1: ram = true is not allowed: a multiple of"]),
        ("clock = 3\n", ["c.toml:1: clock = 3 is not allowed: a table"]),
        ("clock.block = 0\n", ["c.toml:1: clock.block = 0 is not allowed", "from 1"]),
        ("clock = {block = 0}\n", ["c.toml:1: clock.block = 0 is not allowed", "from 1"]),
        ("'page_size' = 4096.0\n", ["c.toml:1: page_size = 4096.0 is not allowed: one of 4K, "]),
        # what only the machine can tell
        ("seed = 1\npage_size = '16K'\n", ["c.toml:2: page_size = \"16K\" is not possible on x86_64"]),
        ("seed = inf\n", ["c.toml:1: seed = inf is not allowed"]),
        ("hostname = [1979-05-27, {a = false}]\n", ["c.toml:1: hostname = [1979-05-27, {a = false}] is"]),
        ("hostname = '\\\"'\n", [r'c.toml:1: hostname = "\\\"" is not allowed']),
        ("virtual_bits = 'x'\n", ["c.toml:1: virtual_bits = \"x\" is not allowed: one of 39, "]),
        ("virtual_bits = 39\n", ["c.toml:1: virtual_bits = 39 is not possible on x86_64: addresses"]),
    ],
)  # fmt: skip
def test_a_bad_configuration_file_is_told_by_its_line(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "c.toml").write_text(content)
    said = one_line(aether("run", "--config", tmp_path / "c.toml", _HELLO), 2, words)
    assert said.startswith(f"aether: {tmp_path}/c.toml:")
    assert said.endswith(" (see aether config)\n")


@pytest.mark.parametrize("content", [b"ram = 16K", b"ram = '\xff'", None])
def test_what_is_no_configuration_file_is_told_by_its_option(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "c.toml").write_bytes(content)
    words = [f"--config {tmp_path}/c.toml ", "cannot be read" if content is None else "is not TOML"]
    one_line(aether("run", "--config", tmp_path / "c.toml", _HELLO), 2, words)


def test_an_option_is_to_blame_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("page_size = '64K'\n")
    options = ["--config", str(tmp_path / "c.toml"), "--granule", "16K"]
    one_line(aether("run", *options, _HELLO), 2, ["--granule 16K is not possible on x86_64"])


def test_the_hint_is_the_command_that_was_used() -> None:
    for words in (["run"], ["run", "--ram", "1M", _HELLO], ["pt", "walk"], ["verify", "vax"], ["bench", "x"]):
        path = " ".join(words[: 2 if words[0] == "pt" else 1])
        assert one_line(aether(*words), 2).endswith(f" (see aether {path} --help)\n")


def test_an_option_that_was_not_typed_is_named_as_a_default() -> None:
    """No host has this much left: the limit is below the default."""
    one_line(limited("-v 500000", "run", _HELLO), 2, ["--ram 512M (its default) ", "ulimit -v"])


def program(path: Path, content: bytes) -> None:
    """A file that a user may execute."""
    path.write_bytes(content)
    path.chmod(0o755)


def _dynamic(path: Path, interpreter: str) -> None:
    name = interpreter.encode() + b"\0"
    program(path, crafted([Header(), data_header(INTERP, len(name))], data=name))


def test_a_dynamic_program_of_the_host_gets_a_root_suggested_that_works(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    program(tmp_path / "ld.so", crafted(kind=3))
    _dynamic(here / "p", f"{tmp_path}/ld.so")
    bind = "" if not is_in_memory(str(tmp_path)) else f" --bind {tmp_path}:{tmp_path}"
    words = [f"its interpreter {tmp_path}/ld.so is not visible to it; try --root /{bind} {here}/p"]
    said = one_line(aether("run", "./p", cwd=here), 126, words)
    assert aether("run", *said.split("try ")[1].split(), cwd=here).returncode == 7


def test_no_root_is_suggested_where_none_would_help(tmp_path: Path) -> None:
    _dynamic(tmp_path / "p", "/lib/no-such-ld.so")
    arguments: list[list[str | Path]] = [[tmp_path / "p"], ["--root", tmp_path, "/p"]]
    for options in arguments:
        one_line(aether("run", *options), 126, ["no-such-ld.so is not visible to it; give it with --root"])


@pytest.mark.parametrize("options", [[], ["--root", "/"]])
def test_no_name_is_no_program(options: list[str]) -> None:
    one_line(aether("run", *options, ""), 127, ["'': no such file"])


@pytest.mark.parametrize("options", [[], ["--root", "/"]])
def test_a_device_is_no_program(options: list[str]) -> None:
    said = one_line(aether("run", *options, "/dev/null"), 126, ["aether: /dev/null: ", "is "])
    assert said.count("/dev/null") == 1


def test_a_name_is_shown_as_it_was_typed(tmp_path: Path) -> None:
    """What is wrong inside a file, with a file, and with a name; a byte that is no UTF-8 is escaped."""
    name = "it's a näme"
    program(tmp_path / name, b"text")
    one_line(aether("run", f"./{name}", cwd=tmp_path), 126, [f"aether: ./{name}: is not an ELF"])
    one_line(aether("run", "--root", tmp_path, f"/{name}/x", cwd=tmp_path), 126, [f"/{name} is no directory"])
    one_line(aether("run", "\udcff\udcfe", cwd=tmp_path), 127, [r"aether: \xff\xfe: no such file"])


def test_a_file_without_execute_permission_is_refused_as_by_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "p"
    program(path, crafted())
    for mode, status in ((0o755, 7), (0o644, 126), (0o744, 7)):
        path.chmod(mode)
        shell = subprocess.run(["bash", "-c", path], capture_output=True, timeout=PATIENCE, check=False)
        assert aether("run", path).returncode == shell.returncode == status
    path.chmod(0o644)
    one_line(aether("run", "./p", cwd=tmp_path), 126, ["./p: has no execute permission (chmod +x)"])
    one_line(aether("run", "--root", tmp_path, "/p"), 126, ["/p: has no execute permission (chmod +x)"])


def test_an_interpreter_without_execute_permission_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "ld.so", crafted(kind=3))
    _dynamic(tmp_path / "p", "/ld.so")
    assert aether("run", "--root", tmp_path, "/p").returncode == 7
    (tmp_path / "ld.so").chmod(0o644)
    words = ["/p: its interpreter /ld.so: has no execute permission (chmod +x)"]
    one_line(aether("run", "--root", tmp_path, "/p"), 126, words)


def test_a_directory_is_no_program(tmp_path: Path) -> None:
    one_line(aether("run", tmp_path), 126, ["is a directory"])


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    text = one_line(aether("run", "a\n\x1b[2Jb", cwd=tmp_path), 127)
    assert r"a\n\x1b[2Jb" in text


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = aether("run", "--debug", "missing", cwd=tmp_path)
    assert b"Traceback" in result.stderr
    assert b"ProgramError" in result.stderr
    one_line(aether("run", "missing", "--debug", cwd=tmp_path), 127)


def test_help_and_version() -> None:
    for arguments in (["--help"], ["-h"], ["run", "--help"], ["run", "-h"], ["pt", "walk", "-h"]):
        result = aether(*arguments)
        assert result.returncode == 0
        assert b"Usage: aether" in result.stdout
    assert aether("--version").stdout.startswith(b"aether_emu ")


def limited(limit: str, *arguments: str | Path, stdout: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run it under a limit of the shell's ulimit, its standard output perhaps elsewhere."""
    shell = f'ulimit {limit}; exec "$@"' + (f" >{stdout}" if stdout else "")
    command = ["bash", "-c", shell, "bash", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment(), check=False)


@pytest.mark.parametrize(("parameter", "size"), [("ram", "16G"), ("aperture", "16G")])
def test_a_host_without_the_address_space_names_the_parameter(
    tmp_path: Path, parameter: str, size: str
) -> None:
    (tmp_path / "c.toml").write_text(f'{parameter} = "{size}"\n')
    result = limited("-v 8000000", "run", "--config", tmp_path / "c.toml", _HELLO)
    one_line(result, 2, [f'{parameter} = "{size}"', "ulimit -v"])


def test_an_engine_without_address_space_is_one_line() -> None:
    """The engine itself would end the process, and say something about its translator."""
    code = "from aether_emu.machine.memory import host; host.has_room = lambda length: False\n"
    command = [sys.executable, "-c", f"{code}from aether_emu.cli.main import main; main()", "run", _HELLO]
    result = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment(), check=False)
    one_line(result, 125, ["address space", "ulimit -v"])


def test_too_few_files_name_the_limit() -> None:
    one_line(limited("-n 8", "run", _HELLO), 126, ["EMFILE", "ulimit -n"])


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "x86_64", "--suite", "entries"]])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    one_line(limited("-c 0", *arguments, stdout="/dev/full"), 2, ["write error: No space left on device"])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["man"], ["config"], ["completion", "bash"], ["pt", "walk", "--help"],
     ["verify", "x86_64-4level", "--suite", "tlb"]],
)  # fmt: skip
def test_a_standard_output_that_is_closed_is_one_line(arguments: list[str]) -> None:
    one_line(limited("-c 0", *arguments, stdout="&-"), 2, ["aether: write error: Bad file descriptor"])


@pytest.mark.parametrize("stderr", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["run"], 2),
        (["run", "./missing"], 127),
        (["pt", "show", "./missing"], 2),
        (["run", str(PROGRAMS / "x86_64" / "faults"), "null"], 128 + signal.SIGSEGV),
    ],
)
def test_a_complaint_that_nobody_takes_leaves_the_status(
    arguments: list[str], status: int, stderr: str
) -> None:
    command = ["sh", "-c", f'exec "$@" 2{stderr}', "sh", *COMMAND, *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, timeout=PATIENCE, env=environment(), check=False)
    assert (result.returncode, result.stdout) == (status, b"")


@pytest.mark.parametrize("option", ["--stats-json", "--core"])
def test_what_cannot_be_written_as_a_whole_is_not_there(tmp_path: Path, option: str) -> None:
    result = limited("-f 0", "run", option, tmp_path / "out", _HELLO)
    assert result.returncode in (2, 125) and result.stderr.count(b"\n") == 1
    assert b"File too large" in result.stderr
    assert not list(tmp_path.iterdir())


def test_more_memory_than_the_supervisor_s_half_holds_names_it(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('virtual_bits = 39\nram = "512G"\n')
    result = aether("run", "--config", tmp_path / "c.toml", PROGRAMS / "arm64" / "hello")
    one_line(result, 2, ['ram = "512G"', "at most 253G with 39 bits"])


def test_the_largest_memory_is_had_and_no_more() -> None:
    assert aether("run", "--ram", "512G", _HELLO).returncode == 0
    one_line(aether("run", "--ram", "513G", _HELLO), 2, ["--ram 513G ", "2M to 512G"])
