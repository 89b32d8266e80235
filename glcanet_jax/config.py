"""One frozen dataclass says everything of a run; it is saved beside the weights and inside them."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from glcanet_jax import border, models
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.limits import COUNT, DECAY, METRES, MOST, SEED, WEIGHT, Range, check_fields

RATE = Range(0)  # of learning
MINUTES = Range(0, open="low")


@dataclass(frozen=True)
class ModelConfig:
    """Name of the network; each has a subclass with its options, under their own names: `--model.mask window`."""

    network: str  # glcanet, glnet, fcn8s, unet, segnet, pspnet, deeplabv3plus, icnet, encnet, refinenet, isdnet, srafcn, bsnet, cbam, seggpt, mask2former or branch

    def __post_init__(self):
        check_fields(self, "model.")


@functools.cache
def _model_class(network: str) -> type[ModelConfig]:
    told = models.words(network)
    options = [("network", str, network)]
    options += [(name, hint, field(default=value, metadata=told[name])) for name, hint, value in models.fields(network)]
    made = dataclasses.make_dataclass(f"{network.title()}Config", options, bases=(ModelConfig,), frozen=True)
    made.__doc__ = f"The network and its options: {network}'s here; another --model.network has others."
    return made


def model_config(network: str = "glcanet", **options: Any) -> ModelConfig:
    """The configuration of a network.

    Raises:
        UserError: there is none of this name.
    """
    return _model_class(network)(**options)


def with_network(model: ModelConfig, network: str) -> ModelConfig:
    """Another network, with those options of ``model`` that it has, too, where they are not that one's defaults."""
    if network == model.network:
        return model
    own, other = models.options(model.network), models.options(network)
    common = {k: getattr(model, k) for k in own.keys() & other.keys() if getattr(model, k) != own[k]}
    return model_config(network, **common)


def settled(config: "Config") -> ModelConfig:
    """The network's configuration, with the norm of the local enhancement that "auto" means for it."""
    model = config.model
    if getattr(model, "lem_norm", None) != "auto":
        return model
    few = config.loader.batch_size * config.loader.patches_per_context < 4  # whose statistics are noise
    return dataclasses.replace(model, lem_norm="batch" if model.norm == "batch" and not few else "group")


def model_options(model: ModelConfig) -> dict[str, Any]:
    """A network's options without its name."""
    options = dataclasses.asdict(model)
    del options["network"]
    return options


@dataclass(frozen=True)
class DataConfig:
    """Which scenes."""

    # deepglobe, inria, urur, fbp, gid15, flair, loveda, vaihingen, potsdam or mbrsc, published ones (`glcanet datasets`); folder or
    # tiles, of your own; or sample, which is bundled
    dataset: str = "sample"
    dir: str | None = None  # where it lies; None: data/ and its name
    train_split: str = "train"  # whose scenes are trained on
    val_split: str | None = None  # chooses the best checkpoint; None: the dataset's own, if any
    train_scenes: tuple[str, ...] = ()  # MBRSC: scenes to train on instead of the split's
    val_scenes: tuple[str, ...] = ()  # MBRSC: scenes that choose the best checkpoint
    bands: str | None = None  # by name, as irrg or rgb+dsm, of a set that has a choice; a folder: numbers, as 4,1,2
    split_list: str | None = (
        None  # published splits by name, where there are several, as official of inria; None: the first
    )
    normalisation: str | None = None  # a file of `check --normalisation FILE`, whose numbers replace --normalisation.*
    # metres a pixel, kept with the weights; None: the median of the georeferenced scenes trained on
    ground_resolution: Annotated[float | None, METRES] = None
    licence: str | None = None  # of the data, as CC-BY-4.0; kept with the weights, for their card
    drop_faulty: bool = True  # Potsdam: leave out tile 7_10, whose labels are wrong
    # decoded scenes, labels as ids, as tiles on disk: auto (beside the data, if memory cannot keep what is dear to decode; what it
    # takes is said first), off, or a folder
    cache: str = "auto"
    kept_mb: Annotated[int, Range(1, 2**22)] = 256  # MB of decoded files that memory keeps
    # train from scenes that lie on the device, where each step draws its batch: auto (on accelerators; those that fit 40 % of the
    # free memory, in turns where these are not all), always or never
    on_device: Literal["auto", "always", "never"] = "auto"
    # as 8GB (1 MB, which is 1024 x 1024 bytes, is the least): what scenes may take on all devices, where they take turns if they
    # are more
    pool: str | None = None
    # contexts that are drawn from a scene before the next one has its turn, over those that an epoch has of it
    pool_passes: Annotated[float, Range(0, 1e6, open="low")] = 16.0
    tfds_dir: str | None = None  # read a prepared tfds build from here (made at first use) instead of the plain files

    def __post_init__(self):
        check_fields(self, "data.")


