"""Backbones: ResNets and VGG-16 of torchvision's key layout, from files whose pickles are never run."""

import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import vgg
from glcanet_jax.models.layers.resnet import BLOCKS
from glcanet_jax.weights.files import read_safetensors
from glcanet_jax.weights.torch_files import read_torch

DEPTH_OF = {(blocks, depth >= 50): depth for depth, blocks in BLOCKS.items()}

# torchvision's ``features.N`` of VGG-16's convolutions: after each its norm, if any, and a ReLU; after each stage a pooling
VGG_PLACES = {norm: [(2 + norm) * i + stage - 1 for i, (stage, _) in enumerate(vgg.LAYERS)] for norm in (False, True)}

TORCH = (".pth", ".pt", ".ckpt", ".bin")  # suffixes of PyTorch's checkpoints
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# of the modules that ResNets with CBAM have in their blocks, as its authors call them
CBAM = {
    ("channels", "mlp1"): "ChannelGate.mlp.1",
    ("channels", "mlp2"): "ChannelGate.mlp.3",
    ("cells", "conv"): "SpatialGate.spatial.conv",
    ("cells", "norm"): "SpatialGate.spatial.bn",
}
GATE = ".cbam."  # in their names
# pytorchcv's names of a ResNet with CBAM, as patterns, and the authors'
PYTORCHCV = (
    (r"features\.init_block\.conv\.conv\.", "conv1."),
    (r"features\.init_block\.conv\.bn\.", "bn1."),
    (r"features\.stage(\d+)\.unit(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
    (r"(layer.*)\.body\.conv(\d)\.(conv|bn)\.", r"\1.\3\2."),
    (r"(layer.*)\.identity_conv\.", r"\1.downsample."),
    (r"(layer.*\.downsample)\.conv\.", r"\1.0."),
    (r"(layer.*\.downsample)\.bn\.", r"\1.1."),
    (r"(layer.*)\.ch_gate\.mlp\.fc(\d)\.", lambda m: f"{m[1]}.ChannelGate.mlp.{2 * int(m[2]) - 1}."),
    (r"(layer.*)\.sp_gate\.conv\.", r"\1.SpatialGate.spatial."),
    (r"output\.", "fc."),
)


@dataclass(frozen=True)
class TorchvisionWeights:
    """Arrays of a ResNet or a VGG-16 under torchvision's names, float32."""

    arrays: dict[str, np.ndarray]
    depth: int  # 18, 34, 50 or 101; 16 of a VGG
    stride: str  # v1 or v1.5; of a VGG nothing
    source: str
    note: str  # how the stride variant was known
    kind: str = "resnet"  # or "vgg"
    left: tuple[str, ...] = ()  # what else was in the file: its parts, and how many arrays each has

    @property
    def gated(self) -> bool:
        """Whether it is a ResNet with CBAM."""
        return any(GATE in name for name in self.arrays)

    @property
    def called(self) -> str:
        gates = " with CBAM" if self.gated else ""
        return f"ResNet-{self.depth} {self.stride}{gates}" if self.kind == "resnet" else "VGG-16"


def load_torchvision(path: str | Path, *, stride: str | None = None) -> TorchvisionWeights:
    """A ResNet or a VGG-16 in torchvision's key layout, alone or within a whole checkpoint (``backbone.``, ``encoder.`` ...), from ``.safetensors``, ``.npz``, or PyTorch's ``.pth``, ``.pt``, ``.ckpt`` and ``.bin`` (no code of it is run).

    The stride variant is that of the file's metadata (``stride`` or ``variant``), or the one given, or v1.5, torchvision's.

    Raises:
        UserError: unreadable, no such network, or its stride variant is not the one given.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no weights file at {path}; give a .safetensors, .npz or .pth file in torchvision's key layout"
        )
    readers = {".safetensors": read_safetensors, ".npz": _read_npz} | dict.fromkeys(TORCH, _read_torch)
    if path.suffix not in readers:
        raise UserError(
            f"{path} is a {path.suffix or 'file without suffix'}; weights are read from {', '.join(readers)}"
        )
    arrays, metadata = readers[path.suffix](path)
    if "features.init_block.conv.conv.weight" in arrays:
        arrays = {of_pytorchcv(name): array for name, array in arrays.items()}
    arrays, left = _clean(arrays, path)
    if any(re.fullmatch(r"features\.\d+\.weight", k) for k in arrays):
        _check_vgg(arrays, path)
        return TorchvisionWeights(arrays, 16, "", str(path), "", "vgg", left)
    depth = depth_of(arrays, path)
    declared = _declared_stride(metadata)
    if stride is not None and declared is not None and stride != declared:
        raise UserError(
            f"{path} says that it is ResNet {declared}, {stride} was asked for; drop the option or take other weights"
        )
    note = "from the file's metadata" if declared else "as given" if stride else "assumed, as torchvision's"
    return TorchvisionWeights(arrays, depth, declared or stride or "v1.5", str(path), note, left=left)


def _declared_stride(metadata: dict[str, str]) -> str | None:
    for key in ("stride", "variant"):
        match = re.match(r"\s*v1(\.5|b)?\b", metadata.get(key, ""))
        if match:
            return "v1.5" if match.group(1) else "v1"
    return None


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable .npz file ({error}); fetch it again") from error
    return arrays, {k: str(arrays.pop(k)) for k in ("stride", "variant") if k in arrays}


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return read_torch(path), {}


def _clean(arrays: dict[str, np.ndarray], path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The backbone's under torchvision's names, float32, of a whole checkpoint without its prefix; and what is beside it.

    Raises:
        UserError: a checkpoint has several, or a stem that ours has not.
    """
    first = re.compile(r"(.*?)(?:layer1\.0\.conv1|features\.0)\.weight")
    prefixes = sorted({m.group(1) for name in arrays if (m := first.fullmatch(name))})
    if len(prefixes) > 1:
        raise UserError(
            f"{path} holds {len(prefixes)} backbones ({', '.join(p or '(no prefix)' for p in prefixes[:4])}); save the one to start from"
        )
    prefix = prefixes[0] if prefixes else ""
    if f"{prefix}stem.0.weight" in arrays:
        raise UserError(
            f"{path} holds a ResNet whose stem is three convolutions (v1c, v1d); give one whose stem is a single one of 7x7"
        )
    parts = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "features.", "classifier.", "pre_logits.")
    out, left = {}, Counter()
    for name, array in arrays.items():
        own = name.removeprefix(prefix)
        if own.endswith("num_batches_tracked"):
            continue
        mine = name.startswith(prefix) and not own.startswith("classifier.6.")
        if mine and (own.startswith(parts) or not prefixes):
            out[own] = np.asarray(array).astype(np.float32)
        else:
            left[_part(name, prefix)] += 1
    return out, tuple(f"{part} ({count} arrays)" for part, count in left.items())


