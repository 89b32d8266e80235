"""GLNet's released checkpoints as variables of our GLNet."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models.glnet import GLNet
from glcanet_jax.weights.backbones import LEAVES, depth_of, listed, torchvision_name
from glcanet_jax.weights.torch_files import read_torch

HEAD = {"head": "classify", "smoothing/all": "smooth", "fpn/lateral5": "toplayer"}
HEAD |= {f"fpn/lateral{i}": f"latlayer{5 - i}" for i in (4, 3, 2)}
HEAD |= {
    f"smoothing/{phase}{i}": f"smooth{6 - i}_{n}"
    for n, phase in enumerate(("first", "second"), 1)
    for i in (5, 4, 3, 2)
}


def _name(path: tuple[str, ...]) -> str:
    """The release's name of one of our GLNet's arrays; the second global branch has parts of the first one's module."""
    root, *modules, leaf = path
    if root == "fusion":
        return f"ensemble_conv.{LEAVES[leaf]}"
    branch = "local" if root == "local" else "global"
    if modules[0] == "resnet":
        return f"resnet_{branch}.{torchvision_name((*modules[1:], leaf))}"
    name = HEAD["/".join(modules)]
    suffix = "_ext" if root == "feedback" and name not in ("classify", "smooth") else ""
    return f"fpn_{branch}.{name}{suffix}.{LEAVES[leaf]}"


def _arrays(state: Mapping[str, Any] | str | Path) -> dict[str, np.ndarray]:
    if isinstance(state, str | Path):
        if not Path(state).is_file():
            raise UserError(f"there is no checkpoint at {state}; give a .pth file of GLNet's release")
        state = read_torch(Path(state))
    names = {name.removeprefix("module."): name for name in state}
    ignored = lambda name: name.endswith("num_batches_tracked") or re.match(r"resnet_\w+\.fc\.", name)  # noqa: E731
    return {short: np.asarray(state[name]).astype(np.float32) for short, name in names.items() if not ignored(short)}


def from_glnet(
    state_dict: Mapping[str, Any] | str | Path, *, global_fixed: Mapping[str, Any] | str | Path | None = None
) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of a GLNet from the PyTorch release's checkpoint, by name or as a ``.pth`` file (no code run).

    Args:
        state_dict: of stage 1 or 2, for ``GLNet(mutual=False)``; of stage 3 together with
        global_fixed: stage 1's, whose frozen global branch stage 3 ran beside its own: for ``GLNet(mutual=True)``.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    arrays, mutual = _arrays(state_dict), global_fixed is not None
    fixed = _arrays(global_fixed) if mutual else arrays
    sizes = {k: arrays.get(f"{k}.weight") for k in ("resnet_global.conv1", "fpn_global.classify")}
    lacking = [f"{k}.weight" for k, v in sizes.items() if v is None]
    if lacking:
        raise UserError(
            f"this is no checkpoint of GLNet's release: it has {len(arrays)} arrays ({', '.join(sorted(arrays)[:3])} ...) "
            f"and lacks {', '.join(lacking)}; give the whole state_dict"
        )
    stem, classify = sizes.values()
    prefix = "resnet_global."
    resnet = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    options = dict(depth=depth_of(resnet, Path("GLNet's checkpoint")), width=stem.shape[0])
    model = GLNet(classify.shape[0], mutual=True, fpn_channels=classify.shape[1] // 2, **options)
    template = jax.eval_shape(lambda key: models.init(model, key, stem.shape[1]), jax.random.key(0))
    flat = {path: (_name(path[1:]), x.shape) for path, x in flatten_dict(template).items()}
    known = {name for name, _ in flat.values()}  # a checkpoint has all of them, those that its stage does not use too
    extra = sorted((set(arrays) | set(fixed)) - known)
    out, missing, misshapen = {}, [], []
    for path, (name, shape) in flat.items():
        if path[1] == "feedback" and not mutual:
            continue
        source = fixed if path[1] == "global" else arrays
        if name not in source:
            missing.append(name)
            continue
        array = source[name].transpose(2, 3, 1, 0) if source[name].ndim == 4 else source[name]
        if array.shape != shape:
            misshapen.append(f"{name} {array.shape} against {shape}")
        out[path] = np.ascontiguousarray(array)
    if missing or extra or misshapen:
        parts = [("the checkpoint lacks", sorted(missing)), ("GLNet lacks", extra), ("shapes differ:", misshapen)]
        raise UserError(f"the checkpoint does not fit GLNet: {listed(parts)}; give the whole state_dict of the release")
    return unflatten_dict(out)
