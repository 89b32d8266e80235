"""The network: its start, its gradients, its independence of patches, its geometry, its size."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import config as configs
from glcanet_jax import geometry, models
from glcanet_jax.errors import UserError
from glcanet_jax.measure import info
from glcanet_jax.models.layers import fpn, resnet, sampling
from glcanet_jax.training import optim, phases
from glcanet_jax.training.step import loss_terms
from tests.drawn import drawn

SMALL = dict(depth=10, width=8, fpn_channels=16, fast_conv=False)  # what compiles fast
SIZE, PATCH = 100, 68


def inputs(key, b=2, n=3, bands=3):
    keys = jax.random.split(key, 2)
    image = jax.random.normal(keys[0], (b, SIZE, SIZE, bands))
    patches = jax.random.normal(keys[1], (b, n, PATCH, PATCH, bands))
    corners = jnp.array([[0.0, 0.0], [0.3, 0.45], [0.6, 0.6]])[:n]
    boxes = jnp.broadcast_to(jnp.concatenate([corners, corners + 0.4], axis=1)[None], (b, n, 4))
    return image, patches, boxes


@cache
def jitted(model):
    """The functions of a model, compiled: eager ones compile every operation by itself. Tests of one model share them."""
    fns = models.functions(model)
    return models.Functions(*(jax.jit(f, static_argnames="train") for f in fns))


@cache
def fresh(model):
    """As it begins."""
    return models.init(model, jax.random.key(0), 3)


def small(**options):
    return models.build("glcanet", 5, **{**SMALL, **options})


NONLINEAR = {"head": "nonlinear", "feed_forward": 2, "residual": "input"}
OPTIONS = [
    {},
    {"sharing": "glnet"},
    {"share_backbone": True, "norm": "frozen", "mask": "window", "mask_radius": 60.0},
    pytest.param(NONLINEAR, marks=pytest.mark.slow),  # whose functions other tests call
    pytest.param({"residual": "input"}, marks=pytest.mark.slow),
    pytest.param({"mask": "none", "position": None, "heads": 2}, marks=pytest.mark.slow),
    pytest.param({"attn_levels": (5, 4, 3, 2)}, marks=pytest.mark.slow),
    pytest.param({"head": "nonlinear", "sharing": "glnet", "fpn_channels": 8}, marks=pytest.mark.slow),
    pytest.param({"norm": "group", "stride": "v1", "depth": 50}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_three_functions_compose(key, options):
    model = small(**options)
    fns, variables = jitted(model), drawn(model)

    def both(variables, image, patches, boxes):
        context = fns.encode_global(variables, image)
        again, _ = fns.fuse(variables, context, fns.encode_local(variables, patches), boxes)
        return fns.apply(variables, image, patches, boxes), again

    # one program: what the two have in common is compiled once; of the plain network other tests share the parts
    if options:
        both = jax.jit(both)
    (logits, out), again = both(variables, *inputs(key))
    assert logits.shape == (2, 3, 17, 17, 5) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, again, atol=2e-5)
    assert {"global/p5", "local/logits", "global/logits", "local/x"} <= set(out)
    if options.get("sharing") != "glnet":
        assert "fused/p4" in out
    assert ("resnet" in variables["params"]["local"]) != options.get("share_backbone", False)


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({"residual": "query"}, "affine"),
        pytest.param({"residual": "input"}, "affine", marks=pytest.mark.slow),
        pytest.param({"feed_forward": 2}, "nonlinear", marks=pytest.mark.slow),
        pytest.param({"residual": "input", "feed_forward": 2}, "nonlinear", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_starts_as_the_network_without_attention_and_lem(key, options, head):
    model = small(head=head, **options)
    plain = small(head=head, attn_levels=(), self_attention=False, lem=False)
    variables = fresh(model)
    flat = flatten_dict(variables)
    bare = unflatten_dict({k: flat[k] for k in flatten_dict(models.shapes(plain, 3))})
    logits, out = jitted(model).apply(variables, *inputs(key))
    expected, plain_out = jitted(plain).apply(bare, *inputs(key))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(out["global/logits"], plain_out["global/logits"], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "nonlinear", "feed_forward": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"residual": "input"}, marks=pytest.mark.slow),
        pytest.param({"head": "nonlinear", "sharing": "glnet"}, marks=pytest.mark.slow),
        pytest.param({"mask": "window", "mask_radius": 60.0}, marks=pytest.mark.slow),
        pytest.param({"attn_levels": (5, 4, 3, 2)}, marks=pytest.mark.slow),
        pytest.param({"sharing": "glnet"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_parameter_has_a_gradient_after_one_step(key, options):
    """From the real initialisation, without perturbing it: zero starts must not be dead ends."""
    model = small(**options)
    variables = models.init(model, key, 3)
    image, patches, boxes = inputs(key)
    rng = np.random.default_rng(0)
    batch = {
        "global_labels": jnp.asarray(rng.integers(0, 5, (2, SIZE, SIZE))),
        "patch_labels": jnp.asarray(rng.integers(0, 5, (2, 3, PATCH, PATCH))),
        "valid": jnp.ones((2, 3), bool),
    }

    def loss(params):
        logits, out = models.functions(model).apply({**variables, "params": params}, image, patches, boxes, train=True)[
            0
        ]
        return sum(loss_terms(configs.LossConfig(), logits, out, batch).values())

    tx = optim.optimiser(configs.OptimiserConfig(), phases.plan("joint", 10, None))

    @jax.jit
    def step(params, state):
        gradient = jax.grad(loss)(params)
        return gradient, optax.apply_updates(params, tx.update(gradient, state, params)[0])

    state = jax.jit(tx.init)(variables["params"])
    _, params = step(variables["params"], state)
    gradient, _ = step(params, state)
    dead = [k for k, g in flatten_dict(gradient, sep="/").items() if not np.abs(g).max() > 0]
    assert not dead


@pytest.mark.parametrize("options", [{}, NONLINEAR], ids=str)  # norms are over a patch by itself
def test_patches_do_not_influence_each_other(key, options):
    model = small(**options)
    fns, variables, (image, patches, boxes) = jitted(model), drawn(model), inputs(key)
    context = fns.encode_global(variables, image)

    def answer(patches):
        return fns.fuse(variables, context, fns.encode_local(variables, patches), boxes)[0]

    together = answer(patches)
    assert together.shape == (2, 3, 17, 17, 5)
    for i in range(3):
        copies = jnp.broadcast_to(patches[:, i : i + 1], patches.shape)  # so many that the same program takes them
        alone = jax.tree.map(lambda x: x[:, :1], fns.encode_local(variables, copies))
        alone = fns.fuse(variables, context, alone, boxes[:, i : i + 1])[0]
        np.testing.assert_allclose(alone[:, 0], together[:, i], atol=2e-5 * np.abs(together).max())
    changed = answer(patches.at[:, 0].apply(jnp.abs))  # no multiple: norms undo that
    np.testing.assert_array_equal(changed[:, 1:], together[:, 1:])
    assert np.abs(changed[:, 0] - together[:, 0]).max() > 1e-3


def test_a_gradient_reaches_both_views_and_the_mask_hides(key):
    """What a patch does not see is not heard, and what it says of the global map is zero there."""
    model = small(mask_margin=0.0)
    fns, variables, boxes = models.functions(model), drawn(model), inputs(key)[2]
    coarse, fine = geometry.cells(SIZE, 32), geometry.cells(SIZE, 16)  # of P5, and of P4

    @jax.jit
    def gradients(image, patches, nudge):
        def answers(image, patches, nudge):
            context = fns.encode_global(variables, image)
            context["p5"] += nudge  # which is zero: what P5 alone, as a patch sees it, is heard by
            logits, out = fns.fuse(variables, context, fns.encode_local(variables, patches), boxes)
            return (logits.sum(), out["fused/p5"][:, 0].sum()), out["fused/d4"]

        _, back, change = jax.vjp(answers, image, patches, nudge, has_aux=True)
        return back((1.0, 0.0))[:2], back((0.0, 1.0))[2], change

    image, patches, _ = inputs(key)
    views, heard, change = gradients(image, patches, jnp.zeros((2, coarse, coarse, SMALL["fpn_channels"])))
    assert all(np.abs(g).max() > 0 for g in views)

    def visible(cells, stride):
        centre = geometry.cell_centres(cells, stride, SIZE)
        inside = (centre >= 0.0) & (centre <= 0.4)  # the box of the first patch
        return inside[:, None] & inside[None]

    np.testing.assert_array_equal(np.abs(heard).sum(-1) > 0, [visible(coarse, 32)] * 2)
    change, seen = np.asarray(change)[:, 0], visible(fine, 16)
    assert (change[:, ~seen] == 0).all() and (np.abs(change[:, seen]) > 0).any(-1).all()


BOTH_HEADS = [{}, pytest.param({"head": "nonlinear", "feed_forward": 2}, marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"head": "nonlinear", "feed_forward": 2}], ids=str)
def test_remat_changes_no_gradient(key, options):
    plain, remat = small(**options), small(remat=True, **options)
    variables = models.init(plain, key, 3)

    def gradient(model):
        fn = lambda p: models.functions(model).apply({**variables, "params": p}, *inputs(key), train=True)[0][0].sum()  # noqa: E731
        return jax.jit(jax.grad(fn))(variables["params"])

    for a, b in zip(jax.tree.leaves(gradient(plain)), jax.tree.leaves(gradient(remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", BOTH_HEADS, ids=str)
def test_bfloat16(key, options):
    plain, half = small(**options), small(dtype="bfloat16", **options)
    variables, args = fresh(plain), inputs(key)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(models.shapes(half, 3)))
    logits, out = jitted(half).apply(variables, *args)
    assert out["local/x"].dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    exact = jitted(plain).apply(variables, *args)[0]
    assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def joint_effect(model, variables, image, patches, boxes):
    """How far the logits of a patch are from a sum of what each view says: the mixed difference of two views twice."""
    patches, boxes = jnp.broadcast_to(patches[:1], patches.shape), jnp.broadcast_to(boxes[:, :1], boxes.shape)
    says = np.asarray(jitted(model).apply(variables, image, patches, boxes)[0])  # of scenes and patches, each with each
    one, other = says[0, 0] - says[1, 0], says[0, 1] - says[1, 1]
    return np.abs(one - other).max() / np.abs(one).max()


@pytest.mark.parametrize("head", ["affine", "nonlinear"])
def test_what_the_head_can_say_of_both_views_together(key, head):
    """Without attention, an affine head answers with a sum of two views' answers; the other does not."""
    model = small(head=head, attn_levels=(), self_attention=False)
    effect = joint_effect(model, drawn(model), *inputs(key))
    assert (effect < 1e-3) == (head == "affine") and (effect > 0.05) == (head == "nonlinear")


