"""`aether run`: execute one program under the memory manager."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aether_emu.cli.app import Errors, complain, settle, show_tracebacks
from aether_emu.cli.early import INTERRUPTED
from aether_emu.cli.exploring import Given, explore_options, explored, refuse_alone
from aether_emu.cli.injecting import Injecting
from aether_emu.cli.interrupts import TIMED_OUT, interrupts
from aether_emu.cli.options import (
    DIRECTORY,
    FILE,
    SECONDS,
    Command,
    Form,
    Setting,
    WithOrWithout,
    debug_option,
    settings_given,
    several,
    text,
    whole,
)
from aether_emu.cli.replaying import Replay
from aether_emu.cli.watching import STDERR, Watching
from aether_emu.config import Config
from aether_emu.errors import AetherError, ConfigError, InterpreterError, ProgramError, Refused, TimedOut
from aether_emu.mm.slab.finding import SlabCorruption
from aether_emu.output import Output

if TYPE_CHECKING:
    from aether_emu.inject import Injection
    from aether_emu.linux.files.mounts import Bind
    from aether_emu.system import Machine

_PAUSE = 0.005  # seconds between two looks for what only the host can bring
_START = 5.0  # seconds that loading the program may take beside --timeout
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


def _kinds() -> list[str]:
    from aether_emu.observe.strace.selection import all_words

    return all_words()


def _parameter(written: str) -> tuple[str, object]:
    import tomllib

    name, equals, value = written.partition("=")
    if not name or not equals:
        raise ValueError(written)
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value  # a word without quotation marks


def _injections(written: str) -> list[Injection]:
    from aether_emu.inject.files import wanted

    return wanted(written)


def _parameters(pairs: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    """As a file would have them: `clock.block` stands in a table `clock`."""
    parameters: dict[str, Any] = {}
    for name, value in pairs:
        table, dot, key = name.partition(".")
        if dot and isinstance(parameters.setdefault(table, {}), dict):
            parameters[table][key] = value
        else:
            parameters[name] = value
    return parameters


_BIND = Form("HOST:GUEST[:rw]", "HOST:GUEST or HOST:GUEST:rw", _bind)
_VARIABLE = Form("NAME=VALUE", "NAME=VALUE", _variable)
_PARAMETER = Form("NAME=VALUE", "NAME=VALUE", _parameter)
_INJECTION = Form("SITE:KEY=VALUE,...|FILE", "SITE:KEY=VALUE,... or a TOML file", _injections)


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
@click.option("--cpus", cls=Setting, key="cpus", type=whole(1, 64), help="CPUs, 1 to 64.")
@click.option(
    "--swap",
    cls=Setting,
    key="swap",
    type=text("SIZE"),
    help="A swap area, to which pages go when RAM is short.",
)
@click.option(
    "--page-cache",
    cls=Setting,
    key="page_cache",
    type=text("HOW", lambda: ("outside", "counted")),
    help="Whether pages of mapped files take RAM (counted), and go when it is short, or none (outside).",
)
@click.option(
    "--kpti",
    cls=Setting,
    key="kpti",
    is_flag=True,
    help="Programs run without the supervisor's half, but for what leads into it.",
)
@click.option(
    "--thp",
    cls=Setting,
    key="thp",
    type=text("WHERE", lambda: ("never", "madvise", "always")),
    help="Where programs get huge pages: never, madvise (where they ask for them) or always.",
)
@click.option(
    "--hugepages",
    cls=Setting,
    key="hugepages",
    type=text("SIZE=N,..."),
    help="Pools of huge pages for programs that ask (MAP_HUGETLB), such as 2M=16,1G=1.",
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
    "--la57",
    cls=Setting,
    key="virtual_bits",
    sets=57,
    is_flag=True,
    help="Five levels of page tables on x86_64.",
)
@click.option(
    "--real-time",
    cls=Setting,
    key="real_time",
    is_flag=True,
    help="Clocks are the host's, and sleeping takes its time. No run can be repeated.",
)
@click.option(
    "--no-aslr", cls=Setting, key="aslr", sets=False, is_flag=True, help="Do not randomise addresses."
)
@click.option(
    "--tlbsan",
    cls=Setting,
    key="tlbsan",
    is_flag=True,
    help="Stop when a CPU may still hold a translation that others rely on being gone (exit 125).",
)
@click.option("--config", type=FILE, help="A TOML file of parameters.")
@click.option(
    "--set",
    "settings",
    type=_PARAMETER,
    multiple=True,
    help="A parameter as it would stand in that file; may be repeated.",
)
@click.option("--root", type=DIRECTORY, help="A host directory that becomes the guest's /.")
@click.option(
    "--bind", type=_BIND, multiple=True, help="Show the guest something of the host; may be repeated."
)
@click.option("--uid", cls=Setting, key="uid", type=whole(0), help="The user that programs are; 0 is root.")
@click.option("--gid", cls=Setting, key="gid", type=whole(0), help="And the group.")
@click.option("--env", type=_VARIABLE, multiple=True, help="A variable for the guest; may be repeated.")
@click.option("--timeout", type=SECONDS, help="Stop after that many seconds (exit 124).")
@click.option(
    "--strace",
    cls=WithOrWithout,
    bare=STDERR,
    type=FILE,
    help="System calls, page faults and signals, a line each, on stderr or into FILE.",
)
@click.option(
    "--strace-only",
    type=several("KINDS", _kinds),
    help="Only these, separated by commas: names of calls, page-fault, signal, syscall, and families such as"
    " %memory and %file. Means --strace too.",
)
@click.option("--no-crash-report", is_flag=True, help="Do not explain a crash on stderr.")
@click.option("--stats", is_flag=True, help="A table of what happened, on stderr.")
@click.option("--stats-json", type=FILE, help="The same as JSON, into a file.")
@click.option(
    "--framebuffer",
    cls=Setting,
    key="framebuffer",
    type=text("SIZE", lambda: ("640x480", "800x600", "1024x768")),
    help="A framebuffer /dev/fb0 of so many pixels, such as 640x480.",
)
@click.option("--screenshot", type=FILE, help="At the end write its picture there, as a PNG.")
@click.option(
    "--inject",
    type=_INJECTION,
    multiple=True,
    help="Inject a fault, such as pte:bit=1,level=2,at=fault#100, or those of a TOML file; may be repeated.",
)
@click.option("--core", type=FILE, help="At the end write all memory there, as an ELF core for aether pt.")
@explore_options
@debug_option
def run(  # an option is a parameter here
    program: str,
    args: tuple[str, ...],
    config: Path | None,
    settings: tuple[tuple[str, object], ...],
    root: Path | None,
    bind: tuple[Bind, ...],
    env: tuple[tuple[str, str], ...],
    timeout: float | None,
    strace: Path | None,
    strace_only: str | None,
    no_crash_report: bool,
    stats: bool,
    stats_json: Path | None,
    screenshot: Path | None,
    inject: tuple[list[Injection], ...],
    core: Path | None,
    schedule: str | None,
    explore: int | None,
    exhaustive: bool,
    debug: bool,
    **exploring: Any,
) -> None:  # fmt: skip
    """Run PROGRAM under the memory manager. Its streams pass through.

    It sees itself and the working directory, read-only; more by --bind or --root. /tmp and /dev/shm are empty
    and its own. The only network is a loopback of its own.

    The exit status is its own, 128+N on signal N, 124 on --timeout, 125 if the run cannot go on, 126 and 127
    as in a shell, 2 for a wrong option, 130 after Ctrl-C.
    """
    show_tracebacks(debug)
    Errors.status = 125
    from aether_emu.grants import Grants

    parameters = Config.load(config, {**_parameters(settings), **settings_given()})
    seen = (
        strace is not None or strace_only is not None or stats or stats_json or core or screenshot or inject
    )
    grants = Grants(root, list(bind))
    given = Given(program, args, dict(env), grants, parameters, timeout, schedule, bool(seen))
    if explore is not None or exhaustive:
        raise click.exceptions.Exit(explored(given, explore, exhaustive, **exploring))
    refuse_alone(exploring, schedule)
    replay = None if schedule is None else Replay(schedule, parameters, exploring["stuck_after"])
    if timeout is not None:
        interrupts.limit(timeout + _START, f"{program}: stopped by --timeout")
    if screenshot is not None and parameters.framebuffer == "none":
        raise ConfigError("screenshot", str(screenshot), "given with --framebuffer: there is no picture else")
    outputs = _Outputs(stats, stats_json, core, screenshot)
    outputs.injecting = Injecting([each for several in inject for each in several])
    watching = Watching(strace, strace_only, crash_report=not no_crash_report)
    raise click.exceptions.Exit(_executed(given, outputs, watching, replay))


def _executed(given: Given, outputs: _Outputs, watching: Watching, replay: Replay | None) -> int:
    """Make the machine that was asked for, and run the program on it. The exit status."""
    from aether_emu.grants import program_isa
    from aether_emu.system import Machine

    program, grants, timeout = given.program, given.grants, given.timeout
    with _naming_the_limit():
        isa = program_isa(program, grants, executable=True)
    made = {} if replay is None else replay.makers(isa)
    machine = Machine(isa, config=given.config, pause=lambda: time.sleep(_PAUSE), **made)
    machine.kernel.tell = lambda lines: click.echo(f"aether: {lines}", err=True, nl=False)
    settle()
    try:
        with _naming_the_limit(), _suggesting_a_root(program, grants.root):
            streams = None if replay is None else replay.streams()
            machine.load(program, [program, *given.args], env=given.env, grants=grants, streams=streams)
        outputs.prepare(machine)
        outputs.injecting.attach(machine)
        if timeout is not None:
            interrupts.limit(timeout, f"{program}: stopped by --timeout")
        watching.attach(machine)
        interrupts.serve(machine)
        with interrupts.reporting():
            status = _to_the_end(machine, program, outputs, watching)
    finally:
        machine.close()
        if replay is not None:
            replay.finish(machine)
    _tell_damages(machine.damages(), program)
    return status


def _to_the_end(machine: Machine, program: str, outputs: _Outputs, watching: Watching) -> int:
    """Run the program, write what was asked for, and give everything back. The exit status.

    A run that was ended from outside is over at once: nobody looks whether every frame came back.
    """
    started = time.perf_counter()
    try:
        with interrupts.itself():
            ended = outputs.injecting.run(machine, interrupts.left())
    except (KeyboardInterrupt, TimedOut) as why:
        if isinstance(why, TimedOut):
            interrupts.reached()
        watching.finish()
        outputs.write(machine, time.perf_counter() - started)
        machine.abandon()
        if isinstance(why, KeyboardInterrupt):
            return INTERRUPTED
        complain(f"{program}: stopped by --timeout")
        return TIMED_OUT
    except AetherError as error:  # such as a deadlock: the call that waits is what one wants to see
        watching.finish()
        outputs.injecting.finish()
        if machine.tlbsan is not None and machine.tlbsan.finding is error:
            outputs.write(machine, time.perf_counter() - started)
            click.echo(machine.tlbsan.report, err=True)
            machine.abandon()  # it was left in the midst of an operation
        if isinstance(error, SlabCorruption):
            outputs.write(machine, time.perf_counter() - started)
            click.echo(error.report, err=True)
            machine.abandon()  # likewise
        raise
    watching.finish()
    outputs.write(machine, time.perf_counter() - started)
    if ended.signal and ended.signal != signal.SIGPIPE:  # of which a shell says nothing either
        complain(f"{program}: killed by {ended.why}")
    try:
        machine.close()
    except SlabCorruption as error:
        click.echo(error.report, err=True)
        raise
    except KeyboardInterrupt:  # the program has ended in its own way, and that is what the user hears
        machine.abandon()
    return ended.status


class _Outputs:
    """What the user wants to have of a run beside its own output."""

    def __init__(self, table: bool, json: Path | None, core: Path | None, screenshot: Path | None) -> None:
        """Raises ConfigError for a place where nothing can be written."""
        self._table = table
        self._json = None if json is None else Output("stats-json", json)
        self._screenshot = None if screenshot is None else Output("screenshot", screenshot)
        self._core: Output | None = None
        self.injecting = Injecting(())
        if core is not None:
            from aether_emu.observe import core as cores

            self._core = cores.place(core)
        if table or json is not None:
            from aether_emu.observe import stats  # noqa: F401  # before `settle`
        if table:  # imported now: an interrupted run has no time for it
            import rich.console
            import rich.table  # noqa: F401  # likewise

    def prepare(self, machine: Machine) -> None:
        """The program is loaded and about to start."""
        if self._table or self._json is not None:
            from aether_emu.observe import stats as statistics

            statistics.prepare(machine)

    def write(self, machine: Machine, seconds: float) -> None:
        """It has run for so long."""
        self.injecting.finish()
        if self._table or self._json is not None:
            from aether_emu.observe import stats as statistics

            data = statistics.collect(machine, seconds, self.injecting.told())
            if self._json is not None:
                self._json.write(statistics.as_json(data).encode())
            if self._table:
                from rich.console import Console

                Console(stderr=True).print(statistics.as_table(data))
        if self._screenshot is not None:
            assert machine.board is not None and machine.board.framebuffer is not None, "it was asked for"
            self._screenshot.write(machine.board.framebuffer.png())
        if self._core is not None:
            from aether_emu.observe import core as cores

            cores.write_core(machine, self._core)


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
            from aether_emu.grants import is_in_memory

            folder = os.path.dirname(error.interpreter)
            hidden = is_in_memory(error.interpreter)  # what --root shows there, a tmpfs hides
            bind = f" --bind {folder}:{folder}" if hidden else ""
            hint = f"try --root /{bind} {os.path.abspath(program)}"
        raise ProgramError(f"{error}; {hint}", error.exit_status) from error


def _tell_damages(damages: list[str], program: str) -> None:
    """A line for each of the first entries that were found damaged."""
    for line in damages[:_MOST_DAMAGES]:
        complain(f"{program}: damaged page table: {line}")
