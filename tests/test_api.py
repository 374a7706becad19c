"""The Python API as a newcomer explores it: what things say of themselves, and what misuse is told."""

from __future__ import annotations

import gc
import importlib
import io
import os
import pydoc
import re
import stat as modes
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args, get_type_hints

import pytest

import aether_emu
from aether_emu import (
    AetherError,
    Config,
    ConfigError,
    Machine,
    MachineError,
    ProgramError,
    Protection,
    Refused,
)
from aether_emu.config import ClockCosts, CostOptions, Options
from aether_emu.errors import AddressError, ClosedError, HandlerError
from aether_emu.grants import Grants
from aether_emu.linux.debugging import AccessHandler, HaltHandler, Stopped, Why
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.handlers import CallHandler, FaultHandler
from aether_emu.linux.proc.texts import maps_text
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.registers import RegisterError
from aether_emu.state import StateError, capture
from tests.guests.running import program
from tests.small_programs import (
    DATA,
    DATA_SIZE,
    EXIT,
    START,
    every_isa,
    loaded,
    streams,
    with_symbols,
    written,
)

ROOT = Path(__file__).parents[1]
PLAIN: pydoc.TextDoc = vars(pydoc)["plaintext"]
QUICK = {
    "x86_64": f"mov rax, {DATA}; mov qword ptr [rax], 77; mov edi, 3; {EXIT['x86_64']}",
    "arm64": f"mov x1, #{DATA}; mov x2, #77; str x2, [x1]; mov x0, #3; {EXIT['arm64']}",
}


def _process(machine: Machine) -> Process:
    assert machine.process is not None
    return machine.process


def test_everything_public_is_listed_and_there() -> None:
    listed = dir(aether_emu)
    assert set(aether_emu.__all__) <= set(listed)
    assert len(listed) == len(set(listed))
    for name in aether_emu.__all__:
        thing = getattr(aether_emu, name)
        assert thing.__doc__, f"{name} says nothing of itself"
    shown = pydoc.render_doc(aether_emu, renderer=PLAIN)
    for name in ("Machine", "Config", "Protection", "Fault", "Ended"):
        assert name in shown
    assert "breakpoint" in pydoc.render_doc(Machine, renderer=PLAIN)
    with pytest.raises(AttributeError, match="has no attribute 'Machin'"):
        getattr(aether_emu, "Mach" + "in")


def test_type_checkers_see_the_names_that_exist() -> None:
    source = (ROOT / "aether_emu" / "__init__.py").read_text(encoding="utf-8")
    declared = set(re.findall(r"^    from \S+ import \w+ as (\w+)$", source, re.MULTILINE))
    assert declared - set(aether_emu._MODULES) == set(aether_emu._PUBLIC)


