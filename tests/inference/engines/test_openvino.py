"""Networks by OpenVINO against JAX: the graphs, the walk, what is kept on disk, and that nothing is told to anybody."""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from glcanet_jax import backend, geometry, models
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.engines import graph, openvino_engine
from glcanet_jax.inference.engines.emitter import UnknownError
from glcanet_jax.inference.engines.flat import PIXELS, PLACES
from glcanet_jax.inference.engines.openvino_engine import OpenVINOEngine
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.scratch import Scratch
from tests.drawn import drawn
from tests.inference.engines.spied import ALONE, outside_ci
from tests.models.test_networks import SMALL

needs_openvino = pytest.mark.skipif(not openvino_engine.is_installed(), reason="openvino is not installed")
VIEWS = geometry.Views(context_size=96, global_size=64, patch_size=64, overlap=16)
NORMALISATION = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "scale": 255.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "cache_folder", lambda kind: tmp_path / "graphs")
    (tmp_path / "graphs").mkdir()


def engine_of(model, variables, views=VIEWS, **options):
    told = {"weights": "w", "network": repr(model)}
    return OpenVINOEngine(model, lambda: variables, views, NORMALISATION, bands=3, told=told, **options)


def predictors(name, views=VIEWS, engine=None, **options):
    model = models.build(name, 4, **SMALL[name] | options)
    variables = drawn(model)
    plain = Predictor(model, variables, views, NORMALISATION, bands=3, batch=1)
    other = Predictor(
        model, None, views, NORMALISATION, bands=3, batch=1, engine=engine_of(model, variables, views, **(engine or {}))
    )
    return plain, other


