"""One file that rebuilds a model: its variables, configuration, classes and normalisation."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import border
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.limits import METRES, Length, Range, Text

FORMAT = "glcanet_jax weights"

VERSION = 2  # 1: without arrays of 8 bits
VERSIONS = ("1", "2")
SCALE = ":scale"  # behind the name of an array of 8 bits
COLLECTIONS = ("params", "batch_stats")
TYPES = ("F32", "F16", "BF16", "F64", "I8", "U8", "I16", "I32", "I64", "BOOL")  # that numpy, or we, can hold
CURE = "fetch the file again, or save it again"
MOST_BANDS = 4096
Named = Annotated[
    str, Text(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}", "a name of 1 to 200 characters, none of them a control")
]
Byte = Annotated[int, Range(0, 255)]


@dataclass(frozen=True)
class Legend:
    """The classes of a weights file."""

    names: Annotated[tuple[Named, ...], Length(1, 254)]
    palette: tuple[tuple[Byte, Byte, Byte], ...]
    dataset: str = ""  # that they were trained on

    def __post_init__(self):
        if len(self.names) != len(self.palette):
            raise UserError(f"classes has {len(self.names)} names and {len(self.palette)} colours; {CURE}")


@dataclass(frozen=True)
class Normalisation:
    """How the images of a weights file become small numbers."""

    mean: Annotated[tuple[Annotated[float, Range()], ...], Length(1, MOST_BANDS)]
    std: Annotated[tuple[Annotated[float, Range(0, open="low")], ...], Length(1, MOST_BANDS)]
    scale: Annotated[float, Range(0, open="low")]

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise UserError(f"normalisation has {len(self.mean)} means and {len(self.std)} deviations; {CURE}")


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file.

    Raises:
        UserError: it is none, or holds arrays of a type that numpy has not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        other = border.what_is_there(path)
        if other is not None:
            raise UserError(f"{path} is {other}; it must be a safetensors file: give another path")
        with safe_open(path, "np") as file:
            names = list(file.keys())
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            odd = [f"{name} of {kind}" for name, kind in kinds.items() if kind not in TYPES]
            if odd:
                raise UserError(
                    f"{path} has {', '.join(odd[:3])}{' ...' * (len(odd) > 3)}; {CURE} as float32 or float16"
                )
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{path} is no readable safetensors file ({str(error)[:200]}); fetch it again") from error


@dataclass(frozen=True)
class WeightsFile:
    """What one weights file holds: enough to rebuild and use the model."""

    variables: dict[str, Any]
    config: dict[str, Any]
    classes: dict[str, Any]
    normalisation: dict[str, Any]
    bands: int  # of the images that it is for
    ground_resolution: float | None = None  # metres a pixel of those trained on; None: not known
    network: Any = None  # itself, where the file holds more than its variables: an export


def save_weights(
    path: str | Path,
    variables: dict[str, Any],
    config: dict[str, Any],
    classes: dict[str, Any],
    normalisation: dict[str, Any],
    dtype: Any = None,
    bands: int | None = None,
    ground_resolution: float | None = None,
) -> None:
    """One ``.safetensors``: arrays under ``/``-joined names, the rest as JSON in its metadata; whole or not at all.

    ``dtype`` makes the file smaller: float16, or int8 with a scale for every output channel of a kernel (vectors and statistics
    stay float32). ``bands`` are those of the images; None: those of the kernel that is called ``stem_conv``.
    ``ground_resolution`` is that of the images, metres a pixel; None: not known.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    bands = _bands_of_stem(path, variables) if bands is None else bands
    arrays = {}
    for names, array in flatten_dict({k: v for k, v in variables.items() if v}).items():
        array, name = np.ascontiguousarray(array), "/".join(names)
        if dtype is None or names[0] != "params":
            arrays[name] = array
        elif np.dtype(dtype) != np.int8:
            arrays[name] = array.astype(dtype)
        elif array.ndim < 2:
            arrays[name] = array
        else:
            arrays[name], arrays[name + SCALE] = _quantised(array)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION if any(name.endswith(SCALE) for name in arrays) else 1),  # others can read it
        "config": json.dumps(config),
        "classes": json.dumps(classes),
        "normalisation": json.dumps(normalisation),
        "bands": str(bands),
    }
    if ground_resolution is not None:
        metadata["ground_resolution"] = repr(float(ground_resolution))
    with disk.whole(path) as place:
        try:
            save_file(arrays, place, metadata)
        except SafetensorError as error:  # the system's own error is in its words alone
            raise OSError(str(error)) from error
        _in_order(place)
        place.chmod(0o644)  # safetensors makes files that only their owner can read


