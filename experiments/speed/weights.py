"""Our weights for other engines: one set for all contenders of a case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from experiments.speed.cases import Sizes, our_network
from experiments.speed.rivals import NAME
from glcanet_jax.config import numbers_of
from glcanet_jax.weights.backbones import LEAVES, torchvision_name


def torch_state(variables: Any, normalisation: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables of our network ``branch`` as :class:`experiments.speed.branch_torch.Pixels` names and lays them.

    Args:
        normalisation: has ``mean`` and ``std``; the scale is that of 8 bits.
    """
    state = {name: np.float32(normalisation[name]).reshape(1, 3, 1, 1) for name in ("mean", "std")}
    for path, array in flatten_dict({**variables}).items():
        _, _, _, *modules, leaf = path  # behind the collection, the view and the branch
        if modules[0] == "resnet":
            name = f"resnet.{torchvision_name((*modules[1:], leaf))}"
        else:
            name = ".".join([*modules, LEAVES[leaf]])
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim, (0,))  # of kernels; the rest are vectors
        state[f"network.{name}"] = np.array(np.transpose(array, axes), order="C")
    return state


def write(folder: Path, sizes: Sizes) -> None:
    """The weights that :func:`experiments.speed.cases.our_predictor` has, as ``weights.safetensors`` for PyTorch."""
    _, variables, config = our_network(sizes, "float32", "branch")
    save_file(torch_state(variables, numbers_of(config.normalisation)), folder / NAME)