def scene_of(height, width, seed=0):
    return ArrayScene("made", np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def logits_of(predictor, scene, **options):
    sink = walk.ArraySink(scene.height, scene.width)
    walk.predict_scene(predictor, scene, sink, outputs=["logits"], **options)
    return sink.arrays["logits"]


# ------------------------------------------------------------------------------------------------------------- networks
OPTIONS = [(name, {}) for name in models.names()] + [
    ("glcanet", {"head": "nonlinear", "feed_forward": 2, "mask": "window"}),
    ("glcanet", {"sharing": "glnet"}),
    ("glcanet", {"attn_levels": (5, 4, 3), "residual": "input", "heads": 2}),
    ("glnet", {"mutual": True}),
    ("branch", {"view": "global"}),
    ("fcn8s", {"padding": "wide"}),
]


@needs_openvino
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_every_network_answers_as_by_jax(name, options):
    """Two blocks, patches at many places; rounding apart nothing is another."""
    scene = scene_of(100, 130)
    plain, other = predictors(name, **options)
    wanted, got = logits_of(plain, scene), logits_of(other, scene)
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


@needs_openvino
def test_several_patches_at_once_are_as_one(monkeypatch):
    scene = scene_of(100, 130)
    monkeypatch.setattr(openvino_engine, "cores", lambda: 2 * openvino_engine.CORES)
    _, other = predictors("branch")
    assert other.engine.at_once == 2
    one = logits_of(other, scene)
    for other.batch in (2, 3):
        other.memory(np.uint8, (96, 96))
        np.testing.assert_array_equal(logits_of(other, scene), one)


@needs_openvino
def test_turned_views_and_other_sizes_of_patches():
    scene = scene_of(90, 96)
    model = models.build("unet", 4, **SMALL["unet"])
    variables = drawn(model)
    options = {"bands": 3, "tta": True}
    plain = Predictor(model, variables, VIEWS, NORMALISATION, **options)
    other = Predictor(model, None, VIEWS, NORMALISATION, engine=engine_of(model, variables), **options)
    wanted = logits_of(plain, scene)
    np.testing.assert_allclose(logits_of(other, scene), wanted, atol=2e-5 * np.abs(wanted).max())
    smaller = geometry.Views(context_size=96, global_size=64, patch_size=48, overlap=16)
    wanted = logits_of(plain.with_views(smaller), scene)
    np.testing.assert_allclose(logits_of(other.with_views(smaller), scene), wanted, atol=2e-5 * np.abs(wanted).max())


class Stopped(Exception):
    pass


@needs_openvino
def test_a_walk_that_was_stopped_ends_with_the_same_bits(tmp_path):
    scene = scene_of(200, 96)
    _, other = predictors("branch")
    whole, sink = logits_of(other, scene), walk.ArraySink(200, 96)

    def stop(pixels):
        raise Stopped

    with pytest.raises(Stopped), Scratch(tmp_path / "scratch", {}) as scratch:
        walk.predict_scene(other, scene, sink, outputs=["logits"], scratch=scratch, progress=stop)
    _, again = predictors("branch")
    with Scratch(tmp_path / "scratch", {}) as scratch:
        walk.predict_scene(again, scene, sink, outputs=["logits"], scratch=scratch)
    np.testing.assert_array_equal(sink.arrays["logits"], whole)


@needs_openvino
def test_bfloat16_is_near(monkeypatch):
    scene = scene_of(96, 96)
    plain, other = predictors("branch", engine={"dtype": "bfloat16"})
    wanted, got = logits_of(plain, scene), logits_of(other, scene)
    assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    assert other.engine.dtype == "bfloat16"


@needs_openvino
def test_places_keep_their_digits_in_bfloat16():
    """Where a patch samples its context is computed in float32: in bfloat16 the middle of 256 cells would be known to a cell alone."""
    maps = np.arange(256, dtype=np.float32)[:, None] * np.float32(2.0**-8)
    from glcanet_jax.models.layers.sampling import lerp

    def fn(weights, x, boxes):
        return lerp(x, 200.3 + boxes[0], 0)

    spec = jax.ShapeDtypeStruct((256, 1), np.float32)
    got = compiled(fn, (np.zeros(1, "f"), spec, np.zeros((1, 4), "f")), "bf16")(maps, np.float32([[0.4, 0, 0, 0]]))
    np.testing.assert_allclose(got[0, 0], 200.7 / 256, atol=2**-8)


@needs_openvino
def test_memory_is_counted():
    _, other = predictors("branch")
    sizes = other.memory(np.uint8, (96, 96))
    assert sizes["look"]["total"] > sizes["look"]["outputs"] > 0 and other.engine.resident == other.engine.held
    with pytest.raises(UserError, match="one patch at once needs"):
        other.fit_batch(1000, np.uint8, (96, 96))


# ------------------------------------------------------------------------------------------------- operations, one by one
def compiled(fn, args, precision="f32"):
    openvino = openvino_engine.need_openvino()
    folder = Path(tempfile.mkdtemp())
    graph.write(folder, "look", fn, args, (0, PIXELS, PLACES), as_it_lies=False)
    model = openvino.Core().compile_model(str(folder / "look.xml"), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    request = openvino_engine._Request(model, folder / "look.places", 1)
    return lambda x, boxes: request([request.inputs([x], boxes)])[0][0]


def conv(x, w, **options):
    given = {"window_strides": (1, 1), "padding": ((1, 1), (0, 2)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return lax.conv_general_dilated(x, w, **given | options)


OPERATIONS = {
    "a convolution": lambda w, x, b: conv(x, w),
    "with strides and dilation": lambda w, x, b: conv(x, w, window_strides=(2, 1), rhs_dilation=(2, 1)),
    "by groups": lambda w, x, b: conv(x, w[:, :, :2], feature_group_count=2),
    "transposed": lambda w, x, b: conv(x, w, padding=((2, 1), (1, 2)), lhs_dilation=(2, 3)),
    "channels first": lambda w, x, b: lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), w, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")
    ),
    "cells joined": lambda w, x, b: conv(x, w).reshape(-1, 8) @ w.reshape(-1, 8)[:8],
    "rows and channels joined": lambda w, x, b: conv(x, w).transpose(0, 1, 3, 2).reshape(8, -1),
    "all turned about": lambda w, x, b: conv(x, w).transpose(3, 1, 0, 2)[..., None].swapaxes(0, -1) * 2.0,
    "a padding that crops": lambda w, x, b: lax.pad(conv(x, w), 1.5, ((0, 0, 0), (-1, 2, 0), (3, -2, 0), (0, 1, 0))),
    "every other, backwards": lambda w, x, b: conv(x, w)[:, ::-1, 1::2],
    "put together": lambda w, x, b: jnp.concatenate([conv(x, w), jnp.ones((1, 6, 7, 2)) * x[..., :1]], -1),
    "stacked": lambda w, x, b: jnp.stack([x, x * 2], 2).reshape(1, 12, 7, 4),
    "a window replaced": lambda w, x, b: x.at[:, 1:3, 2:].set(x[:, :2, 2:] * 3),
    "a window added to": lambda w, x, b: x.at[:, :1].add(-x[:, 2:3]),
    "softmax": lambda w, x, b: jax.nn.softmax(x.reshape(42, 4) @ x.reshape(42, 4).T),
    "products of batches": lambda w, x, b: jnp.einsum("bhwc,bhvc->bhwv", x, x[:, :, :3]),
    "products over two axes": lambda w, x, b: jnp.einsum("bhwc,hwk->ck", x, w.reshape(-1)[: 6 * 7 * 2].reshape(6, 7, 2)),
    "the best class": lambda w, x, b: x.argmax(-1) + x.argmin(1).astype(jnp.int32).sum(),
    "the first of equals": lambda w, x, b: (x * 0).argmax(-1),
    "where": lambda w, x, b: jnp.where((x > 0.5) & (x < 0.8), x, -1.0).max(axis=(1, 2)),
    "whatever is cell by cell": lambda w, x, b: jnp.tanh(x) + jax.nn.sigmoid(x) * jnp.exp(-x) + lax.rsqrt(x + 1) + x**3,
    "gelu": lambda w, x, b: jax.nn.gelu(8 * x - 4, approximate=False) + lax.erf(x),
    "pooled": lambda w, x, b: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1), "VALID"),
    "summed in windows": lambda w, x, b: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"),
    "taken at places": lambda w, x, b: jnp.take(x, (b[0] * 5).astype(jnp.int32), axis=1, mode="clip"),
    "taken at places of two axes": lambda w, x, b: jnp.take(x, (x[0, :2, :3, 0] * 5).astype(jnp.int32), axis=1),
    "taken at places of their own": lambda w, x, b: jnp.take_along_axis(x, (x[:, :, :3, :1] * 6).astype(jnp.int32), 2),
    "each at one place": lambda w, x, b: jnp.take_along_axis(x, (x[:, :, :1] * 6).astype(jnp.int32), axis=2),
    "a code of places": lambda w, x, b: x + jnp.sin(b[0][None, None, None] * w[0, 0, 0, 0]),
    "a loop": lambda w, x, b: lax.map(lambda row: row @ w[0, 0] + b[0, 0], x[0]),
    "a loop that carries": lambda w, x, b: lax.scan(lambda s, row: (s + row, s * 2), x[0, 0] * 0, x[0], reverse=True)[1],
    "nothing of pixels": lambda w, x, b: jnp.broadcast_to(b.sum() + w.sum(), x.shape) + x[:, :1, :1],
}  # fmt: skip


