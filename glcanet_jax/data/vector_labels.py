"""Labels that are drawn from vector files, window by window, as a mask: what each feature is, and where it lies."""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.drawing import TILE, Drawing, moved, widened
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.meanings import Meanings, columns_of, ranks_of
from glcanet_jax.data.memory import Cache
from glcanet_jax.data.placement import Placement
from glcanet_jax.data.tables import SCENE, AreaEntry, LabelsFile, LayerEntry, same
from glcanet_jax.data.vectors import POLYGON, Features, Layer, Use, open_layer, parts_of, read_crs, simple_parts
from glcanet_jax.errors import UserError

USE = Use("the labels", '"layer" in labels.json')
AREA = Use("the annotated area", '"layer" of "annotated" in labels.json', areas=True)
VECTORS = Cache()  # layers that were opened, and drawings: what every window needs, apart from the pixels of many


@dataclass(frozen=True)
class VectorLabels:
    """The labels of a scene as a folder's ``labels.json`` says them."""

    rules: LabelsFile
    paths: tuple[Path | None, ...]  # a layer's file; None: this scene has none
    area: Path | None = None  # of the annotated area

    def files(self) -> Iterator[Path]:
        """Everything that the labels depend on, beside the rules."""
        for path in self.paths:
            if path is not None:
                yield from parts_of(path, columns=True)
        if self.area is not None:
            yield from parts_of(self.area)

    def layers(self) -> Iterator[tuple[Path, LayerEntry]]:
        """The files of this scene, in the order in which they are drawn."""
        return ((path, entry) for path, entry in zip(self.paths, self.rules.layers, strict=True) if path is not None)

    @property
    def told(self) -> dict[str, Any]:
        """The rules, as JSON has them; what was added later is there where it is used, so that older runs go on."""
        rules = asdict(self.rules)
        layers = [{k: v for k, v in layer.items() if k != "omit" or v} for layer in rules["layers"]]
        return rules | {"layers": tuple(layers)}


def labels_of(root: Path, rules: LabelsFile, scene: str) -> VectorLabels | None:
    """The labels of a scene of a folder; None where there is no file of its own, and no other."""
    paths = tuple(_path(root, entry.file, scene) for entry in rules.layers)
    area = None if rules.annotated is None else root / rules.annotated.file.replace(SCENE, scene)
    return VectorLabels(rules, paths, area) if any(path is not None for path in paths) else None


def _path(root: Path, pattern: str, scene: str) -> Path | None:
    """A file that is all scenes' must be there, and is looked for where it is read."""
    if SCENE not in pattern:
        return root / pattern
    forms = (root / pattern.replace(SCENE, unicodedata.normalize(form, scene)) for form in ("NFC", "NFD"))
    return next((path for path in forms if path.exists()), None)


