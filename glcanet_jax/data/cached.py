"""Scenes whose windows are dear to read, kept as plain tiles beside their data: decoded once, labels as class ids.

An entry is named for what it was made of: the bytes of the scene's files and how they are read. Another file under an old
name is another entry, and the old one is never read again.
"""

import dataclasses
import functools
import hashlib
import json
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data import blocks, disk, files, views
from glcanet_jax.data.datasets import Dataset
from glcanet_jax.data.identity import digest, files_of
from glcanet_jax.data.isprs import TileScene
from glcanet_jax.data.loader import cores, readers
from glcanet_jax.data.scenes import leaves
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.progress import Progress

FOLDER = ".glcanet_cache"  # beside the data
STAMPS = "digests.json"  # in it: of files that have their size and time of change, so that they are not read again
BAND = 2**25  # bytes; what is no larger is read at once
LITTLE = 2**25  # bytes of compressed strips that are not worth a cache


# ------------------------------------------------------------------------------------------------------- what is worth it
@dataclasses.dataclass(frozen=True)
class Cost:
    """What reading windows of a scene takes."""

    image: bool = False  # windows of the image are dear
    labels: bool = False  # or those of the labels, or they are colours
    strips: bool = False  # and nothing remembers what was decoded
    known: bool = True  # its files are plain ones

    def __or__(self, other: "Cost") -> "Cost":
        alike = (getattr(self, name) or getattr(other, name) for name in ("image", "labels", "strips"))
        return Cost(*alike, self.known and other.known)


def cost_of(scene: Any) -> Cost:
    """Of a scene by the kinds of its files; those of other kinds than plain files cannot be known."""
    return _any([_of_leaf(leaf) for leaf in leaves(scene)])


def _of_leaf(scene: Any) -> Cost:
    if isinstance(scene, TileScene):
        sources = [files.open_image(path, picked, False) for path, picked in scene.colours]
        heights = [] if scene.heights is None else [files.open_image(scene.heights.path, (1,))]
        return _any([Cost(_dear(s), strips=s.strips) for s in (*sources, *heights)]) | _of_labels(scene.truth)
    if isinstance(scene, files.FileScene):
        source = scene._image()
        return Cost(_dear(source), strips=source.strips) | _of_labels(scene)
    return Cost(known=False)


def _any(costs: Sequence[Cost]) -> Cost:
    return functools.reduce(operator.or_, costs, Cost())


def _of_labels(scene: files.FileScene) -> Cost:
    if not scene.labelled:
        return Cost()
    mask = scene._mask()
    return Cost(labels=mask.dear, strips=mask.strips)


def _dear(source: Any) -> bool:
    return source.sequential or source.strips


def shapes_of(scene: Any, cost: Cost) -> dict[str, blocks.Shape]:
    """The planes that a scene is kept as; none if its windows cost nothing much."""
    if not cost.known:
        return {}
    size, shapes = (scene.height, scene.width), {}
    if cost.image:
        shapes["image"] = (*size, scene.bands, scene.dtype)
        if not scene.all_valid:
            shapes["valid"] = (*size, 1, "bool")
    if cost.labels and scene.labelled:
        shapes["labels"] = (*size, 1, "uint8")
    return shapes


def worth(costs: Sequence[tuple[Any, Cost]], kept: int) -> bool:
    """Whether scenes are better kept as tiles: not if memory keeps all that is decoded (``kept`` bytes), or it is little."""
    dear = [scene for scene, cost in costs if shapes_of(scene, cost)]
    size = sum(s.height * s.width * (s.bands * np.dtype(s.dtype).itemsize + 1) for s in dear)
    return size > kept or (size > LITTLE and any(cost.strips for _, cost in costs))


# ------------------------------------------------------------------------------------------------------------ a scene kept
@dataclasses.dataclass(frozen=True)
class CachedScene:
    """A scene read from its entry; what the entry lacks is read from the scene itself."""

    scene: Any
    entry: blocks.Blocks
    overview: Path | None  # the whole scene as a global view

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "scene":
            raise AttributeError(name)
        return getattr(self.scene, name)

    def _read(self, plane: str, *window: int | None) -> np.ndarray:
        top, left, height, width = window
        if plane not in self.entry.planes:
            return getattr(self.scene, f"read_{plane}")(*window)
        height = self.scene.height - top if height is None else height
        width = self.scene.width - left if width is None else width
        return self.entry.read(plane, top, left, height, width)

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._read("image", top, left, height, width)

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        valid = self._read("valid", top, left, height, width)
        return valid[..., 0] if valid.ndim == 3 else valid

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        labels = self._read("labels", top, left, height, width)
        return labels[..., 0] if labels.ndim == 3 else labels

    def read_global(self, top: int, left: int, height: int, width: int, size: int) -> np.ndarray | None:
        """The global view of a window, if that is the whole scene and was kept."""
        if self.overview is None or (height, width) != (self.scene.height, self.scene.width):
            return None
        try:
            view = np.load(self.overview)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.overview} was removed or cut while it was read from ({error}); run again"
            ) from error
        return view if len(view) == size else None


