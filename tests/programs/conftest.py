"""Where the programs come from: the first test that needs them has scripts/fetch_programs get them."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs.workplace import add_archives, furnish

_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".cache" / "programs"


def pytest_report_collectionfinish() -> list[str]:
    if shutil.which("apt-get"):
        return []
    return ["tests/programs: there is no apt-get here, tests of Debian's programs are deselected"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if shutil.which("apt-get"):
        return
    foreign = [item for item in items if item.get_closest_marker("debian")]
    if foreign:
        config.hook.pytest_deselected(items=foreign)
        items[:] = [item for item in items if item not in foreign]


def _fetched(group: str) -> Path:
    """The folder of a group of programs. One process fetches, the others wait for it."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with open(_CACHE / f"{group}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, str(_ROOT / "scripts" / "fetch_programs"), group]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stderr.strip() or f"fetch_programs {group} failed", pytrace=False)
    return _CACHE / group


@pytest.fixture(scope="session")
def debian() -> Path:
    """The folder that Debian's packages were unpacked into."""
    return _fetched("debian")


@pytest.fixture(scope="session")
def ruff() -> Path:
    """The folder with one folder for each ISA, which holds the program `ruff`."""
    return _fetched("ruff")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with known files, the working directory of every program."""
    directory = tmp_path_factory.mktemp("workplace")
    furnish(directory)
    add_archives(directory)
    return directory
