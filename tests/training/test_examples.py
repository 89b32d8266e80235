"""What a network is shown before its first step: patches of the scenes trained on, with as many classes as can be."""

import dataclasses
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models, runs, starting, weights
from glcanet_jax.config import DataConfig, model_config
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.models.seggpt import painted
from glcanet_jax.presets import TINY
from glcanet_jax.training import examples
from tests.models.test_networks import SMALL

NETWORK = SMALL["seggpt"] | {"image_size": 48}


def patch(*labels):
    labels = np.array(labels, np.uint8).reshape(1, -1)
    return np.zeros((*labels.shape, 3), np.uint8), labels


def test_examples_show_as_many_classes_as_can_be():
    given = [patch(0, 0, 0, 0), patch(0, 0, 1, 1), patch(2, 2, 2, 255), patch(0, 1, 1, 1), patch(2, 2, 2, 3)]
    assert examples.choose(given, 1, 4)[0] is given[1]
    assert [any(c is g for c in examples.choose(given, 2, 4)) for g in given] == [False, True, False, False, True]
    assert len(examples.choose(given[:1], 3, 4)) == 3  # fewer patches than are wanted


@pytest.fixture(scope="module")
def sample():
    config = dataclasses.replace(
        TINY,
        data=DataConfig(dataset="sample"),
        views=Views(context_size=120, global_size=48, patch_size=48, overlap=8),
        model=model_config("seggpt", **NETWORK, prompts=2),
    )
    dataset = runs.open_data(config.data)
    return runs.resolve(config, dataset), dataset, dataset.scenes("train")


def shown(sample, taken=None, **options):
    config, dataset, scenes = sample
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
    names = dataset.classes.names
    model = runs.build_model(config, len(names))
    root = "global" if options.get("view") == "global" else "local"
    variables = {"params": {root: {"prompt_image": "old", "prompt_target": "old", "norm": "stays"}}}
    return examples.shown(config, model, scenes, names, variables, taken)["params"][root]


@pytest.mark.parametrize("view", ["patch", "global"])
def test_they_are_patches_of_the_scenes_painted_with_their_labels(sample, view, capsys):
    """The same ones every time; as training sees them, normalised."""
    own = shown(sample, view=view)
    assert (
        own["norm"] == "stays"
        and "examples shown to the network: 2 of the training patches, with " in capsys.readouterr().out
    )
    assert own["prompt_image"].shape == own["prompt_target"].shape == (2, 48, 48, 3)
    assert -2.2 < own["prompt_image"].min() < own["prompt_image"].max() < 2.7 and own["prompt_image"].std() > 0.1
    classes = len(sample[1].classes.names)
    colours = np.asarray(painted(jnp.asarray(np.r_[np.arange(classes), 255]).reshape(1, 1, -1), classes)).reshape(-1, 3)
    distance = np.abs(own["prompt_target"].reshape(-1, 1, 3) - colours).max(-1)
    assert distance.min(axis=1).max() < 1e-5 and len(np.unique(distance.argmin(1))) > 1
    np.testing.assert_array_equal(own["prompt_target"], shown(sample, view=view)["prompt_target"])


def test_those_of_weights_with_the_same_classes_stay(sample):
    names = sample[1].classes.names
    for theirs, kept in ((names, True), (names[::-1], False)):
        stored = weights.WeightsFile({}, {}, {"names": list(theirs)}, {}, 3)
        start = starting.Start(starting.Source("theirs", Path("theirs"), None, stored))
        start.parts = {f"local/prompt_{what}": Counter(taken=1) for what in ("image", "target")}
        assert (isinstance(shown(sample, start)["prompt_target"], str)) == kept
    start.parts["local/prompt_image"] = Counter(new=1)  # of another size
    assert not isinstance(shown(sample, start)["prompt_target"], str)


def test_what_is_tuned_in_context_are_the_examples(sample):
    """``--freeze all-but-heads`` leaves them alone to be trained; ``--optimiser.head-rate`` is theirs."""
    config, dataset, _ = sample
    assert runs.heads(config, dataset) == ("local/prompt_image", "local/prompt_target")


def test_other_networks_are_shown_nothing(sample):
    config, dataset, scenes = sample
    model = models.build("unet", 3)
    variables = {"params": {}}
    assert examples.shown(config, model, scenes, dataset.classes.names, variables, None) is variables


def test_a_network_that_cannot_be_shown_its_examples_is_told():
    import flax.linen as nn

    class Lacks(nn.Module):
        num_classes: int
        examples = 1

        def __call__(self, x, *, train=False):
            return x, {}

    with pytest.raises(UserError, match="it has examples and cannot be shown them; write `def begin_with"):
        models.register("lacks", Lacks)
