"""ruff: a large Rust program, static and position independent on x86_64, static on arm64."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.system import Grants
from tests.programs.run import HOST_ISA, ISAS, run_emulated, run_natively

_ALONE = ["--isolated", "--no-cache"]
_COMMANDS = {
    "version": ["--version"],
    "rule": ["rule", "E501"],
    "check": ["check", *_ALONE, "--select", "E,F", "--stdin-filename", "bad.py", "-"],
    "unknown": ["nosuch"],
}


@pytest.mark.parametrize("command", _COMMANDS)
def test_ruff_works_as_on_the_host(command: str, ruff: Path, workplace: Path) -> None:
    arguments = _COMMANDS[command]
    source = (workplace / "bad.py").read_bytes() if "-" in arguments else b""
    native = run_natively(ruff / HOST_ISA / "ruff", arguments, workplace, source)
    for isa in ISAS:
        program = ruff / isa / "ruff"
        assert run_emulated(program, arguments, Grants(cwd=workplace), source, isa=isa) == native, isa
