"""What a network takes of weights that exist: every array that fits, to the bit; class layers by name, bands as a backbone's."""

import dataclasses
import functools
import os
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import cli, models, starting, weights
from glcanet_jax import config as configs
from glcanet_jax.config import Config, InitConfig, LoaderConfig, NormalisationConfig, model_config
from glcanet_jax.errors import UserError
from glcanet_jax.starting import Source, pair_classes

SMALL = {"depth": 10, "width": 8, "fpn_channels": 16, "channels": 16, "fc": 16, "fast_conv": False}
OTHERWISE = {"seggpt": dict(image_size=16, patch_size=8, width=8, depth=4, heads=2, decoder_width=4, position_cells=2)}
THEIRS = ("Building", "road", "water")
NORMALISATION = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "scale": 255.0}


def small(network, **options):
    """The smallest of a network."""
    own = models.options(network)
    small = OTHERWISE.get(network) or {k: v for k, v in SMALL.items() if k in own}
    return model_config(network, **small | options)


def build(model, count):
    return models.build(model.network, count, **configs.model_options(model))


def shapes_of(model, count, bands):
    return models.shapes(build(model, count), bands)


@functools.cache  # traces of networks, which take most of the time here
def axes_of(model, count, bands):
    return models.axes(lambda k: build(model, k), count, bands)


def drawn(model, count, bands, seed):
    """Variables of a network, drawn anew."""
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes_of(model, count, bands))


def source(model, bands=3, names=THEIRS):
    variables = drawn(model, len(names), bands, 1)
    classes = {"names": list(names), "palette": [[0, 0, 0]] * len(names), "dataset": "d"}
    stored = weights.WeightsFile(variables, {}, classes, NORMALISATION, bands)
    return Source("theirs", Path("theirs"), Config(model=model), stored)


def take(given, model, names=THEIRS, bands=3, renames=None):
    """Fresh arrays, those that came out, and what was told; all by path."""
    axes = axes_of(model, len(names), bands)
    config = Config(model=model, init=InitConfig("theirs", renames))
    fresh = drawn(model, len(names), bands, 2)
    out, start = starting.take(given, fresh, axes, config, names)
    return flatten_dict(fresh), flatten_dict(out), start


def equal(a, b):
    return a.shape == b.shape and (a == b).all()


# ------------------------------------------------------------------------------------------------------------ every array
QUICK = ("glcanet", "fcn8s", "unet", "branch")  # the others take a while to trace


@pytest.mark.parametrize(
    "network", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in models.NETWORKS]
)
def test_a_network_takes_all_of_its_own_weights(network):
    """But the classes that they do not know."""
    given, names = source(small(network)), ("a", "Water", "b", "c")
    theirs = flatten_dict(given.stored.variables)
    fresh, out, start = take(given, small(network), names)
    of_classes = layers(network, names)
    heads = {path for path in out if "/".join(path[1:]) in of_classes}
    # SegGPT's classes are colours of its examples
    assert out.keys() == theirs.keys() and bool(heads) == (network != "seggpt") and not start.left
    assert all(equal(out[path], theirs[path]) for path in out.keys() - heads)
    for path in heads:  # FCN resizes the logits by a kernel from classes to classes
        both = path[1] == "local" and path[2].startswith("up") and network == "fcn8s"
        ours, there = ((1, 1), (2, 2)) if both else ((1,), (2,))
        np.testing.assert_array_equal(out[path][..., *ours], theirs[path][..., *there])
        np.testing.assert_array_equal(out[path][..., 2:], fresh[path][..., 2:])
    assert sum((c for c in start.parts.values()), Counter()) == Counter(taken=len(out) - len(heads), adapted=len(heads))


def layers(network, names):
    """The parameters that give classes."""
    return {"/".join(p) for p in axes_of(small(network), len(names), 3).classes}


def test_classes_by_name_and_bands_as_a_backbone_has_them():
    given = source(small("glcanet"))
    names = ("water", "field", "roof", "Road")
    fresh, out, start = take(given, small("glcanet"), names, bands=6, renames="building=roof")
    theirs = flatten_dict(given.stored.variables)
    stems = [path for path in out if path[-2:] == ("stem_conv", "kernel")]
    of_classes = layers("glcanet", names)
    heads = [path for path in out if "/".join(path[1:]) in of_classes]
    assert (len(stems), len(heads)) == (2, 6)
    for path in out.keys() - {*stems, *heads}:
        np.testing.assert_array_equal(out[path], theirs[path])
    for path in stems:  # a grey image is answered as before
        np.testing.assert_allclose(out[path].sum(2), theirs[path].sum(2), rtol=1e-4, atol=1e-4)
    for path in heads:
        for ours, there in ((0, 2), (2, 0), (3, 1)):
            np.testing.assert_array_equal(out[path][..., ours], theirs[path][..., there])
        np.testing.assert_array_equal(out[path][..., 1], fresh[path][..., 1])
    assert start.classes == {"water": ("water",), "roof": ("Building",), "Road": ("road",)}
    told = str(start)
    assert "classes taken: water, roof (from Building), Road (from road); new: field" in told
    assert "  fusion/aggregate          -        2        -\n" in told and "global/resnet" in told


