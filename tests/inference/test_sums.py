"""Parts of a scene, computed apart and put together: the bits of a walk over the whole scene."""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glcanet_jax import geometry
from glcanet_jax.inference import walk
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.inference.sums import Joined, Seam
from tests.inference.test_evaluation import make_predictor, scene_of
from tests.inference.test_walk import Fragile, Holey, Killed, noise, pointwise, run

OUTPUTS = ("classes", "confidence", "probabilities", "logits")


def apart(predictor, scene, side, folder, lives=None, **options):
    """The answers of parts of ``side`` x ``side`` blocks, each walked by itself, and joined; and the sum of their blocks."""
    plan = geometry.walk_scene(scene.height, scene.width, predictor.views)
    parts, sink, own, blocks = plan.parts(side), Fragile(scene.height, scene.width), {}, 0
    for part in parts:
        while True:
            sink.lives = 10**9 if lives is None else lives
            with Scratch(folder / f"{part.row}_{part.column}", {"part": part[:2]}) as scratch:
                with contextlib.suppress(Killed):
                    request = walk.Request(scene, sink, OUTPUTS, scratch=scratch, part=part, **options)
                    (outcome,) = walk.predict_scenes(predictor, [walk._Once(request)])
                    own |= {place: path for place, (path, _) in scratch.own().items()}
                    blocks += outcome.result.blocks + outcome.result.skipped + outcome.result.resumed
                    break
            lives = lives and lives + 1  # more each time: a block of many bands must end
    load = lambda place: np.load(own[place]) if place in own else None  # noqa: E731
    joined = Joined(plan, parts, predictor.num_classes, load)
    taken = np.zeros((scene.height, scene.width), bool)
    for part in parts:
        for (top, left, height, width), answers in joined.finished(part, predictor, OUTPUTS):
            height, width = min(height, scene.height - top), min(width, scene.width - left)
            at = slice(top, top + height), slice(left, left + width)
            assert not taken[at].any()  # each pixel once
            taken[at] = True
            for name, values in answers.items():
                values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
                nothing = sink.arrays["classes"][at] == 255
                shape = nothing.shape + (1,) * (values.ndim - 2)
                kept = sink.arrays[name][at] if name != "logits" else values[:height, :width]
                sink.arrays[name][at] = np.where(nothing.reshape(shape), kept, values[:height, :width])
    return sink.arrays, blocks, parts, taken


def same(arrays, whole):
    for name, values in whole.items():
        inside = whole["classes"] != 255 if name == "logits" else np.ones(values.shape[:2], bool)
        np.testing.assert_array_equal(arrays[name][inside], values[inside], err_msg=name)


@pytest.mark.parametrize(
    (
        "size",
        "context",
        "overlap",
        "side",
    ),  # contexts hardly larger than a patch, patches that reach far, and as users have them
    [((330, 290), 100, 16, 2), ((120, 110), 70, 50, 2), ((180, 170), 100, 50, 1)],
)
def test_parts_are_joined_to_the_bits_of_one_walk(tmp_path, size, context, overlap, side):
    predictor = pointwise(geometry.Views(context, 32, 64, overlap), batch=2)
    scene = noise(*size)
    whole, summary = run(predictor, scene, OUTPUTS)
    arrays, blocks, parts, taken = apart(predictor, scene, side, tmp_path)
    assert len(parts) > 3 and blocks == summary.blocks and taken.any() and not taken.all()
    same(arrays, whole)


def test_parts_of_a_network_that_looks_around_with_nodata_and_kills(tmp_path):
    predictor, *_ = make_predictor(geometry.Views(100, 64, 64, 16), batch=2)
    scene = Holey("holey", scene_of(200, 230).image)
    valid = np.ones((200, 230), bool)
    valid[40:140, 60:170] = False  # whole blocks, and their seams
    object.__setattr__(scene, "valid", valid)
    whole, summary = run(predictor, scene, OUTPUTS)
    arrays, blocks, parts, _ = apart(predictor, scene, 2, tmp_path, lives=2)
    assert blocks == summary.blocks + summary.skipped and summary.skipped and len(parts) > 3
    same(arrays, whole)


def test_without_its_seams_a_map_of_parts_is_another_one(tmp_path):
    """What the other tests find is of the joining: what parts alone answer at their borders is not the map."""
    predictor = pointwise(geometry.Views(100, 32, 64, 16))
    scene = noise(330, 290)
    whole, _ = run(predictor, scene, ("logits",))
    part = geometry.walk_scene(330, 290, predictor.views).parts(2)[-1]
    sink = walk.ArraySink(330, 290)
    (outcome,) = walk.predict_scenes(predictor, [walk._Once(walk.Request(scene, sink, ("logits",), part=part))])
    seam = Seam.of(geometry.walk_scene(330, 290, predictor.views), part)
    np.testing.assert_array_equal(
        sink.arrays["logits"][seam.top :, seam.left :], whole["logits"][seam.top :, seam.left :]
    )
    assert outcome.result.pixels < 330 * 290
    assert (
        sink.arrays["logits"][seam.top - 5 : seam.top, seam.left :]
        != whole["logits"][seam.top - 5 : seam.top, seam.left :]
    ).any()


@pytest.mark.slow
@given(
    st.tuples(st.integers(70, 400), st.integers(70, 400)), st.integers(32, 70), st.integers(0, 120), st.floats(0, 0.85), st.integers(1, 4)
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_scene_in_any_parts(tmp_path_factory, size, patch, more, overlap, side):
    predictor = pointwise(geometry.Views(patch + more, 32, patch, int(overlap * patch)))
    scene = noise(*size)
    whole, _ = run(predictor, scene, OUTPUTS)
    arrays, *_ = apart(predictor, scene, side, tmp_path_factory.mktemp("parts"))
    same(arrays, whole)
