"""The documentation site: ``python docs/tools/site.py`` (with ``docs/requirements.txt``) builds it in ``build/docs/site``.

The pages are README.md, ``docs/*.md``, the notebooks and the reports of ``results/``; links between them become links of the
site, links to other files of the repository lead to its host. A warning of the build or a broken link ends it with an error.
"""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import notebooks

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "docs"
HOST = "https://github.com/glcanet-jax/glcanet-jax/blob/main"
FENCED = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def places() -> dict[Path, str]:
    """Where each file of the repository lies on the site."""
    found = {ROOT / "README.md": "index.md", ROOT / "glcanet_jax/data/demo/README.md": "demo-weights.md"}
    docs = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.css"), *(ROOT / "docs/pictures").iterdir()]
    found |= {path: str(path.relative_to(ROOT / "docs")) for path in docs}
    found |= {path: f"notebooks/{path.stem}.md" for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    results = [p for p in (ROOT / "results").rglob("*") if p.suffix in (".md", ".webp")]
    return found | {path: str(path.relative_to(ROOT)) for path in results}


def moved(text: str, source: Path, known: dict[Path, str]) -> str:
    """A page's text with its links as they are on the site.

    Raises:
        FileNotFoundError: one leads nowhere.
    """
    here = Path(known[source]).parent

    def link(match: re.Match) -> str:
        target, sign, anchor = match[1].partition("#")
        if not target or re.match(r"\w+:", target):
            return match[0]
        path = (source.parent / unquote(target)).resolve()
        if path in known:
            return f"]({os.path.relpath(known[path], here)}{sign}{anchor})"
        if not path.exists():
            raise FileNotFoundError(f"{source.relative_to(ROOT)} links to {match[1]}, which is not there")
        return f"]({HOST}/{path.relative_to(ROOT)}{sign}{anchor})"

    parts = FENCED.split(text)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


def stage(pages: Path) -> None:
    """Write the pages."""
    known = places()
    for source, place in known.items():
        file = pages / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".ipynb":
            made = notebooks.markdown(source, file.parent / "pictures")
            drawn = {
                file.parent / "pictures" / p.name: str(p.relative_to(pages))
                for p in (file.parent / "pictures").glob("*")
            }
            file.write_text(
                moved(made, source, known | {source.parent / "pictures" / p.name: w for p, w in drawn.items()})
            )
        elif source.suffix == ".md":
            file.write_text(moved(source.read_text(encoding="utf-8"), source, known), encoding="utf-8")
        else:
            shutil.copy(source, file)


class Links(HTMLParser):
    """What a page of the site links to, and what can be linked to on it."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self.targets += [given[key] for key in ("href", "src") if given.get(key)]


def broken(site: Path) -> list[str]:
    """Links of the site that lead nowhere."""
    pages = {
        path: Links(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.name != "404.html"
    }
    found = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = unquote(target).partition("#")
            if re.match(r"\w+:|//", target):
                continue
            file = (page.parent / path.partition("?")[0]).resolve() if path else page
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (anchor and file in pages and anchor not in pages[file].anchors):
                found.append(f"{page.relative_to(site)}: {target}")
    return found


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    stage(BUILD / "pages")
    shutil.copy(ROOT / "docs" / "zensical.toml", BUILD)
    command = [Path(sys.executable).with_name("zensical"), "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(built.stdout)
    problems = broken(BUILD / "site")
    print("\n".join(f"broken link: {problem}" for problem in problems))
    if built.returncode or problems or re.search(r"\bwarning\b", built.stdout, re.IGNORECASE):
        return 1
    print(f"written: {BUILD / 'site'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
