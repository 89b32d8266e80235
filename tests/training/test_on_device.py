"""Batches drawn on the device: the loader's pixels for a given draw, the loader's distributions, the same bits when resumed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from glcanet_jax.data import draws
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.geometry import Views
from glcanet_jax.training import on_device, residents

VIEWS = Views(context_size=160, global_size=40, patch_size=32, overlap=8)


def scene(height, width, seed):
    """Soft colours, and squares of four classes, one of them rare; part of it is not labelled."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    labels = rng.integers(0, 3, (height // 20 + 1, width // 20 + 1), np.uint8).repeat(20, 0).repeat(20, 1)
    labels[16:28, 16:28], labels[60:70] = 3, 255
    return ArrayScene(f"s{seed}", image[:height, :width], labels[:height, :width])


SCENES = scene(200, 240, 0), scene(180, 330, 1), scene(200, 236, 2)
SHARES = [2, 3, 2]


def plan(count=1, **options):
    config = LoaderConfig(**{"batch_size": 2, "patches_per_context": 3, "scale_jitter": (0.7, 1.4)} | options)
    return on_device.Plan(VIEWS, config, 4, Mesh(np.array(jax.devices()[:count]), ("data",)))


@pytest.fixture(scope="module")
def placed():
    return residents.place(SCENES, SHARES, plan().mesh)


def test_scenes_are_there_once_those_of_about_one_size_together(placed):
    shapes = [group.labels.shape for group in placed.groups]
    assert sorted(shapes) == [(1, 180, 330), (2, 200, 240)]
    assert sorted(np.asarray(placed.scene)) == [0, 1, 2]
    for slot, i in enumerate(np.asarray(placed.scene)):
        one, (group, at) = SCENES[i], np.asarray(placed.place)[slot]
        assert placed.share[slot] == pytest.approx(SHARES[i] / 7)
        height, width = np.asarray(placed.extent)[slot]
        np.testing.assert_array_equal(placed.groups[group].image[at, :height, :width], one.image)
        np.testing.assert_array_equal(placed.groups[group].labels[at, :height, :width], one.labels)
        assert (np.asarray(placed.groups[group].labels[at, :, width:]) == 255).all()
    assert residents.bytes_of(SCENES) == sum(group.image.nbytes + group.labels.nbytes for group in placed.groups)


# ------------------------------------------------------------------------------------------------------ pixels of a draw
def drawn_both(seed, config, placed):
    """A draw of the loader, in both forms."""
    rng = np.random.default_rng(seed)
    which = int(rng.integers(len(SCENES)))
    draw = draws.draw_window(SCENES[which], VIEWS, config, rng)
    side, labels = draw.side(VIEWS.patch_size), SCENES[which].read_labels(*draw.window)
    places, valid = draws.draw_patches(labels, side, draw.view, VIEWS, config, rng)
    draw = draw._replace(places=places, valid=valid)
    slot = np.asarray(placed.scene).tolist().index(which)
    ours = on_device.Drawn(*(jnp.asarray(x) for x in (slot, draw.window, side, draw.view, places, valid)))
    return which, draw, ours


@pytest.mark.parametrize("jitter", [(1.0, 1.0), (0.7, 1.4)], ids=["whole pixels", "scaled"])
def test_a_draw_shows_the_loaders_pixels(placed, jitter):
    """To 1/255, the labels exactly; in every view, from scenes of each size, wherever it lies."""
    the_plan = plan(scale_jitter=jitter)
    cut = jax.jit(lambda drawn, scenes: on_device.cut(scenes, drawn, the_plan))
    seen = set()
    for seed in range(80):
        which, draw, ours = drawn_both(seed, the_plan.config, placed)
        expected, found = draws.cut(SCENES[which], which, VIEWS, draw), cut(ours, placed)
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            got = np.asarray(found[name])
            assert got.shape == array.shape and got.dtype == array.dtype, name
            within = 1 if name in ("global_image", "patches") else 1e-6 if name == "boxes" else 0
            assert np.abs(got.astype(float) - array).max() <= within, name
        seen.add((which, draw.view))
    assert {view for _, view in seen} == set(range(8)) and {which for which, _ in seen} == {0, 1, 2}


# -------------------------------------------------------------------------------------------------------- what is drawn
def many(placed, the_plan, count):
    """Draws of the device, as arrays ``[count, ...]``; scenes by number."""
    keys = jax.random.split(jax.random.key(5), count)
    draw = jax.jit(lambda keys, scenes: jax.lax.map(lambda key: on_device.draw(key, scenes, the_plan), keys))
    found = jax.tree.map(np.asarray, draw(keys, placed))
    return found._replace(slot=np.asarray(placed.scene)[found.slot])


def of_loader(the_plan, count):
    """Draws of the loader, of scenes in proportion to their shares."""
    rng, found = np.random.default_rng(3), []
    order = [i for i, n in enumerate(SHARES) for _ in range(n)]
    for i in range(count):
        which = order[i % len(order)]
        draw = draws.draw_window(SCENES[which], VIEWS, the_plan.config, rng)
        side, labels = draw.side(VIEWS.patch_size), SCENES[which].read_labels(*draw.window)
        places, valid = draws.draw_patches(labels, side, draw.view, VIEWS, the_plan.config, rng)
        found.append(on_device.Drawn(which, draw.window, side, draw.view, places, valid))
    return on_device.Drawn(*(np.stack(column) for column in zip(*found, strict=True)))


