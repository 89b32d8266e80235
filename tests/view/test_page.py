"""The page in a real browser: what is drawn, what its controls do, on a desk and on a phone, in the light and in the dark."""

import contextlib
import http.server
import io
import threading

import numpy as np
import pytest

from tests.view import browser as browsers
from tests.view import made
from tests.view.browser import served
from tests.view.made import COLOURS, NAMES

pytest.importorskip("rio_tiler", reason="the extra view is not installed")

# rasterio's own, of affine
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    place = tmp_path_factory.mktemp("view")
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 200:] = 1
    ids = labels.copy()
    ids[300:, :100] = 2
    image = np.full((3, 400, 400), 100, np.uint8)
    path = made.dataset(place / "data", labels, image)
    made.map_of(place / "maps", "field_1", ids, path, np.full((400, 400), 200, np.uint8))
    made.map_of(place / HOSTILE, "field_1", labels, path)
    with served(place / "data", place / "maps", place / HOSTILE) as url:
        yield url


@contextlib.contextmanager
def tiles_of(path):
    """The address of a base map: a raster in Web Mercator, as rio-tiler warps it."""
    from rio_tiler.errors import TileOutsideBounds
    from rio_tiler.io import Reader

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            z, x, y = map(int, self.path.removesuffix(".png").split("/")[1:])
            try:
                with Reader(str(path)) as raster:
                    body = raster.tile(x, y, z).render(img_format="PNG")
            except TileOutsideBounds:
                body = b""
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with browsers.browser() as found:
        yield found


@pytest.fixture
def page(browser):
    """A function that opens an address; nothing may be said on the console."""
    said, contexts = [], []

    def open_at(url, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "response", lambda response: response.status >= 400 and said.append(f"{response.status} {response.url}")
        )
        page.goto(url)
        page.wait_for_selector("body[data-drawn='1']")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert said == []


