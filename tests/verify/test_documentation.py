"""docs/verify.md names every rule and option; what it shows is run with the other pages (tests/docs)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from aether_emu.errors import ConfigError
from aether_emu.verify import differential
from aether_emu.verify.tables.lint_rules import Severity
from tests.cli.command import COMMAND, environment

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"


def test_every_rule_is_documented() -> None:
    source = (PAGE.parents[1] / "aether_emu" / "verify" / "tables" / "lint_rules.py").read_text()
    names = set(re.findall(r'"([a-z]+-[a-z]+(?:-[a-z]+)*)"', source)) - {"execute-disable"}
    text = PAGE.read_text()
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
    assert all(kind.value in text for kind in Severity)


@pytest.mark.parametrize("command", ["show", "walk", "lint"])
def test_every_option_is_documented(command: str) -> None:
    done = subprocess.run(
        [*COMMAND, "pt", command, "--help"], capture_output=True, text=True, env=environment(), check=True
    )
    options = set(re.findall(r"--[a-z][a-z0-9-]+", done.stdout)) - {"--help", "--debug"}
    assert len(options) >= 6
    assert [option for option in sorted(options) if f"`{option}" not in PAGE.read_text()] == []


def test_the_differential_of_the_page_is_clean() -> None:
    found = differential("arm64-16K-47bit", "permissions", cases=2_000)
    assert found.clean
    assert found.cases > 1_500
    with pytest.raises(ConfigError, match="format, suite"):
        differential("arm64-16K-47bit", "speed")
    with pytest.raises(ConfigError, match="format, suite"):
        differential("all")
