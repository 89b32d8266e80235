"""How long programs took to compile on this machine, and steps to run, told before they are compiled and run again."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from glcanet_jax import border, report
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

    def known(self, kind: Any) -> float | None:
        """Seconds, the last time; None of a kind that was not seen yet."""
        return self._read().get(_key(kind))

    def told(self, kind: Any) -> str:
        """In words, to be put behind "compiling"; nothing of a kind that was not compiled yet."""
        seconds = self.known(kind)
        return "" if seconds is None else f" (last time: {max(1, round(seconds))} s)"

    @contextlib.contextmanager
    def noting(self, kind: Any) -> Iterator[None]:
        """What is done inside is compiling a program of this kind."""
        began = time.perf_counter()
        yield
        self.note(kind, round(time.perf_counter() - began, 1))

    def note(self, kind: Any, seconds: float) -> None:
        """Remember what a kind took."""
        if self._path is None:
            return
        known = self._read()
        known.pop(_key(kind), None)
        last = dict(list(known.items())[1 - KEPT :])
        with contextlib.suppress(OSError, UserError):  # a full disk, say
            report.write_json(self._path, last | {_key(kind): seconds})


@contextlib.contextmanager
def compiling(what: str, kind: Any) -> Iterator[str]:
    """Say in one line that ``what`` is compiled inside, and note how long that takes; gives how long it took the last time, in words."""
    durations = Durations()
    last_time = durations.told(kind)
    print(f"{what}{last_time}", flush=True)
    with durations.noting(kind):
        yield last_time


def predicting(config: Any, predictor: Any, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
    """The kind of the programs of a network of a configuration that predicts: for images of a type, and contexts of a size."""
    parts = {name: asdict(getattr(config, name)) for name in ("model", "views")}
    size = predictor.context_shape(context)
    own = {"computes": predictor.engine.dtype} | predictor.engine.identity()
    return parts | own | {"batch": predictor.batch, "turns": len(predictor.turns), "of": [str(dtype), *size]}


def _key(kind: Any) -> str:
    told = json.dumps([kind, device_name(), jax.device_count(), jax.__version__], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
