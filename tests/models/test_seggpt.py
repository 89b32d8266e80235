"""SegGPT's colours, prompts and loss. The layers' parity is in ``test_seggpt_torch.py``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models import seggpt
from glcanet_jax.models.layers import resizing
from glcanet_jax.models.seggpt import SegGPT, colour_logits, nearest, painted, palette
from tests.drawn import drawn
from tests.models.test_networks import SMALL
from tests.training.one_batch import fit
from tests.training.test_step import CLASSES

TINY = {k: v for k, v in SMALL["seggpt"].items() if k != "objective"}


# --------------------------------------------------------------------------------------------------------------- colours
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 27, 64, 300])
def test_no_two_classes_have_one_colour_and_none_is_black(classes):
    colours = palette(classes)
    assert len(np.unique(colours, axis=0)) == classes and colours.max() <= 255 and colours.min() >= 0
    assert colours.any(axis=1).all()


def test_the_palette_is_painters():
    """Corners of a cube for up to seven classes; as transformers writes it down for six."""
    assert palette(6).tolist() == [
        [255, 255, 255], [255, 255, 127], [255, 127, 255], [255, 127, 127], [127, 255, 255], [127, 255, 127],
    ]  # fmt: skip


@pytest.mark.parametrize("classes", [2, 7, 30])
def test_the_largest_logit_is_the_nearest_colours(classes):
    """Of colours as pictures hold them, 0 to 255."""
    colours = np.random.default_rng(0).normal(0, 3, (2, 9, 9, 3)).astype(np.float32)
    rgb = np.clip((colours.astype(np.float64) * seggpt.STD + seggpt.MEAN) * 255, 0, 255)
    wanted = ((rgb[..., None, :] - palette(classes)) ** 2).sum(-1).argmin(-1)
    got = colour_logits(jnp.asarray(colours), classes, 16.0)
    assert got.shape == (2, 9, 9, classes)
    np.testing.assert_array_equal(got.argmax(-1), wanted)


def test_painted_labels_are_read_again_and_sure():
    labels = np.arange(7).reshape(1, 1, 7)
    chances = jax.nn.softmax(colour_logits(painted(jnp.asarray(labels), 7), 7, 16.0))
    np.testing.assert_array_equal(chances.argmax(-1), labels)
    assert chances.max(-1).min() > 0.999


def test_patches_that_disagree_make_no_third_class():
    """Halfway between two corners of the palette's cube lie two others; means of colours, or of squared distances, would choose
    among all four.
    """
    one, other = painted(jnp.asarray([[[0]]]), 7), painted(jnp.asarray([[[3]]]), 7)
    logits = 0.5 * (colour_logits(one, 7, 16.0) + colour_logits(other, 7, 16.0))
    assert set(np.argsort(np.asarray(logits[0, 0, 0]))[-2:].tolist()) == {0, 3}
    assert np.partition(logits[0, 0, 0], -3)[-3] < logits.max() - 1


def test_what_is_ignored_is_painted_black_and_no_loss():
    model = SegGPT(3, **TINY)
    labels = np.random.default_rng(0).integers(0, 3, (2, 32, 32))
    labels[0, :, :9], labels[1] = 255, 255
    rgb = (painted(jnp.asarray(labels), 3) * seggpt.STD[0] + seggpt.MEAN[0])[0, 0, 0, 0]
    assert float(rgb) == pytest.approx(0, abs=1e-6)
    stages = {"colours": jnp.asarray(np.random.default_rng(1).normal(0, 1, (2, 32, 32, 3)), jnp.float32)}
    loss = model.loss(stages, jnp.asarray(labels))["colours"]
    apart = np.abs(np.asarray(stages["colours"]) - np.asarray(painted(jnp.asarray(labels), 3)))[0, :, 9:]
    wanted = np.where(apart < 0.01, 50 * apart**2, apart - 0.005).mean()
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    other = {"colours": stages["colours"].at[0, :, :9].add(5).at[1].add(5)}
    assert float(model.loss(other, jnp.asarray(labels))["colours"]) == pytest.approx(float(loss), rel=1e-6)
    nothing = jax.value_and_grad(lambda s: model.loss(s, jnp.full((2, 32, 32), 255))["colours"])(stages)
    assert float(nothing[0]) == 0 and not np.asarray(nothing[1]["colours"]).any()


def test_labels_on_another_grid_are_those_of_the_nearest_pixels():
    labels = np.arange(50 * 50).reshape(1, 50, 50)
    got = np.asarray(nearest(jnp.asarray(labels), 32))[0]
    centres = (np.arange(32) + 0.5) * 50 / 32 - 0.5
    assert np.abs(got // 50 - centres[:, None]).max() <= 0.5 and np.abs(got % 50 - centres).max() <= 0.5


@pytest.mark.parametrize("size", [(20, 45), (33, 16), (24, 24)])
def test_images_are_resized_as_by_others(size):
    x = jax.random.normal(jax.random.key(0), (1, 24, 24, 2))
    got = jax.jit(lambda x: resizing.resize(x, size))(x)
    np.testing.assert_allclose(got, jax.image.resize(x, (1, *size, 2), "linear"), atol=1e-5)


# ------------------------------------------------------------------------------------------------------- prompts, options
def test_prompts_decide_what_is_painted():
    """Another picture, or other colours, and the answer is another."""
    model = SegGPT(3, **TINY)
    variables = drawn(models.build("seggpt", 3, **TINY))["params"]["local"]
    rng = np.random.default_rng(0)
    image, labels = rng.standard_normal((1, 40, 40, 3)).astype(np.float32), rng.integers(0, 3, (1, 40, 40))
    run = jax.jit(lambda p, x: model.apply({"params": p}, x)[0])
    answers = []
    for prompt, shown in ((image, labels), (-image, labels), (image, 2 - labels)):
        params = model.begin_with(variables, jnp.asarray(prompt), jnp.asarray(shown))
        answers.append(np.asarray(run(params, rng.standard_normal((1, 33, 49, 3)).astype(np.float32) * 0 + 0.1)))
    assert answers[0].shape == (1, 33, 49, 3)
    assert np.abs(answers[0] - answers[1]).max() > 1e-4 and np.abs(answers[0] - answers[2]).max() > 1e-4


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_bands_beyond_three_have_a_layer_of_their_own_which_begins_at_zero(bands):
    """One or two bands are repeated."""
    layer = seggpt.PatchEmbedding(4, 8, jax.tree_util.Partial(seggpt.nn.Conv))
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, bands))
    out, variables = layer.init_with_output(jax.random.key(1), x)
    assert set(variables["params"]) == ({"rgb", "more_bands"} if bands > 3 else {"rgb"})
    rgb = {"params": {"rgb": variables["params"]["rgb"]}}
    three = jnp.tile(x, 3)[..., :3] if bands < 3 else x[..., :3]
    np.testing.assert_allclose(out, layer.apply(rgb, three), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"image_size": 36}, "model.image_size is 36; it must be a multiple of model.patch_size, 8"),
        ({"heads": 3}, "model.width is 32; it must be a multiple of model.heads, 3"),
        ({"depth": 3}, "model.depth is 3; it must be 4 or more, for a tap of each of four parts"),
        ({"taps": (1, 4)}, r"model.taps is \(1, 4\) of 4 blocks; give rising ones, 0 to 3"),
        ({"taps": (2, 1)}, "give rising ones"),
        ({"merge": 1}, "model.merge is 1; it must be a block from 0 to the first tap, 0"),
        ({"drop_path": 1}, "model.drop_path is 1; it must be at least 0 and less than 1"),
        ({"kind": "panoptic"}, "model.kind is 'panoptic'; it must be one of 'semantic', 'instance'"),
    ],
)
def test_bad_options_are_told_at_once(wrong, told):
    with pytest.raises(UserError, match=told):
        SegGPT(2, **TINY | wrong)


def test_the_authors_blocks_are_the_defaults():
    model = SegGPT(2)
    assert model.tapped == (5, 11, 17, 23) and model.merged == 2
    assert (
        dataclasses.replace(model, depth=8).tapped == (1, 3, 5, 7) and dataclasses.replace(model, depth=8).merged == 1
    )


def test_the_objective_decides_which_losses_there_are():
    for objective, own, alone in (
        ("colours", {"colours"}, True),
        ("both", {"colours"}, False),
        ("classes", set(), False),
    ):
        found = models.own_loss(models.build("seggpt", 3, **TINY, objective=objective))
        stages = {"local/colours": jnp.zeros((1, 1, 32, 32, 3)), "logits": jnp.zeros((1, 1, 32, 32, 3))}
        terms = found.terms(stages, {"local": jnp.zeros((1, 1, 32, 32), jnp.int32)}, jax.random.key(0))
        assert (set(terms), found.alone) == (own, alone)


@pytest.mark.slow
def test_the_loss_falls_on_one_batch():
    """And nothing else stands beside it; what is dropped of blocks is drawn anew."""
    metrics, _ = fit(models.build("seggpt", CLASSES, **TINY), 8)
    assert {k for k in metrics[0] if k.startswith("loss/")} == {"loss/colours"}
    assert metrics[-1]["loss"] < 0.9 * metrics[0]["loss"]
