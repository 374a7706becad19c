"""`aether pt` and `aether run --core` as users meet them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, PATIENCE, PROGRAMS, aether, environment, one_line
from tests.verify.crafted_images import PAGE, TABLE, Crafted

KINDS = [("x86_64", "4K"), ("arm64", "4K"), ("arm64", "16K"), ("arm64", "64K")]
UPPER = 0xFFFF_FFFF_8000_0000


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A core of each kind of machine, made by the command."""
    folder = tmp_path_factory.mktemp("cores")
    made = {}
    for isa, granule in KINDS:
        path = folder / f"{isa}-{granule}"
        options = ["--granule", granule] if isa == "arm64" else []
        result = aether("run", *options, "--core", path, PROGRAMS / isa / "hello")
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"hello" in result.stdout
        made[path.name] = path
    return made


def crafted_image(folder: Path, crafted: Crafted) -> list[str | Path]:
    """The image as a file, and the options that say how to read it."""
    crafted.words.tofile(folder / "image")
    roots = ["--root", hex(crafted.root)] + (
        ["--root1", hex(crafted.root1)] if crafted.isa == "arm64" else []
    )
    return [folder / "image", "--format", crafted.format.name, *roots]


@pytest.mark.parametrize(("isa", "granule"), KINDS)
def test_a_core_of_ours_says_itself_how_to_read_it(cores: dict[str, Path], isa: str, granule: str) -> None:
    core = cores[f"{isa}-{granule}"]
    result = aether("pt", "show", core, "--execute")
    assert (result.returncode, result.stderr) == (0, b"")
    head, *lines = result.stdout.decode().splitlines()
    assert head.split() == ["start", "end", "size", "page", "user", "kernel", "flags", "memory", "physical"]
    first = lines[0].split()
    assert (first[0], first[3], first[4]) == ("0000000000400000", granule, "r--")
    assert any(line.split()[4:7] == ["rw-", "rw-", "-"] for line in lines)
    assert any(line.split()[4:7] == ["---", "r-x", "global"] for line in lines)
    assert "mapped: " in lines[-3]
    assert lines[-2].startswith("tables: ")
    assert ", 0 differences" in lines[-1]
    assert len({line.index("  ") for line in lines[:-3]}) == 1, "columns are aligned"


@pytest.mark.parametrize(("isa", "granule"), KINDS)
def test_a_core_of_ours_has_nothing_suspicious(cores: dict[str, Path], isa: str, granule: str) -> None:
    result = aether("pt", "lint", cores[f"{isa}-{granule}"])
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith("note: table-writable at 0xffff8")
    assert lines[-1] == "0 errors, 0 warnings, 1 note"


def test_walks_print_every_level(cores: dict[str, Path]) -> None:
    result = aether("pt", "walk", cores["x86_64-4K"], "400000", "0xffffffff80000000")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    levels = ["PML4", "PDPT", "PD", "PT", "="]
    assert [line.split()[0] for line in lines] == [
        "0x0000000000400000", *levels, "0xffffffff80000000", *levels,
    ]  # fmt: skip
    assert "page of 4K, user r--, kernel r--, WB" in lines[5]
    assert "user ---, kernel r-x global, WB" in lines[11]
    arm = aether("pt", "walk", cores["arm64-64K"], "400000")
    assert [line.split()[0] for line in arm.stdout.decode().splitlines()][1:] == ["L1", "L2", "L3", "="]


def test_a_walk_that_leads_nowhere_is_exit_1(cores: dict[str, Path]) -> None:
    result = aether("pt", "walk", cores["x86_64-4K"], "0", "400000")
    assert (result.returncode, result.stderr) == (1, b"")
    assert b"page fault" in result.stdout
    assert b"page of 4K" in result.stdout


@pytest.mark.parametrize("name", ["x86_64-5level", "arm64-4K-39bit", "arm64-16K-47bit", "arm64-64K-42bit"])
def test_roots_and_formats_are_told_by_options(tmp_path: Path, name: str) -> None:
    crafted = Crafted(name)
    page = crafted.format.page
    crafted.leaf(page * 5, page * 40)
    crafted.leaf(UPPER, page * 41, PAGE[crafted.isa])
    options = crafted_image(tmp_path, crafted)
    lines = aether("pt", "show", *options).stdout.decode().splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == [hex(page * 40), hex(page * 41)]
    walked = aether("pt", "walk", *options, "--", f"{page * 5:x}")
    assert f"= {page * 40:#x}" in walked.stdout.decode()


