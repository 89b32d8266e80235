"""What is looked at: scenes, each with its image, its labels and its maps; opened when somebody looks."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.view.planes import Plane

NO_CLASS = 254  # of a truth whose class a map does not know


@dataclass(frozen=True)
class Legend:
    """Classes: their names and colours, in the order of their ids."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def ids_of(self, other: "Legend") -> np.ndarray:
        """What the ids of another legend's classes are here, by name: uint8 ``[256]``; 254 where there is no such class."""
        known = {name.casefold(): i for i, name in enumerate(self.names)}
        table = np.full(256, NO_CLASS, np.uint8)
        table[IGNORE] = IGNORE
        for i, name in enumerate(other.names):
            table[i] = known.get(name.casefold(), NO_CLASS)
        return table

    def coloured_as(self, other: "Legend") -> "Legend":
        """The same classes in the colours of another legend, where that has a class of the name: what is compared looks alike."""
        known = dict(zip((name.casefold() for name in other.names), other.palette, strict=True))
        colours = zip(self.names, self.palette, strict=True)
        return Legend(self.names, tuple(known.get(name.casefold(), colour) for name, colour in colours))


@dataclass
class Map:
    """What a network says of a scene."""

    label: str  # of the run, or of the folder that it lies in
    legend: Legend
    classes: Plane | None = None  # None: still to be made
    confidence: Plane | None = None  # uint8, in steps of 1 / 254
    probabilities: Plane | None = None  # uint8, a band a class
    report: Mapping[str, Any] | None = None  # what it says of itself
    weights: Path | None = None  # that made it, or will; None: nobody knows, or they are not there
    network: str | None = None
    problem: str = ""


@dataclass
class Image:
    """A scene's picture."""

    plane: Callable[[Sequence[int]], Plane]  # of bands, from 1
    bands: int
    names: tuple[str, ...]  # of the bands
    looking: tuple[int, ...]  # the bands that are red, green and blue, from 1
    dtype: np.dtype
    colours: bool = False  # made of a palette: there is no choice of bands


@dataclass
class Opened:
    """A scene that is looked at."""

    height: int
    width: int
    place: Georeference
    image: Image | None
    truth: Plane | None
    truth_legend: Legend | None
    maps: list[Map]
    notes: list[str] = field(default_factory=list)
    scene: Any = None  # as networks read it, where it is no file
    path: Path | None = None  # of its image, where that is one file


class Item:
    """A scene among others, opened once somebody looks at it."""

    def __init__(self, name: str, group: str, open_: Callable[[], Opened]):
        """``group``: what it is listed under, as a split."""
        self.name, self.group, self._open = name, group, open_
        self._lock, self._opened = threading.Lock(), None

    def opened(self) -> Opened:
        """Raises UserError if it cannot be opened."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened


class Gallery:
    """All scenes."""

    def __init__(self, items: Sequence[Item], notes: Sequence[str] = ()):
        """Raises UserError if there is none."""
        if not items:
            raise UserError("there is no scene or map to look at; name files or folders that have some")
        self.items, self.notes = tuple(items), tuple(notes)

    def item(self, number: int) -> Item | None:
        return self.items[number] if 0 <= number < len(self.items) else None
