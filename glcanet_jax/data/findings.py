"""What a dataset holds, gathered while its files are gone through: sizes, bands, values, ground resolution, classes."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data import disk
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.moments import Moments
from glcanet_jax.data.raster import RasterSource

LISTED = 5  # names in a line


@dataclass
class Images:
    """Of the images: everything per kind (bands and type), in the order in which kinds were seen."""

    names: dict[str, list[str]] = field(default_factory=dict)  # by kind
    sizes: list[tuple[int, int]] = field(default_factory=list)
    ranges: dict[str, np.ndarray] = field(default_factory=dict)  # by kind, [2, bands], of valid pixels
    moments: dict[str, list[Moments]] = field(default_factory=dict)  # by kind, a band each; none of 8 bits
    resolutions: set[str] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    without_data: int = 0

    def begin(self, source: RasterSource, name: str) -> str:
        """Takes what the header says; returns the kind."""
        kind = kind_of(source)
        self.names.setdefault(kind, []).append(name)
        self.sizes.append((source.height, source.width))
        self.resolutions.add(resolution_of(source))
        if source.note:
            self.notes[source.note] += 1
        return kind

    def add(self, kind: str, image: np.ndarray, valid: np.ndarray | None) -> None:
        """Takes a window ``[h, w, bands]``."""
        pixels = image.reshape(-1, image.shape[-1]) if valid is None else image[valid]
        self.pixels += image.shape[0] * image.shape[1]
        self.without_data += image.shape[0] * image.shape[1] - len(pixels)
        if not len(pixels):
            return
        seen = np.stack([pixels.min(axis=0), pixels.max(axis=0)]).astype(np.float64)
        before = self.ranges.get(kind, seen)
        self.ranges[kind] = np.stack([np.minimum(before[0], seen[0]), np.maximum(before[1], seen[1])])
        if image.dtype != np.uint8:
            own = [Moments.of(band) for band in pixels.T]
            kept = self.moments.get(kind, [Moments()] * len(own))
            self.moments[kind] = [a + b for a, b in zip(kept, own, strict=True)]

    def lines(self, patch: int, scenes: Sequence[Any] | None = None) -> Iterator[str]:
        """What was found; ``scenes`` are what images were joined to."""
        if not self.sizes:
            return
        yield f"images: {len(self.sizes)}, {_extent(self.sizes)}"
        for kind, names in self.names.items():
            values = self.ranges.get(kind)
            shown = "; ".join(f"{low:.6g} to {high:.6g}" for low, high in values.T) if values is not None else "no data"
            yield f"  {kind}{_of(names, len(self.sizes))}; values by band: {shown}"
        yield f"  ground resolution: {', '.join(sorted(self.resolutions))}"
        if self.without_data:
            yield f"  without data: {100 * self.without_data / self.pixels:.3g} % of the pixels; they are neither trained on nor scored"
        for note, count in self.notes.items():
            yield f"  note, of {count}: {note}"
        sizes = self.sizes if scenes is None else [(scene.height, scene.width) for scene in scenes]
        if scenes:
            yield f"  joined to {len(scenes)} scene{'s' * (len(scenes) != 1)}, {_extent(sizes)}: {_listed([s.name for s in scenes])}"
        small = sum(min(size) < patch for size in sizes)
        if small:
            yield f"  {small} are smaller than a patch of {patch} px and would be padded; presets of `train` fit patches to scenes, else give a smaller --views.patch-size"

    def normalisation(self, scale: float) -> dict[str, Any] | None:
        """What values that are not of 8 bits should be normalised by; None for 8 bits, or several kinds."""
        if len(self.moments) != 1 or len(self.names) != 1:
            return None
        (bands,) = self.moments.values()
        return {
            "scale": scale,
            "mean": [float(f"{band.mean / scale:.6g}") for band in bands],
            "std": [float(f"{(band.std or 1.0) / scale:.6g}") for band in bands],
        }


@dataclass
class Labels:
    """Of the masks: how many pixels of each class."""

    table: ClassTable
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # by mask
    areas: np.ndarray | None = None  # square metres by class, of masks that say how large their pixels are

    def add(self, name: str, ids: np.ndarray, areas: np.ndarray | None = None) -> None:
        """Takes ids of a mask ``[h, w]``, and square metres that broadcast over them."""
        count, labelled = len(self.table.names), ids < len(self.table.names)
        own = np.bincount(ids[labelled], minlength=count)
        self.counts[name] = self.counts.get(name, np.zeros(count, np.int64)) + own
        if areas is not None:
            weights = np.broadcast_to(areas, ids.shape)[labelled]
            before = np.zeros(count) if self.areas is None else self.areas
            self.areas = before + np.bincount(ids[labelled], weights, minlength=count)

    def lines(self) -> Iterator[str]:
        total = sum(self.counts.values(), np.zeros(len(self.table.names), np.int64))
        if not self.counts:
            return
        shares = ", ".join(
            f"{n} {100 * c / max(total.sum(), 1):.3g} %" for n, c in zip(self.table.names, total, strict=True)
        )
        yield f"labels: {shares}"
        if self.areas is not None:
            listed = (f"{name} {area / 1e4:,.2f} ha" for name, area in zip(self.table.names, self.areas, strict=True))
            yield f"  area: {', '.join(listed)}"
        absent = [name for name, count in zip(self.table.names, total, strict=True) if not count]
        if absent:
            yield f"  classes without a pixel: {', '.join(absent)}"
        if self.table.values is not None:
            pairs = ", ".join(f"{v} is {n}" for n, v in zip(self.table.names, self.table.values, strict=True))
            yield f"  numbers in masks of one band: {pairs}"
        empty = [name for name, count in self.counts.items() if not count.any()]
        if empty:
            yield f"  masks without a labelled pixel: {_listed(empty)}"


@dataclass
class LayerFound:
    """Of a layer of vector labels, all its files together."""

    title: str
    features: int = 0
    # features by id, 255 for those that are not labelled, None for those of no class, which lie on no scene
    by_class: Counter[int | None] = field(default_factory=Counter)
    fallen: dict[Path, np.ndarray] = field(default_factory=dict)  # by file, features that lie on a scene
    crossing: dict[Path, np.ndarray] = field(default_factory=dict)  # and those whose edges cross

    def begin(self, features: int, by_class: Mapping[int | None, int]) -> None:
        """Takes what a file holds."""
        self.features += features
        self.by_class.update(by_class)

    def add(self, path: Path, fids: np.ndarray, crossing: np.ndarray) -> None:
        """Takes the features of a file that lie on a scene, and which of them have edges that cross."""
        none = np.zeros(0, np.int64)
        self.fallen[path] = np.union1d(self.fallen.get(path, none), fids)
        self.crossing[path] = np.union1d(self.crossing.get(path, none), fids[crossing])

    def lines(self, table: ClassTable) -> Iterator[str]:
        names = dict(enumerate(table.names)) | {IGNORE: "not labelled", None: "of no class"}
        listed = ", ".join(f"{name} {self.by_class[i]}" for i, name in names.items() if self.by_class[i])
        plural = "s" * (self.features != 1)
        yield f"vectors: {self.title}: {self.features} feature{plural}{f': {listed}' * bool(listed)}"
        outside = self.features - sum(map(len, self.fallen.values()))
        if outside:
            yield f"  on no scene, or without a place: {outside}"
        crossing = sum(map(len, self.crossing.values()))
        if crossing:
            yield f"  with edges that cross, so that what they go around twice is not drawn: {crossing}"


@dataclass
class Vectors:
    """Of labels that are drawn from vector files."""

    table: ClassTable
    layers: dict[int, LayerFound] = field(default_factory=dict)  # by their place in labels.json
    bare: list[str] = field(default_factory=list)  # scenes that no feature falls on

    def lines(self) -> Iterator[str]:
        for _, layer in sorted(self.layers.items()):
            yield from layer.lines(self.table)
        if self.bare:
            yield f"  scenes that no feature falls on: {_listed(self.bare)}"


def kind_of(source: RasterSource) -> str:
    """Bands and type, in words; images that belong together have the same."""
    return f"{source.bands} band{'s' * (source.bands != 1)} of {np.dtype(source.dtype)}"


def resolution_of(source: RasterSource) -> str:
    """The size of a pixel on the ground, in words."""
    side = source.georeference.ground_resolution(source.height, source.width)
    return "unknown" if side is None else f"{side:.3g} m"


def _extent(sizes: list[tuple[int, int]]) -> str:
    heights, widths = zip(*sizes, strict=True)
    low, high = (min(heights), min(widths)), (max(heights), max(widths))
    return f"{low[0]} x {low[1]} px" + (f" to {high[0]} x {high[1]} px" if low != high else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + " ..." * (len(names) > LISTED)


def _of(names: list[str], count: int) -> str:
    return "" if len(names) == count else f" in {len(names)} ({_listed(names)})"


def write_normalisation(path: Path, values: dict[str, Any]) -> None:
    """As ``--data.normalisation`` reads it; whole or not at all."""
    with disk.whole(path) as place:
        place.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