def test_mypy_refuses_an_option_that_does_not_exist(tmp_path: Path) -> None:
    """What mypy knows of the package from the run before the tests, it need not find out again."""
    (tmp_path / "user.py").write_text(
        "from aether_emu import Machine\n"
        'Machine("arm64", seed=7, ram="64M", page_size=16384, clock={"block": 3})\n'
        "Machine(sed=7)\n"
        'Machine(seed="seven")\n'
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            str(tmp_path / "user.py"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split(":")[1] for line in done.stdout.splitlines() if "error" in line and "user.py" in line]
    assert lines == ["3", "4"], done.stdout


def test_the_typed_options_are_the_fields() -> None:
    assert set(get_type_hints(Options)) == set(Config.__dataclass_fields__)
    assert set(get_type_hints(CostOptions)) == set(ClockCosts.__dataclass_fields__)
    for name, hint in get_type_hints(Config).items():
        if name != "clock":
            assert {hint, *get_args(hint)} & {
                get_type_hints(Options)[name],
                *get_args(get_type_hints(Options)[name]),
            }


@every_isa
def test_a_machine_is_closed_at_the_end_of_its_block(tmp_path: Path, isa: str) -> None:
    with Machine(isa, ram="64M", seed=7) as machine:
        assert repr(machine).endswith("64M of RAM, seed 7: no program>")
    assert repr(machine).endswith(": closed>")
    with pytest.raises(ZeroDivisionError), loaded(tmp_path, isa, QUICK) as machine, machine:
        _ = 1 // 0
    assert machine.kernel.closed


def test_a_machine_that_nobody_closes_is_in_nobodys_way() -> None:
    for _ in range(3):
        with pytest.raises(MachineError):
            Machine(ram="8M", aperture="4M").run()
        gc.collect()


@every_isa
def test_things_say_what_they_are(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, QUICK) as machine:
        process = _process(machine)
        said = {
            "machine": repr(machine),
            "process": repr(process),
            "space": repr(process.mm),
            "table": repr(process.mm.table),
            "task": repr(process.tasks[0]),
            "cpu": repr(machine.cpu),
            "area": repr(process.areas[0]),
            "walk": repr(process.mm.walk(START)),
            "config": repr(machine.config),
            "registers": repr(process.registers),
        }
        for name, text in said.items():
            assert "\n" not in text, name
            assert " object at 0x" not in text, name
            assert len(text) < 300, text
        assert said["config"] == "Config(ram=8M, aperture=4M)"
        assert repr(Config()) == "Config()"
        assert said["walk"].startswith(f"NotMapped({START:#x}: ")
        ended = machine.run()
        assert str(ended) == "exit status 3"
        assert "user read execute" in str(process.mm.walk(START))


@every_isa
def test_a_walk_prints_every_level_with_the_manuals_names(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, QUICK) as machine:
        machine.run()
        lines = str(_process(machine).mm.walk(DATA)).splitlines()
        names = {"x86_64": ["PML4", "PDPT", "PD", "PT"], "arm64": ["L0", "L1", "L2", "L3"]}[isa]
        assert [line.split()[0] for line in lines[1:]] == names
        leaf = {"x86_64": "P RW US A D XD", "arm64": "V T AP=0x1 SH=0x3 AF nG DBM PXN UXN"}[isa]
        assert f"  {leaf} -> 0x" in lines[-1]
        assert f"{DATA:#x} in {machine.format.name}: 0x" in lines[0]
        assert max(map(len, lines)) <= 110


@every_isa
def test_memory_is_read_and_written_as_by_a_debugger(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, QUICK) as machine:
        process = _process(machine)
        assert process.read(DATA, DATA_SIZE) == bytes(DATA_SIZE)  # no page of it is there yet
        code = process.read(START, 64)
        process.write(START, code)  # the program may not write there
        process.write(DATA + 0xFFE, b"over a page")
        assert process.read(DATA + 0xFFE, 11) == b"over a page"
        assert machine.run().code == 3
        assert process.read(DATA, 1) == b"\x4d"
        for address, length in ((0, 1), (DATA + DATA_SIZE - 4, 8), (-1, 1), ((1 << 64) - 1, 2), (DATA, -1)):
            with pytest.raises(AddressError):
                process.read(address, length)


@every_isa
def test_code_that_is_patched_runs_as_patched(tmp_path: Path, isa: str) -> None:
    three, nine = {
        "x86_64": (b"\xbf\x03\0\0\0", b"\xbf\x09\0\0\0"),
        "arm64": (bytes.fromhex("600080d2"), bytes.fromhex("200180d2")),
    }[isa]
    with loaded(tmp_path, isa, QUICK) as machine:
        process = _process(machine)
        machine.step()
        at = START + process.read(START, 64).index(three)
        process.write(at, nine)
        assert machine.run().code == 9


@every_isa
def test_registers_are_a_mapping_that_can_be_set(tmp_path: Path, isa: str) -> None:
    first = {"x86_64": "rdi", "arm64": "x0"}[isa]
    wide = {"x86_64": "xmm3", "arm64": "v3"}[isa]
    with loaded(tmp_path, isa, QUICK) as machine:
        registers = _process(machine).registers
        assert registers.pc == START
        assert set(registers) == set(machine.cpu.registers())
        registers[wide] = (1 << 128) - 1
        assert registers[wide] == (1 << 128) - 1
        stopped = machine.step(4)
        assert isinstance(stopped, Stopped)
        registers[first] = 5
        assert registers[first] == 5
        assert f"{first} " in str(registers)
        for name, value in (("rix", 0), (first, -1), (first, 1 << 64), (first, "1"), (wide, 1 << 128)):
            with pytest.raises(RegisterError) as caught:
                registers[name] = value  # type: ignore[assignment]  # "1" is the misuse
            assert "\n" not in str(caught.value)
        with pytest.raises(AttributeError):
            setattr(registers, first, 1)
        with pytest.raises(RegisterError, match="keeps its registers"):
            del registers[first]


@every_isa
def test_areas_are_records_and_print_as_maps_does(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, QUICK) as machine:
        process = _process(machine)
        areas = process.areas
        at = areas.at(DATA + 5)
        assert at is not None
        assert (at.start, at.length, at.permissions, at.protection) == (
            DATA, DATA_SIZE, "rw-p", Protection.READ | Protection.WRITE,
        )  # fmt: skip
        assert areas.at(0x10) is None
        assert [record.permissions for record in areas.named("[stack]")] == ["rw-p"]
        (text,) = [record for record in areas if START in record]
        assert str(text).split()[1:3] == ["r-xp", "00000000"]
        assert text.name == str(tmp_path / "program")
        lines = maps_text(process).decode().splitlines()
        assert str(areas).splitlines() == [line for line in lines if not line.endswith("[vsyscall]")]


def test_map_file_opens_a_path_itself(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"in a file")
    with loaded(tmp_path, "x86_64", QUICK) as machine:
        process = _process(machine)
        process.mm.map_file(path, 0x100_0000, 4096, Protection.READ)
        process.mm.map_file(str(path), 0x200_0000, 4096, Protection.READ | Protection.WRITE)
        assert process.read(0x100_0000, 9) == b"in a file"
        process.write(0x200_0000, b"IN")
        assert path.read_bytes() == b"IN a file"
        for wrong in (tmp_path / "none", io.BytesIO(b"x"), 5, tmp_path):
            with pytest.raises(Refused) as caught:
                process.mm.map_file(wrong, 0x300_0000, 4096, Protection.READ)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
        with path.open("rb") as opened:
            opened.close()
            with pytest.raises(Refused):
                process.mm.map_file(opened, 0x300_0000, 4096, Protection.READ)


def _misuses(machine: Machine, folder: Path) -> list[tuple[type[AetherError], Callable[[], object]]]:
    path, process = folder / "program", _process(machine)
    return [
        (ProgramError, lambda: machine.load(path)),
        (AddressError, lambda: process.mm.walk(-1)),
        (AddressError, lambda: process.mm.walk(1 << 64)),
        (AddressError, lambda: process.mm.walk(1 << 60)),
        (MachineError, lambda: machine.step(0)),
        (MachineError, lambda: machine.run_for(-1)),
        (MachineError, machine.stop),
        (MachineError, lambda: machine.breakpoint("no_such_symbol")),
        (AddressError, lambda: machine.breakpoint(-5)),
        (AddressError, lambda: machine.on_access(0, 0)),
        (MachineError, lambda: machine.on_access(DATA, 1 << 30)),
        (ConfigError, lambda: machine.on_access(DATA, 8, kinds="q")),
        (AetherError, lambda: machine.on_system_call(print, ["opnat"])),
        (HandlerError, lambda: machine.on_system_call(cast("CallHandler", 5))),
        (HandlerError, lambda: machine.on_fault(cast("FaultHandler", 5))),
        (HandlerError, lambda: machine.breakpoint(START, cast("HaltHandler", 5))),
        (HandlerError, lambda: machine.on_access(DATA, 8, cast("AccessHandler", 5))),
        (HandlerError, lambda: machine.observers.attach(fault=cast("Callable[[object], object]", 5))),
    ]


@every_isa
def test_misuse_gets_one_line_of_ours(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, QUICK) as machine:
        registers = _process(machine).registers
        for error, misuse in _misuses(machine, tmp_path):
            with pytest.raises(error) as caught:
                misuse()
            assert "\n" not in str(caught.value)
        assert machine.run().code == 3
        agains: tuple[Callable[[], object], ...] = (machine.run, machine.step, lambda: machine.run_for(5))
        for again in agains:
            with pytest.raises(MachineError, match=r"has ended \(exit status 3\): a new machine"):
                again()
    for late in (
        machine.run,
        lambda: machine.load("x"),
        lambda: machine.breakpoint(0),
        lambda: machine.on_fault(lambda _fault: None),
        lambda: machine.on_system_call(lambda _call: None),
        lambda: machine.observers.attach(fault=print),
        lambda: capture(machine),
        lambda: _process(machine).areas,
        lambda: str(registers),
        lambda: registers["xmm0" if isa == "x86_64" else "x0"],
        lambda: registers.update(sp=5),
        lambda: _process(machine).read(DATA, 1),
        lambda: _process(machine).registers,
        lambda: _process(machine).mm.walk(DATA),
        lambda: _process(machine).mm.map_file("pyproject.toml", 0x100_0000, 4096, Protection.READ),
    ):
        with pytest.raises(ClosedError, match="is closed"):
            late()


@every_isa
@pytest.mark.parametrize("misuse", ["run", "run_for", "step", "close", "abandon", "capture"])
def test_a_machine_that_runs_is_not_run_closed_or_captured_meanwhile(
    tmp_path: Path, isa: str, misuse: str
) -> None:
    told: list[str] = []
    with loaded(tmp_path, isa, QUICK) as machine:
        misuses: dict[str, Callable[[], object]] = {
            "run": machine.run,
            "run_for": lambda: machine.run_for(1),
            "step": machine.step,
            "close": machine.close,
            "abandon": machine.abandon,
            "capture": lambda: capture(machine),
        }

        def listen(_fault: object) -> None:
            with pytest.raises((MachineError, StateError), match="the machine runs") as caught:
                misuses[misuse]()
            told.append(str(caught.value))

        machine.observers.attach(fault=listen)
        assert machine.run().code == 3
    assert told


@every_isa
def test_a_count_that_is_no_whole_number_leaves_nothing_behind(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, QUICK) as machine:
        half = cast("int", 1.5)
        misuses: tuple[Callable[[], object], ...] = (
            lambda: machine.step(half),
            lambda: machine.run_for(half),
            lambda: machine.breakpoint(half),
            lambda: machine.on_access(DATA, half),
            lambda: machine.on_access(half, 8),
        )
        for misuse in misuses:
            with pytest.raises(ConfigError, match=r"=1\.5 is not allowed: "):
                misuse()
        assert machine.entry.debugger is None
        with machine.on_access(DATA, 8):
            assert isinstance(machine.run(), Stopped)
        assert machine.run().code == 3


@pytest.mark.parametrize("argv", ["tour", b"tour", [5], None, [], ["a\0b"]])
def test_arguments_are_a_list_of_strings(argv: object) -> None:
    with Machine(ram="8M", aperture="4M") as machine:
        path = program("x86_64", "hello")
        if argv in (None, []):
            machine.load(path, None if argv is None else [])
            return
        with pytest.raises(ConfigError, match="argv="):
            machine.load(path, argv)  # type: ignore[arg-type]  # likewise
        with pytest.raises(MachineError, match="no program to run"):
            machine.run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env", ["A=b"]),
        ("env", {"A": 5}),
        ("env", {b"A": "b"}),
        ("streams", {"stdbla": BufferStream()}),
        ("streams", [BufferStream()]),
        ("grants", Path("/")),
    ],
)
def test_what_a_program_gets_is_of_the_kind_that_is_asked_for(
    tmp_path: Path, name: str, value: object
) -> None:
    path = written(tmp_path, "x86_64", QUICK["x86_64"])
    with Machine(ram="8M") as machine:
        with pytest.raises(ConfigError, match=name):
            machine.load(path, **{name: value})  # type: ignore[arg-type]  # the misuse
        assert machine.load(path) is machine.process, "nothing of it is left"


