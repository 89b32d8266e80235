"""What comes from outside is looked at once, here, before it is used: files, their text, and JSON against dataclasses.

Types of fields are what JSON must hold, to the letter: no "1" for 1, no true for 1, no key that is not a field. Marks of
:mod:`glcanet_jax.limits` beside them say which numbers, words and lengths. All faults of a file are told at once.
"""

import dataclasses
import functools
import json
import os
import re
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from glcanet_jax.errors import UserError
from glcanet_jax.limits import FINITE, MOST, Length, Range, Text, fields_of, in_words, mark_of, unmarked
from glcanet_jax.options import perhaps

LARGEST = 2**30  # bytes of a text; the largest areas of interest stay far below
SHOWN = 8  # faults told of a file
MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
Kinds = Mapping[type, type]


# ------------------------------------------------------------------------------------------------------------ the bytes
def what_is_there(path: str | Path) -> str | None:
    """What stands at a path that is no file, in words; None where a file does.

    Raises:
        OSError: nothing can be said of it: it is not there, a link to itself, or out of reach.
    """
    mode = os.stat(path).st_mode
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    kinds |= {stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
    return None if stat.S_ISREG(mode) else next((word for of, word in kinds.items() if of(mode)), "no file")


def read_bytes(path: str | Path, largest: int = LARGEST) -> bytes:
    """A file, whole.

    Raises:
        UserError: it cannot be read, is no file (a pipe would never end), or is larger than ``largest`` bytes.
    """
    try:
        other = what_is_there(path)
        if other is not None:
            raise UserError(f"{path} is {other}; it must be a file: give another path")
        size = os.stat(path).st_size
        if size > largest:
            raise UserError(f"{path} has {size} bytes, over {largest}; this is no such file: give another path")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UserError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); give another path"
        ) from error


def read_text(path: str | Path, largest: int = LARGEST) -> str:
    """A text in UTF-8, whatever the locale; a byte order mark at its beginning is left out.

    Raises:
        UserError: it cannot be read, or is encoded otherwise.
    """
    return decode(read_bytes(path, largest), path)


def decode(data: bytes, source: Any) -> str:
    """Bytes of UTF-8 as text.

    Raises:
        UserError: they are of another encoding, which is named.
    """
    named = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if named is None and b"\0" in data[:64]:
        zeros = {i % 2 for i, byte in enumerate(data[:64]) if byte == 0}
        named = "UTF-16" if len(zeros) == 1 and data[:64].count(0) >= min(len(data), 64) // 3 else "no text"
    if named is not None:
        raise UserError(f"{source} is {named}; it must be a text in UTF-8: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{source} is not UTF-8 (line {line} has the byte 0x{data[error.start]:02x}; Latin-1 or Windows-1252, perhaps); "
            "save it as UTF-8"
        ) from error


# ------------------------------------------------------------------------------------------------------------- the JSON
def read_json(path: str | Path, largest: int = LARGEST) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, is no UTF-8, or no JSON.
    """
    return parse_json(read_text(path, largest), path)


def read_object(path: str | Path, cure: str = "make it again", **wanted: type) -> dict[str, Any]:
    """A JSON file of our own making: an object that has at least the keys ``wanted``, with values of these types.

    Raises:
        UserError: it cannot be read, or is another.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is {_short(value)}, it must be an object; {cure}")
    names = {dict: "an object", list: "a list"}
    for key, kind in wanted.items():
        if key not in value or type(value[key]) is not kind:
            got = f"is {_short(value[key])}" if key in value else "is missing"
            raise UserError(f"{path}: {key} {got}, it must be {names.get(kind) or in_words(kind)}; {cure}")
    return value


