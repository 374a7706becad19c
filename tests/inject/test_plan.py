"""What `--inject` says, read and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.errors import ConfigError
from aether_emu.inject.files import load, wanted
from aether_emu.inject.plan import Injection, parse


def test_a_text_says_what_and_when() -> None:
    assert parse("pte:bit=1,level=2,at=fault#100") == Injection("pte", "fault", nth=100, level=2, bit=1)
    assert parse("pte") == Injection("pte", "fault")
    assert parse("data:at=call:write#3,area=[heap]") == Injection("data", "call", "write", 3, area="[heap]")
    assert parse("allocation:every=50,times=0,at=#9") == Injection("allocation", "allocation", "", 9, 50, 0)
    assert parse("call:name=mmap,errno=ENOMEM,probability=0.5") == Injection(
        "call", "call", "mmap", probability=0.5, error=12
    )
    assert parse("register:name=rax,at=block#7") == Injection("register", "block", "", 7, name="rax")
    assert parse("data:address=0x1000-0x1fff,process=sh,cpu=1") == Injection(
        "data", "fault", process="sh", cpu=1, first=0x1000, last=0x1FFF
    )


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("ptee:bit=1", "did you mean pte"),
        ("pte:levle=1", "did you mean level"),
        ("pte:bit=64", "0 to 63"),
        ("pte:bit=1,bit=2", "each key once"),
        ("pte:bit", "KEY=VALUE"),
        ("pte:at=sleep#1", "EVENT#N"),
        ("pte:at=fault#0", "EVENT#N"),
        ("pte:at=fault:mmap#1", "EVENT#N"),
        ("pte:address=9-5", "FIRST-LAST"),
        ("pte:probability=0", "more than 0"),
        ("call:name=mmap", "call:errno="),
        ("call:errno=12", "such as ENOMEM"),
        ("call:errno=ENOMEM,at=fault#1", "it is that which fails"),
        ("allocation:area=[heap]", "one of at"),
        ("register:bit=1", "register:name="),
        ("data:at=block#5,every=2", "once"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(text: str, about: str) -> None:
    with pytest.raises(ConfigError, match=about):
        parse(text)


def test_from_the_nth_event_on_each_so_many_is_due() -> None:
    some = parse("data:at=fault#3,every=4,times=0")
    assert [count for count in range(1, 13) if some.is_due(count)] == [3, 7, 11]


def test_a_file_has_a_table_for_each(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(
        '[[inject]]\nsite = "pte"\nbit = 1\n\n[[inject]]\nsite = "call"\nerrno = "EIO"\nat = "#2"\n'
    )
    assert wanted(str(path)) == [Injection("pte", "fault", bit=1), Injection("call", "call", nth=2, error=5)]
    assert wanted("pte") == [Injection("pte", "fault")]


@pytest.mark.parametrize(
    ("text", "where", "about"),
    [
        ('[[inject]]\nsite = "pte"\n[[inject]]\nsite = "pte"\nlevel = 9\n', ":5: ", "a level"),
        ('[[inject]]\nsite = "pte"\n\n[[inject]]\nsite = "oops"\n', ":4: ", "one of pte"),
        ('[[inject]]\nsite = "pte"\nbit = true\n', ":3: ", "a number or a text"),
        ('[[inject]]\nsite = "pte"\ncolour = 3\n', ":1: ", "one of at"),
        ("inject = 3\n", "", "tables"),
        ("[[inject]]\nsite = \n", "", "a TOML file"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    tmp_path: Path, text: str, where: str, about: str
) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert where in str(refused.value)
    assert about in str(refused.value)
