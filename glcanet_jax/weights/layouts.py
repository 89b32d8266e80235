"""Whole networks of other people's checkpoints as variables of ours: the same layers under other names."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.weights.backbones import LEAVES, as_ours, depth_of, listed, torchvision_name
from glcanet_jax.weights.files import read_safetensors
from glcanet_jax.weights.torch_files import read_torch

Key = tuple[str, ...]  # of one of our arrays: its collection, modules, itself
Checkpoint = Mapping[str, Any] | str | Path  # a state_dict, or a file of one


def arrays_of(state: Checkpoint, whose: str, ignored: str = r"(?!)") -> dict[str, np.ndarray]:
    """Arrays of a checkpoint by name, float32, without ``module.`` before them and without counters.

    Args:
        whose: checkpoints these are, for messages; ignored: a pattern of names that nobody needs.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if isinstance(state, str | Path):
        if not Path(state).is_file():
            raise UserError(f"there is no checkpoint at {state}; give a .pth or .safetensors file of {whose}")
        path = Path(state)
        state = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    named = {name.removeprefix("module."): np.asarray(array) for name, array in state.items()}
    unused = re.compile(rf"{ignored}|.*num_batches_tracked")
    return {name: array.astype(np.float32) for name, array in named.items() if not unused.match(name)}


