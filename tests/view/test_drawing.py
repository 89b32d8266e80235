"""Drawing in the page of `glcanet view`: by mouse and keys, saved, loaded again; and what its endpoint refuses."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from glcanet_jax.view.labels import AREA
from tests.view import made
from tests.view.browser import browser, page_of, served

pytest.importorskip("rio_tiler", reason="the extra view is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rio-tiler multiplies transforms
BAD = "<img src=x onerror=alert(1)>"
SIZE = 300, 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes, each with a map whose classes are called badly."""
    place = tmp_path_factory.mktemp("drawing")
    for name in ("a", "b"):
        scene = made.write(place / f"{name}.tif", made.noise(3, *SIZE))
        made.map_of(place / "maps", name, made.blocks(*SIZE), scene, names=("field", BAD, "water"))
    return place


@pytest.fixture(scope="module")
def server(folder):
    with served(folder / "maps", labels=folder / "labels" / "{scene}.geojson") as url:
        yield url, folder / "labels"


def drawn(path):
    """Class and corners of every polygon of a file."""
    features = json.loads(path.read_text())["features"]
    return [(f["properties"]["class"], len(f["geometry"]["coordinates"][0]) - 1) for f in features]


def click(page, *places):
    """Corners, in shares of the map."""
    box = page.locator("#map").bounding_box()
    for across, down in places:
        page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])
        page.wait_for_timeout(260)  # no double click


def test_polygons_are_drawn_changed_and_saved(server):
    url, labels = server
    with browser() as chromium, page_of(chromium, url, allowed=(url,)) as page:
        from playwright.sync_api import expect

        page.wait_for_selector("#d-classes label")
        told = page.locator("#d-told")
        page.keyboard.press("d")
        page.keyboard.press("2")
        click(page, (0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6))
        page.keyboard.press("Enter")
        page.keyboard.press("4")  # there are three classes
        assert page.locator("#d-classes input:checked").get_attribute("value") == "1"
        page.keyboard.press("0")
        click(page, (0.3, 0.3), (0.7, 0.3), (0.5, 0.7))
        page.keyboard.press("Enter")
        expect(told).to_have_text("2 polygons, not saved")
        assert page.locator("#pixel p").inner_text() == "Click on the map."  # a corner asks for no pixel
        page.keyboard.press("Control+s")
        expect(told).to_have_text("2 polygons")
        assert drawn(labels / "a.geojson") == [(AREA, 3), (BAD, 4)]
        page.keyboard.press("e")
        click(page, (0.5, 0.5))
        page.keyboard.press("3")
        page.keyboard.press("Delete")
        assert told.inner_text() == "1 polygon, not saved"
        page.keyboard.press("Control+z")
        page.keyboard.press("Control+z")
        assert told.inner_text() == "2 polygons"
        page.keyboard.press("Control+y")
        page.keyboard.press("Escape")
        page.keyboard.press("n")  # another scene: what was drawn is saved
        expect(page.locator("#scenes")).to_have_value("1")
        assert sorted(drawn(labels / "a.geojson")) == [(AREA, 3), ("water", 4)]
        page.keyboard.press("p")
        expect(told).to_have_text("2 polygons")
        assert not (labels / "b.geojson").exists()


def test_a_save_that_is_overtaken_keeps_what_was_drawn(server):
    url, labels = server
    with browser() as chromium, page_of(chromium, f"{url}#scene=1", allowed=(url,)) as page:
        page.wait_for_selector("#d-classes label")
        page.locator("#d-draw").click()
        click(page, (0.4, 0.4), (0.6, 0.4), (0.6, 0.6))
        page.keyboard.press("Enter")
        labels.mkdir(exist_ok=True)
        (labels / "b.geojson").write_text('{"type": "FeatureCollection", "features": []}')
        page.locator("#d-save").click()
        page.wait_for_selector("#told .bad")
        assert "was changed by somebody else" in page.locator("#told").inner_text()
        assert page.locator("#d-told").inner_text() == "1 polygon, not saved" and drawn(labels / "b.geojson") == []
    (labels / "b.geojson").unlink()


def post(url, path, body, **headers):
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=30)
    try:
        connection.request("POST", f"{place.path}{path}", body, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


EMPTY = json.dumps({"polygons": [], "stamp": "0"})


@pytest.mark.parametrize(
    "path, body, headers, status, told",
    [
        ("api/scene/1/labels", EMPTY, {"Content-Type": "text/plain"}, 404, ""),
        ("api/scene/1/labels", EMPTY, {"Content-Type": "application/x-www-form-urlencoded"}, 404, ""),
        ("api/scene/1/labels", EMPTY, {"Sec-Fetch-Site": "cross-site"}, 404, ""),
        ("api/scene/1/labels", EMPTY, {"Host": "evil.example"}, 404, ""),
        ("../other/api/scene/1/labels", EMPTY, {}, 404, ""),
        ("api/scene/9/labels", EMPTY, {}, 404, ""),
        ("api/scene/..%2f1/labels", EMPTY, {}, 404, ""),
        ("api/scene/1/labels", EMPTY, {}, 200, "was changed by somebody else"),
        ("api/scene/1/labels", "{", {}, 200, "no valid JSON"),
        (
            "api/scene/1/labels",
            json.dumps({"polygons": [], "stamp": "", "file": "/tmp/x"}),
            {},
            200,
            "file is not known",
        ),
    ],
)
def test_what_the_endpoint_refuses(server, path, body, headers, status, told):
    url, labels = server
    found, words = post(url, path, body, **headers)
    assert found == status and told in words
    assert not (labels / "b.geojson").exists()


def test_nothing_is_drawn_where_no_file_is_named(folder):
    with served(folder / "maps") as url:
        assert post(url, "api/scene/0/labels", EMPTY)[0] == 404
        with browser() as chromium, page_of(chromium, url, allowed=(url,)) as page:
            page.wait_for_selector("#legend label")
            assert not page.locator("#s-draw").is_visible()
            page.keyboard.press("d")
            assert not page.locator("#s-draw").is_visible()
