"""The plan on paper is what the script computes, and its parts agree with each other."""

import pytest

from experiments import scale
from glcanet_jax import geometry


def test_the_page_is_that_of_the_script():
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page(), "run python -m experiments.scale"


def test_amounts_agree():
    """With a walk that is counted patch by patch, and with each other."""
    found, known = scale.amounts(), scale.measured()
    side = scale.SIDE
    walk = geometry.walk_scene(side, side, scale.VIEWS)
    patches = {(i, j) for b in walk.blocks() for i in b.rows.patches for j in b.columns.patches}
    assert found.patches == found.scenes * len(patches) and found.scenes * side**2 == scale.PIXELS
    assert found.reread > 1 and found.read_raw == pytest.approx(3 * scale.PIXELS * found.reread)
    assert found.read / found.read_raw == pytest.approx(known["jpeg"].value / known["raw"].value)
    assert all(
        entry.source and entry.what and entry.value > 0 for entry in [*known.values(), *scale.assumed().values()]
    )


def test_more_workers_are_faster_until_something_else_bounds_them():
    seconds = [scale.bound(n)[1] for n in scale.WORKERS]
    assert seconds == sorted(seconds, reverse=True)
    one, many = scale.seconds_of(1), scale.seconds_of(64)
    assert one["GPU"] == pytest.approx(64 * many["GPU"]) and one["reads of the store"] == many["reads of the store"]
    assert all(scale.bound(n)[0] == max(parts, key=parts.get) for n in scale.WORKERS for parts in [scale.seconds_of(n)])
