"""The README's picture, of a scene and its map: ``python docs/tools/front.py maps/tile2_classes.tif``.

The map is what the README's first command writes.
"""

import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "glcanet_jax" / "data" / "sample" / "tile2.vrt"
OUT = ROOT / "docs" / "pictures" / "demo.webp"
ROWS = slice(230, 1130)  # of the scene
WIDTH, GAP, LEGEND = 1280, 8, 40  # pixels


def legend(names: list[str], palette: list[tuple[int, int, int]]) -> Image.Image:
    """A line of colours and names."""
    picture = Image.new("RGB", (WIDTH, LEGEND), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
    lengths = [34 + draw.textlength(name, font) + 30 for name in names]
    x = (WIDTH - sum(lengths)) / 2
    for name, colour, length in zip(names, palette, lengths, strict=True):
        draw.rectangle((x, 11, x + 24, 31), fill=tuple(colour), outline="#444")
        draw.text((x + 34, 20), name, fill="#222", font=font, anchor="lm")
        x += length
    return picture


def main(class_map: str) -> None:
    with rasterio.open(SCENE) as scene, rasterio.open(class_map) as classes:
        image = np.moveaxis(scene.read(), 0, -1)[ROWS, :, :3]
        ids, table, tags = classes.read(1)[ROWS], classes.colormap(1), classes.tags()
    names = json.loads(tags["CLASSES"])
    palette = [table[i][:3] for i in range(len(names))]
    laid_over = (0.4 * image + 0.6 * np.asarray(palette, float)[ids]).astype(np.uint8)
    side = (WIDTH - GAP) // 2
    panels = [Image.fromarray(x).resize((side, round(side * len(x) / x.shape[1])), 1) for x in (image, laid_over)]
    picture = Image.new("RGB", (WIDTH, panels[0].height + LEGEND), "white")
    for panel, left in zip(panels, (0, side + GAP), strict=True):
        picture.paste(panel, (left, 0))
    picture.paste(legend(names, palette), (0, panels[0].height))
    picture.save(OUT, quality=82, method=6)
    print(f"written: {OUT}")


if __name__ == "__main__":
    main(*sys.argv[1:])
