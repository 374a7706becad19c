"""Go: a program of ours for its runtime and library, and its own compiler as a program."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from tests.programs.run import HOST_ISA, ISAS, Outcome, run_emulated, run_natively

every_isa = pytest.mark.parametrize("isa", ISAS)

_QUIET = (
    *("goroutines", "collector", "timers", "channels", "recovered"),
    *("signals", "killed", "children", "sockets"),
)
_FATAL = ("panic", "nil", "deadlock")
_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}  # as Go names them
_SOURCE = """\
package sum

func Of(numbers []int) (sum int) {
	for _, number := range numbers {
		sum += number
	}
	return
}
"""


@every_isa
@pytest.mark.parametrize("part", _QUIET)
def test_a_go_program_works_as_on_the_host(part: str, isa: str, go: Path, tmp_path: Path) -> None:
    native = run_natively(go / HOST_ISA / "program", [part], tmp_path)
    assert run_emulated(go / isa / "program", [part], Grants(cwd=tmp_path), isa=isa) == native


@every_isa
@pytest.mark.parametrize("part", _FATAL)
def test_what_go_says_at_its_end_is_what_it_says_on_the_host(
    part: str, isa: str, go: Path, tmp_path: Path
) -> None:
    native = run_natively(go / HOST_ISA / "program", [part], tmp_path)
    emulated = run_emulated(go / isa / "program", [part], Grants(cwd=tmp_path), isa=isa)
    assert native.status == 2
    assert _without_numbers(emulated) == _without_numbers(native)


def _without_numbers(outcome: Outcome) -> Outcome:
    """Without addresses, which differ between machine codes, and goroutines' numbers, which differ by run."""
    errors = re.sub(rb"\+?0x[0-9a-f]+|goroutine \d+", b"", outcome.errors)
    return Outcome(outcome.status, outcome.output, errors)


@every_isa
@pytest.mark.parametrize(
    ("part", "fatal"),
    [("overflow", "stack overflow"), ("memory", "out of memory")],
)
def test_go_says_itself_what_it_ran_out_of(part: str, fatal: str, isa: str, go: Path, tmp_path: Path) -> None:
    """The trace is by machine code, the line that says why is not."""
    native = run_natively(go / HOST_ISA / "program", [part], tmp_path)
    emulated = run_emulated(go / isa / "program", [part], Grants(cwd=tmp_path), isa=isa)
    for outcome in (native, emulated):
        assert outcome.status == 2
        assert f"fatal error: {fatal}\n" in outcome.errors.decode()
        assert "main.main()" in outcome.errors.decode()


@every_isa
def test_a_seed_gives_the_same_fatal_trace_with_its_addresses(isa: str, go: Path, tmp_path: Path) -> None:
    once, again = (
        run_emulated(go / isa / "program", ["nil"], Grants(cwd=tmp_path), isa=isa) for _ in range(2)
    )
    assert once == again


@every_isa
def test_gos_compiler_makes_the_object_that_the_hosts_makes(
    isa: str, toolchain: Callable[[str], Path], tmp_path: Path
) -> None:
    architecture = _ARCHITECTURES[isa]
    (tmp_path / "sum.go").write_text(_SOURCE)
    words = ["-p", "sum", "-trimpath", str(tmp_path), "-o"]
    source = str(tmp_path / "sum.go")
    native = _compiler(toolchain(HOST_ISA), HOST_ISA)
    environment = {**os.environ, "GOARCH": architecture}
    subprocess.run([native, *words, tmp_path / "native.o", source], env=environment, check=True)
    grants = Grants(cwd=tmp_path, binds=[Bind(tmp_path, str(tmp_path), writable=True)])
    emulated = run_emulated(
        _compiler(toolchain(isa), isa), [*words, str(tmp_path / "emulated.o"), source], grants, isa=isa
    )
    assert emulated == Outcome(0, b"", b"")
    assert (tmp_path / "emulated.o").read_bytes() == (tmp_path / "native.o").read_bytes()


def _compiler(root: Path, isa: str) -> Path:
    return root / "pkg" / "tool" / f"linux_{_ARCHITECTURES[isa]}" / "compile"
