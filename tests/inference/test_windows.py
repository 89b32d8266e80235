"""Windows in which most is wrong: counted by cells as pixel by pixel, whatever pieces a map comes in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.inference import windows


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.data())
def test_cells_are_added_up_pixel_by_pixel(height, width, cell, data):
    values = np.random.default_rng(height * 41 + width).integers(-3, 4, (height, width))
    got, wanted = np.zeros((2, *windows.cells(height, width, cell).shape[1:]), np.int64)
    rows = data.draw(st.integers(1, height))
    columns = data.draw(st.integers(1, width))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            windows.add_to_cells(got, top, left, values[top : top + rows, left : left + columns], cell)
    for y, x in np.ndindex(height, width):
        wanted[y // cell, x // cell] += values[y, x]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("ignore", [(), (1,)])
def test_the_worst_windows_of_several_scenes(ignore):
    rng, worst = np.random.default_rng(1), windows.Worst(3, ignore)
    scenes, maps = [], {}
    for name, shape, share in (("good", (430, 900), 0.001), ("bad", (700, 500), 0.2), ("worse", (300, 250), 0.9)):
        labels = rng.integers(0, 3, shape).astype(np.uint8)
        labels[:50, :60] = 255
        image = rng.integers(0, 255, (*shape, 3), np.uint8)
        maps[name] = np.where(rng.random(shape) < share, (labels + 1) % 3, labels).astype(np.uint8)
        scenes.append(ArrayScene(name, image, labels))
    for scene in scenes:
        misses = worst.of(scene)
        misses.open()
        for top in range(0, scene.height, 130):
            for left in range(0, scene.width, 170):
                at = np.s_[top : top + 130, left : left + 170]
                misses.add(top, left, scene.labels[at], maps[scene.name][at])
        misses.finish()
        misses.close()
    wrong = lambda labels, ids: (labels != ids) & (labels != 255) & ~np.isin(labels, ignore)  # noqa: E731
    assert [cut.record["scene"] for cut in worst.cuts][0] == "worse" and len(worst.cuts) == 3
    counts = [cut.record["net_pixels"] for cut in worst.cuts]
    assert counts == sorted(counts, reverse=True)
    for cut in worst.cuts:
        scene = next(s for s in scenes if s.name == cut.record["scene"])
        rows = slice(cut.record["top"], cut.record["top"] + cut.record["height"])
        columns = slice(cut.record["left"], cut.record["left"] + cut.record["width"])
        at = rows, columns
        assert cut.record["net_pixels"] == wrong(scene.labels, maps[scene.name])[at].sum()
        np.testing.assert_array_equal(cut.maps["prediction"], maps[scene.name][at])
        np.testing.assert_array_equal(cut.image, scene.image[at])
        np.testing.assert_array_equal(cut.truth == 255, (scene.labels[at] == 255) | np.isin(scene.labels[at], ignore))


def test_a_scene_without_errors_has_no_window():
    scene, worst = ArrayScene("s", np.zeros((40, 30, 3), np.uint8), np.zeros((40, 30), np.uint8)), windows.Worst(2)
    misses = worst.of(scene)
    misses.open()
    misses.add(0, 0, scene.labels, scene.labels)
    misses.finish()
    misses.close()
    assert worst.cuts == []
