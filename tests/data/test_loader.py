"""Patch and global pairs: the same whatever the threads, resumed exactly, and showing what the boxes say."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glcanet_jax.data import deepglobe, open_dataset
from glcanet_jax.data import views as data_views
from glcanet_jax.data.loader import LoaderConfig, TrainLoader, make_example
from glcanet_jax.data.masks import MaskSource
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views

VIEWS = Views(context_size=160, global_size=40, patch_size=64, overlap=8)


def ramp_scene(height=300, width=420, name="ramp"):
    """Pixels that say where they are: row and column in two bands; labels in squares of 20 px."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, rows * 0], -1).astype(np.uint16)
    return ArrayScene(name, image, ((rows // 20 + columns // 20) % 5).astype(np.uint8))


def noise_scene(height=200, width=240, seed=0, classes=4):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return ArrayScene(f"noise{seed}", image, rng.integers(0, classes, (height, width), np.uint8))


SCENES = noise_scene(seed=0), noise_scene(180, 330, seed=1), noise_scene(50, 70, seed=2)


def take(count, config, scenes=SCENES, state=None):
    batches = iter(TrainLoader(scenes, VIEWS, config, 4))
    if state is not None:
        batches.set_state(state)
    return [next(batches) for _ in range(count)], batches.get_state()


def equal(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


CONFIG = LoaderConfig(batch_size=2, patches_per_context=3, rare_class_fraction=0.3, scale_jitter=(0.8, 1.25), seed=7)


def test_threads_and_prefetching_change_nothing():
    expected, _ = take(6, dataclasses.replace(CONFIG, threads=1, prefetch=1))
    for threads, prefetch in ((2, 2), (8, 16)):
        assert equal(take(6, dataclasses.replace(CONFIG, threads=threads, prefetch=prefetch))[0], expected)
    assert not equal(take(6, dataclasses.replace(CONFIG, seed=8))[0], expected)


@pytest.fixture(scope="module")
def whole():
    return take(12, CONFIG)[0]


@settings(max_examples=6)
@given(st.integers(0, 11), st.sampled_from([1, 2, 8]))
def test_resumes_where_it_was(whole, stop, threads):
    """From any position, also across the end of an epoch, into a loader with other threads."""
    batches = iter(TrainLoader(SCENES, VIEWS, CONFIG, 4))
    for _ in range(stop):
        next(batches)
    rest, _ = take(12 - stop, dataclasses.replace(CONFIG, threads=threads), state=batches.get_state())
    assert equal(whole[stop:], rest)


def test_every_epoch_draws_anew():
    """Other contexts, other patches, another order."""
    config = LoaderConfig(batch_size=2, seed=1)
    steps = TrainLoader(SCENES, VIEWS, config, 4).steps_per_epoch
    batches, _ = take(2 * steps, config)
    first, second = batches[:steps], batches[steps:]
    for name in ("context", "boxes", "scene"):
        assert not all(np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True))
    drawn = [tuple(x) for batch in batches for x in batch["boxes"].reshape(-1, 4)]
    assert len(set(drawn)) == len(drawn)


def test_shapes_and_types():
    (batch,), _ = take(1, CONFIG)
    shapes = {k: v.shape for k, v in batch.items()}
    assert shapes == {
        "global_image": (2, 40, 40, 3), "global_labels": (2, 40, 40), "patches": (2, 3, 64, 64, 3),
        "patch_labels": (2, 3, 64, 64), "boxes": (2, 3, 4), "valid": (2, 3), "scene": (2,), "context": (2, 4),
    }  # fmt: skip
    assert batch["patches"].dtype == batch["global_image"].dtype == np.uint8 and batch["boxes"].dtype == np.float32


def test_an_epoch_sees_every_scene_in_proportion():
    loader = TrainLoader((ramp_scene(), noise_scene(160, 160)), VIEWS, LoaderConfig(batch_size=1), 4)
    assert loader.steps_per_epoch == 5 + 1  # ceil(300 * 420 / 160**2) contexts of the one, one of the other
    batches = iter(loader)
    assert Counter(int(next(batches)["scene"][0]) for _ in range(12)) == {0: 10, 1: 2}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("jitter", [(1.0, 1.0), (0.7, 1.5)])
def test_boxes_say_where_patches_lie(seed, jitter):
    """Whatever the flips and turns: the ramp in the global view at the box is the ramp in the patch."""
    config = LoaderConfig(patches_per_context=4, scale_jitter=jitter)
    example = make_example(ramp_scene(), 0, VIEWS, config, np.random.default_rng(seed))
    side = VIEWS.global_size
    # the labels of the global view belong to its pixels too
    rows, columns = example["global_image"][..., 0] % 20, example["global_image"][..., 1] % 20
    inner = (np.minimum(rows, columns) > 6) & (np.maximum(rows, columns) < 13)  # a pixel spans up to 12 of the scene's
    inner[[0, -1]] = inner[:, [0, -1]] = False
    assert inner.sum() > 30
    expected = (example["global_image"][..., 0] // 20 + example["global_image"][..., 1] // 20) % 5
    np.testing.assert_array_equal(example["global_labels"][inner], expected[inner])
    for patch, labels, (top, left, bottom, right) in zip(
        example["patches"], example["patch_labels"], example["boxes"], strict=True
    ):
        assert 0 <= top < bottom <= 1 + 1e-6 and 0 <= left < right <= 1 + 1e-6
        # the patch's centre, read off both views; a pixel of the global view is 4 to 6 pixels of the scene
        y, x = (top + bottom) / 2 * side - 0.5, (left + right) / 2 * side - 0.5
        (y0, fy), (x0, fx) = (divmod(v, 1) for v in (y, x))
        corner = example["global_image"][int(y0) : int(y0) + 2, int(x0) : int(x0) + 2, :2].astype(float)
        seen = np.tensordot([1 - fx, fx], np.tensordot([1 - fy, fy], corner, (0, 0)), (0, 0))
        centre = patch[31:33, 31:33, :2].astype(float).mean((0, 1))
        np.testing.assert_allclose(seen, centre, atol=1.5)
        # labels belong to the pixels beside them, away from the squares' edges
        rows, columns = patch[..., 0].astype(int), patch[..., 1].astype(int)
        inner = (np.minimum(rows % 20, columns % 20) > 2) & (np.maximum(rows % 20, columns % 20) < 17)
        assert inner.sum() > 500
        np.testing.assert_array_equal(labels[inner], ((rows // 20 + columns // 20) % 5)[inner])


def test_all_eight_views_occur():
    """And without flips only the scene as it is."""

    def orientations(config):
        seen = set()
        for seed in range(60):
            patch = make_example(ramp_scene(), 0, VIEWS, config, np.random.default_rng(seed))["patches"][0].astype(int)
            down, right = patch[1, 0, :2] - patch[0, 0, :2], patch[0, 1, :2] - patch[0, 0, :2]
            seen.add((*np.sign(down), *np.sign(right)))
        return seen

    assert len(orientations(LoaderConfig())) == 8
    assert orientations(LoaderConfig(flips=False)) == {(1, 0, 0, 1)}


def test_patches_are_the_scenes_own_pixels():
    """Without jitter nothing is resampled."""
    scene = noise_scene()
    example = make_example(scene, 0, VIEWS, LoaderConfig(flips=False, patches_per_context=2), np.random.default_rng(3))
    top, left, height, width = example["context"].tolist()
    for patch, labels, box in zip(example["patches"], example["patch_labels"], example["boxes"], strict=True):
        y, x = round(top + box[0] * height), round(left + box[1] * width)
        np.testing.assert_array_equal(patch, scene.image[y : y + 64, x : x + 64])
        np.testing.assert_array_equal(labels, scene.labels[y : y + 64, x : x + 64])
    np.testing.assert_array_equal(
        example["global_image"], data_views.global_view(scene.read_image(top, left, height, width), 40)
    )


@pytest.mark.parametrize("flips", [False, True])
def test_positions_on_the_grid(flips):
    """As the paper has them: overlapping by the overlap, to the end of the context; too few are marked."""
    config = LoaderConfig(positions="grid", patches_per_context=12, flips=flips)
    example = make_example(noise_scene(160, 160), 0, VIEWS, config, np.random.default_rng(0))
    corners = [(round(b[0] * 160), round(b[1] * 160)) for b in example["boxes"]]
    starts = (0, 48, 96)
    assert sorted(corners[:9]) == [(y, x) for y in starts for x in starts] and corners[9:] == corners[:3]
    np.testing.assert_array_equal(example["valid"], np.arange(12) < 9)
    few = dataclasses.replace(config, patches_per_context=4)
    drawn = [make_example(noise_scene(160, 160), 0, VIEWS, few, np.random.default_rng(s)) for s in range(2)]
    assert all(d["valid"].all() and len(np.unique(d["boxes"], axis=0)) == 4 for d in drawn)
    assert not np.array_equal(drawn[0]["boxes"], drawn[1]["boxes"])


@pytest.mark.parametrize("count", [1, 4])
def test_an_epoch_on_the_grid_shows_every_patch_once(count):
    """Of whole scenes, as the paper's preset: so many steps are an epoch, and the next one has another order."""
    views = dataclasses.replace(VIEWS, context_size=None)
    scenes = noise_scene(160, 160), noise_scene(100, 210, seed=1)
    wanted = 3 * 3, 2 * 4  # patches of 64 px that overlap by 8
    loader = TrainLoader(scenes, views, LoaderConfig(batch_size=1, positions="grid", patches_per_context=count), 4)
    assert loader.steps_per_epoch == sum(-(-n // count) for n in wanted)
    batches, orders = iter(loader), []
    for _ in range(2):
        seen = {0: [], 1: []}
        for _ in range(loader.steps_per_epoch):
            batch = next(batches)
            seen[int(batch["scene"][0])] += [tuple(box) for box in batch["boxes"][batch["valid"]].tolist()]
        orders.append(seen)
        assert [len(seen[i]) for i in range(2)] == [len(set(seen[i])) for i in range(2)] == list(wanted)
    assert orders[0] != orders[1]


def test_shares_of_a_batch_make_the_batch():
    """As processes read it: in its order, from any position."""
    config = dataclasses.replace(CONFIG, batch_size=6)
    whole, _ = take(4, config)
    shares = []
    for which in range(3):
        batches = iter(TrainLoader(SCENES, VIEWS, config, 4, (which, 3)))
        for _ in range(2):
            next(batches)
        resumed = iter(TrainLoader(SCENES, VIEWS, config, 4, (which, 3)))
        resumed.set_state(batches.get_state())
        shares.append([next(resumed) for _ in range(2)])
    assert all(len(batch["scene"]) == 2 for share in shares for batch in share)
    joined = [{k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for parts in zip(*shares, strict=True)]
    assert equal(whole[2:], joined)


def test_random_positions_reach_every_part_of_a_context():
    config = LoaderConfig(patches_per_context=300, flips=False)
    example = make_example(noise_scene(160, 160), 0, VIEWS, config, np.random.default_rng(0))
    starts = np.rint(example["boxes"][:, :2] * 160)
    assert example["valid"].all() and (starts.min(), starts.max()) == (0, 160 - 64)
    np.testing.assert_allclose(starts.mean(0), 48, atol=5)
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.2


def test_scenes_under_a_patch_are_reflected_and_ignored():
    scene = noise_scene(50, 70, seed=2)
    example = make_example(scene, 0, VIEWS, LoaderConfig(flips=False), np.random.default_rng(0))
    patch, labels = example["patches"][0], example["patch_labels"][0]
    left = round(example["boxes"][0, 1] * 70)
    np.testing.assert_array_equal(patch[:50], scene.image[:, left : left + 64])
    np.testing.assert_array_equal(patch[50:], patch[36:50][::-1])
    np.testing.assert_array_equal(labels[:50], scene.labels[:, left : left + 64])
    assert (labels[50:] == 255).all() and (labels[:50] < 4).all()


@pytest.mark.parametrize("seed", range(8))
def test_padding_follows_the_turns(seed):
    """A scene under a patch on both sides: its one patch holds it whole, and nothing of the padding counts."""
    scene = noise_scene(50, 40, seed=4)
    example = make_example(scene, 0, VIEWS, LoaderConfig(), np.random.default_rng(seed))
    counted = example["patch_labels"][0] != 255
    assert counted.sum() == 50 * 40 and (counted[:50, :40].all() or counted[:40, :50].all())
    np.testing.assert_array_equal(example["boxes"][0], (0, 0, 1, 1))
    for array, expected in ((example["patches"][0], scene.image), (example["patch_labels"][0], scene.labels)):
        inside = np.sort(array[counted].reshape(50 * 40, -1), axis=0)
        np.testing.assert_array_equal(inside, np.sort(expected.reshape(50 * 40, -1), axis=0))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_padding_is_no_larger_than_asked(height, width, side):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (height, width, 2), np.uint8), np.zeros((height, width), np.uint8)
    padded, ignored = data_views.reflect_pad(image, labels, side)
    assert padded.shape == (max(height, side), max(width, side), 2) and ignored.shape == padded.shape[:2]
    np.testing.assert_array_equal(padded[:height, :width], image)
    assert (ignored == 0).sum() == height * width and (ignored[:height, :width] == 0).all()
    if height < side:  # a mirror at the end: the next row is the last again
        np.testing.assert_array_equal(padded[height, :width], image[-1])


class Counting(ArrayScene):
    """Counts its reads."""

    reads = 0

    def read_image(self, *window):
        type(self).reads += 1
        return super().read_image(*window)


@pytest.mark.parametrize("n", [1, 6])
def test_a_context_is_read_once_for_its_patches(n):
    made = noise_scene()
    scene, Counting.reads = Counting("counting", made.image, made.labels), 0
    make_example(scene, 0, VIEWS, LoaderConfig(patches_per_context=n), np.random.default_rng(0))
    assert Counting.reads == 1


def test_a_file_is_decoded_once(tmp_path, monkeypatch):
    """For all its patches and contexts, whatever the threads, while it is remembered."""
    decoded = Counter()

    def counted(kind):
        def counting(source, *at, read=kind.read):
            decoded[source.path.name] += 1
            return read(source, *at)

        monkeypatch.setattr(kind, "read", counting)

    counted(RasterSource)
    counted(MaskSource)
    ids = deepglobe.split_ids("train")[:3]
    for seed, identifier in enumerate(ids):
        scene = noise_scene(180, 200, seed)
        Image.fromarray(scene.image).save(tmp_path / f"{identifier}_sat.jpg")
        Image.fromarray(scene.labels).save(tmp_path / f"{identifier}_mask.png")
    config = LoaderConfig(batch_size=4, patches_per_context=3, threads=8)
    take(6, config, open_dataset("deepglobe", tmp_path).scenes("train"))
    assert decoded == {f"{i}_{kind}": 1 for i in ids for kind in ("sat.jpg", "mask.png")}


def test_what_is_wrong_with_a_file_is_told(tmp_path):
    """Out of a thread that reads it, as it is told everywhere."""
    identifier = deepglobe.split_ids("train")[0]
    Image.fromarray(noise_scene().image).save(tmp_path / f"{identifier}_sat.jpg")
    Image.fromarray(np.full((200, 240), 77, np.uint8)).save(tmp_path / f"{identifier}_mask.png")
    with pytest.raises(UserError, match=rf"{identifier}_mask.png: a mask has ids \[77\]"):
        take(1, LoaderConfig(batch_size=1), open_dataset("deepglobe", tmp_path).scenes("train"))


def rare_share(fraction):
    """Share of patches that show a class that lies on a hundredth of the scene."""
    labels = np.zeros((160, 160), np.uint8)
    labels[8:24, 8:24], labels[100:, :] = 3, 255
    scene = ArrayScene("rare", np.zeros((160, 160, 3), np.uint8), labels)
    config = LoaderConfig(patches_per_context=400, rare_class_fraction=fraction)
    example = make_example(scene, 0, VIEWS, config, np.random.default_rng(0))
    assert example["boxes"].min() >= 0 and example["boxes"].max() <= 1
    return np.mean([(p == 3).any() for p in example["patch_labels"]])


def test_rare_classes_are_looked_for():
    """Half of the chosen patches, for two classes are present (what is ignored is none), beside those by chance."""
    chance = (24 / 97) ** 2  # starts under 24 of 0 to 96, on both axes
    assert rare_share(0.0) == pytest.approx(chance, abs=0.05)
    assert 0.45 < rare_share(1.0) < 0.75
    assert rare_share(0.0) + 0.1 < rare_share(0.5) < rare_share(1.0) - 0.1


def test_bad_settings_are_told():
    for bad in (
        {"batch_size": 0},
        {"patches_per_context": 0},
        {"threads": 0},
        {"contexts_per_scene": 0},
        {"seed": -1},
        {"scale_jitter": (2.0, 1.0)},
        {"scale_jitter": (0.0, 1.0)},
        {"rare_class_fraction": 1.5},
    ):
        with pytest.raises(UserError, match=f"loader.{next(iter(bad))} is"):
            LoaderConfig(**bad)
    with pytest.raises(UserError, match="no scenes to train on"):
        TrainLoader((), VIEWS, LoaderConfig(), 4)


# ------------------------------------------------------------------------------------------------------ the global view
def test_the_global_view_keeps_the_mean_and_does_not_alias():
    board = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    shrunk = data_views.global_view(board, 50)
    np.testing.assert_allclose(shrunk, 127.5, atol=2)
    noise = noise_scene(500, 300).image
    np.testing.assert_allclose(data_views.global_view(noise, 50).mean((0, 1)), noise.mean((0, 1)), atol=1.0)


@given(st.integers(100, 299), st.integers(60, 239), st.sampled_from([(40, 40), (37, 50)]))
def test_no_pixel_is_lost_in_the_global_view(row, column, size):
    """The sum is kept, wherever the one bright pixel lies (the border apart)."""
    image = np.zeros((400, 300, 1), np.float32)
    image[row, column] = 1
    shrunk = data_views.resize_image(image, *size)
    assert shrunk.sum() * 400 * 300 / (size[0] * size[1]) == pytest.approx(1, abs=0.03)


def test_the_global_view_is_the_same_for_the_same_pixels():
    """However they lie in memory: training gives it turned windows, prediction does not."""
    image = noise_scene(300, 300).image
    for turned in (image[:, ::-1], np.rot90(image), np.rot90(image, 3)[::-1]):
        expected = data_views.global_view(turned.copy(), 50)
        np.testing.assert_array_equal(data_views.global_view(turned, 50), expected)
        wide = data_views.global_view(turned.astype(np.uint16), 50)  # by another way for 16 bits
        np.testing.assert_allclose(wide, expected.astype(float), atol=1)


@settings(max_examples=20)
@given(
    st.integers(80, 300), st.integers(80, 300), st.sampled_from([np.uint8, np.uint16, np.float32]), st.integers(1, 5)
)
def test_a_ramp_stays_a_ramp(height, width, dtype, bands):
    """Per axis, at the centres of pixels, away from the border; in every type and number of bands."""
    rows = np.rint(np.linspace(20, 220, height))[:, None, None] * np.ones((1, width, bands))
    shrunk = data_views.global_view(rows.astype(dtype), 40)
    assert shrunk.shape == (40, 40, bands) and shrunk.dtype == dtype
    centres = (np.arange(40) + 0.5) * height / 40 - 0.5
    expected = 20 + 200 * centres / (height - 1)
    np.testing.assert_allclose(shrunk[3:-3, 20, 0], expected[3:-3], atol=1.1)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 90))
def test_labels_are_those_at_the_centres(height, width, size):
    labels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    shrunk = data_views.global_labels(labels, size)
    for i in {0, size // 3, size - 1}:
        at = (2 * i + 1) * height // (2 * size), (2 * i + 1) * width // (2 * size)
        assert shrunk[i, i] == labels[at]


def test_labels_are_never_mixed():
    labels = np.repeat(np.array([[0, 255, 3, 1]], np.uint8), 8, 0).repeat(25, 1)
    assert set(np.unique(data_views.global_labels(labels, 30))) == {0, 1, 3, 255}
