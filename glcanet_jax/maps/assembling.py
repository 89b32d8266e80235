"""Parts of scenes put together: the maps that one walk over each scene would have made, to the byte on CPUs."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import environment, open_raster, rectangle, steps
from glcanet_jax.data.tiles import TILE
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.sums import Joined
from glcanet_jax.maps import map_report, polygons
from glcanet_jax.maps.features import Drawer
from glcanet_jax.maps.parts import PART, Piece, folder_of, name_of
from glcanet_jax.maps.pieces import Pieces, cells, settled, spans, write_pieces
from glcanet_jax.maps.plan import Plan
from glcanet_jax.maps.task import MapTask
from glcanet_jax.maps.tracing import Tracing

WIDE = 8 * TILE  # columns of a part that are copied at once
HERE = {"device", "batch"}  # what of a fingerprint is of the machine that computes: here it may be another


class AssembleTask(MapTask):
    """The parts of a scene on their way to its maps (:class:`glcanet_jax.inference.walk.Task`); its result is the report.

    It computes no patch: it needs the weights only to know what the maps are of. The options say how large parts are.
    """

    _made: Mapping[str, Any] = {}  # what the parts' walks did
    _pieces: Mapping[geometry.Part, Piece] = {}  # that the class map is put together of
    _grid: geometry.Walk

    def _planned(self, plan: Plan) -> Plan:
        """The plan with the fingerprint of the parts, if they differ in the machine alone."""
        folder = folder_of(self._out, self.name)
        self._where.fetch(folder, PART)
        for told in sorted(folder.glob(f"*/{PART}")):
            if (piece := Piece.at(told.parent)) is not None:
                theirs = {key: value for key, value in piece.told["head"].items() if key != "layers"}
                if all(theirs.get(key) == plan.fingerprint.get(key) for key in {*theirs, *plan.fingerprint} - HERE):
                    return dataclasses.replace(plan, fingerprint=theirs)
        return plan

    def _begin(self, plan: Plan, layers: list[str]) -> None:
        """Raises UserError if parts are missing or damaged."""
        grid = geometry.walk_scene(plan.source.height, plan.source.width, self._model.predictor.views)
        parts = grid.parts(self._options.part_blocks)
        folder, head = folder_of(self._out, self.name), plan.head(layers)
        pieces = {part: Piece.read(folder / name_of(part), head) for part in parts}
        missing = [name_of(part) for part, piece in pieces.items() if piece is None]
        if missing:
            others = any(Piece.at(folder / name) is not None for name in missing)
            state = "are of the scene as it was before, or made otherwise" if others else "are missing"
            raise UserError(
                f"{self.name}: {len(missing)} of {len(parts)} parts {state} ({', '.join(missing[:5])}); "
                "run the command that makes them again, which leaves those that are right as they are"
            )
        self._made = _gathered(list(pieces.values()))
        if "classes" in layers:
            self._grid, self._pieces = grid, pieces
            self._counted = map_report.Areas(plan.source.georeference, len(self._model.names))
        self._open_writer(layers, anew=lambda: None)
        for part, piece in pieces.items():
            window = grid.window(part, plan.source.height, plan.source.width)
            if self._counted is not None:
                self._counted.join(**piece.told["counts"])
            with _opened(piece) as files:
                for top, left, arrays in _copied(files, window):
                    self._writer.write(top, left, arrays)
                    self._go_on()
        joined = Joined(grid, parts, len(self._model.names), _loader(grid, pieces))
        for part, piece in pieces.items():
            window = grid.window(part, plan.source.height, plan.source.width)
            with _opened(piece) as files:
                for at, answers in joined.finished(part, self._model.predictor, tuple(layers)):
                    before, wanted = _wanted(files, window, at, answers)
                    self._writer.write(at[0], at[1], wanted)
                    if self._counted is not None:
                        self._counted.subtract(at[0], at[1], before)
                        self._counted.add(at[0], at[1], wanted["classes"])
                    self._go_on()

    def _trace(self, class_map: Path, out: Path, style: str) -> None:
        options, source = self._options, self._plan.source
        size = source.height, source.width
        if not self._pieces or options.min_area:  # of maps that were there; or a matter of the whole scene
            super()._trace(class_map, out, style)
            return
        drawer = Drawer(options.polygons, source.georeference, *size)
        names = polygons.named(self._model.names, class_map)
        kept = {part[:2]: self._kept(part, drawer) for part in self._pieces}
        down, across = spans(self._grid, list(self._pieces), size)
        with environment(), open_raster(class_map) as ids:
            rows = cells(down, across, kept, ids, size, drawer)
            found = Tracing(size, drawer.made).features(rows)
            polygons.write_features(found, out, options.polygons, source.georeference, names, style)

    def _kept(self, part: geometry.Part, drawer: Drawer) -> Pieces:
        """What a part kept of its polygons; made again if that is not there, or of another format."""
        piece, size = self._pieces[part], (self._plan.source.height, self._plan.source.width)
        kept = Pieces.read(piece.folder, piece.told.get("polygons"), drawer.kind)
        if kept is None:
            top, left, *_ = self._grid.window(part, *size)
            class_map = piece.folder / piece.told["layers"]["classes"]
            write_pieces(piece.folder, class_map, (top, left), settled(self._grid, part, size), size, drawer)
            kept = Pieces(piece.folder)
        return kept

    def _go_on(self, *_: int) -> None:
        """Raises UserError if all ends early."""
        if self._stopped:
            raise UserError(f"{self.name}: stopped while its parts were put together; the same command begins it anew")

    def finish(self, summary: walk.Summary) -> dict[str, Any] | None:
        if self._made:
            summary.pixels = self._plan.source.height * self._plan.source.width
            self._began -= self._made["walk_seconds"]  # of all parts, whoever walked over them
        return super().finish(summary)

    def _computed(self, summary: walk.Summary) -> dict[str, Any]:
        return dict(self._made)

    def _tidy(self) -> None:
        super()._tidy()
        if self._whole:
            self._where.unshare(folder_of(self._out, self.name))
            shutil.rmtree(folder_of(self._out, self.name), ignore_errors=True)


def _gathered(pieces: list[Piece]) -> dict[str, Any]:
    """What the walks over all parts did together, and on what the last of them."""
    walks = [piece.told["walk"] for piece in pieces]
    seconds = sum(told["walk_seconds"] for told in walks)
    busy = sum(told["device_busy"] * told["walk_seconds"] for told in walks)
    kinds = ("computed", "skipped", "resumed")
    return walks[-1] | {
        "walk_seconds": round(seconds, 3),
        "device_busy": round(busy / max(seconds, 1e-9), 4),
        "blocks": {kind: sum(told["blocks"][kind] for told in walks) for kind in kinds},
        "patches": sum(told["patches"] for told in walks),
        "parts": len(pieces),
    }


def _loader(grid: geometry.Walk, pieces: dict[geometry.Part, Piece]) -> Any:
    """The own sums of a block, by its place."""
    owner = {(block.row, block.column): piece for part, piece in pieces.items() for block in grid.blocks(part)}
    return lambda place: owner[place].sums(place)


@contextlib.contextmanager
def _opened(piece: Piece) -> Iterator[dict[str, Any]]:
    """The layers of a part, as rasters that are open."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(environment())
        yield {layer: stack.enter_context(open_raster(piece.folder / f)) for layer, f in piece.told["layers"].items()}


