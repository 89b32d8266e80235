"""What is written of weights and published: ``card``, ``info`` and ``push`` with what is damaged, contradictory or in the way."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.campaign.cases import CLASSES, Case, Complaint, copy, dice, fine
from tests.campaign.jsons import RAW, mutations
from tests.campaign.networks import bytes_changed, metadata_changed

NAMES = [c["name"] for c in CLASSES["classes"]]
OF_CLASS = {"iou": 0.5, "f1": 0.6, "precision": 0.7, "recall": 0.5, "pixels": 10}
TOLD = {"miou": 0.5, "mf1": 0.6, "oa": 0.7, "classes": {name: OF_CLASS for name in NAMES}}
SCORES = {
    "protocols": {"all": TOLD},
    "majority": {"all": {"miou": 0.1, "oa": 0.3}},
    "config": {"evaluated": "folder", "split": "test", "weights": "best.safetensors"},
    "scenes": {"c": {}},
}
RECORD = {"scenes": {"train": {"a": {}}, "val": {"b": {}}}}
ODD_ANSWERS = (
    "400", "401", "403", "404", "409", "413", "418", "429", "500", "503", "nothing", "words", "list", "hangup", "circle",
)  # fmt: skip
CARD = ("card", "run", "--out", "out/CARD.md", "--stac", "out/item.json")
PUSH = ("push", "run", "organisation/name", "--licence", "CC-BY-4.0")
ODD_TEXTS = ("", " ", "\n", "a" * 5000, "a\nb: c", "](x) <b>|", "\x00", "\u202e", "--", "è" * 100)


def with_run(site: Path, **files: Any) -> Callable[[Path], None]:
    """The site's run with scores and a picture, and files of it replaced: bytes, or None for none."""

    def make(folder: Path) -> None:
        run = copy(site / "run", folder / "run")
        (run / "eval-test").mkdir()
        known = {"scores": run / "eval-test" / "metrics.json", "record": run / "data.json"}
        known["picture"] = run / "eval-test" / "overlay_c.png"
        copy(site / "data" / "images" / "c.png", known["picture"])
        known["scores"].write_text(json.dumps(SCORES))
        for name, content in files.items():
            path = known.get(name, folder / name.replace("__", "."))
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)

    return make


def published(seed: int, each: int, site: Path) -> Iterator[Case]:
    """All kinds."""
    yield from _beside(seed, each, site)
    yield from _weights(seed, each, site)
    yield from _words(site)
    yield from _places(site)
    yield from _names(site)


def _beside(seed: int, each: int, site: Path) -> Iterator[Case]:
    """Scores, the record of data, and pictures beside the weights, or given."""
    commands = (CARD, ("info", "run"), PUSH)
    for i, (name, content) in enumerate(RAW.items()):
        yield Case("card", f"metrics.json {name}", commands[i % 3], with_run(site, scores=content))
        yield Case("card", f"data.json {name}", commands[i % 3], with_run(site, record=content))
        yield Case("card", f"--scores {name}", (*CARD, "--scores", "s.json"), with_run(site, s__json=content))
    for what, sound, look in (("scores", SCORES, _scores), ("record", RECORD, _record)):
        for i, (name, content) in enumerate(mutations(sound, dice(seed, what), each)):
            right = (fine, "it says less, or something else") if look(content) else ()
            yield Case("card", f"{what} {i} {name}", commands[i % 2], with_run(site, **{what: content}), *right)
    pictures = {
        "text": b"words",
        "empty": b"",
        "zeros": bytes(100),
        "half": (site / "data/images/c.png").read_bytes()[:200],
    }
    for name, content in pictures.items():
        for argv in (CARD, PUSH):
            yield Case("card", f"picture of {name}", (*argv, "--picture", "p.png"), with_run(site, p__png=content))
        without = with_run(site, picture=content)
        yield Case("card", f"own picture of {name}", PUSH, without, fine, "a card without a picture")
    for word in ("nowhere.png", "run", "run/best.safetensors", "", "p.svg"):
        yield Case("card", f"--picture {word!r}", (*CARD, "--picture", word), with_run(site, p__svg=b"<svg/>"))
    for word in ("nowhere.json", "run", "run/best.safetensors", ""):
        yield Case("card", f"--scores {word!r}", (*CARD, "--scores", word), with_run(site))


