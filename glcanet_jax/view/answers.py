"""What the page asks for beside tiles, and what it is told: plain values that become JSON."""

import math
from collections import deque
from typing import Any

import numpy as np

from glcanet_jax.data.georeference import LONLAT
from glcanet_jax.data.own_maps import PROBABILITY_STEPS
from glcanet_jax.errors import UserError
from glcanet_jax.view import counts, making, tiles
from glcanet_jax.view import spots as looking
from glcanet_jax.view.attention import NETWORK, Attention
from glcanet_jax.view.gallery import Gallery, Legend, Map, Opened
from glcanet_jax.view.labels import AREA, Ground, Labels, read_sent
from glcanet_jax.view.opening import Opener, legend_of_table
from glcanet_jax.view.queries import Refused, number, numbers, reals
from glcanet_jax.view.rasters import Box

NO_CLASSES = (
    "nothing can be drawn here, for no classes are known: put a classes.json beside the labels, or name a map, too"
)
RANGES = 500  # ranges of values that are kept
SHARES = {"none": None, "98": 0.02, "99.8": 0.001, "full": 0.0}  # left out at both ends when values are stretched


class Viewer:
    """What the server holds."""

    def __init__(self, gallery: Gallery, opener: Opener, basemap: str | None = None, labels: Labels | None = None):
        self.gallery, self.opener, self.basemap, self.attention = gallery, opener, basemap, Attention()
        self.labels = labels
        self._problems: deque[str] = deque(maxlen=20)
        self._ranges: dict[Any, list[tuple[float, float]]] = {}

    def opened(self, request: Any) -> Opened:
        """The scene that a request names.

        Raises:
            Refused: there is none of that number.
            UserError: it cannot be opened.
        """
        item = self.gallery.item(number(request.path_params["scene"]))
        if item is None:
            raise Refused
        return item.opened()

    def map_of(self, request: Any, opened: Opened, key: str = "map") -> Map:
        at = number(request.query_params.get(key, "0"))
        if not 0 <= at < len(opened.maps):
            raise Refused
        return opened.maps[at]

    @property
    def preparing(self) -> bool:
        """Whether tiles may look otherwise soon."""
        return any(chore["state"] in ("waiting", "working") for chore in self.opener.chores.told())

    def complain(self, problem: str) -> None:
        """Keep a problem for the page: one of a file, however many of its tiles it breaks."""
        if problem.partition(" (")[0] not in {known.partition(" (")[0] for known in self._problems}:
            self._problems.append(problem)

    @property
    def problems(self) -> list[str]:
        return list(self._problems)

    def look(self, request: Any, opened: Opened) -> dict[str, Any]:
        """How a tile is to be drawn: bands, how they are stretched, classes that are off."""
        query = request.query_params
        bands, off = numbers(query.get("bands"), (1, 3)), numbers(query.get("off"))
        if opened.image is not None and not all(1 <= band <= opened.image.bands for band in bands):
            raise Refused
        ranges = self._stretch(opened, bands, query.get("stretch"), reals(query.get("range"), (2,)))
        return {"bands": bands, "off": frozenset(off), "ranges": ranges}

    def _stretch(self, opened: Opened, bands: list[int], word: str | None, span: list[float]) -> Any:
        if opened.image is None:
            return None
        plain = opened.image.dtype == np.uint8
        if len(span) == 2:
            return [(span[0], span[1])] * 3
        word = word or ("none" if plain else "98")
        if word not in SHARES:
            raise Refused
        if SHARES[word] is None:
            return (
                None
                if plain
                else [(0.0, float(np.iinfo(opened.image.dtype).max) if opened.image.dtype.kind in "ui" else 1.0)] * 3
            )
        key = id(opened), tuple(bands), word
        if key not in self._ranges:
            if len(self._ranges) >= RANGES:
                self._ranges.clear()
            plane = opened.image.plane(bands or opened.image.looking)
            self._ranges[key] = tiles.ranges(plane, SHARES[word])
        return self._ranges[key]


# ------------------------------------------------------------------------------------------------------------ answers
def gallery(viewer: Viewer, request: Any) -> dict[str, Any]:
    """All scenes by name; none is opened for it."""
    scenes = [{"name": item.name, "group": item.group} for item in viewer.gallery.items]
    return {"scenes": scenes, "notes": viewer.gallery.notes, "basemap": viewer.basemap}


def status(viewer: Viewer, request: Any) -> dict[str, Any]:
    """What is still being made, and what went wrong."""
    return {"chores": viewer.opener.chores.told(), "done": viewer.opener.chores.done, "problems": viewer.problems}


