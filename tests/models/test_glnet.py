"""GLNet: its size, its shapes, the release's whole-cell geometry against loops, sharing both ways, weights, evaluation."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from glcanet_jax import config as configs
from glcanet_jax import geometry, models, weights
from glcanet_jax.errors import UserError
from glcanet_jax.inference.glnet_release import glnet_predict, release_raises
from glcanet_jax.measure import info
from glcanet_jax.models.glnet import SHARED, GLNet
from glcanet_jax.models.layers import cropping, sampling
from glcanet_jax.training import phases
from glcanet_jax.training.step import loss_terms

SMALL = dict(depth=10, width=8, fpn_channels=16, fast_conv=False)  # what compiles fast
SCENE, SIZE, PATCH = 160, 96, 64
STARTS = (0, 48, 96)  # of the patches in the scene, along both axes
METHODS = ("encode_global", "encode_local", "fuse", "collect", "encode_again", "fuse_again")


def small(**options):
    return GLNet(5, **{**SMALL, **options})


@cache
def jitted(model):
    """The methods of a model, compiled, as functions of its variables."""
    apply = lambda name: jax.jit(lambda variables, *args: model.apply(variables, *args, method=name))  # noqa: E731
    return {name: apply(name) for name in (*METHODS, "__call__")}


@cache
def shapes(model, bands=3):
    return models.shapes(model, bands)


def trained(model, seed=0):
    """Variables that make every part count; drawn by numpy, as compiling the initialisers takes long."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        noise = rng.standard_normal(x.shape).astype(np.float32)
        if x.ndim == 4:
            return noise * (1.5 / x[..., 0].size) ** 0.5
        return 0.1 * noise + (path[-1].key in ("scale", "var"))

    stats = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes(model))
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, stats))


def inputs(key, b=1):
    keys = jax.random.split(key, 2)
    image = jax.random.normal(keys[0], (b, SIZE, SIZE, 3))
    windows = [(top, left, PATCH, PATCH) for top in STARTS for left in STARTS]
    boxes = np.stack([geometry.box_of(window, (0, 0, SCENE, SCENE)) for window in windows])
    patches = jax.random.normal(keys[1], (b, len(boxes), PATCH, PATCH, 3))
    return image, patches, jnp.broadcast_to(jnp.asarray(boxes)[None], (b, *boxes.shape))


@pytest.fixture(params=[False, True], ids=["exact", "strict"])
def both_ways(request):
    """A G<=>L network, its methods, its variables, and inputs."""
    model = small(mutual=True, strict=request.param)
    return model, jitted(model), trained(model), inputs(jax.random.key(1))


# --------------------------------------------------------------------------------------------------------- size and cost
def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("mutual", "roots", "total", "gflop"),
    [
        (False, {"global": 28064839, "local": 37305927, "fusion": 64519}, 65435285, 9951),
        (True, {"global": 28064839, "local": 37305927, "fusion": 64519, "feedback": 37305927}, 102741212, 10223),
    ],
)
def test_size_and_cost(mutual, roots, total, gflop):
    """Parameters and cost of 36 patches of 500 px, as measured on the release."""
    model = GLNet(7, mutual=mutual)
    variables = shapes(model)
    assert {r: sum(x.size for x in jax.tree.leaves(tree)) for r, tree in variables["params"].items()} == roots
    assert sum(roots.values()) == total
    cost = lambda *args, **kw: info.count_flops(jax.make_jaxpr(lambda *a: model.apply(*a, **kw))(*args)) / 1e9  # noqa: E731
    image = spec(1, 500, 500, 3)
    if not mutual:  # the same of both
        assert cost(variables, image, method="encode_global") == pytest.approx(84, rel=0.01)
    assert cost(variables, image, spec(1, 36, 500, 500, 3), spec(1, 36, 4)) == pytest.approx(gflop, rel=0.001)


@pytest.mark.parametrize(("size", "cells"), [(500, (125, 63, 32, 16)), (508, (127, 64, 32, 16))])
def test_shapes_are_the_releases(size, cells):
    model = GLNet(7)
    variables = shapes(model)
    image, patches, boxes = spec(1, size, size, 3), spec(1, 2, size, size, 3), spec(1, 2, 4)
    apply = lambda name, *args: jax.eval_shape(lambda *a: model.apply(*a, method=name), variables, *args)  # noqa: E731
    context, features = apply("encode_global", image), apply("encode_local", patches)
    out = apply("fuse", context, features, boxes)[1]
    for i, c, cell in zip((2, 3, 4, 5), (256, 512, 1024, 2048), cells, strict=True):
        assert context[f"c{i}"].shape == (1, cell, cell, c) and features[f"c{i}"].shape == (1, 2, cell, cell, c)
        for phase, c in (("p", 256), ("first", 256), ("second", 128)):
            assert context[f"{phase}{i}"].shape == (1, cell, cell, c)
            assert out[f"local/{phase}{i}"].shape == (1, 2, cell, cell, c)
    assert context["x"].shape == (1, cells[0], cells[0], 512) and context["logits"].shape == (1, cells[0], cells[0], 7)
    assert out["local/x"].shape == out["global/x_at_box"].shape == (1, 2, cells[0], cells[0], 512)
    assert out["local/logits"].shape == out["logits"].shape == (1, 2, cells[0], cells[0], 7)


