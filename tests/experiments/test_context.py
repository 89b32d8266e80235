"""Made scenes need what they say they need; and networks learn from them what they can."""

import json

import numpy as np
import pytest
from scipy import ndimage

from experiments import context
from experiments.context import scenes
from experiments.context.scenes import Difficulty, Sizes
from glcanet_jax import models
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.errors import UserError

SMALL = Sizes(512, 64)
every_task = pytest.mark.parametrize("task", scenes.TASKS)
QUIET = np.random.default_rng(9)


def drawn(task, kind=0, seed=0, **difficulty):
    return scenes.draw(np.random.default_rng(seed), task, kind, Difficulty(**difficulty), SMALL)


@every_task
def test_the_shrunk_view_is_the_mean_of_the_scenes_cells(task):
    scene = drawn(task)._replace(noise=0.0)
    pixels, labels = scenes.window(QUIET, scene, 0, 0, 512, SMALL)
    means = pixels.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(scenes.shrunk(QUIET, scene, SMALL), means, atol=0.5)
    np.testing.assert_array_equal(labels[::8, ::8], scene.labels)
    patch, of_patch = scenes.window(QUIET, scene, 37, 301, 64, SMALL)
    np.testing.assert_array_equal(patch, pixels[37:101, 301:365])
    np.testing.assert_array_equal(of_patch, labels[37:101, 301:365])


def test_noise_of_the_shrunk_view_is_that_of_the_mean():
    scene, rng = drawn("extent")._replace(colours=np.full((64, 64, 3), 120.0)), np.random.default_rng(0)
    pixels, _ = scenes.window(rng, scene, 0, 0, 512, SMALL)
    means = pixels.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert scenes.shrunk(rng, scene, SMALL).std() == pytest.approx(means.std(), rel=0.1)


def test_the_shrunk_view_holds_no_texture():
    """Other stripes, the same view: what needs them is in patches alone."""
    scene = drawn("both")._replace(noise=0.0)
    other = scene._replace(stripes=np.where(scene.stripes < 0, -1, 1 - scene.stripes))
    np.testing.assert_array_equal(*(scenes.shrunk(QUIET, s, SMALL) for s in (scene, other)))
    assert (scenes.window(QUIET, scene, 0, 0, 64, SMALL)[0] != scenes.window(QUIET, other, 0, 0, 64, SMALL)[0]).any()


@pytest.mark.parametrize("seed", range(3))
def test_no_patch_holds_the_cue_and_a_pixel_that_counts(seed):
    """What decides from afar is a patch away from every pixel it decides, along one axis at least."""
    for task in ("far", "both"):
        labels = [drawn(task, kind, seed).labels for kind in (0, 1)]
        counts, cue = labels[0] != IGNORE, (drawn(task, 0, seed).colours != scenes.GREY).any(-1)
        assert ((labels[1] != IGNORE) == counts).all() and (labels[0] != labels[1])[counts].all()
        apart = np.abs(np.argwhere(counts)[:, None] - np.argwhere(cue)[None]).max(-1).min()
        assert apart > 8  # cells of a patch: two of them that are 8 apart lie in 9, and no window of 64 px touches both
    labels = [drawn("texture", kind, seed).labels for kind in (0, 1)]
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize("seed", range(4))
def test_no_patch_tells_a_long_bar_from_a_short_one(seed):
    """Beyond the pixels that count a bar goes on for a patch, in both directions; and there are both kinds."""
    scene = drawn("extent", seed=seed)
    bar = (scene.colours != scenes.GREY).any(-1)
    middles = ndimage.find_objects(ndimage.label(scene.labels != IGNORE)[0])
    assert len(middles) == 6
    for middle in middles:
        lies = middle[1].stop - middle[1].start == 8
        rows, columns = middle if lies else middle[::-1]
        along = bar if lies else bar.T
        assert along[rows, columns.start - 8 : columns.stop + 8].all()
        length = along[rows, :][0].sum()
        assert length in (24, 48) and (scene.labels[middle] == (length == 48)).all()


@every_task
def test_a_batch_is_patches_about_pixels_that_count(task):
    made = scenes.batch(np.random.default_rng(0), task, 6, 3, Difficulty(), SMALL)
    again = scenes.batch(np.random.default_rng(0), task, 6, 3, Difficulty(), SMALL)
    assert all((made[k] == again[k]).all() for k in made)
    counts = made["patch_labels"] != IGNORE
    assert counts.any(axis=(-2, -1)).all()
    assert 0.3 < (made["patch_labels"] == 1).sum() / counts.sum() < 0.7
    top, left, bottom, right = np.rint(np.moveaxis(made["boxes"], -1, 0) * 512).astype(int)
    assert (bottom - top == 64).all() and (right - left == 64).all() and top.min() >= 0 and right.max() <= 512


