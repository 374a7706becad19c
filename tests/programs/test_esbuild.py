"""esbuild: a large static program in Go, whose runtime has threads, timers and a collector of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, run_emulated, run_natively

_PROJECT = {
    "index.ts": """import { greet, type Name } from "./greet";
import twice from "lib";
import data from "./data.json";
enum Color { Red, Green = 5, Blue }
const name: Name = "world";
console.log(greet(name), twice(3), data.items.length, Color.Blue);
export class Foo<T> { #x = 1; constructor(public y: T) {} get x() { return this.#x ?? 0; } }
""",
    "greet.ts": "export type Name = string;\nexport const greet = (n: Name) => `hello ${n}`;\n",
    "data.json": '{"items": [1, 2, 3]}',
    "bad.js": "let x = ;\n",
    "node_modules/lib/index.js": "module.exports = function (x) { return x * 2 };\n",
    "node_modules/lib/package.json": '{"name": "lib", "main": "index.js"}',
}
_COMMANDS = {
    "bundle": ["index.ts", "--bundle"],
    "minified": ["index.ts", "--bundle", "--minify", "--sourcemap=inline", "--target=es2020"],
    "syntax error": ["bad.js"],
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with a package that it needs."""
    for name, text in _PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("command", _COMMANDS)
def test_esbuild_works_as_on_the_host(command: str, isa: str, esbuild: Path, project: Path) -> None:
    arguments = _COMMANDS[command]
    native = run_natively(esbuild / HOST_ISA / "esbuild", arguments, project)
    assert run_emulated(esbuild / isa / "esbuild", arguments, Grants(cwd=project), isa=isa) == native
