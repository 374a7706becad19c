"""What `aether run --exhaustive` prints of numbers that nobody can count."""

from __future__ import annotations

import pytest

from aether_emu.cli import exhausting
from aether_emu.explore.exhaustive import Ends


@pytest.mark.parametrize(
    ("estimated", "words"),
    [(16.0, "about 16 are"), (17_123.4, "about 17,123 are"), (2e181, "about 10^181 are")],
)
def test_an_estimate_is_one_that_a_person_can_read(
    estimated: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exhausting._tell(Ends(runs=1, steps=10, estimated=estimated), True, 1.0)
    assert words in capsys.readouterr().out