def copy_weights(path: Path, out: Path, config: dict[str, Any]) -> None:
    """A weights file with another configuration in it, its arrays as they lie; whole or not at all."""
    with path.open("rb") as file, disk.whole(out) as place, place.open("wb") as copy:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header["__metadata__"] = dict(sorted((header["__metadata__"] | {"config": json.dumps(config)}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)  # arrays begin at a multiple of 8 bytes
        copy.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(file, copy)


def _in_order(path: Path) -> None:
    """Sort a file's metadata, which safetensors writes in any order: the same weights are the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
        file.seek(8)
        file.write(json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


def _quantised(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and the float32 scale of every channel of the last axis; the largest of each is exact, zeros stay zero."""
    scale = np.abs(array).max(axis=tuple(range(array.ndim - 1))) / 127
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return np.rint(array / scale).astype(np.int8), scale


def is_ours(path: Path) -> bool:
    """Whether a file says that it is weights of ours; one that cannot be read does not."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or border.what_is_there(path) is not None:
        return False
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load_weights(path: str | Path) -> WeightsFile:
    """The inverse of :func:`save_weights`; arrays come back float32.

    Raises:
        UserError: no such file, no weights of ours, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weights file at {path}; train one, or give another path")
    arrays, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but no weights of glcanet_jax; give one that `train` wrote (a backbone goes to --backbone)"
        )
    if metadata.get("version") not in VERSIONS:
        raise UserError(
            f"{path} is of version {metadata.get('version')}, this program reads {' and '.join(VERSIONS)}; update it"
        )
    lacking = [k for k in ("config", "classes", "normalisation") if k not in metadata]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)} in its metadata; it was not written whole: save it again")
    config, classes, normalisation = (
        border.parse_json(metadata[k], f"{path} ({k})") for k in ("config", "classes", "normalisation")
    )
    if not isinstance(config, dict):
        raise UserError(f"{path} (config) is no object of settings; {CURE}")
    check_legend(path, classes, normalisation)
    _check_arrays(path, arrays)
    scales = {k: arrays.pop(k) for k in [k for k in arrays if k.endswith(SCALE)]}
    flat = {tuple(k.split("/")): _as_float32(v, scales.get(k + SCALE)) for k, v in arrays.items()}
    variables = {"params": {}, "batch_stats": {}} | unflatten_dict(flat)
    bands = check_bands(path, metadata["bands"]) if "bands" in metadata else _bands_of_stem(path, variables)
    return WeightsFile(variables, config, classes, normalisation, bands, _resolution(path, metadata))


