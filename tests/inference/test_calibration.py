"""What int8 is calibrated on: patches of a scene as the walk has them, the same ones every time, others to check it on."""

import numpy as np
import pytest

from glcanet_jax import geometry
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.inference import calibration, reading

VIEWS = geometry.Views(context_size=96, global_size=32, patch_size=32, overlap=8)


class Holed(ArrayScene):
    """No data in some columns."""

    holds_from, all_valid = 0, False

    def read_valid(self, top, left, height, width):
        return np.broadcast_to(np.arange(left, left + width) >= self.holds_from, (height, width))


def scene_of(height, width, holds_from=0):
    scene = Holed("made", np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    scene.holds_from = holds_from
    return scene


def walked(scene):
    """Of all patches of the walk: their bytes, boxes, and views of their contexts."""
    walk, found, view = geometry.walk_scene(scene.height, scene.width, VIEWS), {}, None
    for jobs in reading.read_blocks(scene, walk, VIEWS.global_size, None, set()):
        for job in jobs:
            view = job.view if isinstance(job, reading.BlockStart) else view
            if isinstance(job, reading.Patch):
                found[job.image.tobytes()] = job.box, view
    return found


@pytest.mark.parametrize("size", [(300, 260), (96, 96), (500, 32)])
def test_patches_are_those_of_the_walk_and_no_two_alike(size):
    scene = scene_of(*size)
    drawn, there = calibration.draw(scene, VIEWS), walked(scene)
    taken = []
    for sample in (*drawn.on, *drawn.others):
        for image, box in zip(sample.patches, sample.boxes, strict=True):
            wanted, view = there[image.tobytes()]
            np.testing.assert_array_equal(box, wanted)
            np.testing.assert_array_equal(sample.image[0], view)
            taken.append(image.tobytes())
    counts = [sum(len(sample.patches) for sample in part) for part in (drawn.on, drawn.others)]
    assert len(set(taken)) == len(taken) == sum(counts)
    most = calibration.PATCHES + calibration.CHECKED
    assert sum(counts) == min(len(there), most) and counts[0] >= counts[1] > 0
    blocks = len(list(geometry.walk_scene(*size, VIEWS).blocks()))
    assert len(drawn.on) >= min(calibration.CONTEXTS, blocks)


def test_the_same_pixels_are_drawn_every_time_and_known_by_their_digest():
    one, again, other = (calibration.draw(scene_of(300, n), VIEWS) for n in (260, 260, 261))
    assert one.digest == again.digest != other.digest
    assert one.digest != calibration.Calibration(one.others, one.on).digest


def test_what_holds_no_data_is_left_out():
    drawn = calibration.draw(scene_of(96, 500, holds_from=470), VIEWS)
    there = walked(scene_of(96, 500, holds_from=470))
    assert {image.tobytes() for sample in drawn.on for image in sample.patches} <= there.keys() and len(there) < 10
    assert calibration.draw(scene_of(96, 96, holds_from=1000), VIEWS) is None


def test_one_patch_alone_is_checked_turned():
    drawn = calibration.draw(scene_of(20, 30), VIEWS)
    (on,), (other,) = drawn.on, drawn.others
    assert len(on.patches) == 1 and on.view == 0 != other.view
    np.testing.assert_array_equal(on.patches, other.patches)


def test_changed_counts_cells_of_another_class():
    wanted = [np.eye(3)[None, None, [0, 1]], np.eye(3)[None, None, [2, 2]]]
    got = [np.eye(3)[None, None, [0, 1]], np.eye(3)[None, None, [2, 0]]]
    assert calibration.changed(wanted, got) == 0.25
