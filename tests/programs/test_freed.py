"""MADV_FREE under pressure: what was freed makes room, nothing of it goes to swap, no other byte is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from tests.programs.run import ISAS, LARGER_PAGES, run_emulated
from tests.programs.test_c import _HERE as HERE

_SMALL: dict[str, Any] = {"ram": "16M"}
_WAYS: dict[str, dict[str, Any]] = {
    "no-swap": _SMALL,
    "mglru": {**_SMALL, "swap": "32M"},
    "clock": {**_SMALL, "swap": "32M", "reclaim": "clock", "cpus": 2, "tlbsan": True},
}


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize(("isa", "granule"), [*((isa, 4096) for isa in ISAS), *LARGER_PAGES])
def test_what_was_freed_makes_room_and_nothing_else_is_lost(
    isa: str, granule: int, way: str, tmp_path: Path
) -> None:
    program, options = HERE / "bin" / isa / "freed", _WAYS[way]
    ran = run_emulated(program, ["press"], Grants(cwd=tmp_path), isa=isa, granule=granule, **options)
    assert ran.output == b"wrong: 0, some gone: 1, counted: 1, to swap: 0\n"
