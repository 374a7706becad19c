"""The scripts work from a bare checkout, are quick and silent the second time, and tell the truth.

They run in invented trees whose lock file names one small wheel, so no network is needed.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")

# The tests share an environment that takes seconds to make, so one test process runs them all.
pytestmark = pytest.mark.xdist_group("scripts")

MAIN = """\
import sys, tiny
def main() -> int:
    print(sys.argv[1:], sys.stdin.read(), tiny.ANSWER)
    print("guest's stderr", file=sys.stderr)
    return 42
"""
FIRST_USE = "aether: first use: installing 1 packages into .venv\n"
CHANGED = "aether: the locked packages changed: installing 1 packages into .venv\n"


def make_wheel(folder: Path) -> str:
    """A package `tiny` 1.0 with one module; the SHA-256 of its wheel."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "ANSWER = 6 * 7\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in archive.namelist()))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


class Tree:
    """A work tree with our scripts, and an `aether` that says what it was given and exits with 42."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "aether_emu/cli").mkdir(parents=True)
        (root / "aether_emu/cli/main.py").write_text(MAIN)
        for name in ("scripts", ".ci"):
            shutil.copytree(REPOSITORY / name, root / name)
        self.sha256 = make_wheel(root)
        self.lock(self.sha256)

    def lock(self, sha256: str, comment: str = "") -> None:
        for name in LOCKS:
            (self.root / name).write_text(f"# {comment}\ntiny==1.0 --hash=sha256:{sha256}\n")

    def environment(self, path: str) -> dict[str, str]:
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.root.as_uri(), "PIP_CONFIG_FILE": os.devnull}
        return {**os.environ, **pip, "PATH": path}

    def start(self, *arguments: str, script: Path | None = None, path: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [script or self.root / "scripts/aether", *arguments],
            env=self.environment(path or os.environ["PATH"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def aether(self, *arguments: str, script: Path | None = None, path: str = "") -> tuple[int, str, str]:
        """Exit status, stdout and stderr of `scripts/aether`, or of another `script`."""
        process = self.start(*arguments, script=script, path=path)
        out, err = process.communicate("input")
        return process.returncode, out, err


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, list[tuple[int, str, str]]]:
    """A tree after two first uses at the same time, on top of a third that was killed; what the two said.

    Making an environment takes seconds: here it is done once, and other tests copy it.
    """
    tree = Tree(tmp_path_factory.mktemp("a work tree"))
    (tree.root / ".venv/bin").mkdir(parents=True)
    (tree.root / ".venv/.unfinished").touch()
    (tree.root / ".venv/bin/python").symlink_to(sys.executable)
    (tree.root / ".venv/left-over").touch()
    both = [tree.start("a", f"b {number}") for number in range(2)]
    said = [process.communicate("input") for process in both]
    return tree, [(process.returncode, *texts) for process, texts in zip(both, said, strict=True)]


@pytest.fixture
def tree(used: tuple[Tree, list[tuple[int, str, str]]]) -> Tree:
    return used[0]


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A PATH with what the scripts use, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "cmp", "dirname", "readlink"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


def test_an_interrupted_first_use_and_two_at_once_end_in_one_whole_environment(
    used: tuple[Tree, list[tuple[int, str, str]]],
) -> None:
    tree, results = used
    assert [status for status, _, _ in results] == [42, 42]
    assert [out for _, out, _ in results] == ["['a', 'b 0'] input 42\n", "['a', 'b 1'] input 42\n"]
    said = [err.removesuffix("guest's stderr\n") for _, _, err in results]
    waiting = "aether: waiting for another first use to finish\n"
    assert FIRST_USE in said
    assert "".join(said).replace(waiting, "") == FIRST_USE
    assert not (tree.root / ".venv/left-over").exists()


def test_the_second_use_is_silent_and_needs_no_python_but_its_own(tree: Tree, tools: str) -> None:
    assert tree.aether("x", path=tools) == (42, "['x'] input 42\n", "guest's stderr\n")


def test_a_link_to_the_script_and_the_installed_command_do_the_same(tree: Tree, tmp_path: Path) -> None:
    link = tmp_path / "aether"
    link.symlink_to(tree.root / "scripts/aether")
    for script in (link, tree.root / ".venv/bin/aether"):
        assert tree.aether("x", script=script) == (42, "['x'] input 42\n", "guest's stderr\n")


def test_a_moved_work_tree_still_works(tree: Tree, tools: str) -> None:
    elsewhere = tree.root.rename(tree.root.with_name("elsewhere"))
    try:
        result = tree.aether("x", script=elsewhere / "scripts/aether", path=tools)
    finally:
        elsewhere.rename(tree.root)
    assert result == (42, "['x'] input 42\n", "guest's stderr\n")


def test_a_changed_lock_file_is_installed(tree: Tree) -> None:
    tree.lock(tree.sha256, comment="changed")
    assert tree.aether() == (42, "[] input 42\n", CHANGED + "guest's stderr\n")
    assert tree.aether() == (42, "[] input 42\n", "guest's stderr\n")


def test_without_python_there_is_one_line(tmp_path: Path, tools: str) -> None:
    tree = Tree(tmp_path / "tree")
    assert tree.aether(path=tools) == (1, "", "aether: needs Python 3.11 or later; there is no python3\n")
    test = tree.root / "scripts/test"
    assert tree.aether(path=tools, script=test) == (
        1,
        "",
        "test: needs Python 3.11 or later; there is no python3\n",
    )


@pytest.fixture
def interrupted_at_once(tree: Tree) -> Iterator[Tree]:
    """The tree with a command that meets Ctrl-C before it has asked for it."""
    path = tree.root / "aether_emu/cli/main.py"
    path.write_text(
        "import os, signal\n"
        "def main() -> int:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(signal.SIGINT in signal.sigpending())\n"
        "    return 42\n"
    )
    yield tree
    path.write_text(MAIN)


@pytest.mark.parametrize("script", ["scripts/aether", ".venv/bin/aether"])
def test_ctrl_c_waits_until_the_command_asks_for_it(interrupted_at_once: Tree, script: str) -> None:
    """Python would show where it was interrupted while it starts."""
    tree = interrupted_at_once
    can = subprocess.run(["/usr/bin/env", "--block-signal=INT", "true"], capture_output=True, check=False)
    status, output, _ = tree.aether(script=tree.root / script)
    assert ((status, output) == (42, "True\n")) == (can.returncode == 0)


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", REPOSITORY / "scripts/bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_python_is_one_line(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "aether", LOCKS[0]])
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(sys, "version", "3.10.4 (main)")
    monkeypatch.setenv("PATH", "")
    assert bootstrap.main() == 1
    assert capsys.readouterr() == ("", "aether: needs Python 3.11 or later; python3 is 3.10.4\n")


def test_an_old_python_hands_over_to_the_newest_that_is_there(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("python3.11", "python3.13", "python3.9"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "aether", LOCKS[0]])
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    monkeypatch.setenv("PATH", str(tmp_path))

    def execv(python: str, arguments: list[str]) -> None:
        assert arguments[0] == python
        sys.exit(" ".join(arguments))

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit, match=f"^{tmp_path}/python3.13 bootstrap.py aether {LOCKS[0]}$"):
        bootstrap.main()


def use_tree(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let `bootstrap.main()` work on the tree at `root`, as if `scripts/aether` had called it."""
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "aether", LOCKS[0]])
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    monkeypatch.setattr(bootstrap, "UNFINISHED", root / ".venv/.unfinished")