def scene(viewer: Viewer, request: Any) -> dict[str, Any]:
    """A scene, its layers and their legends."""
    at, opened = number(request.path_params["scene"]), viewer.opened(request)
    item = viewer.gallery.items[at]
    image, draws = opened.image, viewer.labels is not None and _ground(viewer, at, opened) is not None
    return {
        "name": item.name,
        "group": item.group,
        "height": opened.height,
        "width": opened.width,
        "levels": tiles.levels(opened.height, opened.width),
        "tile": tiles.TILE,
        "place": _place(opened),
        "image": None
        if image is None
        else {
            "bands": list(image.names),
            "looking": list(image.looking),
            "dtype": image.dtype.name,
            "choice": not image.colours,
        },
        "truth": None if opened.truth is None else _legend(opened.truth_legend),
        "maps": [_map(made, item.name, i, opened, viewer) for i, made in enumerate(opened.maps)],
        "notes": [*opened.notes, *([NO_CLASSES] if viewer.labels is not None and not draws else [])],
        "draws": draws,
    }


def _legend(legend: Legend) -> dict[str, Any]:
    return {"names": list(legend.names), "colours": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in legend.palette]}


def _map(made: Map, name: str, at: int, opened: Opened, viewer: Viewer) -> dict[str, Any]:
    small = opened.height * opened.width <= making.AT_ONCE
    if made.classes is None and small:
        _ask(viewer, opened, made, name)
    chore = viewer.opener.chores.known(("map", id(made)))
    return {
        "label": made.label,
        "ready": made.classes is not None,
        "state": "none" if chore is None else chore.state,
        "problem": "" if chore is None else chore.problem,
        "legend": _legend(made.legend),
        "confidence": made.confidence is not None,
        "probabilities": made.probabilities is not None,
        "attention": made.network == NETWORK and made.weights is not None,
        "network": made.network,
        "whole": None
        if made.classes is None
        else counts.of_whole(made.classes, made.legend, opened.place, made.report),
    }


def _place(opened: Opened) -> dict[str, Any] | None:
    """Where a scene lies: its transform, the way north, and a grid of longitudes and latitudes for a base map."""
    place = opened.place
    if not place.on_ground:
        return None
    t = place.transform
    steps = np.linspace(0, 1, 9)
    columns, rows = (grid.ravel() for grid in np.meshgrid(steps * opened.width, steps * opened.height))
    degrees = _degrees(opened, columns, rows)
    resolution = place.ground_resolution(opened.height, opened.width)
    return {
        "crs": place.name,
        "transform": [t.a, t.b, t.c, t.d, t.e, t.f],
        "north": _north(t),
        "metres": resolution,
        "grid": None if degrees is None else np.round(np.stack(degrees, 1), 9).tolist(),
    }


def _north(t: Any) -> float:
    """Radians by which the view is turned clockwise for north to be up; 0 where that would be a mirror's picture."""
    area = t.a * t.e - t.b * t.d
    return -math.atan2(t.b, t.a) if area < 0 else 0.0


def _degrees(opened: Opened, columns: Any, rows: Any) -> tuple[Any, Any] | None:
    from rasterio.warp import transform

    from glcanet_jax.data.gdal import failures

    try:
        x, y = transform(opened.place.crs, LONLAT, *opened.place.to_crs(columns, rows))
    except failures():
        return None
    return (x, y) if np.isfinite([x, y]).all() else None


def _box(request: Any, opened: Opened) -> Box:
    """The part of the view that lies in the scene."""
    top, left, bottom, right = numbers(request.query_params.get("box"), (4,)) or (0, 0, opened.height, opened.width)
    top, left = max(0, top), max(0, left)
    bottom, right = min(bottom, opened.height), min(right, opened.width)
    if bottom <= top or right <= left:
        raise Refused
    return Box(top, left, bottom - top, right - left)


def areas(viewer: Viewer, request: Any) -> dict[str, Any]:
    """Areas by class in the view, of a map or the truth."""
    opened = viewer.opened(request)
    if request.query_params.get("map") == "truth":
        plane, legend = opened.truth, opened.truth_legend
    else:
        made = viewer.map_of(request, opened)
        plane, legend = made.classes, made.legend
    if plane is None:
        raise Refused
    return counts.of_window(plane, legend, opened.place, _box(request, opened))


def pixel(viewer: Viewer, request: Any) -> dict[str, Any]:
    """All that is known of a pixel."""
    opened = viewer.opened(request)
    row, column = (number(request.query_params.get(key)) for key in ("row", "column"))
    if not (0 <= row < opened.height and 0 <= column < opened.width):
        raise Refused
    box = Box(row, column, 1, 1)
    one = lambda plane: _one(plane, box)  # noqa: E731
    out: dict[str, Any] = {"row": row, "column": column, "values": None, "truth": None, "maps": []}
    if opened.image is not None:
        bands = range(1, opened.image.bands + 1)
        out["values"] = one(opened.image.plane(list(bands)))
    if opened.truth is not None:
        out["truth"] = _named(one(opened.truth), opened.truth_legend)
    for made in opened.maps:
        told: dict[str, Any] = {"label": made.label, "class": None, "confidence": None, "probabilities": None}
        if made.classes is not None:
            told["class"] = _named(one(made.classes), made.legend)
            told["confidence"] = _share(one(made.confidence)) if made.confidence is not None else None
            shares = one(made.probabilities) if made.probabilities is not None else None
            told["probabilities"] = None if shares is None else [share / PROBABILITY_STEPS for share in shares]
        out["maps"].append(told)
    out["place"] = _where(opened, row, column)
    return out


