"""The twin of our network ``branch`` in PyTorch, which its speed is compared with: it computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed.weights import torch_state
from glcanet_jax import geometry, models
from tests.drawn import drawn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
branch_torch = pytest.importorskip("experiments.speed.branch_torch")

CLASSES, WIDTH, CHANNELS = 5, 8, 32


@pytest.fixture(scope="module")
def ours():
    """Our network with random variables."""
    model = models.build("branch", CLASSES, depth=50, width=WIDTH, fpn_channels=CHANNELS, fast_conv=False)
    return model, drawn(model)


def logits_of(model, variables, patches):
    fns = models.functions(model)
    boxes = jnp.zeros((1, len(patches), 4))
    call = jax.jit(lambda x: fns.fuse(variables, {}, fns.encode_local(variables, x), boxes)[0][0])
    return np.asarray(call(patches[None])).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_twin_says_the_same(ours, layout):
    """At 100 px, whose grids are 25, 13, 7 and 4 cells: odd and even, so that every kind of edge of a resize is there."""
    images = np.random.default_rng(0).integers(0, 256, (2, 100, 100, 3), np.uint8)
    normalisation = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    wanted = logits_of(*ours, models.normalise(jnp.asarray(images), **normalisation, scale=255.0))
    up = geometry.interpolation(wanted.shape[-1], 100)
    wanted = np.einsum("yi,nkij,xj->nkyx", up, wanted, up)
    state = {name: torch.as_tensor(array) for name, array in torch_state(ours[1], normalisation).items()}
    twin = branch_torch.Pixels(branch_torch.Branch(CLASSES, 50, WIDTH, CHANNELS), layout).load(state)
    with torch.inference_mode():
        got = twin(torch.as_tensor(images)).numpy()
    assert got.dtype == np.float32 and got.shape == wanted.shape
    assert wanted.std() > 0.05 * np.abs(wanted).max()  # something to compare
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
