"""`scripts/mutate`: which bugs it makes, that a seed names them, and that it finds those no test notices."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts" / "mutation"))

from mutants import Mutant, mutants_of, sample  # noqa: E402  # a script's folder, not a package

SOURCE = '''
def unmap(table, start: int, end: int) -> bool:
    """Its words are nobody's business."""
    assert start <= end, f"{start + 1}"
    if start < end and table.live:
        table.flush(start)
        raise Refused(errno.EINVAL, "no")
    table.count = 4096
    return True
'''


def _made(kind: str) -> list[tuple[str, str]]:
    return [(mutant.old, mutant.new) for mutant in mutants_of("x.py", SOURCE.encode()) if mutant.kind == kind]


def test_a_bug_is_a_statement_forgotten_a_bound_off_a_condition_a_number_or_a_result() -> None:
    assert _made("forget") == [
        ("table.flush(start)", "pass"),
        ('raise Refused(errno.EINVAL, "no")', "pass"),
        ("table.count = 4096", "pass"),
    ]
    assert _made("compare") == [("start < end", "start <= end")]
    assert _made("condition") == [
        ("start < end and table.live", "((start < end) or (table.live))"),
        ("start < end and table.live", "((start < end))"),
        ("start < end and table.live", "((table.live))"),
        ("start < end and table.live", "(not (start < end and table.live))"),
    ]
    assert _made("arithmetic") == [("4096", "4097")]
    assert _made("result") == [("errno.EINVAL", "errno.EPERM"), ("True", "False")]


def test_a_bug_changes_its_place_alone_and_is_still_python() -> None:
    """All bugs of a folder, those of different places in one text: parsed a few times, not thousands."""
    source = "π = [1,\n     2]\n".encode()
    assert [mutant.applied(source).decode() for mutant in mutants_of("x.py", source)] == [
        "π = [2,\n     2]\n",
        "π = [1,\n     3]\n",
    ]
    for source in _sources():
        for layer in _layers(mutants_of("x.py", source)):
            text = source
            for mutant in reversed(layer):
                text = mutant.applied(text)
            ast.parse(text)


@pytest.mark.slow
def test_each_bug_alone_is_still_python() -> None:
    for source in _sources():
        for mutant in mutants_of("x.py", source):
            ast.parse(mutant.applied(source))


def _sources() -> list[bytes]:
    return [path.read_bytes() for path in sorted((REPOSITORY / "aether_emu" / "mm").glob("*.py"))]


def _layers(mutants: list[Mutant]) -> list[list[Mutant]]:
    """All of a file's bugs, in as few lists as may be in which no two touch: each list goes in at once."""
    layers: list[list[Mutant]] = []
    for mutant in mutants:
        free = (layer for layer in layers if layer[-1].end < mutant.start)
        if (layer := next(free, None)) is None:
            layers.append([mutant])
        else:
            layer.append(mutant)
    return layers


def test_a_seed_names_the_bugs_one_for_a_line_and_every_kind_as_often() -> None:
    folder = REPOSITORY / "aether_emu" / "mm"
    files = [(path.name, path) for path in sorted(folder.glob("*.py"))]

    def drawn(seed: int) -> list[Mutant]:
        return sample(files, 50, seed)

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({(mutant.path, mutant.line) for mutant in drawn(1)}) == 50
    assert min(Counter(mutant.kind for mutant in drawn(1)).values()) >= 8


class Tree:
    """A work tree with our script, a package of two functions and a test of the first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(REPOSITORY / "scripts", root / "scripts")
        (root / ".venv/bin").mkdir(parents=True)
        python = root / ".venv/bin/python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        for name in ("requirements-dev.lock", ".venv/requirements-dev.lock"):
            (root / name).write_text("")
        (root / "pyproject.toml").write_text(
            '[tool.pytest.ini_options]\nmarkers = ["slow"]\naddopts = "-q"\n'
        )
        (root / "aether_emu").mkdir()
        (root / "aether_emu/sums.py").write_text("def add(a, b):\n    return a + b\n")
        (root / "tests").mkdir()
        for folder in ("aether_emu", "tests"):
            (root / folder / "__init__.py").touch()
        (root / "tests/test_sums.py").write_text(
            "from aether_emu.sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
        )
        (root / ".gitignore").write_text("/.cache/\n/.venv\n")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", "all")

    def git(self, *command: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(self.root), *names, *command], check=True)

    def mutate(self, *arguments: str) -> tuple[int, str]:
        command = [str(self.root / "scripts/mutate"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_bugs_that_tests_notice_are_told_from_those_that_survive(tree: Tree) -> None:
    sums = tree.root / "aether_emu/sums.py"
    assert tree.mutate() == (2, "mutate: no file of aether_emu changed: name files or folders, or --since\n")
    sums.write_text(sums.read_text() + "\n\ndef double(a):\n    return a * 2\n")  # changed, and no test
    status, output = tree.mutate("-n", "9", "--jobs", "1")
    assert status == 1
    assert "1 of 2 bugs noticed (50 %)" in output
    assert "noticed  aether_emu/sums.py:2" in output
    assert "SURVIVED aether_emu/sums.py:6" in output
    assert sums.read_text().endswith("a * 2\n"), "the work tree itself is never changed"
    (tree.root / "tests/test_double.py").write_text(
        "from aether_emu.sums import double\n\n\ndef test_double():\n    assert double(4) == 8\n"
    )
    tree.git("add", ".")
    status, output = tree.mutate("-n", "9", "--jobs", "1", "aether_emu")
    assert (status, output.splitlines()[-1]) == (0, "2 of 2 bugs noticed (100 %)")


def test_ctrl_c_ends_the_tests_that_run_and_leaves_no_copy(tree: Tree) -> None:
    """The test of a bug hangs, and says so: only whoever ends it ends."""
    os.mkfifo(tree.root / "hanging")
    command = [str(tree.root / "scripts/mutate"), "-n", "1", "aether_emu"]
    (tree.root / "tests/test_sums.py").write_text(
        "from aether_emu.sums import add\n\n\ndef test_add():\n"
        "    if add(2, 3) != 5:\n"
        f"        open({str(tree.root / 'hanging')!r}, 'w').close()\n"
        f"        open({str(tree.root / 'hanging')!r}).read()\n"
    )
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        with (tree.root / "hanging").open() as hanging:  # until a test has opened it too
            hanging.read()
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (130, "")
    assert errors == "mutate: interrupted: 0 of 1 bugs were judged\n"
    assert not list((tree.root / ".cache/mutation").glob("copy-*"))
