"""Classes: their names and colours, and how masks stand for them."""

from dataclasses import dataclass, field

import numpy as np

from glcanet_jax.errors import UserError

IGNORE = 255


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the classes, and the colours that mean "ignore"."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_colours: tuple[tuple[int, int, int], ...] = ()
    threshold: bool = False  # masks hold values slightly off 0 and 255: each channel is cut at 128
    values: tuple[int, ...] | None = None  # numbers that stand for the classes in masks of one band; None: their ids
    # further numbers and the ids they stand for, 255 among them; no part of older builds' fingerprints
    also: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    @property
    def greys(self) -> tuple[int, ...] | None:
        """The classes' colours as greys, if all are."""
        return tuple(c[0] for c in self.palette) if all(len(set(c)) == 1 for c in self.palette) else None

    def _table(self) -> np.ndarray:
        """Id of every 24-bit colour, 254 for those that are no class."""
        table = np.full(2**24, 254, np.uint8)
        table[_code(np.array(self.ignore_colours).reshape(-1, 3))] = IGNORE
        table[_code(np.array(self.palette))] = np.arange(len(self.palette))
        return table

    def _ids(self, rgb: np.ndarray) -> np.ndarray:
        if self.threshold:
            rgb = np.where(rgb >= 128, 255, 0).astype(np.uint8)
        return _table_of(self)[_code(rgb)]

    def unknown_colours(self, rgb: np.ndarray) -> dict[tuple[int, int, int], tuple[int, tuple[int, int]]]:
        """Colours of a mask ``[h, w, 3]`` that are no class: how many pixels, and the first (row, column)."""
        bad = self._ids(rgb) == 254
        if not bad.any():
            return {}
        colours, first, counts = np.unique(_code(rgb)[bad], return_index=True, return_counts=True)
        rows, columns = np.nonzero(bad)
        return {
            (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): (int(n), (int(rows[i]), int(columns[i])))
            for c, i, n in zip(colours, first, counts, strict=True)
        }

    def encode(self, rgb: np.ndarray) -> np.ndarray:
        """Class ids ``[h, w]`` of an RGB mask ``[h, w, 3]``, 255 where ignored.

        Raises:
            UserError: a colour is no class.
        """
        ids = self._ids(rgb)
        if (ids == 254).any():
            raise UserError(
                f"a mask has {describe_colours(self.unknown_colours(rgb))}; its colours must be those of the classes"
            )
        return ids

    @property
    def numbers(self) -> tuple[int, ...]:
        """What stands for the classes in masks of one band, the classes in order; without the further ones."""
        return tuple(range(len(self.names))) if self.values is None else self.values

    @property
    def _known(self) -> tuple[int, ...]:
        return *self.numbers, *(number for number, _ in self.also)

    def unknown_ids(self, ids: np.ndarray) -> np.ndarray:
        """Where a mask of one band has neither a class nor 255."""
        return ~np.isin(ids, [*self._known, IGNORE])

    def encode_ids(self, ids: np.ndarray) -> np.ndarray:
        """Class ids ``[h, w]`` of a mask of one band, 255 where ignored.

        Raises:
            UserError: a number is no class.
        """
        if (unknown := self.unknown_ids(ids)).any():
            raise UserError(f"a mask has ids {np.unique(ids[unknown])[:5].tolist()}; {self.numbers_told}")
        if self.values is None and not self.also:
            return ids.astype(np.uint8)
        table = np.full(max(*self._known, IGNORE) + 1, IGNORE, np.uint8)
        table[list(self._known)] = [*range(len(self.numbers)), *(i for _, i in self.also)]
        return table[ids.astype(np.int64)]

    @property
    def numbers_told(self) -> str:
        """What a mask of one band may hold, in words."""
        if self.values is None and not self.also:
            return f"ids must be 0 to {len(self.names) - 1}, or 255 to ignore"
        listed = ", ".join(map(str, sorted(self._known)))
        return f"they must be {listed}" + ", or 255 to ignore" * (IGNORE not in self._known)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Colours ``[h, w, 3]`` of ids, grey where ignored."""
        colours = np.full((256, 3), 128, np.uint8)
        colours[: len(self.palette)] = self.palette
        return colours[ids]


def describe_colours(unknown: dict[tuple[int, int, int], tuple[int, tuple[int, int]]]) -> str:
    """The commonest unknown colours, in words."""
    worst = sorted(unknown.items(), key=lambda item: -item[1][0])
    text = ", ".join(f"{c} on {n} pixels from row {p[0]} column {p[1]}" for c, (n, p) in worst[:3])
    return f"{len(unknown)} colours that are no class: {text}{' ...' if len(worst) > 3 else ''}"


def _code(rgb: np.ndarray) -> np.ndarray:
    """Colours as 24-bit numbers, uint32: red is the highest byte."""
    parts = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    parts[..., 2], parts[..., 1], parts[..., 0] = (rgb[..., i] for i in range(3))
    return parts.view("<u4")[..., 0]


_tables: dict[ClassTable, np.ndarray] = {}


def _table_of(classes: ClassTable) -> np.ndarray:
    if classes not in _tables:
        _tables[classes] = classes._table()
    return _tables[classes]
