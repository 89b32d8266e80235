"""Engines of prediction in turns: ``python -m experiments.engines --rounds 5 --out results/engines.json``.

Each case maps the same scene by the real command in a process of its own: seconds, CPU seconds, peak memory, and the pixels whose class is
another one than by JAX in float32. Then the scores of weights on labelled scenes, by each. The network of the scene is untrained: what
it costs does not depend on what it knows. int8 is calibrated on what it maps, in the first turn, which does not count.
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import glcanet_jax
from experiments.common.scenes import write_large
from experiments.scene_memory import write_weights
from glcanet_jax import border, cli, report
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.inference.engines import processor
from glcanet_jax.profiling import machine

CASES = (("jax", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"))


@dataclass(frozen=True)
class Options:
    size: int = 2448  # pixels a side of the scene
    network: Literal["default", "reduced"] = "default"  # GLCANet, or one of a tenth of its width
    rounds: int = 5  # of all cases, in turns
    scored: str = "demo"  # weights whose scores on the bundled scene are compared
    out: Path | None = None  # JSON file to write


def mapped(scene: Path, weights: Path, out: Path, engine: str, dtype: str) -> dict[str, Any]:
    """Time and memory of the command, and what it says itself."""
    command = [sys.executable, "-m", "glcanet_jax", "predict", scene, "--weights", weights, "--out", out]
    options = ["--engine", engine, "--dtype", dtype, "--overwrite", "--no-resume", "--most-changed", "1"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*map(str, command), *options], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    told = border.read_json(out / f"{scene.stem}.report.json")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept = {name: told[name] for name in ("walk_seconds", "host_peak_mb")} | told["model"]
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), **kept}


def classes(out: Path, scene: Path) -> np.ndarray:
    with contextlib.closing(RasterSource(out / f"{scene.stem}_classes.tif", None, 1)) as source:
        return source.read_image(0, 0, source.height, source.width)


def scores(weights: str) -> dict[str, Any]:
    """mIoU and the share of pixels whose class is another one, on the bundled labelled scene."""
    dataset, out, first = glcanet_jax.open_dataset("sample"), {}, None
    for engine, dtype in CASES:
        segmenter = glcanet_jax.load(weights, engine=engine, dtype=dtype, most_changed=1.0)
        split = "whole"  # the bundled weights have seen nothing of it
        maps = [segmenter.predict(scene.read_image(0, 0, scene.height, scene.width)) for scene in dataset.scenes(split)]
        ids = np.concatenate([prediction.classes.ravel() for prediction in maps])
        first = ids if first is None else first
        (told, *_) = segmenter.evaluate(dataset, split)["protocols"].values()
        changed = float((ids != first).mean())
        out[f"{engine} {dtype}"] = {"miou": told["miou"], "changed": changed, "pixels": len(ids), "split": split}
        print(f"{weights}, {engine} {dtype}: {out[f'{engine} {dtype}']}", flush=True)
    return out


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each case to the first, round by round; medians."""
    out = {}
    for case in {row["case"]: None for row in rows}:
        mine, first = ([r for r in rows if r["case"] == name] for name in (case, rows[0]["case"]))
        keys = ("seconds", "cpu_seconds", "walk_seconds", "host_peak_mb")
        pairs = list(zip(mine, first, strict=True))
        out[case] = {key: round(float(np.median([a[key] / b[key] for a, b in pairs])), 3) for key in keys}
    return out


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.engines", __doc__)
    rows, changed = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        weights, scene = work / f"{options.network}.safetensors", work / "scene.tif"
        write_weights(weights, options.network)
        write_large(scene, options.size, compress="deflate", zlevel=1)
        for turn in range(options.rounds + 1):  # the first one compiles, and does not count
            for engine, dtype in CASES:
                case = f"{engine} {dtype}"
                row = mapped(scene, weights, work / case.replace(" ", "-"), engine, dtype)
                print(turn, case, row, flush=True)
                if turn:
                    rows.append({"case": case, **row})
        first = classes(work / "jax-float32", scene)
        for engine, dtype in CASES[1:]:
            changed[f"{engine} {dtype}"] = float((classes(work / f"{engine}-{dtype}", scene) != first).mean())
    flags = sorted(flag for flag in processor.flags() if flag.startswith(("amx", "avx")))
    result = {
        "what": "engines in turns, a process each; ratios to JAX in float32, round by round, medians",
        **machine(),
        "flags": flags,
        "load": os.getloadavg()[0],
        "ratios": ratios(rows),
        "changed": changed,
        "scores": scores(options.scored),
        "rows": rows,
    }
    print(result["ratios"], changed)
    if options.out is not None:
        report.write_json(options.out, result)


if __name__ == "__main__":
    cli.run(main)
