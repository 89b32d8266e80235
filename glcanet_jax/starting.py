"""What a run begins with: noise, backbones of a file, or weights that exist, of which everything that fits is taken."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import border, geometry, hub, models, weights
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.data.identity import digest
from glcanet_jax.errors import UserError
from glcanet_jax.models import contract
from glcanet_jax.weights.fitting import canonical, fitted, pair_classes, part_of, relatives, spellings, unused

RGB = 3  # bands of other people's backbones
COMPUTING = ("dtype", "remat", "fast_conv")  # options that say how, not what, a network computes
SHOWN = 6  # names told of what was left


# ------------------------------------------------------------------------------------------------------------- backbones
def load_backbone(name: str) -> weights.TorchvisionWeights:
    """Backbone weights by a file's path, or a name of the hub."""
    return weights.load_torchvision(hub.fetch(name) if hub.is_name(name) else name)


def with_backbones(loaded: weights.TorchvisionWeights, variables: dict[str, Any], bands: int) -> dict[str, Any]:
    """Variables whose every backbone of a file's kind is the file's.

    Raises:
        UserError: the file's does not fit.
    """
    params, stats = flatten_dict(variables["params"]), flatten_dict(variables.get("batch_stats", {}))
    places = {path[: path.index(loaded.kind) + 1] for path in params if loaded.kind in path}
    added = set(contract.ADDED) - ({"cbam"} if loaded.gated else set())
    for place in places:
        template = {
            k: unflatten_dict(_of_file(place, v, added)) for k, v in (("params", params), ("batch_stats", stats))
        }
        new = weights.backbone_variables(loaded, template, bands)
        params |= {(*place, *k): v for k, v in flatten_dict(new["params"]).items()}
        stats |= {(*place, *k): v for k, v in flatten_dict(new["batch_stats"]).items() if (*place, *k) in stats}
        beside = flatten_dict(weights.fcn_classifier(loaded)) if loaded.kind == "vgg" else {}
        for path, array in beside.items():  # FCN's classifier turned into convolutions, where it has their full width
            at = (*place[:-1], *path)
            if at in params and params[at].shape == array.shape:
                params[at] = array
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def _of_file(place: tuple[str, ...], flat: dict[tuple[str, ...], Any], added: set[str]) -> dict[tuple[str, ...], Any]:
    """The arrays of a backbone at its place, as paths in it, but for what the file has not."""
    return {
        path[len(place) :]: array
        for path, array in flat.items()
        if path[: len(place)] == place and not set(path) & added
    }


# --------------------------------------------------------------------------------------------------- weights that exist
@dataclass(frozen=True)
class Source:
    """Weights to begin with: those of a network of ours, or another's, of which there is the backbone alone."""

    name: str  # as it was given
    path: Path
    config: Config | None = None
    stored: weights.WeightsFile | None = None
    backbone: weights.TorchvisionWeights | None = None

    @classmethod
    def read(cls, name: str) -> "Source":
        """From what :func:`weights.resolve` finds; the last one is kept for whoever asks for it next, until :func:`forget`.

        Raises:
            UserError: there is nothing, or nothing that can be read.
        """
        path = weights.resolve(name)
        status = path.stat()
        return _read(name, path, (status.st_size, status.st_mtime_ns))

    def __str__(self) -> str:
        if self.backbone is not None:
            return f"{self.name} ({self.backbone.called})"
        return f"{self.name} ({self.config.model.network}, {len(self.stored.classes['names'])} classes, {self.stored.bands} bands)"


@functools.lru_cache(maxsize=1)
def _read(name: str, path: Path, _stamp: tuple[int, int]) -> Source:
    if weights.is_ours(path):
        stored = weights.load_weights(path)
        return Source(name, path, configs.from_dict(stored.config, f"{path} (config)"), stored)
    if weights.is_seggpt(path):
        return _seggpt(name, path)
    return Source(name, path, backbone=weights.load_torchvision(path))


