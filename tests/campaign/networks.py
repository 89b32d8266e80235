"""Weights, exports, runs and scratch folders that are damaged."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.campaign.cases import ARGV, TINY, Case, Complaint, copy, dice, fine
from tests.campaign.jsons import RAW, mutations, written
from tests.campaign.verdict import digests

COMMANDS = {
    "predict": (*ARGV["predict"], "scene.tif"),
    "export": ARGV["export"],
    "eval": ARGV["eval"],
}


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(path: Path, header: Any, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def bytes_changed(folder: Path, rng: Random, way: str) -> None:
    path = folder / "w.safetensors"
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    if way == "truncated":
        data = data[: rng.randrange(len(data))]
    elif way == "header size":
        data[:8] = struct.pack("<Q", rng.choice((0, 1, size - 1, size + 1, 2**40, 2**64 - 1)))
    elif way == "header flipped":
        data[8 + rng.randrange(size)] = rng.randrange(128, 256)
    else:
        data += bytes(rng.randrange(1, 100))
    path.write_bytes(data)


def array_changed(folder: Path, rng: Random, way: str) -> None:
    """An array with values, a type or a shape that no network has."""
    path = folder / "w.safetensors"
    header, body = split(path)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry, data = header[name], bytearray(body)
    start, stop = entry["data_offsets"]
    if way in ("NaN", "inf"):
        at = start + 4 * rng.randrange((stop - start) // 4)
        data[at : at + 4] = np.float32(way).tobytes()
    elif way == "shape":
        entry["shape"] = [(stop - start) // 4] if len(entry["shape"]) > 1 else [1, *entry["shape"]]
    elif way == "type":
        entry["dtype"] = "I32"
    elif way == "lost":  # as the last one, so that no hole is left
        name = max((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"][1])
        data = data[: header.pop(name)["data_offsets"][0]]
    elif way == "name":
        header[f"{name}/more"] = header.pop(name)
    joined(path, header, bytes(data))


def metadata_changed(folder: Path, key: str, value: str | None) -> None:
    path = folder / "w.safetensors"
    header, body = split(path)
    header["__metadata__"] = {k: v for k, v in header["__metadata__"].items() if k != key} | (
        {} if value is None else {key: value}
    )
    joined(path, header, body)


def weights(seed: int, each: int, site: Path) -> Iterator[Case]:
    """Weights files, for the three commands that take them."""
    for way in ("truncated", "header size", "header flipped", "longer"):
        for i in range(each):
            name, command = f"{way} {i}", list(COMMANDS)[i % 3]
            make = lambda f, way=way, name=name: bytes_changed(f, dice(seed, name), way)  # noqa: E731
            yield Case("weights", name, COMMANDS[command], make)
    for way in ("NaN", "inf", "shape", "type", "lost", "name"):
        for command, argv in COMMANDS.items():
            make = lambda f, way=way, c=command: array_changed(f, dice(seed, way, c), way)  # noqa: E731
            yield Case("weights", f"array: {way}", argv, make)
    told = split(site / "w.safetensors")[0]["__metadata__"]
    commands = list(COMMANDS.values())
    for key in ("config", "classes", "normalisation", "format", "version", "bands"):
        gone = lambda folder, key=key: metadata_changed(folder, key, None)  # noqa: E731
        why = ("bands are told by the stem, too",) if key == "bands" else ()
        yield Case("weights", f"without {key}", commands[0], gone, *((fine, *why) if why else ()))
        for word in ("", "null", "[]", "words", "-1", "NaN", "1e999", "{}"):
            make = lambda folder, key=key, word=word: metadata_changed(folder, key, word)  # noqa: E731
            if (key, word) == ("config", "{}"):
                continue  # a network that is all defaults is another
            yield Case("weights", f"{key} is {word!r}", commands[0], make)
    for key in ("config", "classes", "normalisation"):
        sound = json.loads(told[key])
        for i, (name, content) in enumerate(mutations(sound, dice(seed, key), 3 * each)):
            text = content.decode()
            make = lambda folder, key=key, text=text: metadata_changed(folder, key, text)  # noqa: E731
            yield Case("weights", f"{key} {i} {name}", commands[i % 3], make, *_sound(key, sound, text))
    for name in ("empty", "text", "zeros", "object"):
        yield Case("weights", f"file: {name}", commands[0], written("w.safetensors", RAW[name]))
    for name, make in {
        "missing": lambda folder: (folder / "w.safetensors").unlink(),
        "folder": lambda folder: [(folder / "w.safetensors").unlink(), (folder / "w.safetensors").mkdir()],
        "pipe": lambda folder: [(folder / "w.safetensors").unlink(), __import__("os").mkfifo(folder / "w.safetensors")],
    }.items():
        for command in COMMANDS.values():
            yield Case("weights", name, command, make)


# keys of a configuration that tell of training, or are defaults where they lack: another value of them is another run's
TAKEN = "another sound value, or a default"


def _sound(key: str, sound: Any, text: str) -> tuple:
    """Whether a mutation may be taken: values within their range are. What must not be is told by type and sign."""
    try:
        value = json.loads(text)
    except ValueError:
        return ()
    if value == sound:
        return fine, "as it was"
    if key == "config":
        return (_not_mad(value, sound), TAKEN) if isinstance(value, dict) else ()
    if key == "classes":
        names, palette = (value.get(k) for k in ("names", "palette")) if isinstance(value, dict) else (None, None)
        plain = isinstance(names, list) and isinstance(palette, list) and len(names) == len(palette) == 3
        plain = plain and set(value) <= {"names", "palette", "dataset"} and all(isinstance(n, str) for n in names)
        plain = (
            plain
            and all(n and len(n) <= 200 and n.isprintable() for n in names)
            and isinstance(value.get("dataset", ""), str)
        )
        plain = plain and all(
            isinstance(c, list) and len(c) == 3 and all(type(v) is int and 0 <= v < 256 for v in c) for c in palette
        )
        return (fine, TAKEN) if plain else ()
    numbers = [*value["mean"], *value["std"], value["scale"]] if _has_numbers(value) else [None]
    plain = all(type(n) in (int, float) for n in numbers) and len(value["mean"]) == len(value["std"])
    plain = plain and min(*value["std"], value["scale"]) > 0 and set(value) == {"mean", "std", "scale"}
    return (fine, TAKEN) if plain else ()


def _has_numbers(value: Any) -> bool:
    lists = isinstance(value, dict) and all(isinstance(value.get(k), list) and value[k] for k in ("mean", "std"))
    return lists and "scale" in value


def _not_mad(value: dict[str, Any], sound: dict[str, Any]) -> Callable[[Path], Complaint]:
    """A configuration that was taken has no unknown key and no value of another type."""

    def look(_: Path, value: Any = value, sound: Any = sound, place: str = "config") -> Complaint:
        for key, one in value.items():
            if key not in sound:
                return f"{place}.{key} is unheard of"
            if isinstance(sound[key], dict):
                inner = (
                    look(_, one, sound[key], f"{place}.{key}")
                    if isinstance(one, dict)
                    else f"{place}.{key} is no object"
                )
                if inner is not None:
                    return inner
            elif isinstance(sound[key], int | float) and type(one) not in (int, float, type(None), bool):
                return f"{place}.{key} is {one!r}"
        return None

    return look


# ------------------------------------------------------------------------------------------------- what a killed predict left
def scratches(seed: int, each: int, site: Path) -> Iterator[Case]:
    """Journals, edges and half-made maps of a killed ``predict``, damaged at random: it goes on and makes the same bytes."""

    def damage(folder: Path, rng: Random) -> None:
        copy(site / "killed", folder / "out")
        files = sorted(p for p in (folder / "out").rglob("*") if p.is_file())
        for path in rng.sample(files, min(len(files), rng.randrange(1, 4))):
            data = bytearray(path.read_bytes())
            way = rng.choice(("cut", "flip", "flip", "gone", "empty", "longer"))
            if way == "cut":
                data = data[: rng.randrange(len(data) or 1)]
            elif way == "flip" and data:
                for _ in range(rng.choice((1, 20))):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            elif way == "longer":
                data += rng.randbytes(rng.randrange(1, 200))
            path.unlink()
            if way != "gone":
                path.write_bytes(b"" if way == "empty" else data)

    def same(folder: Path) -> Complaint:
        made, wanted = digests(folder / "out"), digests(site / "whole")
        differ = [name for name in wanted if made.get(name) != wanted[name] and not name.endswith("report.json")]
        return f"{', '.join(differ)} differs from the undisturbed run's" if differ else None

    for i in range(each):
        make = lambda folder, i=i: damage(folder, dice(seed, "scratch", i))  # noqa: E731
        yield Case("scratch", str(i), mapping(site), make, same, "the same bytes as undisturbed", must=True)


def mapping(site: Path) -> tuple[str, ...]:
    """The command that the site's maps were made by; the scene is known by its place and date, and so stays where it is."""
    places = ("predict", str(site / "scene.tif"), "--weights", str(site / "w.safetensors"), "--out", "out")
    return (*places, "--confidence", "--context-size", "64", "--overlap", "8", "--batch", "4")