# ------------------------------------------------------------------------------------------------------------- its making
def cached(
    dataset: Dataset, scenes: Sequence[Any], where: str, kept: int, overview: Callable[[Any], int | None]
) -> tuple[Any, ...]:
    """Scenes as tiles, made first where they are not there: by all cores, going on where a killed run stopped.

    Args:
        where: ``auto`` (beside the data, if that is :func:`worth` it), ``off``, or a folder.
        kept: bytes of decoded files that memory keeps.
        overview: pixels a side of a scene's global view, if it is the whole scene; None: it is not.

    Raises:
        UserError: there is no room; a file of the data cannot be read.
    """
    costs = [] if where == "off" else [(scene, cost_of(scene)) for scene in scenes]
    shapes = [(scene, shapes_of(scene, cost)) for scene, cost in costs]
    wanted = [(scene, shape) for scene, shape in shapes if shape]
    if not wanted or (where == "auto" and not worth(costs, kept)):
        return tuple(scenes)
    folder = _folder(dataset.root if where == "auto" else Path(where), beside=where == "auto")
    blocks.remove_abandoned(folder)  # of files that may be others now
    paths = dict(zip((id(scene) for scene, _ in wanted), _names(folder, wanted), strict=True))
    missing = [(s, shape) for s, shape in wanted if not _whole(paths[id(s)])]
    if missing:
        _make(folder, missing, paths)
    made = {}
    for scene, _ in wanted:
        entry = blocks.Blocks.open(paths[id(scene)])
        made[id(scene)] = CachedScene(scene, entry, _overview(scene, entry, overview(scene)))
    return tuple(made.get(id(scene), scene) for scene in scenes)


def _folder(root: Path | None, beside: bool) -> Path:
    """Where entries lie, ready to be written to: beside the data if that can be, else in the user's own cache."""
    places = [root / FOLDER if beside else root] if root is not None else []
    if beside:
        above = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        places.append(Path(above) / "glcanet_jax" / "scenes")
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    raise UserError(f"{places[0]} cannot be written to; give --data.cache another folder, or --data.cache off")


def _whole(path: Path) -> bool:
    try:
        blocks.Blocks.open(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _make(folder: Path, missing: Sequence[tuple[Any, dict[str, blocks.Shape]]], paths: Mapping[int, Path]) -> None:
    size = sum(blocks.size_of(shapes) for _, shapes in missing)
    free = shutil.disk_usage(folder).free
    print(
        f"{len(missing)} scenes are decoded once into {folder}, which takes {size / 1e6:,.0f} MB of the {free / 1e6:,.0f} MB "
        "that are free there (--data.cache DIR: another folder; off: decode again and again; it may be removed at any time)",
        flush=True,
    )
    try:
        check_disk(folder, size)
    except UserError as error:
        raise UserError(f"{error}: --data.cache DIR, or --data.cache off") from None
    largest = max(scene.height * scene.width * (scene.bands + 1) for scene, _ in missing)
    pixels = sum(scene.height * scene.width for scene, _ in missing) / 1e6
    pool = ThreadPoolExecutor(readers(largest))
    with Progress(pixels, "decoding scenes", "Mpx") as progress:

        def make(item: tuple[Any, dict[str, blocks.Shape]]) -> None:
            _write(paths[id(item[0])], *item)
            progress.advance(item[0].height * item[0].width / 1e6)

        try:
            for _ in pool.map(make, missing):
                pass
        finally:  # what is under way ends, what waits never begins
            pool.shutdown(cancel_futures=True)


def _write(path: Path, scene: Any, shapes: Mapping[str, blocks.Shape]) -> None:
    for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.tiles"):
        if old != path and _stale(old):
            for place in old.parent.glob(f"{old.stem}.*"):  # its global views, too
                place.unlink(missing_ok=True)
    told = {"stamps": {str(p.absolute()): _stamp(p) for p, _ in files_of(scene)}}
    try:
        if not _whole(path):  # another process may have made it meanwhile
            path.unlink(missing_ok=True)
        blocks.write(path, shapes, _bands(scene, shapes), told)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); make room, or give --data.cache another folder"
        ) from error


