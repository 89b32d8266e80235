"""The walk over a scene: exact against whole-scene references, whatever is killed, cut out, turned or left out."""

import contextlib
import functools
import signal
import threading
import time
import tracemalloc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import waste
from experiments.common.stub import Stub
from glcanet_jax import geometry
from glcanet_jax.data import open_dataset
from glcanet_jax.data import views as data_views
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import pipeline, reading, walk
from glcanet_jax.inference.predictor import BATCH, BATCHES, SPARE, Predictor, batch_for
from glcanet_jax.inference.scratch import Scratch
from tests.drawn import drawn as drawn_variables
from tests.inference.test_evaluation import (
    CLASSES,
    NORMALISATION,
    VIEWS,
    blended,
    dense_reference,
    make_predictor,
    scene_of,
)
from tests.light import Light

RAW = {"mean": (0.0,), "std": (1.0,), "scale": 1.0}


class Pointwise(nn.Module):
    """A network whose logits are a pixel's own values, or the same everywhere: what comes out shows the geometry alone."""

    num_classes: int = 3
    constant: bool = False

    def encode_global(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        return {"mean": image.mean((1, 2))}

    def encode_local(self, patches: jax.Array, *, train: bool = False) -> jax.Array:
        return patches

    def fuse(self, context: Any, features: jax.Array, boxes: jax.Array, *, train: bool = False) -> Any:
        fixed = jnp.arange(self.num_classes, dtype=jnp.float32)[None, None, None, None]
        return (jnp.broadcast_to(fixed, features.shape) if self.constant else features), {}


def pointwise(views, batch=3, **options):
    return Predictor(Pointwise(**options), {"params": {}}, views, RAW, bands=3, batch=batch)


def light(views, batch=3, **options):
    """As :func:`make_predictor`, of a network that compiles at once."""
    model = Light(CLASSES)
    variables = drawn_variables(model)
    return Predictor(model, variables, views, NORMALISATION, bands=3, batch=batch, **options), model, variables


@functools.cache
def made_once(network, views, **options):
    """A predictor that tests of several scenes share."""
    return Predictor(network(), {"params": {}}, views, RAW, bands=3, **options)


def noise(height, width, seed=0):
    return ArrayScene("noise", np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def run(predictor, scene, outputs=("logits",), **options):
    sink = walk.ArraySink(scene.height, scene.width)
    summary = walk.predict_scene(predictor, scene, sink, outputs=outputs, **options)
    return sink.arrays, summary


# ----------------------------------------------------------------------------------------------------------- exactness
drawn = st.fixed_dictionaries(
    {
        "height": st.integers(1, 330),
        "width": st.integers(1, 330),
        "patch": st.integers(32, 70),
        "more": st.integers(0, 120),
        "overlap": st.floats(0, 0.9),
        "batch": st.integers(1, 9),
    }
)


@pytest.mark.slow
@given(drawn)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_a_network_that_copies_its_input_gives_the_scene_back(case):
    """Any size, any overlap up to nine tenths, contexts hardly larger than a patch and many patches wide."""
    patch = case["patch"]
    views = geometry.Views(patch + case["more"], 32, patch, int(case["overlap"] * patch))
    scene = noise(case["height"], case["width"])
    arrays, summary = run(pointwise(views, case["batch"]), scene, ("logits", "classes"))
    np.testing.assert_allclose(arrays["logits"], scene.image, atol=1e-3)
    sure = np.sort(scene.image, axis=-1)
    sure = sure[..., -1] > sure[..., -2]
    np.testing.assert_array_equal(arrays["classes"][sure], scene.image.argmax(-1)[sure])
    assert summary.patches == len(geometry.walk_scene(scene.height, scene.width, views))


def test_a_constant_network_gives_a_constant_map():
    views = geometry.Views(120, 32, 48, 17)
    arrays, _ = run(
        pointwise(views, constant=True), noise(301, 257), ("logits", "classes", "confidence", "probabilities")
    )
    assert np.ptp(arrays["logits"], axis=(0, 1)).max() < 1e-5
    for name in ("classes", "confidence"):
        assert len(np.unique(arrays[name])) == 1
    assert np.ptp(arrays["probabilities"], axis=(0, 1)).max() == 0
    chance = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    np.testing.assert_array_equal(arrays["probabilities"][0, 0], np.round(254 * chance))
    assert arrays["confidence"][0, 0] == round(254 * chance[2])


@pytest.fixture(scope="module")
def two_views():
    return light(VIEWS)


@pytest.fixture(scope="module")
def glcanet():
    return make_predictor(VIEWS)


sizes = given(st.integers(20, 260), st.integers(20, 260), st.integers(0, 99))
few = settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])


