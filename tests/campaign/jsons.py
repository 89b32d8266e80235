"""JSON that is damaged: in its bytes, in its form, in a value somewhere."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.cases import ARGV, CLASSES, SPLITS, Case, Complaint, dice, fine

ODD = (None, True, -1, 0, 1e308, 10**30, 1.5, "", "x", "\u0000", [], {}, [[]], {"x": 1}, "..", "#12345g", "a" * 5000)
RAW = {
    "empty": b"",
    "space": b" \n",
    "null": b"null",
    "number": b"17",
    "list": b"[]",
    "object": b"{}",
    "text": b"some words",
    "NaN": b'{"classes": NaN}',
    "key twice": b'{"a": 1, "a": 2}',
    "UTF-16": '{"a": "b"}'.encode("utf-16"),
    "Latin-1": '{"ä": "ö"}'.encode("latin-1"),
    "zeros": bytes(100),
    "nested": b"[" * 100_000,
    "nested whole": b"[" * 5000 + b"]" * 5000,
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "half a character": b'{"a": "\\ud800"}',
    "comment": b'{"a": 1} // words',
    "trailing comma": b'{"a": 1,}',
}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a value of JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple, new: Any) -> Any:
    """With another value at a place."""
    if not path:
        return new
    out = copy.deepcopy(value)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return out


def without(value: Any, path: tuple) -> Any:
    out = copy.deepcopy(value)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return out


def mutations(value: Any, rng: Random, count: int) -> Iterator[tuple[str, bytes]]:
    """A value of JSON with a value replaced, a key dropped, a key added, or the text cut short."""
    every = list(places(value))
    for _ in range(count):
        path, way = rng.choice(every), rng.choice(("value", "value", "drop", "add", "cut"))
        where = ".".join(map(str, path)) or "whole"
        if way == "value":
            new = rng.choice(ODD)
            yield f"{where} = {json.dumps(new)[:20]}", json.dumps(changed(value, path, new)).encode()
        elif way == "drop" and path:
            yield f"without {where}", json.dumps(without(value, path)).encode()
        elif way == "cut":
            text = json.dumps(value)
            at = rng.randrange(1, len(text))
            yield f"cut at {at}", text[:at].encode()
        else:
            objects = [p for p in every if isinstance(_at(value, p), dict)]
            path = rng.choice(objects)
            with_key = changed(value, path, _at(value, path) | {"unheard of": 1})
            yield f"{'.'.join(map(str, path)) or 'whole'} has another key", json.dumps(with_key).encode()


def _at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


# ------------------------------------------------------------------------------------------------------------------ datasets
def datasets(seed: int, each: int) -> Iterator[Case]:
    """``classes.json`` and ``splits.json``."""
    files = {"classes.json": CLASSES, "splits.json": SPLITS}
    for file, sound in files.items():
        for name, content in RAW.items():
            for command in ("check", "eval") if file == "classes.json" else ("check", "train"):
                yield Case("json", f"{file} {name}", ARGV[command], written(f"data/{file}", content))
        rng = dice(seed, file)
        for i, (name, content) in enumerate(mutations(sound, rng, each)):
            command = ("check", "train", "eval")[i % 3]
            look, why = _sound(file, content)
            yield Case("json", f"{file} {i} {name}", ARGV[command], written(f"data/{file}", content), look, why)
    splits = {
        "empty training": {"train": [], "val": ["b"]},
        "no training": {"test": ["a"]},
        "unknown scene": {"train": ["a", "z"]},
        "twice": {"train": ["a"], "val": ["a"]},
        "twice in one": {"train": ["a", "a"]},
        "nearly": {"Train": ["a"], "test": ["b"]},
    }
    for name, content in splits.items():
        yield Case("splits", name, ARGV["train"], written("data/splits.json", json.dumps(content).encode()))

    def unlabelled(stem: str) -> Callable[[Path], None]:
        return lambda folder: (folder / "data" / "masks" / f"{stem}.png").unlink()

    yield Case("splits", "training without a label", ARGV["train"], unlabelled("a"))
    yield Case("splits", "validation without a label", ARGV["train"], unlabelled("b"))
    yield Case("splits", "scoring without a label", ARGV["eval"], unlabelled("c"))
    yield Case("splits", "no such split", (*ARGV["eval"][:-1], "tset"), lambda folder: None)
    for missing in ("classes.json", "images", "masks"):
        for command in ("check", "train", "eval"):
            yield Case("splits", f"no {missing}", ARGV[command], lambda f, m=missing: _drop(f / "data" / m))
    for command in ("check", "train", "eval"):
        yield Case("splits", "no folder", ARGV[command], lambda folder: _drop(folder / "data"))
        yield Case("splits", "a file", ARGV[command], lambda f: [_drop(f / "data"), (f / "data").write_text("x")])


def _drop(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sound(file: str, content: bytes) -> tuple[Callable[[Path], Complaint] | None, str]:
    """Whether a mutation happens to be sound: looked at here without the program's own schema."""
    try:
        value = json.loads(content)
    except ValueError:
        return None, ""
    if file == "splits.json":
        names = [n for split in value.values() for n in split] if _lists(value) else [None]
        sound = (
            bool(value) and set(names) <= {"a", "b", "c"} and len(names) == len(set(names)) and bool(value.get("train"))
        )
        return (fine, "a split less") if sound else (None, "")
    plain = {key: entry for key, entry in value.items()} if isinstance(value, dict) else {}
    names = [c.get("name") for c in plain.get("classes", ()) if isinstance(c, dict)] if _list(plain) else []
    sound = (
        set(plain) <= {"classes", "ignore"}
        and len(names) == 3
        and all(_class(c, i) for i, c in enumerate(plain["classes"]))
    )
    return (fine, "another name or colour") if sound and len(set(map(str, names))) == 3 else (None, "")


