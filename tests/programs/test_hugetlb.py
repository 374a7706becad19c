"""Huge pages from a pool, as a C program sees them: without any as on the host, and with a pool of four."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, run_emulated, run_natively

_HERE = Path(__file__).resolve().parent


def _program(isa: str) -> Path:
    return _HERE / "bin" / isa / "hugetlb"


def _expected(name: str) -> bytes:
    return (_HERE / "expected" / f"hugetlb-{name}.txt").read_bytes()


@pytest.mark.parametrize("isa", ISAS)
def test_an_empty_pool_refuses_what_linux_refuses(isa: str, tmp_path: Path) -> None:
    done = run_emulated(_program(isa), ["empty"], Grants(cwd=tmp_path), isa=isa)
    assert (done.status, done.errors) == (0, b"")
    assert done.output == _expected("empty")


def test_the_host_refuses_the_same_if_its_pool_is_empty(tmp_path: Path) -> None:
    figures = Path("/proc/meminfo").read_text()
    if "HugePages_Total:       0" in figures and "Hugepagesize:       2048 kB" in figures:
        assert run_natively(_program(HOST_ISA), ["empty"], tmp_path).output == _expected("empty")


@pytest.mark.parametrize(
    ("isa", "granule", "size"), [("x86_64", 4096, "2M"), ("arm64", 4096, "2M"), ("arm64", 16384, "32M")]
)
def test_a_pool_serves_mappings_files_and_segments(isa: str, granule: int, size: str, tmp_path: Path) -> None:
    done = run_emulated(
        _program(isa),
        ["pool"],
        Grants(cwd=tmp_path),
        isa=isa,
        granule=granule,
        hugepages=f"{size}=4",
        tlbsan=True,
    )
    assert (done.status, done.errors) == (0, b"")
    assert done.output == _expected("pool").replace(b"pages of 2M", f"pages of {size}".encode())