@sizes
@few
def test_streamed_is_the_whole_scene_reference(two_views, height, width, seed):
    """Against every patch by itself with all logits in memory."""
    predictor, model, variables = two_views
    assert_same_answer(predictor, scene_of(height, width, seed), dense_reference, model, variables)


@pytest.mark.slow  # as tests of the evaluation have it, for scenes of four sizes
@sizes
@few
def test_the_real_network_streamed_is_the_whole_scene_reference(glcanet, height, width, seed):
    predictor, model, variables = glcanet
    assert_same_answer(predictor, scene_of(height, width, seed), dense_reference, model, variables)


def assert_same_answer(predictor, scene, reference, model, variables):
    expected = reference(model, variables, scene, predictor.views)
    arrays, _ = run(predictor, scene, ("classes", "logits"))
    np.testing.assert_allclose(arrays["logits"], expected, atol=2e-4 * np.abs(expected).max())
    first, second = np.moveaxis(np.sort(expected, axis=-1)[..., -2:], -1, 0)[::-1]
    sure = first - second > 1e-4
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(arrays["classes"][sure], expected.argmax(-1)[sure])


@pytest.mark.parametrize("overlap", [0, 40])
def test_a_real_scene_is_the_whole_scene_reference(overlap):
    """Windows of the bundled scene at odd offsets, in several blocks, with patches that overlap little and much."""
    (scene,) = open_dataset("sample").scenes("test")
    image = scene.read_image(37, 411, 200, 251)
    views = geometry.Views(context_size=96, global_size=64, patch_size=64, overlap=overlap)
    predictor, model, variables = light(views, batch=2)
    assert_same_answer(predictor, ArrayScene("real", image), dense_reference, model, variables)


def test_whole_scene_contexts_are_cut_where_the_scene_is_much_larger_than_those_trained_on():
    """Up to 1.5 times the largest trained on a scene is its own context; beyond, blocks of that size."""
    views = geometry.Views(context_size=None, scene_size=100, global_size=64, patch_size=64, overlap=16)
    assert views.context_extent(150, 90) == (150, 90) and views.context_extent(151, 400) == (100, 100)
    predictor, model, variables = light(views)
    for size in ((150, 120), (230, 151)):
        scene = scene_of(*size)
        expected = dense_reference(model, variables, scene, views)
        np.testing.assert_allclose(blended(predictor, scene), expected, atol=2e-4 * np.abs(expected).max())
    assert predictor.traces == len(predictor._programs)  # one strip for both


# ------------------------------------------------------------------------------------------- extent, regions and nodata
ALIGNED = geometry.Views(context_size=160, global_size=64, patch_size=64, overlap=16)  # steps of 96 and 48 px


@pytest.fixture(scope="module")
def aligned():
    return light(ALIGNED)[0]


def test_a_window_with_its_context_is_cut_from_the_whole_map(aligned):
    """To the bit: the same patches with the same contexts, only fewer."""
    scene = scene_of(400, 350)
    whole, all_of_it = run(aligned, scene, ("classes", "logits"))
    window = walk.Window(130, 77, 90, 121)
    part, summary = run(aligned, scene, ("classes", "logits"), region=window)
    inside = slice(130, 220), slice(77, 198)
    np.testing.assert_array_equal(part["logits"][inside], whole["logits"][inside])
    np.testing.assert_array_equal(part["classes"][inside], whole["classes"][inside])
    outside = np.ones(part["classes"].shape, bool)
    outside[inside] = False
    assert (part["classes"][outside] == 255).all()
    assert summary.patches < all_of_it.patches / 2 and summary.skipped > 0


def test_a_cut_out_scene_has_the_same_answer_where_blocks_are_aligned(aligned):
    """A file of its own, whose blocks lie as in the whole scene: the same bits wherever the same contexts are asked."""
    scene = scene_of(160 + 5 * 96, 160 + 4 * 96)
    top, left, height, width = 96, 2 * 96, 160 + 3 * 96, 160 + 2 * 96
    cut = ArrayScene("cut", scene.image[top : top + height, left : left + width])
    whole, part = (run(aligned, s)[0]["logits"] for s in (scene, cut))
    whole = whole[top : top + height, left : left + width]
    margin = 96 + 64  # where a patch may look at a context that begins before the cut
    inside = slice(margin, -margin), slice(margin, -margin)
    np.testing.assert_allclose(part[inside], whole[inside], atol=1e-5)
    assert np.abs(part - whole).max() > 1e-3  # at its edges it knows less


