"""Pages of words, tables and pictures, as Markdown or as one self-contained HTML file that fits phones and dark rooms."""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH = 1280  # pixels across of pictures within a page, at most
HEIGHT = 1600  # and down
QUALITY = 80  # of their WebP
STYLE = """
:root { color-scheme: light dark; --line: #bbb; --soft: #f3f3f3; --shade: #4a90d9 }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #222; --shade: #2f6fb3 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: 1em 0 }
table { border-collapse: collapse; font-size: .9rem }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top; overflow-wrap: normal }
th, code, pre { background: var(--soft) }
code { font-size: .85em; padding: 0 .2em }
pre { font-size: .8rem; padding: .5rem; max-height: 30rem; overflow: auto }
td i { display: inline-block; width: 1em; height: 1em; margin-right: .4em; vertical-align: -.15em; border: 1px solid var(--line) }
figure { margin: 1em 0 }
figcaption { font-size: .9rem }
img { max-width: 100%; height: auto; background: #fff }
"""
NUMBERS = "table.numbers td:not(:first-child), table.numbers th:not(:first-child) { text-align: right; white-space: nowrap }\n"


class Table(NamedTuple):
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    shaded: bool = False  # cells behind the first are percentages, shown as shades, too


class Picture(NamedTuple):
    caption: str
    path: Path  # beside a Markdown page; in an HTML page it is inside


class Folded(NamedTuple):
    """Text as it is, out of the way until it is asked for."""

    title: str
    text: str


class Section(NamedTuple):
    title: str
    parts: Sequence[str | Table | Picture | Folded]  # a string is a paragraph


class Page(NamedTuple):
    title: str
    lead: str
    sections: Sequence[Section]


# ---------------------------------------------------------------------------------------------------------------- HTML
def html(page: Page) -> str:
    """One file that needs no other: its pictures are inside, shrunk to what a screen shows."""
    body = [f"<h1>{escape(page.title)}</h1>", f"<p>{escape(page.lead)}</p>" * bool(page.lead)]
    for section in page.sections:
        body += [f"<h2>{escape(section.title)}</h2>", *map(_html, section.parts)]
    return document(page.title, "\n".join(body), NUMBERS)


def document(title: str, body: str, more_style: str = "", more_head: str = "") -> str:
    """A body of HTML with its head; the title is escaped here."""
    head = (
        f'<meta charset="utf-8">{more_head}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}{more_style}</style></head>\n<body>\n{body}\n</body></html>\n'


def _html(part: str | Table | Picture | Folded) -> str:
    if isinstance(part, Table):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in part.head)
        rows = "\n".join(f"<tr>{''.join(_cells(row, part.shaded))}</tr>" for row in part.rows)
        return f'<div class="wide"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    if isinstance(part, Picture):
        caption = escape(part.caption)
        return f'<figure><img loading="lazy" alt="{caption}" src="{embedded(part.path)}"><figcaption>{caption}</figcaption></figure>'
    if isinstance(part, Folded):
        return f"<details><summary>{escape(part.title)}</summary><pre>{escape(part.text)}</pre></details>"
    return f"<p>{escape(part)}</p>"


def _cells(row: Sequence[str], shaded: bool) -> Iterator[str]:
    for i, cell in enumerate(row):
        share = _number(cell) if shaded and i else 0.0
        mixed = f"background: color-mix(in srgb, var(--shade) {min(share, 100):.0f}%, transparent)"
        style = f' style="{mixed}"' if share >= 1 else ""
        swatch = f'<i style="background: {cell}"></i>' if re.fullmatch("#[0-9a-f]{6}", cell) else ""
        yield f"<td{style}>{swatch}{escape(cell)}</td>"


def _number(cell: str) -> float:
    return float(cell) if re.fullmatch(r"\d+(\.\d+)?", cell) else 0.0


def embedded(path: Path) -> str:
    """A picture as the address that holds it, no larger than a page shows."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, HEIGHT))
        picture.save(out, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


# ------------------------------------------------------------------------------------------------------------- Markdown
def markdown(page: Page) -> str:
    """The same page for readers of text; its pictures lie beside it."""
    out = [f"# {plain(page.title)}", *(["", plain(page.lead)] if page.lead else [])]
    for section in page.sections:
        out += ["", f"## {plain(section.title)}"]
        for part in section.parts:
            out += ["", *_markdown(part)]
    return "\n".join(out) + "\n"


def _markdown(part: str | Table | Picture | Folded) -> Iterator[str]:
    line = lambda cells: f"| {' | '.join(map(plain, cells))} |"  # noqa: E731
    if isinstance(part, Table):
        yield line(part.head)
        yield "|" + "---|" * len(part.head)
        yield from map(line, part.rows)
    elif isinstance(part, Picture):
        yield f"![{plain(part.caption)}]({part.path.name})"
    elif isinstance(part, Folded):
        yield from (f"{plain(part.title)}:", "", *(f"    {line}" for line in part.text.splitlines()))
    else:
        yield plain(part)


def plain(text: str) -> str:
    """Words in one line of Markdown, none of which is a tag, code or an end of a cell."""
    for mark, instead in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`")):
        text = text.replace(mark, instead)
    return " ".join(text.split())
