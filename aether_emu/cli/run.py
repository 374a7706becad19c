"""`aether run`: execute one program under the memory manager."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu.cli.app import complain, settle, show_tracebacks
from aether_emu.cli.interrupts import Interrupts
from aether_emu.cli.options import (
    DIRECTORY,
    FILE,
    SECONDS,
    Command,
    Form,
    Setting,
    WithOrWithout,
    debug_option,
    text,
    whole,
)
from aether_emu.cli.watching import STDERR, Watching
from aether_emu.config import Config
from aether_emu.errors import ConfigError, InterpreterError, ProgramError, Refused

if TYPE_CHECKING:
    from aether_emu.linux.debugging import Stopped
    from aether_emu.linux.files.mounts import Bind
    from aether_emu.linux.task.process import Ended
    from aether_emu.system import Machine

_INTERRUPTED, _TIMED_OUT = 130, 124
_MOST_DAMAGES = 10  # lines about damaged entries


def _bind(written: str) -> Bind:
    from aether_emu.linux.files.mounts import Bind

    parts = written.split(":")
    if len(parts) not in (2, 3) or not all(parts) or parts[2:] not in ([], ["rw"], ["ro"]):
        raise ValueError(written)
    return Bind(Path(parts[0]), parts[1], writable=parts[2:] == ["rw"])


def _variable(written: str) -> tuple[str, str]:
    name, equals, value = written.partition("=")
    if not name or not equals or "\0" in written:
        raise ValueError(written)
    return name, value


_BIND = Form("HOST:GUEST[:rw]", "HOST:GUEST or HOST:GUEST:rw", _bind)
_VARIABLE = Form("NAME=VALUE", "NAME=VALUE", _variable)


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("program", type=click.Path(), help="The ELF program; its header names the ISA.")
@click.argument("args", nargs=-1, type=click.Path(), help="Its arguments.")
@click.option(
    "--ram",
    cls=Setting,
    key="ram",
    type=text("SIZE"),
    help="Emulated RAM, such as 512M.",
)
@click.option(
    "--seed",
    cls=Setting,
    key="seed",
    type=whole(0),
    help="The one source of all chance.",
)
@click.option(
    "--granule",
    cls=Setting,
    key="page_size",
    type=text("SIZE", lambda: ("4K", "16K", "64K")),
    help="Page size on ARM64: 4K, 16K or 64K.",
)
@click.option(
    "--la57", cls=Setting, key="virtual_bits", is_flag=True, help="Five levels of page tables on x86_64."
)
@click.option("--no-aslr", cls=Setting, key="aslr", is_flag=True, help="Do not randomise addresses.")
@click.option("--config", type=FILE, help="A TOML file of parameters.")
@click.option("--root", type=DIRECTORY, help="A host directory that becomes the guest's /.")
@click.option(
    "--bind", type=_BIND, multiple=True, help="Show the guest something of the host; may be repeated."
)
@click.option("--env", type=_VARIABLE, multiple=True, help="A variable for the guest; may be repeated.")
@click.option("--timeout", type=SECONDS, help="Stop after that many seconds (exit 124).")
@click.option(
    "--strace",
    cls=WithOrWithout,
    bare=STDERR,
    metavar="FILE",
    help="System calls, page faults and signals, a line each, on stderr or into FILE.",
)
@click.option(
    "--strace-only",
    metavar="KINDS",
    help="Only these, separated by commas: names of calls, page-fault, signal, syscall, and families such as"
    " %memory and %file. Means --strace too.",
)
@click.option("--no-crash-report", is_flag=True, help="Do not explain a crash on stderr.")
@click.option("--stats", is_flag=True, help="A table of what happened, on stderr.")
@click.option("--stats-json", type=FILE, help="The same as JSON, into a file.")
@click.option("--core", type=FILE, help="At the end write all memory there, as an ELF core for aether pt.")
@debug_option
def run(  # an option is a parameter here
    program: str,
    args: tuple[str, ...],
    ram: str | None,
    seed: int | None,
    granule: str | None,
    la57: bool,
    no_aslr: bool,
    config: Path | None,
    root: Path | None,
    bind: tuple[Bind, ...],
    env: tuple[tuple[str, str], ...],
    timeout: float | None,
    strace: str | None,
    strace_only: str | None,
    no_crash_report: bool,
    stats: bool,
    stats_json: Path | None,
    core: Path | None,
    debug: bool,
) -> None:  # fmt: skip
    """Run PROGRAM under the memory manager. Its streams pass through.

    It sees itself and the working directory, read-only; more by --bind or --root. There is no network.

    The exit status is its own, 128+N on signal N, 124 on --timeout, 125 if the run cannot go on, 126 and 127
    as in a shell, 2 for a wrong option, 130 after Ctrl-C.
    """
    show_tracebacks(debug)
    from aether_emu.system import Grants, Machine, program_isa

    overrides = {
        "ram": ram,
        "seed": seed,
        "page_size": granule,
        "virtual_bits": 57 if la57 else None,
        "aslr": False if no_aslr else None,
    }
    parameters = Config.load(config, overrides)
    grants = Grants(root, list(bind))
    pauses = _Pauses()
    outputs = _Outputs(stats, stats_json, core)
    watching = Watching(strace, strace_only, crash_report=not no_crash_report)
    with _naming_the_limit():
        isa = program_isa(program, grants)
    machine = Machine(isa, config=parameters, pause=pauses.pause)
    settle()
    try:
        with _naming_the_limit(), _suggesting_a_root(program, root):
            machine.load(program, [program, *args], env=dict(env), grants=grants)
        outputs.prepare(machine)
        watching.attach(machine)
        with Interrupts(machine.cpu.interrupt, timeout) as interrupts:
            pauses.interrupts = interrupts
            try:
                status = _to_the_end(machine, program, interrupts, outputs, watching)
            except KeyboardInterrupt:
                if interrupts.reason != "timeout":
                    raise
                status = _timed_out(program)
    finally:
        machine.close()
    _tell_damages(machine.damages(), program)
    raise click.exceptions.Exit(status)


def _to_the_end(
    machine: Machine, program: str, interrupts: Interrupts, outputs: _Outputs, watching: Watching
) -> int:
    """Run the program, write what was asked for, and give everything back. The exit status.

    A run that was ended from outside is over at once: nobody looks whether every frame came back.
    """
    started = time.perf_counter()
    ended = _run(machine.run)
    interrupts.finish()
    watching.finish()
    outputs.write(machine, time.perf_counter() - started)
    if ended is None:
        machine.abandon()
        return _timed_out(program) if interrupts.reason == "timeout" else _INTERRUPTED
    if ended.signal and ended.signal != signal.SIGPIPE:  # of which a shell says nothing either
        complain(f"{program}: killed by {ended.why}")
    try:
        machine.close()
    except KeyboardInterrupt:  # the program has ended in its own way, and that is what the user hears
        machine.abandon()
    return ended.status


class _Outputs:
    """What the user wants to have of a run beside its own output."""

    def __init__(self, table: bool, json: Path | None, core: Path | None) -> None:
        """Raises ConfigError for a place where nothing can be written."""
        self._table, self._json, self._core = table, json, core
        if core is not None:
            from aether_emu.observe import core as cores

            cores.check(core)
        if table or json is not None:
            from aether_emu.observe import stats  # noqa: F401  # before `settle`
        if json is not None and not os.access(json if json.exists() else json.parent, os.W_OK):
            raise ConfigError("stats-json", str(json), "a file that can be written")

    def prepare(self, machine: Machine) -> None:
        """The program is loaded and about to start."""
        if self._table or self._json is not None:
            from aether_emu.observe import stats as statistics

            statistics.prepare(machine)

    def write(self, machine: Machine, seconds: float) -> None:
        """It has run for so long."""
        if self._core is not None:
            from aether_emu.observe import core as cores

            cores.write_core(machine, self._core)
        if self._table or self._json is not None:
            from aether_emu.observe import stats as statistics

            data = statistics.collect(machine, seconds)
            if self._json is not None:
                _write(self._json, statistics.as_json(data))
            if self._table:
                from rich.console import Console

                Console(stderr=True).print(statistics.as_table(data))


@contextlib.contextmanager
def _naming_the_limit() -> Iterator[None]:
    """Say which limit it is, if the host lets us open too few files to load a program."""
    try:
        yield
    except ProgramError as error:
        cause = error.__context__
        if isinstance(cause, Refused) and cause.errno in (errno.EMFILE, errno.ENFILE):
            raise ProgramError(f"{error} (raise ulimit -n)", error.exit_status) from cause
        raise


@contextlib.contextmanager
def _suggesting_a_root(program: str, root: Path | None) -> Iterator[None]:
    """Say how a program of the host finds its interpreter."""
    try:
        yield
    except InterpreterError as error:
        hint = "give it with --root or --bind"
        if root is None and os.path.exists(error.interpreter):
            hint = f"try --root / {os.path.abspath(program)}"
        raise ProgramError(f"{error}; {hint}", error.exit_status) from error


class _Pauses:
    """Sleeps a little while the guest waits for input; ends the run when it was interrupted."""

    interrupts: Interrupts | None = None

    def pause(self) -> None:
        from aether_emu.linux.task.scheduler import Interrupted

        if self.interrupts is not None and self.interrupts.reason is not None:
            raise Interrupted
        time.sleep(0.005)


def _run(run: Callable[[], Ended | Stopped]) -> Ended | Stopped | None:
    """The end of the program, or None when the run was stopped from outside."""
    from aether_emu.linux.task.scheduler import Interrupted

    try:
        return run()
    except Interrupted:
        return None


def _timed_out(program: str) -> int:
    complain(f"{program}: stopped by --timeout")
    return _TIMED_OUT


def _tell_damages(damages: list[str], program: str) -> None:
    """A line for each of the first entries that were found damaged."""
    for line in damages[:_MOST_DAMAGES]:
        complain(f"{program}: damaged page table: {line}")


def _write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; what is no regular file is written to directly."""
    part = (
        path.with_name(f".{path.name[:200]}.{os.getpid()}") if path.is_file() or not path.exists() else path
    )
    try:
        part.write_text(text)
        if part != path:
            part.replace(path)
    except OSError as error:
        if part != path:
            part.unlink(missing_ok=True)
        raise ConfigError("stats-json", str(path), f"cannot be written: {error.strerror}") from None
