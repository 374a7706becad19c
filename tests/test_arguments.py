"""Every argument of the public classes, replaced by what it cannot be: an error of ours that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aether_emu import Bind, Config, Grants, Machine, Protection, state
from aether_emu.errors import AetherError
from aether_emu.grants import program_isa
from aether_emu.linux.handlers import Fault
from aether_emu.tables import FORMATS, PageTables, format_named
from tests.small_programs import DATA, EXIT, START, loaded, streams, written

NAN, HUGE = float("nan"), 1 << 70
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, HUGE, 1.5, NAN, "", "x", "/nowhere", "a\0b", b"", b"\xff", [], ["x"], [5], {},
    object(),
)  # fmt: skip
WHOLE = (0,)
"""What of these a whole number that may be 0 is."""
NONE = (None,)
QUICK = {isa: {"x86_64": "mov edi, 3;", "arm64": "mov x0, #3;"}[isa] + EXIT[isa] for isa in EXIT}


def _accepted(value: object, among: tuple[object, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in among)


def _told(call: Callable[[Any], object], accepted: tuple[object, ...], where: str) -> list[str]:
    """What is wrong with the answers to WRONG."""
    found = []
    for value in WRONG:
        try:
            call(value)
        except AetherError as error:
            if "\n" in str(error) or not str(error):
                found.append(f"{where}({value!r}): {error!r}")
        except Exception as error:  # that is what is looked for
            found.append(f"{where}({value!r}): {error!r}")
        else:
            if not _accepted(value, accepted):
                found.append(f"{where}({value!r}) is accepted")
    return found


def _of_a_process(machine: Machine) -> dict[str, tuple[Callable[[Any], object], tuple[object, ...]]]:
    process = machine.process
    assert process is not None
    mm, nothing = process.mm, lambda _event: None

    def detached(attach: Callable[[Any], Any]) -> Callable[[Any], object]:
        return lambda value: attach(value).detach()

    return {
        "read.address": (lambda v: process.read(v, 8), ()),
        "read.length": (lambda v: process.read(DATA, v), WHOLE),
        "write.address": (lambda v: process.write(v, b"x"), ()),
        "write.data": (lambda v: process.write(DATA, v), (b"", b"\xff")),
        "walk.va": (mm.walk, WHOLE),
        "symbols.at": (process.symbols.at, (0, -1, HUGE)),
        "registers[name]": (lambda v: process.registers[v], ()),
        "registers.sp": (lambda v: setattr(process.registers, "sp", v), WHOLE),
        "map_file.file": (lambda v: mm.map_file(v, 0x100_0000, 4096, Protection.READ), ()),
        "map_file.address": (lambda v: mm.map_file(__file__, v, 4096, Protection.READ), ()),
        "map_file.size": (lambda v: mm.map_file(__file__, 0x100_0000, v, Protection.READ), ()),
        "map_file.protection": (lambda v: mm.map_file(__file__, 0x100_0000, 4096, v), ()),
        "map_file.offset": (
            lambda v: mm.map_file(__file__, 0x100_0000, 4096, Protection.READ, v),
            WHOLE,
        ),
        "breakpoint.where": (detached(machine.breakpoint), WHOLE),
        "breakpoint.handler": (detached(lambda v: machine.breakpoint(START, v)), NONE),
        "on_access.start": (detached(lambda v: machine.on_access(v, 8)), WHOLE),
        "on_access.length": (detached(lambda v: machine.on_access(DATA, v)), ()),
        "on_access.handler": (detached(lambda v: machine.on_access(DATA, 8, v)), NONE),
        "on_access.kinds": (detached(lambda v: machine.on_access(DATA, 8, kinds=v)), ("x",)),
        "on_fault.handler": (detached(machine.on_fault), ()),
        "on_system_call.names": (
            detached(lambda v: machine.on_system_call(nothing, v)),
            ([], {}),
        ),
        "observers.attach": (detached(lambda v: machine.observers.attach(fault=v)), NONE),
        "step.count": (machine.step, ()),
        "step.timeout": (lambda v: machine.step(1, v), (None, 0, HUGE, 1.5)),
        "run_for.blocks": (machine.run_for, WHOLE),
        "run_for.timeout": (lambda v: machine.run_for(0, v), (None, 0, HUGE, 1.5)),
    }


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_what_a_machine_cannot_take_is_refused_in_words(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, {**QUICK, isa: "nop\n" * 64 + QUICK[isa]}) as machine:
        found = []
        for where, (call, accepted) in _of_a_process(machine).items():
            found += _told(call, accepted, where)
        assert not found, "\n".join(found)
        assert machine.run().code == 3, "nothing of it has stayed"


def test_what_a_new_machine_cannot_take_is_refused_in_words(tmp_path: Path) -> None:
    path = written(tmp_path, "x86_64", QUICK["x86_64"])

    def load(**options: Any) -> None:
        with Machine("x86_64", ram="8M", aperture="4M") as machine:
            arguments = {"grants": Grants(cwd=tmp_path), "streams": streams(), **options}
            machine.load(arguments.pop("program", path), **arguments)

    calls: dict[str, tuple[Callable[[Any], object], tuple[object, ...]]] = {
        "Machine.arch": (lambda v: Machine(v, ram="8M").close(), ()),
        "Machine.config": (lambda v: Machine(config=v).close(), NONE),
        "Machine.pause": (lambda v: Machine(ram="8M", pause=v).close(), ()),
        "load.program": (lambda v: load(program=v), ()),
        "load.argv": (lambda v: load(argv=v), (None, [], ["x"], {})),
        "load.env": (lambda v: load(env=v), (None, {})),
        "load.streams": (lambda v: load(streams=v), (None, {})),
        "load.grants": (lambda v: load(grants=v), NONE),
        "Grants.root": (lambda v: load(grants=Grants(root=v)), NONE),
        "Grants.cwd": (lambda v: load(grants=Grants(cwd=v)), (None, "")),
        "Grants.binds": (lambda v: load(grants=Grants(binds=v)), ([],)),
        "Bind.host": (lambda v: load(grants=Grants(binds=[Bind(v, "/b")])), ()),
        "Bind.guest": (lambda v: load(grants=Grants(binds=[Bind(tmp_path, v)])), ("/nowhere",)),
        "program_isa.program": (program_isa, ()),
        "program_isa.grants": (lambda v: program_isa(path, v), NONE),
        "state.capture": (state.capture, ()),
        "state.restore": (state.restore, ()),
        "Config.ram": (lambda v: Config.load(overrides={"ram": v}), NONE),
        "Config.page_size": (lambda v: Config.load(overrides={"page_size": v}), NONE),
        "Config.seed": (lambda v: Config.load(overrides={"seed": v}), (None, 0)),
    }
    found = []
    for where, (call, accepted) in calls.items():
        found += _told(call, accepted, where)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", FORMATS)
def test_what_page_tables_cannot_take_is_refused_in_words(name: str) -> None:
    def made() -> PageTables:
        table = PageTables(name)
        table.map(0x40_0000, 0x8_0000)
        return table

    calls: dict[str, tuple[Callable[[Any], object], tuple[object, ...]]] = {
        "format": (format_named, ()),
        "physical_bits": (lambda v: format_named(name, physical_bits=v), NONE),
        "memory": (lambda v: PageTables(name, v), NONE),
        "base": (lambda v: PageTables(name, base=v), WHOLE),
        "root": (lambda v: PageTables(name, root=v), (None, 0)),
        "address_of.va": (lambda v: made().address_of(v), WHOLE),
        "address_of.level": (lambda v: made().address_of(0x40_0000, v), ()),
        "read.va": (lambda v: made().read(v), WHOLE),
        "write.va": (lambda v: made().write(v, 1, 0), WHOLE),
        "write.level": (lambda v: made().write(0x40_0000, v, 0), ()),
        "write.entry": (lambda v: made().write(0x40_0000, 1, v), WHOLE),
        "walk.va": (lambda v: made().walk(v), WHOLE),
        "map.va": (lambda v: made().map(v, 0), WHOLE),
        "map.physical": (lambda v: made().map(0x40_0000, v), WHOLE),
        "map.size": (lambda v: made().map(0x40_0000, 0, v), NONE),
        "map.flags": (lambda v: made().map(0x40_0000, 0, flags=v), ()),
        "map.memory": (lambda v: made().map(0x40_0000, 0, memory=v), ()),
        "map.key": (lambda v: made().map(0x40_0000, 0, key=v), WHOLE),
        "map.leaf": (lambda v: made().map(0x40_0000, 0, leaf=v), NONE),
        "unmap.va": (lambda v: made().unmap(v), ()),
        "unmap.size": (lambda v: made().unmap(0x40_0000, v), NONE),
        "protect.va": (lambda v: made().protect(v), ()),
        "protect.size": (lambda v: made().protect(0x40_0000, v), NONE),
        "protect.flags": (lambda v: made().protect(0x40_0000, flags=v), ()),
        "execute.va": (lambda v: made().execute(v), WHOLE),
        "execute.kind": (lambda v: made().execute(0x40_0000, v), ()),
        "execute.user": (lambda v: made().execute(0x40_0000, user=v), (True,)),
        "execute.controls": (lambda v: made().execute(0x40_0000, controls=v), NONE),
    }
    found = []
    for where, (call, accepted) in calls.items():
        found += _told(call, accepted, where)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_what_a_fault_cannot_be_given_is_refused_in_words(tmp_path: Path, isa: str) -> None:
    load = {"x86_64": f"mov rax, [{DATA}];", "arm64": f"mov x0, #{DATA}; ldr x0, [x0];"}
    found: list[str] = []

    def decide(fault: Fault) -> None:
        if fault.area is None or fault.area.start != DATA or found:
            return
        found.append("asked")
        found.extend(_told(fault.map, (b"", b"\xff"), "map.content"))
        found.extend(_told(lambda v: fault.map(b"", v), NONE, "map.flags"))
        found.extend(_told(lambda v: fault.map(b"", bits=v), (None, 0), "map.bits"))

    with loaded(tmp_path, isa, load[isa] + QUICK[isa]) as machine:
        machine.on_fault(decide)
        machine.run()
    assert found == ["asked"], "\n".join(found)
