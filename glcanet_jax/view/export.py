"""``glcanet view --export page.html``: what is looked at as one page of bounded size, to send to somebody."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import report
from glcanet_jax.cli import version
from glcanet_jax.data import disk
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.errors import UserError
from glcanet_jax.maps import look
from glcanet_jax.view import counts, making, sheet, tiles
from glcanet_jax.view.answers import Viewer
from glcanet_jax.view.chores import Chores
from glcanet_jax.view.gallery import Item, Legend, Map, Opened
from glcanet_jax.view.planes import Plane
from glcanet_jax.view.rasters import Box
from glcanet_jax.view.serving import viewer_of

SIDE = 1024
ALL = 32 * 2**20  # pixels of all pictures of a page: some 20 MB
LEAST = 64  # pixels of a picture that still shows something
ENDINGS = (".html", ".htm")


def export_page(
    paths: Sequence[Path], out: Path, side: int = SIDE, dataset: str | None = None, folder: Path | None = None
) -> Path:
    """Write scenes and maps as one page that needs no other file, no server and no network; returns its path.

    Args:
        paths: as ``glcanet view`` takes them.
        side: pixels of each scene's pictures, at most; of very many scenes fewer, so that the page stays small.
        dataset, folder: as ``glcanet view`` takes them.

    Raises:
        UserError: there is nothing to show, or the page cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--export is {out}; its name must end in .html")
    disk.make_place(out, [path for path in paths if path.is_file()])
    with viewer_of(paths, dataset, folder) as viewer:
        report.write_text(out, _page(viewer, side))
    return out


def _page(viewer: Viewer, side: int) -> str:
    problems: list[str] = []
    opened = list(_each(viewer.gallery.items, lambda item: (item, item.opened()), problems))
    pictures = sum(1 + len(o.maps) + (o.truth is not None) for _, o in opened)
    most = math.isqrt(ALL // max(pictures, 1))
    if most < LEAST:
        raise UserError(f"{pictures} pictures are too many for a page; name fewer scenes")
    if most < side:
        print(f"{pictures} pictures: each has at most {most} px a side, so that the page stays small", flush=True)
    shown = list(_each(opened, lambda pair: _shown(viewer, *pair, min(side, most)), problems))
    if not shown:
        raise UserError("; ".join(problems))
    title = shown[0].title if len(shown) == 1 else f"{len(shown)} scenes"
    lead = [f"Made by {version()}, {time.strftime('%Y-%m-%d')}."]
    return sheet.html(title, " ".join([*lead, *(f"Not shown: {problem}." for problem in problems)]), shown)


def _each(things: Sequence[Any], make: Callable[[Any], Any], problems: list[str]) -> Iterator[Any]:
    """What is made of each thing; a broken one is told, and spoils nothing else."""
    for thing in things:
        try:
            yield make(thing)
        except UserError as error:
            print(f"not shown: {error}", file=sys.stderr, flush=True)
            problems.append(str(error))


def _shown(viewer: Viewer, item: Item, opened: Opened, side: int) -> sheet.Shown:
    chores, image = viewer.opener.chores, None
    if opened.image is not None:
        plane = opened.image.plane(opened.image.looking)
        place = _place(opened, side)
        settled(chores, lambda: plane.read(place.box, place.shape))
        ranges = None if opened.image.dtype == np.uint8 else tiles.ranges(plane, 0.02)
        image = _small(tiles.image(plane, place, ranges), opened, side)
    layers = [_map(viewer, item, opened, made, side) for made in opened.maps]
    if opened.truth is not None:
        layers.append(_layer(chores, "truth", opened.truth, opened.truth_legend, opened, None, side))
    about = ", ".join(filter(None, [item.group, look.place_of(opened.place, opened.height, opened.width)]))
    return sheet.Shown(item.name, about, image, layers)


def _map(viewer: Viewer, item: Item, opened: Opened, made: Map, side: int) -> sheet.Layer:
    if made.classes is None:  # of a run, which has not mapped this scene yet
        making.make(opened, made, item.name, viewer.opener, lambda share: None)
    return _layer(viewer.opener.chores, made.label, made.classes, made.legend, opened, made.report, side)


def _layer(
    chores: Chores, title: str, plane: Plane, legend: Legend, opened: Opened, told: Any, side: int
) -> sheet.Layer:
    place = _place(opened, side)
    values, valid = settled(chores, lambda: plane.read(place.box, place.shape))
    ids = _small(np.where(valid, values[..., 0], IGNORE).astype(np.uint8), opened, side)
    whole = counts.of_whole(plane, legend, opened.place, told)
    rows = whole["rows"]
    if not whole["exact"]:  # no more digits than there are
        rows = [row | {"pixels": int(float(f"{row['pixels']:.3g}"))} for row in rows]
    entries = look.legend(rows, legend.palette)
    if not whole["exact"]:
        entries = [entry._replace(amount=f"≈ {entry.amount}") for entry in entries]
    return sheet.Layer(
        title, ids, legend.palette, entries, 100 * whole["nodata_pixels"] / (opened.height * opened.width)
    )


def _place(opened: Opened, side: int) -> tiles.Place:
    """The whole scene, shrunk by a power of two, as overviews are: no smaller than wanted, and not twice as large."""
    factor = 2 ** max(0, math.floor(math.log2(max(opened.height, opened.width) / side)))
    box = Box(0, 0, opened.height, opened.width)
    return tiles.Place(box, (math.ceil(opened.height / factor), math.ceil(opened.width / factor)), factor)


def _small(picture: np.ndarray, opened: Opened, side: int) -> np.ndarray:
    """A picture ``[h, w, 4]``, or ids ``[h, w]``, of at most ``side`` pixels."""
    from PIL import Image

    ratio = min(1.0, side / max(opened.height, opened.width))
    size = max(1, round(opened.width * ratio)), max(1, round(opened.height * ratio))
    way = Image.Resampling.NEAREST if picture.ndim == 2 else Image.Resampling.BOX
    return picture if picture.shape[1::-1] == size else np.asarray(Image.fromarray(picture).resize(size, way))


def settled(chores: Chores, read: Callable[[], Any]) -> Any:
    """What is read once all that it needs is there: overviews, and tiles of what cannot be read by window.

    Raises:
        UserError: some of it cannot be made.
    """
    while True:
        known = chores.count
        found = read()
        problems = chores.wait(known)
        if problems:
            raise UserError("; ".join(problems))
        if chores.count == known:
            return found
