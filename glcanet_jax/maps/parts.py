"""Parts of a scene on their way to its map: each is computed by whoever comes first, and all are put together at the end.

Of a scene ``NAME`` the parts lie in ``.NAME.parts``: ``ROW_COLUMN`` holds the layers of a part that is done, the sums at its
seams and ``part.json``; the folder gets its name when all of it is there. ``ROW_COLUMN.partial`` is under way. ``scene.json``
is what :func:`glcanet_jax.maps.assembling.assemble` needs to know. Any part can be removed, and is made again alone.
"""

import contextlib
import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import border, geometry, report
from glcanet_jax.data import disk, raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.scratch import Scratch, is_of
from glcanet_jax.maps import destination
from glcanet_jax.maps.features import Drawer
from glcanet_jax.maps.inputs import Listed
from glcanet_jax.maps.map_report import Areas
from glcanet_jax.maps.model import Model, open_scene
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.outputs import check_names
from glcanet_jax.maps.pieces import settled, write_pieces
from glcanet_jax.maps.plan import Plan, plan_scene
from glcanet_jax.maps.task import alone, clear, computed, told
from glcanet_jax.maps.writer import MapWriter, required_bytes
from glcanet_jax.progress import Progress

SCENE, PART = "scene.json", "part.json"
BLOCKS = {"cpu": 2}  # a side of a part, so that it takes minutes
MOST_BLOCKS = 16  # on accelerators
WRITING = threading.Lock()  # of SCENE


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a scene's parts were asked for with: ``scene.json``."""

    scene: str
    weights: str
    options: MapOptions
    precision: str | None = None  # of float32 products
    said: dict[str, str] = dataclasses.field(default_factory=dict)  # of the scene, by the list that named it


def folder_of(out: Path, name: str) -> Path:
    return out / f".{name}.parts"


def default_blocks() -> int:
    """Blocks a side of a part, so that it takes minutes."""
    return BLOCKS.get(jax.default_backend(), MOST_BLOCKS)


def name_of(part: geometry.Part) -> str:
    return f"{part.row}_{part.column}"


def plan_parts(path: str, model: Model, options: MapOptions) -> list[geometry.Part]:
    """The parts of a scene, each of ``options.part_blocks`` x ``options.part_blocks`` blocks.

    Raises:
        UserError: the scene cannot be read, or does not fit the network.
    """
    source = open_scene(path, model, options)
    try:
        views = model.fit(source.height, source.width, options).predictor.views
        return geometry.walk_scene(source.height, source.width, views).parts(options.part_blocks)
    finally:
        source.close()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part that is done: its folder, and what :data:`PART` says."""

    folder: Path
    told: dict[str, Any]

    @classmethod
    def at(cls, folder: Path) -> "Piece | None":
        """None: there is none, or not all of it."""
        if folder.is_symlink() or not (folder / PART).is_file():
            return None
        with contextlib.suppress(UserError):
            told = border.read_object(
                folder / PART, head=dict, layers=dict, sums=dict, counts=dict, walk=dict, window=list
            )
            files = [*told["layers"].values(), *(file for file, _ in told["sums"].values())]
            if all((folder / file).is_file() for file in files):
                return cls(folder, told)
        return None

    @classmethod
    def read(cls, folder: Path, head: dict[str, Any]) -> "Piece | None":
        """None: there is none, or one of another map, or not all of it."""
        piece = cls.at(folder)
        return piece if piece is not None and piece.told["head"] == head else None

    def sums(self, place: tuple[int, int]) -> np.ndarray | None:
        """The own sums that a block kept (:mod:`glcanet_jax.inference.sums`).

        Raises:
            UserError: they are damaged.
        """
        file, checksum = self.told["sums"].get("_".join(map(str, place)), (None, None))
        return None if file is None else Scratch.read(self.folder / file, checksum)


class Shifted:
    """A sink of a part's own size (:class:`glcanet_jax.inference.request.Sink`), written to by places in the scene."""

    def __init__(self, sink: MapWriter, top: int, left: int):
        self._sink, self._top, self._left = sink, top, left
        self.flush = sink.flush

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        self._sink.write(top - self._top, left - self._left, arrays)


