"""Options that must be one of a few values."""

from collections.abc import Mapping
from typing import Any

from glcanet_jax.errors import UserError

COMMON: dict[str, tuple[Any, ...]] = {
    "norm": ("batch", "frozen", "group"),
    "dtype": ("float32", "bfloat16"),
}


def check(model: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Check fields of a network.

    Raises:
        UserError: a field has a value that does not exist; those that do are named.
    """
    for field, allowed in choices.items():
        value = getattr(model, field)
        if value not in allowed:
            raise UserError(f"model.{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def check_dropout(model: Any) -> None:
    """Check the rate of a network's dropout.

    Raises:
        UserError: it is no share below one.
    """
    if not 0 <= model.dropout < 1:
        raise UserError(f"model.dropout is {model.dropout}; it must be at least 0 and less than 1")
