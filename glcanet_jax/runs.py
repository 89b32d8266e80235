"""A run from its configuration to weights, scores and pictures: what ``train``, ``eval`` and the experiments share."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import border, models, report, starting, weights
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.data import OPTIONS, OWN, identity, open_dataset
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.ground import median_resolution
from glcanet_jax.data.labelled import class_counts
from glcanet_jax.data.scenes import mean_values
from glcanet_jax.errors import UserError
from glcanet_jax.inference import exported
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.weights import resolve as find_weights

CHOSEN = ("bands", "split_list")  # which of a dataset is read, where it has a choice
ALL_BUT_HEADS = "all-but-heads"  # of --freeze


def open_data(data: configs.DataConfig) -> Any:
    """The dataset of a configuration."""
    options: dict[str, Any] = {}
    if data.train_scenes or data.val_scenes:
        options = {"train": data.train_scenes, "val": data.val_scenes}
    options |= {name: value for name in CHOSEN if (value := getattr(data, name)) is not None}
    if not data.drop_faulty:
        options["drop_faulty"] = False
    if data.tfds_dir is not None:
        try:
            from glcanet_jax.data.builders import open_tfds
        except ImportError as error:
            raise UserError(
                f"--data.tfds-dir needs tensorflow-datasets ({error}); pip install tensorflow-datasets array_record importlib_resources, or leave it out"
            ) from error
        return open_tfds(data.dataset, data.dir, data.tfds_dir, **options)
    return open_dataset(data.dataset, data.dir, **options)


def build_model(config: Config, num_classes: int) -> Any:
    """The network of a configuration."""
    return models.build(config.model.network, num_classes, **configs.model_options(configs.settled(config)))


def resolve(config: Config, dataset: Any) -> Config:
    """The configuration with everything that it leaves to the data filled in.

    Raises:
        UserError: what it says does not fit the data, or the backbone.
    """
    if config.init.classes is not None and config.init.weights is None:
        raise UserError(
            f"--init.classes {config.init.classes} needs --init, the weights whose classes it names; give both, or neither"
        )
    if config.data.normalisation is not None:
        config = dataclasses.replace(config, normalisation=_from_file(Path(config.data.normalisation)))
    elif config.init.weights is not None and config.more_steps is None:
        source = starting.Source.read(config.init.weights)
        starting.check_backbones(source, config)
        starting.check_seen(source, dataset)
        config = dataclasses.replace(config, normalisation=starting.normalisation_of(source, config, dataset))
    _check_numbers(config, dataset)
    normalisation, model, data, views = config.normalisation, config.model, config.data, config.views
    train, loss = config.train, config.loss
    plain = configs.NormalisationConfig()
    if dataset.numbers is not None and (normalisation.mean, normalisation.std) == (plain.mean, plain.std):
        mean, std = dataset.numbers
        normalisation = dataclasses.replace(normalisation, mean=mean, std=std)
    if dataset.colours is not None and train.jitter_bands is None:
        train = dataclasses.replace(train, jitter_bands=dataset.colours)
    if normalisation.scale is None:
        normalisation = dataclasses.replace(normalisation, scale=dataset.scale)
    chosen = {name: getattr(dataset, name) for name in CHOSEN if getattr(data, name) is None}
    data = dataclasses.replace(data, **chosen)
    if data.ground_resolution is None:
        data = dataclasses.replace(data, ground_resolution=median_resolution(dataset.scenes(data.train_split)))
    if dataset.extra is not None:
        normalisation = _with_extra_band(normalisation, dataset, data.train_split)
        if train.jitter_bands is None:
            train = dataclasses.replace(train, jitter_bands=dataset.extra.colours)
    if views.context_size is None:
        sides = [side for scene in dataset.scenes(data.train_split) for side in (scene.height, scene.width)]
        views = dataclasses.replace(views, scene_size=max(sides, default=None))
    if loss.balance and not loss.class_weights:
        loss = dataclasses.replace(loss, class_weights=_balanced(dataset, data.train_split, loss.balance))
    if data.val_split is None and dataset.validation_split is not None:
        data = dataclasses.replace(data, val_split=dataset.validation_split)
    if config.backbone is not None:
        model = _with_backbone(config)
    config = dataclasses.replace(
        config, normalisation=normalisation, model=model, data=data, views=views, train=train, loss=loss
    )
    return _spelt(config, dataset)


def _with_backbone(config: Config) -> configs.ModelConfig:
    """The network with the depth and the stride of its backbone's weights.

    Raises:
        UserError: they are for another kind of backbone, or there are other weights to begin with, too.
    """
    if config.init.weights is not None and config.more_steps is None:
        raise UserError(
            f"--backbone {config.backbone} and --init {config.init.weights} are two beginnings; give one of them"
        )
    loaded, model, wanted = starting.load_backbone(config.backbone), config.model, models.backbone(config.model.network)
    if loaded.kind != wanted:
        raise UserError(
            f"{loaded.source} holds a {loaded.kind} backbone, {model.network} has {'none' if wanted is None else f'a {wanted}'}; "
            "leave out --backbone, or give other weights"
        )
    found = starting.with_backbone_of(model, loaded)
    if found != model:
        print(f"backbone weights: {loaded.source}: {loaded.called}")
    if loaded.left:
        print(f"left of {loaded.source}: {starting.listed(loaded.left)}")
    return found


def _spelt(config: Config, dataset: Any) -> Config:
    """With patterns for ``--freeze all-but-heads``."""
    if ALL_BUT_HEADS not in config.freeze:
        return config
    spelt = ("*", *(f"!{layer}" for layer in heads(config, dataset)))
    freeze = [pattern for given in config.freeze for pattern in (spelt if given == ALL_BUT_HEADS else (given,))]
    return dataclasses.replace(config, freeze=tuple(freeze))


def heads(config: Config, dataset: Any) -> tuple[str, ...]:
    """The layers of a configuration's network that give the classes of a dataset, or the examples that show them."""
    count, bands = len(dataset.classes.names), _bands_of(dataset, config.data.train_split) or 3
    found, model = models.axes(lambda k: build_model(config, k), count, bands), build_model(config, count)
    shown = models.examples(model)
    return (*models.heads(found, models.shapes(model, bands)["params"]), *(shown.arrays if shown else ()))


