"""Weights in and out: nothing is run, nothing is lost, every mismatch is told."""

import argparse
import collections
import os
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from glcanet_jax import weights
from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import resnet
from glcanet_jax.weights import torch_files
from glcanet_jax.weights.backbones import torchvision_name

# a configuration, classes and a normalisation as a weights file tells them
TOLD = (
    {"out": "x"},
    {"names": ["a"], "palette": [[1, 2, 3]], "dataset": "d"},
    {"mean": [0.5], "std": [0.2], "scale": 255},
)


def template(bands=3, **options):
    model = resnet.ResNet(depth=18, width=4, **options)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, bands))))


def arrays(seed=0):
    """A narrow ResNet-18 under torchvision's names."""
    from flax.traverse_util import flatten_dict

    rng = np.random.default_rng(seed)
    out = {}
    for path, leaf in flatten_dict(template()).items():
        shape = leaf.shape if len(leaf.shape) == 1 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
        out[torchvision_name(path[1:])] = rng.standard_normal(shape).astype(np.float32)
    return out


def test_names_are_torchvisions():
    names = set(arrays())
    expected = {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"}
    assert expected | {"layer2.0.downsample.1.bias", "layer4.1.bn2.running_mean"} <= names
    assert not any(n.startswith("layer1.0.downsample") for n in names)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_round_trip_into_the_backbone(tmp_path, kind):
    given = arrays()
    path = tmp_path / f"r18.{kind}"
    wrapped = {f"module.{k}": v for k, v in given.items()} | {"fc.weight": np.zeros((10, 32), np.float32)}
    if kind == "npz":
        np.savez(path, **wrapped)
    else:
        save_file(wrapped, path, {"stride": "v1: on the 1x1"})
    loaded = weights.load_torchvision(path)
    assert loaded.depth == 18 and loaded.stride == ("v1" if kind == "safetensors" else "v1.5")
    variables = weights.backbone_variables(loaded, template())
    np.testing.assert_array_equal(
        variables["params"]["stem_conv"]["kernel"], given["conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["stage3_block1"]["shortcut_norm"]["var"], given["layer3.0.downsample.1.running_var"]
    )
    if kind == "safetensors":
        with pytest.raises(UserError, match="says that it is ResNet v1, v1.5 was asked for"):
            weights.load_torchvision(path, stride="v1.5")


@pytest.mark.parametrize("bands", [1, 4, 6])
def test_other_bands_answer_a_grey_image_alike(bands):
    loaded = weights.TorchvisionWeights(arrays(), 18, "v1.5", "here", "")
    stem = weights.backbone_variables(loaded, template(bands), bands)["params"]["stem_conv"]["kernel"]
    rgb = loaded.arrays["conv1.weight"].transpose(2, 3, 1, 0)
    if bands % 3 == 0 or bands == 1:
        np.testing.assert_allclose(stem.sum(2), rgb.sum(2), rtol=1e-4, atol=1e-4)
    assert stem.shape == (7, 7, bands, 4)


def test_mismatches_list_both_sides():
    given = arrays()
    given["layer1.0.conv9.weight"] = given.pop("layer1.0.conv1.weight")
    given["bn1.weight"] = np.zeros(7, np.float32)
    with pytest.raises(UserError) as error:
        weights.backbone_variables(weights.TorchvisionWeights(given, 18, "v1.5", "here", ""), template())
    for part in (
        "the file lacks layer1.0.conv1.weight",
        "the model lacks layer1.0.conv9.weight",
        "bn1.weight (7,) against (4,)",
    ):
        assert part in str(error.value)


def torch_zip(path, content, storages):
    """A file as torch.save writes it, without torch."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, value in storages.items():
            archive.writestr(f"archive/data/{key}", value.tobytes())


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_pickled_code_is_refused_unrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch_zip(tmp_path / "evil.pth", pickle.dumps({"conv1.weight": Evil()}), {})
    with pytest.raises(UserError, match="wants to run posix.system"):
        weights.load_torchvision(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_pickled_code_of_the_old_format_is_refused_unrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = [torch_files.MAGIC, torch_files.PROTOCOL, {"little_endian": True}]
    for i in range(4):  # in whichever of the pickles it stands
        parts = [*head, {"x": 1}, []]
        parts[i] = {"conv1.weight": Evil()}
        (tmp_path / "evil.pth").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
        with pytest.raises(UserError, match="wants to run posix.system"):
            weights.load_torchvision(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_real_torch_files(tmp_path, wrapper, old):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {k: torch.as_tensor(v) for k, v in arrays().items()}
    state["conv1.weight"] = torch.nn.Parameter(state["conv1.weight"].transpose(2, 3))  # strided, and a parameter
    state["bn1.num_batches_tracked"] = torch.tensor(3)
    content = {wrapper: state} if wrapper else state
    torch.save(content, tmp_path / "r18.pth", _use_new_zipfile_serialization=not old)
    loaded = weights.load_torchvision(tmp_path / "r18.pth")
    assert set(loaded.arrays) == set(arrays())
    for name, value in loaded.arrays.items():
        np.testing.assert_array_equal(value, state[name].detach().numpy())


class Kept:
    """What a trainer keeps beside the weights: lists, numbers, attributes."""

    def __init__(self):
        self.values = collections.deque([1.0])


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["backbone.", "model.encoder.", "module.model.backbone."])
def test_checkpoints_of_segmentors_give_their_backbone(tmp_path, monkeypatch, prefix, old):
    """What lies beside the weights is neither run nor looked up; heads are named and left."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    outer = prefix.removesuffix("encoder.").removesuffix("backbone.")
    state = {f"{prefix}{k}": torch.as_tensor(v) for k, v in arrays().items()}
    state |= {
        f"{outer}decode_head.conv_seg.weight": torch.zeros(2),
        f"{outer}decode_head.conv_seg.bias": torch.zeros(2),
    }
    beside = {
        "hyper_parameters": argparse.Namespace(lr=1), "callbacks": {"stop": Evil()}, "loops": Kept(), "epoch": np.float64(3),
        "history": collections.defaultdict(list, a=[1]), "seen": {Kept: 1}, "all": frozenset({1}),
    }  # fmt: skip
    torch.save({"meta": beside, "state_dict": state, **beside}, "w.ckpt", _use_new_zipfile_serialization=not old)
    loaded = weights.load_torchvision(tmp_path / "w.ckpt")
    assert set(loaded.arrays) == set(arrays()) and loaded.left == ("decode_head (2 arrays)",)
    np.testing.assert_array_equal(loaded.arrays["conv1.weight"], arrays()["conv1.weight"])
    assert not (tmp_path / "pwned").exists()


def test_a_stem_of_three_convolutions_is_told(tmp_path):
    save_file(
        {f"backbone.{k}": v for k, v in arrays().items()} | {"backbone.stem.0.weight": np.zeros(2)},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(UserError, match="whose stem is three convolutions"):
        weights.load_torchvision(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.pth"])
def test_garbage_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="no readable"):
        weights.load_torchvision(tmp_path / name)
    with pytest.raises(UserError, match="no weights file"):
        weights.load_torchvision(tmp_path / f"absent-{name}")


def test_weights_out_and_in(tmp_path):
    variables = {
        "params": {"a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}},
        "batch_stats": {"a": {"mean": np.ones(3, np.float32)}},
    }
    for dtype in (None, np.float16):
        weights.save_weights(tmp_path / "w.safetensors", variables, *TOLD, dtype, bands=5)
        file = weights.load_weights(tmp_path / "w.safetensors")
        jax.tree.map(np.testing.assert_array_equal, file.variables, variables)
        assert file.variables["params"]["a"]["kernel"].dtype == np.float32
        assert (file.config, file.classes, file.normalisation) == TOLD and file.bands == 5
    before = (tmp_path / "w.safetensors").read_bytes()
    for _ in range(3):  # metadata in the order that it happens to have would differ
        weights.save_weights(tmp_path / "w.safetensors", variables, *TOLD, dtype, bands=5)
        assert (tmp_path / "w.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    save_file(arrays(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no weights of glcanet_jax"):
        weights.load_weights(tmp_path / "other.safetensors")


def test_weights_of_eight_bits(tmp_path):
    """Kernels come back within half a step of their channel's scale, vectors as they were; older programs refuse the file."""
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((3, 3, 4, 6)) * np.logspace(-3, 1, 6)).astype(np.float32)
    kernel[..., 2] = 0
    params = {"a": {"kernel": kernel, "bias": rng.standard_normal(6).astype(np.float32)}}
    weights.save_weights(tmp_path / "w.safetensors", {"params": params}, *TOLD, np.int8, bands=3)
    back = weights.load_weights(tmp_path / "w.safetensors").variables["params"]["a"]
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    assert (np.abs(back["kernel"] - kernel) <= 0.5 * step + 1e-7).all() and back["kernel"].dtype == np.float32
    np.testing.assert_array_equal(back["bias"], params["a"]["bias"])
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata()["version"] == "2" and file.get_tensor("params/a/kernel").dtype == np.int8
    weights.save_weights(tmp_path / "w.safetensors", {"params": params}, *TOLD, bands=3)
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata()["version"] == "1"


def test_a_file_that_does_not_say_its_bands(tmp_path):
    """Those of older files are in the shape of their stem; where there is none, saving asks for them."""
    stem = {"params": {"a": {"stem_conv": {"kernel": np.zeros((3, 3, 4, 8), np.float32)}}}}
    weights.save_weights(tmp_path / "w.safetensors", stem, *TOLD)
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        metadata, kept = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    assert metadata.pop("bands") == "4"
    save_file(kept, tmp_path / "old.safetensors", metadata)
    assert weights.load_weights(tmp_path / "old.safetensors").bands == 4
    with pytest.raises(UserError, match="nothing says how many bands"):
        weights.save_weights(tmp_path / "w.safetensors", {"params": {"a": np.zeros(3)}}, {}, {}, {})