def test_a_branch_alone_and_back():
    whole, alone = source(small("glcanet")), source(small("branch"))
    theirs = flatten_dict(whole.stored.variables)
    _, out, start = take(whole, small("branch"))
    for path, array in out.items():
        np.testing.assert_array_equal(array, theirs[(*path[:2], *path[3:])])
    assert start.left == ("fusion", "global")
    theirs = flatten_dict(alone.stored.variables)
    fresh, out, start = take(alone, small("glcanet"))
    for path, array in out.items():  # the global branch begins as the local one: it is the same network
        own = fresh[path] if path[1] == "fusion" else theirs[(path[0], "local", "branch", *path[2:])]
        np.testing.assert_array_equal(array, own)
    _, out, _ = take(whole, small("branch", view="global"))
    theirs = flatten_dict(whole.stored.variables)
    path = ("params", "global", "branch", "head", "kernel")
    np.testing.assert_array_equal(out[path], theirs[("params", "global", "head", "kernel")])


def test_options_that_change_no_shape_and_some_that_do():
    """Others of the same shapes take everything; of a wider pyramid the backbones are left, the rest is new."""
    given = source(small("branch"))
    _, _, start = take(given, small("branch", heads=2, position=None, norm="frozen", lem_norm="batch"))
    assert all(set(counts) == {"taken"} for counts in start.parts.values()) and "new: none" in str(start)
    _, _, start = take(given, small("branch", fpn_channels=32))
    assert {p for p, c in start.parts.items() if set(c) == {"taken"}} == {"local/resnet", "local/lem"}


def test_one_backbone_for_two_branches():
    shared = source(small("glcanet", share_backbone=True))
    _, _, start = take(shared, small("glcanet"))
    assert set(start.parts["local/resnet"]) == set(start.parts["global/resnet"]) == {"taken"}


def test_of_another_network_the_backbone_alone():
    given = source(small("glcanet"))
    _, out, start = take(given, small("deeplabv3plus"))
    theirs = flatten_dict(given.stored.variables)
    for path, array in out.items():
        if "resnet" in path:
            np.testing.assert_array_equal(array, theirs[path])
    assert {p for p, c in start.parts.items() if "taken" in c} == {"local/resnet"}


# ---------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            small("glcanet", depth=18),
            "has a backbone of depth 10, this network one of depth 18; give --model.depth 10, or",
        ),
        (small("branch", width=16), "of width 8, this network one of width 16; give --model.width 8"),
        (small("glcanet", stride="v1"), "of stride v1.5, this network one of stride v1"),
    ],
)
def test_another_backbone_is_refused_in_a_line(model, told):
    given = Source("theirs", Path("theirs"), Config(model=small("glcanet")), None)
    with pytest.raises(UserError, match=told):
        starting.check_backbones(given, Config(model=model))


def test_what_fits_nowhere_is_refused():
    with pytest.raises(UserError, match=r"nothing of theirs \(segnet, 3 classes, 3 bands\) fits this network, a unet"):
        take(source(small("segnet")), small("unet"))


def test_classes_are_paired():
    assert pair_classes(["A b", "c"], ["C", "x", "a  B"], None, "w") == [(1,), (), (0,)]
    assert pair_classes(["a", "b"], ["b", "x"], "a=b", "w") == [(0,), ()]
    assert pair_classes(["a", "b"], ["ab"], "a=ab,b=ab", "w") == [(0, 1)]  # their mean
    assert pair_classes(["a"], ["p", "q"], "a=p, a=q", "w") == [(0,), (0,)]
    for wrong, told in (
        ("z=b", "names 'z', which is no class of w"),
        ("a=z", "'z', which is no class of the data"),
        ("ab", "has 'ab'"),
    ):
        with pytest.raises(UserError, match=f"--init.classes {told}|--init.classes names {told}"):
            pair_classes(["a", "b"], ["b"], wrong, "w")


