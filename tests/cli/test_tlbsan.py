"""`aether run --tlbsan`: statistics of a program that runs well, a report and status 125 otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.command import PATIENCE, PROGRAMS, aether, environment

_BROKEN = """
from aether_emu.mm.tlb import Tlb
Tlb.flush_pages = lambda tlb, mask, pages: None
from aether_emu.cli.main import main
main()
"""


def test_a_finding_is_a_report_a_line_and_status_125() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _BROKEN, "run", "--tlbsan", "--seed", "7", PROGRAMS / "x86_64" / "tour"],
        capture_output=True,
        timeout=PATIENCE,
        env=environment(),
        check=False,
    )
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 125
    assert lines[0].startswith("tlbsan: a program goes on with a translation that was taken away (Intel SDM")
    assert [line.split()[0] for line in lines[1:5]] == ["address", "may", "edited", "relied"]
    assert lines[5].startswith("aether: tlbsan: a program goes on")
    assert len(lines) == 6


def test_a_file_of_parameters_can_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "asks.toml").write_text("tlbsan = true\n")
    path = tmp_path / "statistics.json"
    program = PROGRAMS / "arm64" / "hello"
    result = aether("run", "--config", tmp_path / "asks.toml", "--stats-json", path, program)
    assert result.returncode == 0
    assert json.loads(path.read_text())["tlbsan"]["edits"] > 0
