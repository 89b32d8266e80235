"""Grids, weights and walks: GLNet's table, and properties on drawn sizes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glcanet_jax import geometry
from glcanet_jax.errors import UserError


@pytest.mark.parametrize(
    ("length", "patch", "count", "starts"),
    [
        (2448, 500, 6, [0, 390, 779, 1169, 1558, 1948]),
        (2448, 508, 6, [0, 388, 776, 1164, 1552, 1940]),
        (2448, 536, 5, None),
        (6000, 500, 14, None),
        (5000, 500, 11, None),
        (2494, 500, 6, None),
        (2064, 500, 5, None),
        (500, 500, 1, [0]),
        (300, 500, 1, [0]),
    ],
)
def test_grids_of_glnet(length, patch, count, starts):
    got = geometry.patch_starts(length, patch, 50)
    assert len(got) == count
    if starts is not None:
        assert got.tolist() == starts


sizes = st.tuples(st.integers(1, 3000), st.integers(32, 400)).flatmap(
    lambda lp: st.tuples(st.just(lp[0]), st.just(lp[1]), st.integers(0, lp[1] - 1))
)


@given(sizes)
@settings(max_examples=150)
def test_blend_weights_sum_to_one(size):
    length, patch, overlap = size
    starts = geometry.patch_starts(length, patch, overlap)
    if length > patch:
        assert starts[0] == 0 and starts[-1] == length - patch
        assert (patch - np.diff(starts) >= overlap - 1).all()  # rounding moves a start by half a pixel at most
    weights = geometry.blend_weights(starts, patch, length)
    total = np.zeros(max(length, patch))
    for start, weight in zip(starts, weights, strict=True):
        assert (weight >= 0).all()
        total[start : start + patch] += weight
    np.testing.assert_allclose(total[:length], 1, atol=1e-6)
    assert weights[0][0] == pytest.approx(1) and weights[-1][min(length, patch) - 1] == pytest.approx(1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 300), st.integers(0, 900))
@settings(max_examples=150)
def test_every_patch_lies_in_its_context(height, width, patch, more):
    views = geometry.Views(context_size=patch + more, global_size=64, patch_size=patch, overlap=min(16, patch - 1))
    walk = geometry.walk_scene(height, width, views)
    for axis, length in ((walk.rows, height), (walk.columns, width)):
        contexts = axis.context_starts[axis.owner]
        assert (axis.patch_starts >= contexts).all()
        assert (axis.patch_starts + patch <= contexts + axis.context).all()
        assert axis.context <= max(length, patch)
        spans = axis.spans()
        assert spans[0].start == 0 and spans[-1].done == spans[-1].stop == max(length, patch)
        assert [i for span in spans for i in span.patches] == list(range(len(axis.patch_starts)))
        assert all(a.done == b.start and a.stop <= b.stop for a, b in zip(spans, spans[1:], strict=False))
        assert all(a.stop - a.done < patch for a in spans)


def test_a_2448_scene_is_one_context_of_36_patches():
    walk = geometry.walk_scene(2448, 2448, geometry.Views())
    assert len(walk) == 36 and len(list(walk.blocks())) == 1
    walk = geometry.walk_scene(6000, 6000, geometry.Views())
    assert len(walk) == 196 and len(list(walk.blocks())) == 9
    surround = 306
    for k, start in enumerate(walk.rows.patch_starts):
        context = walk.rows.context_starts[walk.rows.owner[k]]
        centre = start + 250
        assert context == 0 or centre - context >= surround
        assert context + 2448 == 6000 or context + 2448 - centre >= surround


def test_2448_px_are_25_patches_of_530():
    views = geometry.Views()
    assert geometry.fit_patch(2448, 2448, views) == 530
    fitted = geometry.walk_scene(2448, 2448, dataclasses.replace(views, patch_size=530))
    assert len(fitted) == 25


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(32, 600), st.floats(0, 0.8))
def test_fitted_patches_are_near_and_never_more_work(height, width, patch, overlap):
    """And no side near the views' own is less; the views take it."""
    views = geometry.Views(patch * 4, 32, patch, int(overlap * patch))
    looked_at = lambda v: len(geometry.walk_scene(height, width, v)) * v.patch_size**2  # noqa: E731
    side = geometry.fit_patch(height, width, views)
    fitted = dataclasses.replace(views, patch_size=side)
    assert abs(side - patch) <= patch / 8 and looked_at(fitted) <= looked_at(views)
    for other in range(max(32, patch - patch // 8), patch + patch // 8 + 1, 7):
        if views.overlap <= other - other // 8:
            assert looked_at(fitted) <= looked_at(dataclasses.replace(views, patch_size=other))


@pytest.mark.parametrize(("cells", "size"), [(125, 500), (16, 61), (16, 64), (1, 3), (7, 7), (3, 33)])
def test_interpolation_is_the_networks_resize(cells, size):
    from glcanet_jax.models.layers.sampling import upsample

    x = jax.random.normal(jax.random.key(0), (cells, 1, 2))
    matrix = geometry.interpolation(cells, size)
    np.testing.assert_allclose(matrix @ np.asarray(x[:, 0]), upsample(x, (size, 1))[:, 0], atol=1e-6)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_interpolation_wants_a_map_of_the_size():
    with pytest.raises(ValueError, match="are no map of"):
        geometry.interpolation(100, 500)


def test_boxes():
    np.testing.assert_allclose(
        geometry.box_of((110, 220, 50, 40), (100, 200, 100, 200)), [0.1, 0.1, 0.6, 0.3], atol=1e-7
    )


@pytest.mark.parametrize("options", [{"overlap": 500}, {"context_size": 100}, {"patch_size": 8, "overlap": 2}])
def test_views_refuse_nonsense(options):
    with pytest.raises(UserError, match="must be"):
        geometry.Views(**options)
