"""Files of a program as swap: as on the host, whatever swap area the machine has of its own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from aether_emu import state
from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.programs.run import ISAS, LARGER_PAGES, run_emulated
from tests.programs.test_c import _HERE as HERE

_WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "own": {"swap": "8M", "cpus": 2},
    "clock": {"swap": "8M", "reclaim": "clock", "ram": "16M"},
}


def _program(isa: str) -> Path:
    return HERE / "bin" / isa / "swapfiles"


def _expected() -> bytes:
    return (HERE / "expected" / "swapfiles.txt").read_bytes()


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize(("isa", "granule"), [*((isa, 4096) for isa in ISAS), *LARGER_PAGES])
def test_files_of_a_program_go_on_and_off_as_on_the_host(
    isa: str, granule: int, way: str, tmp_path: Path
) -> None:
    grants = Grants(binds=[Bind(tmp_path, "/disk", writable=True)])
    options = {"uid": 0, "tlbsan": True, **_WAYS[way]}
    ran = run_emulated(_program(isa), ["/disk"], grants, isa=isa, granule=granule, **options)
    expected = _expected()
    if "swap" in options:  # of 128 pages 64 go to the file that has a priority, the others there
        expected = expected.replace(b"pages in swap: 0", b"pages in swap: 64")
    assert (ran.output, ran.errors) == (expected, b"")
    assert not list(tmp_path.iterdir())


def test_who_is_not_root_and_what_stands_in_memory_are_refused(tmp_path: Path) -> None:
    grants = Grants(binds=[Bind(tmp_path, "/disk", writable=True)])
    lines = (
        run_emulated(_program("x86_64"), ["/disk"], grants, isa="x86_64", uid=1000)
        .output.decode()
        .splitlines()
    )
    assert [line for line in lines if line.startswith(("a good one", "swapoff of the small"))] == [
        "a good one: EPERM",
        "swapoff of the small one: EPERM",
    ]
    lines = (
        run_emulated(_program("x86_64"), ["/tmp"], Grants(), isa="x86_64", uid=0).output.decode().splitlines()
    )
    assert "a good one: EINVAL" in lines


def test_a_machine_with_such_a_file_is_not_captured(tmp_path: Path) -> None:
    machine = Machine("x86_64", uid=0)
    grants = Grants(binds=[Bind(tmp_path, "/disk", writable=True)])
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine.load(str(_program("x86_64")), ["swapfiles", "/disk"], grants=grants, streams=streams)

    def stop(_call: object) -> None:
        machine.stop()

    machine.on_system_call(stop, ["madvise"])

    machine.run()
    with pytest.raises(state.StateError, match="/disk/swap0 is a swap file of a program"):
        state.capture(machine)
    machine.abandon()


@pytest.mark.parametrize("isa", ISAS)
def test_nobody_writes_to_the_machines_own_file_where_a_grant_shows_it(isa: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_bytes(bytes(8 << 20))
    with Machine(isa, uid=0, swap="8M", swap_file=str(own)) as machine:
        grants = Grants(binds=[Bind(tmp_path, "/disk", writable=True)])
        files = machine.load(str(_program(isa)), ["swapfiles", "/disk"], grants=grants).files
        file = files.table.file(files.open(fl.AT_FDCWD, b"/disk/own", fl.O_RDWR))
        with pytest.raises(Refused, match="it is a swap file") as refused:
            file.pwrite(b"x", 0)
        assert refused.value.errno == errno.ETXTBSY
        with pytest.raises(Refused, match="it is a swap file"):
            files.open(fl.AT_FDCWD, b"/disk/own", fl.O_WRONLY | fl.O_TRUNC)
    assert own.stat().st_size == 8 << 20
