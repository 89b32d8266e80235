"""Tables that are filled cell by cell: what is there is not run again, and is not mixed with cells of other settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common import sizes
from glcanet_jax import border, report
from glcanet_jax import config as configs
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import machine

KEPT = "command", "machine"  # of a table that was begun elsewhere


class Cells:
    """The cells of ``path``, a JSON file with ``command``, ``machine``, ``settings`` and ``cells``; each has the ``keys`` that name it.

    ``others`` names the commands and machines of cells that were there before, in turn.

    Raises:
        UserError: the file holds cells of other settings.
    """

    def __init__(self, path: Path, command: str, settings: Mapping[str, Any], keys: tuple[str, ...]):
        self.path, self._keys = path, keys
        before = {"cells": []} if not path.exists() else border.read_object(path, cells=list)
        changed = configs.differences(dict(settings), before.get("settings", dict(settings)))
        if changed:
            raise UserError(
                f"{path} holds cells of other settings ({'; '.join(changed[:2])}); move it away, or give another folder"
            )
        made = {"command": command, "machine": machine() | {"commit": sizes.commit()}, "settings": settings}
        others = [*before.get("others", []), *([{k: before[k] for k in KEPT}] if before["cells"] else [])]
        others = [other for other in others if any(other[k] != made[k] for k in KEPT)]
        self.result: dict[str, Any] = made | ({"others": others} if others else {}) | {"cells": before["cells"]}

    def has(self, *key: Any) -> bool:
        """Whether the cell of that name is there."""
        return any(tuple(cell[k] for k in self._keys) == key for cell in self.result["cells"])

    def add(self, cell: Mapping[str, Any]) -> None:
        """Keep one more; the file is whole at any time."""
        self.result["cells"].append(dict(cell))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(self.path, self.result)