def spread(drawn):
    """What two samples must agree in: means and quartiles of all that is drawn, and the classes in the middle of patches."""
    room = np.array([[SCENES[s].height, SCENES[s].width] for s in drawn.slot]) - drawn.window[:, 2:]
    where = drawn.window[:, :2] / np.maximum(room, 1)
    free = drawn.window[:, None, 2:] - drawn.side[:, None, None]
    inside = drawn.places / np.maximum(free, 1)
    middles = (drawn.window[:, None, :2] + drawn.places + drawn.side[:, None, None] // 2).reshape(-1, 2)
    at = zip(np.repeat(drawn.slot, drawn.places.shape[1]), *middles.T, strict=True)
    classes = np.array([SCENES[s].labels[y, x] for s, y, x in at])
    shares = [np.mean(drawn.slot == i) for i in range(3)] + [np.mean(classes == k) for k in (0, 1, 2, 3, 255)]
    sides = np.quantile(drawn.side, (0.1, 0.5, 0.9)) / VIEWS.patch_size
    views = [np.mean(drawn.view == v) for v in range(8)]
    corners = drawn.window[:, None, :2] + drawn.places
    shown = [
        (SCENES[s].labels[y : y + side, x : x + side] == 3).any()
        for s, side, places in zip(drawn.slot, drawn.side, corners, strict=True)
        for y, x in places
    ]
    return np.array(
        [np.mean(shown), *shares, *views, *where.mean(0), *inside.mean((0, 1)), *inside.std((0, 1)), *sides]
    )


@pytest.mark.parametrize("rare", [0.0, 0.7])
def test_both_draw_alike(placed, rare):
    the_plan = plan(rare_class_fraction=rare)
    ours, theirs = many(placed, the_plan, 1750), of_loader(the_plan, 1750)
    np.testing.assert_allclose(spread(ours), spread(theirs), atol=0.04)
    room = ours.window[:, None, 2:] - ours.side[:, None, None]
    assert (ours.places >= 0).all() and (ours.places <= room).all() and ours.valid.all()
    found = spread(ours)[0]  # patches that show class 3, which lies on a hundredth of the scenes
    assert found > 0.04 if rare else found < 0.01


@pytest.mark.parametrize("jitter", [(1.0, 1.0), (0.7, 1.4)])
def test_on_the_grid_every_patch_comes_once(placed, jitter):
    """The places of the loader's grid, to the pixel that turning it may shift; those there are too few of come again, not counted."""
    the_plan = plan(positions="grid", patches_per_context=70, scale_jitter=jitter)
    ours = many(placed, the_plan, 12)
    for window, side, places, valid in zip(ours.window, ours.side, ours.places, ours.valid, strict=True):
        grid = draws.patch_grid(tuple(window[2:].tolist()), int(side), VIEWS.overlap)
        np.testing.assert_array_equal(sorted(map(tuple, places[valid])), sorted(map(tuple, grid)))
        assert valid.sum() == len(grid) and (places[: 70 - len(grid)] == places[len(grid) :]).all()
    assert len({tuple(p.ravel()) for p in ours.places[:, :5]}) == 12


# ------------------------------------------------------------------------------------------------------- several at once
@dataclasses.dataclass
class State:
    """What a chunk asks of a state."""

    step: jax.Array
    total: jax.Array


jax.tree_util.register_dataclass(State, ["step", "total"], [])


def step(state, batch):
    mean = batch["patches"].astype(jnp.float32).mean() + batch["boxes"].sum()
    return State(state.step + 1, state.total * 0.9 + mean), {"loss": mean}


def test_however_steps_are_divided_the_bits_are_the_same(placed):
    the_plan = plan()
    chunk = on_device.make_chunk(step, the_plan, 6)

    def run(*counts):
        state, seen = State(jnp.int32(0), jnp.float32(0)), []
        for count in counts:
            state, taken = chunk(state, on_device.Dispatch(placed, jax.random.key(0), np.int32(count)))
            arrays = taken.each["loss"], taken.scene, taken.context
            seen += list(zip(*(np.asarray(array)[:count] for array in arrays), strict=True))
        return np.asarray(state.total), seen, np.asarray(taken.last["loss"])

    whole, parts = run(6, 6), run(1, 4, 2, 5)
    chunk = on_device.make_chunk(step, the_plan, 1)  # without a loop
    alone = run(*[1] * 12)
    np.testing.assert_allclose(alone[0], whole[0], rtol=1e-5)
    for ours, theirs in zip(alone[1], whole[1], strict=True):
        assert all((a == b).all() for a, b in zip(ours[1:], theirs[1:], strict=True))  # scenes and contexts
    assert whole[0] == parts[0] and whole[2] == parts[2] == whole[1][-1][0]
    for ours, theirs in zip(whole[1], parts[1], strict=True):
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert len({loss for loss, _, _ in whole[1]}) == 12  # every step draws anew


def test_devices_share_a_batch(placed):
    """Two draw what one draws."""
    key, batches = jax.random.key(9), []
    for count in (1, 2):
        the_plan = plan(count, flips=False)
        scenes = placed if count == 1 else residents.place(SCENES, SHARES, the_plan.mesh)
        batches.append(jax.jit(lambda k, s, p=the_plan: on_device.make_batch(k, s, p))(key, scenes))
    assert len(batches[1]["patches"].sharding.device_set) == 2
    for name in batches[0]:
        np.testing.assert_array_equal(*(np.asarray(batch[name]) for batch in batches))
