"""Maps as a STAC collection: an Item beside each, the weights as one, and ``collection.json``, where the maps are."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glcanet_jax import border
from glcanet_jax.data.own_maps import SUFFIX
from glcanet_jax.errors import UserError
from glcanet_jax.maps import destination, map_report
from glcanet_jax.maps.footprint import bounds
from glcanet_jax.maps.inputs import Listed, names_of, parse_shard, scenes_of
from glcanet_jax.sharing import facts, stac

ITEM, COLLECTION, WEIGHTS = ".stac.json", "collection.json", "weights.mlm.json"
TIMES = "datetime", "start_datetime", "end_datetime"  # of a scene, as STAC has them


@contextlib.contextmanager
def written(
    wanted: bool,
    out: destination.Out,
    work: Path | None,
    weights: str | Path,
    scenes: Sequence[str | Path],
    shard: str | None,
) -> Iterator[None]:
    """Write the collection, if it is ``wanted`` or there already, once scenes have been mapped; also where some of them could not be."""

    def keep_up() -> None:
        where = destination.of(out, work)
        if wanted or is_in(where):
            write(where, weights, scenes, shard)

    try:
        yield
    except UserError:
        with contextlib.suppress(UserError):  # what went wrong first is told
            keep_up()
        raise
    keep_up()


def is_in(where: destination.Folder) -> bool:
    """Whether an earlier command has written a collection there."""
    return where.made and where.has(COLLECTION) and where.has(WEIGHTS)


def write(
    where: destination.Folder, weights: str | Path, scenes: Sequence[str | Path], shard: str | None = None
) -> None:
    """Items of those scenes whose maps are there, and the collection of all that have one.

    Raises:
        UserError: the weights cannot be read, or something cannot be written.
    """
    if not where.made:
        return
    index, count = parse_shard(shard)
    mine = list(names_of(scenes_of(scenes)).items())[index::count]
    known = facts.read(weights)
    told = stac.item(known)
    told["links"] = [_link("root", COLLECTION), _link("parent", COLLECTION), _link("collection", COLLECTION)]
    where.write(WEIGHTS, _text(told | {"collection": stac.MAPS}))

    def add(scene: tuple[str, str]) -> tuple[str, dict[str, Any]] | None:
        name, path = scene
        report = map_report.find_report(where, name)
        if report is None:
            return None
        said = path.said if isinstance(path, Listed) and path.said else _said_before(where, f"{name}{ITEM}")
        made = _item(report, said, known)
        where.write(f"{name}{ITEM}", _text(made))
        return f"{name}{ITEM}", made

    with ThreadPoolExecutor(map_report.AT_ONCE) as pool:
        items = dict(filter(None, pool.map(add, mine)))
        others = [file for file in where.names() if file.endswith(ITEM) and file not in items]
        items |= dict(filter(None, pool.map(lambda file: _read(where, file), others)))
    where.write(COLLECTION, _text(_collection(dict(sorted(items.items())), known)))


def _read(where: destination.Folder, file: str) -> tuple[str, dict[str, Any]] | None:
    """An Item that another command has written; None of what is none."""
    try:
        text = where.text(file)
        value = None if text is None else border.parse_json(text, where.at(file))
    except UserError as error:
        print(f"left out of {COLLECTION}: {error}", file=sys.stderr)
        return None
    return (file, value) if isinstance(value, dict) and isinstance(value.get("properties"), dict) else None


def _said_before(where: destination.Folder, file: str) -> dict[str, str]:
    """What a list said of a scene, as the Item that is there has it."""
    _, item = _read(where, file) or (file, {"properties": {}})
    said = {key: item["properties"].get(key) for key in TIMES} if stac.times_of(item["properties"]) else {}
    links = item.get("links")
    derived = (
        [k for k in links if isinstance(k, dict) and k.get("rel") == "derived_from"] if isinstance(links, list) else []
    )
    said["item"] = next((k.get("href") for k in derived if k.get("href") != f"./{WEIGHTS}"), None)
    return {key: value for key, value in said.items() if isinstance(value, str)}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _link(rel: str, href: str, kind: str = "application/json", **more: Any) -> dict[str, Any]:
    return {"rel": rel, "href": stac.beside(href) if "://" not in href else href, "type": kind, **more}


def _item(report: Mapping[str, Any], said: Mapping[str, str], known: facts.Facts) -> dict[str, Any]:
    """Of a map, by its report and what a list said of its scene."""
    name, outline = report["scene"], report.get("footprint")
    links = [_link("root", COLLECTION), _link("parent", COLLECTION), _link("collection", COLLECTION)]
    ours = report["fingerprint"].get("weights") == known.sha256
    if ours:  # others made it, and are not described here
        links.append(_link("derived_from", WEIGHTS, "application/geo+json", **{"mlm:name": stac.mlm_name(known)}))
    if "item" in said:
        links.append(_link("derived_from", said["item"], "application/geo+json"))
    assets = {
        kind: stac.map_asset(
            kind, file, destination.media_type(file), report["classes"], known.palette if ours else None
        )
        for kind, file in {**report["outputs"], "report": f"{name}{SUFFIX}"}.items()
        if not kind.endswith(("_style", "_crs"))
    }
    times = {key: said[key] for key in TIMES if key in said}
    place = {} if outline is None else {"bbox": bounds(outline)}
    return stac.map_item(name, outline, place, times, report, assets, links)


def _collection(items: Mapping[str, Mapping[str, Any]], known: facts.Facts) -> dict[str, Any]:
    boxes = [item["bbox"] for item in items.values() if isinstance(item.get("bbox"), list)]
    times = [t for item in items.values() for t in stac.times_of(item["properties"])]
    links = [_link("root", COLLECTION), *(_link("item", file, "application/geo+json") for file in items)]
    links.append(_link("item", WEIGHTS, "application/geo+json", title="The weights"))
    return stac.maps_collection(known, boxes, times, links)