def test_starting_values(key):
    model = small(fpn_channels=64)
    image, patches, boxes = jax.eval_shape(lambda: inputs(key))
    apply = lambda name, x: jax.eval_shape(lambda *a: model.apply(*a, method=name), shapes(model), x)  # noqa: E731
    given = jax.tree.map(
        lambda x: jnp.zeros(x.shape), (apply("encode_global", image), apply("encode_local", patches), boxes)
    )
    params = jax.jit(lambda key: model.init(key, *given, method="fuse"))(key)["params"]
    local = flatten_dict(params["local"], sep="/")
    kernels, biases = ([v for k, v in local.items() if k.endswith(leaf)] for leaf in ("kernel", "bias"))
    assert len(kernels) == len(biases) == 14  # lateral, twice smooth, all of them, head: the backbone is not here
    assert not any(np.any(v) for v in biases)
    assert all(np.std(v) == pytest.approx(0.01, rel=0.1) for v in kernels)
    bias, bound = np.asarray(params["fusion"]["aggregate"]["bias"]), (36 * 64) ** -0.5
    assert np.std(params["fusion"]["aggregate"]["kernel"]) == pytest.approx(0.01, rel=0.05)
    assert np.abs(bias).max() <= bound and np.ptp(bias) > 0


# ---------------------------------------------------------------------------------------- the release's geometry, by loops
def loop_tops(length, patch):
    """The patch grid to the letter of the text."""
    n = 1
    while n * patch < length:
        n += 1
    while patch - (length - patch) / (n - 1) < 50:
        n += 1
    tops = [round(k * ((length - patch) / (n - 1))) for k in range(n)]
    tops[-1] = length - patch
    return tops


def loop_crops(length, patch, cells):
    """Starts, size, coverage and template of an axis, in float64, one pixel and one cell at a time."""
    tops = loop_tops(length, patch)
    size = round(cells * (patch / length))
    starts = [round((top / length) * cells) for top in tops]
    coverage = [0] * cells
    for start in starts:
        for cell in range(start, min(start + size, cells)):
            coverage[cell] += 1
    count = [0] * length
    for top in tops:
        for pixel in range(top, top + patch):
            count[pixel] += 1
    template = []
    for cell in range(cells):
        place = max((cell + 0.5) * (length / cells) - 0.5, 0.0)
        low = int(place)
        weight = place - low
        template.append(count[low] * (1 - weight) + count[min(low + 1, length - 1)] * weight)
    return starts, size, coverage, template


AXES = [(2448, 500), (2448, 508), (6000, 500), (5000, 500), (2494, 500), (2064, 500), (1000, 500), (640, 64), (301, 96)]


@pytest.mark.parametrize(("length", "patch"), AXES)
def test_crops_against_loops(length, patch):
    axis = cropping.axis_crops(length, patch, patch)
    assert axis.tops.tolist() == loop_tops(length, patch)
    for level, crops in axis.levels.items():
        starts, size, coverage, template = loop_crops(length, patch, crops.cells)
        assert (crops.starts.tolist(), crops.count) == (starts, size)
        assert crops.coverage.tolist() == coverage
        assert crops.lengths.tolist() == [max(min(size, crops.cells - start), 0) for start in starts]
        np.testing.assert_allclose(crops.template, template, atol=1e-9, err_msg=f"level {level}")


@pytest.mark.parametrize(
    ("length", "patch", "starts", "step"),
    [
        (2448, 500, [0, 390, 779, 1169, 1558, 1948], 389.6),
        (2448, 508, [0, 388, 776, 1164, 1552, 1940], 388.0),
        (2448, 536, 5, 478.0),
        (6000, 500, 14, 423.1),
        (5000, 500, 11, 450.0),
        (2494, 500, 6, 398.8),
        (2064, 500, 5, 391.0),
    ],
)
def test_the_patch_grid(length, patch, starts, step):
    tops = cropping.axis_crops(length, patch, patch).tops
    assert tops.tolist() == starts if isinstance(starts, list) else len(tops) == starts
    assert (length - patch) / (len(tops) - 1) == pytest.approx(step, abs=0.05)


