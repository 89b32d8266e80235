"""What is not trained: parameters by patterns of their paths, and the norms among them, which keep their statistics."""

import contextlib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.errors import UserError
from glcanet_jax.models.contract import BACKBONES
from glcanet_jax.models.layers.resnet import BatchNorm
from glcanet_jax.options import perhaps

BUT = "!"  # before a pattern of what is trained all the same


def matches(path: tuple[str, ...], pattern: str) -> bool:
    """Whether a parameter, or a module that it is in, is meant by ``backbone`` (every ResNet or VGG) or a pattern of paths."""
    if pattern == "backbone":
        return any(name in BACKBONES for name in path)
    return any(fnmatch.fnmatchcase("/".join(path[:end]), pattern) for end in range(1, len(path) + 1))


def frozen(params: dict[str, Any], patterns: tuple[str, ...]) -> dict[str, Any]:
    """Which parameters are not trained, as a tree of bools.

    Args:
        patterns: ``backbone`` for every ResNet or VGG, or patterns of paths (``local/resnet/stage1*``), of a module for all in it;
            ``!PATTERN`` takes out of those before it.

    Raises:
        UserError: one means nothing, as the first does that takes out, or all mean everything.
    """
    flat = flatten_dict(params)
    if patterns and patterns[0].startswith(BUT):
        raise UserError(
            f"--freeze {patterns[0]} freezes nothing: name first what is frozen, as in --freeze '*' '{patterns[0]}'"
        )
    for pattern in patterns:
        if not any(matches(path, pattern.removeprefix(BUT)) for path in flat):
            raise UserError(_no_parameter(pattern, flat))

    def stays(path: tuple[str, ...]) -> bool:
        last = next((p for p in reversed(patterns) if matches(path, p.removeprefix(BUT))), BUT)
        return not last.startswith(BUT)

    mask = {path: stays(path) for path in flat}
    if mask and all(mask.values()):
        raise UserError(f"--freeze {' '.join(patterns)} leaves nothing to train; name less")
    return unflatten_dict(mask)


def _no_parameter(pattern: str, paths: Iterable[tuple[str, ...]]) -> str:
    """What to tell of a pattern that means nothing: the names near it, or the modules that there are."""
    paths = list(paths)
    modules = sorted({"/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})
    has_backbone = any(name in BACKBONES for path in paths for name in path)
    words = ["backbone"] * has_backbone + ["all-but-heads"]
    near = perhaps(pattern, [*words, *modules])
    roots = sorted({path[0] for path in paths})
    shown = near or f"; the network has {', '.join(['backbone'] * has_backbone + roots)}"
    return f"--freeze {pattern} means no parameter{shown}; give {', '.join(words)}, or a pattern as {roots[0]}/*"


def frozen_norms(params: dict[str, Any], patterns: tuple[str, ...]) -> contextlib.AbstractContextManager:
    """While networks are called inside, their batch norms that are not trained normalise by the statistics that they have.

    Those of the batch would change what the layers behind a frozen one see, and the statistics of what is kept as it is.
    """
    if not patterns:
        return contextlib.nullcontext()
    mask = flatten_dict(frozen(params, patterns))
    still = {path[:-1] for path in mask} - {path[:-1] for path, stays in mask.items() if not stays}

    def call(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, nn.BatchNorm) or module.path not in still:
            return next_fun(*args, **kwargs)
        if "use_running_average" in kwargs:  # as ours, too, asks the class that it is made from
            return next_fun(*args, **kwargs | {"use_running_average": True})
        if isinstance(module, BatchNorm):
            return next_fun(args[0], False)
        return module.clone(use_running_average=True, parent=None).apply(module.variables, args[0])

    return nn.intercept_methods(call)
