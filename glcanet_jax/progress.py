"""Progress with ETA on a terminal; silent elsewhere."""

import sys


class Progress:
    """``with Progress(total, "training", "steps") as p: p.advance(1)``."""

    def __init__(self, total: int | float, what: str, unit: str, done: int | float = 0):
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=total, completed=done)

    def advance(self, count: int | float = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()
