"""What a walk over a scene leaves on disk while it is under way: finished blocks, and sums that later blocks go on with."""

import contextlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.errors import UserError

Place = tuple[int, int]  # row and column of a block
Edge = tuple[str, Place]  # the side of a block
OWN = "own"  # a block's own sums at the seams of a part, which nobody takes before the parts are put together
SIDES = ("right", "bottom", OWN)
JOURNAL = "journal.jsonl"


def _head(fingerprint: dict[str, Any] | None) -> bytes:
    return json.dumps(fingerprint, sort_keys=True).encode()


def is_of(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether a folder holds the journal of a run with this fingerprint."""
    return _lines(folder / JOURNAL)[0] == _head(fingerprint)


def _line(place: Place, edges: dict[str, int], before: int) -> bytes:
    """A block's line of the journal; ``before`` is the checksum of all lines before it."""
    body = {"block": list(place), "edges": edges}
    return json.dumps(body | {"sum": zlib.crc32(json.dumps(body).encode(), before)}).encode()


def _entry(line: bytes, before: int) -> tuple[Place, dict[str, int]] | None:
    """The block of a line and the checksums of its edges; None of a line that is not as :func:`_line` wrote it."""
    try:
        body = json.loads(line)
        (row, column), edges = body["block"], body["edges"]
        place = int(row), int(column)
        return (place, edges) if line == _line(place, edges, before) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _taker(edge: Edge) -> Place | None:
    """The block that takes an edge."""
    side, (row, column) = edge
    if side == OWN:
        return None
    return (row, column + 1) if side == "right" else (row + 1, column)


def _lines(path: Path) -> list[bytes]:
    """The lines of a journal; one that is empty where there is none."""
    return path.read_bytes().split(b"\n") if path.is_file() and not path.is_symlink() else [b""]


class Scratch:
    """A folder with a journal of finished blocks and the edges of blocks that others still need.

    A block is in the journal only when all that it left is on disk, and what it took from others is removed only then: so
    a run killed at any moment goes on with the first block that is not in the journal, and ends with the same bytes.

    Every line has a checksum of itself and of all before it, and those of the edges that its block left. What follows a line
    that is damaged is not believed; where an edge is then missing or damaged that a block still needs, all begins anew.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any] | None = None):
        """Opens the folder's journal if it is of the same ``fingerprint`` (anything that JSON holds), else begins one."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / JOURNAL
        self.done: set[Place] = set()
        self._left: dict[Edge, int] = {}  # checksums of the edges that are on disk
        self._head, self._sum = _head(fingerprint), 0  # checksum of the journal's lines so far
        self._begin(self._read(self._head))

    def _begin(self, kept: bytes) -> None:
        """Go on writing behind ``kept``."""
        temporary = self._path.with_suffix(".part")
        temporary.write_bytes(kept)
        os.replace(temporary, self._path)
        self._journal = self._path.open("ab")

    def restart(self) -> None:
        """Nothing is finished any more: what was made of the blocks is lost."""
        self._journal.close()
        self.done, self._left, self._sum = set(), {}, zlib.crc32(self._head)
        self._begin(self._head + b"\n")
        for stale in self.folder.glob("*.npy"):
            stale.unlink()

    def _read(self, head: bytes) -> bytes:
        """Take over what the journal says, and return so much of it; its head alone where that cannot be gone on with."""
        first, *lines = _lines(self._path)
        kept, left = [head], {}
        self._sum = zlib.crc32(head)
        for line in lines[:-1] if first == head else ():  # what follows the last newline was cut short
            entry = _entry(line, self._sum)
            if entry is None:
                break
            place, edges = entry
            self.done.add(place)
            left |= {(side, place): checksum for side, checksum in edges.items()}
            self._sum = zlib.crc32(line, self._sum)
            kept.append(line)
        self._left = {edge: checksum for edge, checksum in left.items() if _taker(edge) not in self.done}
        if not self.done or any(self._checksum(edge) != checksum for edge, checksum in self._left.items()):
            self.done, self._left, kept, self._sum = set(), {}, [head], zlib.crc32(head)
        needed = {self._file(*edge) for edge in self._left}
        for stale in set(self.folder.glob("*.npy")) - needed:
            stale.unlink()
        return b"\n".join(kept) + b"\n"

    def _checksum(self, edge: Edge) -> int | None:
        """Of an edge as it is on disk; None where it is not."""
        path = self._file(*edge)
        if path.is_symlink() or not path.is_file():
            return None
        with contextlib.suppress(OSError):
            return zlib.crc32(path.read_bytes())
        return None

    @classmethod
    @contextlib.contextmanager
    def temporary(cls) -> Iterator["Scratch"]:
        """One that nothing is left of."""
        with tempfile.TemporaryDirectory(prefix="glcanet_jax-") as folder, cls(Path(folder)) as scratch:
            yield scratch

    def _file(self, side: str, place: Place) -> Path:
        return self.folder / f"{side}_{place[0]}_{place[1]}.npy"

    def save_edge(self, side: str, place: Place, values: np.ndarray) -> None:
        """Keep the sums that the block at ``place`` has beyond its ``side`` ("right" or "bottom"), or its "own"; whole or not at all."""
        path = self._file(side, place)
        temporary = path.with_suffix(".part")
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        self._left[side, place] = zlib.crc32(buffer.getbuffer())
        try:
            with temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); free space, then run again") from error

    def load_edge(self, side: str, place: Place) -> np.ndarray | None:
        """Those sums; None where that block left none.

        Raises:
            UserError: they are not what was left: the file was changed meanwhile.
        """
        checksum = self._left.get((side, place))
        return None if checksum is None else self.read(self._file(side, place), checksum)

    @staticmethod
    def read(path: Path, checksum: int) -> np.ndarray:
        """Sums that were kept.

        Raises:
            UserError: they are not what was kept.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} could not be read ({error.strerror}); run again") from error
        if zlib.crc32(data) != checksum:
            raise UserError(
                f"{path} was changed while it waited; remove {path.parent}, then run again, and it is computed anew"
            )
        return np.load(io.BytesIO(data), allow_pickle=False)

    def own(self) -> dict[Place, tuple[Path, int]]:
        """The files of the blocks' own sums, and their checksums."""
        return {place: (self._file(OWN, place), sum_) for (side, place), sum_ in self._left.items() if side == OWN}

    def commit(self, place: Place) -> None:
        """Note a block as finished, and drop the edges that it took."""
        edges = {side: self._left[side, place] for side in SIDES if (side, place) in self._left}
        line = _line(place, edges, self._sum)
        try:
            self._journal.write(line + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise UserError(
                f"{self._path} could not be written ({error.strerror}); free space, then run again"
            ) from error
        self._sum = zlib.crc32(line, self._sum)
        self.done.add(place)
        row, column = place
        for edge in (("right", (row, column - 1)), ("bottom", (row - 1, column))):
            self._left.pop(edge, None)
            self._file(*edge).unlink(missing_ok=True)

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # what counts was flushed by commit
            self._journal.close()
