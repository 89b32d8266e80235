"""What requests may say: small whole numbers, and few of them. Anything else is as if there were nothing."""

import re
from typing import Any

DIGITS = re.compile(r"-?[0-9]{1,9}")
REAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?(e[+-]?[0-9]{1,2})?")


class Refused(Exception):
    """The request asks for what there is not."""


def number(text: Any) -> int:
    """Raises Refused if a text is no whole number of up to nine digits."""
    if not isinstance(text, str) or not DIGITS.fullmatch(text):
        raise Refused
    return int(text)


def numbers(text: str | None, most: int = 256) -> list[int]:
    """``1,2,3``; nothing where there is no text.

    Raises:
        Refused: it is something else.
    """
    if not text:
        return []
    parts = text.split(",")
    if len(parts) > most:
        raise Refused
    return [number(part) for part in parts]


def reals(text: str | None, most: int = 16) -> list[float]:
    """As :func:`numbers`, of any numbers."""
    if not text:
        return []
    parts = text.split(",")
    if len(parts) > most or not all(REAL.fullmatch(part) for part in parts):
        raise Refused
    return [float(part) for part in parts]