def _part(name: str, prefix: str) -> str:
    """What part of a checkpoint an array belongs to: the first name behind the wrappers that it shares with the backbone."""
    if prefix and name.startswith(prefix):
        return name.removeprefix(prefix).partition(".")[0]
    wrapper = prefix.removesuffix(".").rpartition(".")[0]
    return name.removeprefix(f"{wrapper}." if wrapper else "").partition(".")[0]


def depth_of(arrays: dict[str, np.ndarray], path: Path) -> int:
    blocks = [{m.group(1) for k in arrays if (m := re.match(rf"layer{stage}\.(\d+)\.", k))} for stage in (1, 2, 3, 4)]
    key = tuple(map(len, blocks)), any(".conv3." in k for k in arrays)
    if key not in DEPTH_OF:
        raise UserError(
            f"{path} is no ResNet-10, 18, 34, 50 or 101 in torchvision's layout: it has {len(arrays)} arrays "
            f"({', '.join(sorted(arrays)[:3])} ...), wanted are conv1.weight, bn1.weight, layer1.0.conv1.weight ..."
        )
    return DEPTH_OF[key]


def _vgg_places(arrays: dict[str, np.ndarray]) -> list[int]:
    """The ``N`` of all ``features.N`` that are convolutions."""
    found = {k: re.fullmatch(r"features\.(\d+)\.weight", k) for k, v in arrays.items() if v.ndim == 4}
    return sorted(int(m.group(1)) for m in found.values() if m)


def _check_vgg(arrays: dict[str, np.ndarray], path: Path) -> None:
    places = _vgg_places(arrays)
    if places not in VGG_PLACES.values():
        raise UserError(
            f"{path} is no VGG-16 or VGG-16-BN in torchvision's layout: its convolutions are features."
            f"{', '.join(map(str, places))}, wanted are features.{', '.join(map(str, VGG_PLACES[False]))} "
            f"or, with norms, {', '.join(map(str, VGG_PLACES[True]))}; give one of torchvision's vgg16 or vgg16_bn"
        )


def of_pytorchcv(name: str) -> str:
    """The name that CBAM's authors, and torchvision for the rest, have for what pytorchcv calls so."""
    for pattern, theirs in PYTORCHCV:
        name = re.sub(f"^{pattern}", theirs, name)
    return name


def as_ours(array: np.ndarray, leaf: str) -> np.ndarray:
    """A kernel of PyTorch with its axes in our order; anything else as it is."""
    if leaf == "kernel":
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def torchvision_name(path: tuple[str, ...]) -> str:
    """Torchvision's name of one of our ResNet's arrays; what CBAM adds has its authors' names."""
    *modules, leaf = path
    leaf = LEAVES[leaf]
    if len(modules) == 1:
        return f"{'conv1' if modules[0] == 'stem_conv' else 'bn1'}.{leaf}"
    stage, block = re.fullmatch(r"stage(\d)_block(\d+)", modules[0]).groups()
    if modules[1] == "cbam":
        part = f"cbam.{CBAM[tuple(modules[2:])]}"
    else:
        part = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}.get(
            modules[1], modules[1].replace("norm", "bn")
        )
    return f"layer{stage}.{int(block) - 1}.{part}.{leaf}"


