"""What everything else asks of a network, told in one line when it is found rather than where it would break."""

import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from glcanet_jax import geometry
from glcanet_jax.errors import UserError

OF_TWO_VIEWS = ("encode_global", "encode_local", "fuse")
ROOTS = ("global", "local", "fusion", "feedback")  # of the parameters of a network of two views; it has some of them
COLLECTIONS = ("params", "batch_stats")
BACKBONES = ("resnet", "vgg")  # modules that hold what is trained elsewhere
ADDED = ("edges", "cbam")  # modules within those that files of plain backbones lack
NOT_OPTIONS = ("num_classes", "parent", "name")  # fields that Flax or the classes fill in
TAKEN = ("network", "view", "loss")  # names of options that every network has already, or that mean something else


@functools.cache
def check(name: str, network: Any) -> None:
    """Check a class before it is used.

    Raises:
        UserError: it lacks something, or an option cannot be written to a configuration.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"network {name!r}: {what}")

    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise refuse(f"{network!r} is no class of flax.linen.Module; give the class itself")
    if "num_classes" not in {f.name for f in dataclasses.fields(network)}:
        raise refuse("it has no field num_classes; add `num_classes: int`")
    for field, _, default in options(network):
        if field in TAKEN:
            raise refuse(f"no option may be called {field}; rename it")
        if not _is_plain(default):
            raise refuse(
                f"its option {field} has {_words(default)}; give it a number, text, True, False, None or a tuple of these"
            )
    calls = ("__call__", *OF_TWO_VIEWS) if looks_twice(network) else ("__call__",)
    for call in calls:
        if not hasattr(network, call):
            raise refuse(
                f"it has no {call}; a network of {'two views' if len(calls) > 1 else 'one view'} has {', '.join(calls)}"
            )
        taken = inspect.signature(getattr(network, call)).parameters.values()
        if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in taken):
            raise refuse(f"{call} takes no train; add `*, train: bool = False`")
    if hasattr(network, "loss") and not _takes(network.loss, "self", "stages", "labels", "key"):
        raise refuse(
            "its loss cannot be called with stages, labels and key; write `def loss(self, stages, labels, key)`"
        )
    if hasattr(network, "examples") and not (
        hasattr(network, "shown") and _takes(getattr(network, "begin_with", None), "self", "params", "images", "labels")
    ):
        raise refuse(
            "it has examples and cannot be shown them; write `def begin_with(self, params, images, labels)`, and the names of the "
            "parameters that they fill as `shown`"
        )
    if getattr(network, "backbone", None) == "resnet" and not {"depth", "stride"} <= {f for f, *_ in options(network)}:
        raise refuse("its backbone is a resnet, whose depth and stride must be options; add both")


def options(network: type[nn.Module]) -> list[tuple[str, Any, Any]]:
    """Name, type and default of every option that a class has itself."""
    own = [f for f in dataclasses.fields(network) if f.name not in NOT_OPTIONS]
    hints: dict[str, Any] = {}
    if any(isinstance(f.type, str) for f in own):  # `from __future__ import annotations` leaves types as text
        bases = [c for c in reversed(network.__mro__) if issubclass(c, nn.Module) and c is not nn.Module]
        for base in bases:
            hints |= inspect.get_annotations(base, eval_str=True)
    return [(f.name, hints.get(f.name, f.type), f.default) for f in own]


def looks_twice(network: Any) -> bool:
    """Whether a class is a network of two views."""
    return hasattr(network, OF_TWO_VIEWS[0])


def _takes(function: Any, *args: Any) -> bool:
    try:
        inspect.signature(function).bind(*args)
    except TypeError:  # it is no function, or takes others
        return False
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _words(default: Any) -> str:
    return "no default" if default is dataclasses.MISSING else f"the default {default!r}"


def check_variables(model: nn.Module, variables: Mapping[str, Any]) -> None:
    """Check what a network keeps.

    Raises:
        UserError: there are roots of parameters that no rate is for, or more than parameters and batch statistics.
    """
    for what, kept, known in (
        ("parameters", variables.get("params", {}), ROOTS),
        ("variables", variables, COLLECTIONS),
    ):
        more = sorted(set(kept) - set(known))
        if more:
            raise UserError(
                f"{type(model).__name__} has {what} called {', '.join(more)}; name them {', '.join(known[:-1])} or {known[-1]}"
            )


def check_answer(network: nn.Module, answer: Any, image: Any, num_classes: int) -> None:
    """Raises UserError if what a network of one view makes of images is not ``(logits [b, h, w, k], stages by name)``."""
    wanted = f"it must return (logits [b, h, w, {num_classes}], a dict of its stages, which may be empty)"
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise UserError(f"{type(network).__name__} returned {type(answer).__name__}; {wanted}")
    shape = list(getattr(answer[0], "shape", ()))
    if len(shape) != 4 or shape[-1] != num_classes:
        raise UserError(f"{type(network).__name__} returned logits {shape}; {wanted}")
    try:
        for cells, pixels in zip(shape[1:3], image.shape[1:3], strict=True):
            geometry.stride_of(cells, pixels)
    except ValueError as error:
        raise UserError(
            f"{type(network).__name__}: {error}; pad as `padding='SAME'` does, or resize the logits"
        ) from error


def check_terms(model: nn.Module, terms: Any, common: Collection[str]) -> Mapping[str, Any]:
    """The terms of a network's own loss, as they are.

    Args:
        common: names of the terms that stand beside them.

    Raises:
        UserError: they are not numbers by name, there are none at all, or one has the name of a common one.
    """
    name = type(getattr(model, "network", model)).__name__
    wanted = "it must return a dict of numbers (floats of no axes) by name"
    if not isinstance(terms, Mapping):
        raise UserError(f"the loss of {name} returned {type(terms).__name__}; {wanted}")
    for term, value in terms.items():
        shape, dtype = jnp.shape(value), jnp.result_type(value)
        if not isinstance(term, str) or shape != () or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"the loss of {name} returned {term!r}, {dtype} {list(shape)}; {wanted}")
    if not terms and not common:
        raise UserError(f"the loss of {name} returned no term, and stands alone; {wanted}")
    twice = sorted(set(terms) & set(common))
    if twice:
        raise UserError(f"the loss of {name} has a term called {', '.join(twice)}, as the common loss has; rename it")
    return terms