@dataclass(frozen=True)
class LossConfig:
    """Weights and shape of the loss (docs/design.md)."""

    gamma: Annotated[float, Range(0, 100)] = 6.0  # of the focal loss; 0: cross-entropy
    # of the logits that answer; a network's own auxiliary ones have its own weights
    fused: Annotated[float, WEIGHT] = 1.0
    local: Annotated[float, WEIGHT] = 1.0  # of the local branch's auxiliary logits
    glob: Annotated[float, WEIGHT] = 1.0  # of the global branch's
    regulariser: Annotated[float, WEIGHT] = 0.15  # of the difference between the two branches' maps
    class_weights: Annotated[tuple[float, ...], WEIGHT] = ()  # one per class; none: all alike, or as balance says
    # without class_weights: they are the classes' shares of the pixels to the power of -balance
    balance: Annotated[float, Range(0, 10)] = 0.0
    smoothing: Annotated[float, DECAY] = 0.0  # of the labels: the share that is spread over all classes
    dice: Annotated[float, WEIGHT] = 0.0  # of soft Dice, beside every focal term
    lovasz: Annotated[float, WEIGHT] = 0.0  # of Lovasz-softmax, beside every focal term

    def __post_init__(self):
        check_fields(self, "loss.")


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with a rate per branch."""

    global_rate: Annotated[float, RATE] = 1e-4  # of the global branch, at the start
    local_rate: Annotated[float, RATE] = 2e-5  # of the local branch, and of a network of one view
    fusion_rate: Annotated[float, RATE] = 2e-5  # of what joins them
    # of the layers that give classes, wherever they are; None: that of their branch
    head_rate: Annotated[float | None, RATE] = None
    b1: Annotated[float, DECAY] = 0.9  # decay a step of the mean of the gradients
    b2: Annotated[float, DECAY] = 0.999  # and of their squares
    weight_decay: Annotated[float, WEIGHT] = 0.0  # coupled L2, as GLNet's Adam
    clip: Annotated[float | None, Range(0, open="low")] = None  # largest norm of a root's gradient; None: any
    schedule: Literal["poly", "cosine", "constant"] = "poly"  # how the rates fall
    power: Annotated[float, Range(0, 100)] = 0.9  # of poly
    warmup_steps: Annotated[int, Range(0, MOST)] = 0  # linear, from zero

    def __post_init__(self):
        check_fields(self, "optimiser.")


@dataclass(frozen=True)
class TrainConfig:
    """How long, in what order, and what is written when."""

    steps: Annotated[int | None, COUNT] = None  # batches trained on; None: by epochs
    epochs: Annotated[int, COUNT] = 120  # where no steps are given; the paper names none, these are GLNet's
    schedule: Literal["joint", "staged"] = "joint"  # both branches at once, or the global one first
    # global branch alone first; None: 0 when joint, 120/170 of the steps when staged
    global_steps: Annotated[int | None, Range(0, MOST)] = None
    accumulation: Annotated[int, Range(1, 2**16)] = 1  # parts of a batch whose gradients are added
    # decay a step of the moving average of the weights, which is what is scored and saved; 0: none
    ema: Annotated[float, DECAY] = 0.0
    # largest relative change of brightness, contrast and colour; both views alike
    colour_jitter: Annotated[float, Range(0, 1)] = 0.0
    # the first ones, that are colours; None: as many as the dataset says, else all
    jitter_bands: Annotated[int | None, Range(0, 2**16)] = None
    devices: Annotated[int | None, Range(1, 2**20)] = None  # that share a batch; None: as many as divide the batch
    # of products and convolutions of float32 values; GPUs and TPUs round them to fewer digits (TF32: 1e-3) unless it is highest
    precision: Literal["default", "highest"] = "default"
    deterministic: bool = False  # on GPUs leave out operations that give other bits every time; slower
    seed: Annotated[int, SEED] = 0  # of the fresh weights
    log_every: Annotated[int, COUNT] = 10  # steps from line to line of log.jsonl
    eval_every: Annotated[int | None, COUNT] = None  # steps from validation to validation; None: an epoch
    checkpoint_every: Annotated[int | None, COUNT] = None  # steps from checkpoint to checkpoint; None: an epoch
    # minutes after which there is one at the latest: a killed run does again what came after its last checkpoint
    checkpoint_minutes: Annotated[float, MINUTES] = 5.0
    tensorboard: bool = True  # a log for it, too, if it is installed

    def __post_init__(self):
        check_fields(self, "train.")


@dataclass(frozen=True)
class NormalisationConfig:
    """``(x / scale - mean) / std`` per band; ImageNet's by default, repeated for further bands."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of the bands, as shares of the full scale
    std: Annotated[tuple[float, ...], Range(0, open="low")] = (0.229, 0.224, 0.225)  # likewise, their deviation
    # full scale of the values; None: the dataset's (255 for 8 bits, 65535 for 16)
    scale: Annotated[float | None, Range(0, open="low")] = None

    def __post_init__(self):
        check_fields(self, "normalisation.")


