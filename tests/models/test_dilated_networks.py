"""PSPNet, DeepLabv3+, ICNet, EncNet, RefineNet and the FCN with CBAM, and the dilated ResNet and the pooling that they stand on."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models.cbam import CBAMFCN
from glcanet_jax.models.deeplabv3plus import DeepLabV3Plus
from glcanet_jax.models.encnet import EncNet
from glcanet_jax.models.icnet import ICNet
from glcanet_jax.models.layers import encoding, pooling
from glcanet_jax.models.layers.resnet import BLOCKS, ResNet, norm_layer
from glcanet_jax.models.pspnet import PSPNet
from glcanet_jax.models.refinenet import RefineNet
from tests.drawn import begun

SMALL = dict(depth=10, width=8, fast_conv=False)  # what compiles fast
NETWORKS = {
    "pspnet": (PSPNet, SMALL),
    "deeplabv3plus": (DeepLabV3Plus, {**SMALL, "channels": 16, "low_channels": 8}),
    "icnet": (ICNet, SMALL),
    "encnet": (EncNet, {**SMALL, "channels": 16, "codewords": 4, "lateral": True}),
    "refinenet": (RefineNet, {**SMALL, "channels": 8, "coarse_channels": 16}),
    "cbam": (CBAMFCN, {**SMALL, "reduction": 2}),
}
# their strides
AUXILIARY = {
    "pspnet": {"aux": 1},
    "deeplabv3plus": {},
    "icnet": {"sub4": 16, "sub24": 8},
    "encnet": {"aux": 1},
    "refinenet": {},
    "cbam": {"aux": 1},
}
STRIDE = {"pspnet": 1, "deeplabv3plus": 1, "icnet": 4, "encnet": 1, "refinenet": 4, "cbam": 1}
BANDS, CLASSES, SIZE = 2, 5, (49, 38)
SELDOM = ("encnet", "refinenet", "cbam")  # made of parts whose tests with the others run every time
every_network = pytest.mark.parametrize("name", NETWORKS)


def all_but(*seldom):
    """The networks, those that are tested now and then marked so."""
    marks = {n: (pytest.mark.slow,) if n in seldom else () for n in NETWORKS}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks[n]) for n in NETWORKS])


most_networks = all_but(*SELDOM)


def small(name, **options):
    network, defaults = NETWORKS[name]
    return network(CLASSES, **{**defaults, **options})


@cache
def shapes_of(model, bands=BANDS):
    return begun(model, SIZE, bands)[1]


def drawn(shapes):
    """Random variables, statistics and scales around one."""
    rng = np.random.default_rng(0)

    def draw(path, a):
        if a.ndim > 1:
            return rng.standard_normal(a.shape) * (2 / np.prod(a.shape[:-1])) ** 0.5
        return 0.2 * rng.standard_normal(a.shape) + (path[-1].key in ("scale", "var"))

    return jax.tree_util.tree_map_with_path(lambda path, a: jnp.asarray(draw(path, a), a.dtype), shapes)


@cache
def variables_of(name, norm="batch"):
    return drawn(shapes_of(small(name, norm=norm)))


def image(b=1):
    return jax.random.normal(jax.random.key(1), (b, *SIZE, BANDS))


@cache
def still(model):
    return jax.jit(model.apply)


@cache
def step(model):
    """Of variables, images and a key: (logits, out) of a training step, and the new statistics."""
    return jax.jit(lambda v, x, k: model.apply(v, x, train=True, rngs={"dropout": k}, mutable=["batch_stats"]))


def cells(size, stride):
    return tuple(-(-n // stride) for n in size)


# ------------------------------------------------------------------------------------------------------------- networks
@every_network
@pytest.mark.parametrize(("size", "bands"), [((97, 130), 3), ((64, 33), 1), ((5, 9), 7), ((1, 1), 2)])
def test_shapes_at_any_size(name, size, bands):
    model = small(name)
    (logits, out), variables = begun(model, size, bands, b=2)
    if bands == BANDS:  # variables are those of any other size
        assert variables == shapes_of(model)
    assert logits.shape == (2, *cells(size, STRIDE[name]), CLASSES) and logits.dtype == "float32"
    strides = {
        "pspnet": {"c2": 4, "c3": 8, "c4": 8, "c5": 8, "pyramid": 8, "fused": 8},
        "deeplabv3plus": {"c2": 4, "c3": 8, "c4": 16, "c5": 16, "aspp": 16, "decoded": 4},
        "encnet": {"c2": 4, "c3": 8, "c4": 8, "c5": 8, "weighed": 8},
        "cbam": {"c2": 4, "c3": 8, "c4": 8, "c5": 8},
        "refinenet": {"c2": 4, "c3": 8, "c4": 16, "c5": 32, "r5": 32, "r4": 16, "r3": 8, "r2": 4},
        "icnet": {"sub1": 8, "sub2": 16, "c3": 32, "c5": 32, "pyramid": 32, "sub4": 32, "sub24": 16, "sub12": 8},
    }[name]
    assert {k: out[k].shape[1:3] for k in strides} == {k: cells(size, s) for k, s in strides.items()}
    first = [v.shape for k, v in flatten_dict(variables["params"]).items() if k[-2:] == ("stem_conv", "kernel")]
    assert len(first) == 1 and first[0][2] == bands


@every_network
def test_auxiliary_logits_are_there_in_training_only(name):
    model, variables = small(name), variables_of(name)
    assert all(isinstance(w, float) for w in models.auxiliary(model).values())
    assert set(models.auxiliary(model)) == set(AUXILIARY[name])
    _, out = jax.eval_shape(still(model), variables, image())
    assert not [k for k in out if k.endswith("/logits")]
    (_, out), new = jax.eval_shape(step(model), variables, image(3), jax.random.key(0))
    got = {k.removesuffix("/logits"): v for k, v in out.items() if k.endswith("/logits")}
    assert {k: v.shape[1:] for k, v in got.items()} == {
        k: (*cells(SIZE, s), CLASSES) for k, s in AUXILIARY[name].items()
    }
    assert all(v.dtype == jnp.float32 for v in got.values())
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


@most_networks
def test_the_logits_do_not_hear_the_auxiliary_heads(name):
    """Neither do they hear ``train``, with group norms and no dropout."""
    options = {"norm": "group"} | ({} if name == "icnet" else {"dropout": 0})
    model, variables = small(name, **options), variables_of(name, "group")
    logits, _ = still(model)(variables, image())
    (again, _), _ = step(model)(variables, image(), jax.random.key(0))
    np.testing.assert_allclose(again, logits, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3plus"])
def test_dropout_is_seeded_and_in_training_only(name):
    model, variables = small(name, norm="group"), variables_of(name, "group")
    one, same, other = (step(model)(variables, image(), jax.random.key(i))[0][0] for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()
    logits, _ = still(model)(variables, image())  # asks for no random numbers
    assert np.abs(one - logits).max() > 1e-3 * np.abs(one).max()


def loss_of(name, **options):
    """The weighted sum of the squares of all logits and of a network's own terms, a function of the parameters."""
    model, variables, x = small(name, **options), variables_of(name), image(3)
    names = {f"{k}/logits": w for k, w in models.auxiliary(model).items()}
    labels, own = jnp.zeros((3, *SIZE), jnp.uint8), models.own_loss(model)

    def loss(params):
        logits, out = step(model)({**variables, "params": params}, x, jax.random.key(0))[0]
        terms = own.terms(out, labels, jax.random.key(2)) if own else {}
        return (logits**2).mean() + sum(w * (out[k] ** 2).mean() for k, w in names.items()) + sum(terms.values())

    return loss, variables["params"]


