"""The code blocks of a Markdown page, run one after the other as a reader would.

`console` is a session of a shell: each line that begins with `$ ` is a command, and the lines after it are
what it says on stdout and stderr, where `...` stands for anything. A command without such lines may say what
it likes. Its exit status must be 0, unless the session goes on to show it with `echo $?`.

`python` is run as it stands; where it defines tests, by pytest. `pycon` is a session of Python's own prompt.
The blocks of a page share a working directory and Python's names.

`<!-- skip: next "why" -->` before a block leaves it out.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds after which a block counts as hanging
RUN = ("console", "python", "pycon")

_OPTIONS = doctest.ELLIPSIS
_STATUS = "\x01status "
_AFTER = f"\ns=$?; printf '\\n{_STATUS}%d\\n' $s; (exit $s)\n"


class _Session(doctest.OutputChecker):
    """A `console` block: one shell carries out its commands, and what each says is held against the page."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, example: Example) -> None:
        commands = session(example.parsed)
        script = "exec 2>&1\n" + "".join(command.rstrip() + _AFTER for command, _ in commands)
        said = _said(script, self.directory)
        answers = re.split(rf"\n{_STATUS}(\d+)\n", said)
        for number, (command, want) in enumerate(commands):
            assert len(answers) > 2 * number + 1, f"the session ends with {command}:\n{answers[-1]}"
            got, status = answers[2 * number], int(answers[2 * number + 1])
            shown = number + 1 < len(commands) and commands[number + 1][0] == "echo $?"
            assert status == 0 or shown, f"{command} ends with {status}:\n{got}"
            assert not want or self.check_output(want, _lines(got), _OPTIONS), (
                f"{command}\nsays\n{_lines(got)}\nwhere the page has\n{want}"
            )


def _said(script: str, directory: Path) -> str:
    """What a shell says that carries out `script`. None of its processes outlives it."""
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return said.decode(errors="replace")


def session(text: str) -> list[tuple[str, str]]:
    """(command, what it says) of a session. A command goes on in the next line after a backslash."""
    found: list[tuple[str, str]] = []
    going_on = False
    for line in text.splitlines():
        if going_on:
            command, _ = found.pop()
            found.append((f"{command}\n{line}", ""))
        elif line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            assert found, f"a session begins with a command, not with {line!r}"
            command, want = found.pop()
            found.append((command, want + line.rstrip() + "\n"))
        going_on = (going_on or line.startswith("$ ")) and line.endswith("\\")
    return found


def _lines(text: str) -> str:
    """Without the blanks at the ends of lines, which no page shows, and with one end."""
    return "".join(line.rstrip() + "\n" for line in text.rstrip("\n").splitlines())


class _Python:
    """A `python` block: run in the page's names, or by pytest when it is a file of tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = PythonEvaluator()

    def __call__(self, example: Example) -> None:
        source = str(example.parsed)
        if not re.search(r"^def test_", source, re.MULTILINE):
            self.run(example)
            return
        name = f"test_line_{example.line}.py"
        (self.directory / name).write_text(source, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
            cwd=self.directory,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def _as_it_is(_example: Example) -> str | None:
    """A `pycon` block that is none: its examples are run one by one instead."""
    raise AssertionError("a session of Python begins with >>>")


class _Prompt(PythonCodeBlockParser):
    def __init__(self) -> None:
        super().__init__(doctest_optionflags=_OPTIONS)
        self.codeblock_parser = CodeBlockParser("pycon", _as_it_is)


def environment() -> dict[str, str]:
    """The caller's, with the `aether` and `python` of these tests in front, and without a terminal."""
    here = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{here}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
        "NO_COLOR": "1",
    }


def furnish(directory: Path) -> None:
    """Make `directory` look like a checkout: links to its folders, and copies of its files."""
    for path in ROOT.iterdir():
        if path.name == ".git" or path.name.endswith(("_cache", ".cache")):
            continue
        if path.is_dir():
            (directory / path.name).symlink_to(path)
        else:
            (directory / path.name).write_bytes(path.read_bytes())


def run(page: Path, directory: Path) -> tuple[int, list[str]]:
    """Run a page's blocks in `directory`, the current one. (blocks that ran, reasons why others did not)."""
    parsers = (
        SkipParser(),
        CodeBlockParser("console", _Session(directory)),
        CodeBlockParser("python", _Python(directory)),
        _Prompt(),
    )
    document = Document.parse(str(page), *parsers)
    ran, reasons = 0, []
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as skipped:
            reasons.append(str(skipped))
        else:
            ran += not isinstance(example.parsed, tuple)
    return ran, reasons