class VectorSource:
    """The labels of a scene as class ids, drawn from vector files."""

    sequential = strips = False
    dear = True  # windows are drawn again and again
    orientation = 1

    def __init__(self, labels: VectorLabels, image: Any, classes: ClassTable, key: Callable[[Path], Any], cache: Cache):
        """
        Args:
            image: of the scene, whose size and place it takes.
            key: what a file is now: its name, its size and its time of change.
            cache: keeps what was drawn.
        """
        self.labels, self.classes, self._file_key, self._cache = labels, classes, key, cache
        self.path, self.height, self.width = image.path, image.height, image.width
        self.georeference: Georeference = image.georeference
        self.key = labels, classes, self.facts, tuple(key(path) for path in labels.files())

    @cached_property
    def facts(self) -> tuple[Any, ...]:
        """What decides, beside the files and the rules, what is drawn: where the scene lies."""
        place = self.georeference
        crs = None if place.crs is None else place.crs.to_wkt()
        points = [(p.row, p.col, p.x, p.y) for p in place.gcps]
        return (
            self.height,
            self.width,
            crs,
            None if place.transform is None else tuple(place.transform)[:6],
            str(points),
        )

    # ------------------------------------------------------------------------------------------------------ the layers
    def open(self, path: Path, entry: LayerEntry | AreaEntry) -> Layer:
        """A layer of the scene's, opened once.

        Raises:
            UserError: it cannot be read, or cannot be brought to the scene.
        """
        use = AREA if isinstance(entry, AreaEntry) else USE
        key = self._file_key(path), path, entry.layer, use
        return VECTORS.get(key, lambda: open_layer(path, entry.layer, use))

    def placement(self, layer: Layer, entry: LayerEntry | AreaEntry, reach: float = 0.0) -> Placement:
        """How a layer comes to the scene's pixels; raises UserError where nothing says how."""
        crs = layer.crs if entry.crs is None else read_crs(entry.crs, f"{entry.file} in labels.json")
        place = Placement(layer.path, crs, self.georeference, self.height, self.width, reach, self._upwards(layer))
        if place.has_place and self.georeference.crs is not None and crs is None:
            raise UserError(
                f'{layer.path} says no CRS, and the images have one; name it in labels.json, as "crs": "EPSG:25832", or save the '
                "file with its CRS"
            )
        place.check_degrees(layer.bounds)
        return place

    def _upwards(self, layer: Layer) -> bool:
        """Of a picture without a place QGIS counts rows as negative numbers: nothing else lies mostly above its first row."""
        placeless = self.georeference.transform is None and not self.georeference.gcps
        return placeless and layer.bounds is not None and layer.bounds[1] + layer.bounds[3] < 0

    def _unit(self, entry: LayerEntry) -> tuple[float, np.ndarray] | None:
        """The width of lines and points, and its units in pixels; None where there is none."""
        if entry.width_px is not None:
            return entry.width_px, np.eye(2)
        if entry.width_m is None:
            return None
        if not self.georeference.on_ground:
            raise UserError(
                f"{self.path} does not say how large its pixels are, and labels.json gives {entry.file} a width_m; give it a "
                "width_px, or the image its CRS"
            )
        return entry.width_m, self.georeference.metres(self.width / 2, self.height / 2)

    def check(self) -> None:
        """Look at everything that can be wrong but the places of features.

        Raises:
            UserError: a layer cannot be read or brought to the scene, lacks a column, or its column says what is no class.
        """
        for path, entry in self.labels.layers():
            layer = self.open(path, entry)
            self._unit(entry)
            features = layer.read(columns_of(entry), self._boxes(self.placement(layer, entry)), places=False)
            Meanings(entry, self.classes, path).ids(features)
        if self.labels.area is not None:
            self.placement(self.open(self.labels.area, self.labels.rules.annotated), self.labels.rules.annotated)

    # ---------------------------------------------------------------------------------------------------- what is drawn
    def drawn(self, number: int) -> "Placed":
        """The features of a layer that lie on the scene, as areas in its pixels."""
        path, entry = self.labels.paths[number], self.labels.rules.layers[number]
        layer = self.open(path, entry)
        unit = self._unit(entry)
        reach = 4.0 if unit is None else 4.0 + unit[0] / np.linalg.svd(unit[1], compute_uv=False).min()
        features, shapes, owners = self._features(layer, entry, reach, columns_of(entry))
        meanings = Meanings(entry, self.classes, path)
        ids, there = meanings.ids(features), meanings.drawn(features)[owners]
        shapes, owners = shapes[there], owners[there]
        ranks = np.arange(len(features.fids)) if entry.order_by is None else ranks_of(features.columns[entry.order_by])
        shapes, owners = self._wide(shapes, owners, entry, unit, path)
        return Placed(shapes, ids[owners], ranks[owners], features.fids[owners])

    def _features(
        self, layer: Layer, entry: LayerEntry | AreaEntry, reach: float, columns: list[str]
    ) -> tuple[Features, np.ndarray, np.ndarray]:
        """Those near the scene; their simple parts in pixels, and whose each is."""
        placement = self.placement(layer, entry, reach)
        features = layer.read(columns, self._boxes(placement))
        parts, owners = simple_parts(features.geometry)
        shapes, index = moved(parts, placement)
        return features, shapes, owners[index]

    def _boxes(self, placement: Placement) -> list[tuple[float, float, float, float]] | None:
        """Where the layer may have what lies on the scene; None: anywhere, as its coordinates are the scene's own."""
        with placement.told():
            return None if placement.crs is None else placement.boxes

    def _wide(
        self,
        shapes: np.ndarray,
        owners: np.ndarray,
        entry: LayerEntry,
        unit: tuple[float, np.ndarray] | None,
        path: Path,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Areas alone, of those that lie on the scene."""
        import shapely

        if unit is not None:
            shapes, owners = widened(shapes, owners, *unit)
        elif (shapely.get_type_id(shapes) != POLYGON).any():
            raise UserError(
                f'{path} has lines or points, and labels.json gives {entry.file} no width; give it "width_m" or "width_px"'
            )
        x0, y0, x1, y1 = shapely.bounds(shapes).T
        there = (x1 >= 0) & (y1 >= 0) & (x0 <= self.width) & (y0 <= self.height)
        return shapes[there], owners[there]

    @property
    def drawing(self) -> Drawing:
        """All that is drawn on the scene, in its order."""
        return VECTORS.get(("drawing", self.key), self._draw)

    def _draw(self) -> Drawing:
        numbers = [i for i, path in enumerate(self.labels.paths) if path is not None]
        layers = [self.drawn(i) for i in numbers]
        ids = np.concatenate([layer.ids for layer in layers])
        of = np.repeat(numbers, [len(layer.ids) for layer in layers])
        ranks = np.concatenate([layer.ranks for layer in layers])
        first = ids if self.labels.rules.order == "classes" else np.zeros_like(ids)
        order = np.lexsort((ranks, of, first))
        touched = np.array([entry.all_touched for entry in self.labels.rules.layers])[of]
        shapes = np.concatenate([layer.shapes for layer in layers])
        return Drawing(shapes[order], ids[order], touched[order], self._mirrored)

    @property
    def area(self) -> Drawing | None:
        """The annotated area; None: it is everywhere."""
        if self.labels.area is None:
            return None
        return VECTORS.get(("area", self.key), self._draw_area)

    def _draw_area(self) -> Drawing:
        import shapely

        entry = self.labels.rules.annotated
        _, shapes, _ = self._features(self.open(self.labels.area, entry), entry, 4.0, [])
        shapes = shapes[shapely.get_type_id(shapes) == POLYGON]
        return Drawing(shapes, np.ones(len(shapes), np.uint8), np.zeros(len(shapes), bool), self._mirrored)

    @property
    def _mirrored(self) -> bool:
        return self.georeference.transform is not None and self.georeference.transform.determinant < 0

    # ------------------------------------------------------------------------------------------------------- the pixels
    def read(self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> np.ndarray:
        """uint8 ids ``[h, w]``, 255 where nothing is labelled.

        Raises:
            UserError: a file cannot be read, or holds what cannot be drawn.
        """
        bottom = self.height if height is None else top + height
        right = self.width if width is None else left + width
        out = np.empty((bottom - top, right - left), np.uint8)
        for y in range(top // TILE * TILE, bottom, TILE):
            for x in range(left // TILE * TILE, right, TILE):
                tile = self._cache.get(("drawn", self.key, y, x), lambda at=(y, x): self._tile(*at))
                rows, columns = _common(y, TILE, top, bottom), _common(x, TILE, left, right)
                out[_from(rows, top), _from(columns, left)] = tile[_from(rows, y), _from(columns, x)]
        return out

    def _tile(self, top: int, left: int) -> np.ndarray:
        background = self.labels.rules.background
        start = IGNORE if background is None else self.classes.names.index(same(background))
        out = np.full((min(TILE, self.height - top), min(TILE, self.width - left)), start, np.uint8)
        self.drawing.burn(out, top, left)
        if self.area is not None:
            inside = np.zeros_like(out)
            self.area.burn(inside, top, left)
            out[inside == 0] = IGNORE
        return out

    def close(self) -> None:
        """Nothing is held open."""


def _common(first: int, size: int, start: int, stop: int) -> slice:
    return slice(max(first, start), min(first + size, stop))


def _from(side: slice, start: int) -> slice:
    return slice(side.start - start, side.stop - start)


class Placed(NamedTuple):
    """Features of a layer on a scene, a part each."""

    shapes: np.ndarray  # [n] polygons in pixels
    ids: np.ndarray  # [n] uint8, 255 for what is not labelled
    ranks: np.ndarray  # [n], the highest is drawn last
    fids: np.ndarray  # [n]
