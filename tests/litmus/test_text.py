"""Litmus files: what they mean, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.litmus.conditions import holds
from aether_emu.litmus.program import (
    FAULT,
    INVALID,
    OWN,
    Enter,
    Entry,
    Interrupt,
    Invalidate,
    Kind,
    Load,
    Slot,
    Space,
    Store,
    WriteEntry,
)
from aether_emu.litmus.text import LitmusError, parse, read

GOOD = """\
name: t
isa: x86_64
published: forbidden
source: nobody
memory
  pa1 = 0   # a comment
  pa2 = 5
map
  x -> pa1 ro global
  y -> invalid
  table t -> pa2

thread 0
  set pde(x) = table t
  r0 = swap pte(y) = pa2 old clean
  invlpg x
  ipi 1 mov cr3 early
  wait
  s0 = store x 7
thread 1
  r0 = load x
exists 1:r0 = fault and
  (not *pa1 = 7 or pte(y).dirty = 1)
"""


def test_a_file_says_what_it_says() -> None:
    test = parse(GOOD)
    assert test.pages == ("x", "y")
    assert test.memory == {"pa1": 0, "pa2": 5}
    assert test.entries[Slot(1, "x")] == Entry(Kind.PAGE, "pa1", write=False, everywhere=True)
    assert test.entries[Slot(2, "x")] == Entry(Kind.TABLE, "x")
    assert test.entries[Slot(1, "y")] == INVALID
    assert test.entries[Slot(1, "t")] == Entry(Kind.PAGE, "pa2")
    actions = [operation.action for operation in test.threads[0]]
    assert actions[0] == WriteEntry(Slot(2, "x"), Entry(Kind.TABLE, "t"))
    unused = Entry(Kind.PAGE, "pa2", accessed=False, dirty=False)
    assert actions[1] == WriteEntry(Slot(1, "y"), unused, "r0")
    assert actions[2:4] == [
        Invalidate("x", tag=OWN),
        Interrupt(1, Invalidate("", globals_too=False, tag=OWN), early=True),
    ]
    assert actions[5] == Store("x", 7, "s0")
    assert [operation.action for operation in test.threads[1]] == [Load("x", "r0")]
    assert test.text == "1:r0 = fault and (not *pa1 = 7 or pte(y).dirty = 1)"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("isa: x86_64", "isa: vax", 2, ["vax", "x86_64, arm64 was expected"]),
        ("isa: x86_64", "is: x86_64", 2, ["is: x86_64", "a header was expected", "did you mean isa?"]),
        ("isa: x86_64\n", "", 4, ["the header isa was expected"]),
        ("published: forbidden", "published: maybe", 3, ["allowed, forbidden was expected"]),
        ("source: nobody", "source:", 4, ["source: a value was expected"]),
        ("source: nobody", "manual: arm\nsource: nobody", 6, ["arm", "intel, amd was expected"]),
        ("source: nobody", "source: a\nout of reach: b", 6, ["published says forbidden"]),
        ("pa1 = 0", "pa1 : 0", 6, ["NAME = NUMBER was expected"]),
        ("pa2 = 5", "pa1 = 5", 7, ["pa1: a new name was expected"]),
        ("pa2 = 5", "pa2 = 4294967296", 7, ["below 2^32"]),
        ("map\n", "", 8, ["x -> pa1 ro global", "NAME = NUMBER was expected"]),
        ("x -> pa1 ro", "x -> pa3 ro", 9, ["pa3", "a physical page", "did you mean pa"]),
        ("ro global", "rw global", 9, ["rw: one of ro, kernel, global, old, clean was expected"]),
        ("x -> pa1", "x pa1", 9, ["PAGE -> ENTRY"]),
        ("thread 0", "thread 1", 13, ["thread 0 was expected"]),
        ("set pde(x) = table t", "set pde(x) = pa2", 14, ["table NAME or block PAGE or invalid"]),
        ("set pde(x) = table t", "set pde(x) = table u", 14, ["table u", "section map"]),
        ("set pde(x) = table t", "set pde(z) = table t", 14, ["pde(z)", "one of pte(x), pde(x)"]),
        ("r0 = swap", "swap", 15, ["REGISTER = swap"]),
        ("invlpg x", "invlpg z", 16, ["z: a virtual page", "expected"]),
        ("invlpg x", "tlbi x", 16, ["tlbi x: an operation was expected", "invlpg PAGE"]),
        ("ipi 1 mov cr3", "ipi 0 mov cr3", 17, ["another thread was expected (1)"]),
        ("ipi 1 mov cr3", "ipi 1 mfence", 17, ["ipi THREAD INVALIDATION"]),
        ("wait", "dsb", 18, ["dsb: an operation was expected", "mfence"]),
        ("  r0 = load x\n", "  load x\n", 21, ["REGISTER = load PAGE"]),
        ("exists 1:r0", "exists 1:r1", 22, ["1:r1", "one of 0:r0, 0:s0, 1:r0"]),
        ("exists 1:r0 = fault and", "exists 1:r0 fault and", 22, ["= was expected"]),
        ("*pa1 = 7", "*pa9 = 7", 23, ["*pa9", "a physical page"]),
        (".dirty", ".clean", 23, [".accessed or .dirty"]),
        (" or pte(y).dirty = 1)", "", 23, [") was expected"]),
        (" or pte(y).dirty = 1)", ") ?", 23, ["?", "a condition was expected"]),
        ("exists", "  ", 22, ["an operation was expected"]),
        ("pa2 = 5", "pa2 = \u0663", 7, ["NAME = NUMBER was expected"]),
        ("pa2 = 5", f"pa2 = {'9' * 900}", 7, ["a number below 2^32"]),
        ("pa2 = 5", f"pa2 = {'9' * 5000}", 7, ["pa2 = 99999999999999...: at most 1000 characters"]),
        ("pa2 = 5", "all = 5", 7, ["all: a new name was expected"]),
        ("y -> invalid", "asid -> invalid", 10, ["asid: a new name was expected"]),
        ("wait", "wa\0it", 18, ["no control characters"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_line_and_what_was_expected(
    old: str, new: str, line: int, words: list[str]
) -> None:
    assert old in GOOD
    with pytest.raises(LitmusError) as raised:
        parse(GOOD.replace(old, new, 1), "some.litmus")
    text = str(raised.value)
    assert text.startswith(f"some.litmus:{line}: "), text
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("1:r0 = \u00b2", "\u00b2: a number or fault was expected"),
        (f"1:r0 = {1 << 32}", "a number below 2^32"),
        (f"{'9' * 900}:r0 = 1", "a register was expected that a thread writes"),
        ("1:r0 = ok", "ok: a number or fault was expected"),
        ("1:r0 = entry(pa1)", "a number or fault was expected"),
        ("0:s0 = 1", "1: fault or ok was expected"),
        ("0:r0 = 7", "7: entry(...) was expected"),
        ("1:r0.dirty = 1", "1:r0 never holds an entry"),
        ("*pa1 = fault", "fault: a number was expected"),
        ("pte(x) = 7", "7: entry(...) was expected"),
        ("pte(x).dirty = entry(pa1)", "a number was expected"),
        ("pte(x).dirty = 2", "2: 0 or 1 was expected"),
        ("pte(x) = entry(table y)", "a physical page or invalid was expected"),
        ("pde(x) = entry(pa1)", "table NAME or block PAGE or invalid was expected"),
        ("pte(x) = entry(pa3)", "one of pa1, pa2 was expected; did you mean"),
        ("pde(x) = entry(table z)", "one of x, y, t was expected"),
        ("pte(x) = entry(pa1 old)", "no old or clean was expected"),
        ("(" * 21 + "1:r0 = 7" + ")" * 21, "at most 20 of not and ("),
        ("not " * 21 + "1:r0 = 7", "at most 20 of not and ("),
        ("1:r0 = 7\nand " * 100 + "1:r0 = 7", "at most 100 comparisons"),
    ],
)
def test_a_condition_that_can_never_be_true_or_never_ends_is_refused(condition: str, words: str) -> None:
    with pytest.raises(LitmusError) as raised:
        parse(f"{GOOD[: GOOD.index('exists')]}exists {condition}", "f")
    assert str(raised.value).startswith(f"f:{22 + condition.count(chr(10))}: ")
    assert words in str(raised.value)


def test_a_condition_may_be_as_long_and_as_deep_as_is_said() -> None:
    deep = "(" * 19 + "1:r0 = 7" + ")" * 19
    test = parse(f"{GOOD[: GOOD.index('exists')]}exists not {deep}" + "\nand 1:r0 = fault" * 99)
    assert holds(test.condition, {(1, "r0"): FAULT}, {}, {})


def test_the_sections_before_map_are_needed_as_said() -> None:
    with pytest.raises(LitmusError, match=r"f:1: map stands here: the header name was expected before it"):
        parse("map\nx -> invalid\n", "f")
    headers = GOOD[: GOOD.index("memory")]
    assert not parse(f"{headers}map\nx -> invalid\nthread 0\nr0 = load x\nexists 0:r0 = fault").memory


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.litmus").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read(tmp_path / "w.litmus").threads == parse(GOOD).threads


SPACES = GOOD.replace("\nthread 0", "\nspace b tag 1\n  x -> pa2\nthread 0").replace(
    "  invlpg x", "  mov cr3 b noflush"
)


def test_another_space_has_tables_of_its_own() -> None:
    test = parse(SPACES.replace("  wait", "  set pte(x.b) = pa1\n  mov cr3 first"))
    assert test.spaces == (Space(""), Space("b", 1))
    assert test.pages == ("x", "y")
    assert [test.upper("x", space) for space in (0, 1)] == [Slot(2, "x"), Slot(2, "x.b")]
    assert test.entries[Slot(1, "x.b")] == Entry(Kind.PAGE, "pa2")
    assert test.entries[Slot(1, "y.b")] == INVALID, "what is not mapped there is invalid"
    actions = [operation.action for operation in test.threads[0]]
    assert actions[2] == Enter("b", flush=False)
    assert actions[4:6] == [WriteEntry(Slot(1, "x.b"), Entry(Kind.PAGE, "pa1")), Enter("", flush=True)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("space b tag 1", "space b tag 10", "f:13: space b tag 10: space NAME or space NAME tag DIGIT"),
        ("space b tag 1", "space first", "f:13: space first: space NAME"),
        ("space b tag 1", "space b\nspace b", "f:14: space b: space NAME"),
        ("space b tag 1\n", "space b\nspace c\nspace d\n", "f:15: space d: at most 2 more spaces"),
        ("  x -> pa2\nthread", "  w -> pa2\nthread", "f:14: w: a virtual page"),
        ("  x -> pa2\nthread", "  x -> pa2\n x -> pa1\nthread", "f:15: x: is mapped in this space already"),
        ("cr3 b noflush", "cr3 c noflush", "f:18: c: an address space was expected, one of first, b"),
    ],
)
def test_a_mistake_about_spaces_is_told(old: str, new: str, words: str) -> None:
    assert old in SPACES
    with pytest.raises(LitmusError) as raised:
        parse(SPACES.replace(old, new, 1), "f")
    assert str(raised.value).startswith(words)


def test_too_much_is_refused() -> None:
    threads = "".join(f"thread {number}\n  r0 = load x\n" for number in range(1, 5))
    with pytest.raises(LitmusError, match=r"f:\d+: thread 4: at most 4 threads are expected"):
        parse(GOOD.replace("thread 1\n  r0 = load x\n", threads), "f")
    with pytest.raises(LitmusError, match="at most 12 operations"):
        parse(GOOD.replace("  wait\n", "  wait\n" * 12), "f")
    pages = "".join(f"  p{number} = 0\n" for number in range(9))
    with pytest.raises(LitmusError, match="at most 8 physical pages"):
        parse(GOOD.replace("  pa2 = 5\n", f"  pa2 = 5\n{pages}"), "f")


def test_a_file_that_ends_too_early_is_told_so() -> None:
    with pytest.raises(LitmusError, match=r"f:20: the file ends here: .* begins with exists"):
        parse(GOOD[: GOOD.index("  r0 = load x\nexists")], "f")
    with pytest.raises(LitmusError, match="f:1: the file ends here"):
        parse("", "f")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LitmusError, match=r"no\.litmus: cannot be read: No such file"):
        read(tmp_path / "no.litmus")
    (tmp_path / "b.litmus").write_bytes(b"\xff\xfe")
    with pytest.raises(LitmusError, match="no text in UTF-8"):
        read(tmp_path / "b.litmus")
    with pytest.raises(LitmusError, match="zero: has more than 1 MiB"):
        read("/dev/zero")


def test_arm_has_no_clean_entries() -> None:
    arm = "name: a\nisa: arm64\npublished: allowed\nsource: s\nmemory\np = 0\nmap\nx -> p"
    with pytest.raises(LitmusError, match="clean: only x86_64"):
        parse(f"{arm} clean\n", "f")
    with pytest.raises(LitmusError, match=r"f:11: \.dirty: only x86_64"):
        parse(f"{arm}\nthread 0\nr0 = load x\nexists pte(x).dirty = 0\n", "f")