@all_but("refinenet", "cbam")
def test_a_gradient_reaches_every_parameter(name):
    loss, params = loss_of(name)
    gradient = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    assert not [k for k, g in gradient.items() if not np.abs(g).max() > 0]


@most_networks
def test_networks_hand_remat_on(name):
    for remat, blocks in ((False, 0), (True, 4)):
        loss, params = loss_of(name, remat=remat)
        assert str(jax.make_jaxpr(loss)(params)).count("prevent_cse=") == blocks


@most_networks
def test_bfloat16_is_close(name):
    variables = variables_of(name)
    exact, _ = still(small(name))(variables, image())
    half = small(name, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(shapes_of(half))} == {jnp.dtype("float32")}
    logits, out = still(half)(variables, image())
    assert out["c5"].dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    kept = {k for k, v in out.items() if v.dtype != jnp.bfloat16}
    assert kept == {"logits"}  # nothing else slips into float32
    made = re.findall(r":(\w+)\[[^\]]*\] = conv_general_dilated", str(jax.make_jaxpr(still(half))(variables, image())))
    assert len(made) > 10 and set(made) == {"bf16"}


@every_network
def test_new_layers_of_a_frozen_backbone_can_learn(name):
    norms = ("frozen", "batch", "group")
    stats = {norm: set(shapes_of(small(name, norm=norm)).get("batch_stats", {})) for norm in norms}
    assert stats["frozen"] == {"resnet"} <= stats["batch"] and not stats["group"]
    assert (stats["batch"] == {"resnet"}) == (name == "refinenet")  # which has no norm of its own


