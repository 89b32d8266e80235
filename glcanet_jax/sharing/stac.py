"""Weights as a STAC Item with the Machine Learning Model extension, and maps as Items that say which weights made them.

https://github.com/stac-extensions/mlm, version 1.5.2; names of bands are STAC 1.1's own.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jax

import glcanet_jax
from glcanet_jax.sharing.facts import Facts

VERSION = "1.1.0"  # of STAC
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
MAP_EXTENSIONS = (  # not that of models: it wants all of a model in every Item that names it
    EXTENSIONS[1],
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
MAPS = "maps"  # the collection's name
# of what is of no known time: a range that holds all is what the extension advises
ALWAYS = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
WORLD = [-180.0, -90.0, 180.0, 90.0]
TASK = "semantic-segmentation"
LICENCE = r"[\w\-.+]+"  # an SPDX identifier, as STAC wants it; other words are told by the description
NUMBER = r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}"  # of a release, as the extension wants it


def item(facts: Facts, assets: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The Item.

    Args:
        assets: further ones, as the card and the picture beside the weights.
    """
    weights = {
        "href": facts.path.name,
        "title": "Weights of GLCANet-JAX",
        "type": "application/zip" if facts.export else "application/vnd.safetensors",
        "roles": ["mlm:model", "mlm:weights", "data"],
        "mlm:artifact_type": "jax.export" if facts.export else "safetensors.flax.save_file",
        "bands": _bands(facts),  # STAC has them in properties only where an asset has some, too
        "file:size": facts.bytes,
        "file:checksum": f"1220{facts.sha256}",  # a multihash: SHA-256, 32 bytes
    }
    return {
        "stac_version": VERSION,
        "stac_extensions": list(EXTENSIONS),
        "type": "Feature",
        "id": _identifier(facts.title),
        "geometry": None,
        "properties": _properties(facts),
        "assets": {"weights": weights} | (assets or {}),
        "links": [],
    }


def _properties(facts: Facts) -> dict[str, Any]:
    told: dict[str, Any] = {
        **ALWAYS,
        "title": facts.title,
        "description": f"{facts.called} with {len(facts.classes)} classes for {len(facts.bands)} bands.",
        "bands": _bands(facts),
        "mlm:name": mlm_name(facts),
        "mlm:architecture": facts.called,
        "mlm:tasks": [TASK],
        "mlm:framework": "JAX",
        "mlm:total_parameters": facts.parameters,
        "mlm:pretrained": True,  # these are weights that were trained
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": _inputs(facts),
        "mlm:output": [_output(facts)],
        "mlm:hyperparameters": _hyperparameters(facts),
    }
    if facts.dataset:
        told["mlm:pretrained_source"] = facts.dataset
    if re.fullmatch(NUMBER, jax.__version__):
        told["mlm:framework_version"] = jax.__version__
    if facts.ground_resolution is not None:
        told["gsd"] = facts.ground_resolution
    if facts.licence is not None:
        named = re.fullmatch(LICENCE, facts.licence, re.ASCII)
        told["license"] = facts.licence if named else "other"
        told["description"] += "" if named else f" Licence: {facts.licence}."
    return told


def _bands(facts: Facts) -> list[dict[str, str]]:
    return [{"name": band} for band in facts.bands]


def _inputs(facts: Facts) -> list[dict[str, Any]]:
    """Patches, and the global view where the network looks at one."""
    views, scale = facts.views, facts.normalisation["scale"]
    scaling = [
        {"type": "z-score", "mean": mean * scale, "stddev": std * scale}
        for mean, std in zip(facts.normalisation["mean"], facts.normalisation["std"], strict=True)
    ]

    def told(name: str, words: str, side: int, resize: str | None) -> dict[str, Any]:
        shape = {"shape": [-1, side, side, len(facts.bands)], "dim_order": ["batch", "height", "width", "bands"]}
        return {
            "name": name,
            "description": words,
            "bands": list(facts.bands),
            "input": shape | {"data_type": "float32"},
            "value_scaling": scaling,
            "resize_type": resize,
        }

    looks_at = facts.options.get("view")
    out = []
    if looks_at != "global":
        out.append(told("patches", "Windows of the scene in full resolution.", views.patch_size, None))
    if looks_at != "patch":
        words = "The surroundings of the patches (the context), shrunk by a triangle filter."
        out.append(told("global view", words, views.global_size, "interpolation-linear"))
    return out


def _output(facts: Facts) -> dict[str, Any]:
    side, count = facts.views.patch_size, len(facts.classes)
    return {
        "name": "probabilities",
        "description": "Of every class, a pixel; a map has the likeliest.",
        "tasks": [TASK],
        "result": {
            "shape": [-1, side, side, count],
            "dim_order": ["batch", "height", "width", "class"],
            "data_type": "float32",
        },
        "classification:classes": _classes(facts.classes, facts.palette),
    }