class Holey(ArrayScene):
    """A scene with pixels that hold no data."""

    all_valid = False

    def read_valid(self, top, left, height, width):
        return self.valid[top : top + height, left : left + width]


def test_nodata_is_left_out_and_changes_nothing_else(aligned):
    scene = scene_of(420, 300)
    whole, everything = run(aligned, scene, ("classes", "confidence", "probabilities"))
    holey = Holey("holey", scene.image)
    valid = np.ones((420, 300), bool)
    valid[:, 170:] = False  # wider than a block
    valid[3:9, 5:40] = False
    object.__setattr__(holey, "valid", valid)
    part, summary = run(aligned, holey, ("classes", "confidence", "probabilities"))
    for name, values in part.items():
        np.testing.assert_array_equal(values[valid], whole[name][valid])
        assert (values[~valid] == 255).all()
    assert summary.patches < everything.patches and summary.skipped > 0
    region = walk.Window(200, 0, 50, 300)
    both, _ = run(aligned, holey, ("classes",), region=region)
    wanted = valid & region.mask(0, 0, 420, 300)
    np.testing.assert_array_equal(both["classes"], np.where(wanted, whole["classes"], 255))


def test_nothing_wanted_computes_nothing(aligned):
    arrays, summary = run(aligned, scene_of(200, 200), ("classes",), region=walk.Window(500, 500, 5, 5))
    assert (arrays["classes"] == 255).all() and summary.patches == summary.blocks == 0


# ---------------------------------------------------------------------------------------------------------- resuming
class Killed(Exception):
    pass


class Fragile(walk.ArraySink):
    """Dies at its n-th write."""

    lives = 0

    def write(self, top, left, arrays):
        self.lives -= 1
        if self.lives < 0:
            raise Killed
        super().write(top, left, arrays)


@pytest.mark.parametrize("overlap", [16, 50])
def test_a_killed_walk_goes_on_to_the_same_bytes(tmp_path, overlap):
    """Killed after every number of writes, again and again: each block is computed to its end once, in the same order."""
    views = geometry.Views(context_size=100, global_size=64, patch_size=64, overlap=overlap)
    predictor = light(views, batch=2)[0]
    scene = scene_of(230, 190)
    expected, undisturbed = run(predictor, scene, ("logits", "classes"))
    assert undisturbed.blocks > 4
    for lives in (1, 4):
        sink, runs = Fragile(scene.height, scene.width), 0
        while True:
            sink.lives = lives + runs  # more each time: a block of many bands must end
            runs += 1
            with Scratch(tmp_path / str(lives), {"of": lives}) as scratch, contextlib.suppress(Killed):
                last = walk.predict_scene(predictor, scene, sink, outputs=("logits", "classes"), scratch=scratch)
                break
        assert runs > 2 and last.resumed > 0 and last.resumed + last.blocks == undisturbed.blocks
        for name, values in sink.arrays.items():
            np.testing.assert_array_equal(values, expected[name])
        assert not list((tmp_path / str(lives)).glob("*.npy"))  # all edges were taken


def test_a_scratch_folder_of_another_run_is_begun_anew(tmp_path):
    with Scratch(tmp_path, {"weights": 1}) as first:
        first.save_edge("right", (0, 0), np.ones((2, 3)))
        first.commit((0, 0))
    with Scratch(tmp_path, {"weights": 1}) as again:
        assert again.done == {(0, 0)}
    with Scratch(tmp_path, {"weights": 2}) as other:
        assert other.done == set() and other.load_edge("right", (0, 0)) is None


def test_a_journal_cut_short_loses_its_last_line_alone(tmp_path):
    with Scratch(tmp_path, {}) as scratch:
        for place in ((0, 0), (0, 1), (0, 2)):
            scratch.commit(place)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])
    with Scratch(tmp_path, {}) as again:
        assert again.done == {(0, 0), (0, 1)}
        again.commit((5, 5))
    with Scratch(tmp_path, {}) as last:
        assert last.done == {(0, 0), (0, 1), (5, 5)}


# --------------------------------------------------------------------------------------------- one program, flat memory
def test_a_scene_of_another_size_compiles_nothing(two_views):
    predictor = two_views[0]
    run(predictor, scene_of(300, 200), ("classes",))
    traced = predictor.traces
    assert traced > 0
    for size in ((64, 64), (33, 500), (257, 123), (700, 90)):
        run(predictor, scene_of(*size), ("classes",))
    assert predictor.traces == traced