def test_the_crops_of_deepglobe():
    exact = {500: (3.27, 6.54, 12.87, 25.53), 508: (3.32, 6.64, 13.28, 26.35)}
    for patch, cells in ((500, (16, 32, 63, 125)), (508, (16, 32, 64, 127))):
        levels = cropping.axis_crops(2448, patch, patch).levels
        assert tuple(levels[i].cells for i in (5, 4, 3, 2)) == cells
        assert tuple(levels[i].count for i in (5, 4, 3, 2)) == (3, 7, 13, 26)
        sides = tuple(levels[i].cells * patch / 2448 for i in (5, 4, 3, 2))
        np.testing.assert_allclose(sides, exact[patch], atol=0.006)


def wrong(crops):
    """The share of a map's cells whose template is not their coverage, and the extremes of coverage over template."""
    coverage, template = (np.outer(x, x) for x in (crops.coverage, crops.template))
    ratio = coverage / template
    return (np.abs(ratio - 1) > 1e-9).mean(), ratio.min(), ratio.max()


def test_where_the_template_errs():
    """Facts, quirk 9: at 2448 px 6 % of P2's cells, features four times too large for 500 px, a quarter for 508 px."""
    at500, at508 = (cropping.axis_crops(2448, patch, patch).levels for patch in (500, 508))
    assert all(wrong(at500[i])[0] == 0 for i in (3, 4, 5)) and all(wrong(at508[i])[0] == 0 for i in (4, 5))
    share, least, most = wrong(at500[2])
    assert share == pytest.approx(0.063, abs=0.001) and (least, most) == (1, 4)
    for level in (2, 3):
        share, least, most = wrong(at508[level])
        assert share == pytest.approx(0.062, abs=0.001) and (least, most) == (0.25, 1)


def test_uncovered_scenes_of_known_datasets():
    """Facts, quirk 10: Potsdam's 6000 px and Inria's 5000 px."""
    potsdam, inria = (cropping.axis_crops(side, 500, 500) for side in (6000, 5000))
    assert potsdam.levels[5].count == 1 and potsdam.levels[5].uncovered.tolist() == [4, 13]
    assert [len(potsdam.levels[i].uncovered) for i in (4, 3, 2)] == [0, 0, 0]
    assert inria.levels[2].uncovered.tolist() == [124]
    assert not potsdam.raises and not inria.raises


def test_sizes_that_the_release_leaves_uncovered_or_refuses():
    """Facts, quirk 10: of the square sizes 600..6100, 789 for 500 px; four raise, and 1016 for 508 px."""
    for patch, uncovered, refused in ((500, 789, [840, 1000, 1800, 4200]), (508, None, [1016])):
        axes = {side: cropping.axis_crops(side, patch, patch) for side in range(600, 6101)}
        assert [side for side, axis in axes.items() if axis.raises] == refused
        holes = [side for side, axis in axes.items() if any(len(c.uncovered) for c in axis.levels.values())]
        assert uncovered in (None, len(holes))


def test_what_raises_in_the_release_depends_on_the_sub_batch():
    short, whole = cropping.axis_crops(1000, 500, 500), cropping.axis_crops(2448, 500, 500)
    assert release_raises(short, short, 2, 6) and release_raises(short, short, 3, 1)
    assert release_raises(short, short, 2, 1) is None  # one crop at a time may be short
    assert release_raises(short, whole, 2, 6) is None and release_raises(
        whole, short, 2, 6
    )  # rows end with sub-batches
    assert release_raises(whole, whole, 3, 6) is None


# ------------------------------------------------------------------------------------------------- the same, as JAX sees it
MOST = 16  # patches of an axis, so that one program serves all


def diagonal(length, patch):
    """Boxes of an axis's patches for both axes ``[1, 16, 4]``, and which are real."""
    tops = geometry.patch_starts(length, patch, 50)
    boxes = np.zeros((1, MOST, 4), np.float32)
    for i, top in enumerate(tops):
        boxes[0, i] = geometry.box_of((int(top), int(top), patch, patch), (0, 0, length, length))
    return jnp.asarray(boxes), jnp.asarray((np.arange(MOST) < len(tops))[None])