def test_a_python_without_venv_is_one_line(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / LOCKS[0]).write_text("")
    use_tree(bootstrap, monkeypatch, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bootstrap.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].endswith(
        "cannot make virtual environments; install its venv module (python3-venv)"
    )
    assert not (tmp_path / ".venv").exists()


@pytest.fixture
def copied(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tree: Tree, tmp_path: Path
) -> tuple[Path, list[str]]:
    """A copy of a used tree that `bootstrap.main()` works on, and a log of the environments that it makes.

    Making one is copying the used tree's, less the package.
    """
    root = tmp_path / "copy"
    made: list[str] = []

    def copy_venv() -> None:
        made.append("made")
        shutil.rmtree(root / ".venv", ignore_errors=True)
        shutil.copytree(
            tree.root / ".venv", root / ".venv", symlinks=True, ignore=shutil.ignore_patterns("tiny*", *LOCKS)
        )

    shutil.copytree(tree.root, root, symlinks=True, ignore=shutil.ignore_patterns("tiny*.dist-info"))
    use_tree(bootstrap, monkeypatch, root)
    monkeypatch.setattr(bootstrap, "make_venv", copy_venv)
    for name, value in tree.environment(os.environ["PATH"]).items():
        monkeypatch.setenv(name, value)
    return root, made


