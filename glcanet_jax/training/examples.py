"""Patches of the scenes trained on, with their labels, that a network is shown before its first step (SegGPT's prompts)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glcanet_jax import models
from glcanet_jax.config import Config, numbers_of
from glcanet_jax.data.draws import make_example
from glcanet_jax.starting import Start
from glcanet_jax.weights.fitting import part_of

TRIES = 16  # contexts that are looked at for each patch that is wanted
MOST = 64  # in all

Labelled = tuple[np.ndarray, np.ndarray]  # a patch and its labels


def shown(
    config: Config,
    model: nn.Module,
    scenes: Sequence[Any],
    names: Sequence[str],
    variables: dict[str, Any],
    taken: Start | None,
) -> dict[str, Any]:
    """Variables of a network that has been shown what it begins with; of any other network they are as they were.

    Examples of weights that the run begins with stay, if its classes are the same ones.

    Args:
        names: of the classes; taken: what was taken of weights.
    """
    asked = models.examples(model)
    if asked is None or _kept(asked, names, taken):
        return variables
    chosen = choose(list(_candidates(config, model, scenes, asked.count)), asked.count, len(names))
    there = np.unique(np.concatenate([labels.ravel() for _, labels in chosen]))
    found = [name for i, name in enumerate(names) if i in there]
    print(
        f"examples shown to the network: {len(chosen)} of the training patches, with {', '.join(found) or 'no class'} in them"
    )
    images = models.normalise(jnp.stack([image for image, _ in chosen]), **numbers_of(config.normalisation))
    params = asked.show(variables["params"], images, jnp.stack([labels for _, labels in chosen]).astype("int32"))
    return variables | {"params": jax.tree.map(np.asarray, params)}


def _kept(asked: models.Examples, names: Sequence[str], taken: Start | None) -> bool:
    """Whether the examples are those of the weights that were taken."""
    if taken is None or taken.source.stored is None or list(taken.source.stored.classes["names"]) != list(names):
        return False
    parts = (taken.parts.get(part_of(("params", *path.split("/"))), {}) for path in asked.arrays)
    return all(part.get("taken") for part in parts)


def _candidates(config: Config, model: nn.Module, scenes: Sequence[Any], count: int) -> Iterator[Labelled]:
    """A patch of a context, drawn as in training, of all scenes in turns; the same for a seed in every process."""
    image, labels = (
        ("global_image", "global_labels") if models.stages(model) == ("global",) else ("patches", "patch_labels")
    )
    rng, one = np.random.default_rng((config.loader.seed, len(scenes))), replace(config.loader, patches_per_context=1)
    order = rng.permutation(len(scenes))
    for i in range(max(min(TRIES * count, MOST), count)):
        at = int(order[i % len(scenes)])
        example = make_example(scenes[at], at, config.views, one, rng)
        if image == "patches":
            yield from zip(example[image][example["valid"]], example[labels][example["valid"]], strict=True)
        else:
            yield example[image], example[labels]


def choose(candidates: Sequence[Labelled], count: int, classes: int) -> list[Labelled]:
    """So many that show as many classes as can be, and much of each: one after another that adds most to the sum of the roots of
    the classes' pixels.
    """
    pixels = np.array(
        [np.bincount(labels.ravel(), minlength=classes)[:classes] for _, labels in candidates], np.float64
    )
    left, sums, chosen = list(range(len(candidates))), np.zeros(classes), []
    while left and len(chosen) < count:
        best = max(left, key=lambda i: np.sqrt(sums + pixels[i]).sum())
        left.remove(best)
        sums += pixels[best]
        chosen.append(candidates[best])
    return chosen + [chosen[i % len(chosen)] for i in range(count - len(chosen))]
