"""The words for entries and conditions in litmus files, and whether a condition holds at an end."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from aether_emu.errors import suggestion
from aether_emu.litmus.program import (
    DONE,
    FAULT,
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

_TOKEN = re.compile(r"\s*(entry\([^)]*\)|p[td]e\([^)]*\)|\d+:\w+|[*]\w+|[.]\w+|\w+|[=()])")


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
    """Reads `1:r0 = 1 and (not *pa1 = 0 or pte(x).dirty = 1)`. ValueError says what was expected."""

    def __init__(
        self,
        text: str,
        isa: str,
        entries: Collection[Slot],
        memory: Collection[str],
        registers: Collection[tuple[int, str]],
    ) -> None:
        self._isa, self._entries, self._memory, self._registers = isa, entries, memory, registers
        self._tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if not found:
                raise ValueError(
                    f"{text[at:].strip()}: a condition was expected, such as 1:r0 = 0 and *pa1 = 1"
                )
            self._tokens.append(found[1])
            at = found.end()

    def condition(self) -> Condition:
        """The whole text."""
        found = self._either()
        if self._tokens:
            raise ValueError(f"{self._tokens[0]}: and, or, or the end was expected")
        return found

    def _next(self, expected: str) -> str:
        if not self._tokens:
            raise ValueError(f"the condition ends here: {expected} was expected")
        return self._tokens.pop(0)

    def _either(self) -> Condition:
        return self._chain("or", self._both, Either)

    def _both(self) -> Condition:
        return self._chain("and", self._single, Both)

    def _chain(
        self, word: str, part: Callable[[], Condition], made: Callable[[Condition, Condition], Condition]
    ) -> Condition:
        found = part()
        while self._tokens and self._tokens[0] == word:
            self._tokens.pop(0)
            found = made(found, part())
        return found

    def _single(self) -> Condition:
        token = self._next("a comparison")
        if token == "not":
            return Not(self._single())
        if token == "(":
            found = self._either()
            if self._next(")") != ")":
                raise ValueError("a closing parenthesis was expected")
            return found
        left = self._left(token)
        if self._next("=") != "=":
            raise ValueError(f"{token}: = was expected after it")
        return Equal(left, self._right(left))

    def _left(self, token: str) -> Register | Memory | Stored:
        if token.startswith("*"):
            if token[1:] not in self._memory:
                near = suggestion(token[1:], self._memory)
                raise ValueError(f"{token}: a physical page was expected after *{near}")
            return Memory(token[1:])
        if slot := slot_of(token):
            if slot not in self._entries:
                raise ValueError(
                    f"{token}: an entry was expected, one of {', '.join(map(str, self._entries))}"
                )
            return Stored(slot, self._flag())
        if found := re.fullmatch(r"(\d+):(\w+)", token):
            key = int(found[1]), found[2]
            if key not in self._registers:
                known = ", ".join(f"{thread}:{name}" for thread, name in self._registers)
                raise ValueError(f"{token}: a register was expected that a thread writes, one of {known}")
            return Register(*key, self._flag())
        raise ValueError(f"{token}: THREAD:REGISTER, *PAGE or pte(PAGE) was expected")

    def _flag(self) -> str:
        if not (self._tokens and self._tokens[0].startswith(".")):
            return ""
        flag = self._tokens.pop(0)[1:]
        if flag not in RECORDED:
            raise ValueError(f".{flag}: .accessed or .dirty was expected")
        return flag

    def _right(self, left: Register | Memory | Stored) -> Value:
        token = self._next("a value")
        if token.isdigit():
            return Value(int(token))
        if token in (FAULT, DONE) and isinstance(left, Register):
            return Value(token)
        if found := re.fullmatch(r"entry\((.*)\)", token):
            words = found[1].strip()
            level = 2 if words.startswith(("table", "block")) else 1
            return Value(entry_of(words, level, self._isa).used())
        raise ValueError(f"{token}: a number, fault, ok or entry(...) was expected")


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