def _one(plane: Any, box: Box) -> list[Any] | None:
    values, valid = plane.read(box, (1, 1))
    return values[0, 0].tolist() if valid[0, 0] else None


def _share(values: list[Any] | None) -> float | None:
    return None if values is None else values[0] / PROBABILITY_STEPS


def _named(values: list[Any] | None, legend: Legend) -> str | None:
    return legend.names[values[0]] if values is not None and values[0] < len(legend.names) else None


def _where(opened: Opened, row: int, column: int) -> dict[str, Any] | None:
    """The middle of a pixel, in the scene's CRS and in degrees."""
    if not opened.place.on_ground:
        return None
    x, y = (float(v[0]) for v in opened.place.to_crs(np.array([column + 0.5]), np.array([row + 0.5])))
    degrees = _degrees(opened, np.array([column + 0.5]), np.array([row + 0.5]))
    lonlat = None if degrees is None else [round(float(v[0]), 7) for v in degrees]
    return {"crs": opened.place.name, "x": x, "y": y, "lonlat": lonlat}


def spots(viewer: Viewer, request: Any) -> dict[str, Any]:
    """Windows worth looking at: found in the background; asked for again until they are there."""
    opened, kind = viewer.opened(request), request.query_params.get("kind")
    made = viewer.map_of(request, opened)
    if made.classes is None:
        raise Refused
    if kind == "worst" and opened.truth is not None:
        work = lambda tell: looking.worst(made, opened.truth, opened.truth_legend, tell)  # noqa: E731
    elif kind == "unsure" and made.confidence is not None:
        work = lambda tell: looking.least_certain(made.confidence, tell)  # noqa: E731
    elif kind == "unlike":
        other = viewer.map_of(request, opened, "other")
        if other.classes is None:
            raise Refused
        work = lambda tell: looking.unlike(made, other, tell)  # noqa: E731
    else:
        raise Refused
    key = "spots", kind, id(made), request.query_params.get("other") if kind == "unlike" else None
    chore = viewer.opener.chores.ask(key, f"windows of {made.label}", work)
    return {"state": chore.state, "share": chore.share, "problem": chore.problem, "windows": chore.result or []}


def attention(viewer: Viewer, request: Any) -> dict[str, Any]:
    """What the network of a map looks at from a pixel."""
    opened = viewer.opened(request)
    row, column = (number(request.query_params.get(key)) for key in ("row", "column"))
    return viewer.attention.of(opened, viewer.map_of(request, opened), row, column)


def make(viewer: Viewer, request: Any) -> dict[str, Any]:
    """Have a run map the scene."""
    at = number(request.path_params["scene"])
    opened = viewer.opened(request)
    made = viewer.map_of(request, opened)
    if made.classes is None:
        viewer.opener.chores.forget(("map", id(made)))
        _ask(viewer, opened, made, viewer.gallery.items[at].name)
    return {}


def _ask(viewer: Viewer, opened: Opened, made: Map, name: str) -> None:
    if made.weights is None:
        raise UserError(f"{made.label} has no weights that could map {name}")
    work = lambda tell: making.make(opened, made, name, viewer.opener, tell)  # noqa: E731
    viewer.opener.chores.ask(("map", id(made)), f"{made.label} maps {name}", work)


# ------------------------------------------------------------------------------------------------------------- labels
def labels(viewer: Viewer, request: Any) -> dict[str, Any]:
    """The polygons that are drawn on a scene, and of which classes there can be some."""
    ground, legend = _drawn_on(viewer, request)
    told = viewer.labels.read(ground)
    return {**told, "legend": _legend(legend), "area": AREA, "file": str(viewer.labels.of(ground.name))}


def keep_labels(viewer: Viewer, request: Any, sent: bytes) -> dict[str, Any]:
    """Save the polygons of a scene."""
    ground, _ = _drawn_on(viewer, request)
    return {"stamp": viewer.labels.write(ground, read_sent(sent))}


def _drawn_on(viewer: Viewer, request: Any) -> tuple[Ground, Legend]:
    """Raises Refused if nothing can be drawn."""
    opened = viewer.opened(request)
    found = None if viewer.labels is None else _ground(viewer, number(request.path_params["scene"]), opened)
    if found is None:
        raise Refused
    return found


def _ground(viewer: Viewer, at: int, opened: Opened) -> tuple[Ground, Legend] | None:
    """What is drawn on, and the classes: those beside the labels, else the truth's or a map's; None where nobody says some."""
    seen = [made.legend for made in opened.maps]
    seen += [opened.truth_legend] if opened.truth_legend is not None else []
    table = viewer.labels.classes
    if table is None and not seen:
        return None
    legend = seen[-1] if table is None else legend_of_table(table)
    shown = {
        name.casefold(): colour
        for other in reversed(seen)
        for name, colour in zip(other.names, other.palette, strict=True)
    }
    colours = (shown.get(name.casefold(), own) for name, own in zip(legend.names, legend.palette, strict=True))
    ground = Ground(viewer.gallery.items[at].name, opened.height, opened.width, opened.place, legend.names)
    return ground, Legend(legend.names, tuple(colours))
