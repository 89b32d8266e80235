"""Weights in (torchvision-layout ResNets, no pickled code run) and out (one file that rebuilds the model)."""

import io
import json
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.errors import UserError
from glcanet_jax.models.resnet import BLOCKS

FORMAT = "glcanet_jax weights"
VERSION = 1
DEPTH_OF = {(blocks, depth >= 50): depth for depth, blocks in BLOCKS.items()}


# ---------------------------------------------------------------------------------------------------------------- in
@dataclass(frozen=True)
class TorchvisionWeights:
    """Arrays of a ResNet under torchvision's names, float32."""

    arrays: dict[str, np.ndarray]
    depth: int  # 18, 34, 50 or 101
    stride: str  # v1 or v1.5
    source: str
    note: str  # how the stride variant was known


def load_torchvision(path: str | Path, *, stride: str | None = None) -> TorchvisionWeights:
    """A ResNet in torchvision's key layout from ``.safetensors``, ``.npz``, or ``.pth`` (read without running its code).

    The stride variant is that of the file's metadata (``stride`` or ``variant``), or the one given, or v1.5, torchvision's.

    Raises:
        UserError: unreadable, no ResNet, or its stride variant is not the one given.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no weights file at {path}; give a .safetensors, .npz or .pth file in torchvision's key layout"
        )
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".pth": read_torch_zip, ".pt": read_torch_zip}
    if path.suffix not in readers:
        raise UserError(
            f"{path} is a {path.suffix or 'file without suffix'}; weights are read from {', '.join(readers)}"
        )
    arrays, metadata = readers[path.suffix](path)
    arrays = _clean(arrays)
    depth = _depth(arrays, path)
    declared = _declared_stride(metadata)
    if stride is not None and declared is not None and stride != declared:
        raise UserError(
            f"{path} says that it is ResNet {declared}, {stride} was asked for; drop the option or take other weights"
        )
    note = "from the file's metadata" if declared else "as given" if stride else "assumed, as torchvision's"
    return TorchvisionWeights(arrays, depth, declared or stride or "v1.5", str(path), note)


def _declared_stride(metadata: dict[str, str]) -> str | None:
    for key in ("stride", "variant"):
        match = re.match(r"\s*v1(\.5|b)?\b", metadata.get(key, ""))
        if match:
            return "v1.5" if match.group(1) else "v1"
    return None


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}); fetch it again") from error


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable .npz file ({error}); fetch it again") from error
    return arrays, {k: str(arrays.pop(k)) for k in ("stride", "variant") if k in arrays}


_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "BFloat16Storage": "bfloat16",
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors as numpy arrays and knows nothing else: a pickle that names any other thing is refused unrun."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, prefix: str, path: Path):
        super().__init__(file)
        self._archive, self._prefix, self._path = archive, prefix, path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return name
        raise UserError(
            f"{self._path} wants to run {module}.{name}; only plain tensors are read: save its state_dict alone, or as safetensors"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in _STORAGES:
            raise UserError(
                f"{self._path} holds a storage of an unknown kind ({storage}); save its state_dict as safetensors"
            )
        data = self._archive.read(f"{self._prefix}/data/{key}")
        if _STORAGES[storage] == "bfloat16":
            import ml_dtypes

            return np.frombuffer(data, ml_dtypes.bfloat16, count)
        return np.frombuffer(data, _STORAGES[storage], count)


def _rebuild(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else offset
    if offset < 0 or any(s < 0 for s in stride) or (math.prod(size) and last >= len(storage)):
        raise ValueError("a tensor reaches past its storage")
    strides = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()


def read_torch_zip(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a PyTorch checkpoint (the zip format, since 1.6) by name, through ``state_dict`` or ``model`` wrappers.

    Raises:
        UserError: not such a file, or its pickle names anything but tensors; nothing in it is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("data.pkl")]
            if not names:
                raise UserError(
                    f"{path} is a zip without data.pkl; give a PyTorch checkpoint, or save it as safetensors"
                )
            prefix = names[0].rpartition("/")[0]
            content = _Unpickler(io.BytesIO(archive.read(names[0])), archive, prefix, path).load()
    except (
        zipfile.BadZipFile,
        OSError,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{path} is no readable PyTorch checkpoint ({error}); PyTorch's format before 1.6 is not read: save it again, or as safetensors"
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict; save the model's state_dict")
    return {k: v for k, v in content.items() if isinstance(v, np.ndarray)}, {}


def _clean(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without prefixes, the classifier and counters; float32."""
    out = {}
    for name, array in arrays.items():
        for prefix in ("module.", "backbone.", "model."):
            name = name.removeprefix(prefix)
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            out[name] = np.asarray(array).astype(np.float32)
    return out


def _depth(arrays: dict[str, np.ndarray], path: Path) -> int:
    blocks = [{m.group(1) for k in arrays if (m := re.match(rf"layer{stage}\.(\d+)\.", k))} for stage in (1, 2, 3, 4)]
    key = tuple(map(len, blocks)), any(".conv3." in k for k in arrays)
    if key not in DEPTH_OF:
        raise UserError(
            f"{path} is no ResNet-10, 18, 34, 50 or 101 in torchvision's layout: it has {len(arrays)} arrays "
            f"({', '.join(sorted(arrays)[:3])} ...), wanted are conv1.weight, bn1.weight, layer1.0.conv1.weight ..."
        )
    return DEPTH_OF[key]


