"""Vector files: the features of GeoJSON, of GeoPackages and of Shapefiles, and what their columns say of them."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.gdal import environment, import_pyogrio, silent
from glcanet_jax.data.geojson import FARTHEST, read_geojson
from glcanet_jax.data.guard import check_file, crs_text
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

FORMATS = {".gpkg": (b"SQLite format 3\0", "GeoPackage"), ".shp": (b"\0\0\x27\x0a", "Shapefile")}  # how a file begins
OTHERS = (
    ".kml",
    ".kmz",
    ".gml",
    ".fgb",
    ".parquet",
    ".gdb",
    ".tab",
    ".mif",
    ".dxf",
    ".sqlite",
    ".csv",
    ".zip",
)  # not read
PLACES, COLUMNS = (".shx", ".prj"), (".dbf", ".cpg")  # of a Shapefile: what its places and its columns depend on
POINT, POLYGON = 0, 3  # shapely's numbers of kinds: lines between, collections beyond
Box = tuple[float, float, float, float]  # least x and y, greatest x and y


class Use(NamedTuple):
    """What a file is read for, as messages say it."""

    what: str  # "the labels"
    layer: str  # where a layer is named: "--aoi-layer"
    areas: bool = False  # polygons alone count


class Features(NamedTuple):
    """Features of a layer, in the order of the file."""

    fids: np.ndarray  # [n] numbers in the file
    geometry: np.ndarray  # [n] of shapely's, None where there is none
    columns: dict[str, np.ndarray]  # [n] each; None or NaN where nothing is said


def parts_of(path: Path, columns: bool = False) -> list[Path]:
    """The files that the geometries of one depend on, and its columns where they count."""
    suffix = path.suffix.lower()
    if suffix == ".gpkg":  # what was written and is not yet in the file
        journal = path.with_name(f"{path.name}-wal")
        return [path, *([journal] if journal.exists() and journal.stat().st_size else [])]
    if suffix != ".shp":
        return [path]
    wanted = (*PLACES, *(COLUMNS if columns else ()))
    besides = (path.with_suffix(case) for suffix in wanted for case in (suffix, suffix.upper()))
    return [path, *{p.resolve(): p for p in besides if p.exists()}.values()]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that was looked at; its features are read when they are asked for."""

    path: Path
    columns: tuple[str, ...]
    crs: Any | None  # rasterio.crs.CRS; None: the file says none
    count: int  # features, those without a geometry among them
    bounds: Box | None  # of all of them; None: there is nothing
    source: Callable[[Sequence[str], Box | None, bool], Features]  # in a box, or all; with geometries, or without
    nbytes: int  # held in memory

    def read(self, columns: Sequence[str] = (), boxes: Sequence[Box] | None = None, places: bool = True) -> Features:
        """The features that meet one of the boxes, or all.

        Args:
            places: geometries are wanted; without, they are all None.

        Raises:
            UserError: the file cannot be read, lacks a column, or has coordinates that are no finite numbers.
        """
        columns = list(dict.fromkeys(columns))
        for name in columns:
            if name not in self.columns:
                there = ", ".join(self.columns[:12]) + " ..." * (len(self.columns) > 12)
                near = perhaps(name, self.columns)
                it = f"it has {there}: name one of them" if there else "it has none: save it again with its columns"
                raise UserError(f"{self.path} has no column {name!r}{near}; {it}")
        found = [self.source(columns, box, places) for box in (boxes if boxes is not None else [None])]
        if len(found) == 1:
            return found[0]
        joined = np.concatenate([part.fids for part in found])
        fids, first = np.unique(joined, return_index=True)  # one may meet two boxes; and in the file's order
        pick = lambda arrays: np.concatenate(arrays)[first]  # noqa: E731
        values = {name: pick([part.columns[name] for part in found]) for name in columns}
        return Features(fids, pick([part.geometry for part in found]), values)


def open_layer(path: Path, layer: str | None, use: Use) -> Layer:
    """A layer of a vector file: that of a name, or the only one that can be meant.

    Raises:
        UserError: the file cannot be read or is malformed, pyogrio is missing, or no layer or several could be meant.
    """
    if path.suffix.lower() in FORMATS:
        return _open_with_gdal(path, layer, use)
    if path.suffix.lower() in OTHERS:
        raise UserError(f"{path} is no GeoJSON, GeoPackage or Shapefile; save {use.what} as one of these")
    if layer is not None:
        raise UserError(f"{path} is GeoJSON, which has no layers; leave out {use.layer} {layer}")
    return _open_geojson(path, use)


