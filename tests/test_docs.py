"""README and docs say what is so: their Python runs, their commands parse, their links and files are there."""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from glcanet_jax import models, runs, starting
from glcanet_jax.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "glcanet_jax/data/demo/README.md"]
WORDS = 900  # of README
TRACKED = 8 * 2**20  # bytes of what git tracks, beside OTHERS
OTHERS = ("demo.safetensors", "view/page/ol.js")  # the bundled weights, OpenLayers
PLACEHOLDERS = {"NAME": "glcanet", "SCENE...": "scene.tif", "RUN@local/logits": "RUN"}

FENCE = re.compile(r"(?P<before>[^\n]*)\n(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)\n(?P=indent)```", re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(
    r"(?<![\w/.-])(?:tests|experiments|glcanet_jax|docs|models|data|maps|training|inference|weights)/[\w./-]+\.(?:py|md|txt|txtpb|toml)\b"
)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    reason: str  # why it is not run


def blocks(page: Path) -> list[Block]:
    found = []
    for match in FENCE.finditer(page.read_text()):
        text = "\n".join(line.removeprefix(match["indent"]) for line in match["text"].split("\n"))
        marked = re.search(r"<!-- not run: (.+) -->", match["before"])
        found.append(Block(match["language"], text, marked[1] if marked else ""))
    return found


def words_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub(r"\g<before>", page.read_text())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ------------------------------------------------------------------------------------------------------------- Python
@pytest.fixture(scope="module")
def loaded():
    return {}


@pytest.fixture
def load_once(monkeypatch, loaded):
    """Pages load the same weights, whose network is compiled each time."""
    load = runs.load_predictor

    def once(*args, **options):
        asked = repr((args, sorted(options.items())))
        if asked not in loaded:
            loaded[asked] = load(*args, **options)
        return loaded[asked]

    monkeypatch.setattr(runs, "load_predictor", once)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name)
def test_the_python_of_a_page_runs(page, monkeypatch, load_once):
    """From top to bottom, as a reader would type it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    namespace = {"__name__": "page"}
    for i, block in enumerate(b for b in blocks(page) if b.language == "python"):
        code = compile(block.text, f"{name(page)}, Python block {i + 1}", "exec")
        if not block.reason:
            exec(code, namespace)


# ----------------------------------------------------------------------------------------------------------- commands
class Parsed(Exception):
    """A command line was understood."""


def commands(page: Path) -> list[list[str]]:
    """Our own command lines on a page, those in the text that have options included: words from the module's name on."""
    lines = []
    for block in blocks(page):
        if block.language == "bash":
            lines += block.text.replace("\\\n", " ").split("\n")
    inline = [" ".join(text.split()) for text in INLINE.findall(words_of(page))]
    lines += [text for text in inline if " --" in text]
    found = []
    for line in lines:
        for part in line.split("&&"):
            part = re.sub(r"^\s*(glcanet|\S*python -m glcanet_jax)\b", "python -m glcanet_jax", part)
            match = re.match(r"\s*\S*python -m ((?:glcanet_jax|experiments)\S*)(.*)", part)
            if match:
                words = [match[1], *shlex.split(match[2], comments=True)]
                found.append([PLACEHOLDERS.get(word, word) for word in words if word != "..."])
    return found


@pytest.fixture
def understood(monkeypatch):
    """Whether a command line is understood by the command itself, which goes no further than that."""

    def stop(parse):
        def parsed(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        return parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop(argparse.ArgumentParser.parse_args))
    warnings.filterwarnings("ignore", "", RuntimeWarning, "runpy")  # a test before may have imported the module
    monkeypatch.setattr(tyro, "cli", stop(tyro.cli))
    # which read weights and runs that are the reader's
    monkeypatch.setattr(starting, "like", lambda config, *_, **__: config)
    monkeypatch.setattr(starting, "of_run", lambda _: Config())
    monkeypatch.setattr(tyro.extras, "overridable_config_cli", stop(tyro.extras.overridable_config_cli))

    # runpy would leave the code with the tests' type checks under the name of the plain one, for every later command
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def check(module: str, *words: str) -> str | None:
        monkeypatch.setattr(sys, "argv", [module, *words])
        told = io.StringIO()
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                runpy.run_module(module, run_name="__main__")
        except Parsed:
            return None
        except SystemExit as end:
            return None if not end.code else told.getvalue()
        return "it parses nothing"

    return check


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_the_commands_of_a_page_are_understood(page, understood):
    wrong = {shlex.join(words): told for words in commands(page) if (told := understood(*words))}
    assert not wrong, "\n".join(f"{command}\n{told}" for command, told in wrong.items())


def test_wrong_commands_are_seen(understood):
    assert understood("experiments.table1", "--no-such-option", "3")
    assert understood("glcanet_jax", "predict", "a.tif", "--weights", "demo", "--out", "maps", "--polygones", "gpkg")
    assert understood("glcanet_jax", "predict", "a.tif", "--weights", "demo", "--out", "maps") is None


# -------------------------------------------------------------------------------------------------------------- links
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_stand_where_every_reader_of_markdown_sees_them(page):
    """In lists, the site's reader wants four spaces where GitHub's takes two."""
    assert set(re.findall(r"^( *)```", page.read_text(), re.MULTILINE)) <= {"", "    "}


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page, as GitHub names it."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_of_a_page_are_there(page):
    broken = []
    for target in LINK.findall(words_of(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = page if not path else (page.parent / path).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    named = FILE.findall(page.read_text())
    broken += [path for path in named if not ((ROOT / path).exists() or (ROOT / "glcanet_jax" / path).exists())]
    assert not broken


# -------------------------------------------------------------------------------------------------------------- sizes
def test_readme_is_short_and_begins_with_what_to_do():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= WORDS
    screen = "\n".join(text.split("\n")[:35])
    assert "<!-- ci:main -->" in screen and "<!-- ci:test -->" in screen


def test_the_picture_of_packages_is_of_today():
    """And draws: rooms that import each other in a circle have no floors."""
    tools = runpy.run_path(str(ROOT / "docs" / "tools" / "packages.py"))
    assert tools["draw"](tools["graph"]()) == tools["OUT"].read_text(), "run python docs/tools/packages.py"


def test_the_repository_is_light():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository")
    files = [ROOT / path for path in listed.split("\0") if path and not path.endswith(OTHERS)]
    assert sum(file.stat().st_size for file in files if file.is_file()) <= TRACKED
