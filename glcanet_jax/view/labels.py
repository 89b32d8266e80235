"""Polygons that are drawn in the page, as GeoJSON labels that ``train`` takes: one file, written whole, what is there kept."""

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from glcanet_jax import border
from glcanet_jax.data import disk
from glcanet_jax.data.gdal import cause, environment, failures
from glcanet_jax.data.geojson import read_geojson
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.placement import Placement
from glcanet_jax.data.tables import SCENE, Name, class_table, same
from glcanet_jax.data.vectors import read_crs
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Length, Range
from glcanet_jax.options import perhaps

CLASS = "class"  # the column that says a polygon's class
AREA = "annotated area"  # what it says of one inside of which all is labelled, by other polygons or layers
DIGITS = {True: 9, False: 4}  # behind the point: of degrees a tenth of a millimetre, of others too
ENDINGS = (".geojson", ".json")
FAR = Range(-1e6, 1e9)  # pixels
POINTS = 20_000  # of a polygon, at most
MANY = 20_000  # polygons of a scene
LARGEST = 64 * 2**20  # bytes of what a page sends

Point = tuple[Annotated[float, FAR], Annotated[float, FAR]]


@dataclass(frozen=True)
class Drawn:
    """A polygon in a scene's pixels, (column, row) from the upper left corner."""

    name: Name  # of its class, or AREA
    rings: Annotated[tuple[tuple[Point, ...], ...], Length(1, 1000)]  # the outer one, then holes; closed or not


@dataclass(frozen=True)
class Sent:
    """What a page saves: all polygons of a scene."""

    polygons: Annotated[tuple[Drawn, ...], Length(0, MANY)]
    stamp: str  # of the file that the page has read; "": there was none


class Changed(UserError):
    """Somebody else has written the file meanwhile."""


class Ground(NamedTuple):
    """The scene that is drawn on."""

    name: str
    height: int
    width: int
    place: Georeference
    classes: tuple[str, ...]


class Labels:
    """The file of ``--labels``; ``{scene}`` in its name stands for the scene's: then each has its own."""

    def __init__(self, path: str | Path):
        """Raises UserError if it has another ending or cannot be written, or the classes beside it cannot be read."""
        self.path = Path(path)
        if self.path.suffix.lower() not in ENDINGS:
            raise UserError(f"--labels is {path}; its name must end in .geojson, the format of labels that are drawn")
        _check_writable(self.path)
        # of the folder that train is given
        near = (folder / "classes.json" for folder in [*self.path.absolute().parents][:2])
        beside = next((file for file in near if file.is_file()), None)
        self.classes = None if beside is None else class_table(border.read_json(beside), beside)
        self._lock = threading.Lock()

    def of(self, scene: str) -> Path:
        """The file of a scene."""
        name = scene.replace("/", "_").replace("\\", "_").replace("\0", "_")
        return Path(str(self.path).replace(SCENE, name))

    def read(self, ground: Ground) -> dict[str, Any]:
        """A scene's polygons, as :class:`Sent` has them, as JSON.

        Raises:
            UserError: the file is no GeoJSON, or lies where the scene cannot be brought to.
        """
        file = _File.open(self.of(ground.name), ground)
        return {"polygons": [_told(drawn) for _, drawn in file.own()], "stamp": file.stamp}

    def write(self, ground: Ground, sent: Sent) -> str:
        """Put a scene's polygons in the place of those that the file has of it; all else in it stays. Returns its new stamp.

        Of those that have kept their corners what else is said of them stays, too.

        Raises:
            UserError: a polygon is none, or of no class; :class:`Changed`; or the file cannot be written.
        """
        with self._lock:
            return self._write(self.of(ground.name), ground, sent)

    def _write(self, path: Path, ground: Ground, sent: Sent) -> str:
        file = _File.open(path, ground)
        if file.stamp != sent.stamp:
            raise Changed(f"{path} was changed by somebody else; load its labels again, and draw what is missing")
        _check(ground, sent)
        mine = dict(file.own())
        known = {_corners(drawn): file.features[i] for i, drawn in mine.items()}
        kept = [feature for i, feature in enumerate(file.features) if i not in mine]
        file.check_alone(kept)
        ordered = sorted(sent.polygons, key=lambda drawn: drawn.name != AREA)  # as a GIS shows them: areas below
        file.document["features"] = [*kept, *(file.feature(drawn, known.get(_corners(drawn))) for drawn in ordered)]
        data = json.dumps(file.document, ensure_ascii=False, allow_nan=False).replace(
            '{"type": "Feature",', '\n{"type": "Feature",'
        )
        disk.make_place(path)
        with disk.whole(path) as place:
            place.write_text(f"{data}\n", encoding="utf-8")
        return _stamp(path)