def _classes(names: Sequence[str], palette: Sequence[Sequence[int]] | None) -> list[dict[str, Any]]:
    """The classes of ids from 0, with their colours if these are known."""
    out = []
    for i, name in enumerate(names):
        plain = re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_") or f"class_{i}"
        out.append({"value": i, "name": plain, "description": name})
        if palette is not None:
            out[-1]["color_hint"] = "{:02X}{:02X}{:02X}".format(*palette[i])
    return out


def _hyperparameters(facts: Facts) -> dict[str, Any]:
    """The sizes of the views, and the network's options; what JSON or the extension has no word for is left out."""
    views = {name: getattr(facts.views, name) for name in ("patch_size", "overlap", "context_size", "global_size")}
    known = views | {f"model.{name}": value for name, value in facts.options.items()}
    finite = lambda v: not isinstance(v, float) or math.isfinite(v)  # noqa: E731
    return {name: value for name, value in known.items() if value is not None and finite(value)}


# ----------------------------------------------------------------------------------------------------------------- maps
def mlm_name(facts: Facts) -> str:
    """What the weights are called in their Item, and in links to it."""
    return _named(facts.title)


def beside(file: str) -> str:
    """The reference to a file that lies beside; what would be no part of its path there is encoded, and nothing else."""
    return "./" + re.sub("[%#?]", lambda mark: f"%{ord(mark.group()):02X}", file)


def map_asset(
    kind: str, file: str, media_type: str, classes: Sequence[Mapping[str, Any]], palette: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    """A file of a map, by its kind: ``classes``, ``confidence``, ``polygons``, ``overlay``, ``report`` ..."""
    roles = {"overlay": ["overview"], "report": ["metadata"]}.get(kind, ["data"])
    out: dict[str, Any] = {"href": beside(file), "type": media_type, "roles": roles}
    if kind in ("classes", "confidence", "probabilities"):
        bands = [row["name"] for row in classes] if kind == "probabilities" else [kind]
        out |= {"data_type": "uint8", "nodata": 255, "bands": [{"name": name} for name in bands]}
    if kind == "classes":
        out["classification:classes"] = _classes([row["name"] for row in classes], palette)
    return out


def map_item(
    name: str,
    outline: Mapping[str, Any] | None,
    place: Mapping[str, Any],
    times: Mapping[str, str],
    report: Mapping[str, Any],
    assets: Mapping[str, Any],
    links: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The Item of a scene's map.

    Args:
        outline: of the scene, as GeoJSON; None: unknown.
        place: ``bbox`` where there is an outline.
        times: of the scene, as STAC names them; none: unknown.
    """
    code = report.get("crs")
    projection: dict[str, Any] = {"proj:shape": [report["height"], report["width"]]}
    projection["proj:code"] = code if re.fullmatch(r"[A-Z]+:\d+", code or "") else None
    return {
        "stac_version": VERSION,
        "stac_extensions": list(MAP_EXTENSIONS),
        "type": "Feature",
        "id": name,
        "collection": MAPS,
        "geometry": outline,
        **place,
        "properties": {
            **({"datetime": None} | times if times else ALWAYS),
            **projection,
            "processing:level": "L4",  # of what a network makes of images
            "processing:software": {"GLCANet-JAX": glcanet_jax.__version__},
        },
        "assets": dict(assets),
        "links": list(links),
    }


def times_of(properties: Mapping[str, Any]) -> list[datetime]:
    """The times of an Item, those that are known."""
    found = [properties.get(key) for key in ALWAYS]
    read = [_time(t) for t in found if isinstance(t, str) and t not in ALWAYS.values()]
    return [t for t in read if t is not None]


def _time(text: str) -> datetime | None:
    """As RFC 3339 has it; without a zone it is UTC. None: it is none."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def maps_collection(
    facts: Facts, boxes: Sequence[Sequence[float]], times: Sequence[datetime], links: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The Collection of maps, with their extents together; those that cross the antimeridian go around the world."""
    plain = [box if box[0] <= box[2] else [-180.0, box[1], 180.0, box[3]] for box in boxes]
    ends = [t.isoformat().replace("+00:00", "Z") for t in (min(times), max(times))] if times else [None, None]
    west, south, east, north = zip(*plain, strict=True) if plain else ((v,) for v in WORLD)
    return {
        "stac_version": VERSION,
        "type": "Collection",
        "id": MAPS,
        "title": f"Maps by {facts.title}",
        "description": f"Maps of {len(facts.classes)} classes: {', '.join(facts.classes)}.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [[min(west), min(south), max(east), max(north)]]},
            "temporal": {"interval": [ends]},
        },
        "links": list(links),
    }


def _identifier(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "weights"


def _named(title: str) -> str:
    """A name as the extension wants it: letters first, no marks but dots, dashes and underscores."""
    name = re.sub(r"[^a-zA-Z0-9_.\-\s]+", " ", title)
    name = re.sub(r"\s+", " ", re.sub(r"^[^a-zA-Z]+|[^a-zA-Z0-9]+$", "", name))
    return name if len(name) > 2 else f"GLCANet-JAX {name}".strip()
