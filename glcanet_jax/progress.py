"""Progress with ETA on a terminal; silent elsewhere."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

ETA_SECONDS = 300.0  # of the speed that the time left is told by; a step may take a minute


class Progress:
    """``with Progress(total, "training", "steps") as p: p.advance(1)``; parts of the work have bars of their own below it."""

    def __init__(
        self, total: int | float, what: str, unit: str, done: int | float = 0, *, within: "Progress | None" = None
    ):
        self._what, self._unit, self._within = what, unit, within
        self._bar = _terminal_bar() if within is None else within._bar
        if self._bar is not None:
            of = f"/{total:.0f} {unit}"
            self._task = self._bar.add_task(what, total=total, completed=done, of=of, told="")

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to see it."""
        return self._bar is not None

    def advance(self, count: int | float = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def set(self, done: int | float, total: int | float) -> None:
        """How much is done, of how much: both may only be known on the way."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, of=f"/{total:.0f} {self._unit}")

    def tell(self, text: str) -> None:
        """Say something behind the bar, in place of what was said before."""
        if self._bar is not None:
            self._bar.update(self._task, told=text)

    def part(self, total: int | float, what: str, unit: str) -> "Progress":
        """A bar below this one, there as long as its work is under way."""
        return Progress(total, what, unit, within=self)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Another name for the bar while something else than its work is done."""
        if self._bar is None:
            yield
            return
        self._bar.update(self._task, description=what)
        try:
            yield
        finally:
            self._bar.update(self._task, description=self._what)

    def __enter__(self) -> "Progress":
        if self._bar is not None and self._within is None:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is None:
            return
        if self._within is None:
            self._bar.stop()
            self._bar.console.file.close()
        else:
            self._bar.remove_task(self._task)


def _terminal_bar() -> Any:
    """Rich's bar on the terminal that the standard error is; None if it is none."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}{task.fields[of]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    # a descriptor of its own: the bar stays where it is when what others write to the standard error goes elsewhere
    terminal = open(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding)
    return Bar(
        *columns,
        console=Console(file=terminal),
        speed_estimate_period=ETA_SECONDS,
        redirect_stdout=sys.stdout.isatty(),  # else it is a file, and what is printed belongs there
    )