def _check_writable(path: Path) -> None:
    """Raises UserError if nothing can be saved at a path: better before hours of drawing than after."""
    if path.is_dir():
        raise UserError(f"--labels is {path}, a folder; name a file in it, as {path / 'labels.geojson'}")
    if SCENE not in str(path.parent):
        try:
            disk.check_folder(path.parent)
        except UserError as error:
            raise UserError(str(error).replace("--out", "--labels")) from error


def read_sent(data: bytes) -> Sent:
    """What a page has sent.

    Raises:
        UserError: it is something else.
    """
    if len(data) > LARGEST:
        raise UserError(f"{len(data)} bytes of labels came, over {LARGEST}; draw fewer or simpler polygons")
    return border.check(
        border.parse_json(border.decode(data, "what came"), "what came"), Sent, "what came", cure="send it again"
    )


def _corners(drawn: Drawn) -> tuple[tuple[tuple[int, int], ...], ...]:
    """A polygon's corners in hundredths of a pixel, as the page rounds them; the last is left out where it is the first again."""
    rings = (ring[:-1] if ring[0] == ring[-1] else ring for ring in drawn.rings)
    return tuple(tuple((math.floor(100 * x + 0.5), math.floor(100 * y + 0.5)) for x, y in ring) for ring in rings)


def _told(drawn: Drawn) -> dict[str, Any]:
    return {"name": drawn.name, "rings": [[list(point) for point in ring] for ring in drawn.rings]}


def _check(ground: Ground, sent: Sent) -> None:
    """Raises UserError if a polygon is of no class, or no polygon."""
    for i, drawn in enumerate(sent.polygons):
        if drawn.name not in (*ground.classes, AREA):
            known = ", ".join(ground.classes[:8]) + " ..." * (len(ground.classes) > 8)
            raise UserError(
                f"polygon {i} is of {drawn.name!r}, which is no class{perhaps(drawn.name, ground.classes)}; classes are {known}"
            )
        for ring in drawn.rings:
            corners = len(set(ring))
            if corners < 3 or len(ring) > POINTS:
                raise UserError(
                    f"polygon {i} has a ring of {corners} corners; it must have 3 to {POINTS}: draw it again"
                )


def _stamp(path: Path) -> str:
    """What a file holds, in short; "" where there is none."""
    return hashlib.sha256(border.read_bytes(path)).hexdigest()[:16] if path.exists() else ""


