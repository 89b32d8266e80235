"""What the attention looks at: the weights that the network itself uses, and the mask that it has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import geometry, models
from glcanet_jax.errors import UserError
from glcanet_jax.inference.attention_maps import attention_map, mask_map
from glcanet_jax.inference.predictor import Predictor
from tests.drawn import drawn
from tests.inference.test_evaluation import NORMALISATION, SMALL, scene_of
from tests.light import Light

VIEWS = geometry.Views(context_size=320, global_size=160, patch_size=96, overlap=16)


@functools.cache
def predictor(**options):
    model = models.build("glcanet", 3, **SMALL | options)
    return Predictor(model, drawn(model), VIEWS, NORMALISATION, bands=3)


slow = pytest.mark.slow
OPTIONS = [
    {"heads": 2},
    pytest.param({"mask": "window", "mask_radius": 60.0}, marks=slow),
    pytest.param({"mask": "none", "residual": "input"}, marks=slow),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_weights_are_those_that_the_network_uses(options):
    """The answer of the cross-attention, put together from the map and the network's own values, is the network's."""
    made, scene, pixel = predictor(**options), scene_of(400, 350), (200, 123)
    got = attention_map(made, scene, pixel, level=4)
    model, variables = made.model, made.variables
    top, left = got.patch[:2]
    assert top <= 200 < top + 96 and left <= 123 < left + 96
    normal = lambda x: (x / 255.0 - NORMALISATION["mean"]) / NORMALISATION["std"]  # noqa: E731
    from glcanet_jax.data.views import global_view

    y, x, height, width = got.context
    image = normal(global_view(scene.image[y : y + height, x : x + width], 160))[None].astype(np.float32)
    patch = normal(scene.image[top : top + 96, left : left + 96])[None, None].astype(np.float32)
    boxes = jnp.asarray(geometry.box_of(got.patch, got.context))[None, None]
    capture = lambda module, method: method == "__call__" and "local_asks_4" in module.path  # noqa: E731
    _, state = jax.jit(lambda *a: model.apply(*a, capture_intermediates=capture, mutable=["intermediates"]))(
        variables, image, patch, boxes
    )
    found = state["intermediates"]["fusion"]["local_asks_4"]
    values = np.asarray(found["value"]["__call__"][0][0, 0], np.float64)  # [s, d]
    token = got.token[0] * 6 + got.token[1]  # 96 px at stride 16
    per_head = values.reshape(len(values), model.heads, -1)
    answer = np.einsum("hs,shd->hd", got.weights.reshape(model.heads, -1), per_head).ravel()
    expected = np.asarray(found["__call__"][0][0, 0])[token]
    if model.residual == "query":
        answer += np.asarray(found["query"]["__call__"][1][0, 0], np.float64)[token]
        np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())
    else:
        out = np.asarray(variables["params"]["fusion"]["local_asks_4"]["out"]["kernel"], np.float64)
        through = np.asarray(found["out"]["__call__"][0][0, 0], np.float64)[token]
        np.testing.assert_allclose(answer @ out, through, atol=1e-4 * np.abs(through).max())
    np.testing.assert_allclose(got.weights.sum((1, 2)), 1, atol=1e-5)
    assert (
        not got.weights[:, ~got.visible].any() and got.weights.max() < 0.9
    )  # no one-hot rows, whose values prove little
    np.testing.assert_array_equal(mask_map(made, scene, pixel, level=4), got.visible)


def test_the_window_follows_the_pixel_and_the_footprint_the_patch():
    scene = scene_of(320, 320)
    window = predictor(mask="window", mask_radius=40.0)
    centres = 2 * (16 * np.arange(10) + 0.5)  # the view is half the scene, its tokens 16 px apart
    for pixel in ((48, 160), (200, 64)):
        visible = mask_map(window, scene, pixel, level=4)
        rows, columns = np.nonzero(visible)
        assert visible.any() and np.hypot(centres[rows] - pixel[0], centres[columns] - pixel[1]).max() <= 40 + 12
    footprint = predictor(heads=2)
    near = [mask_map(footprint, scene, pixel, level=4) for pixel in ((20, 20), (30, 30), (250, 250))]
    np.testing.assert_array_equal(near[0], near[1])
    assert (near[0] != near[2]).any()
    assert mask_map(predictor(mask="none"), scene, (0, 0)).all()


def test_bad_requests_are_told():
    scene = scene_of(100, 120)
    with pytest.raises(UserError, match="pixel is .100, 3.; the scene has 100 rows and 120 columns"):
        attention_map(predictor(heads=2), scene, (100, 3))
    with pytest.raises(UserError, match="level is 3; this network's cross-attention is at 5, 4"):
        mask_map(predictor(heads=2), scene, (0, 0), level=3)
    model = Light(3)
    other = Predictor(model, drawn(model), VIEWS, NORMALISATION, bands=3)
    with pytest.raises(UserError, match="only a GLCANet with cross-attention"):
        attention_map(other, scene, (0, 0))