def settled(page):
    """Wait until the map is drawn as it was asked for."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)


def colour(page, across, down):
    """RGB of the page at a place of the scene, given as shares of its sides."""
    from PIL import Image

    settled(page)
    picture = Image.open(io.BytesIO(page.screenshot(scale="css"))).convert("RGB")
    box = page.locator("#map").bounding_box()
    side = min(box["width"], box["height"]) - 24
    x, y = (box[k] + box[n] / 2 + side * (at - 0.5) for k, n, at in (("x", "width", across), ("y", "height", down)))
    return np.array(picture.getpixel((round(x), round(y))), int)


def over(colour, ground=100, opacity=0.6):
    return opacity * np.array(colour) + (1 - opacity) * ground


def test_layers_legend_and_pixel(scene, page):
    opened = page(scene)
    assert opened.title().startswith("field_1") and HOSTILE in opened.locator("#layers").inner_text()
    np.testing.assert_allclose(colour(opened, 0.2, 0.2), over(COLOURS[0]), atol=3)
    np.testing.assert_allclose(colour(opened, 0.1, 0.9), over(COLOURS[2]), atol=3)
    assert opened.locator("#legend tbody label").all_inner_texts() == list(NAMES)
    assert "50.0 %" in opened.locator("#legend tbody tr").nth(1).inner_text()
    opened.get_by_label("water").uncheck()
    np.testing.assert_allclose(colour(opened, 0.1, 0.9), [100] * 3, atol=3)
    opened.get_by_label("water").check()
    opened.locator("#layers").get_by_label("errors · maps", exact=True).check()
    red, green, _ = colour(opened, 0.1, 0.9)
    assert red > 200 > green
    opened.locator("#map").click(position={"x": 60, "y": 700})
    opened.locator("#map").focus()
    opened.keyboard.press("Enter")
    opened.get_by_text("200, 200").wait_for()
    told = opened.locator("#pixel").inner_text()
    assert "road" in told and f"{200 / 254:.1%}".replace("%", " %") in told and "100, 100, 100" in told


def test_swipe_and_link(scene, page):
    opened = page(scene)
    opened.keyboard.press("s")
    opened.locator("#right").select_option("classes-0")
    handle = opened.locator("#swipe")
    assert handle.get_attribute("role") == "slider" and handle.get_attribute("aria-valuenow") == "50"
    np.testing.assert_allclose(colour(opened, 0.1, 0.9), over(COLOURS[0]), atol=3)  # the truth's
    handle.focus()
    opened.keyboard.press("Home")
    np.testing.assert_allclose(colour(opened, 0.1, 0.9), over(COLOURS[2]), atol=3)  # the map's
    opened.get_by_label("road").uncheck()
    opened.wait_for_timeout(500)
    again = page(opened.url)
    assert again.locator("#swipe").get_attribute("aria-valuenow") == "0" and not again.get_by_label("road").is_checked()
    np.testing.assert_allclose(colour(again, 0.8, 0.5), [100] * 3, atol=3)


def test_windows_fly_there(scene, page):
    opened = page(scene)
    opened.locator("#kind").select_option(label="worst windows, maps")
    opened.locator("#spots button").first.click()
    opened.wait_for_timeout(1200)
    settled(opened)
    red, _, blue = colour(opened, 0.5, 0.5)
    assert blue > red  # water that is wrong fills the view


def test_a_hostile_address_changes_nothing(scene, page):
    opened = page(
        scene + '#scene=-4&layers=[1]&view=[1,2]&off="<b>"&swipe=["x","y",7]&stretch="\'"&pixel=[9e9,1]&bands=[0]'
    )
    np.testing.assert_allclose(colour(opened, 0.2, 0.2), over(COLOURS[0]), atol=3)


def test_on_a_phone_in_the_dark(scene, page):
    opened = page(scene, viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True, has_touch=True)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    map_box, panel = (opened.locator(name).bounding_box() for name in ("#map", "#panel"))
    assert map_box["width"] == panel["width"] == 390 and panel["y"] >= map_box["y"] + map_box["height"] > 300
    luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3"
    assert opened.evaluate(luminance) < 60
    opened.locator("#theme").click()
    assert opened.evaluate(luminance) > 200
    opened.locator("#fold").click()
    assert not opened.locator("#panel").is_visible()
    names = """[...document.querySelectorAll('button, input, select, [role]')].filter((e) => !(
      e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.labels?.length || e.role === 'status'
    )).map((e) => e.outerHTML)"""
    assert opened.evaluate(names) == []


def test_a_base_map_lies_under_a_rotated_scene(tmp_path, page):
    """The scene itself as base map, warped by others: each quarter of it is where it was."""
    from rasterio import Affine

    quarters = np.array([[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250, 250, 0)]], np.uint8)
    image = np.moveaxis(quarters.repeat(200, 0).repeat(200, 1), -1, 0)
    place = Affine.translation(330000, 2780000) @ Affine.rotation(20) @ Affine.scale(2, -2)
    path = made.write(tmp_path / "turned.tif", image, crs="EPSG:32640", transform=place)
    with tiles_of(path) as basemap, served(path, basemap=basemap) as url:
        opened = page(url + "#view=[200,200,0.6,0]")
        opened.locator("#layers").get_by_label("scene", exact=True).uncheck()
        opened.wait_for_timeout(1500)
        settled(opened)
        from PIL import Image

        picture = Image.open(io.BytesIO(opened.screenshot())).convert("RGB")
        box = opened.locator("#map").bounding_box()
        for row, column in np.ndindex(2, 2):
            for far in (30, 150):
                step = [(far if at else -far) / 0.6 for at in (column, row)]
                at = round(box["x"] + box["width"] / 2 + step[0]), round(box["y"] + box["height"] / 2 + step[1])
                np.testing.assert_allclose(picture.getpixel(at), quarters[row, column], atol=12)


def test_overviews_come_into_sight_once_they_are_made(tmp_path, page):
    image = np.full((3, 4000, 160), 90, np.uint8)
    image[1] = 200
    path = made.write(tmp_path / "long.tif", image, tiled=True, blockxsize=64, blockysize=64)
    with served(path) as url:
        opened = page(url)
        for _ in range(40):
            found = colour(opened, 0.5, 0.5)
            if found[1] > 190:
                break
            opened.wait_for_timeout(250)
    np.testing.assert_allclose(found, [90, 200, 90], atol=3)
