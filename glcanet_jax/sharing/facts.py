"""What is known of a weights file: from itself, and from the run that it lies in."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from glcanet_jax import border, geometry, hub, runs
from glcanet_jax.data import OWN
from glcanet_jax.data.identity import digest
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps
from glcanet_jax.weights import named

COLOURS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")}  # where nothing says which
CHOSEN = {"rgb": COLOURS[3], "irrg": ("nir", "red", "green"), "irrgb": ("nir", "red", "green", "blue")}
TITLES = {"glcanet": "GLCANet", "glnet": "GLNet", "fcn8s": "FCN-8s", "unet": "U-Net", "segnet": "SegNet"}
TITLES |= {
    "pspnet": "PSPNet",
    "deeplabv3plus": "DeepLabv3+",
    "icnet": "ICNet",
    "encnet": "EncNet",
    "refinenet": "RefineNet",
    "isdnet": "ISDNet",
    "srafcn": "S-RA-FCN",
    "bsnet": "BSNet (reconstructed)",
    "cbam": "FCN with CBAM",
    "seggpt": "SegGPT",
    "mask2former": "Mask2Former",
    "branch": "GLCANet, one branch",
}
SCORED = "give a metrics.json that `eval` wrote"
SAID = ("evaluated", "split", "called")  # by a metrics.json, of what was scored
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Scores:
    """Of one protocol on one split."""

    dataset: str
    split: str
    protocol: str
    miou: float  # all three 0 to 1
    mf1: float
    oa: float
    classes: tuple[tuple[str, float], ...] = ()  # name and IoU
    majority: float | None = None  # mIoU of the commonest class everywhere
    chose: bool = False  # the split chose the weights
    called: str = ""  # what people call the dataset


@dataclass(frozen=True)
class Facts:
    """Of a weights file, or an export."""

    path: Path
    name: str  # where it is from: its name on a hub, or its path
    export: bool  # not weights, but a network that was exported
    bytes: int
    sha256: str
    network: str
    options: dict[str, Any]  # of the network
    views: geometry.Views
    parameters: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    bands: tuple[str, ...]
    normalisation: dict[str, Any]
    ground_resolution: float | None  # metres a pixel
    dataset: str
    licence: str | None
    pretrained: str | None  # where its training began; None: from noise
    steps: int | None
    scenes: dict[str, int] = field(default_factory=dict)  # by split, of the run that it lies in
    scores: tuple[Scores, ...] = ()
    picture: Path | None = None
    given_title: str | None = None
    reads: tuple[Path, ...] = ()  # files that all this is from

    @property
    def called(self) -> str:
        """The network's name."""
        return TITLES.get(self.network, self.network)

    @property
    def title(self) -> str:
        """What the weights are called: as was said, or after network and data."""
        if self.given_title is not None:
            return self.given_title
        return f"{self.called}, {self.dataset}" if self.dataset else self.called


def read(
    weights: str | Path,
    licence: str | None = None,
    scores: tuple[Path, ...] = (),
    picture: Path | None = None,
    title: str | None = None,
) -> Facts:
    """What is known of weights, a run's best or last, a name on a hub, or an export.

    Args:
        licence: instead of what the file says.
        scores: files ``metrics.json`` of ``eval``; none: those below the run's folder, if the weights lie in one.
        picture: to be shown; None: the first overlay below the run's folder.
        title: what the weights are called; None: after network and data.

    Raises:
        UserError: something cannot be read, or is not what it should be.
    """
    path = runs.find_weights(weights)
    config, stored = runs.read_weights(path)
    run = path.parent if (path.parent / "config.json").exists() else None
    found = _own_scores(run, path.name) if run is not None and not scores else scores
    if picture is not None:
        _check_picture(picture)
    elif run is not None:
        picture = next((p for p in sorted(run.glob("*/overlay_*.png")) if _fault_of(p) is None), None)
    if title is not None and not title.strip():
        raise UserError(f"--title is {title!r}; give what the weights are to be called, or leave it out")
    names = stored.classes["names"]
    data = stored.classes.get("dataset", "") or config.data.dataset
    own = _data_name(data, config.data.dir)
    options = stored.config.get("model", {}) if stored.network is None else stored.network.options
    began = None if stored.network is not None else _began(config)
    return Facts(
        path=path,
        name=named(path),
        export=stored.network is not None,
        bytes=path.stat().st_size,
        sha256=digest(path, whole=True),
        network=config.model.network,
        options={k: v for k, v in options.items() if k != "network"},
        views=config.views,
        parameters=_count(stored),
        classes=tuple(names),
        palette=tuple(tuple(colour) for colour in stored.classes["palette"]),
        bands=band_names(config.data.bands, stored.bands),
        normalisation=_by_band(stored.normalisation, stored.bands),
        ground_resolution=stored.ground_resolution or config.data.ground_resolution,
        dataset=own,
        licence=licence or config.data.licence,
        pretrained=began,
        steps=config.train.steps if stored.network is None else None,
        scenes=_scenes(run, data),
        scores=tuple(_own(s, data, own, config.data.val_split) for f in found for s in read_scores(Path(f), names)),
        picture=picture,
        given_title=None if title is None else " ".join(title.split()),
        reads=tuple(file for file in (path, picture, *found, *_records(run)) if file is not None),
    )