BAD = {"depth": 42, "stride": "v2", "norm": "layer", "dtype": "float16", "stem": "wide"}


@pytest.mark.parametrize(("name", "option"), [(n, o) for n in NETWORKS for o in BAD if (n, o) != ("refinenet", "stem")])
def test_bad_options_are_told_at_once(name, option):
    with pytest.raises(UserError, match=f"model.{option}.*must be one of"):
        small(name, **{option: BAD[option]})


def test_bad_options_of_one_network():
    for wrong in (dict(output_stride=32), dict(depth=50, multi_grid=(1, 2)), dict(rates=(0, 6))):
        with pytest.raises(UserError, match=f"model.{list(wrong)[-1]}|must be"):
            small("deeplabv3plus", **wrong)
    with pytest.raises(UserError, match="model.codewords is 0"):
        small("encnet", codewords=0)
    for name in ("pspnet", "icnet"):
        for bins in ((), (0, 2)):
            with pytest.raises(UserError, match="model.bins"):
                small(name, bins=bins)


# ----------------------------------------------------------------------------------------------------------------- sizes
def conv(kernel, inputs, outputs, norm=True, bias=False):
    return kernel * kernel * inputs * outputs + 2 * outputs * norm + outputs * bias


def resnet50(width, stem):
    """From the layers: a stem, then 3, 4, 6 and 3 bottlenecks."""
    deep = conv(3, 3, width) + conv(3, width, width) + conv(3, width, 2 * width)
    total, inputs = (conv(7, 3, width), width) if stem == "conv7" else (deep, 2 * width)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outputs = width * 2**stage, 4 * width * 2**stage
        total += conv(1, inputs, outputs)
        for _ in range(blocks):
            total += conv(1, inputs, inner) + conv(3, inner, inner) + conv(1, inner, outputs)
            inputs = outputs
    return total


def pspnet(k, stem):
    new = 4 * conv(1, 2048, 512) + conv(3, 4096, 512) + conv(1, 512, k, norm=False, bias=True)
    return resnet50(64, stem) + new, conv(3, 1024, 256) + conv(1, 256, k, norm=False, bias=True)


def deeplabv3plus(k):
    pyramid = 2 * conv(1, 2048, 256) + 3 * conv(3, 2048, 256) + conv(1, 5 * 256, 256)
    decoder = conv(1, 256, 48) + conv(3, 304, 256) + conv(3, 256, 256) + conv(1, 256, k, norm=False, bias=True)
    return resnet50(64, "conv7") + pyramid + decoder, 0


