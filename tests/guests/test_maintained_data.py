"""An ARM64 program that has the instruction cache forget its data, line by line: it has all code kept.

A compiler's `__clear_cache` does so for whatever it is given, and stress-ng gives it megabytes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_programs import EXIT, loaded

_LINES = 32
_SOURCE = f"""
    mov x0, #0; mov x1, #4096; mov x2, #{{protection}}; mov x3, #34; mov x4, #-1; mov x5, #0
    mov x8, #222; svc #0                                  // mmap
    mov x20, x0
    mov w9, #1
    str w9, [x20]
    mov x2, #{{then}}; mov x1, #4096; mov x8, #226; svc #0 // mprotect
    mov x0, x20; mov x2, #3; svc #0                       // and back to what may be written
    mov x1, x20; mov x3, #{_LINES}
again:
    dc cvau, x1; ic ivau, x1; add x1, x1, #64
    subs x3, x3, #1; b.ne again
    dsb ish; isb
    mov x0, #0
    {EXIT["arm64"]}
"""


@pytest.mark.parametrize(
    ("then", "dropped"), [(3, 0), (5, _LINES)], ids=["it never held code", "it may have held code"]
)
def test_maintenance_drops_code_only_where_there_may_be_some(
    then: int, dropped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _SOURCE.format(protection=3, then=then)
    text = "\n".join(line.split("//")[0] for line in source.splitlines())
    with loaded(tmp_path, "arm64", text) as machine:
        cpu, count = machine.kernel.cpus[0], 0
        flush = cpu.flush_code

        def counted() -> None:
            nonlocal count
            count += 1
            flush()

        monkeypatch.setattr(cpu, "flush_code", counted)
        assert machine.run().status == 0
        assert count == dropped