def _torchvision_name(path: tuple[str, ...]) -> str:
    """Torchvision's name of one of our arrays."""
    *modules, leaf = path
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
    if len(modules) == 1:
        return f"{'conv1' if modules[0] == 'stem_conv' else 'bn1'}.{leaf}"
    stage, block = re.fullmatch(r"stage(\d)_block(\d+)", modules[0]).groups()
    part = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}.get(
        modules[1], modules[1].replace("norm", "bn")
    )
    return f"layer{stage}.{int(block) - 1}.{part}.{leaf}"


def backbone_variables(weights: TorchvisionWeights, template: dict[str, Any], in_bands: int = 3) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of our ResNet from torchvision's arrays.

    Bands other than three: one band gets the sum over RGB; more get RGB repeated cyclically, scaled by ``3 / n``, so that
    a grey scene answers as it did.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    flat = flatten_dict({k: v for k, v in template.items() if v})
    arrays = dict(weights.arrays)
    stem = arrays.get("conv1.weight")
    if stem is not None and stem.shape[1] != in_bands:
        if in_bands == 1:
            stem = stem.sum(1, keepdims=True)
        else:
            stem = stem[:, np.arange(in_bands) % stem.shape[1]] * (stem.shape[1] / in_bands)
        arrays["conv1.weight"] = stem
    wanted = {path: _torchvision_name(path[1:]) for path in flat}
    missing = sorted(set(wanted.values()) - set(arrays))
    # a frozen or batch norm has statistics; a group norm leaves the file's unused
    extra = sorted(k for k in set(arrays) - set(wanted.values()) if not k.endswith(("running_mean", "running_var")))
    out, misshapen = {}, []
    for path, name in wanted.items():
        if name not in arrays:
            continue
        array = arrays[name].transpose(2, 3, 1, 0) if arrays[name].ndim == 4 else arrays[name]
        if array.shape != flat[path].shape:
            misshapen.append(f"{name} {array.shape} against {flat[path].shape}")
        out[path] = np.ascontiguousarray(array)
    if missing or extra or misshapen:
        parts = [("the file lacks", missing), ("the model lacks", extra), ("shapes differ:", misshapen)]
        listed = [
            f"{what} {', '.join(keys[:4])}{f' ... ({len(keys)} in all)' if len(keys) > 4 else ''}"
            for what, keys in parts
            if keys
        ]
        raise UserError(f"{weights.source} does not fit the backbone: {'; '.join(listed)}; check depth, width and norm")
    return {"params": {}, "batch_stats": {}} | unflatten_dict(out)


def fetch_hub(name: str) -> Path:
    """``hf:organisation/repository[/file]``: a file of a public hub, through ``huggingface_hub``.

    Raises:
        UserError: it is not installed, or the hub cannot be reached and the file is not in its cache.
    """
    match = re.fullmatch(r"hf:([^/]+/[^/]+)(?:/(.+))?", name)
    if not match:
        raise UserError(
            f"{name!r} is no hub name; it must be hf:organisation/repository or hf:organisation/repository/file"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"{name} needs huggingface_hub; pip install huggingface_hub, or download the file and give its path"
        ) from error
    repository, file = match.group(1), match.group(2) or "model.safetensors"
    try:
        return Path(hf_hub_download(repository, file))
    except (
        Exception
    ) as error:  # the hub's errors have no common base but OSError and ValueError; all mean the same here
        raise UserError(
            f"{file} of {repository} could not be fetched ({type(error).__name__}); offline, download it elsewhere and give its path"
        ) from error


# --------------------------------------------------------------------------------------------------------------- out
@dataclass(frozen=True)
class WeightsFile:
    """What one weights file holds: enough to rebuild and use the model."""

    variables: dict[str, Any]
    config: dict[str, Any]
    classes: dict[str, Any]
    normalisation: dict[str, Any]


def save_weights(
    path: str | Path,
    variables: dict[str, Any],
    config: dict[str, Any],
    classes: dict[str, Any],
    normalisation: dict[str, Any],
    dtype: Any = None,
) -> None:
    """One ``.safetensors``: arrays under ``/``-joined names, the rest as JSON in its metadata; whole or not at all.

    ``dtype`` (float16, say) makes the file smaller; statistics stay float32.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    arrays = {}
    for names, array in flatten_dict({k: v for k, v in variables.items() if v}).items():
        array = np.ascontiguousarray(array)
        arrays["/".join(names)] = array.astype(dtype) if dtype is not None and names[0] == "params" else array
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(config),
        "classes": json.dumps(classes),
        "normalisation": json.dumps(normalisation),
    }
    temporary = path.with_name(path.name + ".part")
    save_file(arrays, temporary, metadata)
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(temporary, path)


def load_weights(path: str | Path) -> WeightsFile:
    """The inverse of :func:`save_weights`; arrays come back float32.

    Raises:
        UserError: no such file, no weights of ours, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weights file at {path}; train one, or give another path")
    arrays, metadata = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but no weights of glcanet_jax; give one that `train` wrote (a backbone goes to --backbone)"
        )
    if metadata.get("version") != str(VERSION):
        raise UserError(f"{path} is of version {metadata.get('version')}, this program reads {VERSION}; update it")
    lacking = [k for k in ("config", "classes", "normalisation") if k not in metadata]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)} in its metadata; it was not written whole: save it again")
    flat = {tuple(k.split("/")): v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}
    variables = {"params": {}, "batch_stats": {}} | unflatten_dict(flat)
    return WeightsFile(variables, *(json.loads(metadata[k]) for k in ("config", "classes", "normalisation")))