def icnet(k, width):
    high = conv(3, 3, width) + conv(3, width, width) + conv(3, width, 2 * width)
    fusions = (conv(3, 8 * width, 4 * width) + conv(1, 8 * width, 4 * width)) + (
        conv(3, 4 * width, 4 * width) + conv(1, 2 * width, 4 * width)
    )
    heads = [conv(1, c * width, k, norm=False, bias=True) for c in (4, 8, 4)]
    return resnet50(width, "deep") + conv(1, 32 * width, 8 * width) + high + fusions + heads[0], sum(heads[1:])


def encnet(k, lateral):
    module = conv(1, 512, 512) + 32 * (512 + 1) + 2 * 32  # codewords, factors, and the norm over them
    sides = conv(1, 512, 512) + conv(1, 1024, 512) + conv(3, 3 * 512, 512) if lateral else 0
    dense = (512 + 1) * 512 + (512 + 1) * k  # gate and presence
    head = conv(3, 2048, 512) + sides + module + dense + conv(1, 512, k, norm=False, bias=True)
    return resnet50(64, "conv7") + head, conv(3, 1024, 256) + conv(1, 256, k, norm=False, bias=True)


def refinenet(k, channels, coarse):
    """Blocks on C5 to C2: reduced, two units, joined, four convolutions of the pooling, three units, handed over."""
    block = lambda c: 14 * conv(3, c, c, norm=False) + 5 * c  # noqa: E731
    reduce = conv(3, 2048, coarse, norm=False) + sum(conv(3, c, channels, norm=False) for c in (1024, 512, 256))
    joins, hands = 3 * conv(3, channels, channels, norm=False), 2 * conv(3, channels, channels, norm=False)
    hands += conv(3, coarse, channels, norm=False)
    decoder = reduce + block(coarse) + 3 * block(channels) + joins + hands
    return resnet50(64, "conv7") + decoder + conv(3, channels, k, norm=False, bias=True), 0


seldom = partial(pytest.param, marks=pytest.mark.slow)  # another number of classes
SIZES = [
    (PSPNet(21), pspnet(21, "conv7"), 46_592_597),
    seldom(PSPNet(150), pspnet(150, "conv7"), 46_658_774),
    (PSPNet(21, stem="deep"), pspnet(21, "deep"), 46_716_373),
    (DeepLabV3Plus(21), deeplabv3plus(21), 40_352_181),
    (DeepLabV3Plus(21, output_stride=8), deeplabv3plus(21), 40_352_181),
    (ICNet(19), icnet(19, 32), 6_699_987),
    (ICNet(12, width=64), icnet(12, 64), 26_732_684),
    (EncNet(7), encnet(7, False), 33_495_726),
    (EncNet(7, lateral=True), encnet(7, True), 41_363_118),
    (RefineNet(7), refinenet(7, 256, 512), 99_028_039),
    seldom(RefineNet(21), refinenet(21, 256, 512), 99_060_309),
    seldom(EncNet(6), encnet(6, False), 23_508_032 + 9_986_668),
]


@pytest.mark.parametrize(("model", "expected", "total"), SIZES)
def test_parameters(model, expected, total):
    params = parameters(model)
    heads = sum(n for k, n in params.items() if k.startswith(("aux", "sub")))
    assert (sum(params.values()) - heads, heads) == expected and expected[0] == total


def parameters(model):
    return {k: v.size for k, v in flatten_dict(shapes_of(model, 3)["params"], sep="/").items()}


def folded(model):
    """Parameters at inference with the norms folded into the convolutions: without their scales, in millions."""
    kept = [n for k, n in parameters(model).items() if not k.startswith(("aux", "sub")) and not k.endswith("scale")]
    return sum(kept) / 1e6