def _own_scores(run: Path, weights: str) -> list[Path]:
    """The scores below a run's folder that are of a file of its weights."""
    told = {
        file: border.read_object(file, SCORED, config=dict)["config"] for file in sorted(run.glob("*/metrics.json"))
    }
    return [file for file, settings in told.items() if Path(str(settings.get("weights", weights))).name == weights]


def _records(run: Path | None) -> list[Path]:
    """What else a run's folder says of it."""
    return [] if run is None else [run / "config.json", run / runs.DATA]


def _own(scores: Scores, data: str, title: str, chosen_on: str | None) -> Scores:
    """Scores with what people call their data, and whether their split chose weights that were trained on ``data``."""
    called = scores.called or (title if scores.dataset == data else scores.dataset)
    same = scores.dataset in ("", data) and called in ("", title)
    return dataclasses.replace(scores, called=called, chose=same and scores.split == chosen_on)


def _data_name(dataset: str, folder: str | None) -> str:
    """A dataset's name; of data of the user's own that of their folder."""
    return (Path(folder).name if dataset in OWN and folder is not None else "") or dataset


def _began(config: Any) -> str | None:
    """Where training began, if not from noise."""
    began = config.init.weights or config.backbone
    return None if began is None else base_name(began)


def base_name(weights: str) -> str:
    """A name of weights without a place of this machine."""
    return weights if hub.is_name(weights) else Path(weights).name


def _count(stored: Any) -> int:
    """Learnable parameters."""
    if stored.network is None:
        return sum(array.size for array in flatten_dict(stored.variables["params"]).values())
    return sum(array.size for name, array in stored.variables.items() if name.startswith("params/"))


def band_names(chosen: str | None, count: int) -> tuple[str, ...]:
    """What bands are called: after the choice that was trained on, or as colours come where there was none."""
    if chosen is not None:
        colours, _, height = chosen.partition("+")
        names = CHOSEN.get(colours, ()) or tuple(f"band{number.strip()}" for number in colours.split(","))
        names += (height,) if height else ()
        if len(names) == count:
            return names
    return COLOURS.get(count) or tuple(f"band{i + 1}" for i in range(count))


def _by_band(normalisation: dict[str, Any], bands: int) -> dict[str, Any]:
    """Mean and deviation of every band, and the scale."""
    each = {k: np.resize(np.asarray(normalisation[k], float), bands).tolist() for k in ("mean", "std")}
    return each | {"scale": float(normalisation["scale"])}


def _scenes(run: Path | None, dataset: str) -> dict[str, int]:
    """Scenes by split: those that a run was trained on, if it says so, and others of the data that it was scored on."""
    if run is None or not (run / runs.DATA).exists():
        return {}
    of_splits = border.read_object(run / runs.DATA, scenes=dict)["scenes"]
    odd = next((split for split, members in of_splits.items() if not isinstance(members, dict)), None)
    if odd is not None:
        raise UserError(f"{run / runs.DATA}: scenes of {odd[:60]} is no object of scenes by name; restore the file")
    counts = {split: len(members) for split, members in of_splits.items()}
    for told in map(border.read_object, sorted(run.glob("*/metrics.json"))):
        asked, scored = told.get("config"), told.get("scenes")
        if isinstance(asked, dict) and isinstance(scored, dict) and asked.get("evaluated", dataset) == dataset:
            counts.setdefault(str(asked.get("split", "scored")), len(scored))
    return counts


def _check_picture(path: Path) -> None:
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"--picture is {path}; it must be one of {', '.join(PICTURES)}")
    if not path.is_file():
        raise UserError(f"there is no picture at {path}; give one that `predict --overlay` or `eval` made")
    if fault := _fault_of(path):
        raise UserError(f"{path} cannot be shown ({fault}); give another --picture")


def _fault_of(path: Path) -> str | None:
    """Why a file cannot be shown as a picture; None: it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
    except UnidentifiedImageError:
        return "no picture"
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # Pillow has no common base for them
        return str(error)[:200]
    return None


def _object(value: Any) -> dict[str, Any]:
    """An object of JSON; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def read_scores(path: Path, classes: list[str]) -> list[Scores]:
    """What a ``metrics.json`` says, by protocol.

    Raises:
        UserError: it is none, or of other classes.
    """
    told = border.read_object(path, SCORED, protocols=dict)
    settings = _object(told.get("config"))
    out = []
    for name, scores in told["protocols"].items():
        try:
            means = [float(scores[key]) for key in ("miou", "mf1", "oa")]
            each = tuple((str(k), float(v["iou"])) for k, v in scores["classes"].items() if v["iou"] is not None)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} has no scores of protocol {name[:60]}; {SCORED}") from error
        strange = [k for k, _ in each if k not in classes]
        if strange:
            near = perhaps(strange[0], classes)
            raise UserError(
                f"{path} scores a class {strange[0]!r}{near}, which the weights do not know; give their own scores"
            )
        majority = _object(_object(told.get("majority")).get(name)).get("miou")
        if majority is not None and type(majority) not in (int, float):
            raise UserError(f"{path}: majority of {name[:60]} has an miou that is no number; {SCORED}")
        dataset, split, called = (str(settings.get(key) or told.get(key) or "") for key in SAID)
        out.append(Scores(dataset, split, name, *means, each, majority, called=called))
    if not all(math.isfinite(v) for s in out for v in (s.miou, s.mf1, s.oa, s.majority or 0.0)):
        raise UserError(f"{path} holds scores that are not finite; score a split with labels")
    return out
