"""What numbers and words may be, said once beside their fields: ``steps: Annotated[int, Range(1)]``.

Command lines, configurations made in Python, and files are all checked against it.
"""

import dataclasses
import functools
import math
import numbers
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from glcanet_jax.errors import UserError

MOST = 10**9  # of what is counted: beyond it a number is a slip of the keyboard


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; none of them is infinite or NaN."""

    low: float | int = -math.inf
    high: float | int = math.inf
    open: str = ""  # "low", "high" or both words: these ends are not in it

    def __contains__(self, value: Any) -> bool:
        above = value > self.low if "low" in self.open else value >= self.low
        below = value < self.high if "high" in self.open else value <= self.high
        return bool(abs(value) < math.inf and above and below)

    def __str__(self) -> str:
        low, high = (f"{v:.0f}" if abs(v) < math.inf and v == int(v) else f"{v:g}" for v in (self.low, self.high))
        if not self.open and math.inf not in (-self.low, self.high):
            return f"from {low} to {high}"
        above = "" if math.isinf(self.low) else f"above {low}" if "low" in self.open else f"of at least {low}"
        below = "" if math.isinf(self.high) else f"under {high}" if "high" in self.open else f"at most {high}"
        return " and ".join(filter(None, [above, below]))


@dataclass(frozen=True)
class Text:
    """Text that a pattern matches from end to end."""

    pattern: str
    words: str  # what that is, as "a colour as \"#ff8800\""

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None


@dataclass(frozen=True)
class Nothing:
    """What stands for None on a command line, where that is a choice of its own."""

    word: str = "none"


@dataclass(frozen=True)
class Length:
    """How many of a list there may be."""

    least: int = 0
    most: int = MOST


FINITE = Range()
COUNT = Range(1, MOST)
SHARE = Range(0, 1)
DECAY = Range(0, 1, open="high")  # a step
WEIGHT = Range(0, 1e6)  # of a term of the loss
SEED = Range(0, 2**32 - 1)
METRES = Range(0, 1e5, open="low")  # a pixel on the ground


def unmarked(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what ``Annotated`` adds, and that."""
    if typing.get_origin(hint) is typing.Annotated:
        hint, *marks = typing.get_args(hint)
        return hint, tuple(marks)
    return hint, ()


def mark_of(kind: type, marks: tuple[Any, ...], default: Any = None) -> Any:
    """The first mark of a kind."""
    return next((mark for mark in marks if isinstance(mark, kind)), default)


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, of one that may be None, or of a tuple of them."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        inner = [choices_of(part) for part in typing.get_args(hint) if part not in (type(None), Ellipsis)]
        if any(inner):
            return (*inner[0], *((None,) if type(None) in typing.get_args(hint) else ()))
    return ()


@functools.cache
def fields_of(kind: type) -> dict[str, tuple[Any, Range, tuple[Any, ...], tuple[Any, ...]]]:
    """Of every field of a dataclass its type, range, choices and marks; the range is beside it, or in its metadata."""
    hints, found = typing.get_type_hints(kind, include_extras=True), {}
    for f in dataclasses.fields(kind):
        hint, marks = unmarked(hints[f.name])
        span = mark_of(Range, marks, f.metadata.get("range") or FINITE)
        found[f.name] = hint, span, tuple(f.metadata.get("choices") or choices_of(hint)), marks
    return found


def check_fields(instance: Any, prefix: str) -> None:
    """Look over the numbers, the flags and the choices of a dataclass made in Python.

    Raises:
        UserError: some are not what their fields say; all are told, each behind ``prefix``.
    """
    wrong = []
    for name, (hint, span, choices, _) in fields_of(type(instance)).items():
        value = getattr(instance, name)
        told = name.replace("_", "-") if prefix.startswith("--") else name
        wanted = _wanted(value, hint, span, choices)
        if wanted:
            wrong.append(
                f"{prefix}{told} is {str(value)[:60] if _number(value) else repr(value)[:60]}; it must be {wanted}"
            )
    if wrong:
        raise UserError("; ".join(wrong))


def _wanted(value: Any, hint: Any, span: Range, choices: tuple[Any, ...]) -> str | None:
    """What a value must be where it is not."""
    parts = tuple(_kinds(hint))
    many = typing.get_origin(hint) is tuple
    if value is None and type(None) in parts and not many:
        return None
    none = " or None" * (type(None) in parts and not many)
    if bool in parts:
        return None if isinstance(value, bool) else f"True or False{none}"
    values = value if many and isinstance(value, tuple | list) else (value,)
    if choices:
        return None if all(v in choices for v in values) else f"one of {', '.join(map(str, choices))}"
    if not {int, float} & set(parts):
        return None
    ends = typing.get_args(hint)
    if many and (values is not value or (Ellipsis not in ends and len(values) != len(ends))):
        return f"{len(ends)} numbers" if Ellipsis not in ends else "a tuple of numbers"
    whole = float not in parts
    if all(_number(v) and (not whole or isinstance(v, numbers.Integral)) and v in span for v in values):
        return None
    return f"{'numbers' if many else in_words(int if whole else float)} {span}".rstrip() + none


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _kinds(hint: Any) -> Iterator[Any]:
    """The plain types in a union or a tuple."""
    hint, _ = unmarked(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        for part in typing.get_args(hint):
            yield from _kinds(part)
    else:
        yield hint


def in_words(kind: Any) -> str:
    """What a type is called."""
    plain = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return plain.get(typing.get_origin(kind) or kind, "a value")
