"""The exported file against the network, without the network, and against what may befall a file."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import export, geometry, models, runs
from glcanet_jax.config import Config, NormalisationConfig, model_config
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, Protocol
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.export import common, stablehlo
from glcanet_jax.inference import exported, walk
from glcanet_jax.maps.model import load_model
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.models import normalise
from tests.drawn import drawn
from tests.light import Light

SMALL = dict(depth=10, width=8, fpn_channels=16, norm="frozen")
VIEWS = geometry.Views(context_size=96, global_size=64, patch_size=64, overlap=16)
NUMBERS = (3, 1)  # contexts, patches of each; an export compares others itself
PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def saved(path, model):
    """A network whose parts that start at zero answer something, saved as a run saves it."""
    config = Config(views=VIEWS, model=model, normalisation=NormalisationConfig(scale=255.0))
    variables = drawn(runs.build_model(config, 3))
    table = ClassTable(("a", "b", "c"), PALETTE)
    scene = ArrayScene("made", np.zeros((64, 64, 3), np.uint8))
    dataset = Dataset("made", table, {"train": (scene,)}, (Protocol("all", (0, 1, 2)),))
    runs.save(path, config, dataset, variables)
    return path


def exported_of(weights, path):
    """The exported file, from the folder of a run, and the errors that were reported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stablehlo, "CHECKED", stablehlo.CHECKED[:1])  # other numbers have a test below
        return path, export.export(weights.parent, path)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "best.safetensors", model_config(**SMALL))


@pytest.fixture(scope="module")
def written(weights_file, tmp_path_factory):
    return exported_of(weights_file, tmp_path_factory.mktemp("export") / "made" / "network.zip")


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Weights and what is exported of them, of a network that compiles at once: for what is of the files alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, "light", Light)
        weights = saved(tmp_path_factory.mktemp("light") / "best.safetensors", model_config("light"))
        yield weights, exported_of(weights, tmp_path_factory.mktemp("export") / "light.zip")[0]


@pytest.fixture(scope="module")
def network(weights_file):
    model, variables, _, _ = common.rebuild(weights_file)
    return variables, [jax.jit(f) for f in models.functions(model)[:3]]


def answers(exported, image, patches, boxes):
    context, features = exported.encode_global(image), exported.encode_local(patches)
    return context, features, *exported.fuse(context, features, boxes)


def test_the_file_says_what_it_is(written):
    path, errors = written
    assert set(errors) == {"encode_global", "encode_local", "fuse"} and max(errors.values()) <= 1e-5
    assert [p.name for p in path.parent.iterdir()] == ["network.zip"]
    with zipfile.ZipFile(path) as archive:
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert set(archive.namelist()) == {
            "manifest.json", "encode_global.bin", "encode_local.bin", "fuse.bin", "weights.safetensors"
        }  # fmt: skip
        manifest = json.loads(archive.read("manifest.json"))
        # no paths of the machine
        assert not any(re.search(rb"\.py\b|site-packages", archive.read(f"{name}.bin")) for name in errors)
    assert manifest["jax"] == jax.__version__ and manifest["platforms"] == ["cpu", "cuda"]
    assert manifest["classes"] == {"names": ["a", "b", "c"], "palette": [list(c) for c in PALETTE], "dataset": "made"}
    assert manifest["geometry"]["patch_size"] == 64 and manifest["geometry"]["bands"] == 3
    assert manifest["network"]["options"]["fast_conv"] is False and manifest["network"]["options"]["lem_norm"] == "auto"
    functions = manifest["functions"]
    assert functions["encode_local"]["inputs"] == {"patches": {"shape": ["b", "n", 64, 64, 3], "dtype": "float32"}}
    assert functions["fuse"]["outputs"]["logits"] == {"shape": ["b", "n", 16, 16, 3], "dtype": "float32"}
    assert functions["fuse"]["inputs"]["context"] == functions["encode_global"]["outputs"]["context"]


@pytest.mark.parametrize(("b", "n"), [NUMBERS, pytest.param(1, 4, marks=pytest.mark.slow)])
def test_it_answers_as_the_network_whatever_the_numbers(written, network, b, n):
    exported = export.load(written[0])
    inputs = stablehlo.example(exported.manifest, b, n, seed=1)
    variables, (encode_global, encode_local, fuse) = network
    context, features = encode_global(variables, inputs[0]), encode_local(variables, inputs[1])
    logits, out = fuse(variables, context, features, inputs[2])
    got = answers(exported, *inputs)
    assert got[2].shape == (b, n, 16, 16, 3) and np.ptp(got[2]) > 1e-2
    wanted = context, features, logits, {"local/logits": out["local/logits"]}
    assert common.relative_error(got, wanted) <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "window", "attn_levels": (5, 4, 3), "norm": "group"},
        pytest.param(
            {"mask": "none", "residual": "input", "share_backbone": True, "position": None, "dtype": "bfloat16"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"sharing": "glnet", "norm": "batch"}, marks=pytest.mark.slow),
        {"head": "nonlinear", "feed_forward": 2},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_every_kind_of_network_can_be_lowered(options):
    model = models.build("glcanet", 3, **{**SMALL, **options}, fast_conv=False)
    shapes = models.shapes(model, 4)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    programs = stablehlo._lower(model, stablehlo._flatten(variables), VIEWS, 4)
    assert [str(d) for d in programs["fuse"].out_avals[0].shape] == ["b", "n", "16", "16", "3"]