@pytest.mark.parametrize(("length", "patch"), [a for a in AXES if a[1] == 500] + [(840, 500), (3001, 500), (4599, 500)])
def test_traced_boxes_find_the_releases_cells(length, patch):
    boxes, valid = diagonal(length, patch)
    sizes = jnp.full((1, MOST, 2), float(patch)), jnp.full((1, 2), 500.0)
    axis = cropping.axis_crops(length, patch, 500)
    n = len(axis.tops)
    for level, crops in axis.levels.items():
        cells = (crops.cells,) * 2
        reading = jax.jit(cropping.read, static_argnums=(1, 2, 3, 6))(boxes, cells, cells, level, *sizes, True)
        for start, count, rows in zip(crops.starts, crops.lengths, np.asarray(reading.rows)[0, :n], strict=True):
            place = np.clip((np.arange(crops.cells) + 0.5) * count / crops.cells - 0.5, 0, count - 1)
            np.testing.assert_allclose(rows, start + place, atol=1e-4)
        np.testing.assert_array_equal(reading.rows, reading.columns)

        grid = jax.jit(cropping.place, static_argnums=(2, 3, 4, 7))(boxes, valid, cells, cells, level, *sizes, True)
        inside = np.asarray(grid.rows.inside)[0, :n]
        assert inside.argmax(1).tolist() == crops.starts.tolist()
        assert inside.sum(1).tolist() == crops.lengths.tolist()
        np.testing.assert_allclose(np.asarray(grid.rows.share)[0, :n].sum(0), crops.template, atol=1e-5)
        shares = np.asarray(grid.rows.share)[0, :n]
        np.testing.assert_allclose(
            np.asarray(grid.cover())[0, ..., 0], np.einsum("nh,nw->hw", shares, shares), atol=1e-5
        )


@given(st.integers(min_value=1, max_value=MOST), st.floats(min_value=0.0, max_value=1.0))
@settings(max_examples=60)
def test_exact_sharing_leaves_no_cell_of_any_scene_uncovered(count, part):
    patch = 500
    length = patch + int(part * (count - 1) * (patch - 50))
    boxes, valid = diagonal(length, patch)
    sizes = jnp.full((1, MOST, 2), float(patch)), jnp.full((1, 2), 500.0)
    for level, cells in ((5, 16), (2, 125)):
        shape = (cells, cells)
        grid = jax.jit(cropping.place, static_argnums=(2, 3, 4, 7))(boxes, valid, shape, shape, level, *sizes, False)
        rows, columns = (np.asarray(x.share)[np.asarray(valid)].sum(0) for x in (grid.rows, grid.columns))
        assert rows.min() >= 1 and columns.min() >= 1


@partial(jax.jit, static_argnums=(4, 5))
def down_and_up(ramp, maps, boxes, valid, count, level):
    sizes = jnp.full((1, MOST, 2), 500.0), jnp.full((1, 2), 500.0)
    cells = (count, count)
    down = cropping.read(boxes, cells, cells, level, *sizes, False).crop(ramp)
    sampled = sampling.sample_boxes(ramp, boxes, cells, 2**level, *sizes)
    grid = cropping.place(boxes, valid, cells, cells, level, *sizes, False)
    return down, sampled, cropping.merge(grid.add({"c": maps})["c"], grid.cover()), grid.cover()


def test_ramps_go_down_and_up_exactly():
    """Without whole cells, a ramp over the context is the same ramp in a patch, and comes back the same."""
    boxes, valid = diagonal(2448, 500)
    for level in (2, 5):
        count = geometry.cells(500, 2**level)
        centre = geometry.cell_centres(count, 2**level, 500).astype(np.float32)
        ramp = np.stack(np.meshgrid(centre, centre, indexing="ij"), axis=-1)[None]
        box = np.asarray(boxes)[0, :6]
        local = box[:, :1] + centre * (box[:, 2:3] - box[:, :1])  # of the patches' own cells
        maps = np.zeros((1, MOST, count, count, 2), np.float32)
        maps[0, :6] = np.stack(np.broadcast_arrays(local[:, :, None], local[:, None]), axis=-1)
        down, sampled, up, cover = map(np.asarray, down_and_up(ramp, maps, boxes, valid, count, level))

        np.testing.assert_allclose(down, sampled, atol=1e-6)
        np.testing.assert_allclose(down[0, :6, :, 0, 0], np.clip(local, centre[0], centre[-1]), atol=1e-6)
        on = cover[0, ..., 0] > 0
        assert on.diagonal().all()
        # a patch's last cell lies before its end: what is beyond reads that cell
        tolerance = (500 - 1 - (count - 1) * 2**level) / 2448 + 1e-6
        np.testing.assert_allclose(up[0][on], ramp[0][on], atol=tolerance)
        assert np.median(np.abs(up[0][on] - ramp[0][on])) < 1e-6