def _seggpt(name: str, path: Path) -> Source:
    """A SegGPT of its authors, which knows no classes and no prompts of ours, as if we had trained it."""
    model, variables = weights.from_seggpt(path, num_classes=1)
    options = {
        option: getattr(model.network, option) for option in models.options("seggpt") if option != models.VIEW[0]
    }
    side, plain = model.network.image_size, configs.NormalisationConfig()
    views = geometry.Views(global_size=side, patch_size=side, overlap=side // 10)
    config = Config(model=configs.model_config("seggpt", **options), views=views)
    shown = {("params", *path.split("/")) for path in model.shown}
    own = unflatten_dict({path: array for path, array in flatten_dict(variables).items() if path not in shown})
    normalisation = {"mean": plain.mean, "std": plain.std, "scale": 255.0}
    return Source(name, path, config, weights.WeightsFile(own, {}, {"names": []}, normalisation, RGB))


def forget() -> None:
    """Nobody asks for weights any more that were read: their memory is free."""
    _read.cache_clear()


@dataclass
class Start:
    """What of a network was taken from weights, by part of it."""

    source: Source
    parts: dict[str, Counter] = field(default_factory=dict)  # arrays "taken", "adapted" and "new"
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of ours, the names that they have there
    new_classes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()  # parts of the weights that were not used

    def count(self, path: tuple[str, ...], what: str) -> None:
        self.parts.setdefault(part_of(path), Counter())[what] += 1

    @property
    def used(self) -> int:
        return sum(c["taken"] + c["adapted"] for c in self.parts.values())

    def __str__(self) -> str:
        """A table of the parts, one line each."""
        kinds = ("taken", "adapted", "new")
        width = max(map(len, (*self.parts, "arrays")))
        lines = [f"starting from {self.source}", f"  {'arrays':<{width}}" + "".join(f"{kind:>9}" for kind in kinds)]
        for part, counts in sorted(self.parts.items()):
            lines.append(f"  {part:<{width}}" + "".join(f"{counts[kind] or '-':>9}" for kind in kinds))
        if self.source.stored is not None:
            told = [
                ours if theirs == (ours,) else f"{ours} (from {', '.join(theirs)})"
                for ours, theirs in self.classes.items()
            ]
            lines.append(f"  classes taken: {', '.join(told) or 'none'}; new: {', '.join(self.new_classes) or 'none'}")
        if self.left:
            lines.append(f"  left: {listed(self.left)}")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """For the run's folder: what, of which bytes, was taken."""
        return {
            "weights": self.source.name,
            "sha256": digest(self.source.path, whole=True),
            "arrays": {part: dict(counts) for part, counts in sorted(self.parts.items())},
            "classes": {name: list(self.classes.get(name, ())) for name in (*self.classes, *self.new_classes)},
        }


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)


def take(
    source: Source, variables: dict[str, Any], axes: models.Axes, config: Config, names: Sequence[str]
) -> tuple[dict[str, Any], Start]:
    """Variables with everything that fits of the weights, and what that was.

    Args:
        variables: fresh ones; axes: of classes and of bands in them; names: of the classes.

    Raises:
        UserError: nothing fits, or a class that was renamed is none.
    """
    start = Start(source)
    if source.backbone is not None:
        return _take_backbone(source, variables, axes, start)
    pairs = pair_classes(source.stored.classes["names"], names, config.init.classes, source.name)
    theirs, ours, stored = source.config.model.network, config.model.network, flatten_dict(source.stored.variables)
    related = relatives(theirs, ours)
    found = {canonical(path, theirs, related): (path, array) for path, array in stored.items()}
    flat, used = flatten_dict(variables), set()
    for path, fresh in flat.items():
        own = canonical(path, ours, related)
        there = next((found[name] for name in spellings(own) if name in found), None)
        array = None if there is None else fitted(there[1], np.asarray(fresh), axes, path[1:], pairs)
        if array is None:
            start.count(path, "new")
            continue
        used.add(there[0])
        flat[path] = array
        start.count(path, "taken" if array is there[1] else "adapted")
    if not start.used:
        raise UserError(f"nothing of {source} fits this network, a {ours}; give other weights, or leave out --init")
    called = source.stored.classes["names"]
    start.classes = {name: tuple(called[i] for i in of) for name, of in zip(names, pairs, strict=True) if of}
    start.new_classes = tuple(name for name in names if name not in start.classes)
    start.left = unused(stored, used)
    return unflatten_dict(flat), start


def _take_backbone(
    source: Source, variables: dict[str, Any], axes: models.Axes, start: Start
) -> tuple[dict[str, Any], Start]:
    """Of another's network the backbone."""
    before = flatten_dict(variables)
    bands = next(before["params", *path].shape[axis] for path, (axis,) in axes.bands.items())
    after = flatten_dict(with_backbones(source.backbone, variables, bands))
    for path, array in after.items():
        adapted = path[1:] in axes.bands and bands != RGB
        start.count(path, "new" if array is before[path] else "adapted" if adapted else "taken")
    start.left = source.backbone.left
    return unflatten_dict(after), start


