"""Scenes and maps opened for looking: what each file holds, and overviews for those that have none."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.bands import palette_of
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import GridScene, WindowScene
from glcanet_jax.errors import UserError
from glcanet_jax.view import rasters
from glcanet_jax.view.chores import Chores
from glcanet_jax.view.found import Allowed, MapFiles, Run, SceneFiles, files_of, named_source
from glcanet_jax.view.gallery import Image, Legend, Map, Opened
from glcanet_jax.view.planes import Plane, RasterPlane, ScenePlane
from glcanet_jax.view.shrunk import ShrunkPlane

LARGE = 2048  # pixels a side: a scene of no more is read whole at once
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
    (227, 119, 194), (188, 189, 34), (23, 190, 207), (127, 127, 127), (174, 199, 232), (255, 187, 120),
)  # fmt: skip


@dataclass
class Opener:
    """What opening needs: who makes overviews, and where they lie."""

    chores: Chores
    folder: Path
    allowed: Allowed

    def open(self, found: SceneFiles) -> Opened:
        """Raises UserError if neither its image nor a map of it can be opened."""
        notes: list[str] = []
        image, size, place, path = self._image(found, notes)
        maps: list[Map] = []
        for each in found.maps:
            if isinstance(each, Run):
                maps.append(self._to_make(each))
                continue
            if size is None:
                size, place = _size_of(each)
            try:
                maps.append(self.map_of(each, size))
            except UserError as error:
                notes.append(str(error))
        if size is None or (image is None and not maps):
            raise UserError("; ".join(notes) or f"{found.name} has neither an image nor a map")
        truth, legend = self._truth(found)
        if maps:
            for made in maps[1:]:
                made.legend = made.legend.coloured_as(maps[0].legend)
            legend = legend and legend.coloured_as(maps[0].legend)
        return Opened(*size, place or Georeference(), image, truth, legend, maps, notes, found.scene, path)

    # ------------------------------------------------------------------------------------------------------- the image
    def _image(self, found: SceneFiles, notes: list[str]) -> tuple[Any, Any, Any, Path | None]:
        """Image, size and place, as far as they are known; and the file that the image is, if it is one."""
        if found.scene is not None:
            scene = found.scene
            for file, _ in files_of(scene):
                self.allowed.check(file)
            path = scene.image if isinstance(scene, FileScene) else None
            return self._of_scene(scene), (scene.height, scene.width), place_of(scene), path
        path = found.image
        if path is None:
            sources = {named_source(each.report) for each in found.maps if isinstance(each, MapFiles) and each.report}
            path = next(iter(sources - {None}), None)
            if path is None:
                notes.append("the scene that the map was made of is not where it was, or was changed; name it, too")
                return None, None, None, None
        else:
            self.allowed.check(path)
        try:
            with contextlib.closing(RasterSource(path)) as source:
                if source.note:
                    notes.append(source.note)
                image = self._of_file(path, source)
                return image, (source.height, source.width), source.georeference, path
        except UserError as error:
            if not found.maps:
                raise
            notes.append(str(error))
            return None, None, None, None

    def _of_scene(self, scene: Any) -> Image:
        looking = (1, 2, 3) if scene.bands >= 3 else (1,)
        if isinstance(scene, FileScene):
            with contextlib.closing(RasterSource(scene.image, scene.choice)) as source:
                looking = tuple(i + 1 for i in source.looking)
        whole = self.with_overviews(ScenePlane(scene, labels=False), False, f"overview of {scene.name}", rows=False)
        chosen = lambda bands: _Chosen(whole, [band - 1 for band in bands])  # noqa: E731
        names = tuple(f"band {i + 1}" for i in range(scene.bands))
        return Image(chosen, scene.bands, names, looking, np.dtype(scene.dtype))

    def _of_file(self, path: Path, source: RasterSource) -> Image:
        size, taken = (source.height, source.width), source.chosen
        with rasters.POOL.lent(path) as file:
            names = tuple(file.descriptions[band - 1] or f"band {band}" for band in taken.indexes)
        if source.needs_staging:
            whole: Plane = self._staged(path, size)
        else:
            way = "nearest" if taken.palette is not None else "average"
            plane = RasterPlane(path, size, taken.indexes, way, taken.palette)
            whole = self.with_overviews(plane, False, f"overview of {path.name}", source.strips)
        chosen = lambda bands: _Chosen(whole, [band - 1 for band in bands])  # noqa: E731
        looking = tuple(i + 1 for i in source.looking)
        return Image(chosen, source.bands, names, looking, np.dtype(source.dtype), taken.palette is not None)

    def _staged(self, path: Path, size: tuple[int, int]) -> Plane:
        """A file whose windows are dear to read: it is copied into tiles first, and is not there until then."""
        return StagedPlane(path, size, self)

    def with_overviews(self, plane: Plane, ids: bool, words: str, rows: bool) -> Plane:
        """A plane with overviews of its own where it needs some."""
        coarsest = 1
        while max(plane.height, plane.width) / coarsest > 256:
            coarsest *= 2
        if max(plane.height, plane.width) <= LARGE or not plane.is_dear(coarsest):
            return plane
        return ShrunkPlane(plane, ids, self.chores, self.folder, words, rows)

    # --------------------------------------------------------------------------------------------- labels and maps
    def _truth(self, found: SceneFiles) -> tuple[Plane | None, Legend | None]:
        scene = found.scene
        if scene is None or not scene.labelled:
            return None, None
        plane = self.with_overviews(
            ScenePlane(scene, labels=True), True, f"overview of {scene.name}'s labels", rows=False
        )
        return plane, found.legend

    def map_of(self, files: MapFiles, size: tuple[int, int]) -> Map:
        legend = legend_of(files.classes)
        classes = RasterPlane(files.classes, size, [1], "nearest")
        whole = self.with_overviews(classes, True, f"overview of {files.classes.name}", rows=False)
        made = Map(files.label, legend, whole, report=files.report)
        if files.confidence is not None:
            plane = RasterPlane(files.confidence, size, [1], "average")
            made.confidence = self.with_overviews(plane, False, f"overview of {files.confidence.name}", rows=False)
        if files.probabilities is not None:
            bands = range(1, len(legend.names) + 1)
            made.probabilities = RasterPlane(files.probabilities, size, bands, "average")
        told = (files.report or {}).get("model", {})
        made.network = told.get("network")
        if isinstance(told.get("weights"), str):
            weights = Path(told["weights"])
            made.weights = weights if weights.is_file() else None
        return made

    def _to_make(self, run: Run) -> Map:
        from glcanet_jax import runs

        config, stored = runs.read_weights(run.weights)
        legend = Legend(tuple(stored.classes["names"]), tuple(tuple(c) for c in stored.classes["palette"]))
        return Map(run.label, legend, weights=run.weights, network=config.model.network)


class _Chosen:
    """Some bands of a plane."""

    def __init__(self, plane: Plane, positions: Sequence[int]):
        self.height, self.width, self._plane, self._positions = plane.height, plane.width, plane, list(positions)

    def read(self, box: rasters.Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        values, valid = self._plane.read(box, shape)
        if values.shape[-1] <= max(self._positions):  # not there yet
            return np.repeat(values[..., :1], len(self._positions), axis=-1), valid
        return values[..., self._positions], valid

    def is_dear(self, factor: int) -> bool:
        return self._plane.is_dear(factor)


class StagedPlane:
    """A file without random access: what it holds is there once it was copied into tiles."""

    def __init__(self, path: Path, size: tuple[int, int], opener: Opener):
        self.height, self.width = size
        self._path, self._opener, self._plane = path, opener, None

    def is_dear(self, factor: int) -> bool:
        return False

    def read(self, box: rasters.Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if self._plane is None:
            self._opener.chores.ask(self, f"tiles of {self._path.name}", self._make)
            return np.zeros((*shape, 1), np.uint8), np.zeros(shape, bool)
        return self._plane.read(box, shape)

    def _make(self, tell: Any) -> None:
        with contextlib.closing(RasterSource(self._path)) as source:
            staged = source.stage(self._opener.folder, lambda done, rows: tell(done / rows))
            staged.close()
            plane = RasterPlane(staged.path, (self.height, self.width), range(1, source.bands + 1), "average")
        self._plane = self._opener.with_overviews(plane, False, f"overview of {self._path.name}", rows=False)


def place_of(scene: Any) -> Georeference:
    """Where a dataset's scene lies: where the first file that it is put together from says."""
    if isinstance(scene, FileScene):
        with contextlib.closing(RasterSource(scene.image)) as source:
            return source.georeference
    if isinstance(scene, WindowScene):
        return _moved(place_of(scene.scene), scene.left, scene.top)
    if isinstance(scene, GridScene):
        part, top, left = scene.parts[0]
        return _moved(place_of(part), -left, -top)
    return Georeference()


