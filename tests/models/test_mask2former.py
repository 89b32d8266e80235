"""Mask2Former's parts: what is hidden, who is matched, where places are read, and what its losses count."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models import mask2former
from glcanet_jax.models.layers import deformable, points, set_loss
from glcanet_jax.models.layers.assignment import assign
from glcanet_jax.models.layers.queries import HeadedAttention
from glcanet_jax.models.layers.set_loss import Points, Weights

WEIGHTS = Weights(2, 5, 5, 0.1)
POINTS = Points(64, 3, 0.75)


# --------------------------------------------------------------------------------------------------------------- matching
def checked(costs):
    """Rows' columns, which are as good as scipy's."""
    found = np.asarray(jax.jit(jax.vmap(assign))(costs))
    for cost, columns in zip(np.asarray(costs, np.float64), found, strict=True):
        rows = np.flatnonzero(columns >= 0)
        assert len(set(columns[rows])) == len(rows) == min(cost.shape)
        best = cost[linear_sum_assignment(cost)].sum()
        assert cost[rows, columns[rows]].sum() == pytest.approx(best, abs=1e-4)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (12, 12), (9, 4)])
def test_the_assignment_is_scipys(shape):
    """Also where many costs are alike, where rows are, and where all are negative."""
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(60, *shape)).astype(np.float32)
    costs[20:40] = np.round(costs[20:40])
    costs[30:40, 0] = 0
    costs[40:] -= 50
    checked(costs)


def test_what_is_no_number_is_taken_last():
    cost = np.array([[1, np.nan, 3], [np.inf, 2, np.nan], [4, 5, -np.inf]], np.float32)
    np.testing.assert_array_equal(jax.jit(assign)(cost), [2, 1, 0])
    cost = np.full((2, 3), np.nan, np.float32)  # it ends
    assert len(set(np.asarray(jax.jit(assign)(cost)))) == 2


def test_absent_classes_disturb_nobody():
    """Present classes are matched as if they were alone, also if there are more classes than queries."""
    rng = np.random.default_rng(1)
    for queries in (9, 4):
        cost = rng.normal(size=(6, queries)).astype(np.float32) * 10
        for present in ([0, 2, 5], [1], [0, 1, 2, 3, 4, 5]):
            there = np.isin(np.arange(6), present)
            found = np.asarray(assign(set_loss._of_present(jnp.asarray(cost), jnp.asarray(there))))[present]
            taken = found >= 0
            assert taken.sum() == min(len(present), queries)
            best = cost[present][linear_sum_assignment(cost[present])].sum()
            assert cost[present][taken, found[taken]].sum() == pytest.approx(best, abs=1e-3)


# ----------------------------------------------------------------------------------------------------------------- places
def test_places_are_read_half_a_pixel_in():
    """Bilinear between centres, zero around; every cell's own centre gives the cell."""
    grid = (3, 5)
    values = np.arange(15, dtype=np.float32) + 1
    own = points.read(jnp.asarray(values)[:, None], jnp.asarray(deformable.centres(grid)), grid)[:, 0]
    np.testing.assert_allclose(own, values, rtol=1e-6)
    at = np.array([[0.2, 0.5], [0.0, 0.5], [0.1, -0.1], [1.7, 0.5]], np.float32)
    got = points.read(jnp.asarray(values)[:, None], jnp.asarray(at), grid)[:, 0]
    # between the first two cells of the second row; at its left edge; above the first cell; far away
    np.testing.assert_allclose(got, [6.5, 3.0, 0.2, 0.0], atol=1e-5)