class Endless:
    """A scene made as it is read, so that the scene itself weighs nothing; remembers the largest window."""

    largest = 0

    def __init__(self, height, width):
        self.height, self.width = height, width

    def read_image(self, top, left, height, width):
        self.largest = max(self.largest, height * width)
        return np.random.default_rng(top).integers(0, 256, (height, width, 3), np.uint8)


class Nowhere:
    """A sink that keeps nothing and notes how much JAX holds."""

    def __init__(self):
        self.before, self.most = sum(x.nbytes for x in jax.live_arrays()), 0

    def write(self, top, left, arrays):
        self.most = max(self.most, sum(x.nbytes for x in jax.live_arrays()) - self.before)

    def flush(self):
        pass


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene():
    """Four times the pixels: the same peak of numpy's and of JAX's arrays, and no window larger than a context.

    The lower of two peaks counts: what grows does so each time, and what is loaded or compiled once, whenever that is, does not.
    """
    views = geometry.Views(context_size=192, global_size=64, patch_size=64, overlap=16)
    predictor = pointwise(views, batch=2)
    peaks = {630: [], 1260: []}
    for side in (630, 1260) * 2:
        scene, sink = Endless(side, side), Nowhere()
        tracemalloc.start()
        walk.predict_scene(predictor, scene, sink)
        peaks[side].append((tracemalloc.get_traced_memory()[1], sink.most))
        tracemalloc.stop()
        assert scene.largest <= views.context_size**2
    (low, few), (high, more) = (map(min, zip(*found, strict=True)) for found in peaks.values())
    assert 0 < high < 1.5 * low and 0 < more < 1.5 * few  # threads meet by chance; the scene is four times as large


def test_a_batch_that_fits_a_budget_is_chosen():
    """What was asked for, by one compilation, or fewer by the compiler's word; the same again for another scene."""
    predictor, context = light(VIEWS)[0], (96, 96)
    needs = {}
    for predictor.batch in (1, 6):
        needs[predictor.batch] = max(sizes["total"] for sizes in predictor.memory(np.uint8, context).values())
    assert needs[1] < needs[6]
    traced = predictor.traces
    for _ in range(2):
        assert predictor.fit_batch(needs[6], np.uint8, context, most=6) == 6
    assert predictor.traces == traced
    assert predictor.fit_batch(needs[6] - 1, np.uint8, context, most=6) in (4, 5)
    with pytest.raises(UserError, match="--memory-budget"):
        predictor.fit_batch(needs[1] - 1, np.uint8, context, most=6)


# ------------------------------------------------------------------------------------------- batches across blocks, scenes
class Listed:
    """Scenes in memory as tasks; ``broken`` ones cannot be opened."""

    def __init__(self, scene, outputs=("classes",), broken=None, scratch=None):
        self.scene, self.outputs, self.broken, self.scratch, self.closed = scene, outputs, broken, scratch, 0
        self.sink = walk.ArraySink(scene.height, scene.width)

    def open(self):
        if self.broken == "open":
            raise UserError("it cannot be opened")
        if self.broken == "nothing":
            return None
        source = Vanished("v", self.scene.image) if self.broken == "read" else self.scene
        sink = Broken(self.scene.height, self.scene.width) if self.broken == "write" else self.sink
        return walk.Request(source, sink, self.outputs, scratch=self.scratch)

    def finish(self, summary):
        if self.broken == "finish":
            raise UserError("it cannot be finished")
        return summary

    def close(self):
        self.closed += 1


class Vanished(ArrayScene):
    """A scene whose file is lost on the way."""

    def read_image(self, top=0, left=0, height=None, width=None):
        if top > 20:
            raise UserError("the scene is gone")
        return super().read_image(top, left, height, width)


@pytest.mark.parametrize("batch", [1, 5])
def test_scenes_of_a_list_are_as_each_by_itself(batch):
    """To the bit, whatever came before in its batches; one program for all."""
    predictor = light(VIEWS, batch)[0]
    tasks = [Listed(scene_of(*size, seed), ("logits",)) for seed, size in enumerate([(150, 210), (64, 64), (97, 165)])]
    outcomes = list(walk.predict_scenes(predictor, tasks, readers=2, writers=2))
    traced = predictor.traces
    assert [o.task for o in outcomes] == tasks and [t.closed for t in tasks] == [1, 1, 1]
    for task, outcome in zip(tasks, outcomes, strict=True):
        alone, summary = run(predictor, task.scene)
        np.testing.assert_array_equal(task.sink.arrays["logits"], alone["logits"])
        assert (outcome.result.patches, outcome.result.blocks) == (summary.patches, summary.blocks)
        assert 0 < outcome.result.busy < 60
    assert predictor.traces == traced


