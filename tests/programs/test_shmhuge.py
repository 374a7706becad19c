"""Huge pages of shared memory, as a C program sees them: what it prints on Linux 6.18, it prints here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from tests.programs.run import ISAS, run_emulated

_HERE = Path(__file__).resolve().parent
_MIB = 1 << 20


def _run(isa: str, part: str, tmp_path: Path, granule: int, **more: Any) -> None:
    program, more = _HERE / "bin" / isa / "shmhuge", more | {"granule": granule, "tlbsan": True, "uid": 0}
    done = run_emulated(program, [part], Grants(cwd=tmp_path), isa=isa, **more)
    assert (done.status, done.errors) == (0, b"")
    assert done.output == (_HERE / "expected" / f"shmhuge-{part}.txt").read_bytes()


@pytest.mark.parametrize(("isa", "granule"), [("x86_64", 4096), ("arm64", 4096), ("arm64", 16384)])
def test_anonymous_memory_and_segments(isa: str, granule: int, tmp_path: Path) -> None:
    _run(isa, "memory", tmp_path, granule, ram=32 * granule * (granule // 8))


@pytest.mark.parametrize("isa", ISAS)
def test_memory_files(isa: str, tmp_path: Path) -> None:
    _run(isa, "file", tmp_path, 4096)


@pytest.mark.parametrize("isa", ISAS)
def test_two_processes_with_more_than_fits_in_memory(isa: str, tmp_path: Path) -> None:
    _run(isa, "pressure", tmp_path, 4096, ram=10 * _MIB, swap=40 * _MIB)


@pytest.mark.parametrize("isa", ISAS)
def test_other_parts_of_a_kernel_that_touch_pages(isa: str, tmp_path: Path) -> None:
    """Code by two leaves, userfaultfd, process_vm_readv, vmsplice, mlock, and pages that are merged."""
    program = _HERE / "bin" / isa / "hugemix"
    merging: dict[str, Any] = {"thp": "madvise", "ksm": True, "ksm_pages": 5000}
    done = run_emulated(program, [], Grants(cwd=tmp_path), isa=isa, tlbsan=True, uid=0, **merging)
    assert (done.status, done.errors) == (0, b"")
    assert done.output == (_HERE / "expected" / "hugemix.txt").read_bytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_device_copies_to_pinned_pages_of_every_kind(isa: str, tmp_path: Path) -> None:
    """Pages that were in swap, of huge pages of shared memory, and of a pool; while memory is short."""
    program = _HERE / "bin" / isa / "pinned"
    small: dict[str, Any] = {"ram": 14 * _MIB, "swap": 64 * _MIB, "shmem_thp": "always", "hugepages": "2M=1"}
    small |= {"devices": "dma", "tlbsan": True, "uid": 0}
    done = run_emulated(program, [], Grants(cwd=tmp_path), isa=isa, **small)
    assert (done.status, done.errors) == (0, b"")
    assert done.output == (_HERE / "expected" / "pinned.txt").read_bytes()