def test_merged_classes_are_their_mean():
    given = source(small("segnet"))
    _, out, _ = take(given, small("segnet"), ("paved", "water"), renames="building=paved,road=paved")
    theirs = flatten_dict(given.stored.variables)
    path = ("params", "local", "head", "kernel")
    np.testing.assert_allclose(out[path][..., 0], theirs[path][..., :2].mean(-1), rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- configurations
def test_images_are_normalised_as_the_weights_do_where_nothing_else_is_given():
    given, data = source(small("segnet")), dataclasses.make_dataclass("Data", ["scale"])
    of = lambda scale=255.0, **options: starting.normalisation_of(given, Config(**options), data(scale))  # noqa: E731
    assert of() == NormalisationConfig((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 255.0)
    assert of(65535.0).scale is None and of(1.0).scale is None  # the data's own
    own = NormalisationConfig((0.5,), (0.2,), 10.0)
    assert of(normalisation=own) == own
    assert of(init=InitConfig("theirs", normalisation=False)) == NormalisationConfig()


def test_a_command_that_begins_with_weights_has_their_network_and_views():
    argv = ["--init", "demo", "--model.no-lem"]
    config = cli.parse(Config, argv, "glcanet train", "Does it.", cli.begun(Config(), argv))
    assert config.init == InitConfig("demo")
    branch = model_config("branch", stride="v1", fpn_channels=128, norm="frozen", lem_norm="group", lem=False)
    assert config.model == branch
    assert (config.views.context_size, config.views.patch_size, config.views.scene_size) == (1254, 256, None)
    whole = cli.begun(Config(model=model_config(dtype="bfloat16")), ["--network", "glcanet", "--init=demo"])
    kept = dict(stride="v1", fpn_channels=128, norm="frozen", lem_norm="group")
    assert whole.model == model_config("glcanet", dtype="bfloat16", **kept)
    assert cli.begun(Config(), ["--out", "x"]) == Config()


def test_weights_are_read_once(monkeypatch, tmp_path):
    """By a command line, what resolves it, and what takes their arrays; then their memory is free, and files that changed are read anew."""
    read, load = [], weights.load_weights
    monkeypatch.setattr(weights, "load_weights", lambda path: read.append(path) or load(path))
    path = Path(shutil.copyfile(weights.resolve("demo"), tmp_path / "w.safetensors"))
    config = cli.begun(Config(), ["--init", str(path)])
    assert Source.read(str(path)) is Source.read(str(path)) and read == [path] and config.model.network == "branch"
    os.utime(path, ns=(1, 1))
    Source.read(str(path))
    starting.forget()
    Source.read(str(path))
    assert read == [path] * 3


def test_a_small_batch_changes_no_norm_of_the_weights(monkeypatch):
    """What auto meant for them is meant here, whatever the batch is."""
    few = LoaderConfig(batch_size=1, patches_per_context=2)
    assert (
        configs.settled(Config(loader=few)).lem_norm
        == configs.settled(Config(model=model_config(norm="frozen"))).lem_norm
        == "group"
    )
    monkeypatch.setattr(Source, "read", lambda name: source(small("glcanet")))
    assert starting.like(Config(loader=few), "theirs").model.lem_norm == configs.settled(Config()).lem_norm == "batch"


def test_a_backbone_of_a_whole_checkpoint(tmp_path):
    """Of another's segmentor; what else it has is named."""
    from safetensors.numpy import save_file

    from tests.weights.test_weights import arrays

    backbone = {f"model.encoder.{name}": array for name, array in arrays().items()}
    rest = {"model.decoder.block.weight": np.zeros(2), "model.segmentation_head.0.bias": np.zeros(2)}
    save_file(backbone | rest, tmp_path / "whole.safetensors")
    given = Source.read(str(tmp_path / "whole.safetensors"))
    model = model_config("branch", depth=18, width=4, fpn_channels=16)
    _, out, start = take(given, model)
    np.testing.assert_array_equal(
        out[("params", "local", "branch", "resnet", "stem_conv", "kernel")],
        arrays()["conv1.weight"].transpose(2, 3, 1, 0),
    )
    assert start.parts["local/resnet"]["taken"] and not start.parts["local/fpn"]["taken"]
    assert set(start.left) == {"decoder (1 arrays)", "segmentation_head (1 arrays)"}
    assert "left: " in str(start) and "ResNet-18 v1.5" in str(start)
    with pytest.raises(UserError, match="holds a resnet backbone, unet has none"):
        starting.check_backbones(given, Config(model=small("unet")))
    with pytest.raises(UserError, match="of depth 18, this network one of depth 50"):
        starting.check_backbones(given, Config())
    like = starting.like(Config(), str(tmp_path / "whole.safetensors"))
    assert like.model == model_config(depth=18)


def test_what_was_taken_is_recorded(tmp_path):
    model = small("segnet")
    path = tmp_path / "w.safetensors"
    given = source(model)
    told = {"names": list(THEIRS), "palette": [[0, 0, 0]] * 3, "dataset": "d"}
    config = configs.to_dict(Config(model=model))
    weights.save_weights(path, given.stored.variables, config, told, NORMALISATION, bands=3)
    _, out, start = take(Source.read(str(path)), model, ("road", "x"))
    record = start.record()
    assert record["weights"] == str(path) and len(record["sha256"]) == 64
    assert record["classes"] == {"road": ["road"], "x": []} and record["arrays"]["local/head"] == {"adapted": 2}
    assert unflatten_dict(out)