def test_half_pixel_resizing():
    """The mean of pairs at half the size; at any size against a loop."""
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 3)).astype(np.float32)
    half = np.asarray(cropping.resize(jnp.asarray(x), (4, 6)))
    np.testing.assert_allclose(half, (x[:, ::2] + x[:, 1::2]) / 2, rtol=1e-5, atol=1e-6)
    out = np.asarray(cropping.resize(jnp.asarray(x), (5, 13)))
    jaxs = jax.image.resize(jnp.asarray(x), (2, 5, 13, 3), "linear", antialias=False)
    np.testing.assert_allclose(out, jaxs, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- the network
def test_global_to_local_composes(key):
    model = small()
    assert model.stages == ("global", "rest") and not model.second_pass
    image, patches, boxes = inputs(key)
    variables = trained(small(mutual=True))
    logits, out = jitted(model)["__call__"](variables, image, patches, boxes)
    fns = jitted(small(mutual=True))  # whose second stage is the same
    context = fns["encode_global"](variables, image)
    again, parts = fns["fuse"](variables, context, fns["encode_local"](variables, patches), boxes)
    assert logits.shape == (1, 9, 16, 16, 5) and logits.dtype == jnp.float32 and np.isfinite(logits).all()
    close(logits, again)
    assert set(parts) < set(out) and {"global/p5", "global/logits", "local/first2", "global/x_at_box"} <= set(out)

    spoilt = patches.at[:, :4].multiply(-1.0)
    other, _ = fns["fuse"](variables, context, fns["encode_local"](variables, spoilt), boxes)
    close(other[:, 4:], logits[:, 4:])  # patches do not see each other
    assert np.abs(other[:, :4] - logits[:, :4]).max() > 0.1


def test_bfloat16_and_frozen_norms(key):
    model = small(dtype="bfloat16", norm="frozen")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes(model)))
    variables = trained(small(mutual=True))
    logits, out = jitted(model)["__call__"](variables, *inputs(key))
    assert out["local/x"].dtype == jnp.bfloat16 and logits.dtype == out["local/logits"].dtype == jnp.float32
    exact = jitted(small())["__call__"](variables, *inputs(key))[0]
    assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def close(a, b):
    scale = lambda y: 1e-5 * max(1.0, float(np.abs(y).max()))  # noqa: E731
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=scale(y)), a, b)


def test_both_ways_compose(key):
    model = small(mutual=True)
    fns, variables, (image, patches, boxes) = jitted(model), trained(model), inputs(key)
    assert model.stages == ("global", "rest", "feedback") and model.second_pass
    logits, out = fns["__call__"](variables, image, patches, boxes)
    first, features = fns["encode_global"](variables, image), fns["encode_local"](variables, patches)
    kept, gathered = fns["collect"](variables, first, features, boxes, jnp.ones((1, 9), bool))
    context = fns["encode_again"](variables, first, gathered, image)
    again, _ = fns["fuse_again"](variables, context, kept, boxes)
    close(logits, again)
    close(out["global/logits"], context["logits"])
    down, parts = fns["fuse"](variables, first, features, boxes)  # stage 2 is there, too
    close(out["local/logits"], parts["local/logits"])
    assert np.abs(down - logits).max() > 0.1 and np.abs(first["logits"] - context["logits"]).max() > 0.1
    assert {k for k in gathered if not k.startswith("cover")} == set(SHARED) and len(SHARED) == 16
    assert all(gathered[k].shape == first[k].shape for k in SHARED)


def test_what_patches_give_back_adds_up_in_any_order(both_ways):
    _, fns, variables, (image, patches, boxes) = both_ways
    context, features = fns["encode_global"](variables, image), fns["encode_local"](variables, patches)
    everything = fns["collect"](variables, context, features, boxes, jnp.ones((1, 9), bool))[1]

    order = np.random.default_rng(0).permutation(9)
    shuffled = jax.tree.map(lambda x: x[:, order], features)
    close(fns["collect"](variables, context, shuffled, boxes[:, order], jnp.ones((1, 9), bool))[1], everything)

    half = jnp.arange(9)[None] < 4
    parts = [fns["collect"](variables, context, features, boxes, valid)[1] for valid in (half, ~half)]
    close(jax.tree.map(jnp.add, *parts), everything)

    # what a patch that does not count holds and where it lies make no difference
    spoilt = jax.tree.map(lambda x: x.at[:, 4:].set(jnp.nan) if x.ndim > 3 else x, features)
    nowhere = boxes.at[:, 4:].set(0.0)
    close(fns["collect"](variables, context, spoilt, nowhere, half)[1], parts[0])
    merged = [cropping.merge(parts[0][k], parts[0][f"cover{k[-1]}"]) for k in SHARED]
    assert all(np.isfinite(x).all() for x in merged)


