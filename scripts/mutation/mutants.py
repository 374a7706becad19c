"""Bugs that can be put into a source file: a forgotten statement, a bound off by one, a wrong errno.

Each is a replacement of one expression or statement in the text, so a mutant differs from the code in
that place alone. What no test could notice is left out: annotations, docstrings, the words of messages,
assertions and their removal.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Mutant:
    """One bug: in `path`, bytes `start` to `end` become `new`. `line` counts from 1."""

    path: str
    line: int
    start: int
    end: int
    kind: str
    old: str
    new: str

    @property
    def name(self) -> str:
        """Short and the same on every run: `mm/tlb.py:57 forget 'self.flush()'`."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        arrow = "" if self.kind == "forget" else f" -> {new!r}"
        return f"{self.path}:{self.line} {self.kind} {old!r}{arrow}"

    def applied(self, source: bytes) -> bytes:
        """The file's bytes with the bug in them."""
        return source[: self.start] + self.new.encode() + source[self.end :]


_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
    ast.Mult: "//", ast.FloorDiv: "*", ast.Mod: "//",
}  # fmt: skip
_ERRNOS = ("EINVAL", "EPERM", "ENOMEM", "EFAULT", "EACCES", "EBADF")
# Statements that nothing but a person reading would miss.
_SPOKEN = frozenset({"AssertionError", "NotImplementedError"})

_Place = tuple[ast.AST, str, str]  # the node, the kind of bug, what stands there instead


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Every bug that this module can put into a file, in the order of the text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = set()
    for node, kind, new in _places(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        old = source[start:end].decode()
        if old != new:
            found.add(Mutant(path, node.lineno, start, end, kind, old, new))  # type: ignore[attr-defined]
    return sorted(found)


def sample(files: Iterable[tuple[str, Path]], count: int, seed: int) -> list[Mutant]:
    """`count` bugs out of the files, drawn by the seed; the kinds of bug have equal shares.

    At most one for each statement's first line, so that one line of code does not stand for many.
    """
    kinds: dict[str, list[Mutant]] = {}
    for name, path in files:
        for mutant in mutants_of(name, path.read_bytes()):
            kinds.setdefault(mutant.kind, []).append(mutant)
    chance = random.Random(seed)
    for mutants in kinds.values():
        chance.shuffle(mutants)
    chosen: dict[tuple[str, int], Mutant] = {}
    while len(chosen) < count and any(kinds.values()):
        for kind in sorted(kinds):
            if kinds[kind] and len(chosen) < count:
                mutant = kinds[kind].pop()
                chosen.setdefault((mutant.path, mutant.line), mutant)
    return sorted(chosen.values())


def _places(tree: ast.AST) -> Iterator[_Place]:
    for node in _code(tree):
        for kind, mutate in _KINDS:
            for place, new in mutate(node):
                yield place, kind, new


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that do something, without those whose change nobody could see."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_params", "bases", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_words(child):
                yield from _code(child)


def _is_words(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) | ast.Raise(exc=ast.Name(id=name)):
            return name in _SPOKEN
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.FunctionDef(name="__repr__" | "__str__"):
            return True
    return False


_Mutations = Iterator[tuple[ast.AST, str]]


def _forget(node: ast.AST) -> _Mutations:
    """A statement for its effect, left out: a flush, a rollback, a check that refuses."""
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete() | ast.Raise():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.Continue() | ast.Break():
            yield node, "pass"


def _compare(node: ast.AST) -> _Mutations:
    """A bound off by one, a test the wrong way round."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        operator = _COMPARISONS[type(node.ops[0])]
        yield node, f"{_text(node.left)} {operator} {_text(node.comparators[0])}"


def _condition(node: ast.AST) -> _Mutations:
    """A condition negated, or one of its parts forgotten."""
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Constant):
        yield node.test, f"(not ({_text(node.test)}))"
    if isinstance(node, ast.BoolOp):
        word = " or " if isinstance(node.op, ast.And) else " and "
        parts = [f"({_text(value)})" for value in node.values]
        yield node, f"({word.join(parts)})"
        keep = " and " if isinstance(node.op, ast.And) else " or "
        for left_out in range(len(parts)):
            yield node, f"({keep.join(parts[:left_out] + parts[left_out + 1 :])})"


def _arithmetic(node: ast.AST) -> _Mutations:
    """Another operator, or a number off by one."""
    match node:
        case ast.BinOp() if type(node.op) in _OPERATORS:
            yield node, f"(({_text(node.left)}) {_OPERATORS[type(node.op)]} ({_text(node.right)}))"
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int(number)):
            yield node, str(number + 1)
        case ast.UnaryOp(op=ast.Invert() | ast.Not()):
            yield node, f"({_text(node.operand)})"


def _result(node: ast.AST) -> _Mutations:
    """A wrong answer: the other truth value, another errno, nothing of what was asked for."""
    match node:
        case ast.Constant(value=True):
            yield node, "False"
        case ast.Constant(value=False):
            yield node, "True"
        case ast.Attribute(value=ast.Name(id="errno" | "Errno"), attr=name):
            other = next(word for word in _ERRNOS if word != name)
            yield node, f"{_text(node.value)}.{other}"
        case ast.Return(value=ast.Name() | ast.Attribute() | ast.BinOp() | ast.Call()):
            yield node, "return 0"


_KINDS: tuple[tuple[str, Callable[[ast.AST], _Mutations]], ...] = (
    ("forget", _forget),
    ("compare", _compare),
    ("condition", _condition),
    ("arithmetic", _arithmetic),
    ("result", _result),
)


def _text(node: ast.AST) -> str:
    return ast.unparse(node)