@pytest.mark.parametrize("passes", [1, 2])
def test_a_scene_that_fails_leaves_the_others_as_they_are(passes):
    views = geometry.Views(100, 32, 48, 17)
    network = (Pointwise if passes == 1 else TwoPasses)()
    predictor = Predictor(network, {"params": {}}, views, RAW, bands=3, batch=4)
    kinds = (None, "open", None, "read", "write", None, "finish", "nothing", None)
    tasks = [Listed(noise(130, 140, i), ("logits",), broken=kind) for i, kind in enumerate(kinds)]
    outcomes = list(walk.predict_scenes(predictor, tasks, readers=3, writers=2))
    told = [None if o.error is None else str(o.error) for o in outcomes]
    words = {
        "open": "it cannot be opened",
        "read": "the scene is gone",
        "write": "the disk is full",
        "finish": "it cannot be finished",
    }
    assert told == [words.get(kind) for kind in kinds]
    assert [t.closed for t in tasks] == [1] * len(tasks)
    for task in tasks:
        if task.broken is None:
            np.testing.assert_array_equal(task.sink.arrays["logits"], run(predictor, task.scene)[0]["logits"])
    assert not [t for t in threading.enumerate() if t.name in ("reader", "writer") or "finisher" in t.name]


def test_what_ends_all_scenes_closes_them(monkeypatch):
    tasks = [Listed(noise(130, 140, i)) for i in range(3)]
    monkeypatch.setattr(tasks[1], "finish", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(walk.predict_scenes(pointwise(geometry.Views(100, 32, 48, 17)), tasks, readers=2))
    assert [t.closed for t in tasks] == [1, 1, 1]


class Waiting(Listed):
    """A scene that is opened until it is told to stop."""

    def __init__(self):
        super().__init__(noise(60, 60))
        self.begun, self.stopped = threading.Event(), threading.Event()

    def open(self):
        self.begun.set()
        self.stopped.wait(60)
        raise UserError("stopped")

    def stop(self):
        self.stopped.set()


def test_ctrl_c_does_not_wait_for_a_scene_that_is_opened():
    """As while a large scene is copied into tiles."""
    tasks = [Listed(noise(60, 70)), Waiting()]

    def interrupt():
        tasks[1].begun.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    began = time.perf_counter()
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(walk.predict_scenes(pointwise(geometry.Views(100, 32, 48, 17)), tasks, readers=2))
    assert time.perf_counter() - began < 50 and [t.closed for t in tasks] == [1, 1]


def test_several_devices_give_the_map_of_one():
    """To the bit, whichever looks at a batch; each is asked. As accelerators do it, it is the host's to a grey level of the view."""
    host, many, one = (
        light(VIEWS, **options)[0] for options in ({}, {"on_device": True, "devices": 2}, {"on_device": True})
    )
    tasks = [Listed(scene_of(*size), ("logits",)) for size in ((150, 210), (97, 65))]
    assert all(o.error is None for o in walk.predict_scenes(many, tasks, readers=2))
    for task in tasks:
        got, wanted = task.sink.arrays["logits"], run(host, task.scene)[0]["logits"]
        np.testing.assert_array_equal(got, run(one, task.scene)[0]["logits"])
        np.testing.assert_allclose(got, wanted, atol=2e-2 * np.abs(wanted).max())
        assert np.abs(got - wanted).mean() < 1e-3 * np.abs(wanted).max()
    assert len({device.id for device in many.devices}) == 2 and many.replicas[1].traces > 0


SMALL = geometry.Views(245, 50, 50, 5)  # a tenth of the default
ONE, MANY = [500, 730, 1000, 1711], [[245] * 20, [100] * 50, [245, 500, 60, 1000]]


@pytest.mark.parametrize("sides", [*([side] for side in ONE), *MANY], ids=str)
def test_hardly_a_patch_is_computed_for_nothing(sides):
    """At most 3 % of the patches, for scenes of more than a hundred and for lists; and each is asked for."""
    needed = sum(len(geometry.walk_scene(side, side, SMALL)) for side in sides)
    assert needed > 100
    counted, computed = waste.counted(sides, SMALL, batch_for(needed))
    assert counted == needed and needed <= computed <= 1.03 * needed


@given(st.integers(1, 700), st.integers(32, 90), st.integers(0, 150), st.floats(0, 0.87))
def test_edges_have_room(length, patch, more, overlap):
    """No block reaches further beyond its own pixels than what is kept of it."""
    views = geometry.Views(patch + more, 32, patch, int(overlap * patch))
    stub = Stub(views, 1)
    room = stub._edge(stub.strip_shape((patch + more, patch + more)))
    assert all(span.stop - span.done <= room for span in geometry.walk_axis(length, views).spans())


@given(st.integers(1, 10**6))
def test_a_batch_suits_its_patches(patches):
    batch = batch_for(patches)
    assert batch == BATCH or patches > max(BATCHES) > batch - 1
    if patches > 100:
        assert -patches % batch <= 0.036 * patches
    if patches > BATCH / SPARE:
        assert batch == BATCH  # what was compiled for another scene does


# --------------------------------------------------------------------------------------------------------------- turns
@pytest.mark.parametrize("view", geometry.DIHEDRAL)
def test_turns(view):
    """Each is numpy's, is undone, and takes boxes along."""
    image = np.random.default_rng(0).random((20, 20, 2))
    expected = np.rot90(image[:, ::-1] if view >= 4 else image, view % 4)
    np.testing.assert_array_equal(geometry.turn(image, view), expected)
    np.testing.assert_array_equal(geometry.turn_back(expected, view), image)
    box = np.float32([0.1, 0.3, 0.5, 0.8])
    top, left, bottom, right = np.round(geometry.turn_boxes(box, view) * 20).astype(int)
    np.testing.assert_array_equal(expected[top:bottom, left:right], geometry.turn(image[2:10, 6:16], view))


@pytest.mark.slow
def test_augmentation_is_the_mean_over_turned_scenes(glcanet):
    """A square scene of one patch: predicted in each of its eight views, turned back and averaged."""
    predictor, model, variables = glcanet
    augmented = Predictor(model, variables, VIEWS, predictor.normalisation, bands=3, batch=3, tta=True)
    scene = scene_of(64, 64)
    views = []
    for view in geometry.DIHEDRAL:
        turned = ArrayScene("turned", np.ascontiguousarray(geometry.turn(scene.image, view)))
        views.append(geometry.turn_back(blended(predictor, turned), view))
    expected = np.mean(views, axis=0)
    np.testing.assert_allclose(blended(augmented, scene), expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(views[0] - expected).max() > 1e-2 * np.abs(expected).max()
    larger = scene_of(200, 130)
    assert run(augmented, larger)[0]["logits"].shape == (200, 130, CLASSES)


# --------------------------------------------------------------------------------------------------------------- stages
class TwoAnswers(Pointwise):
    """One that has another answer among its stages."""

    def fuse(self, context: Any, features: jax.Array, boxes: jax.Array, *, train: bool = False) -> Any:
        logits, _ = super().fuse(context, features, boxes, train=train)
        return logits, {"inner/logits": -logits, "inner/x": logits}


def test_an_inner_stage_can_be_asked():
    scene = noise(100, 130)
    own, inner = (
        run(Predictor(TwoAnswers(), {"params": {}}, VIEWS, RAW, bands=3, stage=stage), scene)[0]["logits"]
        for stage in (None, "inner/logits")
    )
    np.testing.assert_array_equal(inner, -own)
    assert np.abs(own).max() > 100


def test_a_stage_that_is_not_there_is_told():
    for model, words in (
        (TwoAnswers(), "this network has inner/logits"),
        (Pointwise(), "this network has none but its own"),
    ):
        with pytest.raises(UserError, match=f"stage is inner/x; {words}"):
            run(Predictor(model, {"params": {}}, VIEWS, RAW, bands=3, stage="inner/x"), noise(80, 80))
    with pytest.raises(UserError, match="stage is inner/logits; a network that looks twice"):
        Predictor(TwoPasses(), {"params": {}}, VIEWS, RAW, bands=3, stage="inner/logits")


# --------------------------------------------------------------------------------------------------------- global views
@given(
    st.integers(1, 400),
    st.integers(1, 300),
    st.integers(8, 90),
    st.integers(500, 9000),
    st.sampled_from(["uint8", "uint16"]),
)
@settings(max_examples=30)
def test_a_view_made_by_rows_is_the_view(height, width, size, limit, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype)
    reads = []

    def read(first, rows):
        reads.append(rows)
        return image[first : first + rows]

    made = data_views.global_view_by_rows(read, height, width, size, limit)
    expected = data_views.global_view(image, size)
    assert made.dtype == expected.dtype and made.shape == expected.shape
    step = 1 if dtype == "uint8" else 8  # the last bit of uint8, float32 rounding of uint16
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= step
    reach = 2 * (max(height / size, 1) + 2)
    assert max(reads) * width <= max(limit, (height / size + reach) * width) + 2 * width


@given(
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from([("uint8", 3), ("uint8", 4), ("uint16", 1), ("float32", 2)]),
)
@settings(max_examples=20)
def test_a_view_made_on_the_device_is_the_view(height, width, kind):
    """To a grey level of 255; of contexts of any size in the same array, and so by one program."""
    dtype, bands = kind
    rng = np.random.default_rng(height)
    image = rng.integers(0, 250, (height, width, bands)).astype(dtype)
    predictor = POINTS[bands]
    expected = data_views.global_view(image, 32)
    made = np.asarray(predictor.shrink(predictor.place(image), image.shape[:2]))
    assert made.dtype == expected.dtype and made.shape == (1, *expected.shape)
    np.testing.assert_allclose(made[0].astype(float), expected, atol=1e-3 * 250 if dtype == "float32" else 1)  # halves


POINTS = {
    bands: Predictor(Pointwise(), {"params": {}}, geometry.Views(130, 32, 48, 17), RAW, bands=bands, on_device=True)
    for bands in (1, 2, 3, 4)
}


@pytest.mark.parametrize("size", [(301, 257), (40, 200), (120, 120)], ids=str)
@pytest.mark.parametrize("network", ["one pass", "two passes"])
def test_patches_cut_on_the_device_are_the_scene(size, network):
    """Of blocks of any size, also in batches that hold patches of several; as those that the host cuts."""
    views, scene = geometry.Views(120, 32, 48, 17), noise(*size)
    model = Pointwise if network == "one pass" else TwoPasses
    device, host = (made_once(model, views, batch=5, on_device=on_device) for on_device in (True, False))
    got, summary = run(device, scene, ("logits", "classes"))
    wanted, expected = run(host, scene, ("logits", "classes"))
    assert (summary.patches, summary.blocks) == (expected.patches, expected.blocks)
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values)


def test_a_large_context_is_read_by_rows(monkeypatch, aligned):
    scene = scene_of(300, 300)
    expected = run(aligned, scene)[0]["logits"]
    monkeypatch.setattr(reading, "CONTEXT_BYTES", 1000)
    got = run(aligned, scene)[0]["logits"]
    np.testing.assert_allclose(got, expected, atol=2e-2 * np.abs(expected).max())  # one grey level of the global view
    assert (np.abs(got - expected) < 1e-3).mean() > 0.9


# ------------------------------------------------------------------------------------------------------------ pipeline
@pytest.fixture
def left():
    """Names of the threads of reading and writing that a test has begun and that are there still."""
    before = set(threading.enumerate())
    known = lambda name: name in ("reader", "writer") or "finisher" in name  # noqa: E731
    return lambda: [t.name for t in threading.enumerate() if t not in before and known(t.name)]


def test_prefetch_is_bounded_ordered_and_stops(left):
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    items = pipeline.prefetch(endless(), depth=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.2)
    assert len(made) <= 3 + 2 + 1
    items.close()
    stopped = len(made)
    time.sleep(0.3)
    assert len(made) == stopped and not left()


def test_an_error_of_the_reader_comes_out():
    def broken():
        yield 1
        raise UserError("vanished")

    items = pipeline.prefetch(broken(), depth=2)
    assert next(items) == 1
    with pytest.raises(UserError, match="vanished"):
        next(items)


def test_an_error_of_the_writer_comes_out_and_nothing_more_is_written():
    written = []

    def write(item):
        if item == 2:
            raise UserError("full")
        written.append(item)

    with pytest.raises(UserError, match="full"):
        with pipeline.WriteBehind(write, depth=2) as writer:
            for item in range(100):
                writer.submit(item)
    assert written == [0, 1]


class Broken(walk.ArraySink):
    def flush(self):
        raise UserError("the disk is full")


def test_a_broken_sink_or_source_ends_a_walk(aligned, left):
    scene = scene_of(300, 300)
    with pytest.raises(UserError, match="the disk is full"):
        walk.predict_scene(aligned, scene, Broken(300, 300))

    with pytest.raises(UserError, match="the scene is gone"):
        walk.predict_scene(aligned, Vanished("v", scene.image), walk.ArraySink(300, 300))
    assert not left()


def test_an_unknown_output_is_refused(aligned):
    with pytest.raises(ValueError, match="no output is called heat"):
        run(aligned, scene_of(64, 64), ("heat",))


# -------------------------------------------------------------------------------------------------------- a second pass
class TwoPasses(Pointwise):
    """Its logits are a pixel's values less the mean over all patches of the context: they wait for the last of them."""

    second_pass = True

    def collect(self, context: Any, features: jax.Array, boxes: jax.Array, valid: jax.Array) -> Any:
        means = features.mean((2, 3)) * valid[..., None]
        return {"x": features}, {"sum": means.sum(1), "count": valid.sum(1, keepdims=True).astype(jnp.float32)}

    def encode_again(self, context: Any, gathered: Any, image: jax.Array, *, train: bool = False) -> Any:
        return {"mean": gathered["sum"] / gathered["count"]}

    def fuse_again(self, context: Any, kept: Any, boxes: jax.Array, *, train: bool = False) -> Any:
        return kept["x"] - context["mean"][:, None, None, None], {}


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("height", "width"), [(150, 118), (301, 57)])
def test_what_waits_for_all_patches_of_a_context_gets_them(height, width, batch, tta):
    views, scene = geometry.Views(120, 32, 48, 17), noise(height, width)
    predictor = made_once(TwoPasses, views, batch=batch, tta=tta)
    arrays, summary = run(predictor, scene)

    axes = [geometry.walk_axis(length, views) for length in (height, width)]
    image = scene.image.astype(np.float64)
    places = {}
    for i, top in enumerate(axes[0].patch_starts.tolist()):
        for j, left in enumerate(axes[1].patch_starts.tolist()):
            places.setdefault((int(axes[0].owner[i]), int(axes[1].owner[j])), []).append((i, j, top, left))
    expected, patches = np.zeros(image.shape), 0
    for members in places.values():
        cut = {(i, j): image[top : top + 48, left : left + 48] for i, j, top, left in members}
        mean = np.mean([patch.mean((0, 1)) for patch in cut.values()], axis=0)
        for i, j, top, left in members:
            weight = axes[0].weights[i][:, None] * axes[1].weights[j]
            expected[top : top + 48, left : left + 48] += weight[..., None] * (cut[i, j] - mean)
            patches += 1
    np.testing.assert_allclose(arrays["logits"], expected, atol=2e-3)
    assert len(places) > 1 and summary.patches == patches
    assert set(predictor.memory(np.uint8, (120, 120))) == {"encode", "collect", "encode_again", "look_again"}


