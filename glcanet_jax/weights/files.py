"""One file that rebuilds a model: its variables, configuration, classes and normalisation."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.errors import UserError

FORMAT = "glcanet_jax weights"

VERSION = 2  # 1: without arrays of 8 bits
VERSIONS = ("1", "2")
SCALE = ":scale"  # behind the name of an array of 8 bits


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}); fetch it again") from error


@dataclass(frozen=True)
class WeightsFile:
    """What one weights file holds: enough to rebuild and use the model."""

    variables: dict[str, Any]
    config: dict[str, Any]
    classes: dict[str, Any]
    normalisation: dict[str, Any]
    bands: int  # of the images that it is for


def save_weights(
    path: str | Path,
    variables: dict[str, Any],
    config: dict[str, Any],
    classes: dict[str, Any],
    normalisation: dict[str, Any],
    dtype: Any = None,
    bands: int | None = None,
) -> None:
    """One ``.safetensors``: arrays under ``/``-joined names, the rest as JSON in its metadata; whole or not at all.

    ``dtype`` makes the file smaller: float16, or int8 with a scale for every output channel of a kernel (vectors and statistics
    stay float32). ``bands`` are those of the images; None: those of
    the kernel that is called ``stem_conv``.
    """
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
    temporary = path.with_name(path.name + ".part")
    save_file(arrays, temporary, metadata)
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(temporary, path)


def _quantised(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and the float32 scale of every channel of the last axis; the largest of each is exact, zeros stay zero."""
    scale = np.abs(array).max(axis=tuple(range(array.ndim - 1))) / 127
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return np.rint(array / scale).astype(np.int8), scale


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
    scales = {k: arrays.pop(k) for k in [k for k in arrays if k.endswith(SCALE)]}
    flat = {tuple(k.split("/")): _as_float32(v, scales.get(k + SCALE)) for k, v in arrays.items()}
    variables = {"params": {}, "batch_stats": {}} | unflatten_dict(flat)
    bands = int(metadata["bands"]) if "bands" in metadata else _bands_of_stem(path, variables)
    return WeightsFile(variables, *(json.loads(metadata[k]) for k in ("config", "classes", "normalisation")), bands)


def _as_float32(array: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    if scale is not None:
        return array.astype(np.float32) * scale
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _bands_of_stem(path: Path, variables: dict[str, Any]) -> int:
    """What files did not say before version 0.1.0 was out; every network had such a layer."""
    for names, array in flatten_dict(variables["params"]).items():
        if names[-2:] == ("stem_conv", "kernel"):
            return array.shape[2]
    raise UserError(f"nothing says how many bands the images have that {path} is for; save it with its bands")
