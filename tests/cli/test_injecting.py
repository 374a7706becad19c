"""`aether run --inject` as users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import ISAS, PROGRAMS, aether, one_line


@pytest.mark.parametrize("isa", ISAS)
def test_what_was_injected_is_told_at_the_end_and_in_the_statistics(tmp_path: Path, isa: str) -> None:
    figures = tmp_path / "figures"
    program = PROGRAMS / isa / "tour"
    result = aether("run", "--inject", "call:name=mmap,errno=ENOMEM", "--stats-json", figures, program)
    assert result.returncode == 1
    assert b"mmap: ENOMEM" in result.stdout
    said = result.stderr.decode().splitlines()
    assert len(said) == 1
    assert said[0].startswith("aether: injected call at call#1, ")
    (told,) = json.loads(figures.read_text())["injected"]
    assert (told["site"], told["count"], told["what"]) == ("call", 1, "mmap of process 1000 answers ENOMEM")


def test_a_file_of_injections_and_an_option_go_together(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    tables = ('site = "data"\nat = "call#5"', 'site = "pte"\nat = "fault#9"\nbit = 1\nlevel = 2')
    path.write_text("".join(f"[[inject]]\n{table}\n" for table in tables))
    result = aether(
        "run", "--inject", path, "--inject", "data:at=fault#1000000", PROGRAMS / "x86_64" / "tour"
    )
    assert result.returncode == 137
    assert result.stderr.count(b"aether: injected ") == 2
    assert b"killed by a damaged page table" in result.stderr


def test_what_never_happened_is_said() -> None:
    result = aether("run", "--inject", "data:at=fault#1000000", PROGRAMS / "x86_64" / "hello")
    assert result.returncode == 0
    assert result.stderr == b"aether: nothing was injected: what it was to happen at did not come\n"


@pytest.mark.parametrize("wrong", ["pte:bit=64", "oops", "call:name=mmapp,errno=EIO", "no/such/file.toml"])
def test_what_is_wrong_is_refused_in_one_line(wrong: str) -> None:
    result = aether("run", "--inject", wrong, PROGRAMS / "x86_64" / "hello")
    one_line(result, 2, ["inject"])


def test_an_exploration_takes_none() -> None:
    result = aether("run", "--explore", "2", "--inject", "data", PROGRAMS / "x86_64" / "hello")
    one_line(result, 2, ["--inject"])
