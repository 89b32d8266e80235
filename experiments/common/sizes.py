"""What experiments that compare many runs share: sizes of everything, and one configuration to begin from."""

import dataclasses
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

from glcanet_jax import models, report
from glcanet_jax.config import Config, DataConfig, OptimiserConfig, TrainConfig
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.data.mbrsc import CALLED as CALLED_BY_MBRSC
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.presets import MEASURED, RECIPE, Changes, changed

# to score, the first for the tables
SPLITS = {"deepglobe": ("val", "test")} | dict.fromkeys(("vaihingen", "potsdam", "mbrsc", "sample"), ("test",))
CALLED = {"mbrsc": CALLED_BY_MBRSC}  # as results call splits that were recorded under the names of the dataset's files
PLAIN: Changes = {
    "loss": {"gamma": 2.0},
    "optimiser": {"clip": 1.0, "warmup_steps": 20},
    "train": {"colour_jitter": 0.2},
}
SCENE = 2448  # pixels a side of the scene that memory and GFLOP are told for, as the paper's


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    views: Views
    global_side: int  # pixels a side of the whole scene shrunk, for networks that look at nothing else
    loader: LoaderConfig
    rates: dict[str, float]  # by initialisation, of every root
    options: dict[str, dict[str, Any]]  # of networks
    norm: str  # of pretrained backbones
    eval_batch: int  # patches at once in scoring
    recipe: Changes = field(default_factory=lambda: RECIPE)  # the same for all networks
    dtype: str = "float32"  # of the computation, likewise
    # options of all networks that have them, so that none is as its paper has it
    narrow: dict[str, Any] = field(default_factory=dict)