def parse_json(text: str, source: Any) -> Any:
    """What a text of strict JSON holds: no NaN, no key twice in an object, no half characters.

    Raises:
        UserError: it is something else; ``source`` says what it was read from.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}: {error.msg}" if text.strip() else "it is empty"
        raise UserError(f"{source} is no valid JSON ({where}); mend the file") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply for JSON of ours; mend the file") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{source} has half of a surrogate pair in a text; mend the file") from error
    except ValueError as error:
        told = "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)
        raise UserError(f"{source} is no JSON of ours: it has {told}; mend the file") from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_short(twice)} twice in one object")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word}, which is no number in JSON")


# ----------------------------------------------------------------------------------------------------------- the schema
class _Place(NamedTuple):
    """What may stand at a place of a file."""

    hint: Any
    span: Range = FINITE
    choices: tuple[Any, ...] = ()
    marks: tuple[Any, ...] = ()

    @property
    def optional(self) -> bool:
        return type(None) in typing.get_args(self.hint) and typing.get_origin(self.hint) is not tuple

    @property
    def plain(self) -> Any:
        """The type without None; of whole numbers and others the others, which hold both."""
        if typing.get_origin(self.hint) not in (typing.Union, types.UnionType):
            return self.hint
        parts = [part for part in typing.get_args(self.hint) if part is not type(None)]
        return float if set(parts) == {int, float} else parts[0] if len(parts) == 1 else Any


def check(value: Any, kind: type, source: Any, kinds: Kinds | None = None, cure: str = "mend the file") -> Any:
    """A value of JSON as an instance of a dataclass; fields that it lacks take their defaults.

    ``kinds`` are dataclasses that stand for others, as a network's options for those of any.

    Raises:
        UserError: it has faults; all are told behind ``source``, which says what it was read from.
    """
    kinds = dict(kinds or {})
    found = faults(value, kind, kinds)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(f"{source}: {'; '.join(found[:SHOWN])}{more}; {cure}")
    try:
        return _built(value, _Place(kind), kinds)
    except UserError as error:  # what a dataclass says of its fields together
        raise UserError(f"{source}: {error}") from error


def faults(value: Any, kind: type, kinds: Kinds | None = None) -> list[str]:
    """What is wrong with a value of JSON that is to become a dataclass, each with its place."""
    from pydantic import ValidationError

    kinds = dict(kinds or {})
    try:
        _adapter(kind, tuple(kinds.items())).validate_json(json.dumps(value))
    except ValidationError as error:
        told = error.errors(include_url=False)
        if any(one["type"] == "json_invalid" for one in told):
            return ["it is nested too deeply"]
        # a list with a fault in it is also told to be short of what it has
        told = [one for one in told if one["type"] != "too_short" or len(one["input"]) < one["ctx"]["min_length"]]
        return list(dict.fromkeys(_fault(one, kind, kinds) for one in told))
    return []


@functools.cache
def _adapter(kind: type, kinds: tuple[tuple[type, type], ...]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(_schema(_Place(kind), dict(kinds)))


def _schema(place: _Place, kinds: Kinds) -> Any:
    """A place as pydantic has it."""
    from pydantic import AfterValidator, Field

    plain = place.plain
    origin = typing.get_origin(plain)
    if dataclasses.is_dataclass(plain):
        out: Any = _object(kinds.get(plain, plain), kinds)
    elif origin is tuple:
        parts = tuple(
            p if p is Ellipsis else _schema(_step(place, i), kinds) for i, p in enumerate(typing.get_args(plain))
        )
        length = mark_of(Length, place.marks, Length())
        out = (
            Annotated[tuple[parts], Field(min_length=length.least, max_length=length.most)]
            if Ellipsis in parts
            else tuple[parts]
        )
    elif origin is dict:
        out = dict[str, _schema(_step(place, ""), kinds)]
    elif place.choices and plain is not bool:
        return typing.Literal[place.choices]
    elif plain in (int, float) and place.span != FINITE:
        out = Annotated[plain, AfterValidator(functools.partial(_within, place.span))]
    elif plain is str and (text := mark_of(Text, place.marks)) is not None:
        out = Annotated[str, AfterValidator(functools.partial(_within, text))]
    else:
        out = plain
    return out | None if place.optional else out


def _within(limit: Range | Text, value: Any) -> Any:
    if value not in limit:
        raise ValueError(str(limit))
    return value


def _object(kind: type, kinds: Kinds) -> Any:
    """A dataclass as a dictionary of its fields."""
    from typing import NotRequired

    from typing_extensions import TypedDict  # that of 3.11 will not do for pydantic

    missing, fields = dataclasses.MISSING, {}
    for f in dataclasses.fields(kind):
        hint = _schema(_Place(*fields_of(kind)[f.name]), kinds)
        given = f.default is not missing or f.default_factory is not missing
        fields[f.name] = NotRequired[hint] if given else hint
    out = TypedDict(kind.__name__, fields)
    out.__pydantic_config__ = STRICT
    return out


def _step(place: _Place, key: int | str, kinds: Kinds | None = None) -> _Place:
    """What may stand one step further."""
    plain = place.plain
    if dataclasses.is_dataclass(plain):
        own = fields_of((kinds or {}).get(plain, plain))
        return _Place(*own[key]) if key in own else _Place(Any)
    parts = typing.get_args(plain)
    if typing.get_origin(plain) is dict:
        hint, marks = unmarked(parts[1])
    elif typing.get_origin(plain) is tuple and isinstance(key, int):
        hint, marks = unmarked(parts[0] if Ellipsis in parts else parts[min(key, len(parts) - 1)])
    else:
        return _Place(Any)
    return _Place(hint, mark_of(Range, marks, place.span), place.choices, marks)


def _built(value: Any, place: _Place, kinds: Kinds) -> Any:
    """A value without faults as what its place says: dataclasses for objects, tuples for lists."""
    plain = kinds.get(place.plain, place.plain) if isinstance(place.plain, type) else place.plain
    if value is None:
        return None
    if dataclasses.is_dataclass(plain):
        return plain(**{key: _built(v, _step(place, key, kinds), kinds) for key, v in value.items()})
    if typing.get_origin(plain) is dict:
        return {key: _built(v, _step(place, key, kinds), kinds) for key, v in value.items()}
    if isinstance(value, list):
        return tuple(_built(v, _step(place, i, kinds), kinds) for i, v in enumerate(value))
    return plain(value) if plain in (float, Path) else value


# ------------------------------------------------------------------------------------------------------------- in words
def _fault(error: Mapping[str, Any], kind: type, kinds: Kinds) -> str:
    """One of pydantic's errors."""
    place, parent, keys = _Place(kind), None, error["loc"]
    for key in keys:
        place, parent = _step(place, key, kinds), place
    path = "".join(_joined(keys)) or "the whole"
    if error["type"] == "extra_forbidden":
        plain = None if parent is None else parent.plain
        known = [f.name for f in dataclasses.fields(kinds.get(plain, plain))]
        there = f", there are {', '.join(known[:SHOWN])}{' ...' * (len(known) > SHOWN)}"
        return f"{path} is not known{perhaps(str(keys[-1]), known) or there}"
    if error["type"] == "missing":
        return f"{path} is missing, it must be {_wanted(place, kinds)}"
    return f"{path} is {_short(error['input'])}, it must be {_wanted(place, kinds)}"


