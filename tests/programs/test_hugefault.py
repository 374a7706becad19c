"""userfaultfd on huge pages of a pool: both ISAs print what Linux printed with a pool of eight pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, run_emulated, run_natively

_HERE = Path(__file__).resolve().parent
_POOL = 8


def _program(isa: str) -> Path:
    return _HERE / "bin" / isa / "hugefault"


def _expected() -> bytes:
    return (_HERE / "expected" / "hugefault.txt").read_bytes()


def _output(isa: str, directory: Path, arguments: list[str], **options: Any) -> bytes:
    done = run_emulated(_program(isa), arguments, Grants(cwd=directory), isa=isa, tlbsan=True, **options)
    assert (done.status, done.errors) == (0, b"")
    return done.output


def test_the_host_prints_the_same_if_it_has_such_a_pool(tmp_path: Path) -> None:
    figures = Path("/proc/meminfo").read_text()
    free = int(figures.split("HugePages_Free:")[1].split()[0]) if "HugePages_Free:" in figures else 0
    if free == _POOL:
        assert run_natively(_program(HOST_ISA), [], tmp_path).output == _expected()


@pytest.mark.parametrize(
    ("isa", "granule", "size", "ram"),
    [
        ("x86_64", 4096, "2M", "64M"),
        ("arm64", 4096, "2M", "64M"),
        ("arm64", 16384, "32M", "384M"),
        pytest.param("arm64", 65536, "512M", "5G", marks=pytest.mark.slow),
    ],
)
def test_faults_are_answered_by_whole_pages(
    isa: str, granule: int, size: str, ram: str, tmp_path: Path
) -> None:
    assert _output(isa, tmp_path, [], granule=granule, hugepages=f"{size}={_POOL}", ram=ram) == _expected()


@pytest.mark.parametrize("isa", ISAS)
def test_several_cpus_and_schedules_change_nothing(isa: str, tmp_path: Path) -> None:
    options = {"hugepages": f"2M={_POOL}", "ram": "64M", "cpus": 3, "seed": 11}
    assert _output(isa, tmp_path, [], **options) == _expected()


@pytest.mark.slow
def test_pages_of_a_gigabyte(tmp_path: Path) -> None:
    """An empty pool of such is ENOMEM on Linux, as its test looks for a table of level 2."""
    written = _output("x86_64", tmp_path, ["30"], hugepages=f"1G={_POOL}", ram="9G")
    told = b"copy without a page                          %s\n  so far: %s\n"
    assert written == _expected().replace(told % (b"EEXIST", b"EEXIST"), told % (b"ENOMEM", b"ENOMEM"))


@pytest.mark.parametrize("isa", ISAS)
def test_a_poisoned_page_is_memory_that_failed_as_a_whole(isa: str, tmp_path: Path) -> None:
    written = _output(isa, tmp_path, ["0", "codes"], hugepages=f"2M={_POOL}", ram="64M")
    assert written.count(b"SIGBUS, a huge page failed\n") == 10
    assert written.replace(b"SIGBUS, a huge page failed", b"SIGBUS") == _expected()