def _weights(seed: int, each: int, site: Path) -> Iterator[Case]:
    """Weights that are damaged, or none."""
    commands = [("card", "w.safetensors", *CARD[2:]), ("info", "w.safetensors"), ("push", "w.safetensors", *PUSH[2:])]
    for way in ("truncated", "header size", "header flipped", "longer"):
        for i in range(each // 4 + 1):
            make = lambda f, way=way, i=i: bytes_changed(f, dice(seed, "card", way, i), way)  # noqa: E731
            yield Case("card", f"{way} {i}", commands[i % 3], make)
    for key in ("config", "classes", "normalisation"):
        for i, word in enumerate(("", "null", "[]", "words", "-1")):
            make = lambda f, key=key, word=word: metadata_changed(f, key, word)  # noqa: E731
            yield Case("card", f"{key} is {word!r}", commands[i % 3], make)
    for word in ("nowhere", "data", "", ".", "scene.tif", "hf:", "hf:x", "hf:a/../b", "hf:a/b@", "hf:a/b c", "demos"):
        for command in ("card", "info"):
            yield Case("card", f"{command} {word!r}", (command, word), lambda folder: None)
    for argv in (
        ("card",),
        ("card", "a", "b"),
        ("push",),
        ("push", "w.safetensors"),
        ("push", "w.safetensors", "a/b", "c"),
    ):
        yield Case("card", f"{len(argv) - 1} words", argv, lambda folder: None)


def _words(site: Path) -> Iterator[Case]:
    """Titles, licences, names and messages that are odd: they may be, if what is written stays what it is."""
    for flag in ("--title", "--licence", "--name"):
        for i, word in enumerate(ODD_TEXTS):
            yield Case(
                "card", f"{flag} {word[:20]!r}", (*CARD, f"{flag}={word}"), with_run(site), _whole, "it is a text"
            )
            if flag != "--name" and i % 3 == 0:
                yield Case(
                    "push", f"{flag} {word[:20]!r}", (*PUSH[:3], f"{flag}={word}"), with_run(site), fine, "likewise"
                )
    for word in ODD_TEXTS:
        yield Case(
            "push", f"--message {word[:20]!r}", (*PUSH, f"--message={word}"), with_run(site), fine, "it is a text"
        )


def _places(site: Path) -> Iterator[Case]:
    """Where a card cannot be written, and where it must not."""
    for flag in ("--out", "--stac"):
        card = ("card", "run", flag)
        for word in (
            "run",
            "run/best.safetensors",
            "run/config.json",
            "run/config.json/x.md",
            "run/config.json/x.json",
            "out/x",
            "",
            ".",
            "/proc/x/y.md",
            "/proc/x/y.json",
            "out/" + "a" * 300 + ".md",
        ):
            yield Case("card", f"{flag} {word[:24]!r}", (*card, word), with_run(site))
    yield Case("card", "both to one file", ("card", "run", "--out", "out/x.md", "--stac", "out/x.md"), with_run(site))

    def piped(folder: Path) -> None:
        with_run(site)(folder)
        for name in ("pipe.md", "pipe.json", "pipe.zip"):
            os.mkfifo(folder / name)

    yield Case("card", "--out a pipe", ("card", "run", "--out", "pipe.md"), piped)
    yield Case("card", "--stac a pipe", ("card", "run", "--stac", "pipe.json"), piped)
    yield Case("card", "export to a pipe", ("export", "--weights", "run", "--out", "pipe.zip"), piped)

    def linked(folder: Path) -> None:
        with_run(site)(folder)
        (folder / "out").mkdir()
        os.symlink(folder / "run" / "config.json", folder / "out" / "CARD.md")

    yield Case("card", "a link to something else", CARD, linked, _whole, "the link is replaced")


def _names(site: Path) -> Iterator[Case]:
    """Repositories that are none, and hubs that answer oddly."""
    wrong = (
        "",
        "a",
        "a/",
        "/a",
        "a/b/c",
        "a/b@x",
        "hf:",
        "hf:a",
        "a b/c",
        "../x",
        "a/..",
        "a/" + "b" * 200,
        "é/x",
        "a/b/c.zip@1",
    )
    for word in wrong:
        yield Case("push", f"to {word[:20]!r}", ("push", "run", word), with_run(site))
    yield Case("push", "sound", PUSH, with_run(site), fine, "it is published, where there is a hub")
    for answer in ODD_ANSWERS:
        yield Case("push", f"the hub says {answer}", ("push", "run", f"odd/{answer}"), with_run(site))
        yield Case("push", f"fetched where it says {answer}", ("info", f"hf:odd/{answer}"), lambda folder: None)


# -------------------------------------------------------------------------------------------------------------- what is right
def _whole(folder: Path) -> Complaint:
    """The card and the Item are whole, whatever words went into them."""
    text = (folder / "out" / "CARD.md").read_text()
    item = json.loads((folder / "out" / "item.json").read_text())
    head = text.split("\n---\n")[0].splitlines()
    known = ("---", "library_name:", "pipeline_tag:", "license:", "license_name:", "tags:", "- ")
    odd = [line for line in head if not line.startswith(known)]
    if odd or "## Classes" not in text or item.get("type") != "Feature":
        return f"the card is broken: {odd[:2]}"
    return None if (folder / "run" / "config.json").read_text().startswith("{") else "what a link led to has changed"


def _value(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _scores(content: bytes) -> bool:
    """Whether scores are those of the weights' classes, in numbers."""
    value = _value(content)
    if not isinstance(value, dict) or not isinstance(value.get("protocols"), dict):
        return False
    return all(map(_protocol, value["protocols"].values()))


def _protocol(value: Any) -> bool:
    number = lambda v: type(v) in (int, float) and abs(v) < 1e300  # noqa: E731
    if not isinstance(value, dict) or not all(number(value.get(key)) for key in ("miou", "mf1", "oa")):
        return False
    each = value.get("classes")
    return isinstance(each, dict) and all(
        name in NAMES and isinstance(of, dict) and "iou" in of and (of["iou"] is None or number(of["iou"]))
        for name, of in each.items()
    )


def _record(content: bytes) -> bool:
    value = _value(content)
    return (
        isinstance(value, dict)
        and isinstance(value.get("scenes"), dict)
        and all(isinstance(of, dict) for of in value["scenes"].values())
    )