def test_parameters_are_the_published_ones():
    """OpenVINO's model zoo: pspnet-pytorch 46.5827 M, icnet-camvid-ava-0001 26.7043 M."""
    stem = (3 * 32 + 32 * 32 + 32 * 64) * 9 + 32 + 32 + 64 - (49 * 3 * 64 + 64)
    assert folded(PSPNet(21)) + stem / 1e6 == pytest.approx(46.5827, abs=1e-4)
    assert folded(ICNet(12, width=64)) == pytest.approx(26.7043, abs=3e-4)


@pytest.mark.parametrize(
    "model",
    [PSPNet(3), DeepLabV3Plus(3), ICNet(3, width=64, stem="conv7"), EncNet(3), RefineNet(3)],
    ids=lambda m: type(m).__name__,
)
def test_weights_of_a_resnet_fit(monkeypatch, model):
    monkeypatch.setitem(BLOCKS, 50, (2, 2, 2, 2))  # as many as there are kinds of
    wanted, (_, ours) = dict(begun(ResNet(), SIZE)[1]), begun(model, SIZE)
    assert {k: v["resnet"] for k, v in ours.items()} == wanted


# ---------------------------------------------------------------------------------------------------------------- ResNet
def test_resnet_strides(monkeypatch):
    monkeypatch.setitem(BLOCKS, 50, (2, 2, 2, 2))  # as many as there are kinds of
    for output_stride, strides in {32: (4, 8, 16, 32), 16: (4, 8, 16, 16), 8: (4, 8, 8, 8)}.items():
        for depth in (18, 50):
            out, _ = begun(ResNet(depth=depth, width=4, output_stride=output_stride), (97, 130))
            assert [out[f"c{i}"].shape[1:3] for i in range(2, 6)] == [cells((97, 130), s) for s in strides]


def test_neither_dilation_nor_grid_changes_the_parameters():
    shapes = [
        shapes_of(ResNet(width=4, **options), 3)
        for options in (
            {},
            {"output_stride": 8, "multi_grid": (1, 2, 4), "stride": "v1", "halve_after": "stage2_block1"},
        )
    ]
    assert shapes[0] == shapes[1]
    assert set(shapes[0]["params"]) == {"stem_conv", "stem_norm"} | {
        f"stage{s}_block{b}" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(1, n + 1)
    }