def test_a_config_is_a_config() -> None:
    with pytest.raises(ConfigError, match="a Config"):
        Machine(config={"ram": "8M"})  # type: ignore[arg-type]  # the misuse


def test_streams_that_are_not_given_are_the_hosts(tmp_path: Path) -> None:
    mine = BufferStream()
    with Machine(ram="8M") as machine:
        files = machine.load(written(tmp_path, "x86_64", QUICK["x86_64"]), streams={"stdout": mine}).files
        assert files.table.file(1).stream is mine  # type: ignore[attr-defined]  # StreamFile
        for fd in (0, 2):
            there = os.fstat(fd)
            assert modes.S_IFMT(files.fstat(fd).mode) == modes.S_IFMT(there.st_mode)
        assert machine.run().code == 3


def test_options_are_named_as_they_are() -> None:
    with pytest.raises(ConfigError, match=r"sed=7 .*did you mean seed\?"):
        Machine(sed=7)  # type: ignore[call-arg]  # what mypy refuses too
    with pytest.raises(ConfigError, match="seed=7 is not allowed: put it into `config`"):
        Machine(config=Config(), seed=7)
    with pytest.raises(ConfigError, match="a list of strings"):
        Machine(ram="8M", aperture="4M").load(program("x86_64", "hello"), "hello")