def filled(
    template: Mapping[str, Any], name: Callable[[Key], str], source: Callable[[Key], Mapping[str, np.ndarray]]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Variables of a template's shapes; names that the checkpoints lack, and words on shapes that differ.

    Args:
        name: of one of our arrays in a checkpoint; source: the checkpoint's arrays that it is taken from.
    """
    out, missing, misshapen = {}, [], []
    for key, like in flatten_dict(dict(template)).items():
        theirs = source(key).get(name(key))
        if theirs is None:
            missing.append(name(key))
            continue
        array = as_ours(theirs, key[-1])
        if array.shape != like.shape:
            misshapen.append(f"{name(key)} {array.shape} against {like.shape}")
        out[key] = array
    return unflatten_dict(out), sorted(missing), misshapen


def check_fit(ours: str, missing: list[str], extra: list[str], misshapen: list[str]) -> None:
    """Raises UserError if a checkpoint and a network of ours are not the same network; both sides are listed."""
    if missing or extra or misshapen:
        parts = [("the checkpoint lacks", missing), (f"{ours} lacks", extra), ("shapes differ:", misshapen)]
        raise UserError(
            f"the checkpoint does not fit {ours}: {listed(parts)}; give the whole state_dict of the release"
        )


def check_has(arrays: Mapping[str, Any], wanted: Sequence[str], whose: str) -> None:
    """Raises UserError if a checkpoint lacks what tells its sizes: it is another's."""
    lacking = [name for name in wanted if name not in arrays]
    if lacking:
        raise UserError(
            f"this is no checkpoint of {whose}: it has {len(arrays)} arrays ({', '.join(sorted(arrays)[:3])} ...) "
            f"and lacks {', '.join(lacking)}; give the whole state_dict"
        )


def _whole(
    network: str, arrays: dict[str, np.ndarray], name: Callable[[Key], str], first: str, last: str, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A network for patches, and its variables, of which every array is the checkpoint's.

    Args:
        name: of one of our arrays; first, last: names of the weights whose shapes tell bands, width and classes;
            options: of the network.
    """
    stem, classifier = arrays[first], arrays[last]
    model = models.build(network, len(classifier), width=len(stem), **options)
    template = models.shapes(model, stem.shape[1])
    inner = lambda key: name((key[0], *key[2:]))  # noqa: E731
    variables, missing, misshapen = filled(template, inner, lambda key: arrays)
    known = {inner(key) for key in flatten_dict(template)}
    check_fit(network, missing, sorted(set(arrays) - known), misshapen)
    return model, variables


# ---------------------------------------------------------------------------------------------------------------- EncNet
PAIR = {
    False: {"conv": "0", "norm": "1"},
    True: {"conv": "conv", "norm": "bn"},
}  # of a ConvNorm; True: mmsegmentation's
# by module of ours: the authors' name and mmsegmentation's
ENCNET = {
    "conv5": ("head.conv5", "decode_head.bottleneck"),
    "lateral3": ("head.connect.0", "decode_head.lateral_convs.0"),
    "lateral4": ("head.connect.1", "decode_head.lateral_convs.1"),
    "fuse": ("head.fusion", "decode_head.fusion"),
    "context/project": ("head.encmodule.encoding", "decode_head.enc_module.encoding_project"),
    "context/encoding": ("head.encmodule.encoding.3", "decode_head.enc_module.encoding.0"),
    "context/norm": ("head.encmodule.encoding.4", "decode_head.enc_module.encoding.1"),
    "gate": ("head.encmodule.fc.0", "decode_head.enc_module.fc.0"),
    "presence": ("head.encmodule.selayer", "decode_head.se_layer"),
    "classifier": ("head.conv6.1", "decode_head.conv_seg"),
    "aux_conv": ("auxlayer.conv5", "auxiliary_head.convs.0"),
    "aux_classifier": ("auxlayer.conv5.4", "auxiliary_head.conv_seg"),
}
# a stem of three convolutions: places in the authors' ``conv1``, whose last norm is ``bn1``, and in mmsegmentation's ``stem``
DEEP_STEM = {"stem_conv": 0, "stem_norm": 1, "stem_conv2": 3, "stem_norm2": 4, "stem_conv3": 6, "stem_norm3": 7}
LEAVES_OF_ENCNET = LEAVES | {"codewords": "codewords", "factors": "scale"}


def _encnet_name(key: Key, mmseg: bool, deep: bool) -> str:
    """The name of one of our EncNet's arrays in the authors' checkpoints, or in mmsegmentation's."""
    _, *modules, leaf = key
    if modules[0] == "resnet":
        prefix = "backbone" if mmseg else "pretrained"
        if not (deep and modules[1] in DEEP_STEM):
            return f"{prefix}.{torchvision_name((*modules[1:], leaf))}"
        place = f"{'stem' if mmseg else 'conv1'}.{DEEP_STEM[modules[1]]}"
        return f"{prefix}.{'bn1' if place == 'conv1.7' else place}.{LEAVES[leaf]}"
    part = modules.pop() if modules[-1] in PAIR[mmseg] and "/".join(modules) not in ENCNET else ""
    name = ENCNET["/".join(modules)][mmseg]
    return ".".join(filter(None, [name, PAIR[mmseg].get(part, ""), LEAVES_OF_ENCNET[leaf]]))


def from_encnet(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """An EncNet and its variables from a checkpoint of its authors (PyTorch-Encoding) or of mmsegmentation; no code of it is run.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    whose = "EncNet (PyTorch-Encoding's or mmsegmentation's)"
    arrays = arrays_of(checkpoint, whose, ignored=r"pretrained\.fc\.|backbone\.fc\.")
    mmseg = any(name.startswith("decode_head.") for name in arrays)
    prefix = "backbone." if mmseg else "pretrained."
    deep = f"{prefix}{'stem' if mmseg else 'conv1'}.0.weight" in arrays
    stem = f"{prefix}{'stem.0' if mmseg else 'conv1.0'}.weight" if deep else f"{prefix}conv1.weight"
    name = lambda module: f"{ENCNET[module][mmseg]}.weight"  # noqa: E731
    words = f"{ENCNET['context/encoding'][mmseg]}.codewords"
    check_has(arrays, [stem, name("classifier"), words], whose)
    backbone = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    options = dict(depth=depth_of(backbone, Path("the checkpoint")), stem="deep" if deep else "conv7")
    options |= dict(channels=arrays[words].shape[1], codewords=len(arrays[words]))
    options |= dict(lateral=any(k.startswith(f"{ENCNET['fuse'][mmseg]}.") for k in arrays))
    return _whole("encnet", arrays, lambda key: _encnet_name(key, mmseg, deep), stem, name("classifier"), **options)


# ------------------------------------------------------------------------------------------------------------- RefineNet
def _refinenet_name(key: Key) -> str:
    """The name of one of our RefineNet's arrays in the PyTorch checkpoints, whose blocks count from C5 on."""
    _, module, *rest, leaf = key
    if module == "resnet":
        return torchvision_name((*rest, leaf))
    number = 6 - int(module[-1]) if module != "classifier" else 0
    names = {"reduce": f"p_ims1d2_outl{number}_dimred", "join": f"adapt_stage{number}_b2_joint_varout_dimred"}
    if module == "classifier":
        name = "clf_conv"
    elif module.startswith("hand"):
        name = f"mflow_conv_g{number}_b3_joint_varout_dimred"
    elif rest[0] in names:
        name = names[rest[0]]
    elif rest[0] == "pool":
        name = f"mflow_conv_g{number}_pool.0.{rest[1][-1]}_outvar_dimred"
    else:
        stage = f"adapt_stage{number}_b" if rest[0].startswith("adapt") else f"mflow_conv_g{number}_b"
        name = f"{stage}.0.{rest[0][-1]}{'_conv' if rest[1] == 'conv1' else '_conv_relu_varout_dimred'}"
    return f"{name}.{LEAVES[leaf]}"


def from_refinenet(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """A RefineNet and its variables from a PyTorch checkpoint of the layers' usual names (``p_ims1d2_outl1_dimred`` ...); no code of it is run.

    The weights that its authors released may be used for academic purposes only.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    whose = "RefineNet"
    arrays = arrays_of(checkpoint, whose, ignored=r"fc\.")
    stem, last = "conv1.weight", "clf_conv.weight"
    widths = {"coarse_channels": "p_ims1d2_outl1_dimred.weight", "channels": "p_ims1d2_outl2_dimred.weight"}
    check_has(arrays, [stem, last, *widths.values()], whose)
    options = {option: len(arrays[name]) for option, name in widths.items()}
    depth = depth_of({k: v for k, v in arrays.items() if k.startswith("layer")}, Path("the checkpoint"))
    return _whole("refinenet", arrays, _refinenet_name, stem, last, depth=depth, **options)
