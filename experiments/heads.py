"""What collapsing affine heads saves in prediction: ``python -m experiments.heads [--size 2448] [--rounds 5]``.

The same network twice, as it was trained and with its head collapsed (:mod:`glcanet_jax.models.layers.collapse`), maps the
bundled scene, mirrored to ``--size`` pixels, in turns: CPU seconds and wall time, operations, memory of the programs, and how far
the answers differ. Writes ``heads.json``.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import sizes
from experiments.common.scenes import mirrored_scene
from experiments.speed.cases import CLASSES, Sizes, noise, our_config
from glcanet_jax import backend, cli, geometry, models, report, runs
from glcanet_jax.config import model_config, numbers_of
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.inference import walk
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.measure import info
from glcanet_jax.profiling import machine

WAYS = {"trained": False, "collapsed": True}


@dataclass(frozen=True)
class Options:
    """A network and a scene."""

    networks: tuple[str, ...] = ("glcanet", "branch")  # those with affine heads
    size: int = 2448  # pixels a side of the scene
    view: int = 500  # pixels a side of patches and of the global view
    depth: int = 50  # of the ResNets
    width: int = 64  # filters of their stems; pyramids have four times as many
    rounds: int = 5  # turns of each way; the medians are told
    results: Path = Path("results")  # where heads.json goes


def measure(network: str, options: Options) -> dict[str, Any]:
    """Both ways in turns, for one network."""
    own = {"depth": options.depth, "width": options.width, "fpn_channels": 4 * options.width}
    config = our_config(Sizes(size=options.size, view=options.view), "float32")
    model = runs.build_model(dataclasses.replace(config, model=model_config(network, **own)), CLASSES)
    variables = noise(lambda key: models.init(model, key, 3), jax.random.key(0))
    normalisation, scene = numbers_of(config.normalisation), ArrayScene("scene", mirrored_scene(options.size))
    predictors = {
        name: Predictor(model, variables, config.views, normalisation, bands=3, batch=1, collapse=collapse)
        for name, collapse in WAYS.items()
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    logits = {}
    for turn in range(options.rounds + 1):  # the first compiles, and does not count
        for name, predictor in predictors.items():
            sink = walk.ArraySink(scene.height, scene.width)
            began = time.process_time(), time.perf_counter()
            walk.predict_scene(predictor, scene, sink, outputs=("logits",))
            if turn:
                turns[name].append((time.process_time() - began[0], time.perf_counter() - began[1]))
            logits[name] = sink.arrays["logits"]
    cost = {name: info.flops(model, config.views, predicted=collapse) for name, collapse in WAYS.items()}
    plan, context = len(geometry.walk_scene(scene.height, scene.width, config.views)), config.views
    extent = context.context_extent(scene.height, scene.width)
    ways = {}
    for name, predictor in predictors.items():
        cpu, wall = np.median(np.array(turns[name]), axis=0)
        memory = max(sizes["total"] for sizes in predictor.memory(np.uint8, extent).values())
        ways[name] = {
            "cpu_seconds": round(cpu, 3),
            "wall_seconds": round(wall, 3),
            "memory_mb": round(memory / 2**20, 1),
        }
        ways[name] |= {"gflop_patch": round(cost[name]["patch"], 2), "gflop_context": round(cost[name]["context"], 2)}
    pairs = np.array(turns["collapsed"]) / np.array(turns["trained"])
    difference = np.abs(logits["collapsed"] - logits["trained"]).max() / np.abs(logits["trained"]).max()
    return {
        "network": network, "patches": plan, "ways": ways, "relative_difference": float(difference),
        "cpu_ratio": round(float(np.median(pairs[:, 0])), 3), "wall_ratio": round(float(np.median(pairs[:, 1])), 3),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """A line a network."""
    lines = [f"{'network':<10}{'CPU s':>16}{'ratio':>8}{'GFLOP a patch':>18}{'memory, MB':>18}{'differ by':>12}"]
    for row in result["rows"]:
        both = [row["ways"][name] for name in WAYS]
        pair = lambda key, both=both: f"{both[0][key]:.1f} -> {both[1][key]:.1f}"  # noqa: E731
        lines.append(
            f"{row['network']:<10}{pair('cpu_seconds'):>16}{row['cpu_ratio']:>8.2f}{pair('gflop_patch'):>18}"
            f"{pair('memory_mb'):>18}{row['relative_difference']:>12.1e}"
        )
    return "\n".join(lines)


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.heads", __doc__)
    backend.enable_compilation_cache()
    made = {"command": " ".join(["python -m experiments.heads", *sys.argv[1:]]), **machine(), "commit": sizes.commit()}
    result = made | {"size": options.size, "rows": [measure(network, options) for network in options.networks]}
    print(table(result))
    options.results.mkdir(parents=True, exist_ok=True)
    report.write_json(options.results / "heads.json", result)


if __name__ == "__main__":
    cli.run(main)
