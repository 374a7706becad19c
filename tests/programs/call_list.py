"""docs/system-calls.md, written from the code: `python -m tests.programs.call_list`."""

from __future__ import annotations

from pathlib import Path

from aether_emu.linux.abi.arm64 import ArmAbi
from aether_emu.linux.abi.x86_64 import X86Abi
from aether_emu.linux.calls import served

PAGE = Path(__file__).resolve().parents[2] / "docs" / "system-calls.md"

_HEAD = """\
# System calls

These are the calls that a guest program can make. Any other one answers `ENOSYS`, as one does that a kernel
does not know. What a call refuses in particular stands with its function in `aether_emu/linux/calls`.

This page is written by `python -m tests.programs.call_list`; a test holds it against the code.
"""


def page() -> str:
    """The text of the page."""
    names = {"x86_64": dict(X86Abi().system_calls), "arm64": dict(ArmAbi().system_calls)}
    rows = {isa: {name: number for number, name in table.items()} for isa, table in names.items()}
    calls = sorted(set(served(names["x86_64"])) | set(served(names["arm64"])))
    lines = [_HEAD, f"{len(calls)} calls are served.", "", "| call | x86_64 | arm64 |", "|---|---|---|"]
    for call in calls:
        numbers = (str(rows[isa].get(call, "")) for isa in ("x86_64", "arm64"))
        lines.append(f"| `{call}` | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
