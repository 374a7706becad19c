"""A program that crashes, and the report on it, by sections."""

from __future__ import annotations

from pathlib import Path

from aether_emu.grants import Grants
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe.crash.recorder import Recorder
from aether_emu.observe.crash.report import report
from aether_emu.system import Machine

CRASH = Path(__file__).parents[2] / "programs" / "bin"


def crashed(
    program: Path,
    isa: str,
    cwd: Path,
    *arguments: str,
    page_size: int = 4096,
    grants: Grants | None = None,
    sent: SignalInfo | None = None,
) -> dict[str, list[str]]:
    """The report's lines by the title above them; the first lines are under "". Empty without a report.

    The signal `sent` comes when the program has run for a while.
    """
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(isa, ram="256M", seed=7, page_size=page_size)
    try:
        process = machine.load(
            program, [str(program), *arguments], grants=grants or Grants(cwd=cwd), streams=streams
        )
        reports: list[str] = []
        recorder = Recorder(machine, lambda fatal: reports.append(report(recorder, fatal)))
        if sent is not None:
            assert machine.run_for(1000) is None
            process.post(sent)
        machine.run()
        text = "".join(reports)
    finally:
        machine.close()
    sections: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        assert len(line) <= 80, line
        if line and not line.startswith((" ", "Crash of")):
            title = line
        elif line:
            sections.setdefault(title, []).append(line)
    return sections


def told(sections: dict[str, list[str]]) -> str:
    """What the report says of the cause, as one line."""
    return " ".join(line.strip() for line in sections[""][1:])


def functions(sections: dict[str, list[str]]) -> list[str]:
    """The names in the backtrace, the innermost first; "?" where there is none."""
    frames = [line.split() for line in sections["Backtrace"] if line.lstrip().startswith("#")]
    return [words[2].partition("+")[0] if "+0x" in words[2] else "?" for words in frames]
