"""Predictions in notebooks: they show themselves in few bytes, whatever they are called and however large they are."""

import pickle
from html.parser import HTMLParser

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.overview import mode_of, overview, small_ids, thinned
from glcanet_jax.prediction import SIDE, Prediction, Scene
from tests.maps.test_mapping import METRES, write

BAD = "<img src=x onerror=alert(1)>\"'&"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.given, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.given += attrs

    def handle_data(self, data):
        self.text += f" {data}"


def image(h, w):
    rows, columns = np.ogrid[:h, :w]
    return np.stack(np.broadcast_arrays(rows % 256, columns % 256, (rows + columns) % 256), -1).astype(np.uint8)


def bands(h, w, k=3):
    """A map of so many columns of equal width, without data in its first tenth."""
    ids = np.broadcast_to((np.arange(w) * k // w).astype(np.uint8), (h, w)).copy()
    ids[: h // 10] = 255
    return ids


def predicted(h, w, names=("water", "land", "road"), **given):
    palette = tuple((i, 2 * i % 256, 255 - i) for i in range(len(names)))
    return Prediction(tuple(names), palette, layers={"classes": bands(h, w, len(names))}, **given)


@pytest.mark.parametrize("rotated", [None, False, True])
def test_a_notebook_shows_scene_map_and_areas(rotated):
    turn = Affine(0.4, 0.3, METRES.c, 0.3, -0.4, METRES.f) if rotated else METRES
    place = {} if rotated is None else {"crs": CRS.from_epsg(32640), "transform": turn}
    scene = Scene(sample=thinned(ArraySource(image(600, 900), 3), 2 * SIDE))
    shown = Tags(predicted(600, 900, scene=scene, **place)._repr_html_())
    assert shown.tags.count("img") == 2 and "script" not in shown.tags
    assert all(value.startswith("data:image/webp;base64,") for name, value in shown.given if name == "src")
    area = "162,000 px" if rotated is None else "4.05 ha"  # 300 columns of 540 rows
    assert shown.text.count(area) == 3 and shown.text.count("33.3 %") == 3 and "10.0 % of the map" in shown.text
    assert "900 x 600 px" in shown.text and ("EPSG:32640, 0.5 m" in shown.text) == (rotated is not None)


def test_a_notebook_is_shown_no_more_than_it_can_hold():
    """Size and classes do not matter, and names are words."""
    many = predicted(3000, 5000, [BAD, "x" * 500, *(f"class {i}" for i in range(250))])
    text = many._repr_html_()
    shown = Tags(text)
    assert len(text) < 150_000 and shown.tags.count("tr") == 26 and "228 more" in shown.text
    assert BAD in shown.text and shown.tags.count("img") == 1 and "onerror" not in dict(shown.given)


def test_a_file_is_read_again_when_it_is_shown(tmp_path):
    path = write(tmp_path / "s.tif", image(600, 900))
    with_file = predicted(600, 900, scene=Scene(path, None, 3))
    assert Tags(with_file._repr_html_()).tags.count("img") == 2
    (tmp_path / "s.tif").unlink()
    assert Tags(with_file._repr_html_()).tags.count("img") == 1  # the map alone


def test_maps_in_files_are_shown_without_reading_them_whole(tmp_path):
    ids = bands(600, 900)
    write(tmp_path / "m.tif", ids[..., None])
    rows = [{"id": i, "name": n, "pixels": 162000, "percent": 100 / 3, "hectares": None} for i, n in enumerate("abc")]
    report = {"height": 600, "width": 900, "classes": rows, "nodata_pixels": 54000}
    made = Prediction(("a", "b", "c"), ((0, 0, 1),) * 3, files={"classes": tmp_path / "m.tif"}, report=report)
    assert "33.3 %" in Tags(made._repr_html_()).text and "classes" not in vars(made)
    (tmp_path / "m.tif").unlink()
    assert made._repr_html_() is None
    np.testing.assert_array_equal(small_ids(ids, 100), overview(write(tmp_path / "m.tif", ids[..., None]), 100))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5000), (333, 250), (1201, 640)])
def test_small_maps_have_the_commonest_class(shape):
    """As the slower way has it, of few classes and many; without data only where there is none at all."""
    rng = np.random.default_rng(0)
    for k in (3, 255):
        ids = rng.integers(0, k, shape, np.uint8)
        ids[rng.random(shape) < 0.6] = 255
        ids[: shape[0] // 2] = 255
        small = small_ids(ids, 50)
        factor = -(-max(shape) // max(small.shape))
        np.testing.assert_array_equal(small, mode_of(ids, next(f for f in (1, 6, 8, 24, 32, 128) if f >= factor)))


def test_a_thin_array_has_a_picture_too():
    for shape in ((1, 5000), (5000, 1), (2, 2)):
        made = Scene(sample=thinned(ArraySource(image(*shape), 3), 2 * SIDE)).small()
        assert made.shape[2] == 4 and 1 <= max(made.shape[:2]) <= SIDE


def test_of_an_array_no_more_is_kept_than_is_shown():
    """However many bands and pixels it has; the array itself may go."""
    for count, kept in ((1, 1), (2, 1), (40, 3)):
        array = np.zeros((2000, 3000, count), np.uint16)
        sample = thinned(ArraySource(array, count), 2 * SIDE)
        assert sample.image.shape[2] == kept and max(sample.image.shape) <= 2 * SIDE and sample.image.base is None


def test_predictions_travel_between_processes():
    made = predicted(30, 40, scene=Scene(sample=thinned(ArraySource(image(30, 40), 3), SIDE)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)).classes, made.classes)