def test_deformable_attention_starts_around_the_token():
    """Each head looks one way, points at growing distances, all alike: so the mean of what lies there."""
    grid, module = (7, 7), deformable.DeformableAttention(4, 2)
    x = jax.random.normal(jax.random.key(0), (1, 49, 8))
    code = deformable.sine_code(grid, 8)
    params = module.init(jax.random.key(1), x, code, [grid])["params"]
    eye = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    got = module.apply({"params": params | {"value": eye, "out": eye}}, x, code, [grid])[0, 24]
    square = np.asarray(x).reshape(7, 7, 4, 2)
    for head, (dx, dy) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        wanted = (square[3 + dy, 3 + dx, head] + square[3 + 2 * dy, 3 + 2 * dx, head]) / 2
        np.testing.assert_allclose(got.reshape(4, 2)[head], wanted, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- masked attention
def test_what_is_masked_is_hidden():
    """What a query says depends on the cells of its mask, and on no others; an empty mask hides nothing."""
    grid = (4, 4)
    inside = np.zeros((1, 8, 8, 2), np.float32) - 1
    inside[0, :4, :4, 0] = 1  # the first query's mask is a quarter, the second's is empty
    mask = mask2former.visible(jnp.asarray(inside), grid)
    seen = np.zeros((4, 4), bool)
    seen[:2, :2] = True
    np.testing.assert_array_equal(mask[0, 0].reshape(4, 4), seen)
    assert mask[0, 1].all()
    keys = jax.random.split(jax.random.key(0), 4)
    x, code, asked = (jax.random.normal(k, s) for k, s in zip(keys, [(1, 2, 8), (2, 8), (1, 16, 8)], strict=False))
    attention, places = HeadedAttention(2), deformable.sine_code(grid, 8)
    params = attention.init(keys[3], x, code, asked, places, mask)

    def said(asked, query):
        return jnp.sum(attention.apply(params, x, code, asked, places, mask)[0, query] ** 2)

    for query, hidden in ((0, ~seen.ravel()), (1, np.zeros(16, bool))):
        moved = np.abs(jax.grad(said)(asked, query)[0]).max(axis=-1)
        assert (moved[hidden] == 0).all() and (moved[~hidden] > 0).all()


# ------------------------------------------------------------------------------------------------------------------ losses
def scene(classes=3, queries=4):
    """Labels of two classes in halves, and predictions that say them without a doubt."""
    labels = np.zeros((1, 32, 32), np.int32)
    labels[:, :, 16:] = 2
    masks = np.full((1, 1, 8, 8, queries), -50.0, np.float32)
    masks[..., :4, 3], masks[..., 4:, 1] = 50, 50
    said = np.zeros((1, 1, queries, classes + 1), np.float32)
    said[..., -1] = 50
    said[0, 0, [3, 1]] = 0
    said[0, 0, 3, 0] = said[0, 0, 1, 2] = 50
    return labels, masks, said


@cache
def compiled(chosen):
    return jax.jit(lambda *args: set_loss.set_loss(*args, WEIGHTS, chosen))


def terms_of(labels, masks, said, **more):
    run = compiled(POINTS._replace(**more))
    return {k: float(v) for k, v in run(said, masks, jnp.asarray(labels), jax.random.key(0)).items()}


def test_what_is_right_costs_next_to_nothing_whatever_the_order_of_queries():
    labels, masks, said = scene()
    right = terms_of(labels, masks, said)
    assert right["classes"] < 1e-3 and set(right) == {"classes", "masks", "dice"}
    swapped = [1, 3, 0, 2]
    assert terms_of(labels, masks[..., swapped], said[:, :, swapped]) == pytest.approx(right, rel=1e-4)
    wrong = said.copy()
    wrong[0, 0, 1] = np.roll(wrong[0, 0, 1], 1)  # it says nothing where class 2 is
    assert terms_of(labels, masks, wrong)["classes"] > 10
    assert terms_of(labels, np.full_like(masks, -50), said)["masks"] > 3 * right["masks"]


def test_pixels_without_a_label_and_images_without_any_count_nothing():
    labels, masks, said = scene()
    hidden = labels.copy()
    hidden[:, :8] = 255
    other = masks.copy()
    other[:, :, 0] *= -1  # wrong where nothing is known, a cell's distance away
    at_random = partial(terms_of, importance=0.0)  # others would go to where masks change
    assert at_random(hidden, other, said) == pytest.approx(at_random(hidden, masks, said), abs=1e-3)
    assert at_random(labels, other, said)["masks"] > 2 * at_random(labels, masks, said)["masks"]
    empty = [np.concatenate([a, b]) for a, b in ((labels, np.full_like(labels, 255)), (masks, -masks), (said, -said))]
    alone, both = terms_of(labels, masks, said), terms_of(*empty)
    assert both["classes"] == pytest.approx(alone["classes"], abs=1e-6)
    assert set(terms_of(*(x[1:] for x in empty)).values()) == {0.0}


def test_every_layer_is_supervised():
    """Each by itself: the loss is their sum, and each gets a gradient."""
    labels, masks, said = scene()
    rng = np.random.default_rng(0)
    masks, said = (rng.normal(size=(1, 3, *x.shape[2:])).astype(np.float32) for x in (masks, said))
    total = lambda m, c: sum(set_loss.set_loss(c, m, jnp.asarray(labels), jax.random.key(0), WEIGHTS, POINTS).values())  # noqa: E731
    grads = jax.jit(jax.grad(total, (0, 1)))(masks, said)
    for grad in grads:
        assert (np.abs(grad).max(axis=(0, *range(2, grad.ndim))) > 0).all()


def test_uncertain_points_lie_where_a_mask_changes():
    grid = (16, 16)
    mask = jnp.broadcast_to(jnp.arange(16.0) - 7.5, grid).ravel()  # certain but for the middle columns
    given = partial(set_loss._uncertain, mask, jax.random.key(0), grid=grid)
    distance = lambda share: np.abs(given(points=Points(40, 10, share))[:, 0] - 0.5).mean()  # noqa: E731
    assert distance(1.0) < 0.05 < 0.2 < distance(0.0)


# ----------------------------------------------------------------------------------------------------------------- options
def test_scores_are_classes_by_masks():
    rng = np.random.default_rng(0)
    said, masks = (rng.normal(size=s).astype(np.float32) for s in ((2, 30, 4), (2, 4, 6, 30)))
    logits = mask2former.class_scores(jnp.asarray(said), jnp.asarray(masks), (15, 22))
    assert logits.shape == (2, 15, 22, 3)
    large = np.asarray(jax.image.resize(masks, (2, 16, 24, 30), "bilinear"), np.float64)
    chances = np.exp(said.astype(np.float64))
    chances = (chances / chances.sum(-1, keepdims=True))[..., :-1]
    scores = np.einsum("bhwq,bqk->bhwk", 1 / (1 + np.exp(-large)), chances)[:, :15, :22]
    np.testing.assert_allclose(jax.nn.softmax(logits), scores / scores.sum(-1, keepdims=True), rtol=1e-4)
    far = mask2former.class_scores(jnp.asarray(said), jnp.full((2, 4, 6, 30), -200.0), (16, 24))
    assert np.isfinite(far).all()


def test_bad_options_are_told():
    with pytest.raises(UserError, match="model.channels is 30; it must be a multiple of 4 and of the 8 heads"):
        models.build("mask2former", 3, channels=30)
    with pytest.raises(UserError, match="model.norm is 'layer'"):
        models.build("mask2former", 3, norm="layer")
