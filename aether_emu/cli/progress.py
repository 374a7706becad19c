"""How far a command is, on stderr if that is a terminal."""

from __future__ import annotations


class Progress:
    """A bar for each phase; `what` is the first, of `count` parts if that is known."""

    def __init__(self, what: str, count: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bars = {what: self._progress.add_task(what, total=count)}

    def __enter__(self) -> Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, phase: str, done: int) -> None:
        """So much of a phase is done."""
        if phase not in self._bars:
            self._bars[phase] = self._progress.add_task(phase, total=None)
        self._progress.update(self._bars[phase], completed=done)