def _vgg_name(path: tuple[str, ...], with_norms: bool) -> str:
    """Torchvision's name of one of our VGG's arrays."""
    module, leaf = path
    layer = (1, 1) if module == "stem_conv" else tuple(map(int, module[4:].split("_")))  # conv4_1, norm4_1
    place = VGG_PLACES[with_norms][vgg.LAYERS.index(layer)] + module.startswith("norm")
    return f"features.{place}.{LEAVES[leaf]}"


def for_bands(kernel: np.ndarray, bands: int, axis: int) -> np.ndarray:
    """A first kernel for other bands, which lie along an axis, as :func:`backbone_variables` says."""
    own = kernel.shape[axis]
    if own == bands:
        return kernel
    if bands == 1:
        return kernel.sum(axis, keepdims=True)
    return np.take(kernel, np.arange(bands) % own, axis) * np.float32(own / bands)


def _check_kind(weights: TorchvisionWeights, modules: set[str]) -> None:
    """That a VGG goes into a VGG, with norms or without as it is itself, and a ResNet into a ResNet."""
    wanted = "vgg" if "conv1_2" in modules else "resnet"
    if weights.kind != wanted:
        other = {"resnet": "ResNet", "vgg": "VGG-16"}[wanted]
        raise UserError(
            f"{weights.source} is a {weights.called}, the network's backbone is a {other}; give weights of that"
        )
    if weights.kind == "resnet":
        return
    has, wants = _vgg_places(weights.arrays) == VGG_PLACES[True], any(m.startswith("norm") for m in modules)
    if has != wants:
        names = {False: "VGG-16 without norms (torchvision's vgg16)", True: "VGG-16-BN (torchvision's vgg16_bn)"}
        raise UserError(
            f"{weights.source} is a {names[has]}, the network's backbone is a {names[wants]}; give that one"
        )


def listed(parts: list[tuple[str, list[str]]]) -> str:
    """What does not fit, the first four names of each kind."""
    return "; ".join(
        f"{what} {', '.join(keys[:4])}{f' ... ({len(keys)} in all)' if len(keys) > 4 else ''}"
        for what, keys in parts
        if keys
    )


def backbone_variables(weights: TorchvisionWeights, template: dict[str, Any], in_bands: int = 3) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of our ResNet or VGG-16 from torchvision's arrays.

    Bands other than three: one band gets the sum over RGB; more get RGB repeated cyclically, scaled by ``3 / n``, so that
    a grey scene answers as it did.

    Raises:
        UserError: it is another network, or names or shapes differ; both sides are listed.
    """
    flat = flatten_dict({k: v for k, v in template.items() if v})
    modules = {path[1] for path in flat}
    _check_kind(weights, modules)
    if weights.kind == "vgg":
        arrays = {k: v for k, v in weights.arrays.items() if k.startswith("features.")}
        wanted = {path: _vgg_name(path[1:], any(m.startswith("norm") for m in modules)) for path in flat}
        stem = "features.0.weight"
    else:
        arrays = dict(weights.arrays)
        wanted = {path: torchvision_name(path[1:]) for path in flat}
        stem = "conv1.weight"
    if stem in arrays:
        arrays[stem] = for_bands(arrays[stem], in_bands, 1)
    missing = sorted(set(wanted.values()) - set(arrays))
    # a frozen or batch norm has statistics; a group norm leaves the file's unused, but a gate is another one without them
    unused = lambda k: k.endswith(("running_mean", "running_var")) and GATE not in k  # noqa: E731
    extra = sorted(k for k in set(arrays) - set(wanted.values()) if not unused(k))
    out, misshapen = {}, []
    for path, name in wanted.items():
        if name not in arrays:
            continue
        array = as_ours(arrays[name], path[-1])
        if array.shape != flat[path].shape:
            misshapen.append(f"{name} {array.shape} against {flat[path].shape}")
        out[path] = array
    if missing or extra or misshapen:
        parts = [("the file lacks", missing), ("the model lacks", extra), ("shapes differ:", misshapen)]
        raise UserError(f"{weights.source} does not fit the backbone: {listed(parts)}; check depth, width and norm")
    return {"params": {}, "batch_stats": {}} | unflatten_dict(out)


def fcn_classifier(weights: TorchvisionWeights) -> dict[str, dict[str, np.ndarray]]:
    """``fc6`` and ``fc7`` of :class:`~glcanet_jax.models.fcn8s.FCN8s`: VGG's first two fully connected layers as convolutions.

    Empty if the file has none. timm names them ``pre_logits.fc1`` and ``pre_logits.fc2``.
    """
    out = {}
    for name, kernel, *theirs in (
        ("fc6", 7, "classifier.0", "pre_logits.fc1"),
        ("fc7", 1, "classifier.3", "pre_logits.fc2"),
    ):
        found = [k for k in theirs if {f"{k}.weight", f"{k}.bias"} <= set(weights.arrays)]
        if not found:
            return {}
        weight = weights.arrays[f"{found[0]}.weight"]
        weight = weight.reshape(len(weight), -1, kernel, kernel)  # torch's inputs are channels, rows, columns
        out[name] = {
            "kernel": np.ascontiguousarray(weight.transpose(2, 3, 1, 0)),
            "bias": weights.arrays[f"{found[0]}.bias"],
        }
    return out
