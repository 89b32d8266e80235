"""ISDNet, and the Laplacian pyramid that its shallow network sees. The layers' parity is in ``test_isdnet_torch.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models.isdnet import ISDNet
from glcanet_jax.models.layers import laplacian
from tests.training.one_batch import fit
from tests.training.test_step import CLASSES

SMALL = dict(depth=10, width=8, channels=16, shallow_width=8)


@pytest.mark.parametrize("size", [(13, 24), (1, 2)])
def test_a_pyramid_loses_nothing(size):
    """Its residuals and what is left give the image again."""

    @jax.jit
    def round_trip(x):
        fine, coarse = laplacian.residuals(x, 2)
        assert fine.shape[1:3] == size and coarse.shape[1:3] == tuple(-(-n // 2) for n in size)
        small = laplacian.blur(x)[:, ::2, ::2]
        last = laplacian.blur(small)[:, ::2, ::2]
        return fine + laplacian.expand(coarse + laplacian.expand(last, small.shape[1:3]), size)

    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    np.testing.assert_allclose(round_trip(x), x, atol=1e-5)


def test_a_constant_image_has_no_details_inside():
    for level in jax.jit(lambda x: laplacian.residuals(x, 2))(jnp.full((1, 48, 48, 1), 7.0)):
        np.testing.assert_allclose(level[:, 4:-4, 4:-4], 0, atol=1e-5)


def made_stages(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"detail": (3, 8, 8, 2), "residual": (3, 8, 8, 2), "aspp": (3, 2, 2, 4), "detail_features": (3, 2, 2, 4)}
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def test_its_own_losses_leave_images_without_labels_out():
    model, stages = ISDNet(2), made_stages()
    labels = jnp.zeros((3, 8, 8), jnp.int32).at[2].set(255)
    without, terms = model.loss({k: x[:2] for k, x in stages.items()}, labels[:2]), model.loss(stages, labels)
    assert set(terms) == {"detail", "affinity"}
    for name in terms:
        assert float(terms[name]) == pytest.approx(float(without[name]), rel=1e-5)
    assert all(float(v) == 0 for v in model.loss(stages, jnp.full_like(labels, 255)).values())


def test_its_own_losses_pull_the_deep_map_alone_and_bear_silent_channels():
    """The relations of what the details are told from are a target; a channel that is zero all over has a gradient."""
    model, stages = ISDNet(2, detail_weight=0.0), made_stages()
    stages["aspp"] = stages["aspp"].at[..., 0].set(0)
    labels = jnp.zeros((3, 8, 8), jnp.int32)
    gradient = jax.grad(lambda s: sum(model.loss(s, labels).values()))(stages)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert np.abs(gradient["aspp"]).max() > 0 == np.abs(gradient["detail_features"]).max()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"channels": 24}, "model.channels is 24; it must be a multiple of 16"),
        ({"shallow_width": 9}, "model.shallow_width is 9; it must be an even number"),
        ({"aux_weights": (1, 1)}, "model.aux_weights .* must hold 4 numbers"),
        ({"shrink": 3}, "model.shrink is 3; it must be one of 2, 4, 8"),
        ({"resizing": "nearest"}, "model.resizing .* must be one of 'centres', 'half'"),
        ({"dropout": 1}, "model.dropout"),
    ],
)
def test_bad_options_are_told_at_once(wrong, told):
    with pytest.raises(UserError, match=told):
        ISDNet(2, **wrong)


@pytest.mark.parametrize(("shrink", "resizing"), [(2, "centres"), (8, "half")])
def test_shapes_at_any_size(shrink, resizing):
    """In training, with all its heads."""
    model = ISDNet(3, shrink=shrink, resizing=resizing, **SMALL)
    x = jax.ShapeDtypeStruct((1, 97, 66, 4), "float32")
    (logits, out), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert logits.shape == (1, 97, 66, 3) and out["detail"].shape == out["residual"].shape == x.shape
    assert out["detail_features"].shape == out["aspp"].shape
    first = variables["params"]["shallow"]["conv1"]["conv"]["kernel"]
    assert first.shape == (3, 3, 8, 4)  # two levels of four bands


@pytest.mark.slow
def test_the_loss_falls_on_one_batch():
    """With every term of it, its own too; the parameters of the relations, zero at the start, move."""
    model = models.build("isdnet", CLASSES, fast_conv=False, **SMALL)
    metrics, state = fit(model, 12)
    terms = {"detail", "affinity", "fused", *models.auxiliary(model)}
    assert {f"loss/{k}" for k in terms} <= set(metrics[0])
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    assert np.abs(state.params["local"]["fuse8"]["deep_share"]).max() > 0