def heads_with_a_rate(config: Config, dataset: Any) -> tuple[str, ...]:
    """The layers that ``--optimiser.head-rate`` is for; none where there is no such rate."""
    return () if config.optimiser.head_rate is None else heads(config, dataset)


def _from_file(path: Path) -> configs.NormalisationConfig:
    """The numbers that ``check --normalisation FILE`` wrote."""
    cure = "write it with `check --normalisation FILE`"
    values = border.check(border.read_json(path), weights.Normalisation, f"--data.normalisation {path}", cure=cure)
    return configs.NormalisationConfig(values.mean, values.std, values.scale)


def filled_as_trained(config: Config, dataset: Any) -> Any:
    """The dataset whose pixels without data hold the mean that the configuration normalises by."""
    bands = _bands_of(dataset, config.data.train_split)
    return dataset if bands is None else dataset.filled(mean_values(configs.numbers_of(config.normalisation), bands))


def _check_numbers(config: Config, dataset: Any) -> None:
    """Lists that have a number for each class or band, and numbers that are divided by."""
    weights, count = config.loss.class_weights, len(dataset.classes.names)
    if weights and not any(weights):
        raise UserError("--loss.class-weights are all 0: nothing would be learnt; give one above 0 at least")
    if weights and (len(weights) != count or not all(0 <= w < math.inf for w in weights)):
        raise UserError(
            f"--loss.class-weights has {len(weights)} numbers ({', '.join(f'{w:g}' for w in weights)}); "
            f"give {count}, one of at least 0 for each of {', '.join(dataset.classes.names)}"
        )
    mean, std, scale = config.normalisation.mean, config.normalisation.std, config.normalisation.scale
    if len(mean) != len(std) or not mean:
        raise UserError(
            f"--normalisation.mean has {len(mean)} numbers, --normalisation.std {len(std)}; give as many, one a band"
        )
    if not all(math.isfinite(m) for m in mean) or not all(0 < s < math.inf for s in std):
        raise UserError(
            "--normalisation.mean must be finite and --normalisation.std above 0, as images are divided by it"
        )
    if scale is not None and not 0 < scale < math.inf:
        raise UserError(f"--normalisation.scale is {scale:g}; it must be a positive number, as 255 or 10000")


def _balanced(dataset: Any, split: str, power: float) -> tuple[float, ...]:
    """Weights of the classes: their shares of a split's labelled pixels to the power of ``-power``; one on average, and for
    classes that are not there.
    """
    labelled = [scene for scene in dataset.scenes(split) if scene.labelled]
    print(f"counting the labels of {split} ({len(labelled)} scenes), for its classes are balanced")
    counts = sum((class_counts(scene, len(dataset.classes.names)) for scene in labelled), np.zeros(1))
    there = counts > 0
    if not there.any():
        return ()
    weights = np.where(there, counts, 1.0) ** -power
    return tuple(np.where(there, weights / weights[there].mean(), 1.0).round(4).tolist())