@dataclass(frozen=True)
class InitConfig:
    """Weights to begin with instead of noise: what fits is taken, class layers by the names of classes."""

    # demo, a weights file, a run's folder, hf:organisation/repository[@revision], or a PyTorch checkpoint, of which the backbone
    # is taken
    weights: str | None = None
    classes: str | None = None  # their classes that have another name here: OLD=NEW,OLD=NEW
    normalisation: bool = True  # normalise images as they do, where nothing else is given

    def __post_init__(self):
        check_fields(self, "init.")


@dataclass(frozen=True)
class Config:
    """A run, whole."""

    data: DataConfig = field(default_factory=DataConfig)
    views: Views = field(default_factory=Views)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    model: ModelConfig = field(default_factory=model_config)
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # a new run that goes on from the last state of the run that is --init, or without one --out, for so many steps
    more_steps: Annotated[int | None, COUNT] = None
    backbone: str | None = (
        None  # ImageNet weights of the ResNets: a torchvision-layout file or hf:organisation/repository
    )
    # what is not trained: backbone, all-but-heads, or patterns of parameters' paths, as local/resnet/stage1*; !PATTERN: but these
    freeze: tuple[str, ...] = ()
    eval_batch: Annotated[int, Range(1, 2**12)] = 6  # patches at once in evaluation
    eval_tta: bool = False  # the mean over the eight views of a square in the last evaluation
    out: str = "runs/run"  # where everything is written
    # HOST:PORT,COUNT,NUMBER of several processes: where process 0 listens, how many, which this is; auto: as a cluster says; off
    distributed: str = "auto"

    def __post_init__(self):
        check_fields(self, "")


def numbers_of(normalisation: NormalisationConfig) -> dict[str, Any]:
    """What a network is told of its images: ``mean``, ``std`` and ``scale``."""
    return {name: getattr(normalisation, name) for name in ("mean", "std", "scale")}


def to_dict(config: Any) -> dict[str, Any]:
    """As JSON would read it back: lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Any, source: Any = "the configuration") -> Config:
    """The inverse of :func:`to_dict`; fields that a file lacks take their defaults.

    Raises:
        UserError: something is no option or no value of one; all is told, behind ``source``, where it was read.
    """
    model = values.get("model") if isinstance(values, dict) else None
    network = model.get("network", "glcanet") if isinstance(model, dict) else "glcanet"
    try:
        own = _model_class(network if isinstance(network, str) else repr(network))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if isinstance(model, dict):
        values = values | {"model": {"network": network} | model}
    return border.check(
        values, Config, source, {ModelConfig: own}, "mend it, or update this program if it is of a later version"
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def differences(
    a: dict[str, Any], b: dict[str, Any], prefix: str = "", words: tuple[str, str] | None = None
) -> list[str]:
    """Dotted names of the values that differ, ``name: a against b``, or what ``words`` say of each of the two."""
    out = []
    for key in sorted(set(a) | set(b)):
        name = f"{prefix}{key}"
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            out += differences(a[key], b[key], name + ".", words)
        elif a.get(key) != b.get(key):
            pair = f"{a.get(key)!r} against {b.get(key)!r}"
            out.append(f"{name}: {pair if words is None else f'{a.get(key)!r} {words[0]}, {b.get(key)!r} {words[1]}'}")
    return out
