"""Settings that people write by hand, in JSON, YAML or TOML; all become what JSON holds, to be checked by :mod:`glcanet_jax.border`.

YAML is read as its version 1.2 has it: ``1e-3`` is a number, ``off`` and ``no`` are words, only ``true`` and ``false`` are flags.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glcanet_jax import border
from glcanet_jax.errors import UserError

LARGEST = 2**20  # bytes; settings are a few thousand
NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a file; its suffix says how they are written.

    Raises:
        UserError: it cannot be read, has another suffix, or does not hold settings by name.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"  # of a run
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(
            f"--config is {path}; give a .json (as a run's config.json), .yaml or .toml file, or a run's folder"
        )
    values = read(border.read_text(path, LARGEST), path)
    try:
        values = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:  # a date, say
        raise UserError(
            f"{path} holds what JSON cannot ({error}); write it as a number or as text in quotes"
        ) from error
    if values is None:
        raise UserError(f"{path} is empty; write settings by name into it, as `train: {{steps: 400}}`, or leave it out")
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}; it must hold settings by name, as a run's config.json")
    return nested(values, path)


def nested(values: dict[str, Any], path: Any) -> dict[str, Any]:
    """Settings with those of dotted names where they belong: ``train.steps: 4`` is ``train: {steps: 4}``.

    Raises:
        UserError: one is there twice.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        place, (*groups, last) = out, name.split(".")
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"{path} has {name}, and {group} as one value; keep one of them")
        if isinstance(value, dict) and isinstance(place.get(last), dict) and not value.keys() & place[last].keys():
            place[last] |= value
        elif last in place:
            raise UserError(f"{path} has {name} twice; keep one of them")
        else:
            place[last] = dict(value) if isinstance(value, dict) else value
    return out


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UserError(f"{path} needs PyYAML, which is not installed; pip install pyyaml, or write JSON") from error
    try:
        return yaml.load(text, Loader=_plain_loader())
    except yaml.YAMLError as error:
        mark, told = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise UserError(f"{path} is no valid YAML ({where}{' '.join(told.split())}); mend the file") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for settings; mend the file") from error


def _plain_loader() -> type:
    """YAML without what surprises: no aliases, which can grow without end, no key twice, words and numbers as in 1.2."""
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.composer.ComposerError(None, None, f"an alias, *{event.anchor}", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    null = "tag:yaml.org,2002:null"
    known = yaml.SafeLoader.yaml_implicit_resolvers.items()
    Plain.yaml_implicit_resolvers = {first: [each for each in tags if each[0] == null] for first, tags in known}
    Plain.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$", re.I), list("tTfF"))
    Plain.add_implicit_resolver("!number", re.compile(f"^{NUMBER.pattern}$"), list("-+.0123456789"))
    Plain.add_constructor("!number", lambda loader, node: _number(node.value))
    return Plain


def _number(word: str) -> int | float:
    word = word.replace("_", "")
    return int(word) if re.fullmatch(r"[-+]?\d+", word) else float(word)


def _toml(text: str, path: Path) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no valid TOML ({error}); mend the file") from error


READERS: dict[str, Callable[[str, Path], Any]] = {
    ".json": border.parse_json,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".toml": _toml,
}
