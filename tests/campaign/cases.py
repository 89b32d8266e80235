"""What a case is, and what it starts from: a folder with a tiny network, a dataset, a scene and its maps."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "classes": [
        {"id": 0, "name": "ground", "rgb": "#000000"},
        {"id": 1, "name": "roof", "rgb": "#ff0000"},
        {"id": 2, "name": "water", "rgb": "#0000ff"},
    ]
}
SPLITS = {"train": ["a"], "val": ["b"], "test": ["c"]}
SIDE = 128  # of the dataset's images, pixels
SCENE = (200, 264)  # height and width of the scene that is mapped, pixels
TINY = (
    "--model.network unet --model.width 4 --views.context-size 128 --views.global-size 64 --views.patch-size 64 "
    "--views.overlap 8 --loader.batch-size 2 --train.steps 2 --train.tensorboard False --no-report"
).split()
DATA = ("--data.dataset", "folder", "--data.dir", "data")
ARGV = {
    "train": ("train", *DATA, "--out", "out", *TINY),
    "eval": ("eval", *DATA, "--weights", "w.safetensors", "--out", "out", "--split", "test"),
    "check": ("check", *DATA, "--patch-size", "64"),
    "predict": ("predict", "--weights", "w.safetensors", "--out", "out"),
    "compare": ("compare", "w.safetensors", *DATA, "--out", "out"),
    "export": ("export", "--weights", "w.safetensors", "--out", "out/network.zip"),
    "vectorise": ("vectorise", "--out", "out/made.geojson"),
    "info": ("info",),
}

Complaint = str | None


@dataclass(frozen=True)
class Case:
    """Bad input for a command, in a folder of its own in which the command runs.

    ``fine`` looks at the folder where the command took the input, and says what is wrong with that, or None: it was right.
    Without it the input must be refused.
    """

    kind: str
    name: str
    argv: tuple[str, ...]
    make: Callable[[Path], None]
    fine: Callable[[Path], Complaint] | None = None
    why: str = ""  # it is right to take it
    must: bool = False  # be taken
    beside: str = ""  # a sound scene that is mapped all the same, and whose maps may be there

    @property
    def command(self) -> str:
        return self.argv[0]


def dice(*words: Any) -> random.Random:
    """Chance that is the same for the same words."""
    return random.Random("/".join(map(str, words)))


def fine(_: Path) -> Complaint:
    """Whatever came of it is right."""
    return None


def copy(source: Path, target: Path) -> Path:
    """A file or a folder where it is needed; what it had is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """``[h, w, 3]`` uint8: smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / a + columns / b) for a, b in ((23, 31), (17, -41), (37, 13))], -1)
    return (120 + 90 * waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)


def write_tiff(path: Path, data: np.ndarray, crs: Any = "EPSG:32640", transform: Any = None, **options: Any) -> None:
    """``[c, h, w]`` or ``[h, w]`` as a GeoTIFF of 0.5 m pixels."""
    import rasterio
    from rasterio import Affine

    data = data[None] if data.ndim == 2 else data
    place = Affine(0.5, 0, 325000, 0, -0.5, 2785000) if transform is None else transform
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", **profile | {"dtype": data.dtype.name, "crs": crs, "transform": place} | options
    ) as file:
        file.write(data)


def write_dataset(folder: Path) -> None:
    """A dataset of the user's own: three scenes of PNG."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for seed, name in enumerate("abc"):
        Image.fromarray(picture(SIDE, SIDE, seed)).save(folder / "images" / f"{name}.png")
        ids = np.zeros((SIDE, SIDE), np.uint8)
        ids[20:70, 30:90], ids[80:, 60:] = 1, 2
        Image.fromarray(ids).save(folder / "masks" / f"{name}.png")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    (folder / "splits.json").write_text(json.dumps(SPLITS))


def write_weights(path: Path, data: Path) -> None:
    """A network of drawn numbers that answers something of everything."""
    from glcanet_jax import config as configs
    from glcanet_jax import runs
    from glcanet_jax.data import open_dataset
    from glcanet_jax.geometry import Views
    from tests.drawn import drawn

    dataset = open_dataset("folder", data)
    config = configs.Config(
        data=configs.DataConfig("folder", str(data)),
        views=Views(context_size=128, global_size=64, patch_size=64, overlap=8),
        model=configs.model_config("unet", width=4),
        normalisation=configs.NormalisationConfig(scale=255.0),
    )
    runs.save(path, config, dataset, drawn(runs.build_model(config, len(dataset.classes.names))))


def write_site(site: Path) -> None:
    """Everything that is sound: ``data/``, ``w.safetensors``, ``scene.tif``."""
    site.mkdir(parents=True)
    write_dataset(site / "data")
    write_weights(site / "w.safetensors", site / "data")
    write_tiff(site / "scene.tif", np.moveaxis(picture(*SCENE, 5), -1, 0), tiled=True, blockxsize=64, blockysize=64)
    ids = np.zeros(SCENE, np.uint8)
    ids[30:90, 40:120], ids[120:, 100:] = 1, 2
    write_tiff(site / "map_classes.tif", ids)


def write_results(site: Path) -> None:
    """What commands made of it: ``run/`` of training, ``whole/`` maps, and ``killed/``, what is left of a ``predict`` that was
    stopped on its way.
    """
    import pytest

    from glcanet_jax.inference.scratch import Scratch
    from tests.campaign import networks

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(site)
        command(list(networks.training(site)))  # a run knows its --out
    (site / "out").rename(site / "run")
    maps = list(networks.mapping(site))
    at = maps.index("out")
    command([*maps[:at], str(site / "whole"), *maps[at + 1 :]])
    commit, done = Scratch.commit, []

    def stopping(self: Scratch, place: tuple[int, int]) -> None:
        commit(self, place)
        done.append(place)
        if len(done) == 7:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scratch, "commit", stopping)
        command([*maps[:at], str(site / "killed"), *maps[at + 1 :]], 130)
    assert list((site / "killed").glob(".scene.partial/*.npy"))


def command(argv: list[str], wanted: int = 0) -> None:
    """A command in this process."""
    import pytest

    from glcanet_jax.__main__ import run

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.argv", ["glcanet", *argv])
        run()
    assert stop.value.code == wanted, argv