def test_a_program_that_could_not_be_loaded_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"no program")
    with Machine(ram="8M", aperture="4M") as machine:
        with pytest.raises(ProgramError):
            machine.load(tmp_path / "p")
        with pytest.raises(MachineError, match="was not loaded"):
            machine.run()


def test_importing_the_package_is_cheap() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, aether_emu; print(sorted(set(sys.modules) & {'numpy', 'unicorn'}))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    assert importlib.import_module("aether_emu.tables") is aether_emu.tables


@every_isa
def test_another_thread_stops_a_run_at_once(tmp_path: Path, isa: str) -> None:
    with Machine(isa, ram="64M") as machine:
        machine.load(program(isa, "spin"), ["spin"], streams=streams(), grants=Grants(cwd=tmp_path))

        def stop() -> None:
            while not machine.observers.running:
                pass
            machine.stop()

        for _ in range(5):
            other = threading.Thread(target=stop)
            other.start()
            stopped = machine.run(timeout=60)
            other.join()
            assert isinstance(stopped, Stopped)
            assert stopped.reason is Why.ASKED
            assert stopped.pc == _process(machine).registers.pc
        with pytest.raises(MachineError, match="nothing runs"):
            machine.stop()


def test_another_thread_stops_a_wait_for_input(tmp_path: Path) -> None:
    class Silent(BufferStream):
        def ready(self) -> bool:
            return False

    waits, read = threading.Event(), "xor eax, eax; xor edi, edi; mov rsi, 0x600000; mov edx, 1; syscall;"
    path = written(tmp_path, "x86_64", read + "mov edi, eax;" + EXIT["x86_64"])
    with Machine(ram="8M", aperture="4M", pause=waits.set) as machine:
        machine.load(path, grants=Grants(cwd=tmp_path), streams=streams() | {"stdin": Silent()})

        def stop() -> None:
            waits.wait()
            machine.stop()

        other = threading.Thread(target=stop)
        other.start()
        assert isinstance(machine.run(timeout=60), Stopped)
        other.join()


