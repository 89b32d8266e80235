"""Memory and speed of prediction against the size of the scene: ``python -m experiments.scene_memory --sizes 4096 8192``.

Each size is a square GeoTIFF of the bundled scene, mirrored outwards and written by window, and is predicted by the real
command in a process of its own. The network is untrained: what it costs does not depend on what it knows.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.common.scenes import write_large
from glcanet_jax import backend, border, cli, geometry, models, runs
from glcanet_jax import config as configs
from glcanet_jax.data import open_dataset
from glcanet_jax.profiling import machine

NETWORKS = {
    "default": configs.model_config(),
    "reduced": configs.model_config(depth=10, width=8, fpn_channels=32),
}


@dataclass(frozen=True)
class Options:
    sizes: tuple[int, ...] = (4096, 8192)  # pixels a side
    network: Literal["default", "reduced"] = "default"  # GLCANet, or one of a tenth of its width
    batch: int = 1  # patches at once
    work: Path | None = None  # where scenes and maps are kept; without: a temporary folder
    out: Path | None = None  # JSON file to write, or to add this run's rows to


def write_weights(path: Path, network: str) -> None:
    """An untrained network as a weights file."""
    dataset = open_dataset("sample")
    config = configs.Config(model=NETWORKS[network], normalisation=configs.NormalisationConfig(scale=255.0))
    model = runs.build_model(config, len(dataset.classes.names))
    runs.save(path, config, dataset, models.init(model, jax.random.key(0), 3))


def bare_seconds(weights: Path, batch: int, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the bare network for a context and for a patch: compiled, on arrays that lie ready, nothing beside it."""
    predictor, config, _ = runs.load_predictor(weights, batch)
    views, fns = config.views, models.functions(runs.build_model(config, predictor.num_classes))
    variables = predictor.plain_variables
    image = jax.numpy.zeros((1, views.global_size, views.global_size, 3))
    patches = jax.numpy.zeros((1, batch, views.patch_size, views.patch_size, 3))
    boxes = jax.numpy.tile(jax.numpy.array([0.2, 0.2, 0.4, 0.4]), (1, batch, 1))
    encode = jax.jit(fns.encode_global)
    context = encode(variables, image)
    local = jax.jit(lambda v, c, p, b: fns.fuse(v, c, fns.encode_local(v, p), b)[0])
    out = []
    for call in (lambda: encode(variables, image), lambda: local(variables, context, patches, boxes)):
        jax.block_until_ready(call())
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - began)
        out.append(float(np.median(times)))
    return out[0], out[1] / batch


def measure(scene: Path, weights: Path, out: Path, batch: int) -> dict:
    """Predict by JAX, as the bare network is computed, in a fresh process; its report."""
    command = [sys.executable, "-m", "glcanet_jax", "predict", str(scene), "--weights", str(weights), "--out", str(out)]
    options = ["--engine", "jax", "--batch", str(batch), "--overwrite", "--no-resume"]
    subprocess.run([*command, *options], check=True)
    return border.read_json(out / f"{scene.stem}.report.json")


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.scene_memory", __doc__)
    backend.enable_compilation_cache()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        weights = work / f"{options.network}.safetensors"
        write_weights(weights, options.network)
        context_seconds, patch_seconds = bare_seconds(weights, options.batch)
        rows = []
        for size in options.sizes:
            scene = work / f"scene{size}.tif"
            if not scene.exists():
                print(f"writing {scene}", flush=True)
                write_large(scene, size, compress="deflate", zlevel=1)
            report = measure(scene, weights, work / f"maps-{options.network}", options.batch)
            walk = geometry.walk_scene(size, size, geometry.Views())
            bare = sum(1 for _ in walk.blocks()) * context_seconds + len(walk) * patch_seconds
            rows.append(
                {
                    "size": size,
                    "network": options.network,
                    "batch": options.batch,
                    "host_peak_mb": report["host_peak_mb"],
                    "program_memory_mb": report["program_memory_mb"],
                    "device_busy": report["device_busy"],
                    "seconds": report["seconds"],
                    "walk_seconds": report["walk_seconds"],
                    "megapixels_per_second": report["megapixels_per_second"],
                    "bare_megapixels_per_second": round(size**2 / 1e6 / bare, 4),
                    "device": report["device"],
                }
            )
            print(json.dumps(rows[-1], indent=1), flush=True)
    result = {
        "what": "prediction of square scenes, a fresh process each; host peak is the process's, programs' memory the compiler's",
        "views": dataclasses.asdict(geometry.Views()),
        **machine(),
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if options.out.exists():
            kept = border.read_object(options.out, rows=list)["rows"]
            new = {(r["network"], r["size"], r["batch"]) for r in rows}
            result["rows"] = [r for r in kept if (r["network"], r["size"], r["batch"]) not in new] + rows
        report.write_json(options.out, result)


if __name__ == "__main__":
    cli.run(main)
