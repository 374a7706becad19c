"""Where the programs come from: the first test that needs them has scripts/fetch_programs get them."""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs.build import build_go
from tests.programs.run import HOST_ISA, ISAS
from tests.programs.workplace import add_archives, furnish

_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".cache" / "programs"


def _distribution() -> str:
    """The host's distribution, as it names itself in os-release(5)."""
    try:
        return platform.freedesktop_os_release()["ID"]
    except OSError:
        return "unknown"


def _missing() -> str:
    """Which of Debian's programs cannot be had here, and why. Nothing when all can."""
    if not shutil.which("apt-get"):
        return "there is no apt-get here, tests of Debian's programs are deselected"
    if _distribution() != "debian":
        return f"{_distribution()} has programs for {HOST_ISA} only, tests of others are deselected"
    return ""


def _is_missing(item: pytest.Item) -> bool:
    if "esbuild" in getattr(item, "fixturenames", ()):
        return not shutil.which("npm")
    if item.get_closest_marker("debian") is None or not _missing():
        return False
    foreign = isinstance(item, pytest.Function) and item.callspec.params["isa"] != HOST_ISA
    return foreign or not shutil.which("apt-get")


def pytest_report_collectionfinish() -> list[str]:
    missing = [_missing()]
    if not shutil.which("npm"):
        missing.append("there is no npm here, tests of esbuild are deselected")
    return [f"tests/programs: {each}" for each in missing if each]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [item for item in items if _is_missing(item)]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if item not in missing]


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
def static() -> Path:
    """The folder with one folder for each ISA, which holds Debian's static programs."""
    return _fetched("static")


@pytest.fixture(scope="session")
def dynamic() -> Path:
    """The folder with one folder for each ISA but the host's: the root of a system with shared libraries."""
    return _fetched("dynamic")


@pytest.fixture(scope="session")
def systems() -> Path:
    """The folder with one folder for each ISA: the root of a system with a shell, servers, git and Python."""
    return _fetched("systems")


@pytest.fixture(scope="session")
def nginx() -> Path:
    """The folder with one folder for each ISA: the root of a system with nginx, wget and util-linux."""
    return _fetched("nginx")


@pytest.fixture(scope="session")
def ruff() -> Path:
    """The folder with one folder for each ISA, which holds the program `ruff`."""
    return _fetched("ruff")


@pytest.fixture(scope="session")
def esbuild() -> Path:
    """The folder with one folder for each ISA, which holds the program `esbuild`."""
    return _fetched("esbuild")


@pytest.fixture(scope="session")
def toolchain() -> Callable[[str], Path]:
    """Gives, for an ISA, the GOROOT of a Go that runs on it."""
    return lambda isa: _fetched(f"go-{isa}") / "go"


@pytest.fixture(scope="session")
def go(toolchain: Callable[[str], Path]) -> Path:
    """The folder with one folder for each ISA, which holds tests/programs/go, compiled here.

    `program` is the one of many parts, `shared` the small one of few threads.
    """
    root, folder = toolchain(HOST_ISA), _CACHE / "go"
    with open(_CACHE / "go.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for isa in ISAS:
            build_go(root, isa, folder / isa / "program")
            build_go(root, isa, folder / isa / "shared", "./shared")
    return folder


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with known files, the working directory of every program."""
    directory = tmp_path_factory.mktemp("workplace")
    furnish(directory)
    add_archives(directory)
    return directory