def test_a_lost_interpreter_is_replaced(
    bootstrap: ModuleType, copied: tuple[Path, list[str]], tree: Tree, tools: str
) -> None:
    root, made = copied
    (root / ".venv/bin/python").unlink()
    (root / ".venv/bin/python").symlink_to("/nowhere/python3")
    status, _, err = tree.aether(script=root / "scripts/aether", path=tools)
    assert (status, err) == (1, "aether: needs Python 3.11 or later; there is no python3\n")
    assert bootstrap.main() == 0
    assert made == ["made"]
    assert tree.aether("x", script=root / "scripts/aether", path=tools)[:2] == (42, "['x'] input 42\n")


def test_a_wrong_hash_is_refused_and_the_next_use_starts_afresh(
    bootstrap: ModuleType, copied: tuple[Path, list[str]], tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    root, made = copied
    right = (root / LOCKS[0]).read_text()
    (root / LOCKS[0]).write_text(right.replace(tree.sha256, "0" * 64))
    assert bootstrap.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in err
    assert "Traceback" not in err
    assert err.endswith("\naether: installing the packages failed, see above\n")
    assert made == []
    (root / LOCKS[0]).write_text(right)
    assert bootstrap.main() == 0
    assert capsys.readouterr() == ("", FIRST_USE)
    assert made == ["made"]
    assert bootstrap.main() == 0
    assert capsys.readouterr() == ("", "")


CHECKS = ("ruff format", "ruff check", "mypy", "pytest")


@pytest.fixture
def checked(tmp_path: Path) -> Tree:
    """A tree whose environment's Python notes what it should run and succeeds, unless `fails` names it."""
    tree = Tree(tmp_path / "tree")
    (tree.root / ".venv/bin").mkdir(parents=True)
    shutil.copyfile(tree.root / LOCKS[1], tree.root / ".venv" / LOCKS[1])
    python = tree.root / ".venv/bin/python"
    python.write_text(
        """\
        #!/bin/sh
        echo "$@" >>log
        while read -r part; do case "$*" in *"$part"*) exit 3 ;; esac; done <fails
        """.replace(8 * " ", "")
    )
    python.chmod(0o755)
    (tree.root / "fails").touch()
    return tree


def test_the_test_script_runs_every_check_and_passes_arguments_to_pytest(checked: Tree) -> None:
    script = checked.root / "scripts/test"
    assert checked.aether("tests/mm", "-k", "a b", script=script) == (0, "", "")
    log = (checked.root / "log").read_text().splitlines()
    assert [check for check, line in zip(CHECKS, log, strict=True) if check in line] == list(CHECKS)
    assert "--check" in log[0]
    assert "-m not slow" in log[3]
    assert log[3].endswith("tests/mm -k a b")


@pytest.mark.parametrize("failing", CHECKS)
def test_any_failing_check_fails_the_run_and_the_others_still_run(checked: Tree, failing: str) -> None:
    (checked.root / "fails").write_text(f"{failing}\n")
    for script in ("scripts/test", ".ci/run"):
        (checked.root / "log").unlink(missing_ok=True)
        status, _, _ = checked.aether(script=checked.root / script)
        assert status != 0
        assert len((checked.root / "log").read_text().splitlines()) == len(CHECKS)


APT_GET = """\
#!/bin/sh
here=${APT_CONFIG%/*}
cat "$APT_CONFIG" >"$here/../../config"
echo "$@" >>"$here/../../log"
case $1 in
update) [ -z "$OFFLINE" ] && touch "$here/state/lists/main_Packages" || echo "W: no server in reach" >&2 ;;
download) touch "$2.deb" ;;
install) touch "$here/cache/archives/coreutils.deb" ;;
esac
"""
DPKG_DEB = """\
#!/bin/sh
mkdir -p "$3/bin" && echo "${2##*/}" >"$3/bin/content"
"""


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`fetch_programs` with a cache of its own, on an x86_64 Debian with stand-ins for its commands.

    The one for apt-get notes in the cache what it is called with and the settings that it is given.
    """
    loader = importlib.machinery.SourceFileLoader(
        "fetch_programs", str(REPOSITORY / "scripts/fetch_programs")
    )
    spec = importlib.util.spec_from_loader("fetch_programs", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("OFFLINE", "")
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "HOST", "x86_64")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.setattr(sys, "argv", ["fetch_programs", "static"])
    return module


def asked(module: ModuleType) -> list[str]:
    """What apt-get was called for, a line each."""
    return [str(line) for line in (module.CACHE / "log").read_text().splitlines()]


def test_static_programs_are_fetched_for_both_isas_at_once(fetch: ModuleType) -> None:
    assert fetch.main() == 0
    names = ("update", "download busybox-static:amd64 bash-static:amd64")
    assert asked(fetch) == [*names, "download busybox-static:arm64 bash-static:arm64"]
    for isa, architecture in (("x86_64", "amd64"), ("arm64", "arm64")):
        content = fetch.CACHE / "static" / isa / "bin/content"
        assert content.read_text() == f"busybox-static:{architecture}.deb\n"
    assert fetch.main() == 0
    assert len(asked(fetch)) == 3


def test_fetching_keeps_what_it_writes_out_of_the_hosts_folders(fetch: ModuleType) -> None:
    assert fetch.main() == 0
    settings = (fetch.CACHE / "config").read_text()
    folders = dict(re.findall(r'^Dir::(\S+) "(.*)";$', settings, re.MULTILINE))
    assert folders.pop("Etc::parts") == "/dev/null"
    assert set(folders) == {"State", "State::status", "Cache"}
    assert all(Path(folder).is_relative_to(fetch.CACHE) for folder in folders.values())
    assert "#clear APT::Update;" in settings


def test_other_distributions_give_programs_for_the_hosts_isa_only(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "ubuntu"})
    assert fetch.main() == 0
    assert asked(fetch) == ["update", "download busybox-static:amd64 bash-static:amd64"]
    assert [path.name for path in (fetch.CACHE / "static").iterdir()] == ["x86_64"]


def test_dynamic_programs_are_fetched_for_the_other_isa(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch_programs", "dynamic"])
    assert fetch.main() == 0
    assert asked(fetch)[1].startswith("install --download-only ")
    assert [path.name for path in (fetch.CACHE / "dynamic").iterdir()] == ["arm64"]
    root = fetch.CACHE / "dynamic/arm64"
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "usr/bin/content").read_text() == "coreutils.deb\n"


def test_a_fetch_without_a_server_says_so_and_leaves_nothing(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFFLINE", "yes")
    assert fetch.main() == 1
    assert capsys.readouterr().err == "fetch_programs: W: no server in reach\n"
    assert sorted(path.name for path in fetch.CACHE.iterdir()) == ["config", "log"]


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a lock file."""
    text = (REPOSITORY / name).read_text()
    pins = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]
    return {pin.split("==")[0]: (pin.split("==")[1].split()[0], pin.count("--hash=sha256:")) for pin in pins}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_pin_every_package_for_every_host(name: str) -> None:
    pins = locked(name)
    assert all(hashes for _, hashes in pins.values())
    assert pins["numpy"][1] > 20  # a wheel for each Python, processor and C library
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + (extras["dev"] + extras["docs"] if "dev" in name else [])
    for requirement in wanted:
        package, operator, version = re.split("(==|>=)", requirement)
        assert package in pins, f"{package} is not locked: run scripts/lock"
        assert operator != "==" or pins[package][0] == version, f"{package} is outdated: run scripts/lock"


def test_the_lock_file_for_tests_holds_the_other() -> None:
    assert locked(LOCKS[0]).items() <= locked(LOCKS[1]).items()


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_say_nothing_about_the_host_they_were_made_on(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert not re.search(r"://|file:|^-", text, re.MULTILINE)
    pins = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r"([a-z0-9-]+==|    --hash=sha256:)[0-9a-z.]+( \\)?", line) for line in pins)
    assert set(re.findall(r"\S*/\S*", text)) == {"scripts/lock"}