def check_legend(path: Path, classes: Any, normalisation: Any) -> None:
    """Raises UserError if what a file says of its classes or its images is not what it must be."""
    border.check(classes, Legend, f"{path} (classes)", cure=CURE)
    border.check(normalisation, Normalisation, f"{path} (normalisation)", cure=CURE)


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises UserError for arrays that no network has: their names, types, scales, or values that are not finite."""
    wrong, plain = [], {name: array for name, array in arrays.items() if not name.endswith(SCALE)}
    folders = {name[:i] for name in plain for i, letter in enumerate(name) if letter == "/"}
    for name, array in arrays.items():
        parts = name.removesuffix(SCALE).split("/")
        if parts[0] not in COLLECTIONS or len(parts) < 2 or not all(parts) or name in folders:
            wrong.append(f"{name[:60]!r} is no array of a network's")
        elif name.endswith(SCALE):
            wrong += _about_scale(name, array, plain.get(name.removesuffix(SCALE)))
        elif array.dtype not in (np.float32, np.float16, np.int8):
            wrong.append(f"{name} is of {array.dtype}, it must be float32, float16, or int8 with a scale")
        elif array.dtype == np.int8 and name + SCALE not in arrays:
            wrong.append(f"{name} is of int8 without a scale")
        elif array.dtype != np.int8 and not np.isfinite(array).all():
            wrong.append(f"{name} holds values that are not finite")
    if not arrays:
        wrong.append("it holds no array")
    if wrong:
        more = f"; and {len(wrong) - border.SHOWN} more" * (len(wrong) > border.SHOWN)
        raise UserError(f"{path}: {'; '.join(wrong[: border.SHOWN])}{more}; {CURE}")


def _about_scale(name: str, scale: np.ndarray, array: np.ndarray | None) -> list[str]:
    """What is wrong with the scales of an array of 8 bits: one a channel of its last axis, positive."""
    if array is None or array.dtype != np.int8 or array.ndim < 1:
        return [f"{name} is the scale of no array of int8"]
    if scale.dtype != np.float32 or scale.shape != array.shape[-1:]:
        return [f"{name} is {scale.dtype} {list(scale.shape)}, it must be float32 {list(array.shape[-1:])}"]
    return [] if np.isfinite(scale).all() and (scale > 0).all() else [f"{name} holds values that are not above 0"]


def check_variables(path: Path, variables: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the arrays of a file with those of a network, which have a ``shape`` each.

    Raises:
        UserError: some lack, are too many, or have another shape.
    """
    have, want = flatten_dict(dict(variables)), flatten_dict(dict(expected))
    lacking, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    other = [name for name in sorted(want.keys() & have.keys()) if np.shape(have[name]) != tuple(want[name].shape)]
    told = [f"{what} {_listed(names)}" for what, names in (("lacks", lacking), ("has besides", extra)) if names]
    told += [f"{'/'.join(n)} is {list(np.shape(have[n]))}, not {list(want[n].shape)}" for n in other[:3]]
    if told:
        raise UserError(
            f"{path} does not hold the network that its configuration describes: it {'; '.join(told)}; {CURE}"
        )


def _listed(names: list[tuple[str, ...]]) -> str:
    return ", ".join("/".join(name) for name in names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def check_bands(path: Path, text: str) -> int:
    """How many bands a file says that its images have."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MOST_BANDS):
        raise UserError(
            f"{path} says that images have {text[:60]!r} bands; it must be a number from 1 to {MOST_BANDS}: {CURE}"
        )
    return int(text)


def _resolution(path: Path, metadata: Mapping[str, str]) -> float | None:
    """Metres a pixel, where a file says so."""
    text = metadata.get("ground_resolution")
    if text is None:
        return None
    try:
        side = float(text)
    except ValueError:
        side = -1.0
    if side not in METRES:
        raise UserError(f"{path} says that a pixel is {text[:60]!r} m; it must be a number {METRES}: {CURE}")
    return side


def _as_float32(array: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    if scale is not None:
        return array.astype(np.float32) * scale
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _bands_of_stem(path: Path, variables: dict[str, Any]) -> int:
    """What files did not say before version 0.1.0 was out; every network had such a layer."""
    for names, array in flatten_dict(variables["params"]).items():
        if names[-2:] == ("stem_conv", "kernel") and array.ndim == 4:
            return array.shape[2]
    raise UserError(f"nothing says how many bands the images have that {path} is for; save it with its bands")
