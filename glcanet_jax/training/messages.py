"""What libraries say while a run trains goes to a file of its folder: warnings are not for the lines between bars."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# XLA asks for a bug report where a program compiles for minutes, which ours may do on CPUs
ALARM = re.compile(rb"^.*slow_operation_alarm\.cc:.*\n\n?\*+\n.*Very slow compile\?.*\n\*+\n", re.M)


class _Kept(logging.FileHandler):
    """Messages in a file, which are lost where the disk is full: what that means for the run is told by the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def warnings_kept(path: Path) -> Iterator[None]:
    """Append what is logged (by orbax, by absl, by JAX) and warned of inside to a file; errors are seen as well."""
    root = logging.getLogger()
    kept, before = _Kept(path, delay=True), root.handlers[:]
    kept.setFormatter(logging.Formatter(FORMAT))
    seen = logging.StreamHandler()  # the standard error
    seen.setLevel(logging.ERROR)
    root.handlers = [h for h in before if not _on_terminal(h)] + [kept, seen]
    show = warnings.showwarning
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = show
        root.handlers = before
        kept.close()


@contextlib.contextmanager
def errors_kept() -> Iterator[None]:
    """Errors that are logged inside go to the file alone, and what is ignored while memory is cleared is not told: for what
    fails, and is told in other words.
    """
    seen = [h for h in logging.getLogger().handlers if not isinstance(h, logging.FileHandler)]
    nothing, hook = lambda record: False, sys.unraisablehook  # noqa: E731
    for handler in seen:
        handler.addFilter(nothing)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for handler in seen:
            handler.removeFilter(nothing)


def _on_terminal(handler: logging.Handler) -> bool:
    """Whether a handler writes to the standard error: absl's is one that does, by an attribute of its own."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "python_handler", None), "stream", None)
    return stream is not None and stream in (sys.stderr, sys.__stderr__)


@contextlib.contextmanager
def native_kept(path: Path, alone: bool = True) -> Iterator[None]:
    """Append what compiled code (XLA) writes to the standard error inside to a file; what Python writes is seen.

    The descriptor is the process's, so this is for short whiles in which nothing else is to be told. Were the process
    to die in it, its last words would stand in the file. What XLA says of slow compiling is taken out at the end, if this
    process writes to the file ``alone``.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    own = sys.stderr is sys.__stderr__ and sys.stderr is not None
    with (
        path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        open(terminal, "w", buffering=1, encoding=sys.stderr.encoding) as still_seen,
    ):
        begin = os.fstat(file.fileno()).st_size
        os.dup2(file.fileno(), 2)
        if own:
            sys.stderr = still_seen
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            if own:
                sys.stderr = sys.__stderr__
            if alone:
                _leave_out_alarms(path, begin)


def _leave_out_alarms(path: Path, begin: int) -> None:
    """Of what stands in a file from a byte on."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        file.seek(begin)
        said = file.read()
        kept = ALARM.sub(b"", said)
        if kept != said:
            file.seek(begin)
            file.write(kept)
            file.truncate()