def check_backbones(source: Source, config: Config) -> None:
    """Raises UserError where weights are of another backbone than the network, of the same kind, or of nothing else."""
    ours, kind = config.model, models.backbone(config.model.network)
    if source.backbone is not None:
        theirs, theirs_kind = source.backbone, source.backbone.kind
        if theirs_kind != kind:
            raise UserError(
                f"{source} holds a {theirs_kind} backbone, {ours.network} has {'none' if kind is None else f'a {kind}'}; "
                "give other weights"
            )
    else:
        theirs, theirs_kind = source.config.model, models.backbone(source.config.model.network)
    options = [o for o in ("depth", "width", "stride", "stem") if hasattr(theirs, o) and hasattr(ours, o)]
    other = [o for o in options if getattr(theirs, o) != getattr(ours, o)]
    if theirs_kind == kind == "resnet" and other:
        has = lambda model: ", ".join(f"{o} {getattr(model, o)}" for o in other)  # noqa: E731
        raise UserError(
            f"{source.name} has a backbone of {has(theirs)}, this network one of {has(ours)}; give "
            f"{' '.join(f'--model.{o} {getattr(theirs, o)}' for o in other)}, or other weights"
        )


def check_seen(source: Source, dataset: Any) -> None:
    """Raises UserError where weights, or what they began with as far as that is there, have learnt from a dataset's test scenes."""
    if not dataset.never_after:
        return
    for data in _learnt(source):
        if data in dataset.never_after:
            raise UserError(
                f"{source.name} has learnt from {data}, whose scenes are among the test scenes of {dataset.name}: its scores would "
                "be of what was learnt by heart; begin with other weights, or with --backbone"
            )


def _learnt(source: Source) -> Iterator[str]:
    """The datasets that weights have learnt from, the last first."""
    passed: set[Path] = set()
    while source is not None and source.config is not None and source.path not in passed:
        passed.add(source.path)
        yield source.config.data.dataset
        try:
            before = source.config.init.weights
            source = None if before is None or hub.is_name(before) else Source.read(before)
        except UserError:  # it is not there any more
            return


# --------------------------------------------------------------------------------------------------------- configurations
def like(config: Config, name: str, network: str | None = None, views: bool = True) -> Config:
    """A configuration whose network is that of weights, and whose views are those it was trained with, if they are wanted.

    Args:
        network: another one, which takes the options that it has, too; of another's weights the backbone's alone.
    """
    source = Source.read(name)
    if source.backbone is not None:
        model = configs.model_config(network) if network else config.model
        return dataclasses.replace(config, model=with_backbone_of(model, source.backbone))
    model = configs.settled(source.config)
    model = configs.with_network(model, network) if network else model
    computed = {
        name: getattr(config.model, name) for name in COMPUTING if hasattr(model, name) and hasattr(config.model, name)
    }
    model = dataclasses.replace(model, **computed)
    seen = dataclasses.replace(source.config.views, scene_size=None) if views else config.views
    return dataclasses.replace(config, model=model, views=seen)


def of_run(parent: str | Path) -> Config:
    """A parent's own configuration, with which a command begins that goes on from it.

    Raises:
        UserError: it is no run.
    """
    path = Path(parent) / "config.json"
    if not path.is_file():
        raise UserError(f"{parent} is no run's folder, whose training could go on; give one as --init, or as --out")
    config = configs.from_dict(border.read_json(path), path)
    return dataclasses.replace(config, init=configs.InitConfig(), more_steps=None)  # what it began with is behind it


def with_backbone_of(model: configs.ModelConfig, loaded: weights.TorchvisionWeights) -> configs.ModelConfig:
    """A network's configuration with the depth and the stride of a backbone."""
    if loaded.kind != "resnet" or models.backbone(model.network) != "resnet":
        return model
    return dataclasses.replace(model, depth=loaded.depth, stride=loaded.stride)


def normalisation_of(source: Source, config: Config, dataset: Any) -> configs.NormalisationConfig:
    """That of the weights where the configuration leaves it open: their mean and deviation, and their scale if the data can
    have it.
    """
    given = config.normalisation
    if source.stored is None or not config.init.normalisation:
        return given
    theirs, plain = source.stored.normalisation, configs.NormalisationConfig()
    if (given.mean, given.std) == (plain.mean, plain.std):
        given = dataclasses.replace(given, mean=tuple(theirs["mean"]), std=tuple(theirs["std"]))
    if (
        given.scale is None
        and (theirs["scale"] > 255) == (dataset.scale > 255)
        and (theirs["scale"] == 1) == (dataset.scale == 1)
    ):
        given = dataclasses.replace(given, scale=theirs["scale"])
    return given