def _bands(scene: Any, shapes: Mapping[str, blocks.Shape]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """A scene from the top, whole where that is what reading takes anyway."""
    size = scene.height * scene.width * scene.bands * np.dtype(scene.dtype).itemsize
    whole = size <= BAND or (_sequential(scene) and size <= files.WHOLE)
    step = scene.height if whole else blocks.TILE
    for top in range(0, scene.height, step):
        at = top, 0, min(step, scene.height - top), scene.width
        arrays = {name: getattr(scene, f"read_{name}")(*at) for name in shapes}
        yield top, {name: array.reshape(*array.shape[:2], -1) for name, array in arrays.items()}


def _sequential(scene: Any) -> bool:
    """Whether it is files that are decoded whole, whatever window is wanted."""
    if not isinstance(scene, files.FileScene):
        return False
    return scene._image().sequential or (scene.labelled and scene._mask().sequential)


def _overview(scene: Any, entry: blocks.Blocks, size: int | None) -> Path | None:
    """The file of a scene's global view, made if it is not there."""
    if size is None or "image" not in entry.planes:
        return None
    path = entry.path.with_suffix(f".{size}.npy")
    if not path.exists():
        read = lambda top, rows: entry.read("image", top, 0, rows, scene.width)  # noqa: E731
        view = views.global_view_by_rows(read, scene.height, scene.width, size)
        with disk.whole(path, shared=True) as place:
            np.save(place, view)
    return path


# --------------------------------------------------------------------------------------------------------------- its name
def _names(folder: Path, wanted: Sequence[tuple[Any, dict[str, blocks.Shape]]]) -> list[Path]:
    """Where scenes lie, by what they are made of."""
    drawn = [[path for path, _ in files_of(scene)] for scene, _ in wanted]
    known = _digests(folder / STAMPS, list(dict.fromkeys(path for paths in drawn for path in paths)))
    names = []
    for (scene, shapes), paths in zip(wanted, drawn, strict=True):
        text = json.dumps([_plain(scene, known), [known[path] for path in paths], shapes])
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        names.append(folder / f"{re.sub(r'[^0-9A-Za-z]+', '_', scene.name)}-{key}.tiles")
    return names


def _plain(value: Any, known: Mapping[Path, str]) -> Any:
    """What a scene is, wherever its files lie and whatever it is called."""
    if isinstance(value, Path):
        return known.get(value)
    if isinstance(value, list | tuple):
        return [_plain(item, known) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    told = (f.name for f in dataclasses.fields(value) if f.name != "name" and (f.repr or getattr(value, f.name)))
    found = {
        name: _plain(getattr(value, name), known) for name in told
    }  # later fields (no repr) where they say something
    if isinstance(value, files.FileScene):  # what files beside the image may say
        source = value._image()
        found["image as read"] = repr((source.nodata, source._masks))
        found["mask as read"] = repr(value._mask().facts) if value.labelled else None
    return [type(value).__name__, found]


def _digests(path: Path, wanted: Sequence[Path]) -> dict[Path, str]:
    """Of files, all of their bytes; of those that have not changed since from what was noted."""
    try:
        noted = {(name, *stamp): sha for name, (stamp, sha) in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError):
        noted = {}

    def look(file: Path) -> str:
        return noted.get((str(file.absolute()), *_stamp(file))) or digest(file, whole=True)

    with ThreadPoolExecutor(cores()) as pool:
        found = dict(zip(wanted, pool.map(look, wanted), strict=True))
    now = {str(file.absolute()): (_stamp(file), sha) for file, sha in found.items()}
    if any((name, *stamp) not in noted for name, (stamp, _) in now.items()):
        older = {name: (stamp, sha) for (name, *stamp), sha in noted.items()}
        with disk.whole(path, shared=True) as place:
            place.write_text(json.dumps(older | now), encoding="utf-8")
    return found


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore the file, or leave its scene out"
        ) from error
    return [status.st_size, status.st_mtime_ns]


def _stale(path: Path) -> bool:
    """Whether a file that an entry was made of is another one now."""
    try:
        stamps = blocks.Blocks.open(path).told["stamps"]
        return any(Path(name).exists() and _stamp(Path(name)) != stamp for name, stamp in stamps.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