SIZES = {
    # 500-px patches, whole scenes shrunk to half of DeepGlobe's (the paper does not say its size), for a GPU
    "full": Size(
        Views(),
        SCENE // 2,
        LoaderConfig(batch_size=6, patches_per_context=2),
        {"imagenet": 1e-4, "scratch": 5e-4},
        {},
        "batch",
        1,  # as the paper measures memory
        dtype="bfloat16",
    ),
    # 256-px patches in contexts of the paper's ratio, for CPUs with patience
    "cpu": Size(
        MEASURED,
        512,
        LoaderConfig(batch_size=2, patches_per_context=4),
        {"imagenet": 1e-4, "scratch": 5e-4},
        {"glcanet": {"fpn_channels": 128}, "branch": {"fpn_channels": 128}, "seggpt": {"image_size": 256}},
        "frozen",
        6,
    ),
    # the same at half the size, for searches
    "medium": Size(
        Views(context_size=627, global_size=128, patch_size=128, overlap=16),
        256,
        LoaderConfig(batch_size=2, patches_per_context=4),
        {"imagenet": 1e-4, "scratch": 5e-4},
        {"glcanet": {"fpn_channels": 128}, "branch": {"fpn_channels": 128}, "seggpt": {"image_size": 128}},
        "frozen",
        12,
    ),
    # for CPUs: every network in minutes, none at its best
    "small": Size(
        Views(context_size=176, global_size=64, patch_size=64, overlap=8),
        128,
        LoaderConfig(batch_size=2, patches_per_context=4, contexts_per_scene=20),
        {"imagenet": 1e-4, "scratch": 5e-4},
        # the papers' margins are wider than these patches
        {"unet": {"padding": "same"}, "fcn8s": {"padding": "same"}, "seggpt": {"image_size": 64}},
        "frozen",
        4,
        PLAIN,
    ),
}
# narrow networks, for CPUs: that they can be trained
SIZES["tiny"] = dataclasses.replace(
    SIZES["small"],
    rates=dict.fromkeys(("imagenet", "scratch"), 1e-3),
    options=SIZES["small"].options
    | {
        "seggpt": {
            "image_size": 64,
            "patch_size": 8,
            "width": 96,
            "depth": 4,
            "heads": 3,
            "position_cells": 8,
            "decoder_width": 16,
        }
    },
    narrow={
        "depth": 18,
        "width": 16,
        "fpn_channels": 64,
        "channels": 64,
        "coarse_channels": 64,
        "shallow_width": 16,
        "fc": 128,
        "encoder_layers": 2,
        "encoder_hidden": 128,
        "decoder_layers": 3,
        "decoder_hidden": 128,
        "queries": 20,
        "points": 1024,
    },
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The scenes with their labels."""

    dataset: Literal[
        "deepglobe", "mbrsc", "inria", "urur", "fbp", "gid15", "flair", "loveda", "folder", "tiles"
    ]  # of these
    dir: Path  # where it lies
    bands: str | None = None  # by name, of a set that has a choice; a folder: numbers, as 4,1,2
    split_list: str | None = None  # published splits by name, where there are several


@dataclass(frozen=True, kw_only=True)
class Mbrsc(Source):
    """The scenes with their labels."""

    dataset: Literal["mbrsc"] = "mbrsc"  # this one alone


@dataclass(frozen=True, kw_only=True)
class Isprs(Source):
    """The scenes with their labels: of an ISPRS set, or what stands in for it."""

    dir: Path | None = None  # where it lies; the sample is bundled
    bands: str | None = None  # of an ISPRS set: irrg, for Potsdam rgb and irrgb, each also with +dsm


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The options of every comparison."""

    data: Source
    seeds: int = 1  # runs of everything that is compared
    budget: str = "2000steps"  # of every run: steps, or minutes as in 30minutes
    size: Literal["auto", "full", "cpu", "medium", "small"] = (
        "auto"  # of patches and batches; auto: full on a GPU, small without
    )
    backbone: Path | None = None  # ImageNet ResNet-50 weights, for networks that have one; without: all from scratch
    results: Path = Path("results")  # where the table goes

    def command(self, experiment: str, *more: str) -> str:
        """What was asked for, without the places of this machine's files."""
        words = [f"python -m experiments.{experiment} --data.dataset {self.data.dataset}"]
        words += ["--data.dir DIR"] * (self.data.dir is not None)
        given = {"bands": self.data.bands, "split-list": self.data.split_list}
        words += [f"--data.{name} {value}" for name, value in given.items() if value is not None]
        words += more
        words += [f"--seeds {self.seeds}", f"--budget {self.budget}", f"--size {self.size}"]
        return " ".join(words + ["--backbone FILE"] * (self.backbone is not None))


def splits(dataset: Any) -> tuple[str, ...]:
    """Those of a dataset that are scored, the first for the tables; a folder without a test has its ``val`` scored.

    Raises:
        UserError: there is none with labels. Nothing is chosen on them here.
    """
    if dataset.name in SPLITS:
        return SPLITS[dataset.name]
    for split in (dataset.reported, "val"):
        if dataset.splits.get(split) and all(scene.labelled for scene in dataset.splits[split]):
            return (split,)
    raise UserError(
        f"{dataset.title} has no split {dataset.reported} or val whose scenes all have labels: there is nothing to score; add one"
    )


def called(dataset: str, split: str) -> str:
    """What a split is called, whatever it was when a result was recorded."""
    return CALLED.get(dataset, {}).get(split, split)


def network_options(size: Size, network: str, pretrained: bool) -> dict[str, Any]:
    """What a size asks of a network."""
    narrow = {k: v for k, v in size.narrow.items() if k in models.options(network)}
    own = narrow | size.options.get(network, {}) | {"dtype": size.dtype}
    return own | ({"norm": size.norm} if pretrained else {})


def write(experiment: str, result: dict[str, Any], markdown: str, folder: Path) -> Path:
    """``<experiment>-<dataset>-<size>.json`` and ``.md``, each whole or not at all; returns their path without an ending."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment}-{result['dataset']}-{result['size']['name']}"
    report.write_json(path.with_name(f"{path.name}.json"), result)
    report.write_text(path.with_name(f"{path.name}.md"), markdown)
    return path


def choose(size: str, without_gpu: str = "small") -> str:
    """``auto`` is ``full`` on a GPU and ``small``, or another one, without."""
    if size != "auto":
        return size
    return "full" if jax.default_backend() == "gpu" else without_gpu


def data_of(source: Source) -> DataConfig:
    """The data's configuration; no split chooses weights, for those of the last step are scored."""
    where = None if source.dir is None else str(source.dir)
    return DataConfig(source.dataset, where, val_split="", bands=source.bands, split_list=source.split_list)


def configure(size: Size, source: Source, backbone: Path | None, seed: int) -> Config:
    """GLCANet's configuration at a size; with a backbone's weights, everything that was not in them learns faster."""
    rate = size.rates["imagenet" if backbone else "scratch"]
    config = Config(
        data=data_of(source),
        views=size.views,
        loader=dataclasses.replace(size.loader, seed=seed),
        optimiser=OptimiserConfig(
            global_rate=rate, local_rate=rate, fusion_rate=3 * rate if backbone else rate, clip=1.0
        ),
        train=TrainConfig(seed=seed, tensorboard=False, log_every=10, checkpoint_every=50),
        backbone=str(backbone) if backbone else None,
        eval_batch=size.eval_batch,
    )
    return changed(config, size.recipe)


def commit() -> str | None:
    """The commit that runs, "+" if files were changed; None outside of a repository."""
    here = Path(__file__).parents[2]
    git = lambda *words: subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)  # noqa: E731
    try:
        head = git("rev-parse", "--short", "HEAD")
    except OSError:  # no git
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")
