"""Where networks err: counted by strips as by brute force, and the command on a cut of the bundled scene."""

import dataclasses
import functools
import json
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glcanet_jax import compare, models, runs
from glcanet_jax.compare import counts as error_counts
from glcanet_jax.config import Config, NormalisationConfig, model_config
from glcanet_jax.data import open_dataset
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.scenes import ArrayScene, WindowScene
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.inference import evaluation, windows
from tests.training.test_resume import Toy

K = 3


def coarse(height, width, side, seed=0, ignored=0.1):
    """Classes in squares, so that some pixels are far from every border, with specks and ignored parts."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, K, (height // side + 1, width // side + 1)).astype(np.uint8).repeat(side, 0).repeat(side, 1)
    ids = ids[:height, :width].copy()
    specks = rng.random(ids.shape)
    ids[specks < 0.002] = 2
    ids[specks > 1 - ignored / 10] = 255
    ids[: int(ignored * height), width // 3 :] = 255
    return ids


def brute_distances(ids):
    """Float64, from every pixel to every other one; inf where there is no other class."""
    at = np.argwhere(np.ones(ids.shape, bool)).astype(np.float64)
    flat, out = ids.ravel(), np.full(ids.size, np.inf)
    for n, (place, own) in enumerate(zip(at, flat, strict=True)):
        others = at[(flat != own) & (flat != 255)]
        if own != 255 and len(others):
            out[n] = np.sqrt(((others - place) ** 2).sum(1).min())
    return out.reshape(ids.shape)


def brute_borders(ids):
    """The bins in words: up to 2, 5, 10 and 20 px, and beyond."""
    distances = brute_distances(ids)
    return sum((distances > bound).astype(int) for bound in (2, 5, 10, 20))


def brute_objects(ids):
    """The area of every pixel's object, 0 where ignored, and (class, area) of the objects, walked pixel by pixel."""
    areas, found = np.zeros(ids.shape, int), []
    seen = ids == 255
    for start in map(tuple, np.argwhere(~seen)):
        if seen[start]:
            continue
        seen[start], members = True, [start]
        for y, x in members:  # it grows
            for to in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= to[0] < ids.shape[0] and 0 <= to[1] < ids.shape[1]
                if inside and not seen[to] and ids[to] == ids[start]:
                    seen[to] = True
                    members.append(to)
        areas[tuple(np.array(members).T)] = len(members)
        found.append((int(ids[start]), len(members)))
    return areas, found


def size_bin(area):
    return sum(area >= bound for bound in (100, 1000, 10000, 100000))


def reader(ids):
    return lambda top, height: ids[top : top + height]


def some_maps(truth, count, seed=0):
    rng = np.random.default_rng(seed)
    wrong = lambda: rng.integers(0, K, truth.shape).astype(np.uint8)  # noqa: E731
    return [np.where((rng.random(truth.shape) < 0.5) & (truth != 255), truth, wrong()) for _ in range(count)]


small = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 13), st.integers(1, 12)),
    elements=st.sampled_from([0, 0, 0, 1, 1, 2, 255]),
    fill=st.just(0),
)


@given(small)
@settings(max_examples=60)
def test_borders_are_the_nearest_other_pixel_s(ids):
    counted = ids != 255
    np.testing.assert_array_equal(error_counts.border_bins(ids)[counted], brute_borders(ids)[counted])


def test_bounds_lie_in_their_bins():
    """A straight border: the pixel next to it is 1 px away, and what is ignored is no border."""
    ids = np.zeros((3, 40), np.uint8)
    ids[:, 30:] = 1
    distance = 30 - np.arange(30)
    np.testing.assert_array_equal(
        error_counts.border_bins(ids)[1, :30], [sum(d > b for b in (2, 5, 10, 20)) for d in distance]
    )
    ids[:, 30:] = 255
    assert (error_counts.border_bins(ids) == 4).all()


@given(small, st.integers(1, 14))
@settings(max_examples=120)
def test_objects_are_walked_ones_however_the_strips(ids, rows):
    strips = [ids[top : top + rows] for top in range(0, len(ids), rows)]
    bins, objects = error_counts.object_sizes(iter(strips), K)
    areas, found = brute_objects(ids)
    expected = np.zeros_like(objects)
    for c, area in found:
        expected[c, size_bin(area)] += 1
    np.testing.assert_array_equal(objects, expected)
    first = 0
    for strip, area in zip(strips, (areas[top : top + rows] for top in range(0, len(ids), rows)), strict=True):
        labels, classes = error_counts.pieces(strip)
        own = labels >= 0
        np.testing.assert_array_equal(own, strip != 255)
        np.testing.assert_array_equal(bins[first + labels[own]], np.vectorize(size_bin, otypes=[int])(area[own]))
        np.testing.assert_array_equal(np.array(classes, int)[labels[own]], strip[own])
        first += len(classes)
    assert first == len(bins)


