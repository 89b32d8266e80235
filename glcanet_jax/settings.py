"""What ``train`` is told: a preset, a file of settings over it, and options over both."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from glcanet_jax import cli, presets, runs
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.data.datasets import Dataset
from glcanet_jax.data.ground import median_resolution
from glcanet_jax.dialects import read_settings
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import WHOLE
from glcanet_jax.limits import Range
from glcanet_jax.options import given

GROUPS = (
    "data",
    "views",
    "loader",
    "model",
    "normalisation",
    "loss",
    "optimiser",
    "train",
)  # that every run's settings have
LOOKED_AT = 64  # scenes whose ground resolution is looked up


@dataclass(frozen=True)
class Train(Config):
    """A run, whole, and what is made of it in the end."""

    # settings to begin with, whose patches and contexts are fitted to the scenes; None: the paper's network, as it is
    preset: Literal["recipe", "fast", "paper", "tiny"] | None = None
    # settings over the preset's, that options replace: a run's config.json or its folder, or a .json, .yaml or .toml file of yours
    config: Path | None = None
    report: bool = True  # score val and test in the end, draw, and write report.html
    overlays: Annotated[int, Range(0, 1000)] = 12  # scenes of a split that are drawn, at most
    # who is told of losses, scores and pictures; wandb and mlflow stay on this machine unless their own settings say otherwise
    track: tuple[Literal["wandb", "mlflow", "tensorboard", "csv"], ...] = ()


HINT = (
    "no --preset, --config or --backbone: this is the paper's ResNet-50 from scratch, which takes long to learn; --preset recipe has "
    "the settings that were measured as best"
)


class Asked(NamedTuple):
    """A command line of ``train``, read."""

    config: Config
    args: Train
    given: frozenset[str]  # names of all settings that somebody chose, as views.patch_size
    forgotten: str = ""  # of a run's settings what does not hold for other data, where that must be told

    @property
    def advice(self) -> str:
        """What would be quicker."""
        name = presets.SMALLER.get(self.args.preset or "paper")
        return "" if name is None else f"--preset {name} is smaller, and fewer --train.steps are quicker"

    @property
    def hint(self) -> str:
        """What is missing for a good result."""
        if self.forgotten:
            return self.forgotten
        asked = (
            self.args.preset
            or self.args.config
            or self.given & {"backbone", "init.weights", "more_steps", "model.depth", "model.network"}
        )
        return "" if asked else HINT


def read(argv: Sequence[str], page: tuple[str, str]) -> Asked:
    """The configuration of a command line.

    Raises:
        UserError: it is wrong, or the file of settings is.
    """
    name, file, network = (cli.chosen(argv, option) for option in ("preset", "config", "model.network"))
    values = {} if file is None else of_file(file)
    base = Config()
    if name is not None and name in presets.PRESETS:  # what is none is told below
        base = presets.preset(name, bool(cli.chosen(argv, "backbone") or values.get("backbone")))
    base = with_patch(base, _object(values, "views").get("patch_size"), values)

    def laid(over_it: Config) -> Config:
        """With the file's settings, and the network that was asked for."""
        settings = over_it if file is None else over(over_it, values, file)
        model = settings.model if network is None else configs.with_network(settings.model, network)
        return dataclasses.replace(settings, model=model)

    own, views = laid(base), name is None and not whole(values)
    if file is None or whole(values):  # all is decided there
        base = cli.begun(own, argv, views)
    else:
        base = cli.begun(base, argv, views, cli.Laid(own, laid, _object(values, "model").get("network")))
    base = with_patch(base, cli.chosen(argv, "views.patch-size"), values, argv)
    default = Train(**{f.name: getattr(base, f.name) for f in dataclasses.fields(Config)})
    program, words = page
    listed = cli.listing({key: words for key, (words, *_) in presets.PRESETS.items()})
    args = cli.parse(Train, argv, program, f"{words}\n\npresets:\n{listed}", default)
    config = Config(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Config)})
    by_options, forgotten = given(argv, Train, default), ""
    other = (config.data.dataset, config.data.dir) != (own.data.dataset, own.data.dir)
    if whole(values) and other:
        config, before = forgetting(config, by_options), config
        if config.init.weights != before.init.weights:
            forgotten = f"{file} began with {before.init.weights}; this run does not: give --init {before.init.weights} to begin so"
    return Asked(config, args, frozenset(by_options | set(configs.flat(values))), forgotten)


def whole(values: Mapping[str, Any]) -> bool:
    """Whether settings are all of a run, as its ``config.json`` has them, and not some that somebody wrote."""
    return set(GROUPS) <= set(values)


