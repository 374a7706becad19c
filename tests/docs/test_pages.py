"""What the README and the pages of docs/ show is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, RUN, furnish, run, session

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
SHOWN = {"text", "toml", "yaml", "json", "c", "{.python}"}  # nothing runs them; the last has files of ours
FENCE = re.compile(r"^ *```(\S*)", re.MULTILINE)
SKIP = re.compile(r"<!--\s*skip\b.*?-->", re.DOTALL)


def languages(page: Path) -> list[str]:
    """The language of each code block, in order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))[::2]


RUNNING = [
    name for name, page in zip(NAMES, PAGES, strict=True) if any(kind in RUN for kind in languages(page))
]


@pytest.mark.parametrize("name", RUNNING)
def test_what_a_page_shows_happens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    ran, reasons = run(ROOT / name, tmp_path)
    assert ran + len(reasons) >= sum(kind in RUN for kind in languages(ROOT / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_does_not_run_says_why(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for skip in SKIP.findall(text):
        assert re.fullmatch(r'<!-- skip: next "[^"]{20,}" -->', skip), skip


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_of_a_language_that_is_run_or_only_shown(name: str) -> None:
    assert set(languages(ROOT / name)) <= {*RUN, *SHOWN}


PAGE = """\
```console
$ echo one; echo two >&2
one
two
$ printf 'a\\nb\\nc\\n'
a
...
c
$ false
$ echo $?
1
```

```python
number = 6
```

```pycon
>>> number * 7
42
```

<!-- skip: next "there is no such command anywhere" -->
```console
$ no-such-command
```
"""


def test_a_page_runs_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    ran, reasons = run(tmp_path / "page.md", tmp_path)
    assert (ran, reasons) == (3, ["there is no such command anywhere"])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("\na\n...\nc", "\na\n...\nd"),
        ("$ false\n$ echo $?", "$ false\n$ echo $? now"),
        ("$ echo one;", "$ echo one; exit 3;"),
        ("number = 6", "number = 7"),
        ("number = 6", "def test_six():\n    assert 6 == 7"),
        ("42", "43"),
        ("<!-- skip: next", "<!-- keep: next"),
    ],
)
def test_a_page_that_is_wrong_is_caught(right: str, wrong: str, tmp_path: Path) -> None:
    assert right in PAGE
    (tmp_path / "page.md").write_text(PAGE.replace(right, wrong))
    with pytest.raises((AssertionError, NameError)):
        run(tmp_path / "page.md", tmp_path)


def test_a_command_goes_on_after_a_backslash() -> None:
    assert session("$ echo a \\\n    b\na b\n$ true\n") == [("echo a \\\n    b", "a b\n"), ("true", "")]
