"""FCN-8s, U-Net and SegNet on their own: sizes, counts, pooling with places, mirroring, and VGG-16's weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from glcanet_jax import models, weights
from glcanet_jax.errors import UserError
from glcanet_jax.models import fcn8s, unet
from glcanet_jax.models.fcn8s import FCN8s
from glcanet_jax.models.layers import resnet, vgg
from glcanet_jax.models.segnet import SegNet
from glcanet_jax.models.unet import UNet
from tests.drawn import begun

SMALL = {"fcn8s": FCN8s(5, width=4, fc=16), "unet": UNet(5, width=4), "segnet": SegNet(5, width=4)}
SAME = {f"{name}, same": SMALL[name].clone(padding="same") for name in ("fcn8s", "unet")}


@functools.cache
def template(model, bands=3):
    return begun(model, (32, 48), bands)[1]


@functools.cache
def random_variables(model, bands=3, seed=0):
    """Nothing is zero, not even the scores that FCN starts from; activations stay of the order of one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1] == "kernel":
            return rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if path[-1] in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        return 0.1 * rng.standard_normal(leaf.shape)

    flat = flatten_dict(template(model, bands))
    return unflatten_dict({path: jnp.asarray(draw(path, leaf), jnp.float32) for path, leaf in flat.items()})


@functools.cache
def applied(model, train=False):
    """Jitted logits, of (variables, image[, key of the dropout])."""

    def logits(variables, x, key=None):
        rngs = None if key is None else {"dropout": key}
        return model.apply(variables, x, train=train, rngs=rngs, mutable=["batch_stats"])[0][0]

    return jax.jit(logits)