def test_a_comb_and_a_spiral_are_one_object_each():
    ids = np.zeros((201, 31), np.uint8)
    ids[:-1, ::2] = 1  # teeth that only the last row joins
    ids[-1] = 1
    for rows in (1, 3, 64, 201):
        _, objects = error_counts.object_sizes((ids[top : top + rows] for top in range(0, 201, rows)), 2)
        assert objects.tolist() == [[0, 15, 0, 0, 0], [0, 0, 1, 0, 0]]  # 200 px between the teeth; 3231 px
    turns = np.zeros((61, 61), np.uint8)
    y, x, heading, length = 60, 0, (-1, 0), 60
    turns[y, x] = 1
    while length > 1:
        for _ in range(2):
            for _ in range(length):
                y, x = y + heading[0], x + heading[1]
                turns[y, x] = 1
            heading = heading[1], -heading[0]
        length -= 2
    _, (_, found) = error_counts.object_sizes((turns[top : top + 2] for top in range(0, 61, 2)), 2)
    assert found.sum() == sum(c == 1 for c, _ in brute_objects(turns)[1]) == 1


@pytest.mark.parametrize(("shape", "side"), [((83, 61), 30), ((40, 75), 9), ((25, 33), 60)])
def test_counts_are_those_of_every_pixel_by_itself(shape, side):
    """Strips smaller than objects and than the distance that is looked at change nothing."""
    truth = coarse(*shape, side, seed=side)
    maps = some_maps(truth, 3)
    borders, (areas, _) = brute_borders(truth), brute_objects(truth)
    confusions, outcomes, net = Counter(), Counter(), np.zeros(shape, int)
    for at in map(tuple, np.argwhere(truth != 255)):
        group = int(borders[at]), size_bin(areas[at]), int(truth[at])
        answers = [int(m[at]) for m in maps]
        confusions.update((i, *group, answer) for i, answer in enumerate(answers))
        a, b = (answer == truth[at] for answer in answers[:2])
        outcomes[*group, 2 * int(a) + int(b)] += 1
        net[at] = int(a) - int(b)
    for strip in (1, 5 * shape[1] + 3, 23 * shape[1], 10**6):
        counts, grid = error_counts.count_scene(reader(truth), maps, K, strip, cell=13)
        for got, expected in ((counts.confusions, confusions), (counts.outcomes, outcomes)):
            assert {tuple(map(int, at)): int(got[tuple(at)]) for at in np.argwhere(got)} == dict(expected)
        for i, j in np.ndindex(grid.shape[1:]):
            cell = np.s_[13 * i : 13 * i + 13, 13 * j : 13 * j + 13]
            assert grid[:, i, j].tolist() == [net[cell].sum(), (truth[cell] != 255).sum()]
    assert len({group[0] for group in outcomes}) > 2 and len({group[1] for group in outcomes}) > 1


def test_a_scene_without_labels_counts_nothing():
    truth = np.full((30, 20), 255, np.uint8)
    counts, grid = error_counts.count_scene(reader(truth), [np.zeros_like(truth)] * 2, K, 100)
    assert not any(x.any() for x in (*counts, grid))


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-9, 9)))
@settings(max_examples=60)
def test_the_best_windows(net):
    """The first is the best of all; the second the best that is not over it; none where nothing is gained."""
    grid = np.stack([net, np.full_like(net, 10)])
    sums = {
        (i, j): int(net[i : i + 2, j : j + 2].sum())
        for i in range(max(1, net.shape[0] - 1))
        for j in range(max(1, net.shape[1] - 1))
    }
    for sign in (1, -1):
        left, found = sums, windows.best_windows(grid, sign)
        for i, j, total, pixels in found:
            assert total == sums[i, j] and sign * total == max(sign * s for s in left.values()) > 0
            assert pixels == 10 * net[i : i + 2, j : j + 2].size
            left = {at: s for at, s in left.items() if max(abs(at[0] - i), abs(at[1] - j)) > 1}
        assert len(found) == 2 or not any(sign * s > 0 for s in left.values())


