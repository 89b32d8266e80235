"""The real commands on a device: what users wait for, whatever the network alone could do."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.common.scenes import mirrored_scene, write_large
from experiments.speed.cases import CLASSES, Sizes, noise, our_config
from glcanet_jax.errors import UserError
from glcanet_jax.measure import aot

# packages that the commands need beside those of the network
NEEDS = ("rasterio", "shapely", "affine", "tyro", "docstring_parser", "typeguard", "pydantic")
ROOT = Path(__file__).parents[2]
COLOURS = np.random.default_rng(0).integers(0, 256, (CLASSES, 3), np.uint8)


def command(*words: Any, cache: Path, seconds: float) -> tuple[float, float]:
    """Run ``python -m glcanet_jax`` with a compilation cache of its own.

    Returns:
        the time it began at, and the seconds it took.

    Raises:
        UserError: it failed, or took longer than ``seconds``; in one line.
    """
    line = [sys.executable, "-m", "glcanet_jax", *map(str, words)]
    began = time.time()
    try:
        done = subprocess.run(
            line,
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            capture_output=True,
            timeout=max(seconds, 1),
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{words[0]} was cut short after {seconds:.0f} s") from error
    if done.returncode:
        raise UserError(f"{words[0]} failed: {aot.reason(done.stderr.decode(errors='replace'), done.returncode)}")
    return began, time.time() - began


# ---------------------------------------------------------------------------------------------------------- what is read
def write_weights(path: Path, sizes: Sizes, dtype: str) -> None:
    """The default network with noise in its kernels."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # this process leaves the device to the command
    from glcanet_jax import config as configs
    from glcanet_jax import models, runs, weights

    config = our_config(sizes, dtype)
    model = runs.build_model(config, CLASSES)
    names = [f"class {i}" for i in range(CLASSES)]
    classes = {"names": names, "palette": COLOURS.tolist()}
    told, normalisation = configs.to_dict(config), configs.numbers_of(config.normalisation)
    variables = noise(lambda key: models.init(model, key, 3), jax.random.key(0))
    weights.save_weights(path, variables, told, classes, normalisation, bands=3)


def scenes(sizes: Sizes, count: int) -> Iterator[np.ndarray]:
    """The bundled scene, mirrored to a size and moved: no two are the same."""
    whole = mirrored_scene(sizes.size)
    for i in range(count):
        yield np.roll(whole, (37 * i, 91 * i), (0, 1))


def write_training(folder: Path, sizes: Sizes, count: int) -> None:
    """A data set of JPEGs with masks in colours, as DeepGlobe's are."""
    (folder / "train" / "images").mkdir(parents=True)
    (folder / "train" / "masks").mkdir()
    for i, scene in enumerate(scenes(sizes, count)):
        Image.fromarray(scene).save(folder / "train" / "images" / f"s{i}.jpg", quality=90)
        Image.fromarray(COLOURS[scene[..., 1] // (256 // CLASSES + 1)]).save(folder / "train" / "masks" / f"s{i}.png")
    classes = [{"id": i, "name": f"class {i}", "rgb": "#" + bytes(rgb.tolist()).hex()} for i, rgb in enumerate(COLOURS)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))


# --------------------------------------------------------------------------------------------------------- what is measured
def mapped(out: Path, began: float, seconds: float) -> dict[str, Any]:
    """What a call of ``predict`` took, from its report and from the moment at which its first map was there."""
    totals = json.loads((out / "report.json").read_text())
    maps = [path.stat().st_mtime for path in out.rglob("*_classes.tif")]
    walks = [scene["walk_seconds"] for scene in totals["scenes"]]
    busy = sum(scene["device_busy"] * scene["walk_seconds"] for scene in totals["scenes"]) / sum(walks)
    pixels = sum(scene["height"] * scene["width"] for scene in totals["scenes"]) / 1e6
    return {
        "scenes": len(maps),
        "seconds": round(seconds, 2),
        "first_map_seconds": round(min(maps) - began, 2),
        "scenes_per_second": round(len(maps) / seconds, 3),
        "scenes_per_second_after_the_first": round((len(maps) - 1) / max(began + seconds - min(maps), 1e-3), 3),
        "megapixels_per_second": round(pixels / seconds, 2),
        "walk_megapixels_per_second": round(pixels / sum(walks), 2),
        "device_busy": round(busy, 4),
        "batch": totals["scenes"][0]["batch"],
        "device": totals["scenes"][0]["device"],
    }


def predict(sizes: Sizes, seconds: float, *, count: int, side: int, dtype: str = "bfloat16") -> dict[str, Any]:
    """``predict`` from files to files: two JPEG scenes with nothing compiled, then ``count`` others and a large GeoTIFF.

    Args:
        count: scenes of ``sizes.size`` px.
        side: pixels of the large one.
    """
    end, found = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, scene in enumerate(scenes(sizes, count + 2)):
            kind = folder / ("cold" if i < 2 else "warm")
            kind.mkdir(exist_ok=True)
            Image.fromarray(scene).save(kind / f"s{i}.jpg", quality=90)
        write_weights(folder / "weights.safetensors", sizes, dtype)
        (folder / "large").mkdir()
        write_large(folder / "large" / "large.tif", side)
        for kind in ("cold", "warm", "large"):
            words = (
                "predict",
                folder / kind,
                "--weights",
                folder / "weights.safetensors",
                "--out",
                folder / f"{kind}-out",
            )
            try:
                took = command(*words, cache=folder / "cache", seconds=end - time.monotonic())
            except UserError as error:
                if not found:
                    raise
                return found | {"left out": f"{kind}: {error}"}
            found[kind] = mapped(folder / f"{kind}-out", *took)
    return found


def train(sizes: Sizes, seconds: float, *, count: int, steps: int, **given: Any) -> dict[str, Any]:
    """``train`` with the default network from files, six pairs a step: what a step takes once it is compiled and fed.

    Args:
        given: more options of the command, as ``{"data.on-device": "always"}``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_training(folder / "data", sizes, count)
        size = {"depth": sizes.depth, "width": sizes.width, "fpn-channels": 4 * sizes.width, "dtype": "bfloat16"}
        views = {"global-size": sizes.view, "patch-size": sizes.view, "context-size": min(sizes.size, 2448)}
        options = {f"model.{k}": v for k, v in size.items()} | {f"views.{k}": v for k, v in views.items()}
        options |= {"train.steps": steps, "train.log-every": max(steps // 6, 1), "train.eval-every": steps + 1}
        options |= {"loader.batch-size": 6, "loader.patches-per-context": 1} | given
        words = [w for k, v in options.items() for w in (f"--{k}", v)]
        data = ("--data.dataset", "folder", "--data.dir", folder / "data", "--out", folder / "run")
        _, took = command("train", *data, *words, "--train.no-tensorboard", cache=folder / "cache", seconds=seconds)
        log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    fed = [record for record in log if record["kind"] == "train"][2:]  # the first ones compile and fill the queues
    middle = lambda key: round(statistics.median(record[key] for record in fed), 4)  # noqa: E731
    return {key: middle(key) for key in ("seconds_per_step", "images_per_second", "data_wait")} | {
        "seconds": round(took, 1),
        "steps": steps,
    }
