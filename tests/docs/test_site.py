"""The site builds strictly by scripts/docs, and shows what it is made from."""

from __future__ import annotations

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aether_emu
from aether_emu import Machine
from tests.docs.blocks import ROOT, environment

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [ROOT / "scripts" / "docs", "--site-dir", folder],
        cwd="/",
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def words(page: Path) -> str:
    """What a page of the site says, without its markup."""
    text = re.sub(r"<(script|svg)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


# The module's tests share one building, so they stay in one process of a parallel run.
pytestmark = pytest.mark.xdist_group("site")


def test_every_page_and_every_picture_is_in_the_site(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file(), page
    for picture in DOCS.rglob("*.svg"):
        assert (site / picture.relative_to(DOCS)).is_file(), picture


def test_the_reference_shows_every_option_and_every_method(site: Path) -> None:
    command = words(site / "reference" / "command.html")
    assert "Sentinel" not in command
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "aether_emu" / "cli").glob("*.py"))
    options = set(re.findall(r'"(--[a-z][a-z0-9-]+)[^"]*"', source))
    assert len(options) > 25
    assert [option for option in sorted(options) if option not in command] == []
    python = words(site / "reference" / "python.html")
    assert Machine.run.__doc__ is not None
    assert Machine.run.__doc__.split(".")[0].replace("`", "") in python


def test_the_reference_describes_every_public_name(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    described = set(re.findall(r'id="(aether_emu[\w.]*)"', page))
    for name in aether_emu.__all__:
        value = getattr(aether_emu, name)
        found = value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{value.__qualname__}"
        members = [one for one in described if one.startswith(f"{found}.")]
        assert found in described or (inspect.ismodule(value) and members), name


def test_the_examples_are_shown_with_their_code(site: Path) -> None:
    shown = words(site / "examples" / "index.html")
    for example in (DOCS / "examples").glob("*.py"):
        assert example.read_text(encoding="utf-8").strip() in shown, example


def test_a_page_needs_nothing_from_another_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        needed = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert needed == [], page


@pytest.mark.parametrize("wrong", ["[gone](gone.md)", "[here](#nowhere)", "[abroad](/index.md)"])
def test_a_link_that_leads_nowhere_fails_the_building(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# A page\n\n{wrong}\n")
    settings = tmp_path / "mkdocs.yml"
    inherited = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: pages\nsite_dir: site\n"
    settings.write_text(f"{inherited}nav: [index.md]\ntheme: {{name: mkdocs}}\nplugins: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", settings],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("WARNING") == 1, done.stderr