def test_cells_that_no_patch_covers_are_zero():
    """Strictly, a scene of Potsdam's size leaves cells of the coarsest level out; exactly, none."""
    axis = cropping.axis_crops(6000, 500, 500)
    crops = axis.levels[5]
    windows = [(int(top), int(left), 500, 500) for top in axis.tops for left in axis.tops]
    boxes = jnp.asarray(np.stack([geometry.box_of(w, (0, 0, 6000, 6000)) for w in windows])[None])
    sizes = jnp.full((1, len(windows), 2), 500.0), jnp.full((1, 2), 500.0)

    @partial(jax.jit, static_argnums=0)
    def ones(strict):
        maps, valid = jnp.ones((1, len(windows), 16, 16, 3)), jnp.ones((1, len(windows)), bool)
        grid = cropping.place(boxes, valid, (16, 16), (16, 16), 5, *sizes, strict)
        return cropping.merge(grid.add({"c": maps})["c"], grid.cover())

    merged = np.asarray(ones(True))[0, ..., 0]
    wanted = np.outer(crops.coverage, crops.coverage) / np.outer(crops.template, crops.template)
    np.testing.assert_allclose(merged, wanted, rtol=1e-5)
    assert not merged[[4, 13]].any() and not merged[:, [4, 13]].any() and (merged == 0).sum() == 2 * 2 * 16 - 4
    np.testing.assert_allclose(ones(False), 1, rtol=1e-6)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["exact", "strict"])
def test_non_square_views(strict):
    model = small(mutual=True, strict=strict)
    image, patches, boxes = spec(1, 96, 64, 3), spec(1, 2, 64, 80, 3), spec(1, 2, 4)
    logits, out = jax.eval_shape(model.apply, shapes(small(mutual=True)), image, patches, boxes)
    assert logits.shape == (1, 2, 16, 20, 5) and out["global/logits"].shape == (1, 24, 16, 5)


# ---------------------------------------------------------------------------------------------------------------- training
def test_the_third_stage_starts_from_the_first_ones_global_branch():
    model = small(mutual=True)
    variables = trained(model)
    assert phases.REST.enter(model, variables) is variables
    before = jax.tree.map(np.asarray, variables)
    entered = phases.FEEDBACK.enter(model, variables)
    for collection, parts in (("params", ("resnet", "head")), ("batch_stats", ("resnet",))):
        for part in parts:
            copied, own = entered[collection]["feedback"][part], entered[collection]["global"][part]
            jax.tree.map(np.testing.assert_array_equal, copied, own)
            pairs = zip(jax.tree.leaves(copied), jax.tree.leaves(own), strict=True)
            assert all(a is not b for a, b in pairs)  # a donated state must not hold one array twice
    for part in ("fpn", "smoothing"):
        assert entered["params"]["feedback"][part] is variables["params"]["feedback"][part]
    assert np.any(before["params"]["feedback"]["head"]["kernel"] != entered["params"]["feedback"]["head"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def alive(gradients):
    return {k: bool(np.abs(g).max() > 0) for k, g in flatten_dict(gradients, sep="/").items()}


def test_gradients_of_the_second_stage_and_its_regulariser(key):
    """With the context held nothing reaches the global branch, and everything all else.

    Facts 1.8: the regulariser reaches the local features and 26 of the 28 tensors of the local head, all but the classifier.
    """
    model = small()
    variables = trained(model)
    image, patches, boxes = inputs(key)
    rng = np.random.default_rng(0)
    batch = {
        "global_labels": jnp.asarray(rng.integers(0, 5, (1, SIZE, SIZE))),
        "patch_labels": jnp.asarray(rng.integers(0, 5, (1, 9, PATCH, PATCH))),
        "valid": jnp.ones((1, 9), bool),
    }

    @jax.jit
    def gradients(params):
        apply = lambda params, *args: model.apply({**variables, "params": params}, *args[1:], method=args[0])  # noqa: E731

        def losses(params, features):
            context = jax.lax.stop_gradient(apply(params, "encode_global", image))
            terms = loss_terms(configs.LossConfig(), *apply(params, "fuse", context, features, boxes), batch)
            assert set(terms) == {"fused", "local", "regulariser"}
            return sum(terms.values()), terms["regulariser"]

        features, through_encoding = jax.vjp(lambda params: apply(params, "encode_local", patches), params)
        _, back = jax.vjp(losses, params, features)
        (all_of_it, maps), (regulariser, its_maps) = back((1.0, 0.0)), back((0.0, 1.0))
        return jax.tree.map(jnp.add, all_of_it, *through_encoding(maps)), regulariser, its_maps

    everything, regulariser, maps = gradients(variables["params"])
    found = {root: alive(tree) for root, tree in everything.items()}
    assert not any(found["global"].values()) and all(found["local"].values()) and all(found["fusion"].values())

    head = alive({k: v for k, v in regulariser["local"].items() if k != "resnet"})
    assert len(head) == 28 and [k for k, v in head.items() if not v] == ["head/bias", "head/kernel"]
    assert not any(alive(regulariser["fusion"]).values())
    assert all(np.abs(maps[f"c{i}"]).max() > 0 for i in (2, 3, 4, 5))


def test_gradients_and_statistics_of_the_third_stage(key):
    model = small(mutual=True)
    fns, variables, (image, patches, boxes) = jitted(model), trained(model), inputs(key)

    def whole(held):
        params = {**variables["params"], **held}
        (logits, out), new = model.apply(
            {**variables, "params": params}, image, patches, boxes, train=True, mutable=["batch_stats"]
        )
        return logits.mean() + out["global/logits"].mean(), {k: new["batch_stats"][k] for k in ("global", "local")}

    held = {k: variables["params"][k] for k in ("global", "local")}
    gradients, stats = jax.jit(jax.grad(whole, has_aux=True))(held)
    assert not any(alive(gradients).values())
    jax.tree.map(np.testing.assert_array_equal, stats, {k: variables["batch_stats"][k] for k in stats})

    first, features = fns["encode_global"](variables, image), fns["encode_local"](variables, patches)
    kept, gathered = fns["collect"](variables, first, features, boxes, jnp.ones((1, 9), bool))

    def second(trained):
        all_params = {**variables, "params": {**variables["params"], **trained}}
        context, new = model.apply(
            all_params, first, gathered, image, train=True, method="encode_again", mutable=["batch_stats"]
        )
        logits, _ = model.apply(all_params, context, kept, boxes, method="fuse_again")
        return (logits**2).mean() + (context["logits"] ** 2).mean(), new["batch_stats"]["feedback"]

    changing = {k: variables["params"][k] for k in ("feedback", "fusion")}
    gradients, stats = jax.jit(jax.grad(second, has_aux=True))(changing)
    assert all(alive(gradients).values())
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), stats, variables["batch_stats"]["feedback"])
    assert all(jax.tree.leaves(changed))


