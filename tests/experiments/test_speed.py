"""The measuring of speed: what is counted, who takes part, and the command at a tiny size."""

import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from experiments import speed
from experiments.speed import cases as speed_cases
from experiments.speed import contenders, plain, worker
from experiments.speed import device as speed_device
from glcanet_jax import geometry, models
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from tests.test_cli import ROOT, assert_told
from tests.test_cli import run as run_command

TINY = speed_cases.Sizes(size=128, view=64, depth=10, width=8)
ARGUMENTS = [f"--{name}={value}" for name, value in dataclasses.asdict(TINY).items()]


# ------------------------------------------------------------------------------------------------- PyTorch's GLNet
@pytest.fixture(scope="module")
def glnet_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments.speed import glnet_torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # maps as small as these are no work for many
    yield glnet_torch
    torch.set_num_threads(threads)


def test_the_baseline_costs_what_the_release_does(glnet_torch):
    """Parameters and GFLOP as measured on the release: 65.4 M; 84 for the scene and 274 for each of its 36 patches."""
    import torch

    with torch.device("meta"):
        network = glnet_torch.GLNet()
    assert sum(p.numel() for p in network.parameters()) == 65_435_285
    assert glnet_torch.scene_gflop(0) == pytest.approx(83.78, abs=0.01)
    assert glnet_torch.scene_gflop(36) == pytest.approx(9951, abs=1)


def test_the_baselines_canvas(glnet_torch):
    """Sub-batches, their windows and the sums against one patch at a time."""
    import torch
    from PIL import Image

    torch.manual_seed(0)
    network = glnet_torch.GLNet(5, 10, 8, 16).eval()
    scene = np.random.default_rng(0).integers(0, 256, (90, 77, 3), np.uint8)
    size, (height, width) = 64, scene.shape[:2]
    canvas = np.zeros((5, height, width))
    with torch.no_grad():
        view = np.asarray(Image.fromarray(scene).resize((size, size), Image.Resampling.BILINEAR))
        context, _ = network.encode(glnet_torch.unit(view[None]))
        for top in (0, 13, 26):
            for left in (0, 13):
                patch = glnet_torch.unit(scene[None, top : top + size, left : left + size])
                place = [(top / height, left / width)], (size / height, size / width)
                local, _ = network.look(context, patch, *place)
                logits = network.aggregate(context, local, *place)[0].numpy()
                canvas[:, top : top + size, left : left + size] += logits.repeat(4, 1).repeat(4, 2)
    second, first = np.sort(canvas, axis=0)[-2:]
    clear = first - second > 1e-5  # elsewhere two classes are as good as equal
    assert clear.mean() > 0.9 and len(np.unique(canvas.argmax(0))) > 1
    for sub_batch in (4, 6):
        classes = glnet_torch.predict(network, scene, size, sub_batch)
        assert classes.dtype == np.uint8
        np.testing.assert_array_equal(classes[clear], canvas.argmax(0)[clear])


def test_one_pyramid_is_counted_for_all(glnet_torch):
    """Our count of the forward pass is PyTorch's; that of a step has the zeros of strided convolutions' gradients beside it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    with torch.device("meta"):
        resnet = glnet_torch.ResNet(10, 8)
        pyramid, image = glnet_torch.Pyramid(resnet.channels, 32), torch.empty(1, 3, 64, 64)
        for case in ("forward", "step"):
            with FlopCounterMode(display=False) as counter:
                last = pyramid(resnet(image))["ps3"][0]
                if case == "step":
                    last.square().mean().backward()
            counted[case] = counter.get_total_flops() / 1e9
    ours = {case: contenders.gflop(case, ["ours"], TINY)["ours"] for case in counted}
    assert ours["forward"] == pytest.approx(counted["forward"], rel=1e-6)
    assert 1 <= ours["step"] / counted["step"] < 1.15


def test_pytorchs_process_is_without_jax(glnet_torch, tmp_path):
    """Its memory is measured."""
    from experiments.speed import weights

    weights.write(tmp_path, TINY)
    code = f"""if True:
        import pathlib, sys
        from experiments.speed import cases, contenders, worker  # as in its own process
        task = cases.Task(cases.{TINY}, 2, pathlib.Path({str(tmp_path)!r}))
        names = {{"scene": "glnet", "branch": "pytorch-channels-last", "step": "pytorch"}}
        for case, name in names.items():
            contenders.CONTENDERS[case][name].built(task).warm()
        sys.exit("jax" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=worker.ENVIRONMENT).returncode == 0


