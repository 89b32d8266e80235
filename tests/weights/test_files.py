"""Weights files that are damaged, of something else, or made to harm: one line each, before a network is built."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from glcanet_jax import config, weights
from glcanet_jax.errors import UserError
from glcanet_jax.weights import files

CONFIG, CLASSES = {"out": "x"}, {"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "dataset": "d"}
NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "scale": 255.0}
ARRAYS = {"params/a/kernel": np.ones((3, 3, 3, 4), np.float32), "batch_stats/a/mean": np.zeros(4, np.float32)}
SCALED = {"params/a/kernel": np.ones((3, 4), np.int8), "params/a/kernel:scale": np.ones(4, np.float32)}


def metadata(**changed):
    told = {"format": files.FORMAT, "version": "1", "bands": "3", "config": json.dumps(CONFIG)}
    told |= {"classes": json.dumps(CLASSES), "normalisation": json.dumps(NORMALISATION)} | changed
    return {key: value for key, value in told.items() if value is not None}


def write(path, arrays=ARRAYS, **changed):
    save_file(arrays, path, metadata(**changed))
    return path


def refused(path):
    with pytest.raises(UserError) as told:
        weights.load_weights(path)
    message = str(told.value)
    assert str(path) in message and "\n" not in message and "None" not in message and len(message) < 1000
    return message


def test_a_whole_file_is_read(tmp_path):
    stored = weights.load_weights(write(tmp_path / "w.safetensors"))
    assert (stored.config, stored.classes, stored.normalisation) == (CONFIG, CLASSES, NORMALISATION)
    assert stored.ground_resolution is None  # a file of before
    stored = weights.load_weights(write(tmp_path / "w.safetensors", SCALED, version="2", ground_resolution="0.3"))
    assert stored.ground_resolution == 0.3 and stored.variables["params"]["a"]["kernel"].dtype == np.float32


def test_a_copy_has_the_same_arrays_and_another_configuration(tmp_path):
    path = write(tmp_path / "w.safetensors", SCALED, version="2", ground_resolution="0.3")
    files.copy_weights(path, tmp_path / "copy.safetensors", {"out": "longer than it was"})
    stored, copy = weights.load_weights(path), weights.load_weights(tmp_path / "copy.safetensors")
    np.testing.assert_array_equal(copy.variables["params"]["a"]["kernel"], stored.variables["params"]["a"]["kernel"])
    assert copy.config == {"out": "longer than it was"} and copy.ground_resolution == 0.3
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "copy.safetensors"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format": None}, "no weights of glcanet_jax"),
        ({"version": "9"}, "is of version 9"),
        ({"classes": None}, "lacks classes in its metadata"),
        ({"ground_resolution": "wide"}, "says that a pixel is 'wide' m; it must be a number above 0"),
        ({"ground_resolution": "nan"}, "says that a pixel is 'nan' m"),
        ({"ground_resolution": "-1"}, "says that a pixel is '-1' m"),
        ({"config": "{"}, "(config) is no valid JSON"),
        ({"config": "[]"}, "(config) is no object of settings"),
        ({"config": '{"a": 1, "a": 2}'}, '(config) is no JSON of ours: it has the key "a" twice'),
        ({"classes": "[]"}, "(classes): the whole is a list of 0"),
        ({"classes": "{}"}, "(classes): names is missing"),
        ({"classes": json.dumps(CLASSES | {"names": []})}, "(classes): names is a list of 0"),
        ({"classes": json.dumps(CLASSES | {"names": ["a"]})}, "(classes): classes has 1 names and 2 colours"),
        ({"classes": json.dumps(CLASSES | {"names": ["a", 3]})}, "(classes): names[1] is 3"),
        ({"classes": json.dumps(CLASSES | {"names": ["a", "b\n"]})}, "(classes): names[1] is"),
        ({"classes": json.dumps(CLASSES | {"palette": [[1, 2, 3], [4, 5, 256]]})}, "palette[1][2] is 256"),
        ({"classes": json.dumps(CLASSES | {"palette": [[1, 2], [4, 5, 6]]})}, "palette[0][2] is missing"),
        ({"classes": json.dumps(CLASSES | {"colours": []})}, "(classes): colours is not known"),
        ({"normalisation": "{}"}, "(normalisation): mean is missing"),
        ({"normalisation": json.dumps(NORMALISATION | {"std": [0.2, 0, 0.2]})}, "std[1] is 0"),
        ({"normalisation": json.dumps(NORMALISATION | {"std": [0.2]})}, "has 3 means and 1 deviations"),
        ({"normalisation": json.dumps(NORMALISATION | {"scale": None})}, "scale is null"),
        ({"normalisation": json.dumps(NORMALISATION | {"mean": [1e999]})}, "(normalisation) is no JSON of ours"),
        ({"normalisation": '{"mean": [1e999], "std": [1], "scale": 1}'}, "mean[0] is Infinity"),
        ({"bands": "three"}, "says that images have 'three' bands"),
        ({"bands": "0"}, "says that images have '0' bands"),
        ({"bands": "-3"}, "says that images have '-3' bands"),
        ({"bands": "9" * 5000}, "it must be a number from 1 to 4096"),
    ],
)
def test_bad_metadata_is_told(tmp_path, changed, told):
    assert told in refused(write(tmp_path / "w.safetensors", **changed))


KERNEL = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "it holds no array"),
        ({"kernel": KERNEL}, "'kernel' is no array of a network's"),
        ({"other/kernel": KERNEL}, "'other/kernel' is no array of a network's"),
        ({"params//kernel": KERNEL}, "is no array of a network's"),
        ({"params/": KERNEL}, "is no array of a network's"),
        ({"params/a": KERNEL, "params/a/b": KERNEL}, "'params/a' is no array of a network's"),
        ({"params/a": np.full((3, 4), np.nan, np.float32)}, "params/a holds values that are not finite"),
        ({"params/a": np.full((3, 4), np.inf, np.float16)}, "params/a holds values that are not finite"),
        ({"params/a": KERNEL.astype(np.float64)}, "params/a is of float64, it must be float32, float16"),
        ({"params/a": KERNEL.astype(np.int32)}, "params/a is of int32"),
        ({"params/a": KERNEL.astype(bool)}, "params/a is of bool"),
        ({"params/a": KERNEL.astype(np.int8)}, "params/a is of int8 without a scale"),
        ({"params/a:scale": KERNEL[0]}, "params/a:scale is the scale of no array of int8"),
        ({"params/a": KERNEL, "params/a:scale": KERNEL[0]}, "params/a:scale is the scale of no array of int8"),
        (SCALED | {"params/a/kernel:scale": np.ones(3, np.float32)}, "is float32 [3], it must be float32 [4]"),
        (SCALED | {"params/a/kernel:scale": np.ones((1, 4), np.float32)}, "it must be float32 [4]"),
        (SCALED | {"params/a/kernel:scale": np.ones(4, np.float16)}, "is float16 [4]"),
        (SCALED | {"params/a/kernel:scale": np.zeros(4, np.float32)}, "holds values that are not above 0"),
        (SCALED | {"params/a/kernel:scale": np.full(4, np.nan, np.float32)}, "holds values that are not above 0"),
        ({f"params/{i}": np.full(1, np.nan, np.float32) for i in range(20)}, "; and 12 more"),
    ],
)
def test_bad_arrays_are_told(tmp_path, arrays, told):
    assert told in refused(write(tmp_path / "w.safetensors", arrays))


def header(text, body=b""):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(data)) + data + body


F8 = {"__metadata__": metadata(), "params/a": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}
LYING = {"params/a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}
OVERFLOWING = {"params/a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"no weights at all, but text",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        header(b"{"),
        header(b"[" * 5000),
        header([]),
        header({"params/a": 3}),
        header(LYING, b"\0" * 4),
        header(OVERFLOWING, b"\0" * 4),
        header(F8, b"\0" * 2),
    ],
    ids=range(12),
)
def test_what_is_no_weights_file_is_told(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_told(tmp_path, share):
    path = write(tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "no readable safetensors file" in refused(path)


# -------------------------------------------------------------------------------------------------- of another network
def shaped(*shape):
    return np.broadcast_to(np.float32(0), shape)


WANTED = {"params": {"a": {"kernel": shaped(3, 3, 3, 4), "bias": shaped(4)}}, "batch_stats": {"a": {"mean": shaped(4)}}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"params": {"a": {"kernel": shaped(3, 3, 3, 4)}}}, "it lacks batch_stats/a/mean, params/a/bias"),
        (WANTED | {"batch_stats": {"a": {"mean": shaped(4), "var": shaped(4)}}}, "it has besides batch_stats/a/var"),
        (WANTED | {"params": {"a": {"kernel": shaped(3, 3, 4, 4), "bias": shaped(4)}}}, "params/a/kernel is [3, 3, 4, 4], not [3, 3, 3, 4]"),
        (WANTED | {"params": {"a": shaped(4)}}, "it lacks params/a/bias, params/a/kernel; has besides params/a"),
        ({}, "it lacks batch_stats/a/mean, params/a/bias, params/a/kernel"),
    ],
)  # fmt: skip
def test_arrays_of_another_network_are_told(tmp_path, given, told):
    with pytest.raises(UserError, match="does not hold the network that its configuration describes") as error:
        weights.check_variables(tmp_path / "w.safetensors", given, WANTED)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_the_network_of_a_file_is_compared_before_it_is_used(tmp_path):
    """U-Net's own arrays pass; those of another width, or for other bands or classes, do not."""
    import jax
    from flax.traverse_util import flatten_dict

    from glcanet_jax import models, runs

    own = config.Config(model=config.model_config("unet", width=4))
    shapes = models.shapes(runs.build_model(own, 2), 3)
    arrays = {"/".join(k): np.zeros(v.shape, np.float32) for k, v in flatten_dict(shapes).items()}
    told = {"config": json.dumps(config.to_dict(own))}
    stored = runs.read_weights(write(tmp_path / "w.safetensors", arrays, **told))
    assert stored[0] == own and jax.tree.structure(stored[1].variables["params"]) == jax.tree.structure(
        shapes["params"]
    )
    runs.rebuild(tmp_path / "w.safetensors", *stored)
    wider = config.to_dict(config.Config(model=config.model_config("unet", width=8)))
    three = {"names": ["a", "b", "c"], "palette": [[i, 0, 0] for i in range(3)], "dataset": "d"}
    for changed in ({"config": json.dumps(wider)}, {"bands": "4"}, {"classes": json.dumps(three)}):
        path = write(tmp_path / "w.safetensors", arrays, **told | changed)
        with pytest.raises(UserError, match="does not hold the network that its configuration describes"):
            runs.rebuild(path, *runs.read_weights(path))
    bad = config.to_dict(own) | {"eval_batch": 0}
    with pytest.raises(UserError, match=r"w.safetensors .config.: eval_batch is 0"):
        runs.read_weights(write(tmp_path / "w.safetensors", arrays, config=json.dumps(bad)))
