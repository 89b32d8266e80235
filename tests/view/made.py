"""Small scenes, maps with their reports, and a server to ask without a network."""

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.provenance import stamp

NAMES, COLOURS = ("field", "road", "water"), ((0, 160, 0), (120, 120, 120), (60, 110, 190))
TOKEN, HOST = "secret-token", "127.0.0.1:9"


def write(path, values, **profile):
    """A raster of ``[bands, h, w]``."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with open_raster(path, "w", driver="GTiff", **shape, **profile) as file:
        file.write(values)
    return path


def map_of(folder, name, ids, scene=None, confidence=None, names=NAMES, **place):
    """A class map ``[h, w]`` as ``predict`` leaves it, its confidence and its report."""
    folder.mkdir(exist_ok=True)
    outputs = {"classes": f"{name}_classes.tif"}
    path = write(folder / outputs["classes"], ids[None], nodata=IGNORE, **place)
    with open_raster(path, "r+") as file:
        file.update_tags(CLASSES=json.dumps(names))
        file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(COLOURS[: len(names)])})
    if confidence is not None:
        outputs["confidence"] = f"{name}_confidence.tif"
        write(folder / outputs["confidence"], confidence[None], nodata=IGNORE, **place)
    rows = [
        {
            "id": i,
            "name": n,
            "pixels": int((ids == i).sum()),
            "percent": 100 * float((ids == i).mean()),
            "hectares": None,
        }
        for i, n in enumerate(names)
    ]
    told = {"scene": name, "height": ids.shape[0], "width": ids.shape[1], "classes": rows, "outputs": outputs}
    told |= {"nodata_pixels": int((ids == IGNORE).sum()), "made": {}, "seconds": 1.0, "fingerprint": {}}
    if scene is not None:
        path, size, time = stamp(str(scene))
        told["fingerprint"] = {"scene": {"path": path, "bytes": size, "mtime_ns": time}}
    (folder / f"{name}.report.json").write_text(json.dumps(told))


def dataset(folder, labels, image):
    """A labelled folder of one scene, ``field_1``: labels ``[h, w]``, image ``[3, h, w]``."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    classes = [
        {"id": i, "name": n, "rgb": f"#{bytes(c).hex()}"} for i, (n, c) in enumerate(zip(NAMES, COLOURS, strict=True))
    ]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    write(folder / "masks/field_1.tif", labels[None])
    return write(folder / "images/field_1.tif", image)


def blocks(height, width, seed=0):
    """Ids ``[h, w]`` in blocks of 16 pixels."""
    small = np.random.default_rng(seed).integers(0, len(NAMES), (-(-height // 16), -(-width // 16)), np.uint8)
    return np.kron(small, np.ones((16, 16), np.uint8))[:height, :width]


def noise(count, height, width, dtype=np.uint8, most=250):
    return np.random.default_rng(1).integers(0, most, (count, height, width)).astype(dtype)


@contextlib.contextmanager
def asking(*paths, **options):
    """A function that asks the server of paths: of a path and a query to status, headers and body."""
    from glcanet_jax.view.server import application
    from glcanet_jax.view.serving import viewer_of

    with viewer_of([Path(path) for path in paths], **options) as viewer:
        app = application(viewer, TOKEN, lambda: {HOST})
        yield Asker(app, viewer)


class Asker:
    """Asks an application as a browser does."""

    def __init__(self, app, viewer):
        self._app, self.viewer = app, viewer

    def raw(self, path, query=b"", headers=(), method="GET"):
        """Status, headers and body of a path as the server has decoded it."""
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode("utf-8", "replace"),
            "root_path": "",
        }
        scope |= {"query_string": query, "headers": [(b"host", HOST.encode()), *headers], "scheme": "http"}
        scope |= {"server": ("127.0.0.1", 9), "client": ("127.0.0.1", 1), "http_version": "1.1"}
        asyncio.run(self._app(scope, receive, send))
        head = next(m for m in sent if m["type"] == "http.response.start")
        body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return head["status"], {k.decode(): v.decode() for k, v in head["headers"]}, body

    def get(self, path, **options):
        """The same of a path behind the token, with its query."""
        url = urlsplit(path)
        return self.raw(f"/{TOKEN}/{url.path}", url.query.encode(), **options)

    def json(self, path):
        status, _, body = self.get(path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def tile(self, path):
        """RGBA ``[256, 256, 4]``."""
        import io

        from PIL import Image

        status, headers, body = self.get(f"tile/{path}")
        assert status == 200 and headers["content-type"] == "image/png", (path, status)
        return np.array(Image.open(io.BytesIO(body)).convert("RGBA"))

    def wait(self, path, done=lambda told: told["state"] in ("done", "failed")):
        """Ask until what is made in the background is there."""
        import time

        for _ in range(400):
            told = self.json(path)
            if done(told):
                return told
            time.sleep(0.02)
        raise AssertionError(f"{path} did not end")