def _with_extra_band(
    normalisation: configs.NormalisationConfig, dataset: Any, split: str
) -> configs.NormalisationConfig:
    """A mean and a deviation for every band: the colours' as they are, the extra band's over the scenes trained on.

    Values for all bands are the user's own, and stay.
    """
    colours = dataset.extra.colours
    if len(normalisation.mean) == len(normalisation.std) == colours + 1:
        return normalisation
    print(f"measuring the band behind the colours on the {len(dataset.scenes(split))} scenes of {split}")
    measured = (v / normalisation.scale for v in dataset.extra.statistics(dataset.scenes(split)))
    mean, std = (
        (*(of[i % len(of)] for i in range(colours)), own)
        for of, own in zip((normalisation.mean, normalisation.std), measured, strict=True)
    )
    return dataclasses.replace(normalisation, mean=mean, std=std)


def initial_variables(
    config: Config, model: Any, bands: int, names: Sequence[str]
) -> tuple[dict[str, Any], starting.Start | None]:
    """Fresh variables, what the configuration names taken from elsewhere: backbones of a file, or all that fits of weights.

    Args:
        names: of the classes.

    Returns:
        the variables, and what was taken of weights if there are any.
    """
    variables = models.init(model, jax.random.key(config.train.seed), bands)
    if config.backbone is not None:
        return starting.with_backbones(starting.load_backbone(config.backbone), variables, bands), None
    if config.init.weights is None or config.more_steps is not None:  # a state that goes on replaces all of it
        return variables, None
    axes = models.axes(lambda k: build_model(config, k), len(names), bands)
    taken = starting.take(starting.Source.read(config.init.weights), variables, axes, config, names)
    starting.forget()  # they were asked for the last time
    return taken


def save(path: Path, config: Config, dataset: Any, variables: Any, dtype: Any = None) -> None:
    """One file that rebuilds the model for images as the dataset's; ``dtype`` (float16) of its parameters makes it smaller."""
    table = dataset.classes
    classes = {"names": list(table.names), "palette": [list(c) for c in table.palette], "dataset": dataset.name}
    variables = jax.tree.map(np.asarray, variables)
    weights.save_weights(
        path, variables, configs.to_dict(config), classes, configs.numbers_of(config.normalisation), dtype,
        _bands_of(dataset, config.data.train_split), config.data.ground_resolution,
    )  # fmt: skip


def _bands_of(dataset: Any, split: str) -> int | None:
    """Those of the first scene trained on, else of any; None where there is none."""
    ordered = sorted(dataset.splits, key=lambda name: name != split)
    return next((scene.bands for name in ordered for scene in dataset.scenes(name)), None)


def trained_bands(path: Path, dataset: str) -> str | None:
    """The choice of bands that weights were trained on; None where there was none, or another dataset's are no choice here."""
    data = read_weights(path)[0].data
    return data.bands if (data.dataset in OWN) == (dataset in OWN) else None


def open_for(
    path: Path, dataset: str, folder: str | None, bands: str | None = None, split_list: str | None = None
) -> Any:
    """A dataset to score weights on; without a choice of bands or splits, those that the weights were trained on."""
    if bands is None and "bands" in OPTIONS.get(dataset, ()):
        bands = trained_bands(path, dataset)
    if split_list is None and "split_list" in OPTIONS.get(dataset, ()):
        data = read_weights(path)[0].data
        split_list = data.split_list if data.dataset == dataset else None
    given = {"bands": bands, "split_list": split_list}
    return open_dataset(dataset, folder, **{name: value for name, value in given.items() if value is not None})


def data_of(path: Path, folder: str | None = None) -> configs.DataConfig:
    """What weights were trained on, where it says; in another folder if one is given.

    Raises:
        UserError: it says no place that is there.
    """
    data = read_weights(path)[0].data
    given = folder or data.dir
    place = Path(given or f"data/{data.dataset}")
    if data.dataset != "sample" and not place.is_dir():
        raise UserError(f"{path} was trained on {data.dataset}, which is not at {place}; give --dataset and --data-dir")
    return dataclasses.replace(data, dir=given)


def chosen_bands(config: Config) -> tuple[int, ...] | None:
    """The bands that a folder's images were trained on, if they were named by number."""
    return parse_bands(config.data.bands) if config.data.dataset in OWN else None


