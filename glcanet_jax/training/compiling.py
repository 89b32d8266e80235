"""How long programs took to compile on this machine, told before they are compiled again."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from glcanet_jax import border, runs
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import device_name

KEPT = 200  # programs, the last ones


class Durations:
    """Seconds by kind of program, in a file beside the programs that are kept; without a place for it nothing is known.

    A kind is whatever tells programs apart that take another time: the device, the network, shapes. What is found among the
    kept programs takes seconds, and that is what is told the next time.
    """

    def __init__(self):
        folder = jax.config.jax_compilation_cache_dir
        self._path = Path(folder) / "seconds.json" if folder and Path(folder).is_dir() else None

    def _read(self) -> dict[str, float]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            values = border.read_json(self._path)
        except UserError:  # it is no loss
            return {}
        right = isinstance(values, dict) and all(isinstance(v, int | float) for v in values.values())
        return values if right else {}

    def told(self, kind: Any) -> str:
        """In words, to be put behind "compiling"; nothing of a kind that was not compiled yet."""
        seconds = self._read().get(_key(kind))
        return "" if seconds is None else f" (last time: {max(1, round(seconds))} s)"

    @contextmanager
    def noting(self, kind: Any) -> Iterator[None]:
        """What is done inside is compiling a program of this kind."""
        began = time.perf_counter()
        yield
        if self._path is None:
            return
        known = self._read()
        known.pop(_key(kind), None)
        last = dict(list(known.items())[1 - KEPT :])
        try:
            runs.write_json(self._path, last | {_key(kind): round(time.perf_counter() - began, 1)})
        except (OSError, UserError):  # a full disk, say
            return


def _key(kind: Any) -> str:
    told = json.dumps([kind, device_name(), jax.device_count(), jax.__version__], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
