"""Corrections as a person would draw them: where the map is least certain, of what is wrong there, a class after the other."""

import types

import numpy as np
from rasterio.features import rasterize

from experiments import correct
from glcanet_jax.view.labels import AREA

SIDE = correct.SIDE


def burnt(drawn, shape):
    polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in drawn.rings]}
    return rasterize([polygon], shape, dtype=np.uint8) > 0


def example():
    """Six by six windows of two classes, in halves; the map is wrong in all of them, and least certain where the numbers are high."""
    truth = np.zeros((6 * SIDE, 6 * SIDE), np.uint8)
    truth[:, (np.arange(6 * SIDE) // (SIDE // 2)) % 2 == 1] = 1
    unsure = np.kron(np.arange(36).reshape(6, 6) / 36, np.ones((SIDE, SIDE)))
    found = types.SimpleNamespace(names=("a", "b"), classes=(1 - truth).astype(np.uint8), confidence=1 - unsure)
    return truth, found


def test_what_is_drawn_is_wrong_in_the_map_and_true():
    truth, found = example()
    drawn = correct.draw(found, truth, 5)
    polygons, areas = drawn[::2], drawn[1::2]
    assert [d.name for d in polygons] == ["a", "b", "a", "b", "a"] and {d.name for d in areas} == {AREA}
    taken = np.zeros(truth.shape, int)
    for polygon, area in zip(polygons, areas, strict=True):
        inside, around = burnt(polygon, truth.shape), burnt(area, truth.shape)
        assert (truth[inside] == ("a", "b").index(polygon.name)).mean() > 0.97 and (
            found.classes[inside] != truth[inside]
        ).mean() > 0.97
        assert not (inside & ~around).any() and around.sum() == SIDE**2
        taken += around
    assert taken.max() == 1
    certain = [float(found.confidence[burnt(area, truth.shape)].mean()) for area in areas]
    assert certain == sorted(certain) and certain[0] < 0.1  # the least certain window first


def test_where_the_map_is_right_nothing_is_drawn():
    truth, found = example()
    found.classes = truth.copy()
    found.classes[5, 10:20] = 1  # too little to correct
    assert correct.draw(found, truth, 5) == []


def test_gains_are_means_over_seeds():
    score = lambda lower, around: {"lower third": lower, "around the areas": around}  # noqa: E731
    table = correct.table(score(60.0, 50.0), [score(61.0, 49.0), score(62.0, 50.0)])
    assert table["lower third"] == {"before": 60.0, "after": [61.0, 62.0], "gained": 1.5}
    assert table["around the areas"]["gained"] == -0.5