ALONE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax", "einops", "jaxtyping", "optax", "tyro", "PIL") or name in (
            "glcanet_jax.models", "glcanet_jax.config", "glcanet_jax.runs", "glcanet_jax.weights"
        ):
            raise ImportError(f"{name} is not needed here")

sys.meta_path.insert(0, Blocked())
import numpy as np
from glcanet_jax import export

exported = export.load(sys.argv[1])
given = np.load(sys.argv[2])
context = exported.encode_global(given["image"])
features = exported.encode_local(given["patches"])
logits, out = exported.fuse(context, features, given["boxes"])
np.testing.assert_allclose(logits, given["logits"], rtol=0, atol=1e-5 * np.abs(given["logits"]).max())
np.testing.assert_allclose(out["local/logits"], given["local"], rtol=0, atol=1e-5 * np.abs(given["local"]).max())
np.testing.assert_allclose(exported.normalise(given["pixels"]), given["normal"], rtol=0, atol=1e-6)
print("alike")
"""


def test_it_runs_without_flax_or_the_networks(written, network, tmp_path):
    variables, (encode_global, encode_local, fuse) = network
    image, patches, boxes = stablehlo.example(export.load(written[0]).manifest, *NUMBERS, seed=1)
    logits, out = fuse(variables, encode_global(variables, image), encode_local(variables, patches), boxes)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    normal = normalise(jnp.asarray(pixels), NormalisationConfig().mean, NormalisationConfig().std, 255.0)
    np.savez(
        tmp_path / "given.npz", image=image, patches=patches, boxes=boxes, logits=logits, local=out["local/logits"],
        pixels=pixels, normal=normal,
    )  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(export.__file__).parents[2]),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    command = [sys.executable, "-c", ALONE, str(written[0]), str(tmp_path / "given.npz")]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "alike\n", result.stderr


def test_inputs_that_do_not_fit_are_told(written):
    exported = export.load(written[0])
    image, patches, boxes = stablehlo.example(exported.manifest, 1, 2)
    with pytest.raises(UserError, match=r"image is float32 \[1, 32, 64, 3\]; it must be float32 \[b, 64, 64, 3\]"):
        exported.encode_global(image[:, :32])
    with pytest.raises(UserError, match=r"patches is uint8 .* normalise"):
        exported.encode_local(patches.astype(np.uint8))
    with pytest.raises(UserError, match=r"boxes is float32 \[2, 4\]"):
        exported.fuse({}, {}, boxes[0])


# --------------------------------------------------------------------------------------------------------- maps with it
@pytest.fixture(scope="module")
def scene():
    return ArrayScene("made", np.random.default_rng(3).integers(0, 256, (90, 130, 3), np.uint8))


def logits_of(weights, scene, **options):
    predictor, config, classes = runs.load_predictor(weights, batch=2, **options)
    sink = walk.ArraySink(scene.height, scene.width)
    walk.predict_scene(predictor, scene, sink, outputs=["logits"])
    return sink.arrays["logits"], config, classes


def test_it_maps_as_the_weights_do_through_the_same_walk(light, scene):
    """Several blocks and batches; its own classes, views and bands."""
    weights, written = light
    wanted, config, classes = logits_of(weights, scene)
    got, told, named = logits_of(written, scene)
    assert named == classes and told.views == config.views and told.model.network == "light"
    assert np.ptp(wanted) > 1e-2 and common.relative_error(got, wanted) <= 1e-4
    shifted, _, _ = logits_of(written, scene, scale=300.0)
    assert common.relative_error(shifted, wanted) > 1e-3


def test_what_an_export_cannot_is_told(written, weights_file, tmp_path):
    with pytest.raises(UserError, match="takes patches of 64 px alone; leave out --fit-patches"):
        load_model(written[0], MapOptions(fit_patches=True))
    with pytest.raises(UserError, match="is an exported network already"):
        export.export(written[0], tmp_path / "again.zip")
    with pytest.raises(UserError, match="leave out --dtype bfloat16"):
        load_model(written[0], MapOptions(dtype="bfloat16"))
    for name, options, told in (
        ("a.onnx", {"format": "stablehlo"}, "ends as a file of onnx, and stablehlo was asked for"),
        ("a.zip", {"size": 96}, "--size is of ONNX alone"),
        ("", {}, "is a folder; give the name of a file to write"),
    ):
        with pytest.raises(UserError, match=told):
            export.export(weights_file, tmp_path / name, **options)


@pytest.mark.parametrize(("name", "ending"), [("demo.txt", ".txt"), ("demo", "nothing"), ("demo.onnx.bak", ".bak")])
@pytest.mark.parametrize("format", [None, "stablehlo"])
def test_an_export_says_by_its_name_what_it_is(tmp_path, name, ending, format):
    with pytest.raises(
        UserError, match=rf"ends in {ending}; exports end in \.zip \(stablehlo\) or \.onnx \(onnx\): give"
    ):
        export.export("demo", tmp_path / name, format)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- files that are not
def rewritten(path, out, **parts):
    """A copy with some parts replaced, or left out."""
    with zipfile.ZipFile(path) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    whole |= parts
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in whole.items():
            if part is not None:
                archive.writestr(name, part)


def test_files_that_cannot_be_used_are_told(written, tmp_path):
    path, _ = written
    bad = tmp_path / "bad.zip"
    with pytest.raises(UserError, match="there is no exported network at .*bad.zip; make one"):
        export.load(bad)
    content = path.read_bytes()
    for part in (content[: len(content) // 2], content[:-30], b"", b"PK not a zip"):
        bad.write_bytes(part)
        with pytest.raises(UserError, match="no readable exported network .*export it again"):
            export.load(bad)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    bad.write_bytes(flipped)
    with pytest.raises(UserError, match="no readable exported network .*CRC"):
        export.load(bad)
    manifest = export.load(path).manifest
    for changed, message in (
        (None, "a zip but no exported network of glcanet_jax"),
        ([], "a zip but no exported network"),
        ({**manifest, "format": "other"}, "a zip but no exported network"),
        ({**manifest, "version": 7}, "of version 7, this program reads 1"),
        ({**manifest, "data": []}, "does not say data as it must"),
        (
            {**manifest, "geometry": {}},
            "says 3, None, None, None, None, None, None of its classes, .* 3, 64, 64, 3, 64, 64, 3;",
        ),
        ({**manifest, "classes": manifest["classes"] | {"names": ["a"]}}, "says 1, 64, 64, 3"),
        ({**manifest, "jax": "9.9", "calling_convention": 99}, "exported by jax 9.9, which jax .* cannot read"),
    ):
        rewritten(path, bad, **{"manifest.json": None if changed is None else json.dumps(changed)})
        with pytest.raises(UserError, match=message):
            export.load(bad)
    rewritten(path, bad, **{"fuse.bin": None})
    with pytest.raises(UserError, match=r"no readable exported network .*fuse\.bin"):
        export.load(bad)
    rewritten(path, bad, **{"weights.safetensors": b"nothing"})
    with pytest.raises(UserError, match="no readable exported network"):
        export.load(bad)


def test_a_failed_comparison_leaves_what_was_there(light, tmp_path, monkeypatch):
    weights_file, written = light
    with zipfile.ZipFile(written) as archive:  # lowered once is enough
        programs = {name: jax.export.deserialize(bytearray(archive.read(f"{name}.bin"))) for name in exported.INPUTS}
    monkeypatch.setattr(stablehlo, "_lower", lambda *_: programs)
    monkeypatch.setattr(stablehlo, "TOLERANCE", {"float32": -1.0})
    monkeypatch.setattr(stablehlo, "CHECKED", ((1, 1),))
    out = tmp_path / "network.zip"
    with pytest.raises(UserError, match="encode_global as exported differs .* nothing was written"):
        export.export(weights_file, out)
    assert not list(tmp_path.iterdir())
    out.write_text("older")
    with pytest.raises(UserError, match="nothing was written"):
        export.export(weights_file, out)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("network.zip", "older")]


def test_broken_networks_are_not_exported(written):
    assert np.isnan(common.relative_error({"x": np.array([1.0]), "y": np.array([np.nan])}, {"x": 1.0, "y": 1.0}))
    assert common.relative_error([np.zeros(2), np.ones(2)], [np.zeros(2), np.full(2, 2.0)]) == 0.5


def test_what_is_missing_is_told(weights_file, written, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no weights file or run"):
        export.export(tmp_path / "none", tmp_path / "x.zip")
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        export.export(weights_file, tmp_path)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match="pip install flatbuffers"):
        export.export(weights_file, tmp_path / "x.zip")
    with pytest.raises(UserError, match="pip install flatbuffers"):
        export.load(written[0])
    assert not list(tmp_path.iterdir())