# ----------------------------------------------------------------------------------------------------------------- weights
LAYERS = {"lateral5": "toplayer", "lateral4": "latlayer1", "lateral3": "latlayer2", "lateral2": "latlayer3"}
LAYERS |= {"head": "classify", "all": "smooth"}
LAYERS |= {"first5": "smooth1_1", "first4": "smooth2_1", "first3": "smooth3_1", "first2": "smooth4_1"}
LAYERS |= {"second5": "smooth1_2", "second4": "smooth2_2", "second3": "smooth3_2", "second2": "smooth4_2"}


def to_release(variables, roots):
    """A state dict in the release's layout of some roots of our variables."""
    out = {}
    for path, array in flatten_dict({c: {r: t[r] for r in roots if r in t} for c, t in variables.items()}).items():
        _, root, *modules, leaf = path
        leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        which = "local" if root == "local" else "global"
        if root == "fusion":
            name = "ensemble_conv"
        elif modules[0] == "resnet":
            name = modules[1]
            if name.startswith("stage"):
                stage, block = name[5], int(name.split("_block")[1])
                part = modules[2].replace("shortcut_conv", "downsample.0").replace("shortcut_norm", "downsample.1")
                name = f"layer{stage}.{block - 1}.{part.replace('norm', 'bn')}"
            name = f"resnet_{which}.{name.replace('stem_conv', 'conv1').replace('stem_norm', 'bn1')}"
        else:
            layer = LAYERS[modules[-1]]
            name = f"fpn_{which}.{layer}{'_ext' * (root == 'feedback' and layer not in ('classify', 'smooth'))}"
        array = np.asarray(array)
        out[f"{name}.{leaf}"] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return out


@pytest.fixture(scope="module")
def released():
    """A small G<=>L network's variables, and the checkpoints of stages 2 and 3 that they would be."""
    variables = trained(small(mutual=True), 3)
    feedback = to_release(variables, ["feedback"])
    first = feedback | to_release(variables, ["global", "local", "fusion"])  # a checkpoint has every module
    third = first | feedback
    return variables, first, third


def same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_checkpoints_of_the_release(released):
    variables, first, third = released
    plain = {c: {r: t for r, t in tree.items() if r != "feedback"} for c, tree in variables.items()}
    same(weights.from_glnet(first), plain)
    extras = {"resnet_global.fc.weight": np.zeros((10, 64)), "resnet_local.bn1.num_batches_tracked": np.array(3)}
    same(weights.from_glnet({f"module.{k}": v for k, v in (first | extras).items()}), plain)
    same(weights.from_glnet(third, global_fixed=first), variables)
    assert any("_ext" in k for k in third) and len(third) == len(first)