def _copied(
    files: dict[str, Any], window: tuple[int, int, int, int]
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """What a part has of its layers, by windows of bounded size: their places in the scene, and ``[h, w]`` or ``[h, w, k]``."""
    top, left, height, width = window
    for rows in steps(height, TILE):
        for columns in steps(width, WIDE):
            at = rectangle(rows, columns)
            found = {layer: _last(file.read(window=at), layer) for layer, file in files.items()}
            yield top + rows.start, left + columns.start, found


def _wanted(
    files: dict[str, Any],
    window: tuple[int, int, int, int],
    at: tuple[int, int, int, int],
    answers: dict[str, np.ndarray],
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """The classes that a part has at its seams, and the answers there, but for the pixels in which nothing was wanted."""
    y, x = at[0] - window[0], at[1] - window[1]
    rows, columns = slice(y, min(y + at[2], window[2])), slice(x, min(x + at[3], window[3]))
    before, out = None, {}
    for layer, values in answers.items():
        values = (values if values.ndim == 3 else values[None])[:, : rows.stop - y, : columns.stop - x]
        there = files[layer].read(window=rectangle(rows, columns))
        out[layer] = _last(np.where(there == IGNORE, np.uint8(IGNORE), values), layer)
        before = there[0] if layer == "classes" else before
    return before, out


def _last(values: np.ndarray, layer: str) -> np.ndarray:
    return np.moveaxis(values, 0, -1) if layer == "probabilities" else values[0]
