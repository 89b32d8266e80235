"""Maps in 8 bits: one calibration for all scenes of a command, the same bytes after a stop, refused where too much changes."""

from importlib.util import find_spec

import numpy as np
import pytest
import rasterio

from glcanet_jax import backend, border, geometry, runs
from glcanet_jax.config import Config, NormalisationConfig
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference.engines import openvino_engine, processor
from glcanet_jax.maps import calibration, mapping
from glcanet_jax.maps.model import load_model
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.segmenter import Segmenter
from tests.inference.test_evaluation import SMALL, dataset_of, make_predictor
from tests.maps.test_mapping import model_config, write

pytestmark = [
    pytest.mark.skipif(
        not openvino_engine.is_installed() or find_spec("nncf") is None, reason="openvino and nncf are not installed"
    ),
    pytest.mark.skipif(not processor.can("int8"), reason="this processor has no instructions for int8"),
]
VIEWS = geometry.Views(context_size=128, global_size=64, patch_size=64, overlap=16)
EIGHT = MapOptions(dtype="int8", most_changed=1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Weights, two scenes, one of them without data, and graphs that are kept for all tests."""
    folder = tmp_path_factory.mktemp("int8")
    config = Config(views=VIEWS, model=model_config(**SMALL), normalisation=NormalisationConfig(scale=255.0))
    runs.save(folder / "w.safetensors", config, dataset_of(names=("water", "land", "road")), make_predictor(VIEWS)[2])
    (folder / "scenes").mkdir()
    image = np.random.default_rng(0).integers(1, 256, (150, 240, 3), np.uint8)
    write(folder / "scenes" / "a.tif", np.zeros_like(image), nodata=0)
    write(folder / "scenes" / "b.tif", image)
    write(folder / "scenes" / "c.tif", image[::-1])
    (folder / "graphs").mkdir()
    return folder


@pytest.fixture(autouse=True)
def own_cache(place, monkeypatch):
    monkeypatch.setattr(backend, "cache_folder", lambda kind: place / "graphs" if kind == "openvino" else None)


def mapped(place, out, *names, options=EIGHT, **how):
    scenes = [place / "scenes" / name for name in names] or [place / "scenes"]
    mapping.map_scenes(scenes, place / "w.safetensors", out, options, **how)
    return {path.name: path.read_bytes() for path in sorted(out.glob("*_classes.tif"))}


def told(out, name):
    return border.read_json(out / f"{name}.report.json")


def test_one_calibration_serves_a_command_whatever_the_share_of_the_scenes(place, tmp_path, capsys):
    """The first scene that holds data; another list that begins with it, or a shard of it, makes the same maps."""
    whole = mapped(place, tmp_path / "whole")
    assert "calibrating int8 on 16 patches of b.tif, and checking it on 12 others" in capsys.readouterr().out
    reports = [told(tmp_path / "whole", name) for name in "abc"]
    assert len({report["fingerprint"]["calibration"] for report in reports}) == 1
    assert reports[1]["model"]["dtype"] == "int8" and 0 <= reports[1]["model"]["changed"] < 0.5
    shard = mapped(place, tmp_path / "shard", shard="3/3")
    assert shard == {"c_classes.tif": whole["c_classes.tif"]}
    alone = mapped(place, tmp_path / "alone", "b.tif")
    assert alone == {"b_classes.tif": whole["b_classes.tif"]}
    assert "calibrating" not in capsys.readouterr().out
    assert mapped(place, tmp_path / "whole") == whole and "b: done already" in capsys.readouterr().out
    with rasterio.open(tmp_path / "whole" / "a_classes.tif") as blank:
        assert (blank.read() == 255).all()


def test_it_is_refused_where_the_class_of_too_many_pixels_changes(place, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_engine.OpenVINOEngine, "changed", 0.0201)
    with pytest.raises(UserError, match="int8 changes the class of 2.01% of the pixels .* give --dtype bfloat16"):
        mapped(place, tmp_path / "out", "b.tif", options=MapOptions(dtype="int8", most_changed=0.02))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_or_holds_nothing_is_no_calibration(place, tmp_path, capsys):
    with pytest.raises(
        UserError, match="found no pixels to be calibrated on; give a scene that has some as --calibration"
    ):
        mapped(place, tmp_path / "blank", "a.tif")
    (tmp_path / "aa.tif").write_text("no picture")
    with pytest.raises(UserError, match="1 of 2 scenes could not be mapped"):
        mapping.map_scenes(
            [tmp_path / "aa.tif", place / "scenes" / "b.tif"], place / "w.safetensors", tmp_path / "o", EIGHT
        )
    assert told(tmp_path / "o", "b")["model"]["dtype"] == "int8"
    with pytest.raises(UserError, match="aa.tif"):
        mapped(place, tmp_path / "p", "b.tif", options=MapOptions(dtype="int8", calibration=tmp_path / "aa.tif"))


@pytest.mark.slow
def test_a_named_scene_is_calibrated_on_whatever_is_mapped(place, tmp_path):
    options = MapOptions(dtype="int8", most_changed=1.0, calibration=place / "scenes" / "b.tif")
    mapped(place, tmp_path / "out", "c.tif", options=options)
    assert mapped(place, tmp_path / "again", "c.tif") != {}  # on itself
    one, other = (told(tmp_path / name, "c")["fingerprint"]["calibration"] for name in ("out", "again"))
    model = calibration.calibrate(load_model(place / "w.safetensors", options), (), options)
    assert one == model.predictor.engine.identity()["calibration"] != other


def test_from_python_each_scene_is_calibrated_on_itself(place):
    segmenter = Segmenter(load_model(place / "w.safetensors", EIGHT), EIGHT)
    with rasterio.open(place / "scenes" / "b.tif") as file:
        image = np.moveaxis(file.read(), 0, -1)
    prediction = segmenter.predict(image)
    np.testing.assert_array_equal(prediction.classes, segmenter.predict(place / "scenes" / "b.tif").classes)
    scene = ArrayScene("b", image, np.zeros(image.shape[:2], np.uint8))
    scores = segmenter.evaluate(dataset_of(scene, names=("water", "land", "road")))
    assert scores["confusion"][0] == np.bincount(prediction.classes.ravel(), minlength=3).tolist()