def read_weights(path: Path) -> tuple[Config, weights.WeightsFile]:
    """The configuration of a weights file, and what else it holds.

    Raises:
        UserError: it cannot be read, or a part of it is not what it must be.
    """
    if exported.is_one(path):
        return _read_export(path)
    stored = weights.load_weights(path)
    config = configs.from_dict(stored.config, f"{path} (config)")
    if stored.ground_resolution is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, ground_resolution=stored.ground_resolution)
        )
    return config, stored


def _read_export(path: Path) -> tuple[Config, weights.WeightsFile]:
    """An exported network as weights are read: what it says of itself, and the network itself; its code is not needed.

    Raises:
        UserError: it cannot be read, or does not say what maps need.
    """
    network = exported.load(path)
    told = network.manifest
    weights.check_legend(path, told["classes"], told["normalisation"])
    views = {f.name: told["geometry"].get(f.name) for f in dataclasses.fields(configs.Views)}
    data = {k: v for k, v in told.get("data", {}).items() if v is not None}
    config = configs.from_dict({"views": views, "data": data}, f"{path} (manifest.json)")
    config = dataclasses.replace(config, model=configs.ModelConfig(str(told.get("network", {}).get("name", "unknown"))))
    bands = weights.check_bands(path, str(told["geometry"].get("bands")))
    normalisation, resolution = told["normalisation"], config.data.ground_resolution
    return config, weights.WeightsFile(network.weights, {}, told["classes"], normalisation, bands, resolution, network)


def rebuild(path: Path, config: Config, stored: weights.WeightsFile) -> Any:
    """The network of a weights file.

    Raises:
        UserError: the file's arrays are not those of the network.
    """
    if stored.network is not None:
        return stored.network
    model = build_model(config, len(stored.classes["names"]))
    weights.check_variables(path, stored.variables, models.shapes(model, stored.bands, config.views.sides))
    return model


def load_predictor(
    path: str | Path,
    batch: int = 6,
    *,
    dtype: str | None = None,
    default: str | None = None,
    views: dict[str, Any] | None = None,
    tta: bool = False,
    stage: str | None = None,
    scale: float | None = None,
    devices: int | None = None,
    engine: Callable[[Config, Any, dict[str, Any]], Any] | None = None,
) -> tuple[Predictor, Config, dict[str, Any]]:
    """A network rebuilt from a weights file alone, its configuration and its classes.

    ``dtype``, ``default`` (a dtype for networks that have the choice, where none is given), ``views`` (fields of
    :class:`glcanet_jax.geometry.Views`) and ``scale`` (the images' full scale) replace what the file says; ``stage`` and
    ``devices`` as :class:`Predictor` has them; ``engine`` makes another engine than JAX of configuration, contents of the file and
    normalisation, or returns None.

    Raises:
        UserError: it cannot be read, or there are not so many devices.
    """
    if devices is not None and devices > len(jax.local_devices()):
        raise UserError(f"--devices is {devices}; this machine has {len(jax.local_devices())}: give at most as many")
    path = find_weights(path)
    config, stored = read_weights(path)
    config = dataclasses.replace(config, views=dataclasses.replace(config.views, **(views or {})))
    told = {k: stored.normalisation[k] for k in ("mean", "std", "scale")}
    normalisation = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    if scale is not None:
        normalisation["scale"] = scale
    # graphs are of float32, whatever an engine computes them in
    other = None if engine is None else engine(computing_in(config, "float32"), stored, normalisation)
    if other is not None:
        dtype = "float32"
    elif dtype is None and hasattr(config.model, "dtype"):
        dtype = default
    if dtype is not None:
        config = computing_in(config, dtype)
    model = rebuild(path, config, stored) if other is None else other.model
    options = {"bands": stored.bands, "batch": batch, "tta": tta, "stage": stage, "devices": devices, "engine": other}
    predictor = Predictor(model, stored.variables, config.views, normalisation, **options)
    return predictor, config, stored.classes


def computing_in(config: Config, dtype: str) -> Config:
    """The configuration with another type of the computation.

    Raises:
        UserError: the network has no such option.
    """
    if hasattr(config.model, "dtype"):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    if dtype != "float32":
        raise UserError(
            f"{config.model.network} has no option dtype and computes in float32; leave out --dtype {dtype}"
        )
    return config


def computing_plainly(config: Config) -> Config:
    """The configuration whose network is computed as it is written: convolutions that were made for training on CPUs, and what is
    recomputed there, mean nothing to an export or to another engine.
    """
    plain = {name: False for name in ("fast_conv", "remat") if hasattr(config.model, name)}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **plain))


