"""Polygons of GeoPackages and Shapefiles, read through pyogrio."""

from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.gdal import environment, import_pyogrio
from glcanet_jax.data.guard import check_file, crs_text
from glcanet_jax.errors import UserError

FORMATS = {".gpkg": (b"SQLite format 3\0", "GeoPackage"), ".shp": (b"\0\0\x27\x0a", "Shapefile")}  # how a file begins
BESIDE = (".shx", ".prj")  # of a Shapefile, what its polygons depend on


def is_vector_file(path: Path) -> bool:
    """Whether a path is read here, by its suffix; else it is GeoJSON."""
    return path.suffix.lower() in FORMATS


def parts_of(path: Path) -> list[Path]:
    """The files that the polygons depend on."""
    if path.suffix.lower() != ".shp":
        return [path]
    besides = (path.with_suffix(case) for suffix in BESIDE for case in (suffix, suffix.upper()))
    return [path, *{p.resolve(): p for p in besides if p.exists()}.values()]


def read_polygons(path: Path, layer: str | None) -> tuple[list[list[np.ndarray]], Any | None]:
    """The polygons of a layer, as closed rings ``[n, 2]``, the outer one first, and its ``rasterio.crs.CRS`` (None: it says none).

    Raises:
        UserError: pyogrio is missing, the file cannot be read, or has several layers of which none is named.
    """
    if path.exists():  # a pipe would be waited for
        check_file(path)
    start, name = FORMATS[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            begins = file.read(len(start))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a GeoJSON, GeoPackage or Shapefile") from error
    if begins != start:
        raise UserError(f"{path} is no {name}; save the area of interest as one, or as GeoJSON")
    try:
        pyogrio = import_pyogrio()
    except ImportError as error:
        raise UserError(
            f"a {name} needs pyogrio, which is missing; `pip install pyogrio`, or save it as GeoJSON"
        ) from error
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        with environment():
            layer = _layer(path, layer, pyogrio.list_layers(path))
            meta, _, geometries, _ = pyogrio.raw.read(path, layer=layer, columns=[], force_2d=True)
        shapes = shapely.from_wkb(geometries)
    except (DataLayerError, DataSourceError, shapely.errors.GEOSException) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); save it again") from error
    return _rings(shapes), _crs(path, meta["crs"])


def _layer(path: Path, wanted: str | None, layers: Any) -> str:
    """The layer that is meant: the one named, or the only one that has polygons."""
    names = [str(name) for name, _ in layers]
    if wanted is not None:
        if wanted not in names:
            raise UserError(
                f"{path} has no layer {wanted!r}; it has {', '.join(names) or 'none'}: name one with --aoi-layer"
            )
        return wanted
    areas = [str(name) for name, kind in layers if kind is not None and ("Polygon" in kind or kind == "Unknown")]
    if len(areas) != 1:
        there = f"the layers {', '.join(areas)}" if areas else "no layer of polygons"
        raise UserError(
            f"{path} has {there}; "
            + ("name one with --aoi-layer" if areas else "draw the area of interest as polygons")
        )
    return areas[0]


def _rings(shapes: Any) -> list[list[np.ndarray]]:
    """Of every polygon that is not empty, in whatever it lies."""
    import shapely

    parts = [shape for shape in shapely.get_parts(shapes[~shapely.is_missing(shapes)])]
    while any(part.geom_type in ("GeometryCollection", "MultiPolygon") for part in parts):
        parts = list(shapely.get_parts(np.array(parts, object)))
    areas = [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
    return [[shapely.get_coordinates(ring) for ring in (area.exterior, *area.interiors)] for area in areas]


def _crs(path: Path, text: str | None) -> Any | None:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    if text is None:
        return None
    try:
        with environment():  # else PROJ says it, too
            return CRS.from_user_input(crs_text(text))
    except (CRSError, ValueError) as error:
        raise UserError(
            f"{path} has a CRS that is not known ({' '.join(str(error).split())}); save it in another"
        ) from error
