"""C programs with a real C library: both ISAs print what the host prints."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from tests.programs.build import WITH_GLIBC
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, Outcome, run_emulated, run_natively
from tests.programs.workplace import furnish

_HERE = Path(__file__).resolve().parent
_SOURCE = b"1 2 3\n"
_STATUS = {
    "advice": 0,
    "memory": 0,
    "numbers": 0,
    "exec": 0,
    "busy": 0,
    "clone": 0,
    "threads": 0,
    "control": -signal.SIGABRT,
    "files": 37,
    "freed": 0,
    "guards": 0,
    "nodes": 0,
    "notified": 0,
    "shared": 0,
    "moments": 0,
    "newer": 0,
    "waits": 0,
    "sysv": 0,
    "queues": 0,
    "scan": 0,
    "told": 0,
    "sizes": 0,
    "remapping": 0,
    "userfault": 0,
    "userfault_events": 0,
}
_ERRORS = {"files": b"to stderr\n"}
_ELSEWHERE = [
    "calls",
    "cpus",
    "crash",
    "file_pages",
    "flushes",
    "hugefault",
    "hugefs",
    "hugemix",
    "hugetlb",
    "keys",
    "lazy",
    "limits",
    "overcommit",
    "pinned",
    "realtime",
    "shmhuge",
    "shootdown",
    "slabs",
    "sleepers",
    "spaces",
    "swapfiles",
    "wires",
    "written",
]  # tests/test_wires and others run them
PROGRAMS = sorted([*_STATUS, *(f"{name}-glibc" for name in WITH_GLIBC)])


def _expected(program: str) -> Outcome:
    """The same with either C library."""
    name = program.removesuffix("-glibc")
    output = (_HERE / "expected" / f"{name}.txt").read_bytes()
    return Outcome(_STATUS[name], output, _ERRORS.get(name, b""))


def _check(
    name: str, directory: Path, isa: str, granule: int = 4096, live_state: bool = True, **options: Any
) -> None:
    furnish(directory)
    program = _HERE / "bin" / isa / name
    grants = Grants(cwd=directory, binds=[Bind(directory, str(directory), writable=True)])
    outcome = run_emulated(
        program, ["a b"], grants, _SOURCE, isa=isa, granule=granule, live_state=live_state, **options
    )
    assert outcome == _expected(name)


def test_every_source_is_run() -> None:
    assert sorted(path.stem for path in (_HERE / "src").glob("*.c")) == sorted([*_STATUS, *_ELSEWHERE])


def test_every_program_is_run() -> None:
    for isa in ISAS:
        assert sorted(path.name for path in (_HERE / "bin" / isa).iterdir()) == sorted(
            [*PROGRAMS, *_ELSEWHERE]
        )


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_host_prints_what_is_expected(name: str, tmp_path: Path) -> None:
    furnish(tmp_path)
    program = _HERE / "bin" / HOST_ISA / name
    assert run_natively(program, ["a b"], tmp_path, _SOURCE) == _expected(name)


@pytest.mark.parametrize("live_state", [True, False], ids=["live", "copied"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_machine_prints_what_the_host_prints(
    name: str, isa: str, live_state: bool, tmp_path: Path
) -> None:
    _check(name, tmp_path, isa, live_state=live_state)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_larger_pages_change_nothing(name: str, isa: str, granule: int, tmp_path: Path) -> None:
    _check(name, tmp_path, isa, granule)


_HUGE: dict[str, Any] = {
    "thp": "always",
    "mthp": "64K,256K,1M",
    "thp_defrag": "always",
    "khugepaged_sleep": 1,
    "ram": "1G",
}


@pytest.mark.parametrize(
    ("isa", "granule"),
    [
        ("x86_64", 4096),
        ("arm64", 4096),
        *(pytest.param(*each.values, marks=pytest.mark.slow) for each in LARGER_PAGES),
    ],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_huge_pages_change_nothing(name: str, isa: str, granule: int, tmp_path: Path) -> None:
    runs = "1M" if granule == 65536 else _HUGE["mthp"]
    _check(name, tmp_path, isa, granule, **{**_HUGE, "mthp": runs})
