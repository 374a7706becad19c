"""Build the C programs: `python -m tests.programs.build` makes bin/ISA/NAME of every src/NAME.c.

Static programs with musl's C library, as a user would build them. They are kept in the repository because
building the C library takes minutes; the compiler is `pip install ziglang==0.13.0`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = {"x86_64": "x86_64-linux-musl", "arm64": "aarch64-linux-musl"}
_OPTIONS = ("-static", "-O2", "-g0", "-Wall", "-Wextra", "-Wno-unused-result", "-fno-sanitize=all")


def build(name: str, isa: str) -> None:
    """Compile, link and strip one program. CalledProcessError when the compiler refuses."""
    zig = (sys.executable, "-m", "ziglang")
    with tempfile.TemporaryDirectory() as scratch:
        linked = f"{scratch}/{name}"
        source = f"src/{name}.c"
        compiler = (*zig, "cc", "-target", TARGETS[isa], *_OPTIONS)
        subprocess.run([*compiler, source, "-lm", "-o", linked], cwd=HERE, check=True)
        subprocess.run([*zig, "objcopy", "--strip-all", linked, f"bin/{isa}/{name}"], cwd=HERE, check=True)
    (HERE / "bin" / isa / name).chmod(0o755)


if __name__ == "__main__":
    for source in sorted((HERE / "src").glob("*.c")):
        for isa in TARGETS:
            build(source.stem, isa)
