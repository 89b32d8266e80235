"""Patches that are computed for nothing: ``python -m experiments.waste``.

A table of scenes and lists of scenes, and how much more than the needed patches a walk computes, in percent: as it is, counted by
a predictor without a network; and as it was when batches ended with the rows of a block, by arithmetic. Takes seconds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.common.stub import Stub
from glcanet_jax import cli, geometry, report
from glcanet_jax.inference import walk
from glcanet_jax.inference.predictor import batch_for

VIEWS = geometry.Views()
CASES = {
    "2448 px": [2448],
    "5000 px": [5000],
    "10 000 px": [10_000],
    "20 of 2448 px": [2448] * 20,
    "50 of 1000 px": [1000] * 50,
}


class Blank:
    """A scene of zeros, which weighs nothing."""

    def __init__(self, height: int, width: int, bands: int = 3):
        self.height, self.width, self._bands = height, width, bands

    def read_image(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.uint8), (height, width, self._bands))


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        pass

    def flush(self) -> None:
        pass


class Blanks:
    """A blank scene on its way nowhere (:class:`glcanet_jax.inference.walk.Task`)."""

    def __init__(self, side: int):
        self._side = side

    def open(self) -> walk.Request:
        return walk.Request(Blank(self._side, self._side), Nowhere())

    def finish(self, summary: walk.Summary) -> walk.Summary:
        return summary

    def close(self) -> None:
        pass


def counted(sides: list[int], views: geometry.Views, batch: int) -> tuple[int, int]:
    """Patches that a list of square scenes needs, and those that are computed."""
    stub = Stub(views, batch)
    outcomes = list(walk.predict_scenes(stub, [Blanks(side) for side in sides]))
    return sum(outcome.result.patches for outcome in outcomes), stub.asked


def by_rows(sides: list[int], views: geometry.Views, batch: int) -> int:
    """Patches that were computed when a batch ended with the rows that a strip of its height held."""
    return sum(_of_scene(side, views, batch) for side in sides)


def _of_scene(side: int, views: geometry.Views, batch: int) -> int:
    plan = geometry.walk_scene(side, side, views)
    across = 1 + -(-(views.context_limit - views.patch_size) // (views.patch_size - views.overlap))
    rows = max(1, batch // across)
    height = min(views.patch_size + (rows - 1) * (views.patch_size - views.overlap), views.context_limit)
    return sum(
        -(-len(band) * len(block.columns.patches) // batch) * batch
        for block in plan.blocks()
        for band in _bands(plan, block, height)
    )


def _bands(plan: geometry.Walk, block: geometry.Block, height: int) -> Iterator[list[int]]:
    """Rows of patches of a block, as many as a strip of ``height`` rows held."""
    starts, rows = plan.rows.patch_starts, list(block.rows.patches)
    while rows:
        band = [i for i in rows if starts[i] + plan.patch <= starts[rows[0]] + height]
        rows = rows[len(band) :]
        yield band


def table() -> list[dict[str, object]]:
    """A row for each of :data:`CASES`."""
    out = []
    for name, sides in CASES.items():
        needed = sum(len(geometry.walk_scene(side, side, VIEWS)) for side in sides)
        batch = batch_for(needed)
        row: dict[str, object] = {"scenes": name, "patches needed": needed, "batch now": batch}
        for what, computed in (
            ("before, batches of 32", by_rows(sides, VIEWS, 32)),
            ("before, batches of 12", by_rows(sides, VIEWS, 12)),
            ("now, batches of 12", counted(sides, VIEWS, 12)[1]),
            ("now", counted(sides, VIEWS, batch)[1]),
        ):
            row[what] = round(100 * (computed / needed - 1), 1)
        out.append(row)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.waste", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = table()
    for row in rows:
        print("; ".join(f"{k} {v} %" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.out is not None:
        report.write_json(
            options.out, {"command": "python -m experiments.waste", "percent of the needed patches": rows}
        )
    return 0


if __name__ == "__main__":
    cli.run(main)