def test_errors_in_the_tables_are_exit_1_and_json_has_the_same(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    at = crafted.leaf(UPPER, 0x35000, PAGE["x86_64"])
    options = crafted_image(tmp_path, crafted)
    result = aether("pt", "lint", *options)
    assert (result.returncode, result.stderr) == (1, b"")
    assert (
        result.stdout.decode()
        .splitlines()[0]
        .startswith(f"error: user-kernel-memory at {UPPER:#x}: entry 0x")
    )
    machine = aether("pt", "lint", "--json", "--execute", *options)
    assert machine.returncode == 1
    (finding,) = json.loads(machine.stdout)
    assert (finding["rule"], finding["at"], finding["severity"]) == ("user-kernel-memory", hex(at), "error")
    assert b"0 differences" in machine.stderr, "what is no JSON is not in it"


def test_a_difference_of_the_engine_is_exit_1(tmp_path: Path) -> None:
    crafted = Crafted("arm64-64K")
    crafted.put(0, PAGE["arm64"] & ~2, level=3)
    result = aether("pt", "show", "--execute", *crafted_image(tmp_path, crafted))
    assert result.returncode == 1
    assert b"kernel read at" in result.stdout


def test_widths_types_base_and_limit_are_options(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000, PAGE["x86_64"] | 0x10)
    options = crafted_image(tmp_path, crafted)
    named = aether("pt", "show", "--memory-types", "0x0407050600070106", *options)
    assert b"UC-" in named.stdout
    crafted.put(0x2000, 1 << 45 | 0x67)
    options = crafted_image(tmp_path, crafted)
    assert b"address-too-wide" in aether("pt", "lint", "--physical-bits", "40", *options).stdout
    for number in range(4):
        crafted.put((1 + number) << 21, 0x3_0000 | TABLE["x86_64"], level=2)
    limited = aether("pt", "lint", "--limit", "256", *crafted_image(tmp_path, crafted))
    assert limited.returncode == 1
    assert b"not-followed" in limited.stdout
    moved = Crafted("x86_64-4level")
    moved.words[:] = 0
    moved.words[512] = 0x4000_2027
    moved.words.tofile(tmp_path / "image")
    based = ["--base", "40000000", "--root", "40001000", "--format", "x86_64-4level"]
    walked = aether("pt", "walk", tmp_path / "image", "0", *based)
    assert b"PDPT" in walked.stdout


def test_an_encryption_bit_is_an_option_or_is_found(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000 | 1 << 51)
    options = crafted_image(tmp_path, crafted)
    plain, named = aether("pt", "show", *options), aether("pt", "show", "--encryption-bit", "51", *options)
    assert plain.stdout.decode().splitlines()[1].endswith("0x8000000035000")
    assert named.stdout.decode().splitlines()[1].endswith("PAT0 bit51  0x35000")
    assert "x86_64-4level, encryption bit 51" in named.stdout.decode().splitlines()
    walked = aether("pt", "walk", "--encryption-bit", "51", *options, "1000")
    assert (walked.returncode, b"= 0x35000 " in walked.stdout) == (0, True)
    slots = [crafted.slot(crafted.table_of(0, level), 0, level) for level in (4, 3, 2)]
    for slot in slots:
        crafted.words[slot] |= 1 << 51
    found = aether("pt", "lint", *crafted_image(tmp_path, crafted))
    assert found.returncode == 0
    assert found.stdout.startswith(b"note: encryption-bit at ")
    one_line(
        aether("pt", "show", "--encryption-bit", "12", *options), 2, ["--encryption-bit 12 ", "32 to 51"]
    )


def test_wide_addresses_are_shown_but_not_executed(tmp_path: Path) -> None:
    crafted = Crafted("arm64-64K-lpa")
    crafted.put(0x5_0000, 7 << 16 | 0x443 | 9 << 12)
    options = crafted_image(tmp_path, crafted)
    shown = aether("pt", "show", *options)
    assert (shown.returncode, shown.stdout.decode().splitlines()[1].split()[-1]) == (0, "0x9000000070000")
    for command in (["show"], ["lint"], ["lint", "--json"]):
        one_line(
            aether("pt", *command, "--execute", *options),
            2,
            ["--execute is not possible with arm64-64K-lpa", "48 bits"],
        )
    narrow = ["arm64-64K" if option == "arm64-64K-lpa" else option for option in options]
    walked = aether("pt", "walk", *narrow, "50000")
    assert (walked.returncode, b"arm64-64K-lpa" in walked.stdout, b"= 0x" in walked.stdout) == (
        1,
        True,
        False,
    )


def test_tables_in_a_loop_are_few_lines_in_no_time(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-5level", 3)
    crafted.words[:] = crafted.root | TABLE["x86_64"]
    options = crafted_image(tmp_path, crafted)
    shown = aether("pt", "show", "--execute", *options)
    assert (shown.returncode, shown.stderr) == (0, b"")
    lines = shown.stdout.decode().splitlines()
    assert len(lines) < 30
    assert "as at 0000000000000000, by the PT table at 0x1000" in lines[2]
    assert ", 0 differences" in lines[-1]
    found = aether("pt", "lint", "--json", *options)
    assert len(found.stdout) < 20_000
    assert "table-loop" in {one["rule"] for one in json.loads(found.stdout)}


def test_warnings_and_notes_alone_are_exit_0_and_errors_exit_1(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000, 0x67)  # a user's, writable and executable: a warning
    crafted.leaf(UPPER, crafted.root, PAGE["x86_64"] & ~4)  # a table that the kernel may write: a note
    options = crafted_image(tmp_path, crafted)
    for more in ([], ["--json"]):
        result = aether("pt", "lint", *more, *options)
        assert (result.returncode, result.stderr) == (0, b"")
    assert b"0 errors, 1 warning, 1 note" in aether("pt", "lint", *options).stdout
    crafted.leaf(UPPER + 0x1000, 0x36000)
    for more in ([], ["--json"]):
        assert aether("pt", "lint", *more, *crafted_image(tmp_path, crafted)).returncode == 1


def test_what_is_refused_leaves_the_image_as_it_was(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000)
    options = crafted_image(tmp_path, crafted)
    before = (tmp_path / "image").read_bytes()
    assert aether("pt", "show", "--execute", *options).returncode == 0
    one_line(aether("pt", "walk", *options, "nowhere"), 2, ["ADDR nowhere ", "hexadecimal"])
    one_line(aether("pt", "walk", *options, "1" * 17), 2, ["ADDR", "64 bits"])
    one_line(aether("pt", "show", *options, "--memory-types", "x"), 2, ["--memory-types x "])
    one_line(aether("pt", "show", *options, "--base", "ffffffffffffff00"), 2, ["begin at"])
    one_line(aether("pt", "show", *options, "--physical-bits", "31"), 2, ["--physical-bits 31 "])
    one_line(aether("pt", "show", *options, "--physical-bits", "53"), 2, ["--physical-bits 53 "])
    assert (tmp_path / "image").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_terminal_gets_a_table(cores: dict[str, Path]) -> None:
    terminal, stdout = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "pt", "show", str(cores["x86_64-4K"])],
        stdout=stdout,
        env={**environment(), "TERM": "xterm", "COLUMNS": "140"},
    ) as process:
        os.close(stdout)
        told = b""
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            told += part
        assert process.wait(PATIENCE) == 0
    os.close(terminal)
    assert b"0000000000400000" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "vax", "--root", "0"], ["--format vax ", "arm64-64K"]),
        (["--format", "arm64-4K-42bit", "--root", "0"], ["widths"]),
        (["--root", "0"], ["--format is needed", "does not tell"]),
        (["--format", "arm64-4K"], ["--root is needed", "does not tell"]),
        (["--format", "x86_64-4level", "--root", "zzz"], ["--root zzz ", "hexadecimal"]),
        (["--format", "x86_64-4level", "--root", "1" * 20], ["64 bits"]),
        (["--format", "x86_64-4level", "--root", "0", "--root1", "0"], ["--root1 0 "]),
        (["--format", "x86_64-4level", "--root", "0", "--physical-bits", "99"], ["--physical-bits 99 "]),
        (["--base", "-8"], ["base"]),
    ],
)
def test_wrong_options_are_exit_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "image").write_bytes(bytes(8192))
    for command in ("show", "lint"):
        one_line(aether("pt", command, tmp_path / "image", *arguments), 2, words)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"EMiL\1\0\0\0", b"KDUMP   "])
