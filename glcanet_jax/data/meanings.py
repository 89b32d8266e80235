"""What features of a vector file are: the classes that their columns say, and in which order they are drawn."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.tables import LayerEntry, same
from glcanet_jax.data.vectors import Features, Layer
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

SHOWN = 8  # values told of those that are no class


@dataclass(frozen=True)
class Meanings:
    """Which classes a layer's features are."""

    entry: LayerEntry
    classes: ClassTable
    path: Path

    @cached_property
    def _known(self) -> Mapping[str, int]:
        """Ids by what a column says: what ``labels.json`` lists, the classes' names, and the numbers that stand for them."""
        number = {name: i for i, name in enumerate(self.classes.names)}
        out = {str(value): i for i, value in enumerate(self.classes.numbers)} | number
        return out | {
            same(k): IGNORE if v is None else number[same(v)] for k, v in self.entry.classes.items() if k != "*"
        }

    @cached_property
    def _omitted(self) -> frozenset[str]:
        return frozenset(same(word).strip() for word in self.entry.omit)

    def id_of(self, value: Any) -> int | None:
        """The id of what a column says: 255 for nothing and for what is not labelled or drawn, None for what is no class."""
        text = text_of(value)
        if text is None or text in self._omitted:
            return IGNORE
        if text in self._known:
            return self._known[text]
        other = self.entry.classes.get("*", "")
        return None if other == "" else IGNORE if other is None else self.classes.names.index(same(other))

    def ids(self, features: Features) -> np.ndarray:
        """uint8 ids ``[n]`` of features by what their column says.

        Raises:
            UserError: it says what is no class.
        """
        if self.entry.attribute is None:
            return np.full(len(features.fids), self.classes.names.index(same(self.entry.class_name)), np.uint8)
        said = features.columns[self.entry.attribute].tolist()
        found = [self.id_of(value) for value in said]
        unknown: dict[str, set[int]] = {}
        for value, i, fid in zip(said, found, features.fids.tolist(), strict=True):
            if i is None:
                unknown.setdefault(text_of(value), set()).add(fid)
        if unknown:
            raise NoClassError(self, unknown)
        return np.array(found, np.uint8)

    def drawn(self, features: Features) -> np.ndarray:
        """bool ``[n]``: which features are drawn, if only as what is not labelled."""
        if not self.entry.omit:
            return np.ones(len(features.fids), bool)
        return np.array(
            [text_of(v) not in self._omitted for v in features.columns[self.entry.attribute].tolist()], bool
        )

    def counts(self, layer: Layer) -> Counter[int | None]:
        """Features of a whole layer by id: 255 for those that are not labelled, None for those of no class."""
        if self.entry.attribute is None:
            return Counter({self.classes.names.index(same(self.entry.class_name)): layer.count})
        return Counter(
            map(self.id_of, layer.read(columns_of(self.entry), places=False).columns[self.entry.attribute].tolist())
        )


class NoClassError(UserError):
    """A column that says what is no class: features by what it says."""

    def __init__(self, meanings: Meanings, values: Mapping[str, set[int]]):
        self.meanings, self.values = meanings, values
        names, path, column = meanings.classes.names, meanings.path, meanings.entry.attribute
        ordered = sorted(values, key=lambda value: -len(values[value]))
        listed = [f"{v!r} ({len(values[v])} feature{'s' * (len(values[v]) != 1)})" for v in ordered[:SHOWN]]
        super().__init__(
            f"{path}: column {column} says {', '.join(listed)}{' ...' * (len(values) > SHOWN)}, which is no class"
            f"{perhaps(ordered[0], names)}; classes are {', '.join(names[:SHOWN])}{' ...' * (len(names) > SHOWN)}: say in "
            f'labels.json what it means, as "classes": {{"{ordered[0]}": "{names[0]}"}}, or null for "not labelled"'
        )


def columns_of(entry: LayerEntry) -> list[str]:
    """Those that decide what is drawn."""
    return [column for column in (entry.attribute, entry.order_by) if column is not None]


def text_of(value: Any) -> str | None:
    """What a column says, as ``labels.json`` writes it; None where it says nothing."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return same(str(value)).strip() or None


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Places of values in their order, equal ones in the file's; where nothing is said first."""
    plain = values.tolist()
    number = lambda v: isinstance(v, int | float) and v == v  # noqa: E731
    keys = [(1, v, "") if number(v) else (0, 0, "") if text_of(v) is None else (2, 0, str(v)) for v in plain]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    out = np.empty(len(keys), np.int64)
    out[order] = np.arange(len(keys))
    return out
