"""What requests may say: small whole numbers, and few of them. Anything else is as if there were nothing."""

import re
from collections.abc import Container
from typing import Any

DIGITS = re.compile(r"-?[0-9]{1,9}")
REAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?(e[+-]?[0-9]{1,2})?")


LONGEST = 4096  # characters that are looked at


class Refused(Exception):
    """The request asks for what there is not."""


def number(text: Any) -> int:
    """Raises Refused if a text is no whole number of up to nine digits."""
    if not isinstance(text, str) or not DIGITS.fullmatch(text):
        raise Refused
    return int(text)


def numbers(text: str | None, counts: Container[int] = range(257)) -> list[int]:
    """``1,2,3``, as many as there may be; nothing where there is no text.

    Raises:
        Refused: it is something else.
    """
    return [number(part) for part in _parts(text, counts)]


def reals(text: str | None, counts: Container[int]) -> list[float]:
    """As :func:`numbers`, of any numbers."""
    parts = _parts(text, counts)
    if not all(REAL.fullmatch(part) for part in parts):
        raise Refused
    return [float(part) for part in parts]


def _parts(text: str | None, counts: Container[int]) -> list[str]:
    parts = text[:LONGEST].split(",") if text else []
    if parts and len(parts) not in counts:
        raise Refused
    return parts