@every_isa
def test_a_process_knows_its_symbols_by_name_and_by_address(tmp_path: Path, isa: str) -> None:
    path = written(tmp_path, isa, "nop\n" * 8 + QUICK[isa])
    named = {"begin": (START, 4), "second": (START + 4, 0), "third": (START + 8, 4), "inner": (START + 9, 1)}
    path.write_bytes(with_symbols(path.read_bytes(), named))
    with Machine(isa, ram="8M", aperture="4M") as machine:
        process = machine.load(path, grants=Grants(cwd=tmp_path), streams=streams())
        symbols = process.symbols
        assert dict(symbols) == {name: address for name, (address, _size) in named.items()}
        assert symbols is process.symbols
        found = [symbols.at(START + offset) for offset in (-1, 0, 3, 4, 7, 8, 9, 10, 12)]
        assert [symbol and symbol.name for symbol in found] == [
            *(None, "begin", "begin", "second", "second", "third", "inner", "third", None)
        ]
        machine.breakpoint("second")
        stopped = machine.run()
        assert isinstance(stopped, Stopped)
        assert stopped.pc == START + 4
        with pytest.raises(MachineError, match="no symbol 'secnd'; did you mean second"):
            machine.breakpoint("secnd")
    assert "program: lived, the machine is closed>" in repr(process)
    with pytest.raises(ClosedError):
        _ = process.symbols
