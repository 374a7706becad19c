"""Soft-dirty pages: a program finds exactly the pages that another one wrote, as a checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from tests.programs.run import ISAS, LARGER_PAGES, run_emulated, run_natively
from tests.programs.test_c import _HERE as HERE

_EXPECTED = (HERE / "expected" / "written.txt").read_bytes()
_VARIANTS = [{}, {"live_state": False}, {"cpus": 2, "tlbsan": True}, {"kpti": True}]


@pytest.mark.parametrize("options", _VARIANTS, ids=["plain", "copied", "cpus", "kpti"])
@pytest.mark.parametrize("isa", ISAS)
def test_what_was_written_is_found(isa: str, options: dict[str, Any], tmp_path: Path) -> None:
    outcome = run_emulated(HERE / "bin" / isa / "written", [], Grants(cwd=tmp_path), isa=isa, **options)
    assert (outcome.status, outcome.output) == (0, _EXPECTED)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
def test_of_larger_pages(isa: str, granule: int, tmp_path: Path) -> None:
    program = HERE / "bin" / isa / "written"
    assert run_emulated(program, [], Grants(cwd=tmp_path), isa=isa, granule=granule).output == _EXPECTED


@pytest.mark.skipif(
    "sd" not in Path("/proc/self/smaps").read_text(errors="replace").split(),
    reason="this kernel keeps no soft-dirty bits",
)
def test_the_host_prints_the_same(tmp_path: Path) -> None:
    assert run_natively(HERE / "bin" / "x86_64" / "written", [], tmp_path).output == _EXPECTED
