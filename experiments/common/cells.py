"""Tables that are filled cell by cell: what is there is not run again, and is not mixed with cells of other settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common import sizes
from glcanet_jax import border, profiling, report
from glcanet_jax import config as configs
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import machine

KEPT = "command", "machine"  # of a table that was begun elsewhere


def made_on(made: Mapping[str, Any]) -> str:
    """A machine and the commit that ran there, in words."""
    return profiling.in_words(made) + (f", commit {made['commit']}" if "commit" in made else "")


def before(result: Mapping[str, Any]) -> list[str]:
    """A paragraph for each command that has filled cells of a table before the last one."""
    return [
        f"Of these cells some were there before: `{other['command']}`; {made_on(other['machine'])}.\n"
        for other in result.get("others", ())
    ]


class Cells:
    """The cells of ``path``, a JSON file with ``command``, ``machine``, ``settings`` and ``cells``; each has the ``keys`` that name it.

    ``others`` names the commands and machines of cells that were there before, in turn.

    Raises:
        UserError: the file holds cells of other settings.
    """

    def __init__(self, path: Path, command: str, settings: Mapping[str, Any], keys: tuple[str, ...]):
        self.path, self._keys = path, keys
        there = {"cells": []} if not path.exists() else border.read_object(path, cells=list)
        changed = configs.differences(dict(settings), there.get("settings", dict(settings)))
        if changed:
            raise UserError(
                f"{path} holds cells of other settings ({'; '.join(changed[:2])}); move it away, or give another folder"
            )
        made = {"command": command, "machine": machine() | {"commit": sizes.commit()}, "settings": settings}
        others = [*there.get("others", []), *([{k: there[k] for k in KEPT}] if there["cells"] else [])]
        others = [other for other in others if any(other[k] != made[k] for k in KEPT)]
        self.result: dict[str, Any] = made | ({"others": others} if others else {}) | {"cells": there["cells"]}

    def has(self, *key: Any) -> bool:
        """Whether the cell of that name is there."""
        return any(tuple(cell[k] for k in self._keys) == key for cell in self.result["cells"])

    def add(self, cell: Mapping[str, Any]) -> None:
        """Keep one more; the file is whole at any time."""
        self.result["cells"].append(dict(cell))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(self.path, self.result)
