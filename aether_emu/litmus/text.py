"""Litmus files: the text form of a test, read with an error that names file, line and what was expected.

    name: MP+broadcast                     # headers, one a line
    isa: arm64
    published: forbidden
    source: where that verdict stands
    memory                                 # physical pages with their first word
      pa1 = 0
    map                                    # virtual pages, and leaf tables that nothing leads to yet
      x -> pa1
    thread 0
      set pte(x) = invalid
      dsb
    thread 1
      r0 = load x
    exists 1:r0 = 0

docs/how-to/litmus.md has all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from aether_emu.errors import AetherError, shown, suggestion
from aether_emu.litmus.conditions import ConditionReader, Holds, entry_of, number_of, slot_of
from aether_emu.litmus.program import (
    DONE,
    FAULT,
    INVALID,
    OWN,
    Action,
    Await,
    Barrier,
    Enter,
    Entry,
    Interrupt,
    Invalidate,
    Kind,
    Litmus,
    Load,
    Manual,
    Operation,
    ReadEntry,
    Slot,
    Space,
    Store,
    WriteEntry,
)

MOST_THREADS, MOST_PAGES, MOST_OPERATIONS, MOST_TABLES, MOST_SPACES = 4, 8, 12, 24, 3
MOST_CHARACTERS, MOST_BYTES = 1000, 1 << 20
HEADERS = ("name", "isa", "manual", "summary", "published", "source", "like", "out of reach")
_NEEDED = ("name", "isa", "published", "source")
_MANUALS = {"x86_64": (Manual.INTEL, Manual.AMD), "arm64": (Manual.ARM,)}
FIRST = "first"
"""What the address space is called in which threads begin."""
RESERVED = (FIRST, "invalid", "table", "block", "all", "asid")
"""Words of operations and entries: no page, table or space is called so."""
_WORD = r"[A-Za-z_]\w*"
BARRIERS: dict[str, dict[str, Barrier]] = {
    "arm64": {
        "dsb": Barrier(stores=True, invalidations=True),
        "dsb st": Barrier(stores=True),
        "dsb ld": Barrier(),
        "dmb": Barrier(),
        "isb": Barrier(context=True),
    },
    "x86_64": {"mfence": Barrier(), "cpuid": Barrier()},
}
INVALIDATIONS = {
    "x86_64": ("invlpg PAGE", "mov cr3", "mov cr3 SPACE", "mov cr3 SPACE noflush", "flush all"),
    "arm64": (
        "tlbi PAGE",
        "tlbi PAGE leaf",
        "tlbi PAGE local",
        "tlbi PAGE asid SPACE",
        "tlbi asid SPACE",
        "tlbi all",
        "tlbi all local",
        "ttbr SPACE",
    ),
}


class LitmusError(AetherError):
    """A litmus file is wrong. Says where, what stands there, and what was expected."""

    def __init__(self, path: str, line: int, what: str) -> None:
        self.path, self.line = path, line
        super().__init__(f"{shown(path)}:{line}: {what}" if line else f"{shown(path)}: {what}")


class Mistake(Exception):
    """What is wrong with a line; `read` adds where."""


def read(path: str | Path) -> Litmus:
    """The test in a file. Raises LitmusError for a mistake, and for a file that cannot be read."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        source = data.decode("utf-8-sig")
    except OSError as error:
        raise LitmusError(name, 0, f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError):
        raise LitmusError(name, 0, "is no text in UTF-8: a litmus file was expected") from None
    if len(data) > MOST_BYTES:
        raise LitmusError(name, 0, "has more than 1 MiB: a litmus file was expected")
    return parse(source, name)


