"""The committed guest programs are small, well-formed, baseline ELF files, and what their sources build."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import capstone
import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
GUEST = ROOT / "guest"
IMAGES = "aether_emu/linux/exec/images"
MACHINES = {"x86_64": ("EM_X86_64", 4 << 10), "arm64": ("EM_AARCH64", 64 << 10)}  # and the largest page
X86_64_ONLY = {"avx", "vsyscall"}
SIZE_LIMIT = 40 << 10
READ, WRITE, EXECUTE = 4, 2, 1  # p_flags

# The builds share a compiler cache, so one test process runs them all.
pytestmark = pytest.mark.xdist_group("guests")

SOURCES = {path.stem for path in (GUEST / "src").glob("*.c")}
PROGRAMS = sorted(path.relative_to(GUEST / "bin").as_posix() for path in (GUEST / "bin").glob("*/*"))

# Beyond the baseline of x86-64: what a CPU without AVX, or the least of the emulated ones, may lack.
BEYOND_BASELINE = {
    *(capstone.x86.X86_GRP_AVX, capstone.x86.X86_GRP_AVX2, capstone.x86.X86_GRP_AVX512),
    *(capstone.x86.X86_GRP_FMA, capstone.x86.X86_GRP_BMI, capstone.x86.X86_GRP_BMI2),
    *(capstone.x86.X86_GRP_SSE3, capstone.x86.X86_GRP_SSSE3),
    *(capstone.x86.X86_GRP_SSE41, capstone.x86.X86_GRP_SSE42),
}
# The atomics of ARMv8.1 (FEAT_LSE), which the Cortex-A53, A57 and A72 lack.
LSE = ("cas", "swp", *(f"{kind}{op}" for kind in ("ld", "st") for op in ("add", "clr", "eor", "set")))
LSE += tuple(f"{kind}{op}" for kind in ("ld", "st") for op in ("smax", "smin", "umax", "umin"))


def isa_of(program: str) -> str:
    return program.partition("/")[0]


def name_of(program: str) -> str:
    return program.partition("/")[2]


def elf(program: str) -> ELFFile:
    """One committed program, read whole."""
    return ELFFile.load_from_path(str(GUEST / "bin" / program))


def loads(program: str) -> list[Any]:
    return [segment for segment in elf(program).iter_segments() if segment["p_type"] == "PT_LOAD"]


def instructions(program: str) -> list[Any]:
    """Every instruction of the code segment, in order."""
    (code,) = (segment for segment in loads(program) if segment["p_flags"] & EXECUTE)
    if isa_of(program) == "x86_64":
        decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    else:
        decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    decoder.detail = True
    decoder.skipdata = True
    return list(decoder.disasm(code.data(), code["p_vaddr"]))


def build_guests(
    *arguments: str, tree: Path = ROOT, cache: Path | None = None, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the script of `tree` in this interpreter."""
    environment = dict(os.environ)
    if cache is not None:
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache))
    command = [sys.executable, *flags, str(tree / "scripts/build_guests"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One compiler cache for all builds of this file."""
    assert importlib.util.find_spec("ziglang") is not None, "the dev dependencies bring the ziglang package"
    return tmp_path_factory.mktemp("zig")


def test_every_source_has_a_program_for_each_isa() -> None:
    both = {f"{isa}/{name}" for isa in MACHINES for name in SOURCES}
    assert set(PROGRAMS) == both - {f"arm64/{name}" for name in X86_64_ONLY}


@pytest.mark.parametrize("program", PROGRAMS)
class TestProgram:
    def test_is_a_static_executable_of_its_isa(self, program: str) -> None:
        file = elf(program)
        assert (file.elfclass, file.little_endian) == (64, True)
        assert (file["e_type"], file["e_machine"]) == ("ET_EXEC", MACHINES[isa_of(program)][0])
        kinds = {segment["p_type"] for segment in file.iter_segments()}
        assert kinds == {"PT_LOAD", "PT_GNU_STACK"}

    def test_has_one_segment_a_permission_and_none_is_writable_and_executable(self, program: str) -> None:
        assert [segment["p_flags"] for segment in loads(program)] == [READ, READ | EXECUTE, READ | WRITE]
        (stack,) = (
            segment for segment in elf(program).iter_segments() if segment["p_type"] == "PT_GNU_STACK"
        )
        assert stack["p_flags"] == READ | WRITE

    def test_keeps_its_segments_in_pages_of_their_own_whatever_the_granule(self, program: str) -> None:
        granule = MACHINES[isa_of(program)][1]
        pages: set[int] = set()
        for segment in loads(program):
            assert segment["p_align"] == granule
            assert segment["p_vaddr"] % granule == segment["p_offset"] % granule
            assert segment["p_offset"] % 4096 == 0
            own = range(
                segment["p_vaddr"] // granule, (segment["p_vaddr"] + segment["p_memsz"] - 1) // granule + 1
            )
            assert pages.isdisjoint(own)
            pages.update(own)

    def test_starts_in_its_code(self, program: str) -> None:
        (code,) = (segment for segment in loads(program) if segment["p_flags"] & EXECUTE)
        assert code["p_vaddr"] <= elf(program)["e_entry"] < code["p_vaddr"] + code["p_filesz"]

    def test_maps_its_own_headers(self, program: str) -> None:
        first, file = loads(program)[0], elf(program)
        assert first["p_offset"] == 0
        assert file["e_phoff"] + file["e_phnum"] * file["e_phentsize"] <= first["p_filesz"]

    def test_is_small_stripped_and_executable(self, program: str) -> None:
        path = GUEST / "bin" / program
        assert path.stat().st_size < SIZE_LIMIT
        assert path.stat().st_mode & stat.S_IXUSR
        sections = {section.name for section in elf(program).iter_sections()}
        assert sections <= {"", ".rodata", ".text", ".data", ".bss", ".shstrtab"}

    def test_uses_the_baseline_of_its_isa(self, program: str) -> None:
        decoded = instructions(program)
        assert any(instruction.mnemonic in ("syscall", "svc") for instruction in decoded)
        if isa_of(program) == "x86_64":
            beyond = [i for i in decoded if i.id and BEYOND_BASELINE.intersection(i.groups)]
        else:
            beyond = [i for i in decoded if i.mnemonic.startswith(LSE)]
        assert bool(beyond) == (name_of(program) == "avx"), [str(i) for i in beyond]


def test_recorded_outputs_belong_to_programs() -> None:
    expected = [path for path in (GUEST / "expected").rglob("*") if path.is_file()]
    assert {path.stem.split("-")[0] for path in expected} <= SOURCES
    assert all(path.read_text().endswith("\n") for path in expected)
    common = {path.name for path in (GUEST / "expected").glob("*.txt")}
    assert {path.name for path in (GUEST / "expected/arm64").glob("*.txt")} <= common


def test_the_committed_programs_are_what_their_sources_build(cache: Path) -> None:
    done = build_guests("--check", cache=cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_names_what_differs_and_writes_nothing(cache: Path, tmp_path: Path) -> None:
    """In a tree of three programs: that all are compared is what the test above shows."""
    tree, kept = tmp_path / "another place", {"alu", "avx", "hello"}
    for name in ("guest", "scripts", IMAGES):
        shutil.copytree(ROOT / name, tree / name)
    binaries = tree / "guest/bin"
    for path in (*(tree / "guest/src").glob("*.c"), *binaries.glob("*/*")):
        if path.stem not in kept:
            path.unlink()
    changed = binaries / "x86_64/hello"
    changed.write_bytes(changed.read_bytes().replace(b"hello, world", b"hello, World"))
    (binaries / "arm64/alu").unlink()
    (binaries / "arm64/stray").touch()
    image = tree / IMAGES / "vdso-arm64-16K.so"
    image.write_bytes(image.read_bytes() + b"\0")
    before = {path: path.read_bytes() for path in (*binaries.glob("*/*"), image)}
    done = build_guests("--check", tree=tree, cache=cache)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "arm64/alu: missing",
        "x86_64/hello: differs",
        "arm64/stray: has no source",
        "vdso-arm64-16K.so: differs",
    ]
    assert {path: path.read_bytes() for path in (*binaries.glob("*/*"), image)} == before


def test_a_build_restores_the_committed_bytes(cache: Path, tmp_path: Path) -> None:
    for name in ("guest", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for isa in MACHINES:
        (tmp_path / "guest/bin" / isa / "hello").unlink()
    assert build_guests("hello", tree=tmp_path, cache=cache).returncode == 0
    for isa in MACHINES:
        built = tmp_path / "guest/bin" / isa / "hello"
        assert built.read_bytes() == (GUEST / "bin" / isa / "hello").read_bytes()


def test_a_source_that_does_not_compile_is_named(cache: Path, tmp_path: Path) -> None:
    for name in ("guest", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "guest/src/hello.c").write_text(
        '#include "aether.h"\nint main(int argc, char **argv) { return none; }\n'
    )
    done = build_guests("hello", tree=tmp_path, cache=cache)
    assert done.returncode == 1
    assert "src/hello.c:2" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_compiler_it_says_in_one_line_how_to_get_it() -> None:
    done = build_guests("--check", flags=("-S",))
    assert done.returncode == 1
    install = f"{sys.executable} -m pip install ziglang==0.13.0"
    assert done.stderr == f"build_guests: needs ziglang 0.13.0, found none; install it with: {install}\n"
