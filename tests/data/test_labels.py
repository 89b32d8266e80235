"""Splits that nothing can be learnt from, or scored on, are told; and no more is read than that takes."""

import numpy as np
import pytest

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.labelled import check_labels, has_label
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError


def scene(name, labels):
    return ArrayScene(name, np.zeros((1200, 8, 3), np.uint8), labels)


def labels_with(*rows, value=1):
    out = np.full((1200, 8), IGNORE, np.uint8)
    out[list(rows)] = value
    return out


@pytest.mark.parametrize(
    ("scenes", "told"),
    [
        ([], "split val holds no scenes; validation needs some"),
        ([scene("a", None)], "scene a of split val has no labels; validation needs them"),
        ([scene("a", labels_with(0)), *(scene(n, None) for n in "bcd")], "scene b and 2 more of split val has no labels"),
        ([scene("a", labels_with()), scene("b", labels_with())], "no pixel of split val is labelled (2 scenes"),
        ([scene("a", labels_with(3, value=6))], "no pixel of split val is labelled"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_told(scenes, told):
    with pytest.raises(UserError) as error:
        check_labels(scenes, "val", ignored=(6,), what="validation")
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("row", [0, 511, 512, 1199])
def test_one_labelled_pixel_is_enough(row):
    check_labels([scene("a", labels_with()), scene("b", labels_with(row))], "val", what="validation")
    assert not has_label(scene("a", labels_with())) and not has_label(scene("a", None))


def test_reading_stops_at_the_first_label():
    class Counted(ArrayScene):
        reads = 0

        def read_labels(self, *window):
            Counted.reads += 1
            return super().read_labels(*window)

    seen = [Counted(n, np.zeros((1200, 8, 3), np.uint8), labels_with(600)) for n in "ab"]
    check_labels(seen, "train", what="training")
    assert Counted.reads == 2  # two windows of the first scene