def test_a_broken_image_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    for arguments in (["show"], ["lint"], ["walk"]):
        addresses = ["0"] if arguments == ["walk"] else []
        one_line(aether("pt", *arguments, tmp_path / "image", *addresses), 2, ["image: "])
    one_line(aether("pt", "show", tmp_path / "missing"), 2, ["missing: No such file"])


# ---- aether run --core


def test_a_core_in_an_impossible_place_is_refused_before_the_program_runs(tmp_path: Path) -> None:
    program = PROGRAMS / "x86_64" / "hello"
    for path in (tmp_path / "missing" / "core", tmp_path, Path("/dev/full")):
        one_line(aether("run", "--core", path, program), 2, ["--core "])
    assert list(tmp_path.iterdir()) == []


def test_a_core_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = " ".join(["ulimit", "-f", "16;", "exec", '"$@"'])
    result = subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND, "run", "--core", tmp_path / "core",
         PROGRAMS / "x86_64" / "hello"],
        capture_output=True, timeout=PATIENCE, env=environment(), check=False,
    )  # fmt: skip
    assert result.returncode == 125
    text = result.stderr.decode()
    assert text.startswith(f"aether: --core {tmp_path / 'core'} cannot be written: ")
    assert text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_stopped_or_fails_leaves_its_core_too(tmp_path: Path) -> None:
    stopped = aether("run", "--timeout", "0.5", "--core", tmp_path / "core", PROGRAMS / "x86_64" / "spin")
    assert stopped.returncode == 124
    small = ("--granule", "64K", "--ram", "64M")
    failed = aether("run", *small, "--core", tmp_path / "other", PROGRAMS / "arm64" / "tour")
    assert failed.returncode == 1
    for name in ("core", "other"):
        assert b"0000000000400000" in aether("pt", "show", tmp_path / name).stdout
