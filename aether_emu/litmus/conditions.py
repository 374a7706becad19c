"""The words for entries and conditions in litmus files, and whether a condition holds at an end."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from aether_emu.errors import suggestion
from aether_emu.litmus.program import (
    FLAGS,
    INVALID,
    Both,
    Condition,
    Either,
    Entry,
    Equal,
    Kind,
    Memory,
    Not,
    Register,
    Slot,
    Stored,
    Value,
)

RECORDED = ("accessed", "dirty")
"""What hardware records in an entry, as a condition names it."""

MOST_COMPARISONS, MOST_DEPTH = 100, 20
_TOKEN = re.compile(r"\s*(entry\([^)]*\)|p[td]e\([^)]*\)|[0-9]+:\w+|[*]\w+|[.]\w+|\w+|[=()])")


class Holds(NamedTuple):
    """What can ever stand on the left of a comparison: a number, these words, entries of these levels."""

    number: bool = False
    words: frozenset[str] = frozenset()
    levels: frozenset[int] = frozenset()

    def __or__(self, other: Holds) -> Holds:
        return Holds(
            self.number or other.number, self.words | other.words, self.levels | other.levels
        )  # fmt: skip

    def __str__(self) -> str:
        """What is expected on the right."""
        entry = ["entry(...)"] if self.levels else []
        *most, last = (["a number"] if self.number else []) + sorted(self.words) + entry
        return f"{', '.join(most)} or {last}" if most else last


NUMBER = Holds(number=True)


def number_of(digits: str) -> int:
    """A number of a litmus file. ValueError says what was expected."""
    if int(digits) >= 1 << 32:
        raise ValueError(f"{digits}: a number below 2^32 was expected")
    return int(digits)


def entry_of(words: str, level: int, isa: str) -> Entry:
    """The entry that a text means. ValueError says what was expected."""
    parts = words.split()
    if parts == ["invalid"]:
        return INVALID
    kind = Kind.PAGE
    if parts and parts[0] in ("table", "block"):
        kind = Kind(parts.pop(0))
    if (level == 1) != (kind is Kind.PAGE):
        wanted = "a physical page" if level == 1 else "table NAME or block PAGE"
        raise ValueError(f"{words}: {wanted} or invalid was expected")
    if not parts:
        raise ValueError(f"{words}: a name was expected after {kind.value or 'the arrow'}")
    target, *flags = parts
    for flag in flags:
        if flag not in FLAGS:
            raise ValueError(f"{flag}: one of {', '.join(FLAGS)} was expected{suggestion(flag, FLAGS)}")
        if flag == "clean" and isa != "x86_64":
            raise ValueError("clean: only x86_64 has a dirty bit that is modelled here")
    return Entry(kind, target, "ro" not in flags, "kernel" not in flags, "global" in flags,
                 "old" not in flags, "clean" not in flags)  # fmt: skip


def slot_of(words: str) -> Slot | None:
    """The slot that `pte(x)` or `pde(x)` names."""
    found = re.fullmatch(r"p([td])e\(\s*([\w.]+)\s*\)", words)
    return Slot(1 if found[1] == "t" else 2, found[2]) if found else None


class ConditionReader:
    """Reads `1:r0 = 1 and (not *pa1 = 0 or pte(x).dirty = 1)`. ValueError says what was expected.

    `line` is that of the text, from 0, which was read last. `registers` have what they can ever hold: a
    comparison with something else would be true of no end, and say nothing about the CPUs.
    """

    def __init__(
        self,
        text: str,
        isa: str,
        entries: Collection[Slot],
        memory: Collection[str],
        registers: Mapping[tuple[int, str], Holds],
    ) -> None:
        self._text, self._isa, self._entries, self._memory = text, isa, entries, memory
        self._registers = {f"{thread}:{name}": (thread, name) for thread, name in registers}
        self._holds = registers
        self._tokens: list[tuple[str, int]] = []
        self._comparisons = self._depth = 0
        self.line = 0

    def condition(self) -> Condition:
        """The whole text."""
        text, at = self._text.rstrip(), 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                rest = text[at:].lstrip()
                self.line = text.count("\n", 0, len(text) - len(rest))
                what = rest.splitlines()[0]
                raise ValueError(f"{what}: a condition was expected, such as 1:r0 = 0 and *pa1 = 1")
            self._tokens.append((found[1], text.count("\n", 0, found.start(1))))
            at = found.end()
        whole = self._either()
        if self._tokens:
            raise ValueError(f"{self._next('')}: and, or, or the end was expected")
        return whole

    def _next(self, expected: str) -> str:
        if not self._tokens:
            raise ValueError(f"the condition ends here: {expected} was expected")
        token, self.line = self._tokens.pop(0)
        return token

    def _is_next(self, start: str) -> bool:
        return bool(self._tokens) and self._tokens[0][0].startswith(start)

    def _either(self) -> Condition:
        return self._chain("or", self._both, Either)

    def _both(self) -> Condition:
        return self._chain("and", self._single, Both)

    def _chain(
        self, word: str, part: Callable[[], Condition], made: Callable[[Condition, Condition], Condition]
    ) -> Condition:
        found = part()
        while self._tokens and self._tokens[0][0] == word:
            self._next(word)
            found = made(found, part())
        return found

    def _single(self) -> Condition:
        token = self._next("a comparison")
        if token in ("not", "("):
            return self._nested(token)
        self._comparisons += 1
        if self._comparisons > MOST_COMPARISONS:
            raise ValueError(f"{token}: at most {MOST_COMPARISONS} comparisons are expected")
        left, right = self._left(token)
        if self._next("=") != "=":
            raise ValueError(f"{token}: = was expected after it")
        value = self._right(right)
        if getattr(left, "flag", "") and value.value not in (0, 1):
            raise ValueError(f"{value.value}: 0 or 1 was expected")
        return Equal(left, value)

    def _nested(self, token: str) -> Condition:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"{token}: at most {MOST_DEPTH} of not and ( within each other are expected")
        found = Not(self._single()) if token == "not" else self._either()
        if token == "(" and self._next(")") != ")":
            raise ValueError("a closing parenthesis was expected")
        self._depth -= 1
        return found

    def _left(self, token: str) -> tuple[Register | Memory | Stored, Holds]:
        """What is compared, and what it can hold."""
        if token.startswith("*"):
            if token[1:] not in self._memory:
                near = suggestion(token[1:], self._memory)
                raise ValueError(f"{token}: a physical page was expected after *{near}")
            return Memory(token[1:]), NUMBER
        if slot := slot_of(token):
            if slot not in self._entries:
                raise ValueError(
                    f"{token}: an entry was expected, one of {', '.join(map(str, self._entries))}"
                )
            flag = self._flag()
            return Stored(slot, flag), NUMBER if flag else Holds(levels=frozenset({slot.level}))
        if re.fullmatch(r"[0-9]+:\w+", token):
            if token not in self._registers:
                known = ", ".join(self._registers)
                raise ValueError(f"{token}: a register was expected that a thread writes, one of {known}")
            key = self._registers[token]
            flag = self._flag()
            if flag and not self._holds[key].levels:
                raise ValueError(f"{token}.{flag}: {token} never holds an entry: {token} = was expected")
            return Register(*key, flag), NUMBER if flag else self._holds[key]
        raise ValueError(f"{token}: THREAD:REGISTER, *PAGE or pte(PAGE) was expected")

    def _flag(self) -> str:
        if not self._is_next("."):
            return ""
        flag = self._next("a flag")[1:]
        if flag not in RECORDED:
            raise ValueError(f".{flag}: .accessed or .dirty was expected")
        if flag == "dirty" and self._isa != "x86_64":
            raise ValueError(".dirty: only x86_64 has a dirty bit that is modelled here")
        return flag

    def _right(self, left: Holds) -> Value:
        token = self._next("a value")
        if left.number and re.fullmatch("[0-9]+", token):
            return Value(number_of(token))
        if token in left.words:
            return Value(token)
        if left.levels and (found := re.fullmatch(r"entry\((.*)\)", token, re.DOTALL)):
            return Value(self._entry(found[1].strip(), left.levels))
        raise ValueError(f"{token}: {left} was expected")

    def _entry(self, words: str, levels: Collection[int]) -> Entry:
        level = 2 if words.split()[:1] in (["table"], ["block"]) else 1
        entry = entry_of(words, level if len(levels) > 1 else next(iter(levels)), self._isa)
        names = [slot.name for slot in self._entries if slot.level == 1]
        known = names if entry.kind is Kind.TABLE else self._memory
        if entry.kind is not Kind.INVALID and entry.target not in known:
            near = suggestion(entry.target, known)
            raise ValueError(f"entry({words}): one of {', '.join(known)} was expected{near}")
        if entry != entry.used():
            raise ValueError(
                f"entry({words}): no old or clean was expected: entries are compared without those flags, "
                "which .accessed and .dirty ask for"
            )
        return entry


def holds(
    condition: Condition,
    registers: Mapping[tuple[int, str], int | str | Entry],
    memory: Mapping[str, int],
    entries: Mapping[Slot, Entry],
) -> bool:
    """Whether a condition is true of an end."""
    match condition:
        case Not(what):
            return not holds(what, registers, memory, entries)
        case Both(left, right):
            return holds(left, registers, memory, entries) and holds(right, registers, memory, entries)
        case Either(left, right):
            return holds(left, registers, memory, entries) or holds(right, registers, memory, entries)
    found: int | str | Entry | None
    match condition.left:
        case Register(thread, name, flag):
            found = registers.get((thread, name))
        case Memory(page):
            found, flag = memory[page], ""
        case Stored(slot, flag):
            found = entries[slot]
    if isinstance(found, Entry):
        found = int(getattr(found, flag)) if flag else found.used()
    return found == condition.right.value
