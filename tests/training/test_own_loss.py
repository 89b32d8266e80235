"""The loss that a network brings itself: what it is given, what comes of it, beside or instead of the common one."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models
from glcanet_jax.config import LossConfig, OptimiserConfig
from glcanet_jax.errors import UserError
from glcanet_jax.models.single_view import SingleView
from glcanet_jax.presets import TINY
from glcanet_jax.training import optim, phases
from glcanet_jax.training import step as training
from tests.training.test_resume import Toy
from tests.training.test_step import CLASSES, make_batch


class Guess(nn.Module):
    """A 1x1 convolution, and a guess of how much of an image each class covers, which its own loss alone reads."""

    num_classes: int
    alone: bool = False

    @property
    def loss_alone(self):
        return self.alone

    @nn.compact
    def __call__(self, x, *, train=False):
        out = (
            {"shares": nn.Dense(self.num_classes, name="guess")(x.mean((1, 2)))}
            if train or self.is_initializing()
            else {}
        )
        return nn.Conv(self.num_classes, (1, 1), name="last")(x), out

    def loss(self, stages, labels, key):
        shares = (labels[..., None] == jnp.arange(self.num_classes)[None, None, None]).mean((1, 2))
        return {
            "shares": 0.5 * ((stages["shares"] - shares) ** 2).mean(),
            "drawn": jax.random.uniform(key),
            "logits": stages["logits"].mean(),
        }


def stepped(model, batch, keys=(1,)):
    """A training step, from the same start with each of the keys: parameters before and after, and metrics."""
    config = dataclasses.replace(TINY, optimiser=OptimiserConfig(1e-3, 1e-3, 1e-3, schedule="constant"))
    (phase,) = phases.plan("joint", 10, None, models.stages(model))
    tx = optim.optimiser(config.optimiser, (phase,))
    variables = jax.tree.map(np.array, models.init(model, jax.random.key(0), 3))
    step = training.make_train_step(model, tx, config, 255.0, phase)
    for key in keys:
        state, metrics = step(training.create_state(variables, tx, jax.random.key(key)), batch)
        yield variables["params"], jax.tree.map(np.array, state.params), {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize("view", ["patch", "global"])
def test_terms_of_a_network_stand_beside_the_common_one(view):
    batch, root, main = make_batch(), *{"patch": ("local", "fused"), "global": ("global", "global")}[view]
    batch["valid"][0, 0] = False
    (before, after, one), (*_, other) = stepped(
        SingleView(CLASSES, lambda **k: Guess(CLASSES, **k), view), batch, (1, 2)
    )
    assert {k for k in one if k.startswith("loss/")} == {f"loss/{k}" for k in (main, "shares", "drawn", "logits")}
    np.testing.assert_allclose(one["loss"], sum(v for k, v in one.items() if k.startswith("loss/")), rtol=1e-5)
    images, labels = (
        (batch["patches"], batch["patch_labels"])
        if view == "patch"
        else (batch["global_image"], batch["global_labels"])
    )
    images = np.asarray(models.normalise(jnp.asarray(images), TINY.normalisation.mean, TINY.normalisation.std, 255.0))
    images, labels = images.reshape(-1, *images.shape[-3:]), labels.reshape(-1, *labels.shape[-2:]).copy()
    if view == "patch":
        labels[0] = 255  # only fills the batch up
    guess, last = before[root]["guess"], before[root]["last"]
    shares = np.stack([(labels == k).mean((1, 2)) for k in range(CLASSES)], -1)
    wrong = images.mean((1, 2)) @ guess["kernel"] + guess["bias"] - shares
    assert one["loss/shares"] == pytest.approx(0.5 * (wrong**2).mean(), rel=1e-4)
    logits = images @ last["kernel"][0, 0] + last["bias"]
    assert one["loss/logits"] == pytest.approx(logits.mean(), rel=1e-3, abs=1e-5)
    assert np.abs(after[root]["guess"]["kernel"] - guess["kernel"]).min() > 0  # which no other loss reads
    assert one["loss/drawn"] != other["loss/drawn"] and one["loss/shares"] == other["loss/shares"]


def test_or_instead_of_all_common_ones():
    for alone, expected in ((False, {"fused", "shares", "drawn", "logits"}), (True, {"shares", "drawn", "logits"})):
        model = models.own_loss(SingleView(CLASSES, lambda a=alone, **k: Guess(CLASSES, a, **k)))
        assert model.alone == alone
        assert set(terms_of(SingleView(CLASSES, lambda a=alone, **k: Guess(CLASSES, a, **k)))) == expected
    assert models.own_loss(models.build("unet", 2)) is None


def terms_of(model):
    """Shapes of all terms of a step."""
    batch = jax.tree.map(jnp.asarray, make_batch())
    (phase,) = phases.plan("joint", 10, None, models.stages(model))

    def terms(key):
        variables = models.init(model, key, 3)
        float_ = {k: batch[k].astype(jnp.float32) for k in ("global_image", "patches")}
        (logits, out), _ = phase.stage.forward(model, {"batch_stats": {}} | variables, batch | float_, key)
        return training.all_terms(LossConfig(), model, logits, out, batch, key)

    return jax.eval_shape(terms, jax.random.key(0))


def test_a_network_of_two_views_is_given_both():
    class Both(Toy):
        def loss(self, stages, labels, key):
            assert labels["local"].shape == (4, 2, 48, 48) and labels["global"].shape == (4, 48, 48)
            return {"far": jnp.mean(stages["local/x"] - stages["global/x_at_box"])}

    assert set(terms_of(Both(CLASSES))) == {"fused", "local", "global", "regulariser", "far"}


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (0.5, "the loss of Wrong returned float; it must return a dict of numbers"),
        ({"a": jnp.zeros(3)}, r"returned 'a', float32 \[3\]; it must"),
        ({"a": 1}, r"returned 'a', int32 \[\]; it must"),
        ({"fused": 0.5}, "has a term called fused, as the common loss has; rename it"),
    ],
)
def test_terms_that_are_none_are_told(terms, told):
    class Wrong(Guess):
        def loss(self, stages, labels, key):
            return terms

    with pytest.raises(UserError, match=told):
        terms_of(SingleView(CLASSES, lambda **k: Wrong(CLASSES, **k)))


def test_a_loss_that_stands_alone_has_terms():
    class Nothing(Guess):
        alone: bool = True

        def loss(self, stages, labels, key):
            return {}

    with pytest.raises(UserError, match="the loss of Nothing returned no term, and stands alone"):
        terms_of(SingleView(CLASSES, lambda **k: Nothing(CLASSES, **k)))
