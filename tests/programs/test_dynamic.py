"""The host's own programs, dynamically linked with glibc, under a root that holds only what they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aether_emu.system import Grants
from tests.programs.run import Outcome, run_emulated, run_natively

pytestmark = pytest.mark.debian

_COMMANDS = [
    ["sha256sum", "DATA/text", "DATA/bytes"],
    ["ls", "-1R", "DATA/tree"],
    ["sort", "-n", "DATA/text"],
    ["sed", "-n", "s/Line/L/p", "DATA/text"],
    ["printf", "%.20Lf %s\n", "1.1", "x"],
    ["seq", "1", "0.5", "4"],
    ["factor", "1000000007", "18446744073709551617"],
    ["expr", "99999999999999999999", "*", "12345678901234567890"],
    ["date", "-u", "-d", "@86400"],
    ["cat", "DATA/gone"],
]


def _install(name: str, root: Path) -> Path:
    """Copy a program of the host and every library it names to the same paths under `root`."""
    program = Path("/usr/bin") / name
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in (str(program), *re.findall(r"(/\S+) \(0x", listed)):
        copy = root / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copy(path, copy)
    return program


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> Path:
    directory = tmp_path_factory.mktemp("root")
    shutil.copytree(workplace, directory / "data", symlinks=True)
    return directory


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda command: command[0])
def test_a_dynamic_program_works_as_on_the_host(command: list[str], root: Path) -> None:
    program = _install(command[0], root)
    host = [word.replace("DATA", f"{root}/data") for word in command[1:]]
    native = run_natively(program, host, root)
    prefix = str(root).encode()
    wanted = Outcome(native.status, native.output.replace(prefix, b""), native.errors.replace(prefix, b""))
    guest = [word.replace("DATA", "/data") for word in command[1:]]
    assert run_emulated(program, guest, Grants(root=root)) == wanted