def image(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# ------------------------------------------------------------------------------------------------------------ counts
def convs(layers, kernel=3, norm=False):
    """Parameters of convolutions with biases, of (inputs, outputs) each, and of their norms."""
    return sum(kernel * kernel * i * o + o + 2 * norm * o for i, o in layers)


def vgg_layers(bands):
    widths = [bands, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return list(zip(widths, widths[1:], strict=False))


def fcn8s_count(k, bands):
    fc6, fc7 = convs([(512, 4096)], 7), convs([(4096, 4096)], 1)
    scores = convs([(4096, k), (512, k), (256, k)], 1)
    return convs(vgg_layers(bands)) + fc6 + fc7 + scores + 2 * 16 * k * k


def unet_count(k, bands):
    down = [(bands, 64), (64, 64)] + [p for w in (64, 128, 256, 512) for p in ((w, 2 * w), (2 * w, 2 * w))]
    up = [p for w in (512, 256, 128, 64) for p in ((2 * w, w), (w, w))]
    return convs(down + up) + convs([(2 * w, w) for w in (512, 256, 128, 64)], 2) + convs([(64, k)], 1)


def segnet_count(k, bands):
    encoder = vgg_layers(bands)
    decoder = [(o, i) for i, o in reversed(encoder[1:])]
    return convs(encoder, norm=True) + convs(decoder, norm=True) + convs([(64, k)])


@pytest.mark.parametrize(
    ("network", "count", "k", "bands", "published"),
    [
        (FCN8s, fcn8s_count, 21, 3, 134_376_863),
        (FCN8s, fcn8s_count, 7, 4, None),
        (UNet, unet_count, 2, 1, 31_030_658),
        (UNet, unet_count, 6, 3, None),
        (SegNet, segnet_count, 12, 3, 29_449_932),
        (SegNet, segnet_count, 7, 13, None),
    ],
)
def test_parameters_are_counted_from_the_papers_layers(network, count, k, bands, published):
    got = sum(leaf.size for leaf in jax.tree.leaves(template(network(k), bands)["params"]))
    assert got == count(k, bands)
    assert published is None or got == published


def test_vgg_has_the_published_convolutions():
    assert sum(leaf.size for leaf in jax.tree.leaves(template(vgg.VGG16())["params"])) == 14_714_688


# ------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(("size", "bands"), [((1, 1), 1), ((33, 50), 3), ((97, 130), 7), ((500, 333), 4)])
@pytest.mark.parametrize("model", (SMALL | SAME).values(), ids=(*SMALL, *SAME))
def test_logits_are_the_images_size(model, size, bands):
    (logits, out), variables = begun(model, size, bands, b=2)
    if bands == 3:  # variables are those of any other size
        assert variables == template(model)
    assert logits.shape == out["logits"].shape == (2, *size, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_in_it_and_answers_in_float32(name):
    model = SMALL[name].clone(dtype="bfloat16")
    variables = random_variables(model)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(template(model)))
    x = image(1, 33, 50, 3)
    got, want = applied(model)(variables, x), applied(SMALL[name])(variables, x)
    assert got.dtype == jnp.float32
    difference = np.linalg.norm(got - want) / np.linalg.norm(want)
    # in SegNet, of two maxima that are nearly equal the other may be the larger now, and answers elsewhere
    assert 0 < difference < (0.3 if name == "segnet" else 0.03)


@pytest.mark.parametrize("name", SMALL)
def test_no_auxiliary_losses_and_a_stem(name):
    assert models.auxiliary(SMALL[name]) == {}
    paths = flatten_dict(template(SMALL[name], 6)["params"])
    assert [leaf.shape[2] for path, leaf in paths.items() if path[-2:] == ("stem_conv", "kernel")] == [6]


@pytest.mark.parametrize(
    ("network", "options", "told"),
    [
        (FCN8s, {"dropout": 1.0}, "model.dropout is 1.0"),
        (FCN8s, {"dtype": "float16"}, "model.dtype is 'float16'; it must be one of 'float32', 'bfloat16'"),
        (FCN8s, {"padding": "mirror"}, "model.padding is 'mirror'; it must be one of 'wide', 'same'"),
        (UNet, {"padding": "reflect"}, "model.padding is 'reflect'; it must be one of 'mirror', 'same'"),
        (UNet, {"dropout": -0.1}, "model.dropout is -0.1"),
        (SegNet, {"norm": "layer"}, "model.norm is 'layer'"),
        (SegNet, {"dtype": "half"}, "model.dtype is 'half'"),
    ],
)
def test_bad_options_are_refused_at_once(network, options, told):
    with pytest.raises(UserError, match=told):
        network(2, **options)


# ---------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("name", SMALL)
def test_a_gradient_reaches_every_parameter(name):
    model = SMALL[name]
    variables, x, weight = random_variables(model), image(1, 33, 50, 3), image(1, 33, 50, 5, seed=2)

    def loss(params):  # with running statistics: a batch's would take away the biases before them
        return jnp.sum(model.apply(variables | {"params": params}, x)[0] * weight)

    gradients = flatten_dict(jax.jit(jax.grad(loss))(variables["params"]))
    still = ["/".join(path) for path, leaf in gradients.items() if not np.any(leaf)]
    assert not still and all(np.isfinite(leaf).all() for leaf in gradients.values())


@pytest.mark.parametrize("name", ["fcn8s", "unet"])
def test_dropout_is_seeded_and_only_in_training(name):
    model = SMALL[name]
    variables, x = random_variables(model), image(1, 33, 50, 3)
    train, (one, two) = applied(model, train=True), jax.random.split(jax.random.key(3))
    np.testing.assert_array_equal(train(variables, x, one), train(variables, x, one))
    assert np.abs(train(variables, x, one) - train(variables, x, two)).max() > 1e-3
    answer = applied(model)(variables, x)
    assert np.abs(train(variables, x, one) - answer).max() > 1e-3
    without = applied(model.clone(dropout=0.0), train=True)(variables, x, one)
    np.testing.assert_allclose(without, answer, rtol=1e-5, atol=1e-5)


def test_segnet_learns_statistics_in_training_alone():
    model = SMALL["segnet"]
    variables, x = random_variables(model), image(1, 33, 50, 3)
    run = jax.jit(lambda v, train: model.apply(v, x, train=train, mutable=["batch_stats"])[1], static_argnums=1)
    held, new = (flatten_dict(run(variables, train)["batch_stats"]) for train in (False, True))
    for path, old in flatten_dict(variables["batch_stats"]).items():
        assert np.all(old == held[path])
        assert not np.any(old == new[path])


# ----------------------------------------------------------------------------------------------------------- pooling
@jax.jit
def pool_and_back(x):
    return vgg.max_pool(x), vgg.max_unpool(vgg.max_pool(x), vgg.max_places(x), x.shape[1:3])


@settings(max_examples=40)
@given(
    size=st.sampled_from([(1, 1), (1, 4), (5, 3), (6, 7)]),
    values=st.integers(1, 9),  # few: many equals
    seed=st.integers(0, 1000),
)
def test_unpooling_puts_each_maximum_back_where_it_was(size, values, seed):
    x = np.random.default_rng(seed).integers(-values, values, (2, *size, 3)).astype(np.float32)
    pooled, got = map(np.asarray, pool_and_back(x))
    want = np.zeros_like(x)
    for b, top, left, c in np.ndindex(2, -(-size[0] // 2), -(-size[1] // 2), 3):
        window = x[b, 2 * top : 2 * top + 2, 2 * left : 2 * left + 2, c]
        i, j = np.unravel_index(window.argmax(), window.shape)  # the first, row by row
        want[b, 2 * top + i, 2 * left + j, c] = pooled[b, top, left, c]
        assert pooled[b, top, left, c] == window.max()
    np.testing.assert_array_equal(got, want)


def test_the_gradient_of_pooling_and_unpooling_is_the_mask_of_maxima():
    x, weight = image(1, 5, 7, 2), image(1, 5, 7, 2, seed=2)
    gradient = jax.grad(lambda x: jnp.sum(pool_and_back(x)[1] * weight))(x)
    np.testing.assert_allclose(gradient, np.where(pool_and_back(x)[1] != 0, weight, 0), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ FCN-8s
@pytest.mark.parametrize("factor", [2, 8])
def test_bilinear_upsampling_keeps_constants_and_ramps(factor):
    rows, columns = jnp.meshgrid(jnp.arange(6.0), jnp.arange(9.0), indexing="ij")
    x = jnp.stack([jnp.ones((6, 9)), rows, columns], axis=-1)[None]
    fixed = fcn8s.bilinear_upsample(x, factor)
    learned = nn.ConvTranspose(
        3,
        (2 * factor,) * 2,
        (factor,) * 2,
        [(2 * factor - 1,) * 2] * 2,
        use_bias=False,
        kernel_init=fcn8s.bilinear_init,
    )
    learned = learned.init_with_output(jax.random.key(0), x)[0]
    assert fixed.shape == learned.shape == (1, 7 * factor, 10 * factor, 3)
    np.testing.assert_allclose(learned, fixed, atol=1e-5)
    at = lambda count: (np.arange(factor, factor * count) - factor + 0.5) / factor  # noqa: E731
    rows, columns = np.meshgrid(at(6), at(9), indexing="ij")
    want = np.stack([np.ones_like(rows), rows, columns], axis=-1)
    # the first and last factor rows look at what is not there
    np.testing.assert_allclose(fixed[0, factor:-factor, factor:-factor], want, atol=1e-5)


def test_fcn8s_starts_at_zero_and_keeps_constant_scores():
    model = SMALL["fcn8s"]
    x = image(1, 120, 97, 3)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert not np.any(applied(model)(variables, x))
    for i, name in enumerate(("score_fc7", "score_pool4", "score_pool3")):
        variables["params"][name]["bias"] = jnp.arange(5.0) * 10**i
    logits = applied(model)(variables, x)
    # the upsamplings look at zeros around the scores; far enough inside all three add up
    want = np.broadcast_to(np.arange(5.0) * 111, (40, 30, 5))
    np.testing.assert_allclose(logits[0, 40:80, 40:70], want, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- U-Net
@pytest.mark.parametrize("size", [1, 2, 3, 20, 92, 93, 130, 500])
def test_mirrored_rows_are_numpys_reflection(size):
    rows = unet.mirrored(size)
    after = len(rows) - size - 92
    np.testing.assert_array_equal(rows, np.pad(np.arange(size), (92, after), mode="reflect"))
    assert 0 <= after - 92 < 16 and (len(rows) - 684) % 16 == 0
    assert size != 500 or len(rows) == 684


@pytest.mark.parametrize("size", [(33, 50), (97, 40)])
def test_unet_sees_a_mirrored_image(size):
    model = SMALL["unet"]
    variables, x = random_variables(model), image(1, *size, 3)
    around = 112  # more than the network sees, and a multiple of its stride
    larger = np.pad(x, ((0, 0), (around, around), (around, around), (0, 0)), mode="reflect")
    inside = applied(model)(variables, jnp.asarray(larger))[:, around:-around, around:-around]
    got = applied(model)(variables, x)
    assert np.abs(got).max() > 0.01
    np.testing.assert_allclose(got, inside, atol=1e-5)


def test_unet_same_pads_with_zeros():
    model = SAME["unet, same"]
    variables, x = random_variables(model), image(1, 33, 50, 3)
    larger = jnp.pad(x, ((0, 0), (0, 15), (0, 14), (0, 0)))
    got = applied(model)(variables, x)
    np.testing.assert_allclose(got, applied(model)(variables, larger)[:, :33, :50], atol=1e-5)
    assert jax.tree.structure(template(model)) == jax.tree.structure(template(SMALL["unet"]))


# ----------------------------------------------------------------------------------------------------------- weights
PLAIN = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's vgg16, and vgg16_bn
WITH_NORMS = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
OURS = ["1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"]


def torchvision_arrays(norms, width=4, fc=6, seed=0):
    """A narrow VGG-16 in torchvision's layout, classifier and counters included."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    widths = [3, *(width * n for n in (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8))]
    out = {}
    for place, i, o in zip(WITH_NORMS if norms else PLAIN, widths, widths[1:], strict=False):
        out |= {f"features.{place}.weight": draw(o, i, 3, 3), f"features.{place}.bias": draw(o)}
        if norms:
            leaves = ("weight", "bias", "running_mean", "running_var")
            out |= {f"features.{place + 1}.{leaf}": draw(o) for leaf in leaves}
            out[f"features.{place + 1}.num_batches_tracked"] = np.array(7)
    shapes = {0: (fc, 49 * 8 * width), 3: (fc, fc), 6: (10, fc)}
    for place, shape in shapes.items():
        out |= {f"classifier.{place}.weight": draw(*shape), f"classifier.{place}.bias": draw(shape[0])}
    return out


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return weights.load_torchvision(path)


def vgg_template(norms, bands=3):
    return template(vgg.VGG16(4, norm=resnet.norm_layer(norms) if norms else None), bands)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("norms", [None, "batch", "frozen", "group"])
def test_vgg_weights_go_where_they_belong(tmp_path, suffix, norms):
    given = torchvision_arrays(norms)
    loaded = write(tmp_path / f"vgg.{suffix}", {f"module.{k}": v for k, v in given.items()})
    assert (loaded.kind, loaded.depth, loaded.stride) == ("vgg", 16, "")
    wanted = vgg_template(norms)
    variables = weights.backbone_variables(loaded, wanted)
    assert flatten_dict(variables).keys() == flatten_dict(wanted).keys() | flatten_dict({"batch_stats": {}}).keys()
    for ours, place in zip(OURS, WITH_NORMS if norms else PLAIN, strict=True):
        conv = variables["params"]["stem_conv" if ours == "1_1" else f"conv{ours}"]
        np.testing.assert_array_equal(conv["kernel"], given[f"features.{place}.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(conv["bias"], given[f"features.{place}.bias"])
        if norms:
            norm = variables["params"][f"norm{ours}"]
            np.testing.assert_array_equal(norm["scale"], given[f"features.{place + 1}.weight"])
            np.testing.assert_array_equal(norm["bias"], given[f"features.{place + 1}.bias"])
        if norms in ("batch", "frozen"):
            stats = variables["batch_stats"][f"norm{ours}"]
            np.testing.assert_array_equal(stats["mean"], given[f"features.{place + 1}.running_mean"])
            np.testing.assert_array_equal(stats["var"], given[f"features.{place + 1}.running_var"])


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_vgg_weights_for_other_bands(tmp_path, bands):
    given = torchvision_arrays(False)
    loaded = write(tmp_path / "vgg.npz", given)
    stem = weights.backbone_variables(loaded, vgg_template(None, bands), bands)["params"]["stem_conv"]["kernel"]
    rgb = given["features.0.weight"].transpose(2, 3, 1, 0)
    if bands == 1:
        want = rgb.sum(2, keepdims=True)
    else:
        want = np.concatenate([rgb, rgb], axis=2)[:, :, :bands] * 3 / bands
    np.testing.assert_allclose(stem, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(loaded.arrays["features.0.weight"], given["features.0.weight"])  # left as it was


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_the_classifier_becomes_convolutions(tmp_path, layout):
    arrays = torchvision_arrays(False)
    flat = np.random.default_rng(1).standard_normal((2, 32, 7, 7)).astype(np.float32)  # b c h w, as torch flattens it
    want = flat.reshape(2, -1) @ arrays["classifier.0.weight"].T + arrays["classifier.0.bias"]
    second = want @ arrays["classifier.3.weight"].T + arrays["classifier.3.bias"]
    if layout == "timm":
        for ours, theirs, shape in ((0, "pre_logits.fc1", (6, 32, 7, 7)), (3, "pre_logits.fc2", (6, 6, 1, 1))):
            arrays[f"{theirs}.weight"] = arrays.pop(f"classifier.{ours}.weight").reshape(shape)
            arrays[f"{theirs}.bias"] = arrays.pop(f"classifier.{ours}.bias")
    layers = weights.fcn_classifier(write(tmp_path / "vgg.safetensors", arrays))
    assert {k: v["kernel"].shape for k, v in layers.items()} == {"fc6": (7, 7, 32, 6), "fc7": (1, 1, 6, 6)}
    expected = template(FCN8s(2, width=4, fc=6))["params"]
    assert all(layers[k][leaf].shape == expected[k][leaf].shape for k in layers for leaf in ("kernel", "bias"))
    got = nn.Conv(6, (7, 7), padding=0).apply({"params": layers["fc6"]}, flat.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got[:, 0, 0], want, rtol=1e-4, atol=1e-4)
    got = nn.Conv(6, (1, 1), padding=0).apply({"params": layers["fc7"]}, got)
    np.testing.assert_allclose(got[:, 0, 0], second, rtol=1e-4, atol=1e-3)


def test_a_file_without_classifier_gives_none(tmp_path):
    arrays = {k: v for k, v in torchvision_arrays(False).items() if k.startswith("features")}
    loaded = write(tmp_path / "vgg.npz", arrays)
    assert weights.fcn_classifier(loaded) == {}
    weights.backbone_variables(loaded, vgg_template(None))


def test_the_wrong_weights_are_told(tmp_path):
    plain = write(tmp_path / "vgg16.npz", torchvision_arrays(False))
    normed = write(tmp_path / "vgg16_bn.npz", torchvision_arrays(True))
    with pytest.raises(UserError, match=r"vgg16\.npz is a VGG-16 without norms .* backbone is a VGG-16-BN"):
        weights.backbone_variables(plain, vgg_template("batch"))
    with pytest.raises(UserError, match=r"vgg16_bn\.npz is a VGG-16-BN .* backbone is a VGG-16 without norms"):
        weights.backbone_variables(normed, vgg_template(None))
    with pytest.raises(UserError, match=r"vgg16\.npz is a VGG-16, the network's backbone is a ResNet"):
        weights.backbone_variables(plain, template(resnet.ResNet(18, 4)))
    other = weights.TorchvisionWeights({}, 18, "v1.5", "r18", "")
    with pytest.raises(UserError, match=r"r18 is a ResNet-18 v1.5, the network's backbone is a VGG-16"):
        weights.backbone_variables(other, vgg_template(None))
    del plain.arrays["features.2.bias"]
    plain.arrays["features.5.bias"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"lacks features\.2\.bias; shapes differ: features\.5\.bias \(3,\) against \(8,"
    ):
        weights.backbone_variables(plain, vgg_template(None))
    arrays = torchvision_arrays(False)
    arrays["features.30.weight"] = arrays.pop("features.28.weight")
    with pytest.raises(UserError, match="no VGG-16 or VGG-16-BN .* 24, 26, 30, wanted are"):
        write(tmp_path / "vgg17.npz", arrays)