@dataclass
class _File:
    """The labels that are there, in the CRS that they are in."""

    path: Path
    ground: Ground
    document: dict[str, Any]
    geometries: np.ndarray
    crs: Any | None  # None: coordinates are the scene's own
    stamp: str

    @classmethod
    def open(cls, path: Path, ground: Ground) -> "_File":
        """A file, or an empty one where there is none."""
        stamp = _stamp(path)
        if not stamp:
            document = {"type": "FeatureCollection", "features": []}
            return cls(path, ground, document, np.empty(0, object), read_crs("OGC:CRS84", path), stamp)
        document = border.read_json(path)
        geometries, _, crs = read_geojson(path, "the labels")
        if document.get("type") != "FeatureCollection" or len(document["features"]) != len(geometries):
            raise UserError(
                f"{path} is no plain list of features; save it as a FeatureCollection, or name another --labels"
            )
        return cls(path, ground, document, geometries, crs, stamp)

    @property
    def features(self) -> list[dict[str, Any]]:
        return self.document["features"]

    @property
    def placement(self) -> Placement:
        ground = self.ground
        return Placement(self.path, self.crs, ground.place, ground.height, ground.width)

    def own(self) -> Iterator[tuple[int, Drawn]]:
        """The polygons that the page can draw on: of the scene, of a class that is known, each with its number in the file."""
        import shapely

        for i, (feature, shape) in enumerate(zip(self.features, self.geometries, strict=True)):
            given = feature.get("properties") or {}
            name = same(given[CLASS]) if isinstance(given.get(CLASS), str) else None
            fits = name in (*self.ground.classes, AREA) and isinstance(shape, shapely.Polygon)
            if not fits or given.get("scene") not in (None, self.ground.name):
                continue
            rings = [self._pixels(ring) for ring in (shape.exterior, *shape.interiors)]
            if given.get("scene") is not None or self._is_here(rings[0]):
                points = (tuple((float(x), float(y)) for x, y in ring.round(3)) for ring in rings)
                yield i, Drawn(name, tuple(points))

    def _pixels(self, ring: Any) -> np.ndarray:
        import shapely

        with self.placement.told():
            return self.placement.to_pixels(shapely.get_coordinates(ring))

    def _is_here(self, ring: np.ndarray) -> bool:
        """Whether a polygon that says nothing of its scene lies on this one."""
        low, high = ring.min(axis=0), ring.max(axis=0)
        return bool((high > 0).all() and (low < (self.ground.width, self.ground.height)).all())

    def check_alone(self, kept: Sequence[dict[str, Any]]) -> None:
        """Raises UserError if pixels of two scenes would stand in one file, and nothing would say whose they are."""
        if self.placement.has_place:
            return
        others = [feature["properties"].get("scene") for feature in kept if isinstance(feature.get("properties"), dict)]
        other = next((name for name in others if isinstance(name, str) and name != self.ground.name), None)
        if other is not None:
            raise UserError(
                f"{self.path} has labels of {other}, and of scenes without a place coordinates are pixels; name --labels with "
                f'{SCENE}, as "labels/{SCENE}.geojson": then each scene has its own file'
            )

    def feature(self, drawn: Drawn, before: dict[str, Any] | None) -> dict[str, Any]:
        """A polygon as the file has them; ``before``: what it has of one with these corners."""
        if before is not None:
            about = before["properties"]
            return before if same(about[CLASS]) == drawn.name else before | {"properties": about | {CLASS: drawn.name}}
        rings = [self._coordinates(ring) for ring in drawn.rings]
        about = {CLASS: drawn.name, "scene": self.ground.name}
        return {"type": "Feature", "properties": about, "geometry": {"type": "Polygon", "coordinates": rings}}

    def _coordinates(self, ring: Sequence[tuple[float, float]]) -> list[list[float]]:
        points, placement = np.array(ring, np.float64), self.placement
        out = np.stack(self.ground.place.to_crs(*points.T), axis=1)
        degrees = placement.crs is not None and placement.crs.is_geographic
        if placement.crs is not None:
            out = self._moved(out)
        listed = [[round(x, DIGITS[degrees]) for x in point] for point in out.tolist()]
        return listed if listed[0] == listed[-1] else [*listed, listed[0]]

    def _moved(self, points: np.ndarray) -> np.ndarray:
        from rasterio.warp import transform

        try:
            with environment():
                moved = np.stack(transform(self.ground.place.crs, self.crs, *points.T), axis=1)
        except failures() as error:
            raise UserError(
                f"{self.ground.name} cannot be brought to the CRS of {self.path} ({cause(error)})"
            ) from error
        if not np.isfinite(moved).all():
            raise UserError(
                f"{self.ground.name} has a place that the CRS of {self.path} does not reach; draw nearer to its middle"
            )
        return moved
