"""A mounted file system of huge pages, and pools that grow and shrink, as Linux 6.18 has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from tests.programs.run import run_emulated

_HERE = Path(__file__).resolve().parent
_SIZES = [
    ("x86_64", 4096, "2M", "64M"),
    ("arm64", 4096, "2M", "64M"),
    ("arm64", 16384, "32M", "1G"),
    ("arm64", 65536, "512M", "8G"),
]


@pytest.mark.parametrize(("isa", "granule", "size", "ram"), _SIZES)
def test_files_of_huge_pages_have_names(isa: str, granule: int, size: str, ram: str, tmp_path: Path) -> None:
    program, grants = _HERE / "bin" / isa / "hugefs", Grants(cwd=tmp_path)
    more: dict[str, Any] = {
        "granule": granule,
        "hugepages": f"{size}=4",
        "ram": ram,
        "uid": 0,
        "tlbsan": True,
    }
    done = run_emulated(program, ["/dev/hugepages"], grants, isa=isa, **more)
    assert (done.status, done.errors) == (0, b"")
    assert done.output == (_HERE / "expected" / "hugefs.txt").read_bytes()