def test_what_a_protocol_ignores_has_no_label():
    scene = ArrayScene("s", np.zeros((4, 5, 3), np.uint8), coarse(4, 5, 2, ignored=0))
    read = compare.truth_reader(scene, Protocol("no-a", (1, 2), ignore=(0,)))
    np.testing.assert_array_equal(read(1, 3), np.where(scene.labels == 0, 255, scene.labels)[1:])


# ------------------------------------------------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def dataset():
    """A cut of the bundled scene as the split "test", and a scene without labels as "bare"."""
    sample = open_dataset("sample")
    cut = WindowScene("cut", sample.scenes("test")[0], 40, 300, 230, 460)
    bare = ArrayScene("bare", np.zeros((80, 80, 3), np.uint8))
    return dataclasses.replace(sample, splits={"test": (cut, bare), "bare": (bare,)})


@pytest.fixture(scope="module", autouse=True)
def known():
    """A network that compiles at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, "toy", Toy)
        yield


@pytest.fixture(scope="module")
def weights(dataset, known, tmp_path_factory):
    """Two networks of one shape that answer differently: a run's folder, and a file."""
    folder = tmp_path_factory.mktemp("weights")
    views = Views(context_size=256, global_size=64, patch_size=64, overlap=8)
    config = Config(views=views, model=model_config("toy"), normalisation=NormalisationConfig(scale=255.0))
    shapes = models.shapes(Toy(len(dataset.classes.names)), 3)
    places = folder / "run" / "last.safetensors", folder / "control.safetensors"
    places[0].parent.mkdir()
    for seed, path in enumerate(places):
        rng = np.random.default_rng(seed)
        # made here, for initialisers and jax's noise compile a program for every shape
        values = lambda x: np.float32(rng.normal(x.ndim == 1, np.prod(x.shape[:-1]) ** -0.5, x.shape))  # noqa: B023, E731
        moments = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes["batch_stats"])
        runs.save(path, config, dataset, {"params": jax.tree.map(values, shapes["params"]), "batch_stats": moments})
    return places[0].parent, places[1]


def build(dataset, *words, split="test"):
    asked = compare.find_runs(words)
    command = f"compare {compare.words(asked, split, False)}"
    return compare.build(asked, dataset, split, command=command, batch=4)


@pytest.fixture(scope="module")
def load_once():
    return functools.cache(runs.load_predictor)  # a network that is loaded again compiles again


@pytest.fixture(autouse=True)
def kept(monkeypatch, load_once):
    monkeypatch.setattr(runs, "load_predictor", load_once)


def test_an_at_sign_of_a_name_that_is_there_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a@1", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.safetensors").touch()
    asked = compare.find_runs(["a@1", "a@1@patch", "c=a@1@global", "b@patch"])
    assert {name: (run.weights.parent.name, run.stage) for name, run in asked.items()} == {
        "a@1": ("a@1", None), "a@1 patch": ("a@1", "patch"), "c": ("a@1", "global"), "b patch": ("b", "patch"),
    }  # fmt: skip


