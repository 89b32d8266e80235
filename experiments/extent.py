"""What a map owes to the extent of its scene: ``python -m experiments.extent --data.dir DIR --weights W [--scene tile8]``.

A window of a scene is predicted three ways and compared with the same window of the whole scene's map: as a region of the
scene (same patches, same contexts), as a scene of its own whose blocks lie where the whole scene's do, and as one whose
blocks do not.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.common.sizes import Mbrsc
from glcanet_jax import backend, cli, geometry, report, runs
from glcanet_jax.data import open_dataset
from glcanet_jax.data.scenes import WindowScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Mbrsc
    weights: Path  # a weights file, or a run's folder
    scene: str = "tile8"  # whose map is compared
    overlap: int | None = None  # of patches, pixels; some make steps of patches and contexts meet more often
    offset: int = 137  # pixels that the blocks of the third way lie off
    out: Path | None = None  # JSON file to write


def steps(views: geometry.Views) -> tuple[int, int]:
    """Pixels from patch to patch and from context to context where they are as far apart as they may be."""
    context = views.context_size
    return views.patch_size - views.overlap, context - 2 * max(context // 8, -(-views.patch_size // 2))


def aligned_length(views: geometry.Views, longest: int) -> tuple[int, int]:
    """The longest side within ``longest`` whose patches and contexts both lie at whole steps, and the period of both."""
    patch, context = steps(views)
    period = int(np.lcm(patch, context))
    for length in range(longest, views.context_size, -1):
        if (length - views.patch_size) % patch == 0 and (length - views.context_size) % context == 0:
            return length, period
    raise UserError(
        f"no scene within {longest} px has its patches every {patch} px and its contexts every {context} px; "
        "give weights of other views"
    )


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.extent", __doc__)
    backend.enable_compilation_cache()
    predictor, config, _ = runs.load_predictor(
        options.weights, 1, views={} if options.overlap is None else {"overlap": options.overlap}
    )
    scenes = {s.name: s for split in open_dataset("mbrsc", options.data.dir).splits.values() for s in split}
    if options.scene not in scenes:
        raise UserError(f"there is no scene {options.scene!r}; there are {', '.join(scenes)}")
    scene, views = scenes[options.scene], config.views

    def classes(source, region=None) -> np.ndarray:
        sink = walk.ArraySink(source.height, source.width)
        walk.predict_scene(predictor, source, sink, region=region)
        return sink.arrays["classes"]

    # the whole, cut so that its own blocks lie at whole steps
    (height, period), (width, _) = (aligned_length(views, side) for side in (scene.height, scene.width))
    whole = WindowScene("whole", scene, 0, 0, height, width)
    map_of_whole = classes(whole)
    top, left = period, period
    inner_height, inner_width = height - 2 * period, width - 2 * period
    if min(inner_height, inner_width) <= views.context_size:
        raise UserError(
            f"{options.scene} is too small for a window with blocks at steps of {period} px; give a larger scene"
        )

    def compare(name: str, got: np.ndarray, y: int, x: int) -> dict:
        expected = map_of_whole[y : y + got.shape[0], x : x + got.shape[1]]
        changed = got != expected
        margin = views.context_size // 2
        inner = changed[margin:-margin, margin:-margin]
        return {
            "way": name,
            "window": [y, x, *got.shape],
            "changed_percent": round(100 * float(changed.mean()), 3),
            "changed_percent_half_a_context_inside": round(100 * float(inner.mean()), 3) if inner.size else None,
        }

    region = walk.Window(top, left, inner_height, inner_width)
    rows = [compare("region of the scene", classes(whole, region)[top:-period, left:-period], top, left)]
    for name, y, x in (
        ("scene of its own, blocks aligned", top, left),
        ("scene of its own, blocks not aligned", top + options.offset, left + options.offset),
    ):
        rows.append(compare(name, classes(WindowScene(name, whole, y, x, inner_height, inner_width)), y, x))
    result = {
        "scene": options.scene,
        "whole": [height, width],
        "views": vars(views),
        "weights": options.weights.name,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        report.write_json(options.out, result)


if __name__ == "__main__":
    cli.run(main)
