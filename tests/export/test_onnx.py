"""The tile that becomes an ONNX graph against the walk, what the file says of itself, and the graph where its packages are."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from glcanet_jax import geometry, models, runs
from glcanet_jax.config import Config, NormalisationConfig, model_config
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, Protocol
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.export import onnx
from glcanet_jax.inference import walk
from tests.drawn import drawn

VIEWS = geometry.Views(context_size=96, global_size=64, patch_size=64, overlap=16)
NETWORKS = {
    "glcanet": dict(depth=10, width=8, fpn_channels=16, norm="frozen"),
    "unet": dict(width=4),
    "branch": dict(depth=10, width=8, fpn_channels=16, view="global"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file by the name of its network."""
    folder = tmp_path_factory.mktemp("weights")

    def made(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            normalisation = NormalisationConfig(scale=10000.0)
            config = Config(views=VIEWS, model=model_config(name, **NETWORKS[name]), normalisation=normalisation)
            scene = ArrayScene("made", np.zeros((64, 64, 3), np.uint8))
            table = ClassTable(("a", "b"), ((255, 0, 0), (0, 255, 0)))
            dataset = Dataset("made", table, {"train": (scene,)}, (Protocol("all", (0, 1)),))
            runs.save(path, config, dataset, drawn(runs.build_model(config, 2)))
        return path

    return made


@pytest.mark.parametrize("name", [pytest.param("glcanet", marks=pytest.mark.slow), "unet"])
def test_a_tile_is_mapped_as_a_scene_of_its_size(weights, name):
    """The scene by the walk, the tile by one function: its own shrinking, cutting and blending."""
    config, stored = runs.read_weights(weights(name))
    model = runs.rebuild(weights(name), config, stored)
    size = onnx.tile_size(model, config.views, None)
    assert size == {"glcanet": 96, "unet": 64}[name]
    image = onnx.example(3, size, seed=1)
    tile = onnx.tile_function(model, stored.variables, config.views, stored.normalisation, 3, size)
    got = np.asarray(jax.jit(tile)(image))
    predictor, _, _ = runs.load_predictor(weights(name), batch=1, scale=1.0)
    sink = walk.ArraySink(size, size)
    scene = ArrayScene("tile", np.ascontiguousarray(image[0].transpose(1, 2, 0)))
    walk.predict_scene(predictor, scene, sink, outputs=["logits"])
    wanted = np.asarray(jax.nn.softmax(sink.arrays["logits"], axis=-1)).transpose(2, 0, 1)[None]
    assert got.shape == (1, 2, size, size) and np.ptp(got[:, 0]) > 1e-2
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_tile_has_a_size_that_fits(weights, capsys):
    config, stored = runs.read_weights(weights("glcanet"))
    two = runs.rebuild(weights("glcanet"), config, stored)
    one, whole = models.build("unet", 2, width=4), models.build("branch", 2, **NETWORKS["branch"])
    assert onnx.tile_size(one, VIEWS, None) == 64 and onnx.tile_size(whole, VIEWS, None) == 96
    assert onnx.tile_size(two, VIEWS, 128) == 128
    assert "trained on contexts of 96 px: the answers of a tile of 128 px differ" in capsys.readouterr().out
    for model, size, least in ((two, 63, 64), (one, 31, 32), (two, 9000, 64)):
        with pytest.raises(UserError, match=rf"--size is {size}; it must be from {least} to 8192 px"):
            onnx.tile_size(model, VIEWS, size)


@pytest.mark.parametrize(
    ("views", "size", "percent"),
    [
        (geometry.Views(), 2448, 25),  # an eighth of the context at each edge, as in the walk
        (geometry.Views(context_size=1254, global_size=256, patch_size=256, overlap=32), 1254, 25),
        (geometry.Views(context_size=600), 600, 75),  # half a patch would be 83 %
        (geometry.Views(context_size=500), 500, 0),
    ],
)
def test_tiles_overlap_by_their_surround(views, size, percent):
    assert onnx.overlap_percent(object(), views, size) == percent


def test_what_deepness_reads(weights):
    """Every value is JSON; what it divides by 255 becomes 0 to 1 whatever the full scale; metres become centimetres."""
    config, stored = runs.read_weights(weights("glcanet"))
    model = runs.rebuild(weights("glcanet"), config, stored)
    told = json.loads(json.dumps(onnx.metadata(config, stored, model, 96)))
    assert told["model_type"] == "Segmentor" and told["class_names"] == {"0": "a", "1": "b"}
    assert told["tile_size"] == told["tiles_size"] == 96 and told["seg_thresh"] == 0
    assert type(told["tiles_overlap"]) is int and "resolution" not in told
    values = np.array([[0.0, 5000.0, 10000.0]]).T / 255
    deepness = (values - told["standardization_mean"]) / told["standardization_std"]
    np.testing.assert_allclose(deepness, [[0.0] * 3, [0.5] * 3, [1.0] * 3])
    import dataclasses

    known = dataclasses.replace(stored, ground_resolution=0.3)
    assert onnx.metadata(config, known, model, 96)["resolution"] == 30


def test_without_the_packages_one_line_says_what_to_install(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        UserError, match=r"ONNX needs jax2onnx, onnxruntime .*pip install onnx .*pip install --no-deps jax2onnx"
    ):
        onnx.write(weights("unet"), tmp_path / "network.onnx", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_graph_answers_as_the_network(weights, tmp_path, name):
    """Opset, IR version, one input and one output; in a process of its own, for jax2onnx promotes ranks, an error here."""
    pytest.importorskip("jax2onnx", reason="see requirements-onnx.txt")
    graphs = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "network.onnx"
    command = [sys.executable, "-m", "glcanet_jax", "export", "--weights", weights(name), "--out", out]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    graph = graphs.load(out)
    assert graph.ir_version <= 9 and max(o.version for o in graph.opset_import if not o.domain) <= 20
    sides = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.graph.input, *graph.graph.output)]
    size = 64 if name == "unet" else 96
    assert sides == [[1, 3, size, size], [1, 2, size, size]]
    assert {"model_type", "class_names", "tiles_size"} <= {p.key for p in graph.metadata_props}
    graphs.checker.check_model(graph)