@pytest.mark.parametrize("on_device", [False, True])
def test_a_batch_that_memory_chooses_for_two_passes(on_device):
    """As GLNet's G<=>L has them, wherever contexts are cut: fewer at once where there is less room, and the same map."""
    views, scene = geometry.Views(120, 32, 48, 17), noise(150, 118)
    make = lambda: Predictor(TwoPasses(), {"params": {}}, views, RAW, bands=3, batch=1, on_device=on_device)  # noqa: E731
    most = lambda predictor: max(sizes["total"] for sizes in predictor.memory(np.uint8, (120, 118)).values())  # noqa: E731
    alone, chosen = make(), make()
    needed = most(alone)
    assert chosen.fit_batch(2 * needed, np.uint8, (120, 118), most=12) == chosen.batch > 1
    assert chosen.batch < 12 and most(chosen) <= 2 * needed
    np.testing.assert_allclose(run(chosen, scene)[0]["logits"], run(alone, scene)[0]["logits"], atol=2e-3)


def test_a_killed_walk_of_two_passes_goes_on(tmp_path):
    views, scene = geometry.Views(120, 32, 48, 17), noise(301, 157)
    predictor = Predictor(TwoPasses(), {"params": {}}, views, RAW, bands=3, batch=2)
    whole, summary = run(predictor, scene)
    sink = walk.ArraySink(scene.height, scene.width)
    finished = []

    def stop(pixels):
        finished.append(pixels)
        if len(finished) == 5:
            raise KeyboardInterrupt

    with Scratch(tmp_path, {}) as scratch, contextlib.suppress(KeyboardInterrupt):
        walk.predict_scene(predictor, scene, sink, outputs=("logits",), scratch=scratch, progress=stop)
    with Scratch(tmp_path, {}) as scratch:
        done = len(scratch.done)
        assert 0 < done < summary.blocks
        rest = walk.predict_scene(predictor, scene, sink, outputs=("logits",), scratch=scratch)
    assert (rest.resumed, rest.blocks) == (done, summary.blocks - done)
    np.testing.assert_array_equal(sink.arrays["logits"], whole["logits"])
