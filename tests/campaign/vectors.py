"""Labels as vectors: ``labels.json``, and the GeoJSON, GeoPackages and Shapefiles that it names, damaged."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.cases import ARGV, CLASSES, Case, dice, fine
from tests.campaign.jsons import FRAMES, RAW, mutations

NAMES = [c["name"] for c in CLASSES["classes"]]


def square(left: float, top: float, side: float = 40.0) -> list[list[float]]:
    """A ring in the pixels of a picture that lies nowhere."""
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(kind: Any, geometry: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": {"kind": kind}, "geometry": geometry}


def polygon(left: float, top: float, side: float = 40.0) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [square(left, top, side)]}


USE = {"type": "FeatureCollection", "features": [feature("house", polygon(20, 20)), feature("water", polygon(70, 60))]}
LINES = {"type": "LineString", "coordinates": [[0.0, 0.0], [100.0, 90.0]]}
DONE = {"type": "FeatureCollection", "features": [feature(None, polygon(0, 0, 128))]}
RULES = {
    "layers": [{"file": "use.geojson", "attribute": "kind", "classes": {"house": "roof"}}],
    "background": "ground",
    "annotated": {"file": "done.geojson"},
}
COMMANDS = ("check", "eval", "train")
FILES = {"use.geojson": USE, "done.geojson": DONE}


def bare(folder: Path, rules: Any = RULES) -> Path:
    """The data with vectors in the place of masks."""
    data = folder / "data"
    shutil.rmtree(data / "masks")
    for name, content in (FILES | {"labels.json": rules}).items():
        (data / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return data


def told(name: str, content: bytes) -> Callable[[Path], None]:
    """With a file of these bytes."""
    return lambda folder: _done((bare(folder) / name).write_bytes(content))


def with_layer(**changes: Any) -> Callable[[Path], None]:
    """With other keys of the only layer; those that are None are left out."""
    layer = {k: v for k, v in (RULES["layers"][0] | changes).items() if v is not None}
    return lambda folder: _done(bare(folder, RULES | {"layers": [layer]}))


def _done(_: Any) -> None:
    """What makes a case gives nothing."""


# ------------------------------------------------------------------------------------------------------------------- cases
def labels(seed: int, each: int) -> Iterator[Case]:
    """``labels.json`` and GeoJSON."""
    for file in ("labels.json", *FILES):
        for i, (name, content) in enumerate(RAW.items()):
            yield Case("labels", f"{file} {name}", ARGV[COMMANDS[i % 3]], told(file, content))
    for file, sound, look in (("labels.json", RULES, _rules), ("use.geojson", USE, _features)):
        for i, (name, content) in enumerate(mutations(sound, dice(seed, file), each)):
            right = (fine, "it says the same, or less") if look(content) else ()
            yield Case("labels", f"{file} {i} {name}", ARGV[COMMANDS[i % 3]], told(file, content), *right)
    for i, frame in enumerate(FRAMES):
        content = USE | {"crs": {"type": "name", "properties": {"name": frame}}}
        # a picture that lies nowhere has features' coordinates, whatever they mean elsewhere
        right = (fine, "a CRS of its own") if frame.startswith("urn:") else ()
        yield Case("labels", f"CRS {frame!r}", ARGV[COMMANDS[i % 3]], told("use.geojson", _json(content)), *right)
    yield from _layers()
    yield from _shapes()
    yield from _files()


def _layers() -> Iterator[Case]:
    """Rules that are of the right form and cannot be followed."""
    wrong = {
        "no such file": {"file": "uses.geojson"},
        "no scene's file": {"file": "vectors/{scene}.geojson"},
        "outside": {"file": "../use.geojson"},
        "absolute": {"file": "/etc/passwd"},
        "a URL": {"file": "https://127.0.0.1/use.geojson"},
        "GDAL's name": {"file": "/vsicurl/http://127.0.0.1/use.geojson"},
        "a folder": {"file": "images"},
        "an image": {"file": "images/a.png"},
        "classes.json": {"file": "classes.json"},
        "no such column": {"attribute": "kindly"},
        "no column, no class": {"attribute": None, "classes": None},
        "both": {"class_name": "roof"},
        "no such class": {"classes": {"house": "rooof"}},
        "a kind that is no class": {"classes": {"hut": "roof"}},
        "two widths": {"width_m": 1, "width_px": 1},
        "no width": {"width_px": 0},
        "width without ground": {"width_m": 4},
        "order by nothing": {"order_by": "age"},
        "a layer of GeoJSON": {"layer": "uses"},
        "a CRS in words": {"crs": "somewhere"},
    }
    for i, (name, changes) in enumerate(wrong.items()):
        yield Case("labels", name, ARGV[COMMANDS[i % 3]], with_layer(**changes))
    yield Case("labels", "no layers", ARGV["check"], lambda f: _done(bare(f, RULES | {"layers": []})))
    many = RULES | {"layers": RULES["layers"] * 101}
    yield Case("labels", "101 layers", ARGV["check"], lambda f: _done(bare(f, many)))
    for key in ("background", "order"):
        yield Case("labels", f"{key} is no word", ARGV["check"], lambda f, k=key: _done(bare(f, RULES | {k: "rooof"})))
    away = RULES | {"annotated": {"file": "nowhere.geojson"}}
    yield Case("labels", "no such area", ARGV["train"], lambda f: _done(bare(f, away)))


def _shapes() -> Iterator[Case]:
    """Features that cannot be drawn."""
    bad = {
        "a line without width": LINES,
        "a point without width": {"type": "Point", "coordinates": [1.0, 1.0]},
        "no coordinates": {"type": "Polygon"},
        "two points": {"type": "Polygon", "coordinates": [square(1, 1)[:2]]},
        "an open ring": {"type": "Polygon", "coordinates": [square(1, 1)[:4]]},
        "texts": {"type": "Polygon", "coordinates": [[["a", "b"]] * 4]},
        "huge numbers": {"type": "Polygon", "coordinates": [[[x * 1e300, y] for x, y in square(1, 1)]]},
        "unknown": {"type": "Circle", "coordinates": [0, 0]},
        "a text": "POLYGON EMPTY",
    }
    taken = {
        "null": None,
        "empty": {"type": "Polygon", "coordinates": []},
        "far away": polygon(1e6, 1e6),
        "edges that cross": {"type": "Polygon", "coordinates": [[[0, 0], [90, 90], [90, 0], [0, 90], [0, 0]]]},
        "collection of none": {"type": "GeometryCollection", "geometries": []},
    }
    for i, (name, shape) in enumerate((bad | taken).items()):
        content = USE | {"features": [*USE["features"], feature("house", shape)]}
        right = (fine, "others are drawn") if name in taken else ()
        # check lists features that are nowhere as problems
        command = COMMANDS[1 + i % 2] if name in taken else COMMANDS[i % 3]
        yield Case("labels", name, ARGV[command], told("use.geojson", _json(content)), *right)
    for name, kind in (("a class that is none", "hut"), ("a number that is none", 77), ("a list", ["roof"])):
        content = USE | {"features": [*USE["features"], feature(kind, polygon(1, 1))]}
        yield Case("labels", name, ARGV["eval"], told("use.geojson", _json(content)))
    nowhere = DONE | {"features": [feature(None, polygon(1e6, 1e6))]}
    for command in ("eval", "train"):
        yield Case("labels", "an area that is nowhere", ARGV[command], told("done.geojson", _json(nowhere)))


def _files() -> Iterator[Case]:
    """What lies where a vector file should."""

    def masks_too(folder: Path) -> None:
        copy = shutil.copytree(folder / "data" / "masks", folder / "kept")
        shutil.move(copy, bare(folder) / "masks")

    def pipe(folder: Path) -> None:
        path = bare(folder) / "use.geojson"
        path.unlink()
        os.mkfifo(path)

    def directory(folder: Path) -> None:
        path = bare(folder) / "use.geojson"
        path.unlink()
        path.mkdir()

    for command in COMMANDS:
        yield Case("labels", "masks, too", ARGV[command], masks_too)
        yield Case("labels", "a pipe", ARGV[command], pipe)
        yield Case("labels", "a folder in its place", ARGV[command], directory)


# -------------------------------------------------------------------------------------------------- GeoPackages, Shapefiles
def gdals(seed: int, each: int, site: Path) -> Iterator[Case]:
    """Files that GDAL reads, with bytes lost, changed, and parts missing."""
    try:
        import pyogrio  # noqa: F401
    except ImportError:
        return
    write_gdals(site)
    for suffix in (".gpkg", ".shp", ".dbf", ".shx"):
        base, file = ("use.gpkg" if suffix == ".gpkg" else "use.shp"), f"use{suffix}"
        for i, name in enumerate(("empty", "text", "zeros", "object")):
            make = damage(site, base, file, RAW[name])
            yield Case("vectors", f"{file} {name}", ARGV[COMMANDS[i % 3]], make)
        yield Case("vectors", f"{file} gone", ARGV["check"], damage(site, base, file, None))
        for i in range(each):
            way = ("cut", "flipped")[i % 2]
            make = damage(site, base, file, dice(seed, file, i), way)
            yield Case(
                "vectors", f"{file} {way} {i}", ARGV[COMMANDS[i % 3]], make, fine, "such files have no checksums"
            )
    for name, layer in (("no such layer", "uses"), ("several layers", None)):
        make = damage(site, "use.gpkg", "", None, layer=layer)
        yield Case("vectors", name, ARGV["check"], make)


def write_gdals(site: Path) -> None:
    """``vectors/``: a GeoPackage of two layers, and a Shapefile."""
    import warnings

    import numpy as np
    import pyogrio
    import shapely

    if (site / "vectors").exists():
        return
    (site / "vectors").mkdir()
    shapes = [shapely.to_wkb(shapely.from_geojson(json.dumps(f["geometry"]))) for f in USE["features"]]
    kinds = np.array([f["properties"]["kind"] for f in USE["features"]], object)
    with warnings.catch_warnings(action="ignore"):  # that there is no CRS
        for name, layer in (("use.gpkg", "use"), ("use.gpkg", "others"), ("use.shp", "use")):
            path = site / "vectors" / name
            where = {"append": path.exists(), "geometry_type": "Polygon", "layer": layer}
            pyogrio.raw.write(path, np.array(shapes), fields=["kind"], field_data=[kinds], crs=None, **where)


def damage(
    site: Path, base: str, file: str, what: bytes | Random | None, way: str = "", layer: str | None = "use"
) -> Callable[[Path], None]:
    """The data with vectors of a base's kind, of which a file has other bytes, fewer, or is gone."""

    def make(folder: Path) -> None:
        entry = {"file": base, "attribute": "kind", "classes": {"house": "roof"}}
        data = bare(folder, RULES | {"layers": [entry | ({"layer": layer} if layer and base == "use.gpkg" else {})]})
        for path in (site / "vectors").glob(Path(base).stem + ".*"):
            shutil.copyfile(path, data / path.name)
        if not file:
            return
        path = data / file
        if isinstance(what, Random):
            content = bytearray(path.read_bytes())
            if way == "cut":
                content = content[: what.randrange(len(content))]
            else:
                for _ in range(what.choice((1, 20))):
                    content[what.randrange(len(content))] = what.randrange(256)
            path.write_bytes(content)
        elif what is None:
            path.unlink()
        else:
            path.write_bytes(what)

    return make


