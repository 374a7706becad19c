"""ruff: a large Rust program, static and position independent on x86_64, static on arm64."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, run_emulated, run_natively

_ALONE = ["--isolated", "--no-cache"]
_COMMANDS = {
    "version": ["--version"],
    "rule": ["rule", "E501"],
    "check": ["check", *_ALONE, "--select", "E,F", "--stdin-filename", "bad.py", "-"],
    "unknown": ["nosuch"],
}


def _check(command: str, ruff: Path, workplace: Path, isa: str, granule: int = 4096) -> None:
    arguments, grants = _COMMANDS[command], Grants(cwd=workplace)
    source = (workplace / "bad.py").read_bytes() if "-" in arguments else b""
    native = run_natively(ruff / HOST_ISA / "ruff", arguments, workplace, source)
    program = ruff / isa / "ruff"
    assert run_emulated(program, arguments, grants, source, isa=isa, granule=granule) == native


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("command", _COMMANDS)
def test_ruff_works_as_on_the_host(command: str, isa: str, ruff: Path, workplace: Path) -> None:
    _check(command, ruff, workplace, isa)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
def test_ruff_works_on_larger_pages(isa: str, granule: int, ruff: Path, workplace: Path) -> None:
    _check("check", ruff, workplace, isa, granule)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("command", [["check"], ["format", "--diff"]], ids=["check", "format"])
def test_ruff_works_on_a_folder_in_threads(command: list[str], isa: str, ruff: Path, tmp_path: Path) -> None:
    for number in range(6):
        file = tmp_path / "folder" / f"sub{number % 2}" / f"m{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"import os, sys\nx = {number} ;y=2\ndef f( a,b ):\n    return lambda: a\n")
    (tmp_path / "folder" / "bad.py").write_text("def (\n")
    arguments, grants = [*command, *_ALONE, "folder"], Grants(cwd=tmp_path)
    native = run_natively(ruff / HOST_ISA / "ruff", arguments, tmp_path)
    assert run_emulated(ruff / isa / "ruff", arguments, grants, isa=isa) == native