# --------------------------------------------------------------------------------------------------------------- GeoJSON
def _open_geojson(path: Path, use: Use) -> Layer:
    """It has no index: the file is held whole."""
    import shapely

    geometry, properties, crs = read_geojson(path, use.what)

    def read(columns: Sequence[str], box: Box | None, places: bool) -> Features:
        chosen = np.arange(len(geometry))
        if box is not None:
            x0, y0, x1, y1 = shapely.bounds(geometry).T
            chosen = np.flatnonzero((x1 >= box[0]) & (y1 >= box[1]) & (x0 <= box[2]) & (y0 <= box[3]))
        values = {name: np.empty(len(chosen), object) for name in columns}
        for name, column in values.items():
            column[:] = [properties[i].get(name) for i in chosen]
        return Features(chosen, geometry[chosen], values)

    columns = tuple(dict.fromkeys(name for own in properties for name in own))
    size = 16 * int(shapely.get_num_coordinates(geometry).sum()) + 500 * len(geometry) * (1 + len(columns) // 4)
    return Layer(path, columns, crs, len(geometry), bounds_of(geometry), read, size)


# ------------------------------------------------------------------------------------------------------------------ GDAL
@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What pyogrio and shapely raise over a file, as a UserError."""
    import shapely
    from pyogrio import errors

    try:
        with environment(), silent():  # what it warns of is told where it matters
            yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} has text in another encoding than it says ({error.encoding}); save it again in UTF-8, a Shapefile with its .cpg"
        ) from error
    except (
        errors.DataLayerError, errors.DataSourceError, errors.FeatureError, errors.GeometryError,
        shapely.errors.GEOSException,
    ) as error:  # fmt: skip
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); save it again") from error


def _open_with_gdal(path: Path, layer: str | None, use: Use) -> Layer:
    if path.exists():  # a pipe would be waited for
        check_file(path)
    start, name = FORMATS[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            begins = file.read(len(start))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a GeoJSON, GeoPackage or Shapefile") from error
    if begins != start:
        raise UserError(f"{path} is no {name}; save {use.what} as one, or as GeoJSON")
    try:
        pyogrio = import_pyogrio()
    except ImportError as error:
        raise UserError(
            f"a {name} needs pyogrio, which is missing; `pip install pyogrio`, or save it as GeoJSON"
        ) from error
    with _told(path):
        chosen = _layer(path, layer, pyogrio.list_layers(path), use)
        info = pyogrio.read_info(path, layer=chosen, force_feature_count=True, force_total_bounds=True)
    bounds = info["total_bounds"]
    whole = bounds is not None and bool(np.isfinite(bounds).all())
    source = functools.partial(_read_with_gdal, path, chosen)
    columns, count, text = tuple(map(str, info["fields"])), max(int(info["features"]), 0), info["crs"]
    crs = None if text is None or "Undefined" in text else read_crs(text, path)  # the word is GeoPackages'
    return Layer(path, columns, crs, count, tuple(bounds) if whole else None, source, 1000)


def _read_with_gdal(path: Path, layer: str, columns: Sequence[str], box: Box | None, places: bool) -> Features:
    import shapely

    with _told(path):
        meta, fids, wkb, values = import_pyogrio().raw.read(
            path, layer=layer, columns=list(columns), read_geometry=places, bbox=box, force_2d=True, return_fids=True,
            datetime_as_string=True,
        )  # fmt: skip
        geometry = np.full(len(fids), None) if wkb is None else shapely.from_wkb(wkb)
    if not (np.abs(shapely.get_coordinates(geometry)) < FARTHEST).all():
        raise UserError(
            f"{path} has coordinates that are no finite numbers, or over {FARTHEST:g}; mend them and save it again"
        )
    return Features(fids, geometry, dict(zip(meta["fields"].tolist(), values, strict=True)))


def _layer(path: Path, wanted: str | None, layers: Any, use: Use) -> str:
    """The layer that is meant: the one named, or the only one that has geometries of the kind."""
    names = [str(name) for name, _ in layers]
    if wanted is not None:
        if wanted not in names:
            raise UserError(
                f"{path} has no layer {wanted!r}; it has {', '.join(names) or 'none'}: name one with {use.layer}"
            )
        if layers[names.index(wanted)][1] is None:
            raise UserError(f"{path}: layer {wanted!r} is a table without geometries; name another with {use.layer}")
        return wanted
    fits = [str(n) for n, kind in layers if kind and (not use.areas or "Polygon" in kind or kind == "Unknown")]
    if len(fits) != 1:
        kind = "no layer of polygons" if use.areas else "no layer with geometries"
        there = f"the layers {', '.join(fits)}" if fits else kind
        cure = f"name one with {use.layer}" if fits else f"draw {use.what}{' as polygons' * use.areas}"
        raise UserError(f"{path} has {there}; {cure}")
    return fits[0]


def read_crs(text: str, source: Any) -> Any:
    """The ``rasterio.crs.CRS`` of a name or a definition.

    Raises:
        UserError: it is none; ``source`` says where it stands.
    """
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        with environment():  # else PROJ says it, too
            return CRS.from_user_input(crs_text(text))
    except (CRSError, ValueError) as error:
        raise UserError(
            f"{source} has a CRS that is not known ({' '.join(str(error).split())}); name another, as EPSG:25832"
        ) from error


# -------------------------------------------------------------------------------------------------------------- geometries
def bounds_of(geometry: np.ndarray) -> Box | None:
    """Of geometries together; None where there are none."""
    import shapely

    bounds = shapely.bounds(geometry[~(shapely.is_missing(geometry) | shapely.is_empty(geometry))])
    return tuple((*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist())) if len(bounds) else None


def simple_parts(geometry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points, lines and polygons ``[m]`` that are not empty, in whatever they lie, and whose each is: indices ``[m]``."""
    import shapely

    parts, owners = geometry, np.arange(len(geometry))
    while True:
        there = ~shapely.is_missing(parts) & ~shapely.is_empty(parts)
        parts, owners = parts[there], owners[there]
        if not (shapely.get_type_id(parts) > POLYGON).any():
            return parts, owners
        parts, index = shapely.get_parts(parts, return_index=True)
        owners = owners[index]


def rings_of(polygon: Any) -> list[np.ndarray]:
    """The closed rings ``[n, 2]`` of a polygon, the outer one first."""
    import shapely

    return [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