INTEGERS = (255.0, 65535.0, 32767.0)  # full scales that integers alone are divided by


def check_values(what: str, dtype: Any, scale: float, cure: str) -> None:
    """Raises UserError if values of this type cannot be those that weights were trained on, which divide by ``scale``."""
    if np.issubdtype(dtype, np.floating):
        fits = scale not in INTEGERS
    else:
        fits = scale != 1 and (np.iinfo(dtype).max > 255) == (scale > 255)
    if not fits:
        raise UserError(
            f"{what} holds {np.dtype(dtype)} values, the weights were trained on values up to {scale:g}; {cure}"
        )


def data_as_begun(config: Config) -> configs.DataConfig:
    """Which scenes, and where they are trained on from: where that is to be chosen and a run began already, or its parent, as that did."""
    data, folders = config.data, [config.out, *([config.init.weights] if config.more_steps is not None else [])]
    kept = [Path(folder) / "config.json" for folder in folders if folder and _kept(Path(folder))]
    if data.on_device != "auto" or data.pool is not None or not kept:
        return data
    theirs = configs.from_dict(border.read_json(kept[0]), kept[0]).data
    return dataclasses.replace(data, on_device=theirs.on_device, pool=theirs.pool)


def open_run(config: Config) -> Path:
    """The run's folder, with its configuration; the same command finds its own run again.

    Raises:
        UserError: the folder holds a run of another configuration, or something else, or cannot be made.
    """
    out = Path(config.out)
    ours = configs.to_dict(config)
    if os.path.lexists(out / "config.json"):
        theirs = border.read_json(out / "config.json")
        # options that are newer than the run have their defaults
        theirs = configs.to_dict(configs.from_dict(theirs, out / "config.json"))
        theirs["out"] = ours["out"]  # a run may be moved
        if (out / DATA).exists():  # which tells whether the data are the same, wherever they lie
            theirs["data"]["dir"] = ours["data"]["dir"]
        if theirs["data"]["on_device"] == "auto":  # it is older than the choice
            theirs["data"]["on_device"] = "never"
        if ours["data"]["on_device"] == "auto":  # nothing was chosen yet
            theirs["data"]["on_device"] = "auto"
        if theirs["data"]["ground_resolution"] is None:  # it is older than that was recorded
            theirs["data"]["ground_resolution"] = ours["data"]["ground_resolution"]
        for how in ("cache", "kept_mb"):  # of reading, which changes nothing of what is read
            theirs["data"][how] = ours["data"][how]
        theirs["train"]["devices"] = ours["train"]["devices"]  # a run goes on wherever there is room
        changed = configs.differences(ours, theirs, words=("here", "there"))
        if changed and not _kept(out):
            # it was stopped before its first step was kept: nothing is lost
            report.write_json(out / "config.json", ours)
        elif changed:
            raise UserError(
                f"{out} holds a run of another configuration ({'; '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}); "
                f"give another --out, or the same options to go on with it{_longer(out, ours['train'], theirs['train'])}"
            )
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no run of ours; give another --out, or an empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        report.write_json(out / "config.json", ours)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); give another --out") from error
    return out


def _longer(out: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How a run that has ended is trained for more steps than it was begun for, where that is asked of it."""
    here, there = ours["steps"], theirs["steps"]
    longer = (out / "last.safetensors").exists() and here and there and here > there
    return f", and --more-steps {here - there} to go on behind its end" if longer else ""


DATA = "data.json"  # in a run's folder: what it was trained on


def _kept(out: Path) -> bool:
    """Whether a run has anything that could go on, or be lost."""
    return any((out / "checkpoints").glob("*/[0-9]*")) or (out / "last.safetensors").exists()


def know_data(out: Path, config: Config, dataset: Any) -> None:
    """Record what a run is trained and validated on, or see that it still is what was recorded.

    A copy of the data is the same data. A run that is older than these records takes what is there now.

    Raises:
        UserError: the data have changed since the run began, and how; a file of theirs cannot be read.
    """
    path = out / DATA
    before = identity.read(path) if path.exists() and _kept(out) else None
    now = identity.describe(dataset, [s for s in (config.data.train_split, config.data.val_split) if s], before)
    changed = [] if before is None else identity.changes(now, before)
    if changed:
        raise UserError(
            f"{out} holds a run on other data: {'; '.join(changed)}; give another --out, or the data as they were to go on"
        )
    if now != before:
        report.write_json(path, now)
