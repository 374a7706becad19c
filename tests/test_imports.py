"""The direction of imports: a module knows its own folder and the rows above it, never a row below.

`violations` reads the source of a package, imports inside functions and under TYPE_CHECKING included.
It judges the real package, and small invented ones to show that it finds what it should.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aether_emu

PACKAGE = "aether_emu"

# The rows of the layer map in CONTRIBUTING.md, the top first. Folders in one row don't know each other.
# `ext` and `inject` have their places here already, but no folder yet.
ROWS = (
    ("ground",),
    ("arch",),
    ("machine",),
    ("mm",),
    ("policy",),
    ("ext",),
    ("linux",),
    ("assembly",),
    ("verify", "inject", "observe", "litmus"),
    ("explore",),
    ("cli",),
)
ROW_OF = {folder: number for number, row in enumerate(ROWS) for folder in row}
# The modules beside the ground that wire everything.
ASSEMBLY = {"computer", "equipment", "grants", "isas", "system", "state", "tables"}
SPECIFICATION = f"{PACKAGE}.verify.spec"
ISA_WORDS = ("x86", "arm64", "aarch64", "riscv")


def modules(root: Path) -> dict[str, Path]:
    """Each module of the package at `root` by its dotted name; a folder has the name of its `__init__`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join((PACKAGE, *parts)).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST, module: str, is_folder: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that the source imports, wherever in it.

    `from a import b` gives `a.b`, for b may be a module. A literal name given to `import_module` or
    `__import__` counts too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                del above[len(above) - node.level + is_folder :]
                base = ".".join([*above, base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def folder_of(name: str) -> str:
    """The folder in the layer map that a dotted name inside the package belongs to."""
    first = name.split(".")[1]
    if first in ASSEMBLY:
        return "assembly"
    if first == "__main__":  # the command by another name
        return "cli"
    return first if first in ROW_OF else "ground"


def objection(module: str, name: str, known: dict[str, Path]) -> str | None:
    """Why `module` may not import `name`, or None if it may."""
    here = folder_of(module)
    if within(name, "unicorn") and here != "machine":
        return "only machine/ imports unicorn"
    if here in ("mm", "policy") and any(word in name for word in ISA_WORDS):
        return f"{here}/ must not name an ISA"
    if not within(name, PACKAGE):
        return None
    if ".".join(name.split(".")[:2]) not in known.keys() - {PACKAGE}:
        return None if here == "cli" else "only cli/ may use the public face"
    there = folder_of(name)
    if within(module, SPECIFICATION) and not (there == "ground" or within(name, SPECIFICATION)):
        return "verify/spec/ knows the ground only, so that it shares nothing with what it judges"
    if here == there == "arch":
        ours, theirs = (isa_of(dotted, known) for dotted in (module, name))
        return f"arch/{ours}/ must not know arch/{theirs}/" if ours and theirs and ours != theirs else None
    if here != there and ROW_OF[there] >= ROW_OF[here]:
        return f"{here} is not below {there}"
    return None


def isa_of(name: str, known: dict[str, Path]) -> str:
    """`x86_64` of `aether_emu.arch.x86_64.format`; nothing for what the ISAs share."""
    parts = name.split(".")
    is_folder = known.get(".".join(parts[:3]), Path()).name == "__init__.py"
    return parts[2] if is_folder and len(parts) > 2 else ""


def violations(root: Path) -> list[str]:
    """A line for each import below `root` that the layer map forbids and each folder that it lacks."""
    known = modules(root)
    found = [f"{path.name}/: not in the layer map" for path in sorted(root.iterdir()) if is_stray(path)]
    for module, path in known.items():
        if module == PACKAGE:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, name in sorted(imported(tree, module, path.name == "__init__.py")):
            if reason := objection(module, name, known):
                found.append(f"{path.relative_to(root)}:{line}: imports {name}: {reason}")
    return found


def is_stray(path: Path) -> bool:
    return path.is_dir() and path.name != "__pycache__" and path.name not in ROW_OF


def test_every_import_of_the_package_points_up_the_layer_map() -> None:
    assert violations(Path(aether_emu.__file__).parent) == []


def test_the_package_is_read_at_all() -> None:
    known = modules(Path(aether_emu.__file__).parent)
    assert {"aether_emu", "aether_emu.config", "aether_emu.clock"} <= known.keys()
    tree = ast.parse(known["aether_emu.clock"].read_text())
    assert "aether_emu.config.ClockCosts" in {name for _, name in imported(tree, "aether_emu.clock", False)}


# An invented package in which every import is allowed; each case below puts one file into it.
TREE = {
    "__init__.py": "from aether_emu.cli.main import main",
    "errors.py": "import unicorns",
    "config.py": "from aether_emu.errors import AetherError\nfrom . import errors",
    "system.py": "import aether_emu.state\nimport aether_emu.linux.process",
    "state.py": "from aether_emu import system",
    "arch/__init__.py": "from aether_emu.arch.x86_64.format import FORMAT",
    "arch/flags.py": "",
    "arch/x86_64/__init__.py": "",
    "arch/x86_64/format.py": "from aether_emu.arch.flags import PageFlags\nfrom .registers import CR3",
    "arch/x86_64/registers.py": "",
    "arch/arm64/__init__.py": "",
    "arch/arm64/format.py": "from .. import flags",
    "machine/__init__.py": "",
    "machine/cpu.py": "import unicorn\nfrom aether_emu.arch.arm64 import format",
    "mm/__init__.py": "",
    "mm/page.py": "from aether_emu.arch import flags\nfrom aether_emu.machine.cpu import run",
    "policy/__init__.py": "",
    "linux/__init__.py": "",
    "linux/process.py": "from aether_emu.arch.x86_64 import registers\nfrom aether_emu.mm import page",
    "verify/__init__.py": "from aether_emu.verify.spec import walker",
    "verify/spec/__init__.py": "",
    "verify/spec/walker.py": "from aether_emu import errors\nfrom aether_emu.verify.spec import entry",
    "verify/spec/entry.py": "",
    "observe/__init__.py": "",
    "cli/__init__.py": "",
    "cli/main.py": "from aether_emu import __version__, system, observe",
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_an_obedient_package_has_no_violation(tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, TREE)) == []


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("errors.py", "from aether_emu.arch import flags", "ground is not below arch"),
        ("arch/flags.py", "import aether_emu.machine.cpu", "arch is not below machine"),
        ("machine/cpu.py", "from aether_emu.mm.page import PageTable", "machine is not below mm"),
        ("mm/page.py", "from aether_emu.linux import process", "mm is not below linux"),
        ("mm/page.py", "from ..policy import aslr", "mm is not below policy"),
        ("policy/__init__.py", "from .. import system", "policy is not below assembly"),
        ("linux/process.py", "import aether_emu.system", "linux is not below assembly"),
        ("state.py", "from aether_emu.observe import trace", "assembly is not below observe"),
        ("observe/__init__.py", "from aether_emu.verify import spec", "observe is not below verify"),
        ("verify/__init__.py", "from aether_emu.cli import main", "verify is not below cli"),
        ("linux/process.py", "def f():\n    import aether_emu.cli.main", "linux is not below cli"),
        (
            "linux/process.py",
            "if TYPE_CHECKING:\n    from aether_emu import state",
            "linux is not below assembly",
        ),
        ("mm/page.py", 'import_module("aether_emu.linux.process")', "mm is not below linux"),
        (
            "arch/x86_64/format.py",
            "from aether_emu.arch.arm64 import format",
            "arch/x86_64/ must not know arch/arm64/",
        ),
        (
            "arch/arm64/format.py",
            "from ..x86_64.registers import CR3",
            "arch/arm64/ must not know arch/x86_64/",
        ),
        ("arch/arm64/__init__.py", "from .. import x86_64", "arch/arm64/ must not know arch/x86_64/"),
        ("mm/page.py", "from aether_emu.arch.x86_64 import format", "mm/ must not name an ISA"),
        ("mm/page.py", "from aether_emu.arch import arm64", "mm/ must not name an ISA"),
        ("policy/__init__.py", "from aether_emu.machine import unicorn_x86", "policy/ must not name an ISA"),
        ("linux/process.py", "import unicorn", "only machine/ imports unicorn"),
        ("mm/page.py", "from unicorn.unicorn import Uc", "only machine/ imports unicorn"),
        ("verify/spec/walker.py", "from aether_emu.arch import flags", "verify/spec/ knows the ground only"),
        ("verify/spec/walker.py", "import aether_emu.mm.page", "verify/spec/ knows the ground only"),
        ("verify/spec/entry.py", "from aether_emu import verify", "verify/spec/ knows the ground only"),
        ("mm/page.py", "from aether_emu import Machine", "only cli/ may use the public face"),
        ("mm/page.py", "import aether_emu", "only cli/ may use the public face"),
        ("plugins/__init__.py", "", "plugins/: not in the layer map"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, source: str, reason: str) -> None:
    found = violations(write_tree(tmp_path, {**TREE, file: source}))
    assert len(found) == 1, found
    assert reason in found[0]
    assert Path(file).parts[0] in found[0]


def circles(root: Path, folder: str) -> list[list[str]]:
    """The groups of modules of a folder of the layer map that import one another, however far around.

    Importing a module does not count as importing the `__init__` of its folder.
    """
    known = modules(root)
    known = {name: known[name] for name in known if name != PACKAGE and folder_of(name) == folder}
    leads: dict[str, set[str]] = {}
    for module, path in known.items():
        names = imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py")
        found = {name if name in known else name.rpartition(".")[0] for _, name in names}
        leads[module] = found & known.keys() - {module}
    reach = {module: _reachable(module, leads) for module in leads}
    groups = {frozenset(other for other in reach[one] if one in reach[other]) for one in reach}
    return sorted(sorted(group) for group in groups if group)


def _reachable(start: str, leads: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    line = list(leads[start])
    while line:
        one = line.pop()
        if one not in found:
            found.add(one)
            line += leads[one]
    return found


@pytest.mark.parametrize("folder", ROW_OF)
def test_no_module_of_a_folder_imports_its_way_back_to_itself(folder: str) -> None:
    assert circles(Path(aether_emu.__file__).parent, folder) == []


def test_a_circle_is_found_however_it_is_hidden(tmp_path: Path) -> None:
    files = {
        "linux/a.py": "if TYPE_CHECKING:\n    from aether_emu.linux import b",
        "linux/b.py": "def f():\n    from .calls.c import x",
        "linux/calls/__init__.py": "",
        "linux/calls/c.py": "import aether_emu.linux.a",
        "linux/d.py": "from aether_emu.linux.a import y",
    }
    names = [f"{PACKAGE}.linux.{name}" for name in ("a", "b", "calls.c")]
    assert circles(write_tree(tmp_path, {**TREE, **files}), "linux") == [names]
    assert circles(write_tree(tmp_path, {"linux/b.py": ""}), "linux") == []


def test_a_circle_of_modules_beside_the_folders_is_found(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {**TREE, "errors.py": "from aether_emu.config import Config"})
    assert circles(root, "ground") == [[f"{PACKAGE}.config", f"{PACKAGE}.errors"]]
    assert circles(root, "assembly") == [[f"{PACKAGE}.state", f"{PACKAGE}.system"]]