def test_difficulty_is_one_number_a_task():
    cue = lambda **given: (drawn("far", **given).colours != scenes.GREY).any(-1).sum()  # noqa: E731
    assert cue(far=1.0) == 4 * cue(far=0.5) and cue(both=1.0) == cue()
    assert drawn("texture", texture=2.0).noise == 2 * drawn("far").noise
    longest = lambda ratio: (drawn("extent", extent=ratio).colours != scenes.GREY).any(-1).sum()  # noqa: E731
    assert longest(1.5) < longest(2.0)


# -------------------------------------------------------------------------------------------------------- the command
def tiny(folder, **given):
    asked = dict(tasks=("far",), networks=("aggregation",), seeds=1, steps=3, every=2, tiny=True)
    return context.Options(**asked | given, results=folder)


def test_the_command_goes_on_where_it_was(tmp_path, monkeypatch):
    asked = []

    def learn(name, task, seed, options):
        asked.append((name, task, seed))
        curve = [[2, 40.0, 50.0], [3, 96.0, 98.0]] if len(asked) > 1 else [[2, 40.0, 50.0], [3, 31.0, 35.0]]
        cell = {"network": name, "task": task, "seed": seed, "steps": 3, "curve": curve, "seconds": 1.0}
        return cell | {"iou": curve[-1][1:], "learnt": len(asked) > 1}

    monkeypatch.setattr(context, "learn", learn)
    result = context.build(tiny(tmp_path))
    assert result == json.loads((tmp_path / "context.json").read_text())
    page = (tmp_path / "context.md").read_text()
    assert "| aggregation alone, affine head |" in page and "DeepLabv3+" not in page
    assert (tmp_path / "context.webp").stat().st_size < 100_000
    result = context.build(tiny(tmp_path, networks=("branch", "aggregation"), seeds=2))
    assert asked[1:] == [("branch", "far", 0), ("branch", "far", 1), ("aggregation", "far", 1)]
    assert len(result["cells"]) == 4 and "| **97.0** ± 0.0 (3) | 2 |" in context.markdown(result)
    with pytest.raises(UserError, match="holds cells of other settings .*steps: 5 against 3"):
        context.build(tiny(tmp_path, steps=5))
    with pytest.raises(UserError, match="there is no colour; there are texture, far"):
        context.build(tiny(tmp_path, tasks=("colour",)))


def test_every_network_of_the_table_can_be_built():
    built = {name: context.NETWORKS[name][0] for name in context.NETWORKS}
    assert len(built) == 17 and set(built.values()) == {"glcanet", "branch", "deeplabv3plus"}
    for network, _, options in context.NETWORKS.values():
        models.build(network, 2, **options)
    assert len({label for _, label, _ in context.NETWORKS.values()}) == 17


def test_iou_of_both_classes():
    assert context.ious(np.array([[30, 10], [0, 60]])) == [75.0, 85.7]
    assert context.ious(np.array([[50, 0], [50, 0]])) == [50.0, 0.0]


# ------------------------------------------------------------------------------------------------------ what is learnt
def learn(name, task, **given):
    options = context.Options(**dict(steps=200, every=20, tiny=True) | given)
    return context.learn(name, task, 0, options)


def test_a_far_cue_is_learnt_and_the_patches_alone_hold_nothing_of_it():
    """Of two scenes that differ in their cue all patches are the same, and no label is."""
    cell = learn("aggregation", "far")
    assert cell["learnt"] and [step for step, *_ in cell["curve"]] == list(range(20, cell["steps"] + 1, 20))
    red, blue = (drawn("far", kind) for kind in (0, 1))
    for y, x in np.argwhere(red.labels != IGNORE)[::97]:
        corner = np.clip((8 * y - 3, 8 * x - 60), 0, 512 - 64)
        views = [scenes.window(np.random.default_rng(0), scene, *corner, 64, SMALL) for scene in (red, blue)]
        (one, of_one), (other, of_other) = views
        counts = of_one != IGNORE
        np.testing.assert_array_equal(one, other)
        assert counts.any() and (of_one[counts] == 0).all() and (of_other[counts] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["far", "both"])
def test_the_two_ends(task):
    """The branch alone can only guess; GLCANet with a head that can combine learns a far cue, and a texture beside it."""
    whole = learn("footprint-nonlinear", task, steps=800, every=50)
    assert min(whole["iou"]) >= 90
    longer = 2 * whole["steps"]
    alone = learn("branch-nonlinear", task, steps=longer, every=longer)
    assert np.mean(alone["iou"]) < 45