# ---------------------------------------------------------------------------------------------- the loop that one writes
def test_the_plain_loop():
    """Of a network that answers for each pixel by itself; six patches do not fill two batches of four."""
    scene = np.random.default_rng(0).integers(0, 256, (130, 96, 3), np.uint8)
    of_pixels = lambda x: np.moveaxis(np.float32(x), -1, -3)  # noqa: E731
    wanted = of_pixels(scene).argmax(0)
    assert len(np.unique(wanted)) == 3
    for batch in (1, 4):
        sizes = []

        def logits(patches, sizes=sizes):
            sizes.append(len(patches))
            return of_pixels(patches)

        np.testing.assert_array_equal(plain.predict(logits, scene, 80, batch), wanted)
        assert set(sizes) == {batch}


@pytest.mark.parametrize(("length", "size"), [(2448, 500), (128, 64), (500, 500)])
def test_where_one_patch_alone_has_a_say(length, size):
    starts = geometry.patch_starts(length, size, plain.OVERLAP)
    covered = [sum(start <= i < start + size for start in starts) for i in range(length)]
    np.testing.assert_array_equal(plain.seen_once(length, size), np.array(covered) == 1)
    assert plain.seen_once(length, size).any()


def test_the_fastest_is_found(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(plain.time, "perf_counter", lambda: now[0])

    def taking(seconds):
        def call(*_):
            now[0] += seconds

        return call

    calls = {1: taking(1.0), 2: taking(1.5), 4: taking(4.0)}
    assert plain.fastest(calls) == 2  # 0.75 a patch
    assert plain.fastest(calls, each=False) == 1
    seconds = {1: 3.0, 2: 4.0, 4: 7.0}
    logits = lambda patches: taking(seconds[len(patches)])()  # noqa: E731
    assert plain.fastest_batch(logits, np.zeros((8, 8, 3), np.uint8), (1, 2, 4)) == 4


def test_who_computes_something_else_is_refused(tmp_path):
    class Done:
        def __init__(self, classes):
            self.classes = classes

        def result(self, file):
            return self.classes

    ours = np.zeros((128, 128), np.uint8)
    other = ours.copy()
    (row,) = np.flatnonzero(plain.seen_once(128, 64))[:1]
    other[row, row] = 1  # one of the pixels that count
    once = plain.seen_once(128, 64).sum() ** 2
    for name in ("pytorch", "pytorch-bfloat16"):
        changed = lambda name=name: speed._changed({"ours": Done(ours), name: Done(other)}, TINY, tmp_path)  # noqa: E731
        if name == "pytorch":
            with pytest.raises(UserError, match="pytorch has other classes than ours in .*%"):
                changed()
        else:
            assert changed() == {"ours": {"classes_changed": 0.0}, name: {"classes_changed": 1 / once}}


# -------------------------------------------------------------------------------------------------------- our own path
@pytest.mark.slow
def test_the_devices_programs_make_the_map():
    """What a GPU is measured with is the scene's map as ``predict`` makes it; the second time, too."""
    predictor, _, took = speed_cases.our_predictor(TINY, "float32", 6)
    assert took["compile_seconds"] > 0
    image = speed_cases.mirrored_scene(TINY.size)
    sink = walk.ArraySink(*image.shape[:2])
    walk.predict_scene(predictor, ArrayScene("scene", image), sink)
    assert len(np.unique(sink.arrays["classes"])) > 1
    whole = speed_device.device_scene(predictor, image)
    for _ in range(2):
        classes = np.concatenate([np.asarray(band)[:rows] for band, rows in whole()])
        np.testing.assert_array_equal(classes, sink.arrays["classes"])


def test_the_scene_is_mirrored():
    image = speed_cases.mirrored_scene(2448)
    assert image.shape == (2448, 2448, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(speed_cases.mirrored_scene(100), image[:100, :100])
    (rows,) = np.nonzero((image[1:] == image[:-1]).all(axis=(1, 2)))  # where it turns back
    assert len(rows) and np.array_equal(image[rows[0] + 1 :][:50], image[: rows[0] + 1][::-1][:50])


def test_noise_has_the_networks_shapes(key):
    import jax

    model = models.build("glcanet", 7, depth=10, width=8, fpn_channels=32)
    init = lambda key: models.init(model, key, 3)  # noqa: E731
    made, wanted = speed_cases.noise(init, key), jax.eval_shape(init, key)
    jax.tree.map(
        lambda got, like: np.testing.assert_equal((got.shape, got.dtype), (like.shape, like.dtype)), made, wanted
    )


# --------------------------------------------------------------------------------------------------------- the command
def test_the_command(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    out = tmp_path / "results" / "speed.json"
    arguments = "--cases branch --rounds 2 --sub-batches 6 --matmul-side 256 --contenders pytorch --out".split()
    done = run_command("experiments.speed", *ARGUMENTS, *arguments, out)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = speed.runs_of(out)
    assert result["command"].startswith("python -m experiments.speed --size=128")
    assert result["sizes"] == dataclasses.asdict(TINY)
    assert {"device", "cores", "jax", "python", "torch", "commit", "date"} <= result.keys()
    limit = result["matmul_gflop_per_second"]["float32"]
    rows = {(row["case"], row["contender"]): row for row in result["rows"]}
    assert [*rows] == [("branch", "ours"), ("branch", "pytorch")]
    for (case, name), row in rows.items():
        assert row["batch"] == 6 and row["dtype"] == "float32" and len(row["seconds"]) == 2
        for kind, ratio in (("seconds", "ratio_to_ours"), ("cpu_seconds", "cpu_ratio_to_ours")):
            ratios = [mine / ours for mine, ours in zip(row[kind], rows[case, "ours"][kind], strict=True)]
            assert row[ratio] == pytest.approx(np.median(ratios), abs=1e-3)
        assert row["host_peak_mb"] > 50 and row["host_peak_ratio_to_ours"] > 0
        assert row["gflop_per_second"] == pytest.approx(row["gflop"] / row["median_seconds"], rel=0.05)
        assert row["share_of_matmul"] == pytest.approx(row["gflop_per_second"] / limit, abs=1e-3)
        assert ("compile_seconds" in row) == (name != "pytorch")
        assert f"{case}: {name} is ready, 6 at once" in done.stdout
    assert rows["branch", "pytorch"]["classes_changed"] <= speed.SAME
    assert "GFLOP/s" in done.stdout.splitlines()[-len(rows) - 1]


def test_a_file_keeps_the_runs_of_other_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "run", lambda options: {"rows": [], "rounds": options.rounds})
    out = tmp_path / "speed.json"
    for given in ("--rounds 3", "--rounds 4", "--rounds 3"):
        monkeypatch.setattr(sys, "argv", ["speed", *given.split(), "--out", str(out)])
        speed.main()
    assert [run["rounds"] for run in speed.runs_of(out)] == [4, 3]
    for text in ("{}", "no JSON", '{"runs": [3]}'):
        out.write_text(text)
        with pytest.raises(UserError, match="holds no runs of this command; give another file"):
            speed.main()


def test_bad_options_are_told(monkeypatch):
    options = lambda **given: speed.Options(**dataclasses.asdict(TINY) | given)  # noqa: E731
    for given, words in (
        ({"rounds": 0}, "--rounds is 0; it must be at least 1"),
        ({"sub_batches": (6, 0)}, "--sub-batches"),
        ({"size": 64}, "--size is 64 px; it must be over that of patches, --view 64 px"),
    ):
        with pytest.raises(UserError, match=words):
            speed.run(options(**given))
    steps = options(cases=("step",))
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--contenders pytorch needs torch; pip install torch"):
        speed.contenders_of(dataclasses.replace(steps, contenders=("pytorch",)))
    assert speed.contenders_of(steps) == {"step": ["ours", "ours-bfloat16", "xla"]}
    with pytest.raises(
        UserError, match=r"--contenders has 'pytorsh' \(perhaps you meant 'pytorch'\); the cases step have"
    ):
        speed.contenders_of(dataclasses.replace(steps, contenders=("pytorsh",)))
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="GLNet's release cannot cut a scene of 257 px into patches of 64 px"):
        speed.contenders_of(options(size=257))
    assert speed.contenders_of(options(size=257, contenders=("onnxruntime",)))["scene"] == ["ours"]
    assert speed.contenders_of(dataclasses.replace(steps, dtype="bfloat16"))["step"][:2] == ["ours", "ours-bfloat16"]


@pytest.mark.parametrize(
    ("measure", "given", "sizes", "words"),
    [
        ("scenes_per_second", {}, {"view": 40}, "views.overlap is 50 px; it must be"),
        ("matmul_rate", {"side": 2, "dtype": "float33"}, {}, "TypeError: "),  # behind it JAX tells of its traceback
    ],
)
def test_a_workers_failure_is_told_in_one_line(measure, given, sizes, words):
    with pytest.raises(UserError) as told:
        worker.fresh(measure, dataclasses.replace(TINY, **sizes), **given)
    assert str(told.value).startswith(f"{measure} stopped: {words}") and "\n" not in str(told.value)


def test_the_death_of_a_waiting_worker_is_told_in_one_line(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    request = {"case": "forward", "contender": "pytorch", "batch": 1, "folder": str(tmp_path)}
    request["sizes"] = dataclasses.asdict(TINY)
    with worker.Worker("pytorch in case forward", request) as waiting:
        assert waiting.answer() == {"batch": 1}
        reply = waiting.turn()
        assert reply["seconds"] > 0 and reply["cpu_seconds"] >= 0
        os.kill(waiting._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="^pytorch in case forward stopped: killed by signal 9.*$"):
            waiting.turn()


def test_the_command_tells_what_is_wrong():
    assert_told(run_command("experiments.speed", "--size", "500"), "error: --size is 500 px; it must be over")


# -------------------------------------------------------------------------------------------------------------- on a GPU
def test_a_gpus_rows(monkeypatch):
    """One measure out of memory costs its own row only; the walk from JPEGs has the fastest batch."""

    def fresh(name, sizes=None, **given):
        if name == "matmul_rate":
            return 4e12
        if given["batch"] == 36:
            raise UserError("scenes_per_second stopped: out of memory")
        return {"scenes_per_second": float(given["batch"]), "gflop_per_second": 1e3, "memory/device_peak_mb": 1234.5}

    monkeypatch.setattr(speed, "fresh", fresh)
    monkeypatch.setattr(speed, "backend", lambda: "gpu")
    result = speed.run(speed.Options(dtype="bfloat16"))
    rows = [(row["case"], row["batch"], row.get("share_of_matmul")) for row in result["rows"]]
    assert rows == [
        *(("scenes_per_second", batch, 0.25) for batch in (6, 12, 18)),
        ("scenes_per_second", 36, None),
        ("decode_to_map", 18, 0.25),
        ("training", 6, 0.25),
    ]
    lines = speed.table(result["rows"]).splitlines()
    assert len({len(line) for line in lines}) == 1 and "1234" in lines[1] and "out of memory" in lines[4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "rate"),
    [
        ("decode_to_map", {"batch": 12}, "scenes_per_second"),
        ("scenes_per_second", {"batch": 12, "dtype": "bfloat16"}, "scenes_per_second"),
        ("training", {"batch": 4}, "pairs_per_second"),
        ("training", {"batch": 4, "remat": True}, "pairs_per_second"),
    ],
)
def test_measures_of_the_device(name, given, rate):
    row = worker.fresh(name, TINY, **given, repeats=2)
    assert row[rate] > 0 and row["gflop_per_second"] > 0 and row["memory/host_peak_mb"] > 0
