"""The list of calls says what the modules have, and a module is imported when one of its calls is made."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import aether_emu
from aether_emu.linux import calls

ROOT = Path(__file__).parents[3]
FAMILIES = Path(calls.__file__).parent
LOADED = """
import os, sys
from aether_emu.cli.main import main
sys.argv = ["aether", "run", "guest/bin/x86_64/hello"]
end = os._exit
def tell(status):
    print(*(name for name in sys.modules if name.startswith("aether_emu")), sep="\\n", flush=True)
    end(status)
os._exit = tell
main()
"""


def functions_of(family: str) -> set[str]:
    """The calls that a module serves, its own functions and those that it imports."""
    module = import_module(f"{calls.__name__}.{family}")
    return {name.removeprefix("sys_") for name in vars(module) if name.startswith("sys_")}


def test_each_call_is_listed_with_the_module_that_has_it() -> None:
    for family, names in calls.FAMILIES.items():
        assert set(names.split()) == functions_of(family), family


def test_no_module_with_calls_is_left_out_and_none_is_listed_twice() -> None:
    listed = {name for names in calls.FAMILIES.values() for name in names.split()}
    assert sum(len(names.split()) for names in calls.FAMILIES.values()) == len(listed)
    for path in FAMILIES.glob("*.py"):
        if path.stem != "__init__":
            assert functions_of(path.stem) <= listed, path.name


def test_a_run_imports_no_family_whose_calls_it_does_not_make_and_no_sockets() -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    package = aether_emu.__name__
    assert f"{package}.linux.calls.transfer" in told, "it writes"
    rare = {"sockets", "epolling", "polling", "cloning", "executing", "splicing", "xattrs", "timers"}
    assert not {f"{package}.linux.calls.{name}" for name in rare} & set(told)
    assert not [name for name in told if name.startswith(f"{package}.linux.net")]
    assert not {f"{package}.linux.{name}" for name in ("debugging", "watching", "handlers")} & set(told)