@pytest.mark.parametrize("channels", [4, 8, 24, 128])
def test_the_norms_of_a_head_keep_what_is_alike_all_over_a_patch(key, channels):
    """In groups of one channel a constant map would leave no trace."""
    norm = fpn.group_norm(jnp.float32)()
    x = jnp.broadcast_to(jax.random.normal(key, (1, 1, 1, channels)), (2, 5, 5, channels))
    y, _ = jax.jit(norm.init_with_output)(key, x)
    assert y.std() > 0.9


# ------------------------------------------------------------------------------------------------------------ geometry
@pytest.mark.parametrize("size", [97, 256, 500])
def test_upsampling_of_a_ramp_is_exact(size):
    grids = {i: geometry.cells(size, 2**i) for i in (0, 2, 3, 4, 5)}
    pairs = [(coarse, fine) for coarse, fine in itertools.product((5, 4, 3, 2), (4, 3, 2, 0)) if fine < coarse]
    at = {i: 2.0**i * np.arange(count) for i, count in grids.items()}
    ramps = {i: np.add.outer(3 * at[i], at[i])[None, ..., None].astype(np.float32) for i in (5, 4, 3, 2)}

    @jax.jit
    def upsampled(ramps):
        return {(coarse, fine): sampling.upsample(ramps[coarse], (grids[fine],) * 2) for coarse, fine in pairs}

    for (coarse, fine), out in upsampled(ramps).items():
        clamp = np.minimum(at[fine], at[coarse][-1])
        np.testing.assert_allclose(out[0, ..., 0], np.add.outer(3 * clamp, clamp), rtol=1e-6, atol=1e-4)


