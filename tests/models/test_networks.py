"""Every network under the one contract: composed, trained, scored, saved and walked over a scene alike."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import config as configs
from glcanet_jax import export, geometry, models, runs, scoring, starting, weights
from glcanet_jax.config import DataConfig, OptimiserConfig
from glcanet_jax.data.views import global_view
from glcanet_jax.errors import UserError
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.measure import info
from glcanet_jax.models.single_view import SingleView
from glcanet_jax.presets import TINY
from glcanet_jax.training import loop, optim, phases
from glcanet_jax.training import step as training
from glcanet_jax.weights import load_weights
from glcanet_jax.weights.backbones import torchvision_name
from tests.drawn import drawn
from tests.inference.test_evaluation import NORMALISATION, VIEWS, blended, dense_reference, scene_of
from tests.models.test_vgg_networks import torchvision_arrays, write
from tests.training.test_step import CLASSES, make_batch, moved

RESNET = dict(depth=10, width=8, fast_conv=False)
SMALL = {
    "glcanet": RESNET | {"fpn_channels": 16},
    "glnet": RESNET | {"fpn_channels": 8},
    "fcn8s": {"width": 4, "fc": 16, "padding": "same", "fast_conv": False},
    "unet": {"width": 4, "padding": "same", "fast_conv": False},
    "segnet": {"width": 4, "fast_conv": False},
    "pspnet": RESNET,
    "deeplabv3plus": RESNET | {"channels": 16},
    "icnet": RESNET,
    "encnet": RESNET | {"channels": 16, "codewords": 4},
    "refinenet": RESNET | {"channels": 8, "coarse_channels": 16},
    "isdnet": RESNET | {"channels": 16, "shallow_width": 8},
    "srafcn": {"width": 4, "input_size": 64, "fast_conv": False},
    "bsnet": RESNET | {"channels": 16},
    "cbam": RESNET,
    "seggpt": dict(image_size=32, patch_size=8, width=32, depth=4, heads=2, decoder_width=8, position_cells=2)
    | {"objective": "both", "fast_conv": False},
    "mask2former": RESNET
    | {"channels": 8, "heads": 2, "encoder_layers": 1, "encoder_hidden": 8, "decoder_layers": 1, "decoder_hidden": 8}
    | {"queries": 6, "points": 32},
    "branch": RESNET | {"fpn_channels": 16},
}
# of 7 classes and 3 bands, at full size, by root of the tree; each file's docstring has the published count beside its own
COUNTS = {
    "glcanet": {"global": 28_589_127, "local": 28_770_503, "fusion": 1_114_119},
    "glnet": {"global": 28_064_839, "local": 37_305_927, "fusion": 64_519},
    "fcn8s": {"local": 134_296_181},
    "unet": {"local": 31_032_135},
    "segnet": {"local": 29_447_047},
    "pspnet": {"local": 48_947_022},  # 2 361 607 of them the auxiliary head's
    "deeplabv3plus": {"local": 40_348_583},
    "icnet": {"local": 6_701_141},
    "encnet": {"local": 35_857_333},  # 2 361 607 of them the auxiliary head's
    "refinenet": {"local": 99_028_039},
    "isdnet": {"local": 17_780_554},  # 556 447 of them training's alone
    "srafcn": {"local": 17_097_493},
    "bsnet": {"local": 58_635_118},  # 2 361 607 of them the auxiliary head's
    "cbam": {"local": 37_844_030},  # likewise
    "seggpt": {"local": 370_723_203 + 1_204_224},  # the latter its prompt's
    "mask2former": {"local": 44_004_616},
    "branch": {"local": 28_770_503},  # as GLCANet's local one
}
STRIDES = {
    "glcanet": 4,
    "glnet": 4,
    "icnet": 4,
    "refinenet": 4,
    "branch": 4,
}  # of the logits; the others answer for every pixel
OF_KNOWN_PARTS = ("encnet", "refinenet")  # all but their own layers are those of the others
OWN_TERMS = {"encnet": {"presence"}, "seggpt": {"colours"}, "mask2former": {"classes", "masks", "dice"}}
SINGLE = [name for name in models.names() if models.single_view(name)]
every_network = pytest.mark.parametrize("name", models.names())


def every_view(*own):
    """Networks and views; those with tests of their own, and the global view of all but one, only when asked for."""
    slow = pytest.mark.slow
    pairs = [(name, "patch", (slow,) if name in own else ()) for name in models.names()]
    pairs += [(name, "global", () if name == "unet" else (slow,)) for name in SINGLE]
    return pytest.mark.parametrize(("name", "view"), [pytest.param(n, v, marks=marks) for n, v, marks in pairs])


def small(name, classes=CLASSES, **options):
    return models.build(name, classes, **SMALL[name] | options)


def inputs(n=2):
    rng = np.random.default_rng(1)
    image, patches = rng.standard_normal((2, 64, 64, 3)), rng.standard_normal((2, n, 49, 49, 3))
    boxes = np.broadcast_to(np.array([[0.1, 0.2, 0.5, 0.6], [0.4, 0.3, 0.8, 0.7]])[:n], (2, n, 4))
    return tuple(jnp.asarray(x, jnp.float32) for x in (image, patches, boxes))


@every_network
def test_networks_built_alike_are_equal(name):
    """What is remembered by network, as its variables' shapes are, is found again; of another network it is not."""
    one, other = small(name), small(name)
    assert one == other and hash(one) == hash(other) and models.shapes(one, 3) is models.shapes(other, 3)
    assert len({one, other, small(name, CLASSES + 1), small(name, dtype="bfloat16")}) == 3