def _moved(place: Georeference, right: int, down: int) -> Georeference:
    """The place of pixels that are counted from another one on."""
    if place.transform is None or place.gcps:
        return Georeference()
    a, b, c, d, e, f = place.transform[:6]
    return Georeference(
        place.crs, type(place.transform)(a, b, c + a * right + b * down, d, e, f + d * right + e * down)
    )


def _size_of(files: MapFiles) -> tuple[tuple[int, int], Georeference]:
    """Size and place of a map whose scene is not there."""
    with contextlib.closing(RasterSource(files.classes, wanted=1)) as source:
        return (source.height, source.width), source.georeference


def legend_of(path: Path) -> Legend:
    """Names and colours of a class map's classes, as it says itself.

    Raises:
        UserError: it says neither.
    """
    with rasters.POOL.lent(path) as file:
        names, colours = _names_in(file.tags()), np.zeros((0, 4), np.uint8)
        with contextlib.suppress(ValueError):
            colours = palette_of(file, 1)
    if names is None:
        raise UserError(f"{path} does not name its classes (its tag CLASSES); it is no class map that was made here")
    palette = [
        tuple(map(int, colours[i][:3])) if i < len(colours) else COLOURS[i % len(COLOURS)] for i in range(len(names))
    ]
    return Legend(names, tuple(palette))


def _names_in(tags: dict[str, str]) -> tuple[str, ...] | None:
    with contextlib.suppress(ValueError):
        names = json.loads(tags.get("CLASSES", ""))
        if isinstance(names, list) and names and len(names) < 255 and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def legend_of_table(table: ClassTable) -> Legend:
    return Legend(table.names, tuple(tuple(map(int, colour)) for colour in table.palette))
