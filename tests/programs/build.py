"""Build the C programs: `python -m tests.programs.build` makes bin/ISA/NAME and NAME-glibc of src/NAME.c.

Static programs with musl's C library, and two with glibc, as a user would build them. They are kept in the
repository because building musl takes minutes and cross compilers are seldom at hand. What it takes:
`pip install ziglang==0.13.0`, and Debian's packages gcc-aarch64-linux-gnu and gcc-x86-64-linux-gnu.

The programs in Go are too large to be kept: the tests that run them compile them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
_MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
_OPTIONS = (
    "-static",
    "-O2",
    "-g0",
    "-s",
    "-Wall",
    "-Wextra",
    "-Wno-unused-result",
    "-Wno-infinite-recursion",
)

# glibc has another allocator, other thread-local data and other signal frames than musl. A program with it
# takes ten times the space, so it is only these.
WITH_GLIBC = ("control", "memory")

# Without any library, and with symbols and unwind tables: a small program whose crashes can be explained.
ALONE = ("crash",)
_ALONE_OPTIONS = (
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-O1",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Wno-unused-function",
    "-fno-stack-protector",
    "-fasynchronous-unwind-tables",
    "-Wl,--eh-frame-hdr,--build-id=none,-z,max-page-size=4096",
    "-I../../guest/include",
)


def build(name: str, isa: str) -> None:
    """Compile, link and strip one program with each C library. CalledProcessError when a compiler refuses."""
    machine = _MACHINES[isa]
    if name in ALONE:
        command = (f"{machine}-linux-gnu-gcc", *_ALONE_OPTIONS, f"src/{name}.c", "-o", f"bin/{isa}/{name}")
        subprocess.run(command, cwd=HERE, check=True)
        return
    zig = (sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=all")
    compilers: dict[str, tuple[str, ...]] = {name: (*zig, "-target", f"{machine}-linux-musl")}
    if name in WITH_GLIBC:
        compilers[f"{name}-glibc"] = (f"{machine}-linux-gnu-gcc",)
    for program, compiler in compilers.items():
        output = f"bin/{isa}/{program}"
        subprocess.run([*compiler, *_OPTIONS, f"src/{name}.c", "-lm", "-o", output], cwd=HERE, check=True)


def build_go(root: Path, isa: str, output: Path, package: str = ".") -> None:
    """Compile and strip a package of the folder `go` by the Go in `root`. What is up to date costs nothing.

    CalledProcessError when the compiler refuses.
    """
    variables = {
        "GOROOT": str(root),
        "GOARCH": {"x86_64": "amd64", "arm64": "arm64"}[isa],
        "GOCACHE": str(root.parent / "cache"),
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",  # the one that was pinned, never one from the network
        "GOFLAGS": "",
    }
    command = (str(root / "bin/go"), "build", "-trimpath", "-ldflags=-s -w", "-o", str(output), package)
    subprocess.run(command, cwd=HERE / "go", env={**os.environ, **variables}, check=True)


if __name__ == "__main__":
    for source in sorted((HERE / "src").glob("*.c")):
        for isa in _MACHINES:
            build(source.stem, isa)
