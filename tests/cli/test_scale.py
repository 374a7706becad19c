"""`aether scale` as users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import aether, one_line


def test_a_sweep_is_printed_and_kept(tmp_path: Path) -> None:
    files = tmp_path / "points.json", tmp_path / "figure.svg"
    result = aether(
        "scale",
        "neighbours",
        "--cpus",
        "2,1",
        "--locks",
        "leaf,space",
        "--json",
        files[0],
        "--report",
        files[1],
    )
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert "modelled" in lines[0]
    assert [line.split()[:3] for line in lines[3:4]] == [["locks", "1", "2"]]
    assert [line.split()[0] for line in lines[4:]] == ["space", "leaf"]
    points = json.loads(files[0].read_text())["points"]
    assert [(point["scheme"], point["cpus"]) for point in points] == [
        ("space", 1), ("space", 2), ("leaf", 1), ("leaf", 2),
    ]  # fmt: skip
    assert files[1].read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cpus", "1,65"], ["--cpus 1,65", "1 to 64"]),
        (["walk"], ["WORK walk", "disjoint"]),
        (["--seed", str(1 << 64)], ["--seed 18446744073709551616", "from 0 to"]),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], words: list[str]) -> None:
    one_line(aether("scale", *arguments), 2, words)
