"""GLNet's released checkpoints as variables of our GLNet."""

from functools import partial
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from glcanet_jax import models
from glcanet_jax.models.glnet import GLNet
from glcanet_jax.weights.backbones import LEAVES, depth_of, torchvision_name
from glcanet_jax.weights.layouts import Checkpoint, arrays_of, check_fit, check_has, filled

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


def from_glnet(state_dict: Checkpoint, *, global_fixed: Checkpoint | None = None) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of a GLNet from the PyTorch release's checkpoint, by name or as a ``.pth`` file (no code run).

    Args:
        state_dict: of stage 1 or 2, for ``GLNet(mutual=False)``; of stage 3 together with
        global_fixed: stage 1's, whose frozen global branch stage 3 ran beside its own: for ``GLNet(mutual=True)``.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    read = partial(arrays_of, whose="GLNet's release", ignored=r"resnet_\w+\.fc\.")
    arrays, mutual = read(state_dict), global_fixed is not None
    fixed = read(global_fixed) if mutual else arrays
    sizes = ("resnet_global.conv1.weight", "fpn_global.classify.weight")
    check_has(arrays, sizes, "GLNet's release")
    stem, classify = (arrays[k] for k in sizes)
    prefix = "resnet_global."
    resnet = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    options = dict(depth=depth_of(resnet, Path("GLNet's checkpoint")), width=stem.shape[0])
    model = GLNet(classify.shape[0], mutual=True, fpn_channels=classify.shape[1] // 2, **options)
    template = models.shapes(model, stem.shape[1])
    name = lambda key: _name(key[1:])  # noqa: E731
    known = {name(key) for key in flatten_dict(template)}  # a checkpoint has all of them, unused ones too
    extra = sorted((set(arrays) | set(fixed)) - known)
    if not mutual:
        template = {part: {k: v for k, v in roots.items() if k != "feedback"} for part, roots in template.items()}
    variables, missing, misshapen = filled(template, name, lambda key: fixed if key[1] == "global" else arrays)
    check_fit("GLNet", missing, extra, misshapen)
    return variables