def parse(source: str, path: str = "<text>") -> Litmus:
    """The test that a text is."""
    reader = _Reader(path)
    number = 0
    for number, line in enumerate(re.split(r"\r\n|\r|\n", source.rstrip("\r\n")), 1):
        words = line.split("#", 1)[0].strip()
        if not words:
            continue
        try:
            if len(words) > MOST_CHARACTERS:
                raise Mistake(f"{words[:20]}...: at most {MOST_CHARACTERS} characters a line are expected")
            if not words.replace("\t", " ").isprintable():
                raise Mistake(f"{words}: no control characters were expected")
            reader.line(words, number)
        except Mistake as mistake:
            raise LitmusError(path, number, str(mistake)) from None
    try:
        return reader.finished(number)
    except Mistake as mistake:
        raise LitmusError(path, max(number, 1), str(mistake)) from None


class _Reader:
    """Takes a file line by line; `section` is what the line before belonged to."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._section = "headers"
        self._headers: dict[str, str] = {}
        self._memory: dict[str, int] = {}
        self._entries: dict[Slot, Entry] = {}
        self._spaces = [Space("")]
        self._threads: list[list[Operation]] = []
        self._lines: dict[tuple[int, int], int] = {}
        self._condition: list[tuple[int, str]] = []

    def line(self, words: str, number: int) -> None:
        """One line without comment."""
        first = words.split(maxsplit=1)[0]
        if self._section == "exists":
            self._condition.append((number, words))
        elif words in ("memory", "map"):
            self._begin(words)
        elif first == "space" and "->" not in words:
            self._begin_space(words)
        elif first == "thread" and "=" not in words:
            self._begin_thread(words)
        elif first == "exists":
            self._begin_exists(words, number)
        elif self._section == "headers":
            self._header(words)
        elif self._section == "memory":
            self._physical(words)
        elif self._section == "map":
            self._mapping(words)
        elif self._section == "space":
            self._mapping_in_space(words)
        else:
            self._operation(words, number)

    # ---- sections

    def _begin(self, section: str) -> None:
        order = ("headers", "memory", "map")
        if self._section not in order or order.index(self._section) >= order.index(section):
            raise Mistake(f"{section} stands here: each of headers, memory, map comes once, in this order")
        if self._section == "headers":
            self._check_headers(section)
        self._section = section

    def _begin_space(self, words: str) -> None:
        found = re.fullmatch(rf"space\s+({_WORD})(?:\s+tag\s+([0-9]))?", words)
        if self._section not in ("map", "space"):
            raise Mistake(f"{words}: stands here; spaces were expected after map and before the threads")
        if not found or found[1] in (*RESERVED, *(space.name for space in self._spaces)):
            raise Mistake(f"{words}: space NAME or space NAME tag DIGIT was expected, with a new name")
        if len(self._spaces) == MOST_SPACES:
            raise Mistake(f"{words}: at most {MOST_SPACES - 1} more spaces are expected")
        self._section = "space"
        self._spaces.append(Space(found[1], int(found[2] or 0)))

    def _mapping_in_space(self, words: str) -> None:
        found = re.fullmatch(rf"({_WORD})\s*->\s*(.+)", words)
        if not found:
            raise Mistake(f"{words}: PAGE -> ENTRY was expected, or a thread")
        name = f"{self._page(found[1])}.{self._spaces[-1].name}"
        if Slot(1, name) in self._entries:
            raise Mistake(f"{found[1]}: is mapped in this space already")
        self._entries[Slot(1, name)] = self._entry(found[2], 1)
        self._entries[Slot(2, name)] = Entry(Kind.TABLE, name)
        self._check_tables(name)

    def _check_tables(self, name: str) -> None:
        if sum(slot.level == 1 for slot in self._entries) > MOST_TABLES:
            raise Mistake(f"{name}: at most {MOST_TABLES} leaf tables are expected")

    def _begin_thread(self, words: str) -> None:
        expected = len(self._threads)
        if self._section not in ("map", "space", "thread"):
            raise Mistake("a thread stands here: the section map was expected first")
        if expected == MOST_THREADS:
            raise Mistake(f"{words}: at most {MOST_THREADS} threads are expected, 0 to {MOST_THREADS - 1}")
        if words.split()[1:] != [str(expected)]:
            raise Mistake(f"{words}: thread {expected} was expected")
        self._section = "thread"
        self._threads.append([])

    def _begin_exists(self, words: str, number: int) -> None:
        if not self._threads:
            raise Mistake("exists stands here: thread 0 was expected first")
        self._section = "exists"
        self._condition.append((number, words.removeprefix("exists").strip()))

    def _header(self, words: str) -> None:
        name, colon, value = (part.strip() for part in words.partition(":"))
        if not colon or name not in HEADERS:
            near = suggestion(name, HEADERS)
            raise Mistake(f"{words}: a header was expected, one of {', '.join(HEADERS)}{near}")
        if name in self._headers:
            raise Mistake(f"{name}: was given before")
        if not value:
            raise Mistake(f"{name}: a value was expected")
        allowed = {"isa": tuple(_MANUALS), "published": ("allowed", "forbidden")}.get(name)
        if allowed and value not in allowed:
            raise Mistake(f"{name}: {value}: one of {', '.join(allowed)} was expected")
        self._headers[name] = value

    def _check_headers(self, section: str) -> None:
        missing = [name for name in _NEEDED if name not in self._headers]
        if missing:
            raise Mistake(f"{section} stands here: the header {missing[0]} was expected before it")
        manuals = [manual.value for manual in _MANUALS[self._headers["isa"]]]
        if self._headers.get("manual", manuals[0]) not in manuals:
            raise Mistake(f"manual: {self._headers['manual']}: one of {', '.join(manuals)} was expected")
        if "out of reach" in self._headers and self._headers["published"] == "forbidden":
            raise Mistake("out of reach: is for what is allowed; published says forbidden")

    def _physical(self, words: str) -> None:
        found = re.fullmatch(rf"({_WORD})\s*=\s*([0-9]+)", words)
        if not found:
            raise Mistake(f"{words}: NAME = NUMBER was expected, a physical page and its first word")
        self._new(found[1])
        self._memory[found[1]] = self._number(found[2])

    def _mapping(self, words: str) -> None:
        found = re.fullmatch(rf"(table\s+)?({_WORD})\s*->\s*(.+)", words)
        if not found:
            raise Mistake(f"{words}: PAGE -> ENTRY or table NAME -> ENTRY was expected")
        spare, name, entry = found.groups()
        self._new(name)
        self._entries[Slot(1, name)] = self._entry(entry, 1)
        if not spare:
            self._entries[Slot(2, name)] = Entry(Kind.TABLE, name)
        self._check_tables(name)
        if sum(slot.level == 2 for slot in self._entries) > MOST_PAGES:
            raise Mistake(f"{name}: at most {MOST_PAGES} virtual pages are expected")

    def _new(self, name: str) -> None:
        if name in self._memory or Slot(1, name) in self._entries or name in RESERVED:
            raise Mistake(f"{name}: a new name was expected")
        if len(self._memory) == MOST_PAGES:
            raise Mistake(f"{name}: at most {MOST_PAGES} physical pages are expected")

    def _number(self, digits: str) -> int:
        try:
            return number_of(digits)
        except ValueError as error:
            raise Mistake(str(error)) from None

    def _entry(self, words: str, level: int) -> Entry:
        try:
            entry = entry_of(words, level, self._headers["isa"])
        except ValueError as error:
            raise Mistake(str(error)) from None
        if entry.kind in (Kind.PAGE, Kind.BLOCK) and entry.target not in self._memory:
            near = suggestion(entry.target, self._memory)
            raise Mistake(f"{entry.target}: a physical page of the section memory was expected{near}")
        return entry

    # ---- operations

    def _operation(self, words: str, number: int) -> None:
        thread = self._threads[-1]
        if len(thread) == MOST_OPERATIONS:
            raise Mistake(f"{words}: at most {MOST_OPERATIONS} operations a thread are expected")
        self._lines[len(self._threads) - 1, len(thread)] = number
        thread.append(Operation(self._action(words), words))

    def _action(self, words: str) -> Action:
        register, rest = "", words
        if found := re.fullmatch(rf"({_WORD})\s*=\s*(load|store|swap)\b(.*)", words):
            register, rest = found[1], found[2] + found[3]
        if found := re.fullmatch(r"load\s+(\S+)", rest):
            if not register:
                raise Mistake(f"{words}: REGISTER = load PAGE was expected")
            if "(" in found[1]:
                return ReadEntry(self._slot(found[1]), register)
            return Load(self._page(found[1]), register)
        if found := re.fullmatch(r"store\s+(\S+)\s+([0-9]+)", rest):
            return Store(self._page(found[1]), self._number(found[2]), register)
        if found := re.fullmatch(r"(set|swap)\s+(\S+)\s*=\s*(.+)", rest):
            if (found[1] == "swap") != bool(register):
                raise Mistake(f"{words}: set ENTRY = ... or REGISTER = swap ENTRY = ... was expected")
            slot = self._slot(found[2])
            return WriteEntry(slot, self._entry(found[3], slot.level), register)
        if words in ("wait", "await acks"):
            return Await()
        if found := re.fullmatch(r"ipi\s+([0-9])\s+(.+?)(\s+early)?", words):
            return self._interrupt(int(found[1]), found[2], bool(found[3]), words)
        isa = self._headers["isa"]
        if words in BARRIERS[isa]:
            return BARRIERS[isa][words]
        if found := re.fullmatch(
            r"mov\s+cr3\s+(\S+?)(\s+noflush)?" if isa == "x86_64" else r"ttbr\s+(\S+)", words
        ):
            return Enter(self._space(found[1]).name, isa == "x86_64" and not found[2])
        if action := self._invalidation(words):
            return action
        forms = ["REGISTER = load PAGE", "store PAGE NUMBER", "set pte(PAGE) = ENTRY", *INVALIDATIONS[isa],
                 *BARRIERS[isa], "ipi THREAD INVALIDATION", "wait"]  # fmt: skip
        raise Mistake(f"{words}: an operation was expected, one of: {'; '.join(forms)}")

    def _interrupt(self, thread: int, work: str, early: bool, words: str) -> Interrupt:
        action = self._invalidation(work)
        if action is None or action.everywhere:
            what = "a local invalidation of this ISA"
            raise Mistake(f"{words}: ipi THREAD INVALIDATION was expected, with {what}")
        return Interrupt(thread, action, early)

    def _invalidation(self, words: str) -> Invalidate | None:
        if self._headers["isa"] == "x86_64":
            if words == "mov cr3":
                return Invalidate("", globals_too=False, tag=OWN)
            if words == "flush all":
                return Invalidate("")
            found = re.fullmatch(r"invlpg\s+(\S+)", words)
            return Invalidate(self._page(found[1]), tag=OWN) if found else None
        if found := re.fullmatch(r"tlbi\s+asid\s+(\S+)(\s+local)?", words):
            return Invalidate("", not found[2], globals_too=False, tag=self._space(found[1]).tag)
        if found := re.fullmatch(r"tlbi\s+(\S+)\s+asid\s+(\S+)(\s+local)?", words):
            return Invalidate(self._page(found[1]), not found[3], tag=self._space(found[2]).tag)
        found = re.fullmatch(r"tlbi\s+(\S+)((?:\s+(?:leaf|local))*)", words)
        if not found or (found[1] == "all" and "leaf" in found[2]):
            return None
        page = "" if found[1] == "all" else self._page(found[1])
        return Invalidate(page, "local" not in found[2], "leaf" in found[2])

    def _space(self, name: str) -> Space:
        known = {space.name or FIRST: space for space in self._spaces}
        if name not in known:
            raise Mistake(f"{name}: an address space was expected, one of {', '.join(known)}")
        return known[name]

    def _page(self, name: str) -> str:
        pages = [slot.name for slot in self._entries if slot.level == 2 and "." not in slot.name]
        if name not in pages:
            raise Mistake(f"{name}: a virtual page of the section map was expected{suggestion(name, pages)}")
        return name

    def _slot(self, words: str) -> Slot:
        slot = slot_of(words)
        if slot not in self._entries:
            known = ", ".join(map(str, self._entries))
            raise Mistake(f"{words}: an entry was expected, one of {known}")
        assert slot is not None
        return slot

    # ---- the end

    def finished(self, last: int) -> Litmus:
        """The test; everything that only the whole file can show to be wrong is found here."""
        if self._section != "exists":
            raise Mistake("the file ends here: a line that begins with exists was expected")
        for page in [slot.name for slot in self._entries if slot.level == 2 and "." not in slot.name]:
            for space in self._spaces[1:]:
                name = f"{page}.{space.name}"
                self._entries.setdefault(Slot(1, name), INVALID)
                self._entries.setdefault(Slot(2, name), Entry(Kind.TABLE, name))
        self._check_tables("all spaces")
        for (thread, index), number in self._lines.items():
            self._check(thread, self._threads[thread][index].action, number)
        reader = ConditionReader("\n".join(text for _, text in self._condition), self._headers["isa"],
                                 self._entries, self._memory, self._registers())  # fmt: skip
        try:
            condition = reader.condition()
        except ValueError as error:
            raise LitmusError(self._path, self._condition[reader.line][0], str(error)) from None
        headers = self._headers
        manual = Manual(headers.get("manual", _MANUALS[headers["isa"]][0].value))
        return Litmus(
            headers["name"], headers["isa"], manual, headers.get("summary", ""),
            headers["published"] == "allowed", headers["source"], headers.get("like", ""),
            headers.get("out of reach", ""),
            self._memory, self._entries, tuple(self._spaces), tuple(map(tuple, self._threads)), condition,
            " ".join(text for _, text in self._condition).strip(), self._path,
        )  # fmt: skip

    def _check(self, thread: int, action: Action, number: int) -> None:
        what = ""
        if isinstance(action, WriteEntry) and action.entry.kind is Kind.TABLE:
            if Slot(1, action.entry.target) not in self._entries:
                what = f"table {action.entry.target}: a name of the section map was expected"
        elif isinstance(action, Interrupt) and (
            action.thread == thread or action.thread >= len(self._threads)
        ):
            others = ", ".join(str(other) for other in range(len(self._threads)) if other != thread)
            what = f"ipi {action.thread}: another thread was expected ({others or 'there is none'})"
        if what:
            raise LitmusError(self._path, number, what)

    def _registers(self) -> dict[tuple[int, str], Holds]:
        """What each register may hold after the operations that write it."""
        found = dict.fromkeys(registers(self._threads), Holds())
        for number, thread in enumerate(self._threads):
            for operation in thread:
                key = number, getattr(operation.action, "register", "")
                match operation.action:
                    case Load():
                        found[key] |= Holds(number=True, words=frozenset({FAULT}))
                    case Store() if key in found:
                        found[key] |= Holds(words=frozenset({DONE, FAULT}))
                    case ReadEntry(slot) | WriteEntry(slot) if key in found:
                        found[key] |= Holds(levels=frozenset({slot.level}))
        return found


def registers(
    threads: list[list[Operation]] | tuple[tuple[Operation, ...], ...],
) -> Iterator[tuple[int, str]]:
    """(thread, name) of every register that the threads write, in the order of the text, each once."""
    seen = set()
    for number, thread in enumerate(threads):
        for operation in thread:
            name = getattr(operation.action, "register", "")
            if name and (number, name) not in seen:
                seen.add((number, name))
                yield number, name