COUNTED_BY_THEIR_OWN_TESTS = ("glcanet", "glnet")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=(pytest.mark.slow,) * (n in COUNTED_BY_THEIR_OWN_TESTS)) for n in models.names()],
)
def test_the_count_of_parameters(name):
    count = info.parameters(models.build(name, 7))
    total = count.pop("total")
    assert count == COUNTS[name] and total == sum(count.values())


@pytest.mark.parametrize(
    ("options", "count"),
    [({"head": "nonlinear"}, 27_001_543), pytest.param({"feed_forward": 4}, 29_822_663, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_count_of_a_branch_with_another_head(options, count):
    """As GLCANet's local one, in the table of its variants."""
    assert info.parameters(models.build("branch", 7, **options))["local"] == count


def test_no_network_lacks_a_count():
    assert set(models.names()) == set(COUNTS) == set(SMALL)


@pytest.mark.parametrize("head", ["affine", "nonlinear"])
def test_a_branch_alone_is_glcanets_local_one(head):
    """With its variables, its answer is that of the local auxiliary head when nothing is asked of the global branch."""
    whole, alone = small("glcanet", attn_levels=(), position=None, head=head), small("branch", position=None, head=head)
    variables = drawn(whole)
    own = {part: {"local": {"branch": tree["local"]}} for part, tree in variables.items()}
    args = inputs()
    expected = jax.jit(lambda *given: models.functions(whole).apply(*given)[1]["local/logits"])(variables, *args)
    logits = jax.jit(lambda *given: models.functions(alone).apply(*given)[0])(own, *args)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * jnp.abs(logits).max())


@every_view("glcanet", "glnet", "bsnet", "isdnet", "srafcn", "cbam", "seggpt", "mask2former")
def test_the_functions_compose(name, view):
    """Also: patches do not see each other, and of the composed network's stages the three functions keep the answers."""
    model = small(name, **({"view": view} if name in SINGLE else {}))
    variables = drawn(model)
    fns, (image, patches, boxes) = models.functions(model), inputs()

    @jax.jit
    def in_parts(variables, image, patches, boxes):
        context = fns.encode_global(variables, image)
        return fns.fuse(variables, context, fns.encode_local(variables, patches), boxes)[0]

    logits, out = jax.jit(fns.apply)(variables, image, patches, boxes)
    cells = -(-49 // (STRIDES.get(name, 1) if view == "patch" else 1))
    assert logits.shape == (2, 2, cells, cells, CLASSES) and logits.dtype == jnp.float32
    assert jnp.ptp(logits, axis=(2, 3)).min() > 0
    np.testing.assert_allclose(in_parts(variables, image, patches, boxes), logits, atol=1e-4 * jnp.abs(logits).max())
    # twice, as the same program takes them; of one patch alone each network of one view makes the same, so one of them is asked
    last = slice(1, None) if name == "unet" else np.array([1, 1])
    one = in_parts(variables, image, patches[:, last], boxes[:, last])[:, -1]
    np.testing.assert_allclose(one, logits[:, 1], atol=1e-4 * jnp.abs(logits).max())
    assert len(out) > 3


@every_view(
    "glcanet",
    "glnet",
    "deeplabv3plus",
    "segnet",
    "icnet",
    "refinenet",
    "isdnet",
    "srafcn",
    "bsnet",
    "cbam",
    "seggpt",
    "mask2former",
    "branch",  # GLCANet's local one, whose steps are in test_step.py
    "unet",  # of the global view, here
)
def test_a_training_step(name, view):
    """Finite, every root of its phase moves, its own auxiliary losses count, and dropout draws from the step's key."""
    model = small(name, **({"view": view} if name in SINGLE else {}))
    config = dataclasses.replace(TINY, optimiser=OptimiserConfig(1e-3, 1e-3, 1e-3, schedule="constant"))
    (phase,) = phases.plan("joint", 10, None, models.stages(model))
    tx = optim.optimiser(config.optimiser, (phase,))
    variables = drawn(model)
    state = training.create_state(variables, tx, jax.random.key(1))
    before = jax.tree.map(np.array, variables)
    step = training.make_train_step(model, tx, config, 255.0, phase)
    state, metrics = step(state, make_batch())
    assert all(np.isfinite(float(v)) for v in metrics.values())
    for root in before["params"]:
        assert moved(before["params"][root], jax.tree.map(np.array, state.params[root])) == pytest.approx(
            1e-3, rel=0.02
        )
    assert {f"loss/{k}" for k in {*models.auxiliary(model), *OWN_TERMS.get(name, ())}} <= set(metrics)
    main = "global" if view == "global" else "fused"
    assert (f"loss/{main}" in metrics) != getattr(model, "loss_alone", False)
    total = sum(float(v) for k, v in metrics.items() if k.startswith("loss/"))
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    if view == "global":
        assert "loss/fused" not in metrics and set(before["params"]) == {"global"}


def test_auxiliary_losses_have_the_networks_weights():
    """Doubling a network's weight doubles its auxiliary term alone."""
    batch, losses = jax.tree.map(jnp.asarray, make_batch()), {}
    for weight in (0.4, 0.8):
        model = small("pspnet", aux_weight=weight)
        assert models.auxiliary(model) == {"aux": weight}
        variables = drawn(model)
        image, patches = (batch[k].astype(np.float32) / 255 for k in ("global_image", "patches"))

        @jax.jit
        def terms(variables, image, patches, boxes, model=model):
            fn = models.functions(model).apply
            (logits, out), _ = fn(variables, image, patches, boxes, train=True, key=jax.random.key(3))
            return training.loss_terms(configs.LossConfig(), logits, out, batch, models.auxiliary(model))

        losses[weight] = terms(variables, image, patches, batch["boxes"])
    assert losses[0.8]["aux"] == pytest.approx(2 * float(losses[0.4]["aux"]), rel=1e-5)
    assert losses[0.8]["fused"] == pytest.approx(float(losses[0.4]["fused"]), rel=1e-5)


# -------------------------------------------------------------------------------------------------- one view, or both
class Copy(nn.Module):
    """Its logits are the image."""

    num_classes: int = 3
    stride: int = 1
    auxiliary = {}

    @nn.compact
    def __call__(self, x, *, train=False):
        self.param("nothing", nn.initializers.zeros, ())
        return x[:, :: self.stride, :: self.stride], {}


@pytest.mark.parametrize("stride", [1, 4])
def test_the_global_view_answers_for_the_scene_it_was_shrunk_from(stride):
    """The shrunk scene, interpolated between the centres of its cells, is what patches say, wherever they lie."""
    scene = scene_of(150, 118)
    views = geometry.Views(context_size=None, global_size=40, patch_size=48, overlap=8)
    model = SingleView(3, lambda **given: Copy(stride=stride, **given), "global")
    variables = {"params": {"global": {"nothing": jnp.zeros(())}}}
    raw = {"mean": (0.0,), "std": (1.0,), "scale": 1.0}
    got = blended(Predictor(model, variables, views, raw, bands=3, batch=2), scene)
    shrunk = global_view(scene.image, 40).astype(np.float64)[::stride, ::stride]

    def along(length, cells):
        centres = ((np.arange(length) + 0.5) / length * 40 - 0.5) / stride
        return np.maximum(0, 1 - np.abs(np.clip(centres, 0, cells - 1)[:, None] - np.arange(cells)))

    expected = np.einsum("yi,xj,ijc->yxc", along(150, len(shrunk)), along(118, shrunk.shape[1]), shrunk)
    np.testing.assert_allclose(got, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("segnet", {}),
        ("icnet", {}),
        pytest.param("glnet", {}, marks=pytest.mark.slow),
        pytest.param("glcanet", {"head": "nonlinear", "feed_forward": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_streamed_scene_is_the_whole_scene_reference(name, options):
    """Logits at every pixel, at stride 4, and of two views; blocks of context, blended."""
    model = small(name, 3, **options)
    variables = drawn(model)
    scene = scene_of(150, 121)
    expected = dense_reference(model, variables, scene, VIEWS)
    got = blended(Predictor(model, variables, VIEWS, NORMALISATION, bands=3, batch=3), scene)
    np.testing.assert_allclose(got, expected, atol=3e-4 * np.abs(expected).max())


def test_bad_views_are_told():
    with pytest.raises(UserError, match="model.view is 'both'; it must be one of 'patch', 'global'"):
        small("unet", view="both")
    with pytest.raises(UserError, match="glcanet has no option 'view'"):
        small("glcanet", view="patch")
    with pytest.raises(UserError, match="model.padding is 'valid'"):
        small("unet", padding="valid")


# ---------------------------------------------------------------------------------------------------- configurations
@every_network
def test_a_configuration_goes_through_json(name):
    config = configs.Config(model=configs.model_config(name, **SMALL[name]))
    assert configs.from_dict(configs.to_dict(config)) == config


def test_another_network_keeps_the_options_that_it_has():
    preset = configs.model_config("glcanet", depth=18, width=16, fpn_channels=64, mask="window")
    changed = configs.with_network(preset, "pspnet")
    assert (changed.network, changed.depth, changed.width) == ("pspnet", 18, 16)
    assert not hasattr(changed, "mask")
    assert configs.with_network(preset, "glcanet") is preset
    with pytest.raises(UserError, match="perhaps you meant 'pspnet'"):
        configs.with_network(preset, "psp-net")


# ------------------------------------------------------------------------------------------------- the same command
@pytest.mark.parametrize(
    ("name", "options", "train", "loader"),
    [
        pytest.param("unet", {}, {}, {}, marks=pytest.mark.slow),
        pytest.param("unet", {"view": "global"}, {"schedule": "staged"}, {}, marks=pytest.mark.slow),
        pytest.param("pspnet", {}, {}, {}, marks=pytest.mark.slow),
        pytest.param("deeplabv3plus", {"view": "global"}, {"schedule": "staged"}, {}, marks=pytest.mark.slow),
        pytest.param(
            "glnet",
            {"mutual": True},
            {"schedule": "staged", "steps": 9},
            {"positions": "grid", "patches_per_context": 9, "batch_size": 1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_train_score_and_load(tmp_path, name, options, train, loader):
    """A whole run on the bundled scene: trained, resumed by nothing left to do, scored, and rebuilt from its file."""
    views = geometry.Views(context_size=120, global_size=48, patch_size=48, overlap=8)
    if options.get("view") == "global":
        views = dataclasses.replace(views, context_size=None, global_size=64)
    config = dataclasses.replace(
        TINY,
        data=DataConfig(dataset="sample"),
        views=views,
        model=configs.model_config(name, **SMALL[name] | options),
        train=dataclasses.replace(TINY.train, **{"steps": 4, "eval_every": 100, "checkpoint_every": 100} | train),
        loader=dataclasses.replace(TINY.loader, **loader),
        out=str(tmp_path / "run"),
    )
    out = loop.train(config)
    assert loop.train(config) == out
    dataset = runs.open_data(config.data)
    result = scoring.evaluate_split(out / "last.safetensors", dataset, "test", tmp_path / "eval", 8)
    scores = next(iter(result["protocols"].values()))
    assert 0 <= scores["miou"] <= 1 and scores["oa"] > 0 and result["seconds"] > 0
    assert 0 < result["majority"][next(iter(result["protocols"]))]["miou"] < 1
    predictor, loaded, _ = runs.load_predictor(out)
    assert loaded.model == runs.resolve(config, dataset).model and predictor.second_pass == options.get("mutual", False)
    if options.get("mutual"):
        with pytest.raises(UserError, match="second pass"):
            export.export(out, tmp_path / "net.zip")
    else:
        assert max(export.export(out, tmp_path / "net.zip").values()) <= 1e-5
        stride = export.load(tmp_path / "net.zip").manifest["geometry"]["logits_stride"]
        assert stride == 1
    assert set(load_weights(out / "last.safetensors").variables["params"]) == set(predictor.variables["params"])


def test_what_is_gathered_needs_the_whole_grid(tmp_path):
    config = dataclasses.replace(
        TINY,
        data=DataConfig(dataset="sample"),
        model=configs.model_config("glnet", **SMALL["glnet"], mutual=True),
        out=str(tmp_path / "run"),
    )
    with pytest.raises(UserError, match="gathers all patches of a context, 25 here.*--loader.patches-per-context 25"):
        loop.train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_third_stage_trains_what_goes_back(tmp_path):
    """Both branches and their statistics stay as they were; the second global branch begins as a copy of the first."""
    model = small("glnet", mutual=True)
    config = dataclasses.replace(TINY, optimiser=OptimiserConfig(1e-3, 1e-3, 1e-3, schedule="constant"))
    spans = phases.plan("staged", 9, None, models.stages(model))
    tx = optim.optimiser(config.optimiser, spans)
    variables = phases.FEEDBACK.enter(model, drawn(model))
    np.testing.assert_array_equal(
        variables["params"]["feedback"]["resnet"]["stem_conv"]["kernel"],
        variables["params"]["global"]["resnet"]["stem_conv"]["kernel"],
    )
    before = jax.tree.map(np.array, variables)
    state = training.create_state(variables, tx, jax.random.key(1))
    batch = make_batch(2, 4)
    corners = np.array([[0, 0], [0, 0.5], [0.5, 0], [0.5, 0.5]], np.float32)
    batch["boxes"] = np.broadcast_to(np.concatenate([corners, corners + 0.5], 1), (2, 4, 4)).copy()
    batch["valid"][1, 3] = False
    state, metrics = training.make_train_step(model, tx, config, 255.0, spans[2])(state, batch)
    after = jax.tree.map(np.array, state.variables)
    for root in ("global", "local"):
        assert moved(before["params"][root], after["params"][root]) == 0
        assert moved(before["batch_stats"][root], after["batch_stats"][root]) == 0
    assert moved(before["params"]["feedback"], after["params"]["feedback"]) == pytest.approx(1e-3, rel=0.02)
    assert moved(before["batch_stats"]["feedback"], after["batch_stats"]["feedback"]) > 0
    assert {"loss/fused", "loss/global"} == {
        k for k in metrics if k.startswith("loss/")
    }  # no regulariser, nothing local


# -------------------------------------------------------------------------------------------------- pretrained backbones
def torchvision_resnet(template):
    """A ResNet's arrays under torchvision's names, random, from the shapes of ours."""
    from flax.traverse_util import flatten_dict

    rng, arrays = np.random.default_rng(0), {}
    for path, x in flatten_dict({k: template[k] for k in ("params", "batch_stats")}).items():
        array = rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        arrays[torchvision_name(path[1:])] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return arrays


@pytest.mark.parametrize(("name", "places"), [("glnet", 2), ("pspnet", 1), ("icnet", 1)])
def test_backbones_are_loaded_wherever_a_network_has_them(tmp_path, name, places):
    options = {"depth": 18, "width": 64} | ({"stem": "conv7"} if name == "icnet" else {})
    model = small(name, **options)
    variables = drawn(model)
    roots = [root for root in variables["params"] if "resnet" in variables["params"][root]]
    assert len(roots) == places
    template = {k: variables[k][roots[0]]["resnet"] for k in ("params", "batch_stats")}
    arrays = torchvision_resnet(template)
    np.savez(tmp_path / "resnet.npz", **arrays)
    loaded = weights.load_torchvision(tmp_path / "resnet.npz")
    new = starting.with_backbones(loaded, variables, 3)
    for root in roots:
        kernel = new["params"][root]["resnet"]["stage2_block1"]["conv1"]["kernel"]
        np.testing.assert_array_equal(kernel, arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
        stats = new["batch_stats"][root]["resnet"]["stem_norm"]["var"]
        np.testing.assert_array_equal(stats, arrays["bn1.running_var"])
    assert jax.tree.structure(new) == jax.tree.structure(variables)


@pytest.mark.parametrize(("name", "told"), [("unet", "unet has none"), ("segnet", "segnet has a vgg")])
def test_a_backbone_of_another_kind_is_told_before_anything_is_written(tmp_path, name, told):
    model = small("pspnet", depth=18, width=4)
    variables = drawn(model)
    template = {k: variables[k]["local"]["resnet"] for k in ("params", "batch_stats")}
    np.savez(tmp_path / "resnet.npz", **torchvision_resnet(template))
    config = dataclasses.replace(
        TINY,
        data=DataConfig(dataset="sample"),
        model=configs.model_config(name, **SMALL[name]),
        backbone=str(tmp_path / "resnet.npz"),
        out=str(tmp_path / "run"),
    )
    with pytest.raises(UserError, match=f"holds a resnet backbone, {told}; leave out --backbone"):
        loop.train(config)
    fits_not = dataclasses.replace(config, model=configs.model_config("pspnet", depth=18, width=8))
    with pytest.raises(UserError, match="does not fit the backbone: shapes differ"):
        loop.train(fits_not)
    assert not (tmp_path / "run").exists()


def test_fcn_takes_the_classifier_with_the_backbone_and_segnet_does_not_need_it(tmp_path):
    arrays = torchvision_arrays(norms=False, width=4, fc=6)
    write(tmp_path / "vgg.npz", arrays)
    loaded = weights.load_torchvision(tmp_path / "vgg.npz")
    variables = drawn(small("fcn8s", fc=6))
    new = starting.with_backbones(loaded, variables, 3)["params"]["local"]
    wanted = arrays["classifier.0.weight"].reshape(6, -1, 7, 7).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(new["fc6"]["kernel"], wanted)
    np.testing.assert_array_equal(new["vgg"]["conv1_2"]["bias"], arrays["features.2.bias"])
    np.testing.assert_array_equal(new["score_fc7"]["kernel"], variables["params"]["local"]["score_fc7"]["kernel"])
    narrow = drawn(small("fcn8s", fc=5))
    kept = starting.with_backbones(loaded, narrow, 3)["params"]["local"]  # another width: the backbone alone
    np.testing.assert_array_equal(kept["fc6"]["kernel"], narrow["params"]["local"]["fc6"]["kernel"])
    np.testing.assert_array_equal(kept["vgg"]["conv1_2"]["bias"], arrays["features.2.bias"])
