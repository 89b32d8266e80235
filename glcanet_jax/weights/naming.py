"""What a name of weights stands for: the bundled ones, a file, a run, or a repository of the Hugging Face hub."""

from pathlib import Path

from glcanet_jax import hub
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

DEMO = Path(__file__).parents[1] / "data" / "demo" / "demo.safetensors"  # bundled: see the README.md beside it
HUB = hub.PREFIX  # before organisation/repository[@revision]
OF_A_RUN = ("best.safetensors", "last.safetensors")  # the best by validation if there is one, else the last


def resolve(name: str | Path) -> Path:
    """The weights file that a name stands for: ``demo``, a file, a run's folder, or ``hf:organisation/repository[@revision]``.

    ``demo`` is the bundled one, unless something of that name lies here.

    Raises:
        UserError: there is none, or the hub's cannot be fetched.
    """
    if hub.is_name(name):
        return hub.fetch(str(name))
    path = Path(name)
    if path == Path("demo") and not path.exists():
        path = DEMO
    if path.is_dir():
        for file in OF_A_RUN:
            if (path / file).exists():
                return path / file
        raise UserError(f"{path} holds no {' or '.join(OF_A_RUN)}; give a weights file, or a finished run's folder")
    if not path.exists():
        near = perhaps(path.name, _beside(path))
        raise UserError(f"there is no weights file or run at {path}{near}; train one, or give another path")
    return path


def named(path: Path) -> str:
    """Where a weights file is from: the name on a hub, with the commit, that it was fetched by, else its path."""
    return hub.origin(path) or str(path)


def _beside(path: Path) -> list[str]:
    """What lies in a path's folder, and ``demo``."""
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return [*there, *(["demo"] if path.parent == Path(".") else [])]