@needs_openvino
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_jaxs(name):
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((3, 3, 4, 8)).astype("f"), rng.random((1, 6, 7, 4)).astype("f")
    boxes = np.float32([[0.1, 0.4, 0.7, 0.9]])
    fn = OPERATIONS[name]
    got = compiled(fn, (w, jax.ShapeDtypeStruct(x.shape, x.dtype), boxes))(x, boxes)
    wanted = np.asarray(fn(jnp.asarray(w), jnp.asarray(x), jnp.asarray(boxes)))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


@needs_openvino
def test_what_is_not_known_is_named(tmp_path):
    with pytest.raises(UnknownError, match="cumsum"):
        compiled(lambda w, x, b: x.cumsum(1), (np.zeros(1, "f"), np.zeros((1, 6, 7, 4), "f"), np.zeros((1, 4), "f")))


# ------------------------------------------------------------------------------------------------------------ around it
@needs_openvino
def test_graphs_are_written_once(tmp_path, monkeypatch):
    predictors("unet")
    (kept,) = (tmp_path / "graphs").iterdir()
    assert {f.name for f in kept.iterdir()} == {"look.xml", "look.bin", "look.places", "encode.places"}
    monkeypatch.setattr(openvino_engine.graphs, "write_all", None)  # it would be called
    predictors("unet")
    with pytest.raises(TypeError):
        predictors("unet", width=8)


@needs_openvino
def test_a_damaged_graph_is_removed_and_told(tmp_path):
    predictors("unet")
    (kept,) = (tmp_path / "graphs").iterdir()
    (kept / "look.xml").write_text("<net")
    _, other = predictors("unet")
    with pytest.raises(UserError, match="OpenVINO cannot compile .*look.xml .*which is removed; run again"):
        other.memory(np.uint8, (96, 96))
    _, other = predictors("unet")
    other.memory(np.uint8, (96, 96))


SPY = f"""{ALONE}
from glcanet_jax.inference.engines import openvino_engine
core = openvino_engine.need_openvino().Core()
time.sleep(1)
assert "openvino_telemetry" not in sys.modules
"""


@needs_openvino
def test_nobody_is_told_of_anything(tmp_path):
    """OpenVINO tells its makers of every import, in a process of its own, unless CI is set."""
    done = subprocess.run(
        [sys.executable, "-c", SPY], env=outside_ci(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.rglob("*openvino_telemetry*"))


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        UserError, match=r"needs openvino, which is not installed .*pip install 'glcanet-jax\[openvino\]'"
    ):
        openvino_engine.need_openvino()