def test_dilation_only_adds_cells(monkeypatch):
    """Where the stride is on the first 1x1, the cells of the strided network are every second or fourth of the dilated one's."""
    monkeypatch.setitem(BLOCKS, 50, (1, 1, 2, 2))  # what compiles fast
    make = lambda s: ResNet(depth=50, width=2, stride="v1", norm=norm_layer("frozen"), output_stride=s)  # noqa: E731
    x = jax.random.normal(jax.random.key(1), (1, 69, 90, 2))
    variables = drawn(begun(make(32), SIZE, BANDS)[1])
    strided = jax.jit(make(32).apply)(variables, x)
    for output_stride in (16, 8):
        dilated = jax.jit(make(output_stride).apply)(variables, x)
        for level, stride in (("c4", 16), ("c5", 32)):
            step = max(1, stride // output_stride)
            largest = np.abs(strided[level]).max()
            np.testing.assert_allclose(dilated[level][:, ::step, ::step], strided[level], atol=1e-5 * largest)
        even, odd = dilated["c5"][:, :4:2], dilated["c5"][:, 1:4:2]
        assert np.abs(even - odd).max() > 0.01 * largest  # the cells between are no copies


def test_the_first_block_of_a_stage_may_dilate_as_the_stage_before(monkeypatch):
    """How far a cell of C5 hears, every tap counting: of two blocks, whose two 3x3 dilate alike, the first half as far."""
    monkeypatch.setitem(BLOCKS, 18, (1, 1, 1, 2))

    def rates(model):
        jaxpr = str(
            jax.make_jaxpr(lambda x: model.init_with_output(jax.random.key(0), x)[0])(jnp.zeros((1, 17, 17, 1)))
        )
        return [int(r) for r in re.findall(r"rhs_dilation=\((\d), \d\)", jaxpr)]

    plain = ResNet(depth=18, width=1, norm=norm_layer("frozen"), output_stride=8)
    assert sorted(rates(plain)) == [1] * 8 + [2, 2] + [4] * 4
    assert sorted(rates(plain.clone(contract_dilation=True))) == [1] * 10 + [2, 2] + [4, 4]


@cache
def reach(model):
    """From how many rows below its own pixel a cell of C5 hears, every tap counting."""

    def alike(path, v):
        tap = 4 / np.prod(v.shape[:-1]) if len(v.shape) == 4 else path[-1].key in ("scale", "var")
        return np.full(v.shape, tap, np.float32)

    variables = jax.tree_util.tree_map_with_path(alike, shapes_of(model, 1))
    answer = lambda x: model.apply(variables, x)["c5"][0, 60, 0].sum()  # noqa: E731
    x = jnp.ones((1, 8 * 121, 9, 1))
    rows = np.flatnonzero(np.abs(np.asarray(jax.jit(jax.grad(answer))(x))).sum((0, 2, 3)))
    assert rows[0] + rows[-1] == 2 * 8 * 60  # centred on the cell's pixel
    return rows[-1] - 8 * 60


@pytest.mark.parametrize("grid", [2, 3])
def test_the_grid_of_the_last_stage(grid):
    """Two 3x3 of rate 4, the stage's, times the grid's."""
    plain = ResNet(depth=10, width=1, norm=norm_layer("frozen"), output_stride=8)
    assert reach(plain.clone(multi_grid=(grid,))) - reach(plain) == 8 * 2 * 4 * (grid - 1)


@pytest.mark.slow
def test_remat_changes_nothing():
    x = jax.random.normal(jax.random.key(1), (2, 33, 33, 2))
    plain = ResNet(depth=10, width=4, output_stride=8, multi_grid=(2,))
    variables = jax.jit(plain.init)(jax.random.key(0), x)

    def gradient(model):
        answer = lambda p: model.apply({**variables, "params": p}, x, True, mutable=["batch_stats"])[0]["c5"][0].sum()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.grad(answer))(variables["params"]))

    for a, b in zip(gradient(plain), gradient(plain.clone(remat=True)), strict=True):
        assert 0 < np.abs(a).max() and np.abs(a - b).max() <= 1e-4 * np.abs(a).max() + 1e-6


def test_what_follows_a_halved_block_sees_every_second_cell():
    x = jax.random.normal(jax.random.key(1), (1, 97, 65, 2))
    whole = ResNet(depth=10, width=4, norm=norm_layer("frozen"))
    halved = whole.clone(halve_after="stage4_block1")
    variables = drawn(shapes_of(whole))
    a, b = jax.jit(lambda variables: (whole.apply(variables, x), halved.apply(variables, x)))(variables)
    np.testing.assert_array_equal(b["stage4_block1"], a["c5"])
    np.testing.assert_array_equal(b["c5"], a["c5"][:, ::2, ::2])


# -------------------------------------------------------------------------------------------------------------- encoding
def test_the_encoding_is_that_of_a_loop():
    """Far codewords and large maps, too, where distances by their parts lose digits."""
    rng = np.random.default_rng(0)
    x, words, factors = 3 + rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((6, 5)), rng.uniform(-1, 0.3, 6)
    expected = np.zeros((2, 6, 5))
    for b in range(2):
        for cell in x[b].reshape(-1, 5):
            share = np.exp([s * ((cell - d) ** 2).sum() for s, d in zip(factors, words, strict=True)])
            for k, d in enumerate(words):
                expected[b, k] += share[k] / share.sum() * (cell - d)
    for wide, tolerance in ((True, 1e-12), (False, 1e-5)):
        with jax.enable_x64(wide):
            dtype = "float64" if wide else "float32"
            params = {"codewords": jnp.asarray(words, dtype), "factors": jnp.asarray(factors, dtype)}
            got = encoding.Encoding(6).apply({"params": params}, jnp.asarray(x, dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


def test_codewords_begin_near_and_factors_below_zero():
    params = encoding.Encoding(32).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))["params"]
    assert 0.9 / 16 < np.abs(params["codewords"]).max() <= 1 / 16
    assert -1 <= params["factors"].min() < params["factors"].max() <= 0


