"""Memory of evaluating whole ISPRS tiles, which are not at hand: ``python -m experiments.tile_memory [--out FILE]``.

A tile of each survey, of its real size, layout, names and colours, is made of the bundled scene, mirrored outwards, and scored
by the real command in a process of its own, under every protocol in one pass. The network is untrained: what it costs does not
depend on what it knows.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.common.scenes import bundled, mirrored
from experiments.scene_memory import NETWORKS
from glcanet_jax import border, cli, models, report, runs
from glcanet_jax import config as configs
from glcanet_jax.data import isprs, open_dataset
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import machine

TILES = {  # of the test split: height and width, and where the image, the truth and the eroded truth of it lie
    "vaihingen": (
        (2494, 2064),  # the survey's mean
        "top/top_mosaic_09cm_area2.tif",
        "gts_for_participants/top_mosaic_09cm_area2.tif",
        "gts_eroded_for_participants/top_mosaic_09cm_area2_noBoundary.tif",
    ),
    "potsdam": (
        (6000, 6000),
        "2_Ortho_RGB/top_potsdam_2_13_RGB.tif",
        "5_Labels_all/top_potsdam_2_13_label.tif",
        "5_Labels_all_noBoundary/top_potsdam_2_13_label_noBoundary.tif",
    ),
}
BORDER = 3  # pixels beside another class that eroded labels do not count


@dataclass(frozen=True)
class Options:
    surveys: tuple[Literal["vaihingen", "potsdam"], ...] = tuple(TILES)  # whose tiles are made
    network: Literal["default", "reduced"] = "default"  # GLCANet, or one of a tenth of its width
    batch: int = 1  # patches at once
    out: Path | None = None  # JSON file to write


def eroded(labels: np.ndarray, border: int = BORDER) -> np.ndarray:
    """Labels that are 255 wherever another class lies within a square of ``border`` pixels around."""
    out = labels.copy()
    for axis in (0, 1):
        for shift in range(1, border + 1):
            near, far = (np.moveaxis(x, axis, 0) for x in (labels, out))
            differs = near[shift:] != near[:-shift]
            far[shift:][differs] = far[:-shift][differs] = 255
    return out


def write_tile(root: Path, survey: str, size: tuple[int, int] | None = None) -> None:
    """A tile in a survey's layout under ``root``, of the survey's size unless another is given."""
    import rasterio

    (height, width), *paths = TILES[survey]
    height, width = size or (height, width)
    image, labels = (mirrored(array, height, width) for array in bundled())
    colours, count = np.zeros((256, 3), np.uint8), len(open_dataset("sample").classes.names)
    colours[:count] = isprs.CLASSES.palette[:count]
    arrays = image, colours[labels], colours[eroded(labels)]
    for path, array in zip(paths, arrays, strict=True):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        profile = dict(driver="GTiff", height=height, width=width, count=3, dtype="uint8", compress="lzw")
        with rasterio.open(
            root / path, "w", **profile, transform=rasterio.Affine(0.09, 0, 0, 0, -0.09, 0), crs="EPSG:32632"
        ) as file:
            file.write(np.moveaxis(array, -1, 0))


def measure(root: Path, survey: str, network: str, batch: int) -> dict[str, Any]:
    """Score a survey's only tile in a fresh process.

    Raises:
        UserError: the command failed; its last line says why.
    """
    dataset = open_dataset(survey, str(root))
    config = configs.Config(model=NETWORKS[network], normalisation=configs.NormalisationConfig(scale=255.0))
    model = runs.build_model(config, len(dataset.classes.names))
    runs.save(root / "weights.safetensors", config, dataset, models.init(model, jax.random.key(0), 3))
    command = [
        sys.executable,
        "-m",
        "glcanet_jax",
        "eval",
        "--data.dataset",
        survey,
        "--data.dir",
        str(root),
        "--split",
        "test",
    ]
    command += ["--weights", str(root / "weights.safetensors"), "--out", str(root / "scores"), "--batch", str(batch)]
    began = time.perf_counter()
    with (root / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (root / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or [
            "it said nothing"
        ]
        raise UserError(f"evaluating {survey} failed: {re.sub('^error: ', '', last[0])}")
    scores = border.read_json(root / "scores" / "metrics.json")
    (height, width) = (dataset.scenes("test")[0].height, dataset.scenes("test")[0].width)
    return {
        "survey": survey,
        "size": [height, width],
        "network": network,
        "batch": batch,
        "host_peak_mb": round(usage.ru_maxrss / 1024, 1),  # kilobytes on Linux
        "seconds": round(time.perf_counter() - began, 1),
        "megapixels_per_second": round(height * width / 1e6 / scores["seconds"], 4),
        "protocols": sorted(scores["protocols"]),
        "pixels": {p: int(np.sum(scores[key])) for p, key in (("labels", "confusion"), ("eroded", "confusion_eroded"))},
    }


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.tile_memory", __doc__)
    rows = []
    for survey in options.surveys:
        with tempfile.TemporaryDirectory() as folder:
            write_tile(Path(folder), survey)
            rows.append(measure(Path(folder), survey, options.network, options.batch))
        print(json.dumps(rows[-1], indent=1), flush=True)
    result = {
        "what": "evaluation of whole tiles of ISPRS's sizes, a fresh process each; the peak is the process's",
        "command": "python -m experiments.tile_memory",
        **machine(),
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(options.out, result)


if __name__ == "__main__":
    cli.run(main)
