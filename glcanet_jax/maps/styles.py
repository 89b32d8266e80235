"""How QGIS draws maps: styles (QML) with the classes' names and colours, beside the files and inside GeoPackages.

QGIS takes ``NAME.qml`` beside ``NAME.tif`` or ``NAME.geojson``, and in a GeoPackage the default row of ``layer_styles``.
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as xml

from glcanet_jax.data.tiles import not_whole
from glcanet_jax.inference.forward import PROBABILITY_STEPS

HEAD = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
RAMP = ((0.0, "#440154"), (0.25, "#3b528b"), (0.5, "#21918c"), (0.75, "#5ec962"), (1.0, "#fde725"))  # viridis
STYLE_TABLE = """CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""

Colours = Sequence[tuple[int, int, int]]


def printable(text: str) -> str:
    """A text without the characters that XML has no way to hold."""
    return "".join(c if c in "\t\n\r" or (ord(c) >= 32 and not 0xD800 <= ord(c) < 0xE000) else "?" for c in text)


def class_style(names: Sequence[str], palette: Colours) -> str:
    """A class map: an entry with name and colour for each id."""
    root, renderer = _raster("paletted")
    entries = xml.SubElement(renderer, "colorPalette")
    for i, (name, colour) in enumerate(zip(names, palette, strict=True)):
        values = {"value": str(i), "label": printable(name), "color": _hex(colour), "alpha": "255"}
        xml.SubElement(entries, "paletteEntry", values)
    return _text(root)


def probability_style() -> str:
    """Confidence, or the first band of probabilities: colours from 0 % to 100 %."""
    root, renderer = _raster("singlebandpseudocolor", classificationMin="0", classificationMax=str(PROBABILITY_STEPS))
    values = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    ramp = xml.SubElement(xml.SubElement(renderer, "rastershader"), "colorrampshader", values)
    for share, colour in RAMP:
        values = {"value": f"{share * PROBABILITY_STEPS:g}", "label": f"{share:.0%}", "color": colour, "alpha": "255"}
        xml.SubElement(ramp, "item", values)
    return _text(root)


def polygon_style(names: Sequence[str], palette: Colours) -> str:
    """Polygons of classes: a category with name and colour for each ``class_id``."""
    root = xml.Element("qgis", {"version": "3.22", "styleCategories": "Symbology"})
    values = {"type": "categorizedSymbol", "attr": "class_id", "enableorderby": "0", "forceraster": "0"}
    renderer = xml.SubElement(root, "renderer-v2", values | {"symbollevels": "0"})
    categories, symbols = xml.SubElement(renderer, "categories"), xml.SubElement(renderer, "symbols")
    for i, (name, colour) in enumerate(zip(names, palette, strict=True)):
        values = {"value": str(i), "symbol": str(i), "label": printable(name), "render": "true", "type": "long"}
        xml.SubElement(categories, "category", values)
        symbol = xml.SubElement(symbols, "symbol", {"name": str(i), "type": "fill", "alpha": "1", "force_rhr": "0"})
        layer = xml.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"})
        rgba = ",".join(map(str, (*colour, 255)))
        fill = {"color": rgba, "style": "solid", "outline_color": rgba, "outline_style": "solid"}
        fill |= {"outline_width": "0.1", "outline_width_unit": "MM", "joinstyle": "bevel"}
        options = xml.SubElement(layer, "Option", {"type": "Map"})
        for key, value in fill.items():
            xml.SubElement(options, "Option", {"name": key, "value": value, "type": "QString"})
        for key, value in fill.items():  # as versions before 3.26 read it
            xml.SubElement(layer, "prop", {"k": key, "v": value})
    xml.SubElement(root, "layerGeometryType").text = "2"
    return _text(root)


def style_of(kind: str, names: Sequence[str], palette: Colours) -> str:
    """The style of a kind of file, as ``classes_style``."""
    if kind == "classes_style":
        return class_style(names, palette)
    return polygon_style(names, palette) if kind == "polygons_style" else probability_style()


def style_geopackage(path: Path, layer: str, style: str) -> None:
    """Make a style the default of a layer of a GeoPackage.

    Raises:
        UserError: it could not be written.
    """
    contents = "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', '')"
    row = "INSERT INTO layer_styles VALUES (NULL, '', '', ?, 'geom', 'classes', ?, '', 1, 'classes', '', NULL, ?)"
    try:
        with contextlib.closing(sqlite3.connect(path)) as file, file:
            (changed,) = file.execute("SELECT last_change FROM gpkg_contents WHERE table_name = ?", (layer,)).fetchone()
            file.execute(STYLE_TABLE)
            file.execute(contents)
            file.execute(row, (layer, style, changed))
    except sqlite3.Error as error:  # a disk that is full
        raise not_whole(path, error) from error


def _raster(kind: str, **attributes: str) -> tuple[xml.Element, xml.Element]:
    root = xml.Element("qgis", {"version": "3.22", "styleCategories": "Symbology"})
    values = {"type": kind, "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""} | attributes
    renderer = xml.SubElement(xml.SubElement(root, "pipe"), "rasterrenderer", values)
    xml.SubElement(renderer, "rasterTransparency")
    return root, renderer


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _text(root: xml.Element) -> str:
    xml.indent(root)
    return f"{HEAD}{xml.tostring(root, encoding='unicode')}\n"