def _list(value: dict[str, Any]) -> bool:
    return isinstance(value.get("classes"), list)


def _lists(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, list) and all(isinstance(n, str) for n in v) for v in value.values()
    )


def _class(entry: Any, index: int) -> bool:
    import re

    return (
        isinstance(entry, dict)
        and set(entry) == {"id", "name", "rgb"}
        and type(entry["id"]) is int
        and entry["id"] == index
        and isinstance(entry["name"], str)
        and 0 < len(entry["name"]) <= 200
        and entry["name"].isprintable()
        and isinstance(entry["rgb"], str)
        and re.fullmatch("#[0-9a-f]{6}", entry["rgb"]) is not None
    )


# --------------------------------------------------------------------------------------------------------------------- areas
SQUARE = [
    [325010.0, 2784990.0],
    [325080.0, 2784990.0],
    [325080.0, 2784920.0],
    [325010.0, 2784920.0],
    [325010.0, 2784990.0],
]
CRS = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32640"}}
FEATURE = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [SQUARE]}}
AREA = {"type": "FeatureCollection", "crs": CRS, "features": [FEATURE]}
SHAPES = {
    "point": {"type": "Point", "coordinates": [325020.0, 2784950.0]},
    "line": {"type": "LineString", "coordinates": SQUARE},
    "no coordinates": {"type": "Polygon"},
    "empty": {"type": "Polygon", "coordinates": []},
    "two points": {"type": "Polygon", "coordinates": [SQUARE[:2]]},
    "texts": {"type": "Polygon", "coordinates": [[["a", "b"]] * 4]},
    "one number": {"type": "Polygon", "coordinates": [[[1.0]] * 4]},
    "far away": {"type": "Polygon", "coordinates": [[[x + 1e6, y] for x, y in SQUARE]]},
    "huge numbers": {"type": "Polygon", "coordinates": [[[x * 1e300, y * 1e300] for x, y in SQUARE]]},
    "collection of none": {"type": "GeometryCollection", "geometries": []},
    "unknown": {"type": "Circle", "coordinates": [0, 0]},
    "no type": {"coordinates": [SQUARE]},
    "null": None,
}
FRAMES = ("EPSG:999999", "", "words", "EPSG:", "urn:ogc:def:crs:EPSG::4978", "+proj=nonsense", "+proj=longlat +a=-1")


def areas(seed: int, each: int) -> Iterator[Case]:
    """``--aoi``: GeoJSON of every kind of fault, and files that only look like others."""
    argv = (*ARGV["predict"], "scene.tif", "--aoi", "aoi.geojson")
    for name, content in RAW.items():
        yield Case("area", name, argv, written("aoi.geojson", content))
    for name, shape in SHAPES.items():
        content = AREA | {"features": [FEATURE | {"geometry": shape}]}
        yield Case("area", name, argv, written("aoi.geojson", json.dumps(content).encode()))
    for frame in FRAMES:
        content = AREA | {"crs": {"type": "name", "properties": {"name": frame}}}
        yield Case("area", f"CRS {frame!r}", argv, written("aoi.geojson", json.dumps(content).encode()))
    for i, (name, content) in enumerate(mutations(AREA, dice(seed, "areas"), each)):
        look, why = _area(content)
        yield Case("area", f"{i} {name}", argv, written("aoi.geojson", content), look, why)
    for suffix in (".gpkg", ".shp", ".kml", ".txt", ".tif"):
        for name in ("empty", "text", "zeros"):
            away = (*argv[:-1], f"aoi{suffix}")
            yield Case("area", f"{suffix} {name}", away, written(f"aoi{suffix}", RAW[name]))
    yield Case("area", "missing", argv, lambda folder: None)
    yield Case("area", "folder", argv, lambda folder: (folder / "aoi.geojson").mkdir())
    yield Case("area", "pipe", argv, lambda folder: __import__("os").mkfifo(folder / "aoi.geojson"))


def _area(content: bytes) -> tuple[Callable[[Path], Complaint] | None, str]:
    """An area whose polygon is left as it was, or with a corner elsewhere, is an area."""
    try:
        value = json.loads(content)
        ring = value["features"][0]["geometry"]["coordinates"][0]
        numbers = [x for point in ring for x in point[:2]]
        sound = value["type"] == "FeatureCollection" and all(type(x) in (int, float) for x in numbers)
    except (ValueError, KeyError, IndexError, TypeError):
        return None, ""
    return (fine, "its polygon is a polygon") if sound else (None, "")
