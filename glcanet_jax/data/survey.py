"""One going through the files of a dataset: what is wrong with each of them, and what it holds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.classes import ClassTable, describe_colours
from glcanet_jax.data.files import FileScene, problems_of_pair
from glcanet_jax.data.findings import Images, Labels, LayerFound, Vectors, kind_of
from glcanet_jax.data.gdal import strips
from glcanet_jax.data.masks import MaskSource
from glcanet_jax.data.meanings import Meanings, NoClassError
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.tables import LayerEntry
from glcanet_jax.data.vector_labels import VectorLabels, VectorSource
from glcanet_jax.errors import UserError


class Survey:
    """One going through a dataset: what is wrong with a file is told, and what it holds is kept."""

    def __init__(self, choice: tuple[int, ...] | None = None):
        """``choice``: bands of every image, from 1."""
        self.choice, self.images, self.labels, self.vectors = choice, Images(), None, None
        self.notes: list[str] = []  # what is otherwise than published, and no problem
        self._no_class: dict[Meanings, dict[str, set[int]]] = {}  # what columns of vector files say that is no class

    def image(
        self, path: Path, kinds: dict[str, list[str]], choice: tuple[int, ...] | None = None
    ) -> tuple[tuple[int, int] | None, list[str]]:
        """Height and width of an image that can be decoded whole, and what is wrong with it.

        Args:
            kinds: gets its kind. choice: its bands, from 1; None: those of every image.
        """
        try:
            with contextlib.closing(RasterSource(path, choice or self.choice, heed_alpha=choice is None)) as source:
                kind = self.images.begin(source, path.name)
                for rows in strips(source.height, source.width):
                    self.images.add(kind, *source.read(rows.start, 0, rows.stop - rows.start))
                kinds.setdefault(kind_of(source), []).append(path.name)
                return (source.height, source.width), []
        except UserError as error:
            return None, [str(error)]

    def mask(
        self,
        path: Path,
        shape: tuple[int, int] | None,
        table: ClassTable,
        ids_expected: bool = False,
        image: Path | None = None,
    ) -> Iterator[str]:
        """Problems of a mask file: unreadable, of another size or place than its image, colours or ids that are no class."""
        if self.labels is None:
            self.labels = Labels(table)
        unknown: dict[Any, tuple[int, tuple[int, int]]] = {}  # how many pixels, and the first (row, column)
        try:
            with contextlib.closing(MaskSource(path, table)) as source:
                yield from self._pair(source, shape, image)
                coloured = self._unknown(path, source, unknown)
        except UserError as error:
            yield str(error)
            return
        if coloured and ids_expected:
            fits = (
                "its colours are those of the classes and are converted"
                if not unknown
                else "and its colours are no classes either"
            )
            yield f"{path}: an RGB mask where class ids are expected; {fits}"
        if unknown and coloured:
            hint = "; its palette's indices are no ids either" if source.palette is not None else ""
            yield f"{path}: {describe_colours(unknown)}{hint}"
        elif unknown:
            listed = ", ".join(f"{value:.6g} on {unknown[value][0]} pixels" for value in sorted(unknown)[:3])
            row, column = min(first for _, first in unknown.values())
            yield f"{path}: ids that are no class: {listed}, first at row {row} column {column}; {table.numbers_told}"

    def drawn(self, labels: VectorLabels, image: Path, table: ClassTable) -> Iterator[str]:
        """Problems of labels that are drawn from vector files: unreadable, of no class, without a place on the image."""
        self.labels, self.vectors = self.labels or Labels(table), self.vectors or Vectors(table)
        try:
            scene = FileScene(image.stem, image, labels, table, self.choice)
            scene.verify()
            source, found = scene._mask(), 0
            for number, (path, entry) in enumerate(zip(labels.paths, labels.rules.layers, strict=True)):
                if path is not None:
                    found += self._layer(number, path, entry, source)
            self.vectors.bare += [image.name] * (not found)
            for rows in strips(scene.height, scene.width):
                at = rows.start, 0, rows.stop - rows.start, scene.width
                self.labels.add(image.name, scene.read_labels(*at), source.georeference.pixel_areas(*at))
        except NoClassError as error:  # all scenes' together, as the file is one
            before = self._no_class.setdefault(error.meanings, {})
            for value, fids in error.values.items():
                before[value] = before.get(value, set()) | fids
        except UserError as error:
            yield str(error)

    def no_class(self) -> Iterator[str]:
        """What columns of vector files say that is no class, a line a file."""
        return (str(NoClassError(*found)) for found in self._no_class.items())

    def _layer(self, number: int, path: Path, entry: LayerEntry, source: VectorSource) -> int:
        """Takes the features of a layer that lie on a scene; returns how many."""
        import shapely

        title = f"{entry.file}{f', layer {entry.layer}' * (entry.layer is not None)}"
        layer = self.vectors.layers.setdefault(number, LayerFound(title))
        if path not in layer.fallen:
            opened = source.open(path, entry)
            layer.begin(opened.count, Meanings(entry, source.classes, path).counts(opened))
        placed = source.drawn(number)
        layer.add(path, placed.fids, ~shapely.is_valid(placed.shapes))
        return len(placed.fids)

    def _pair(self, mask: MaskSource, shape: tuple[int, int] | None, image: Path | None) -> Iterator[str]:
        if image is not None and shape is not None:
            with contextlib.closing(RasterSource(image, self.choice)) as source:
                yield from problems_of_pair(source, mask)
        elif shape is not None and (mask.height, mask.width) != shape:
            yield f"{mask.path}: {mask.height} x {mask.width} pixels, its image {shape[0]} x {shape[1]}; they must agree"

    def _unknown(self, path: Path, source: MaskSource, unknown: dict[Any, tuple[int, tuple[int, int]]]) -> bool:
        """Goes through a mask; adds what is no class to ``unknown``; returns whether it holds colours."""
        for rows in strips(source.height, source.width):
            raw = source.read_raw(rows.start, 0, rows.stop - rows.start)
            coloured = raw.ndim == 3
            found = source.classes.unknown_colours(raw) if coloured else _unknown_ids(source.known(raw), source.classes)
            _merge(unknown, found, rows.start)
            if not found:
                self.labels.add(path.name, source.ids(raw))
        return coloured


def _unknown_ids(ids: np.ndarray, table: ClassTable) -> dict[int | float, tuple[int, tuple[int, int]]]:
    bad = table.unknown_ids(ids)
    if not bad.any():
        return {}
    rows, columns = np.nonzero(bad)
    values, first, counts = np.unique(ids[bad], return_index=True, return_counts=True)
    return {
        v: (n, (int(rows[i]), int(columns[i]))) for v, i, n in zip(values.tolist(), first, counts.tolist(), strict=True)
    }


def _merge(seen: dict[Any, Any], found: dict[Any, Any], top: int) -> None:
    """Add what was found from row ``top`` on: counts, and first places where there was none."""
    for key, (count, (row, column)) in found.items():
        before, first = seen.get(key, (0, (top + row, column)))
        seen[key] = before + count, first


def check_kinds(where: str, kinds: dict[str, list[str]]) -> Iterator[str]:
    """Images that belong together must have the same bands and type."""
    if len(kinds) > 1:
        listed = "; ".join(
            f"{kind} in {', '.join(names[:3])}{' ...' * (len(names) > 3)}" for kind, names in kinds.items()
        )
        yield f"{where} mixes kinds of images: {listed}; convert them to one"