class PartTask:
    """A part of a scene on its way to its folder (:class:`glcanet_jax.inference.walk.Task`); its result is what :data:`PART` says.

    The result is None where the part is done already, or the maps are there.

    Attributes:
        shared: parts that go to a store are put there, for whoever puts all of them together.
    """

    shared = True

    def __init__(
        self, name: str, path: str, part: geometry.Part, out: destination.Out, model: Model, options: MapOptions, progress: Progress | None
    ):  # fmt: skip
        """``progress`` counts scenes; None: the part has a bar of its own."""
        self.scene, self.path, self.part = name, path, part
        self.name = f"{name}, part {name_of(part)}"
        self._where = destination.of(out, options.work)
        self._out, self._model, self._options, self._progress = self._where.work, model, options, progress
        self._stack = contextlib.ExitStack()
        self._folder = folder_of(self._out, name) / name_of(part)
        self._plan: Plan | None = None
        self._writer: MapWriter | None = None
        self._scratch: Scratch | None = None
        self._stopped = False

    def open(self) -> walk.Request | None:
        """Raises UserError if the scene cannot be mapped, or maps of something else are in the way."""
        with told(self._out):
            self._began = time.perf_counter()
            check_names(self.scene, self.path, self._out, self._options)
            plan, self._model = plan_scene(self.scene, self.path, self._where, self._model, self._options)
            self._plan = plan
            self._stack.callback(plan.source.close)
            layers = plan.todo(self._options.overwrite).layers
            if not layers:
                return None
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            # also where the part is done: what is drawn of the maps may be asked for anew
            changed = write_asked(self._folder.parent, self.path, self._model, self._options)
            if self.shared and changed:
                self._where.share(self._folder.parent, SCENE)
            if self._is_done(layers):
                return None
            partial = self._folder.with_name(f"{self._folder.name}.partial")
            self._stack.enter_context(alone(partial, self.name))
            return None if self._is_done(layers) else self._request(plan, layers, partial)

    def _is_done(self, layers: list[str]) -> bool:
        if not self._options.resume:
            return False
        head = self._plan.head(layers)
        if (told := self._where.has_shared(self._folder, PART)) is not None:
            return border.parse_json(told, self._folder).get("head") == head
        if Piece.read(self._folder, head) is None:
            return False
        self._share()  # a run that was killed did not come to this
        return True

    def _share(self) -> None:
        """Let other machines have the part, if there may be some."""
        if self.shared:
            self._where.share(self._folder, PART)

    def _request(self, plan: Plan, layers: list[str], partial: Path) -> walk.Request:
        source, views = plan.source, self._model.predictor.views
        head = plan.head(layers) | {"part": list(map(list, self.part[2:]))}
        self._grid = geometry.walk_scene(source.height, source.width, views)
        self._window = top, left, height, width = self._grid.window(self.part, source.height, source.width)
        if not self._options.resume or not is_of(partial, head):
            clear(partial)
        there = sum(file.stat().st_size for file in partial.iterdir())
        check_disk(plan.out, required_bytes(height, width, layers, len(self._model.names)) - there)
        self._scratch = self._stack.enter_context(Scratch(partial, head))
        if source.needs_staging:
            source = self._staged(source)
        legend = self._model.names, self._model.palette
        self._writer = MapWriter(
            partial, height, width, Georeference(), *legend, layers, {}, anew=self._scratch.restart,
            compression=self._options.compression,
        )  # fmt: skip
        self._stack.callback(self._writer.close)
        sink = Shifted(self._writer, top, left)
        return walk.Request(
            source, sink, layers, plan.region, self._scratch, self._advance_of(source), self._model.predictor, self.part
        )

    def _staged(self, source: raster.RasterSource) -> raster.RasterSource:
        """The scene as a tiled copy beside its parts, made by whoever comes first."""
        folder = self._folder.parent
        with (folder / "staged.lock").open("w") as file:
            disk.lock(file, wait=True)
            print(f"{self.scene}: the scene is copied into tiles once, for all parts", flush=True)
            copy = source.stage(folder, self._go_on)
        self._stack.callback(copy.close)
        return copy

    def _go_on(self, *_: int) -> None:
        """Raises UserError if all ends early."""
        if self._stopped:
            raise UserError(f"{self.name}: stopped while the scene was copied; the same command begins it anew")

    def _advance_of(self, source: raster.RasterSource) -> Callable[[int], None]:
        """Called with the pixels that were finished."""
        if self._progress is not None:
            pixels = source.height * source.width
            return lambda count: self._progress.advance(count / pixels)
        bar = self._stack.enter_context(Progress(self._window[2] * self._window[3] / 1e6, self.name, "Mpx"))
        return lambda count: bar.advance(count / 1e6)

    def finish(self, summary: walk.Summary) -> dict[str, Any] | None:
        """Raises UserError if something could not be written; the next run goes on."""
        if self._writer is None:
            return None
        with told(self._out):
            top, left, *_ = self._window
            areas = Areas(self._plan.source.georeference, len(self._model.names))
            made = self._writer.finish(lambda y, x, ids: areas.add(top + y, left + x, ids))
            layers, partial = {layer: path.name for layer, path in made.items()}, self._scratch.folder
            traced = self._traced(made["classes"]) if self._is_traced(made) else None
            sums = {
                "_".join(map(str, at)): [path.name, checksum] for at, (path, checksum) in self._scratch.own().items()
            }
            result = {
                "part": name_of(self.part),
                "window": list(self._window),
                "layers": layers,
                "sums": sums,
                "counts": {"pixels": areas.pixels.tolist(), "units": areas.units},
                "polygons": traced,
                "walk": computed(self._plan.source, summary, self._model),
                "seconds": round(time.perf_counter() - self._began, 3),
                "head": self._plan.head(list(layers)),
            }
            self._plan.source.check_unchanged()
            report.write_json(partial / PART, result)
            shutil.rmtree(self._folder, ignore_errors=True)  # of another map
            os.replace(partial, self._folder)
            self._stack.close()
            kept = {PART, *layers.values(), *(file for file, _ in sums.values()), *(traced or {}).get("files", ())}
            for rest in self._folder.iterdir():  # what the part was made of
                if rest.name not in kept:
                    rest.unlink()
            self._share()
        return result

    def _is_traced(self, made: dict[str, Path]) -> bool:
        """Whether polygons are made in parts: not if small ones go to neighbours, which is a matter of the whole scene."""
        return "classes" in made and self._options.polygons is not None and not self._options.min_area

    def _traced(self, class_map: Path) -> dict[str, Any]:
        """What is kept of the polygons (:mod:`glcanet_jax.maps.pieces`)."""
        source, options = self._plan.source, self._options
        size = source.height, source.width
        drawer, inner = Drawer(options.polygons, source.georeference, *size), settled(self._grid, self.part, size)
        return write_pieces(class_map.parent, class_map, self._window[:2], inner, size, drawer)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._stack.close()


def write_asked(folder: Path, path: str, model: Model, options: MapOptions) -> bool:
    """Say in a scene's folder of parts what they were asked for with, if it does not; several threads and processes may.

    Returns whether it did not.
    """
    options = dataclasses.replace(
        options, engine=model.predictor.engine.name, dtype=model.dtype, devices=None, batch=None
    )
    plain = {k: os.path.abspath(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}
    scene = os.path.abspath(path) if os.path.exists(path) else path
    precision = jax.config.jax_default_matmul_precision
    told = {"scene": scene, "weights": os.path.abspath(model.weights), "options": plain, "precision": precision}
    if isinstance(path, Listed) and path.said:
        told["said"] = dict(path.said)
    with WRITING:
        if (folder / SCENE).is_file() and (folder / SCENE).read_text(encoding="utf-8") == report.as_json(told) + "\n":
            return False
        with disk.whole(folder / SCENE, shared=True) as place:
            report.write_json(place, told)
    return True


def read_asked(folder: Path) -> Asked:
    """Raises UserError if a folder of parts does not say what they were asked for with."""
    return border.check(
        border.read_json(folder / SCENE), Asked, folder / SCENE, cure="run the command that made the parts again"
    )
