"""What a walk over a scene leaves on disk while it is under way: finished blocks, and sums that later blocks go on with."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.errors import UserError

Place = tuple[int, int]  # row and column of a block
JOURNAL = "journal.jsonl"


def _head(fingerprint: dict[str, Any] | None) -> str:
    return json.dumps(fingerprint, sort_keys=True)


def is_of(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether a folder holds the journal of a run with this fingerprint."""
    path = folder / JOURNAL
    if not path.exists():
        return False
    with path.open() as file:
        return file.readline().rstrip("\n") == _head(fingerprint)


class Scratch:
    """A folder with a journal of finished blocks and the edges of blocks that others still need.

    A block is in the journal only when all that it left is on disk, and what it took from others is removed only then: so
    a run killed at any moment goes on with the first block that is not in the journal, and ends with the same bytes.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any] | None = None):
        """Opens the folder's journal if it is of the same ``fingerprint`` (anything that JSON holds), else begins one."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / JOURNAL
        self._head = _head(fingerprint)
        self.done: set[Place] = set()
        kept = b""
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        if lines[0] == self._head.encode():
            kept = b"\n".join(lines[:-1]) + b"\n"  # what follows the last newline was cut short
            self.done = {tuple(json.loads(line)) for line in lines[1:-1]}
        if not kept:
            for stale in self.folder.glob("*.npy"):
                stale.unlink()
            kept = self._head.encode() + b"\n"
        temporary = self._path.with_suffix(".part")
        temporary.write_bytes(kept)
        os.replace(temporary, self._path)
        self._journal = self._path.open("ab")

    @classmethod
    @contextlib.contextmanager
    def temporary(cls) -> Iterator["Scratch"]:
        """One that nothing is left of."""
        with tempfile.TemporaryDirectory(prefix="glcanet_jax-") as folder, cls(Path(folder)) as scratch:
            yield scratch

    def _file(self, side: str, place: Place) -> Path:
        return self.folder / f"{side}_{place[0]}_{place[1]}.npy"

    def save_edge(self, side: str, place: Place, values: np.ndarray) -> None:
        """Keep the sums that the block at ``place`` has beyond its ``side`` ("right" or "bottom"); whole or not at all."""
        path = self._file(side, place)
        temporary = path.with_suffix(".part")
        try:
            with temporary.open("wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); free space, then run again") from error

    def load_edge(self, side: str, place: Place) -> np.ndarray | None:
        """Those sums; None where that block left none."""
        path = self._file(side, place)
        return np.load(path) if path.exists() else None

    def commit(self, place: Place) -> None:
        """Note a block as finished, and drop the edges that it took."""
        try:
            self._journal.write(json.dumps(place).encode() + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise UserError(
                f"{self._path} could not be written ({error.strerror}); free space, then run again"
            ) from error
        self.done.add(place)
        row, column = place
        for side, giver in (("right", (row, column - 1)), ("bottom", (row - 1, column))):
            self._file(side, giver).unlink(missing_ok=True)

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # what counts was flushed by commit
            self._journal.close()