def training(site: Path) -> tuple[str, ...]:
    """The command of the site's run."""
    return ("train", "--data.dataset", "folder", "--data.dir", str(site / "data"), "--out", "out", *TINY)


def reports(seed: int, each: int, site: Path) -> Iterator[Case]:
    """The report beside finished maps, damaged: the maps are of nobody's making then, and stay as they are."""
    sound = json.loads((site / "whole" / "scene.report.json").read_text())
    bad = [*RAW.items(), *mutations(sound, dice(seed, "reports"), each)]
    for i, (name, content) in enumerate(bad):

        def make(folder: Path, content: bytes = content) -> None:
            copy(site / "whole", folder / "out")
            (folder / "out" / "scene.report.json").write_bytes(content)

        def kept(folder: Path) -> Complaint:
            made, wanted = digests(folder / "out"), digests(site / "whole")
            lost = [name for name in wanted if name not in made]
            return f"{', '.join(lost)} is lost" if lost else None

        yield Case("report", f"{i} {name}", mapping(site), make, kept, "nothing that maps depend on")


# ------------------------------------------------------------------------------------------------------------ runs of training
def trained(seed: int, each: int, site: Path) -> Iterator[Case]:
    """The folder of a run whose command is given again: configuration, log and checkpoints damaged."""

    def damage(folder: Path, names: str, content: bytes | None, rng: Random) -> None:
        copy(site / "run", folder / "out")
        paths = sorted(p for p in (folder / "out").rglob(names) if p.is_file())
        for path in paths if content is not None else rng.sample(paths, 1):
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] if content is None else content)

    def same(folder: Path) -> Complaint:
        made, wanted = digests(folder / "out"), digests(site / "run")
        return None if made["last.safetensors"] == wanted["last.safetensors"] else "the weights are others"

    for name, content in RAW.items():
        make = lambda folder, content=content: damage(folder, "config.json", content, dice())  # noqa: E731
        yield Case("run", f"config.json {name}", training(site), make)
    for name in ("text", "empty", "zeros", "Latin-1", "list"):
        make = lambda folder, content=RAW[name]: damage(folder, "log.jsonl", content, dice())  # noqa: E731
        yield Case("run", f"log.jsonl {name}", training(site), make, fine, "the log is no part of the state")
    for i in range(each):
        for name, content in (("cut", None), ("gone to zeros", bytes(50))):
            make = lambda f, i=i, c=content: damage_checkpoint(f, site, c, dice(seed, "run", i))  # noqa: E731
            yield Case(
                "run", f"checkpoint {name} {i}", training(site), make, same, "an older one, and the same weights"
            )
    for name in ("best.safetensors", "last.safetensors"):
        argv = ("export", "--weights", "out", "--out", "out/network.zip")
        yield Case("run", f"{name} cut", argv, lambda f, n=name: damage(f, n, b"\x00" * 20, dice()), *_other(name))


def _other(name: str) -> tuple:
    return (fine, "best.safetensors is the one that is taken") if name.startswith("last") else ()


def damage_checkpoint(folder: Path, site: Path, content: bytes | None, rng: Random) -> None:
    copy(site / "run", folder / "out")
    paths = sorted(p for p in (folder / "out" / "checkpoints" / "last").rglob("*") if p.is_file())
    path = rng.choice(paths)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if content is None else content)
