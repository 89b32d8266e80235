"""Weights by name: ``hf:organisation/repository[/file][@revision]``, fetched from a hub, or published to one.

A hub is three calls (:class:`glcanet_jax.hub.place.Hub`). :mod:`~glcanet_jax.hub.hugging_face` makes them over the network,
:mod:`~glcanet_jax.hub.folder` on a disk. Only the one file that was asked for is fetched, never code.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from glcanet_jax.errors import UserError
from glcanet_jax.hub.place import Hub
from glcanet_jax.options import perhaps

PREFIX = "hf:"
WEIGHTS = "model.safetensors"  # what published weights are called
USUAL = (WEIGHTS, "best.safetensors", "last.safetensors")  # tried in this order
READ = (".safetensors", ".npz", ".pth", ".pt", ".zip")  # kinds of files that are fetched; a pickle in one is never run
PART = r"[A-Za-z0-9][\w.-]{0,95}"  # of a repository's name
NAME = re.compile(rf"{PREFIX}(?P<repository>{PART}/{PART})(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII)


class Name(NamedTuple):
    """Where weights are on a hub."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return (
            f"{PREFIX}{self.repository}" + f"/{self.file}" * bool(self.file) + f"@{self.revision}" * bool(self.revision)
        )


def _hugging_face() -> Hub:
    from glcanet_jax.hub.hugging_face import HuggingFace

    return HuggingFace()


HUBS: dict[str, Callable[[], Hub]] = {PREFIX: _hugging_face}
_origins: dict[Path, Name] = {}  # of what this process has fetched
# by hub and name: a name stands for one commit as long as the process lives
_fetched: dict[tuple[Any, Name], Path] = {}


def is_name(text: object) -> bool:
    """Whether something is meant as the name of weights on a hub."""
    return str(text).startswith(PREFIX)


def parse(text: str) -> Name:
    """The parts of a name.

    Raises:
        UserError: it is none.
    """
    match = NAME.fullmatch(text)
    if match is None or any(part in ("", ".", "..") for part in (match["file"] or "-").split("/")):
        raise UserError(
            f"{text[:200]!r} is no name on the hub; it must be hf:organisation/repository, and may go on with /file and @revision"
        )
    return Name(**match.groupdict())


def parse_repository(text: str) -> Name:
    """The parts of a name whose ``hf:`` may be left out, as where there is something to publish; raises as :func:`parse`."""
    return parse(text if is_name(text) else PREFIX + text)


def fetch(name: str) -> Path:
    """The weights of a name, on this machine: from the cache where it has them, or where there is no network.

    The hub is asked once by a process, until it publishes there itself.

    Without a file in the name it is the repository's ``model.safetensors``, or its only safetensors file.

    Raises:
        UserError: the name is wrong, there are no such weights, or the hub cannot be reached and they are not in its cache.
    """
    wanted = parse(name)
    key = HUBS[PREFIX], wanted
    if key in _fetched and _fetched[key].is_file():
        return _fetched[key]
    hub = HUBS[PREFIX]()
    found = hub.look(wanted.repository, wanted.revision)
    file = _choose(wanted, found.names)
    path = Path(hub.get(wanted.repository, found.commit, file))
    _origins[path], _fetched[key] = Name(wanted.repository, wanted.file, found.commit), path
    return path


def origin(path: str | Path) -> str | None:
    """The name, with its commit, that a file was fetched by in this process."""
    found = _origins.get(Path(path))
    return None if found is None else str(found)


def push(name: str, files: Mapping[str, Path], message: str, private: bool = False) -> str:
    """Publish files as one commit of ``organisation/repository``; returns the name by which they are fetched.

    Raises:
        UserError: the name is wrong, or the hub does not take them.
    """
    wanted = parse_repository(name)
    if wanted.file or wanted.revision:
        raise UserError(f"{name[:200]!r} names a file or a revision; give organisation/repository alone to publish to")
    made = HUBS[PREFIX]().put(wanted.repository, files, message, private)
    for key in [key for key in _fetched if key[1].repository == wanted.repository]:
        del _fetched[key]
    return str(Name(wanted.repository, revision=made.commit))


def _choose(wanted: Name, names: tuple[str, ...]) -> str:
    """The file of a repository that holds the weights.

    Raises:
        UserError: there is none, or several, or the one named is not there or of a kind that is not read.
    """
    if wanted.file is not None:
        if not wanted.file.endswith(READ):
            raise UserError(f"{wanted} is no file of weights; they are read from {', '.join(READ)}")
        if wanted.file not in names:
            near = perhaps(wanted.file, names)
            raise UserError(f"{wanted.repository} has no file {wanted.file}{near}; it has {_listed(names)}")
        return wanted.file
    there = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    usual = [name for name in USUAL if name in there]
    if usual or len(there) == 1:
        return (usual or there)[0]
    told = f"several safetensors files: {_listed(there)}" if there else f"no safetensors file; it has {_listed(names)}"
    raise UserError(f"{wanted.repository} has {told}; name one, as {PREFIX}{wanted.repository}/FILE")


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(sorted(names)[:6]) + " ..." * (len(names) > 6) if names else "nothing"