def of_file(file: str) -> dict[str, Any]:
    """The settings of a file; of a run, without what it went on from, which is behind it.

    Raises:
        UserError: it cannot be read, or has what only a command line says.
    """
    values = read_settings(file)
    for name in (f.name for f in dataclasses.fields(Train) if f.name in values):
        if name not in {f.name for f in dataclasses.fields(Config)}:
            raise UserError(
                f"{file} has {name}; give it on the command line, as --{name}, and leave it out of the file"
            )
    if whole(values) and values.get("more_steps") is not None:
        return values | {"more_steps": None, "init": configs.to_dict(Config())["init"]}
    return values


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a file's settings; none where it is no object, which is told elsewhere."""
    return values[name] if isinstance(values.get(name), dict) else {}


def with_patch(base: Config, patch: Any, values: Mapping[str, Any], argv: Sequence[str] = ()) -> Config:
    """With sizes that go with a patch that was given, where they were not given, too; what is no size of one is told later."""
    kept = set(_object(values, "views"))
    kept |= {
        name for name in ("context_size", "overlap") if cli.chosen(argv, f"views.{name.replace('_', '-')}") is not None
    }
    if not str(patch).isdecimal() or int(patch) not in WHOLE:
        return base
    try:
        return dataclasses.replace(base, views=presets.around(base.views, int(patch), kept))
    except UserError:  # with a size that was given, too: what is given is looked over together
        return base


def over(base: Config, values: Mapping[str, Any], source: Any) -> Config:
    """A configuration with the values of a file in place of its own; another network begins with its own defaults.

    Raises:
        UserError: the file has what is no setting, or no value of one.
    """
    own = configs.to_dict(base)
    model = values.get("model")
    if isinstance(model, dict) and model.get("network", base.model.network) != base.model.network:
        own["model"] = {}
    return configs.from_dict(_merged(own, values), source)


def _merged(own: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(own[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(own.get(k), dict)}
    return {**own, **new, **both}


def forgetting(config: Config, chosen: Collection[str] = ()) -> Config:
    """A saved configuration for other data: what it had found out of its own is to be found out again, unless it is ``chosen``."""
    parts: dict[str, dict[str, Any]] = {"loss": {}, "views": {"scene_size": None}, "data": {}, "normalisation": {}}
    parts["data"] = {"val_split": None, "on_device": "auto", "normalisation": None}
    parts["data"] |= {"ground_resolution": None, "licence": None, "train_split": "train", "split_list": None}
    parts["data"] |= {"train_scenes": (), "val_scenes": ()}
    parts["init"] = configs.to_dict(configs.InitConfig())
    if config.loss.balance:
        parts["loss"]["class_weights"] = ()
    if config.normalisation.scale in (*runs.INTEGERS, 1.0):
        parts["normalisation"]["scale"] = None
    left = {part: {k: v for k, v in of.items() if f"{part}.{k}" not in chosen} for part, of in parts.items()}
    return presets.changed(config, left)


def fit(asked: Asked, dataset: Dataset) -> Config:
    """The configuration with patches and contexts fitted to the scenes, where a preset chose them; what changed is told."""
    config, name = asked.config, asked.args.preset
    data = config.data
    splits = dict.fromkeys([data.train_split, data.val_split or dataset.validation_split, dataset.reported])
    scenes = [scene for split in splits for scene in dataset.splits.get(split, ())]
    if name is None or not scenes:
        return config
    ground = data.ground_resolution or median_resolution(scenes[:: -(-len(scenes) // LOOKED_AT)])
    kept = {f.name for f in dataclasses.fields(config.views)} & {n.removeprefix("views.") for n in asked.given}
    sizes = [(scene.height, scene.width) for scene in scenes]
    views = presets.fitted(config.views, sizes, ground, presets.METRES.get(name), kept)
    if views != config.views:
        print(_told(views, min(sizes, key=min), ground))
    return dataclasses.replace(config, views=views)


def _told(views: Any, smallest: tuple[int, int], ground: float | None) -> str:
    place = "ground resolution unknown" if ground is None else f"{ground:.3g} m a pixel"
    context = "whole scenes" if views.context_size is None else f"{views.context_size} px"
    return (
        f"fitted to the scenes (the smallest {smallest[0]} x {smallest[1]} px, {place}): patches of {views.patch_size} px, "
        f"contexts {'of ' * (views.context_size is not None)}{context} shrunk to {views.global_size} px"
    )