# ------------------------------------------------------------------------------------- what is right, without the program's words
def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _value(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _rules(content: bytes) -> bool:
    """Whether rules can be followed with the files that are there."""
    value = _value(content)
    if not isinstance(value, dict) or not set(value) <= {"layers", "background", "annotated", "order"}:
        return False
    layers, area = value.get("layers"), value.get("annotated")
    if value.get("background") not in (None, *NAMES) or not isinstance(layers, list) or len(layers) != 1:
        return False
    layer = layers[0]
    if not isinstance(layer, dict) or layer.get("file") != "use.geojson" or layer.get("attribute") != "kind":
        return False
    kinds = layer.get("classes")
    known = isinstance(kinds, dict) and "house" in kinds and all(v in (None, *NAMES) for v in kinds.values())
    within = area is None or (isinstance(area, dict) and area == {"file": "done.geojson"})
    return known and within and set(layer) == {"file", "attribute", "classes"}


def _features(content: bytes) -> bool:
    """Whether all features can be drawn, and are of a class or of none."""
    value = _value(content)
    if not isinstance(value, dict) or value.get("type") != "FeatureCollection" or not value.get("features"):
        return False
    return isinstance(value["features"], list) and all(map(_feature, value["features"]))


def _feature(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type") != "Feature" or "geometry" not in value:
        return False
    told = value.get("properties") or {}
    kinds = (None, "", "house", *NAMES, 0, 1, 2)
    if not isinstance(told, dict) or "kind" not in told or isinstance(told["kind"], dict | list | bool):
        return False
    shape = value["geometry"]
    if told["kind"] not in kinds or (
        shape is not None and (not isinstance(shape, dict) or shape.get("type") != "Polygon")
    ):
        return False
    return shape is None or _rings(shape.get("coordinates"))


def _rings(rings: Any) -> bool:
    if not isinstance(rings, list):
        return False
    return rings in ([], [[]]) or all(
        isinstance(r, list) and len(r) >= 4 and r[0] == r[-1] and all(map(_point, r)) for r in rings
    )


def _point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) >= 2
        and all(type(x) in (int, float) and abs(x) < 1e15 for x in point[:2])
    )
