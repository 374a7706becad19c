"""Programs dynamically linked with glibc, the host's and their twins, under a root with what they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, Outcome, run_emulated, run_natively

pytestmark = pytest.mark.debian

_COMMANDS = {
    "sha256sum": ["DATA/text", "DATA/bytes"],
    "ls": ["-1R", "DATA/tree"],
    "sort": ["-n", "DATA/text"],
    "sed": ["-n", "s/Line/L/p", "DATA/text"],
    "printf": ["%.15Lf %s\n", "1.1", "x"],
    "seq": ["1", "0.5", "4"],
    "factor": ["1000000007", "18446744073709551617"],
    "expr": ["99999999999999999999", "*", "12345678901234567890"],
    "date": ["-u", "-d", "@86400"],
    "cat": ["DATA/gone"],
}
_SAMPLE = ("sha256sum", "sort", "expr")


def _install(program: Path, root: Path) -> None:
    """Copy a program of the host and every library it names to the same paths under `root`."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in (str(program), *re.findall(r"(/\S+) \(0x", listed)):
        copy = root / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copy(path, copy)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the host's own programs."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def root(isa: str, name: str, request: pytest.FixtureRequest) -> Path:
    """A root with the program `name` for the ISA at the path that the host has it at."""
    if isa != HOST_ISA:
        dynamic: Path = request.getfixturevalue("dynamic")
        return dynamic / isa
    directory: Path = request.getfixturevalue("host")
    _install(Path("/usr/bin") / name, directory)
    return directory


def _check(name: str, root: Path, workplace: Path, isa: str, granule: int = 4096) -> None:
    program, data = Path("/usr/bin") / name, str(workplace)
    native = run_natively(program, [word.replace("DATA", data) for word in _COMMANDS[name]], workplace)
    texts = (text.replace(data.encode(), b"/data") for text in (native.output, native.errors))
    words = [word.replace("DATA", "/data") for word in _COMMANDS[name]]
    grants = Grants(root=root, binds=[Bind(workplace, "/data", writable=False)])
    assert run_emulated(program, words, grants, isa=isa, granule=granule) == Outcome(native.status, *texts)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", _COMMANDS)
def test_a_dynamic_program_works_as_on_the_host(name: str, isa: str, root: Path, workplace: Path) -> None:
    _check(name, root, workplace, isa)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
@pytest.mark.parametrize("name", _SAMPLE)
def test_a_dynamic_program_works_on_larger_pages(
    name: str, isa: str, granule: int, root: Path, workplace: Path
) -> None:
    _check(name, root, workplace, isa, granule)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
@pytest.mark.parametrize("name", ["cat"])
def test_the_c_library_is_told_the_page_size(isa: str, granule: int, root: Path) -> None:
    loader = "/lib/ld-linux-aarch64.so.1"  # a program too, which can say what it knows
    outcome = run_emulated(loader, ["--list-diagnostics"], Grants(root=root), isa=isa, granule=granule)
    assert f"dl_pagesize={granule:#x}\n".encode() in outcome.output
