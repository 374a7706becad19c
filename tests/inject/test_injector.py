"""Faults put into runs of guest programs, and what becomes of those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aether_emu.errors import AetherError, ConfigError
from aether_emu.inject import Injector, attach, flip_data, flip_pte
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.tables.walk import Mapped
from aether_emu.system import Machine
from tests.guests.running import ISAS, expected, program

every_isa = pytest.mark.parametrize("isa", ISAS)


@contextmanager
def loaded(isa: str, name: str, *arguments: str, **options: object) -> Iterator[tuple[Machine, BufferStream]]:
    out = BufferStream()
    streams = {"stdin": BufferStream(), "stdout": out, "stderr": out}
    with Machine(isa, seed=3, **options) as machine:  # type: ignore[arg-type]
        machine.load(program(isa, name), [name, *arguments], streams=streams)
        yield machine, out


def ran(isa: str, name: str, *wanted: str, **options: object) -> tuple[Ended, Injector, bytes]:
    with loaded(isa, name, **options) as (machine, out):
        injector = attach(machine, *wanted)
        ended = injector.run(timeout=60)
        injector.detach()
        assert isinstance(ended, Ended)
        return ended, injector, bytes(out.written)


@every_isa
def test_a_call_fails_with_the_errno_that_was_chosen_and_its_program_sees_that(isa: str) -> None:
    ended, injector, out = ran(isa, "tour", "call:name=mmap,errno=ENOMEM,at=#1")
    assert (ended.status, b"mmap: ENOMEM" in out) == (1, True)
    assert [str(each).split(": ", 1)[1] for each in injector.done] == ["mmap of process 1000 answers ENOMEM"]


@every_isa
def test_an_allocation_is_refused_and_no_frame_is_lost(isa: str) -> None:
    ended, injector, _out = ran(isa, "family", "allocation:at=#30")
    assert ended.status in (0, 137)
    assert [each.count for each in injector.done] == [30]


@every_isa
def test_a_damaged_table_is_an_outcome(isa: str) -> None:
    bit = {"x86_64": 1, "arm64": 0}[isa]  # R/W of the entries below; the entry's own presence
    ended, injector, _out = ran(isa, "tour", f"pte:level=2,bit={bit},at=fault#20")
    assert ended.why == "a damaged page table"
    assert len(injector.done) == 1


@every_isa
def test_a_flipped_bit_of_data_is_what_the_program_reads(isa: str) -> None:
    with loaded(isa, "hello") as (machine, _out):
        process = machine.process
        assert process is not None
        area = next(area for area in process.mm.areas if area.name == "[stack]")
        address = area.end - process.mm.page_size
        before = process.read(address, 16)
        assert "bit 3 of the byte" in flip_data(process, address, 8 * 9 + 3)
        after = process.read(address, 16)
        assert [a ^ b for a, b in zip(before, after, strict=True)] == [8 * (at == 9) for at in range(16)]


@every_isa
def test_a_flipped_entry_leads_to_another_frame(isa: str) -> None:
    with loaded(isa, "hello") as (machine, _out):
        process = machine.process
        assert process is not None
        address = next(area for area in process.mm.areas if area.name == "[stack]").end - 1
        before, bit = process.mm.walk(address), process.mm.page_size.bit_length() - 1
        assert f"bit {bit} of" in flip_pte(process, address, bit)
        after = process.mm.walk(address)
        assert isinstance(before, Mapped)
        assert isinstance(after, Mapped)
        assert before.address ^ after.address == process.mm.page_size
        flip_pte(process, address, bit)
        assert flip_pte(process, 0, 0, level=1) == "", "no table of level 1 leads there"


@every_isa
def test_a_register_changes_between_two_blocks(isa: str) -> None:
    name = {"x86_64": "rip", "arm64": "pc"}[isa]
    ended, injector, _out = ran(isa, "tour", f"register:name={name},bit=46,at=block#2000")
    assert ended.signal == 11
    assert [(each.event, each.count) for each in injector.done] == [("block", 2000)]


@every_isa
@pytest.mark.parametrize("what", ["pte", "data"])
def test_a_seed_injects_the_same_again(isa: str, what: str) -> None:
    texts = (f"{what}:probability=0.2,times=3,area=[stack]", f"{what}:at=block#3000", f"{what}:at=call#9")

    def once() -> tuple[list[str], int, str, bytes]:
        with loaded(isa, "family") as (machine, out):
            injector = attach(machine, *texts)
            try:
                ended = str(injector.run(timeout=60))
            except (
                AetherError
            ) as error:  # what a flipped entry comes to may be more than the manager can bear
                ended = str(error)
            finally:
                injector.detach()
                machine.abandon()
            return list(map(str, injector.done)), injector.missed, ended, bytes(out.written)

    first = once()
    assert first[0]
    assert once() == first


@every_isa
def test_nothing_is_injected_is_nothing_changed(isa: str) -> None:
    ended, injector, out = ran(
        isa, "family", "pte:at=fault#1000000", "allocation:at=#1000000", "data:process=no"
    )
    assert (ended.status, out.decode(), injector.done) == (0, expected(isa, "family"), [])


@every_isa
def test_whose_events_count_may_be_chosen(isa: str) -> None:
    _ended, injector, _out = ran(isa, "family", "data:process=family,address=0-0xffffffffffffffff,at=#2")
    assert len(injector.done) == 1
    _ended, injector, _out = ran(isa, "family", "data:process=others")
    assert not injector.done


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("call:name=mmapp,errno=EIO", "did you mean mmap"),
        ("pte:level=5", "1 to 4"),
        ("data:cpu=1", "0 to 0"),
        ("register:name=eip", "a register of x86_64"),
    ],
)
def test_what_the_machine_has_not_is_refused(text: str, about: str) -> None:
    with loaded("x86_64", "hello") as (machine, _out), pytest.raises(ConfigError, match=about):
        attach(machine, text)