def _joined(keys: tuple[int | str, ...]) -> Iterator[str]:
    for i, key in enumerate(keys):
        if isinstance(key, int):
            yield f"[{key}]"
        elif re.fullmatch(r"[\w-]+", key):
            yield f"{'.' if i else ''}{key}"
        else:
            yield f"[{_short(key)}]"


def _wanted(place: _Place, kinds: Kinds) -> str:
    """What must stand at a place."""
    plain, none = place.plain, " or null" * place.optional
    if place.choices and plain is not bool:
        told = [c for c in place.choices if c is not None]
        return f"{'one of ' * (len(told) > 1)}{', '.join(_short(c) for c in told)}{none or ' or null' * (None in place.choices)}"
    if dataclasses.is_dataclass(plain):
        known = [f.name for f in dataclasses.fields(kinds.get(plain, plain))]
        return f"an object with {', '.join(known[:SHOWN])}{' ...' * (len(known) > SHOWN)}{none}"
    if typing.get_origin(plain) is dict:
        return f"an object of names, each with {_wanted(_step(place, ''), kinds)}{none}"
    if typing.get_origin(plain) is tuple:
        parts, length = typing.get_args(plain), mark_of(Length, place.marks, Length())
        many = f"{length.least} or more" if length.most == MOST else f"{length.least} to {length.most}"
        count = (many if length != Length() else "any number") if Ellipsis in parts else str(len(parts))
        return f"a list of {count}, each {_wanted(_step(place, 0), kinds)}{none}"
    text = mark_of(Text, place.marks)
    return f"{text.words if text else f'{in_words(plain)} {place.span}'.rstrip()}{none}"


def _short(value: Any) -> str:
    """A value of JSON in a message: whole where it is short."""
    if isinstance(value, dict):
        return (
            f"an object with {', '.join(map(str, list(value)[:4]))}{' ...' * (len(value) > 4)}"
            if value
            else "an empty object"
        )
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    told = json.dumps(value, ensure_ascii=False)
    return told if len(told) <= 60 else f"{told[:57]}..."