def test_presence_is_that_of_labelled_classes():
    scores = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    labels = np.full((3, 2, 5), 255, np.uint8)
    labels[0, 0, :3], labels[1, 1, 4], labels[1, 0, 0] = (2, 0, 2), 3, 4  # 4 is no class; the last image has no label
    present = np.array([[1, 0, 1, 0], [0, 0, 0, 1]])
    p = 1 / (1 + np.exp(-scores[:2].astype(float)))
    expected = -np.mean(np.where(present, np.log(p), np.log1p(-p)))
    got = encoding.presence_loss(jnp.asarray(scores), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert encoding.presence_loss(jnp.asarray(scores), jnp.full((3, 2, 5), 255)) == 0


# --------------------------------------------------------------------------------------------------------------- pooling
@settings(max_examples=15)
@given(h=st.integers(1, 23), w=st.integers(1, 23), bins=st.integers(1, 7), seed=st.integers(0, 99))
def test_adaptive_mean_against_loops(h, w, bins, seed):
    x = np.random.default_rng(seed).standard_normal((1, h, w, 2))
    expected = np.zeros((1, bins, bins, 2))
    for i in range(bins):
        for j in range(bins):
            rows = slice(int(np.floor(i * h / bins)), int(np.ceil((i + 1) * h / bins)))
            columns = slice(int(np.floor(j * w / bins)), int(np.ceil((j + 1) * w / bins)))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    with jax.enable_x64(True):
        np.testing.assert_allclose(pooling.adaptive_mean(jnp.asarray(x), bins), expected, atol=1e-12)


@settings(max_examples=15)
@given(h=st.integers(1, 23), w=st.integers(1, 23), bins=st.integers(1, 7), seed=st.integers(0, 99))
def test_spreading_against_loops(h, w, bins, seed):
    x = np.random.default_rng(seed).standard_normal((1, bins, bins, 2))
    place = lambda i, size: i * (bins - 1) / (size - 1) if size > 1 else 0.0  # noqa: E731
    at = lambda row, y: (1 - y % 1) * row[int(y)] + y % 1 * row[min(int(y) + 1, bins - 1)]  # noqa: E731
    expected = np.array([[at(at(x[0], place(i, h)), place(j, w)) for j in range(w)] for i in range(h)])[None]
    with jax.enable_x64(True):
        np.testing.assert_allclose(pooling.spread(jnp.asarray(x), (h, w)), expected, atol=1e-12)


def test_pooling_sums_in_float32():
    x = jnp.full((1, 100, 100, 1), 1.0, jnp.bfloat16).at[0, :, ::2].set(1.0078125)
    mean = pooling.adaptive_mean(x, 1)
    assert mean.dtype == jnp.float32 and float(mean[0, 0, 0, 0]) == pytest.approx(1.00390625, abs=1e-6)


@pytest.mark.parametrize(("size", "stride"), [(5, 1), (3, 2)])
def test_maxima_about_every_cell(size, stride):
    """Of maps that lie below zero, too: nothing is around them."""
    x = np.random.default_rng(0).standard_normal((2, 7, 4, 3)).astype(np.float32) - 2
    expected = np.full((2, -(-7 // stride), -(-4 // stride), 3), -np.inf)
    half = size // 2
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            rows, columns = (slice(max(0, stride * n - half), stride * n + half + 1) for n in (i, j))
            expected[:, i, j] = x[:, rows, columns].max((1, 2))
    np.testing.assert_array_equal(pooling.max_around(jnp.asarray(x), size, stride), expected)
