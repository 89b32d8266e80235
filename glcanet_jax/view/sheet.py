"""A page to send to somebody: scenes and maps at a chosen size, in one file that asks nobody for anything."""

import base64
import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glcanet_jax import page
from glcanet_jax.maps import look

PARTS = Path(__file__).parent / "page"
SHARE = 60  # percent of a map's colours over its scene, at first
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"


class Layer(NamedTuple):
    """What is known of every pixel of a scene: a map, or the truth."""

    title: str
    ids: np.ndarray  # [h, w] uint8, small
    palette: Sequence[tuple[int, int, int]]
    entries: Sequence[look.Entry]  # of the whole, not of the small picture
    nodata: float = 0.0  # percent


class Shown(NamedTuple):
    """A scene on the page."""

    title: str
    about: str
    image: np.ndarray | None  # [h, w, 4] uint8, of the size of the layers
    layers: Sequence[Layer]


def html(title: str, lead: str, scenes: Sequence[Shown]) -> str:
    """The page. Nothing in it can ask another place for something, whatever classes and files are called."""
    script, style = ((PARTS / f"sheet.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(digest)}">'
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(lead)}</p>" * bool(lead)]
    if len(scenes) > 1:
        links = "".join(f'<li><a href="#scene-{i}">{escape(s.title)}</a></li>' for i, s in enumerate(scenes))
        body.append(f"<nav><ol>{links}</ol></nav>")
    body += [_scene(i, scene, len(scenes) > 1) for i, scene in enumerate(scenes)]
    return page.document(title, "\n".join([*body, f"<script>{script}</script>"]), style, policy)


def _scene(number: int, scene: Shown, named: bool) -> str:
    name = escape(scene.title)
    head = f"<h2>{name}</h2>" * named
    height, width = (scene.layers[0].ids if scene.image is None else scene.image).shape[:2]
    picture = "" if scene.image is None else f'<img class="scene" alt="{name}" src="{look.address(scene.image)}">'
    layers = "".join(_picture(i, layer) for i, layer in enumerate(scene.layers))
    legends = "".join(_legend(number, i, layer) for i, layer in enumerate(scene.layers))
    return (
        f'<section id="scene-{number}" style="--across: {width}; --down: {height}">{head}<p>{escape(scene.about)}</p>'
        f'<div class="sides"><div><div class="frame" tabindex="0" role="group" aria-label="{name}">'
        f'<div class="stage">{picture}{layers}</div></div>{_controls(number, scene)}</div>'
        f'<div class="legends">{legends}</div></div></section>'
    )


def _controls(number: int, scene: Shown) -> str:
    """What the script takes into use; without it they are not seen."""
    choice = "".join(
        f'<label><input type="radio" name="layer-{number}" value="{i}"{" checked" * (i == 0)}> {escape(layer.title)}</label>'
        for i, layer in enumerate(scene.layers)
    )
    choice = f"<fieldset><legend>Layer</legend>{choice}</fieldset>" if len(scene.layers) > 1 else ""
    opacity = (
        f'<label>Opacity <input type="range" class="opacity" min="0" max="100" value="{SHARE}"></label>'
        if scene.layers and scene.image is not None
        else ""
    )
    zoom = '<span class="zoom"><button type="button" aria-label="Zoom out">−</button><button type="button" aria-label="Zoom in">+</button></span>'
    return f'<div class="controls" hidden>{opacity}{choice}{zoom}<output aria-live="polite"></output></div>'


def _picture(i: int, layer: Layer) -> str:
    coded = base64.b64encode(png(layer.ids, layer.palette)).decode()
    return f'<img class="classes" alt="{escape(layer.title)}"{" hidden" * (i > 0)} src="data:image/png;base64,{coded}">'


def _legend(number: int, i: int, layer: Layer) -> str:
    rows = "".join(_row(entry) for entry in layer.entries)
    if layer.nodata:
        rows += f"<tr><td>no data, of all</td><td></td><td>{layer.nodata:.1f} %</td></tr>"
    many = '<p class="many" hidden><button type="button" value="1">all</button> <button type="button" value="">none</button></p>'
    table = f"<table><caption>{escape(layer.title)}</caption><tbody>{rows}</tbody></table>"
    return f'<div class="legend"{" hidden" * (i > 0)}>{table}{many if len(layer.entries) > 1 else ""}</div>'


def _row(entry: look.Entry) -> str:
    box = f'<input type="checkbox" value="{entry.id}" checked disabled>'
    swatch = f'<i style="background: {entry.colour}"></i>'
    return (
        f"<tr><td><label>{box}{swatch}<span>{escape(entry.name)}</span></label></td><td></td>"
        f"<td>{escape(entry.amount)}</td><td>{entry.percent:.1f} %</td></tr>"
    )


def png(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """A map ``[h, w]`` as a PNG of a palette whose rows are stored as they are: the page's script reads the ids out of it.

    (W3C, Portable Network Graphics: chunks, section 11; filter type 0, section 9.)
    """
    height, width = ids.shape
    table = look.colours(np.arange(256, dtype=np.uint8), palette)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), ids], axis=1).tobytes()
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": table[:, :3].tobytes(),
        b"tRNS": table[:, 3].tobytes(),
        b"IDAT": zlib.compress(rows, 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunks(chunks))


def _chunks(chunks: dict[bytes, bytes]) -> Iterator[bytes]:
    for name, data in chunks.items():
        yield struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
