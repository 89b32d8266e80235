"""What of scenes is labelled, read a strip at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.errors import UserError


def class_counts(scene: Any, num_classes: int, rows: int = 512) -> np.ndarray:
    """Labelled pixels of a scene by class, ``[num_classes]``, read ``rows`` at a time."""
    counts = np.zeros(num_classes, np.int64)
    for top in range(0, scene.height, rows):
        labels = scene.read_labels(top, 0, min(rows, scene.height - top), scene.width)
        counts += np.bincount(labels[labels < num_classes], minlength=num_classes)
    return counts


def has_label(scene: Any, ignored: Iterable[int] = (), rows: int = 512) -> bool:
    """Whether a scene has a pixel that counts: looked for from the top, ``rows`` at a time, up to the first.

    Args:
        ignored: ids that do not count either, as a protocol's.
    """
    drop = [IGNORE, *ignored]
    tops = range(0, scene.height if scene.labelled else 0, rows)
    return any(
        not np.isin(scene.read_labels(top, 0, min(rows, scene.height - top), scene.width), drop).all() for top in tops
    )


def check_labels(scenes: Sequence[Any], split: str, ignored: Iterable[int] = (), *, what: str) -> None:
    """Look for what nothing can be learnt or scored without, and stop at the first pixel that is.

    Args:
        what: needs it, as "training".

    Raises:
        UserError: a split holds no scene, one of its scenes has no mask, or no pixel of it is labelled.
    """
    if not scenes:
        raise UserError(f"split {split} holds no scenes; {what} needs some: add scenes to it, or choose another split")
    bare = [scene.name for scene in scenes if not scene.labelled]
    if bare:
        more = f" and {len(bare) - 1} more" * (len(bare) > 1)
        raise UserError(
            f"scene {bare[0]}{more} of split {split} has no labels; {what} needs them: add masks, or choose another split"
        )
    if not any(has_label(scene, ignored) for scene in scenes):
        raise UserError(
            f"no pixel of split {split} is labelled ({len(scenes)} scenes, all of them ignored); {what} needs some: "
            "mend the masks, or choose another split"
        )