@partial(jax.jit, static_argnames=("count", "stride"))
def sampled(ramp, boxes, *, count, stride):
    size = jnp.full((1, 2), 500.0)
    return sampling.sample_boxes(ramp, boxes, (count, count), stride, size[None], size)


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.37, 0.55), (0.0, 0.0, 0.204, 0.204), (0.796, 0.5, 1.0, 0.704)])
@pytest.mark.parametrize("level", [2, 5])
def test_a_ramp_sampled_at_fractional_boxes_comes_back_exact(box, level):
    stride = 2**level
    count = geometry.cells(500, stride)
    centre = geometry.cell_centres(count, stride, 500).astype(np.float64)
    ramp = jnp.asarray(np.stack(np.meshgrid(centre, centre, indexing="ij"), -1)[None], jnp.float32)
    boxes = jnp.asarray(box, jnp.float32)[None, None]
    out = np.asarray(sampled(ramp, boxes, count=count, stride=stride))[0, 0]
    for axis in (0, 1):
        place = box[axis] + centre * (box[axis + 2] - box[axis])
        expected = np.clip(place, centre[0], centre[-1])
        got = out[:, 0, 0] if axis == 0 else out[0, :, 1]
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_cells_are_centred_where_the_geometry_says(key):
    """The centre of gravity of the gradient of a cell, in a ResNet whose weights are all alike; an image for each level."""
    model = resnet.ResNet(depth=18, width=4, norm=resnet.norm_layer("frozen"))
    size, levels = 1024, (2, 3, 4, 5)
    shapes = jax.eval_shape(model.init, key, jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32))

    def alike(path, x):
        return np.full(
            x.shape, 8 / np.prod(x.shape[:-1]) if x.ndim == 4 else path[-1].key in ("scale", "var"), np.float32
        )

    variables = jax.tree_util.tree_map_with_path(alike, shapes)
    counts = [geometry.cells(size, 2**level) for level in levels]
    cells = [count // 2 for count in counts]

    def answers(x):
        maps = model.apply(variables, x)
        return sum(
            maps[f"c{level}"][i, cell, cell].sum() for i, (level, cell) in enumerate(zip(levels, cells, strict=True))
        )

    noise = np.random.default_rng(0).standard_normal((len(levels), size, size, 1))
    weights = np.abs(jax.jit(jax.grad(answers))(jnp.asarray(1 + 0.01 * noise, jnp.float32)))[..., 0]
    for weight, level, count, cell in zip(weights, levels, counts, cells, strict=True):
        centre = (weight.sum(1) * np.arange(size)).sum() / weight.sum()
        expected = geometry.cell_centres(count, 2**level, size)[cell] * size - 0.5
        assert abs(centre - expected) <= 2, level


def test_non_square_views():
    """Shapes; the answers are in test_collapse.py."""
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")  # noqa: E731
    model = small()
    given = models.shapes(model, 3), spec(1, 96, 64, 3), spec(1, 2, 64, 80, 3), spec(1, 2, 4)
    logits, _ = jax.eval_shape(models.functions(model).apply, *given)
    assert logits.shape == (1, 2, 16, 20, 5)


# --------------------------------------------------------------------------------------------------------- size and cost
SIZES = {  # options: parameters of global, local and fusion; GFLOP of a context and of a patch, both of 500 px
    (): (28589127, 28770503, 1114119, 86.60, 95.77),
    (("depth", 18),): (15520327, 15676743, 1114119, 60.27, 68.68),
    (("depth", 34),): (25628487, 25784903, 1114119, 79.34, 87.74),
    (("share_backbone", True),): (28589127, 5262471, 1114119, 86.60, 95.77),
    (("attn_levels", ()),): (28589127, 28770503, 64519, 86.60, 91.56),
    (("attn_levels", (5, 4, 3, 2)),): (28589127, 28770503, 2163719, 86.60, 672.59),
    (("sharing", "glnet"), ("self_attention", False)): (28064839, 36504263, 1047559, 100.36, 274.81),
    (("lem", False),): (28589127, 28589127, 1114119, 86.60, 90.14),
    (("self_attention", False),): (28064839, 28246215, 1114119, 84.79, 93.96),
    (("mask", "none"),): (28589127, 28770503, 1114119, 86.60, 95.77),
    (("norm", "group"),): (28589127, 28770503, 1114119, 86.60, 95.77),
    (("fpn_channels", 128),): (25032775, 25214151, 294919, 54.87, 61.81),
    (("heads", 4),): (28589127, 28770503, 1114119, 86.60, 95.77),
    (("feed_forward", 4),): (29641287, 29822663, 3218439, 87.94, 99.80),
    (("head", "nonlinear"),): (26820167, 27001543, 1188999, 69.17, 77.99),
    (("head", "nonlinear"), ("feed_forward", 2)): (27347015, 27528391, 2242695, 69.84, 80.00),
    (("head", "nonlinear"), ("fpn_channels", 128)): (24590663, 24772039, 299591, 50.26, 57.32),
    (("head", "nonlinear"), ("attn_levels", ())): (26820167, 27001543, 139399, 69.17, 73.69),
    (("head", "nonlinear"), ("sharing", "glnet"), ("self_attention", False)): (
        26295879,
        32966343,
        1122439,
        82.94,
        239.17,
    ),
}


# one of each way that the code can go; the other rows are the same code with another number, and counted when asked for
COUNTED = [
    (),
    (("head", "nonlinear"), ("feed_forward", 2)),
]


@pytest.mark.parametrize(
    "options", [pytest.param(o, marks=() if o in COUNTED else pytest.mark.slow) for o in SIZES], ids=str
)
def test_size_and_cost(options):
    model = models.build("glcanet", 7, **dict(options))
    count, cost = info.parameters(model), info.flops(model, geometry.Views())
    got = (count["global"], count["local"], count["fusion"], round(cost["context"], 2), round(cost["patch"], 2))
    assert got == SIZES[options]
    assert count["total"] == sum(got[:3])


def test_a_nonlinear_head_costs_less():
    """Of a context and of a patch, however wide the pyramid is and whatever is shared."""
    pairs = [(o, tuple(kv for kv in o if kv[0] != "head")) for o in SIZES if ("head", "nonlinear") in o]
    pairs = [(o, plain) for o, plain in pairs if plain in SIZES]
    assert len(pairs) == 4
    for options, plain in pairs:
        assert all(new < old for new, old in zip(SIZES[options][3:], SIZES[plain][3:], strict=True))


def test_cost_of_glnet_is_the_published_one():
    """GLNet's own G=>L costs 9.95 TFLOP for 36 patches of a 2448-px scene."""
    _, _, _, context, patch = SIZES[(("sharing", "glnet"), ("self_attention", False))]
    assert (context + 36 * patch) / 1e3 == pytest.approx(9.95, rel=0.02)


def test_the_default_costs_three_and_a_half_teraflop():
    parameters, (context, patch) = sum(SIZES[()][:3]), SIZES[()][3:]
    assert parameters == pytest.approx(58.5e6, rel=0.001)
    assert (context + 36 * patch) / 1e3 == pytest.approx(3.5, rel=0.05)


def test_counted_operations(key):
    """By hand, and against XLA's own count where nothing loops."""
    x, kernel = jnp.ones((2, 9, 11, 3)), jnp.ones((3, 3, 3, 8))

    def twice(x):
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.map(lambda row: row @ jnp.ones((8, 4)), y)

    assert info.count_flops(jax.make_jaxpr(twice)(x)) == 2 * (2 * 5 * 6 * 8 * 27 + 2 * 5 * 6 * 8 * 4)
    cells = (2 * 9 * 11 * 3 + 27 * 8 + 2 * 5 * 6 * 8) + 2 * (5 * 6 * 8 + 8 * 4 + 5 * 6 * 4)
    assert info.count_bytes(jax.make_jaxpr(twice)(x)) == 4 * cells
    strided = lambda x: jax.lax.conv(x, jnp.ones((8, 8, 3, 3)), (2, 2), "SAME").sum()  # noqa: E731
    forward, both = (
        info.count_flops(jax.make_jaxpr(f)(jnp.ones((1, 8, 32, 32)))) for f in (strided, jax.grad(strided))
    )
    assert both - forward == pytest.approx(forward, rel=0.05)  # as many operations back as there, zeros left out
    model, image = small(), jnp.ones((1, 128, 128, 3))
    variables = models.shapes(model, 3)
    encode = models.functions(model).encode_global
    xla = jax.jit(encode).lower(variables, image).cost_analysis()["flops"]
    ours = info.count_flops(jax.make_jaxpr(encode)(variables, image))
    assert ours == pytest.approx(xla, rel=0.1)  # XLA adds sums and activations and leaves out what meets padding


def test_bad_options_are_told():
    with pytest.raises(UserError, match="perhaps you meant 'glcanet'"):
        models.build("glcanets", 5)
    with pytest.raises(UserError, match="perhaps you meant 'mask'"):
        models.build("glcanet", 5, maks="none")
    with pytest.raises(UserError, match="must be one of"):
        models.init(small(mask="round"), jax.random.key(0), 3)
    with pytest.raises(UserError, match="model.head is 'linear'; it must be one of 'affine', 'nonlinear'"):
        small(head="linear")
    with pytest.raises(UserError, match="model.feed_forward is -1; it must be 0"):
        models.build("branch", 5, feed_forward=-1)
