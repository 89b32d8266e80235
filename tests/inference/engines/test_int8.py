"""Networks in 8 bits: near those of float32, the same bits every time, kept, checked, and nobody told."""

import contextlib
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.inference import calibration
from glcanet_jax.inference.engines import int8, openvino_engine
from tests.inference.engines.spied import ALONE, outside_ci
from tests.inference.engines.test_openvino import VIEWS, logits_of, own_cache, predictors, scene_of  # noqa: F401

pytestmark = pytest.mark.skipif(
    not openvino_engine.is_installed() or find_spec("nncf") is None, reason="openvino and nncf are not installed"
)
NOTHING = contextlib.nullcontext()


def draw_of(seed):
    return lambda views: calibration.draw(scene_of(100, 130, seed), views)


def in_8_bits(name="branch", seed=0, **options):
    """By JAX, and calibrated."""
    plain, other = predictors(name, engine={"dtype": "int8"}, **options)
    return plain, other.with_engine(other.engine.calibrated(draw_of(seed), NOTHING))


def test_answers_are_near_kept_and_known_by_what_they_were_calibrated_on(tmp_path, monkeypatch):
    scene = scene_of(96, 96)
    plain, other = in_8_bits()
    wanted, got = logits_of(plain, scene), logits_of(other, scene)
    assert 0 < np.abs(got - wanted).max() < 0.2 * np.abs(wanted).max()
    engine = other.engine
    assert engine.dtype == "int8" and 0 <= engine.changed < 0.2
    assert engine.identity() == {"engine": "openvino", "calibration": draw_of(0)(VIEWS).digest}
    types = (engine.folder / "look.xml").read_text()
    assert 'type="FakeQuantize"' in types and 'element_type="i8"' in types
    sizes = other.memory(np.uint8, (96, 96))
    assert sizes["look"]["total"] > 0

    monkeypatch.setattr(int8, "_run_job", None)  # it would be called
    _, again = in_8_bits()
    np.testing.assert_array_equal(logits_of(again, scene), got)
    with pytest.raises(TypeError):
        in_8_bits(seed=1)
    (engine.folder / "changed").write_text("so")
    with pytest.raises(UserError, match="changed cannot be read .*its folder is removed; run again"):
        _ = engine.changed
    assert not engine.folder.exists()


@pytest.mark.slow
def test_the_same_bits_come_of_it_whenever_it_is_done():
    (_, one), files = in_8_bits(), ("look.xml", "look.bin")
    before = [(one.engine.folder / name).read_bytes() for name in files]
    shutil.rmtree(one.engine.folder)
    _, anew = in_8_bits()
    assert [(anew.engine.folder / name).read_bytes() for name in files] == before


@pytest.mark.slow
def test_networks_that_look_at_contexts_and_twice():
    for name, options in (("glcanet", {}), ("glnet", {"mutual": True})):
        scene = scene_of(96, 96)
        plain, other = in_8_bits(name, **options)
        wanted, got = logits_of(plain, scene), logits_of(other, scene)
        assert 0 < np.abs(got - wanted).max() < 0.3 * np.abs(wanted).max()


def test_without_anything_to_calibrate_on_it_says_so():
    _, other = predictors("branch", engine={"dtype": "int8"})
    assert not other.engine.is_calibrated
    for made in (other.engine, other.engine.calibrated(lambda views: None, NOTHING)):
        for call in (made.identity, lambda made=made: made.sizes(np.uint8, 1)):
            with pytest.raises(UserError, match="found no pixels to be calibrated on; give a scene .*--calibration"):
                call()


def test_what_nncf_says_is_told_in_one_line_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "JOB", "glcanet_jax.no_such_module")
    with pytest.raises(UserError, match="NNCF could not quantise the network .*no_such_module.*--dtype bfloat16"):
        in_8_bits()
    assert not [place for place in (tmp_path / "graphs").iterdir() if place.name.startswith(".")]


SPY = f"""{ALONE}
import runpy
graphs, inputs, out = sys.argv[1:]
sys.argv = ["nncf_job", graphs, inputs, out]
runpy.run_module("glcanet_jax.inference.engines.nncf_job", run_name="__main__")
time.sleep(1)
assert "nncf" in sys.modules and "openvino_telemetry" not in sys.modules
"""


def test_nobody_is_told_of_anything(tmp_path):
    """NNCF tells its makers what it was asked to do, unless CI is set."""
    _, other = predictors("unet")
    (tmp_path / "inputs" / "look").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    side = VIEWS.patch_size
    patch = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype("f")
    np.savez(tmp_path / "inputs" / "look" / "0.npz", patch)
    places = [tmp_path / name for name in ("inputs", "out")]
    command = [sys.executable, "-c", SPY, other.engine.folder, *places]
    done = subprocess.run(
        list(map(str, command)), env=outside_ci(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "look.xml").exists()
    assert not list(tmp_path.rglob("*openvino_telemetry*"))


@pytest.mark.slow
def test_patches_of_another_size_are_calibrated_for_themselves():
    _, other = in_8_bits("unet")
    smaller = geometry.Views(context_size=96, global_size=64, patch_size=48, overlap=16)
    fitted = other.with_views(smaller)
    assert fitted.engine.identity() != other.engine.identity()
    assert fitted.engine.folder != other.engine.folder and 0 <= fitted.engine.changed < 0.5