def test_checkpoints_that_do_not_fit(released, tmp_path):
    _, first, third = released
    lacking = {k: v for k, v in first.items() if k not in ("fpn_local.smooth3_1.bias", "ensemble_conv.weight")}
    with pytest.raises(
        UserError, match="lacks ensemble_conv.weight, fpn_local.smooth3_1.bias; GLNet lacks fpn_local.sm"
    ):
        weights.from_glnet(lacking | {"fpn_local.smooth9_1.bias": np.zeros(3)})
    with pytest.raises(UserError, match=r"shapes differ: fpn_local.latlayer1.weight"):
        weights.from_glnet(first | {"fpn_local.latlayer1.weight": np.zeros((16, 32, 1, 1))})
    with pytest.raises(UserError, match="lacks fpn_global.toplayer.bias"):
        weights.from_glnet(third, global_fixed={k: v for k, v in first.items() if k != "fpn_global.toplayer.bias"})
    with pytest.raises(UserError, match="no checkpoint of GLNet's release"):
        weights.from_glnet({"conv1.weight": np.zeros((8, 3, 7, 7))})
    with pytest.raises(UserError, match="there is no checkpoint at"):
        weights.from_glnet(tmp_path / "none.pth")


# -------------------------------------------------------------------------------------------------------------- evaluation
def scene(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("mode", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_evaluation_of_an_image(released, mode):
    """By hand from the network's parts: resized view, patch grid, nearest cells, sums."""
    variables, image = released[0], scene(150, 130)
    options = dict(size=96, sub_batch=3, **SMALL)
    assert release_raises(*(cropping.axis_crops(n, 96, 96) for n in image.shape[:2]), mode, 3) is None
    found = glnet_predict(variables, image, mode, **options)
    assert set(found) == ({"global"} if mode == 1 else {"global", "local", "aggregated"})
    assert all(v.shape == (150, 130, 5) and v.dtype == np.float32 and np.isfinite(v).all() for v in found.values())
    from PIL import Image

    view = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BILINEAR), np.float32)[None] / 255
    fns = jitted(small(mutual=True, strict=True))  # whose second stage is that of the network without a third
    context = fns["encode_global"](variables, jnp.asarray(view))
    if mode > 1:
        windows = [(top, left, 96, 96) for top in (0, 27, 54) for left in (0, 34)]
        boxes = jnp.asarray(np.stack([geometry.box_of(w, (0, 0, 150, 130)) for w in windows])[None])
        pieces = np.stack([image[t : t + 96, x : x + 96] for t, x, _, _ in windows])[None].astype(np.float32) / 255
        if mode == 3:
            logits, out = fns["__call__"](variables, jnp.asarray(view), jnp.asarray(pieces), boxes)
            context = {"logits": out["global/logits"]}
        else:
            logits, out = fns["fuse"](variables, context, fns["encode_local"](variables, jnp.asarray(pieces)), boxes)
        for name, values in (("aggregated", logits), ("local", out["local/logits"])):
            canvas = np.zeros((150, 130, 5))
            for (top, left, _, _), patch in zip(windows, np.asarray(values)[0], strict=True):
                canvas[top : top + 96, left : left + 96] += patch.repeat(4, 0).repeat(4, 1)
            np.testing.assert_allclose(found[name], canvas, rtol=1e-3, atol=1e-3 * np.abs(canvas).max())
    rows, columns = (np.arange(n) * 24 // n for n in (150, 130))
    wanted = np.asarray(context["logits"])[0][rows[:, None], columns[None]]
    np.testing.assert_allclose(found["global"], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(("height", "width"), [(61, 133), (96, 96), (192, 250)])
def test_evaluation_of_awkward_sizes(released, height, width):
    """What the release refuses, the exact form takes: images no larger than a patch, crops cut short at the end."""
    variables, image = released[0], scene(height, width)
    options = dict(size=96, sub_batch=3, **SMALL)
    with pytest.raises(UserError, match="take strict=False"):
        glnet_predict(variables, image, 3, **options)
    found = glnet_predict(variables, image, 3, strict=False, **options)
    assert all(v.shape == (height, width, 5) and np.isfinite(v).all() for v in found.values())


def test_bad_options_are_told(released):
    with pytest.raises(UserError, match="model.norm is 'layer'"):
        small(norm="layer")
    with pytest.raises(UserError, match="mode is 4"):
        glnet_predict(released[0], scene(150, 130), 4)
    plain = {"params": {"global": {}}}
    with pytest.raises(UserError, match="second global branch"):
        glnet_predict(plain, scene(150, 130), 3)
