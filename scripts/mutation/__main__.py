"""Put seeded bugs into the code, one at a time, and list those that no test notices.

A bug (a forgotten flush, a bound off by one, a wrong errno) is put into a copy of the work tree, and the
tests that run its line are run until one fails. Which tests run which line is measured first, once for a
state of the code; that takes several times as long as the tests. What survives is a test to be
written, or a bug that nobody could see: those are explained in tests/survivors.md.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from mutants import Mutant, sample
from tests_of import MapError, measure
from trial import Copy, Verdict, remove

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "mutation"


def main() -> int:
    """Exit status 0 if every bug was noticed, 1 if some survived, 2 for a wrong argument, 130 on Ctrl-C."""
    arguments = _arguments()
    files = _files(arguments.paths, arguments.since)
    if not files:
        print("mutate: no file of aether_emu changed: name files or folders, or --since", file=sys.stderr)
        return 2
    mutants = sample(files, arguments.number, arguments.seed)
    if arguments.list:
        print(*(mutant.name for mutant in mutants), sep="\n")
        return 0
    verdicts: list[Verdict] = []
    try:
        _judge_all(mutants, arguments.jobs, arguments.seconds, verdicts)
    except MapError as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mutate: interrupted: {len(verdicts)} of {len(mutants)} bugs were judged", file=sys.stderr)
        return 130
    verdicts.sort(key=lambda verdict: mutants.index(verdict.mutant))
    survivors = [verdict for verdict in verdicts if not verdict.killed]
    killed = len(verdicts) - len(survivors)
    print(f"{killed} of {len(verdicts)} bugs noticed ({100 * killed / max(len(verdicts), 1):.0f} %)")
    for verdict in survivors:
        print(f"  {verdict.mutant.name}    ({verdict.how}; {verdict.asked} of {verdict.running} tests asked)")
    return 1 if survivors else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: what --since says)")
    parser.add_argument(
        "--since", default="HEAD", help="files that changed since this commit (default: HEAD)"
    )
    parser.add_argument("-n", "--number", type=int, default=20, help="how many bugs (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--seconds", type=float, default=90, help="of tests for one bug (default: 90)")
    parser.add_argument("--list", action="store_true", help="only say which bugs these are")
    return parser.parse_args()


def _files(paths: list[Path], since: str) -> list[tuple[str, Path]]:
    """The package's files among these, by their names in the tree."""
    if paths:
        found = {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
    else:
        changed = subprocess.run(
            ["git", "-C", str(ROOT), "diff", "--name-only", since],
            check=False,
            capture_output=True,
            text=True,
        )
        if changed.returncode:
            sys.exit(f"mutate: {changed.stderr.strip().splitlines()[0]}")
        found = {ROOT / name for name in changed.stdout.splitlines()}
    names = {str(file.resolve().relative_to(ROOT)): file for file in found if file.is_file()}
    return [
        (name, names[name])
        for name in sorted(names)
        if name.startswith("aether_emu/") and name.endswith(".py")
    ]


def _judge_all(mutants: list[Mutant], jobs: int, most: float, verdicts: list[Verdict]) -> None:
    """Add each bug's verdict, told as they come. On Ctrl-C no test goes on, and no copy is left."""
    tests = measure(ROOT, CACHE / _state_of_the_code())
    for test in tests.failing:
        print(f"mutate: {test} fails without any bug; it is left out", file=sys.stderr)
    copies: Queue[Copy] = Queue()
    folders = [CACHE / f"copy-{number}" for number in range(min(jobs, len(mutants)))]
    made = []

    def judge(mutant: Mutant) -> None:
        copy = copies.get()
        try:
            verdict = copy.judge(mutant, tests.tests(mutant.path, mutant.line), tests.seconds, most)
        finally:
            copies.put(copy)
        if verdict is None:
            return
        verdicts.append(verdict)
        print("noticed " if verdict.killed else "SURVIVED", mutant.name, f"({verdict.how})", flush=True)

    try:
        for folder in folders:
            made.append(Copy(ROOT, folder))
            copies.put(made[-1])
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for future in [pool.submit(judge, mutant) for mutant in mutants]:
                    future.result()
            except BaseException:
                for copy in made:
                    copy.end()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for folder in folders:
            remove(ROOT, folder)


def _state_of_the_code() -> str:
    """A name for what the package and its tests are now; the map of another state is no use."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "aether_emu", "tests", "guest"],
        check=True,
        capture_output=True,
    )
    digest = hashlib.sha256()
    for name in listed.stdout.split(b"\0"):
        path = ROOT / name.decode()
        if path.is_file():
            digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return f"map-{digest.hexdigest()[:16]}"


if __name__ == "__main__":
    sys.exit(main())