def test_two_runs(weights, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "STRIP", 460 * 37)
    compared = build(dataset, f"ours={weights[0]}", f"other={weights[1]}")
    pictures = compared.cuts
    assert "left out, for they have no labels: bare" in capsys.readouterr().out
    compare.write(compared, tmp_path, "errors-sample")
    text = (tmp_path / "errors-sample.json").read_text()
    told = json.loads(text)
    assert str(tmp_path.parent) not in text and told["command"] == "compare ours=RUN other=RUN --split test"
    assert [run["weights"] for run in told["runs"]] == ["last.safetensors", "control.safetensors"]
    scene, names = dataset.splits["test"][0], dataset.classes.names
    for run, path in zip(told["runs"], weights, strict=True):
        scored, _ = evaluation.evaluate(
            runs.load_predictor(runs.find_weights(path), 4, tta=False, stage=None)[0], (scene,), dataset, {}
        )
        assert run["confusion"] == scored["confusion"] and run["scores"] == scored["protocols"]["all"]
        np.testing.assert_array_equal(sum(np.array(b["confusion"]) for b in run["borders"]), run["confusion"])
        for i, name in enumerate(names):
            assert sum(run["sizes"][name]["right"]) == run["confusion"][i][i]
            assert sum(told["objects"][name]["pixels"]) == sum(run["confusion"][i])
    gain, right = told["gain"], [np.trace(run["confusion"]) for run in told["runs"]]
    assert gain["all"]["both"] + gain["all"]["network"] == right[0] != right[1]
    assert gain["all"]["both"] + gain["all"]["control"] == right[1]
    assert gain["all"]["net_gain"] == pytest.approx(100 * (right[0] - right[1]) / gain["all"]["pixels"])
    for axis in ("classes", "borders", "sizes"):
        for key in ("pixels", *error_counts.OUTCOMES):
            assert sum(group[key] for group in gain[axis].values()) == gain["all"][key]
    shown = {w["picture"] for w in gain["windows"]}
    assert shown and {p.name for p in tmp_path.iterdir()} == shown | {
        f"errors-sample.{kind}" for kind in ("json", "md", "html")
    }
    for w in gain["windows"]:
        assert (w["net_pixels"] > 0) == (w["kind"] == "helps") and w["scene"] == "cut"
        assert w["top"] + w["height"] <= 230 and w["left"] + w["width"] <= 460
    for picture in (p for kind in pictures.values() for p in kind):
        at = picture.record
        rows, columns = np.s_[at["top"] : at["top"] + at["height"]], np.s_[at["left"] : at["left"] + at["width"]]
        np.testing.assert_array_equal(picture.truth, scene.read_labels()[rows, columns])
        counted = picture.truth != 255
        hits = [int((ids == picture.truth)[counted].sum()) for ids in picture.maps.values()]
        assert hits[0] - hits[1] == at["net_pixels"]
    page = (tmp_path / "errors-sample.md").read_text()
    assert "## Where ours helps and where it hurts, against other" in page and "| objects of >=10^5 px |" in page
    assert all(f"]({name})" in page for name in shown)


def test_scenes_are_paired(weights, dataset):
    """Twice the same cut, one of them without what makes the difference: the mean and the test are of both."""
    scene = dataset.splits["test"][0]
    upper = WindowScene("upper", scene, 0, 0, 100, 460)
    both = dataclasses.replace(dataset, splits={"test": (scene, upper)})
    told = build(both, f"a={weights[0]}", f"b={weights[1]}").result["paired"]
    assert set(told["scenes"]) == {"cut", "upper"} and told["to"] == "a"
    differences = [100 * (of["b"] - of["a"]) for of in told["scenes"].values()]
    against = told["differences"]["b"]
    assert against["difference"] == pytest.approx(np.mean(differences)) and against["scenes"] == 2
    assert against["p"] == (0.5 if differences[0] * differences[1] > 0 else 1.0)


def test_a_stage_within_a_run_is_its_own_control(weights, dataset):
    result = build(dataset, f"ours={weights[0]}", f"local={weights[0]}@local/logits").result
    assert result["command"].endswith("ours=RUN local=RUN@local/logits --split test")
    assert [run.get("stage") for run in result["runs"]] == [None, "local/logits"]
    assert len({run["sha256"] for run in result["runs"]}) == 1 and result["gain"]["all"]["net_gain"] != 0


def test_one_run_has_no_control(weights, dataset, tmp_path, capsys):
    compared = build(dataset, str(weights[0]))
    compare.write(compared, tmp_path, "c")
    assert "needs a second run, its control" in capsys.readouterr().out
    assert "gain" not in compared.result and "helps" not in (tmp_path / "c.md").read_text()
    assert [run["name"] for run in compared.result["runs"]] == ["run"]  # as its folder
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md", ".html"}


@pytest.mark.parametrize(
    ("words", "split", "message"),
    [
        (("a=nowhere",), "test", "there is no weights file or run at nowhere"),
        (("a=x", "a=y"), "test", "'a' stands twice"),
        (("=x",), "test", "lacks a name or a path"),
        ((), "test", "no run was given"),
        (("a={0}",), "bare", "no scene of split 'bare' of sample has labels"),
        (("a={0}",), "tset", "perhaps you meant 'test'"),
    ],
)
def test_bad_input_is_told(weights, dataset, words, split, message):
    words = [
        word.format(*weights).replace("a=y", f"a={weights[1]}").replace("a=x", f"a={weights[0]}") for word in words
    ]
    with pytest.raises(UserError, match=message):
        build(dataset, *words, split=split)


def test_runs_of_other_classes_are_told(weights, dataset):
    table = dataclasses.replace(dataset.classes, names=("a", *dataset.classes.names[1:]))
    with pytest.raises(UserError, match="give weights trained on these classes"):
        build(dataclasses.replace(dataset, classes=table), f"a={weights[0]}")
