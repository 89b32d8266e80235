"""The real commands, as a user types them: what they print, what they leave behind, how they fail."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import deepglobe
from glcanet_jax import cli, experiment, models
from glcanet_jax import config as configs
from glcanet_jax.data import DatasetMissing
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.measure import info
from tests.training.test_resume import Toy

ROOT = Path(__file__).parents[1]
SMALL = [
    "--views.context-size", "256", "--views.global-size", "64", "--views.patch-size", "64", "--views.overlap", "8",
    "--loader.batch-size", "2", "--loader.patches-per-context", "2", "--train.log-every", "1", "--train.no-tensorboard",
]  # fmt: skip
OF_GLCANET = ["--model.depth", "10", "--model.width", "8", "--model.fpn-channels", "16", "--model.fast-conv", "False"]


def environment():
    from tests.conftest import CACHE, QUICK

    return dict(os.environ) | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK,  # one device, as users have
        "XDG_CACHE_HOME": str(CACHE),
        "COLUMNS": "200",
    }


def run(*args, cwd=ROOT):
    command = [sys.executable, "-m", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=500)


def call(package, *args):
    """As :func:`run`, but in this process, which has all imported: for what the command says rather than for its process."""
    module = importlib.import_module(f"{package}.__main__" if package == "glcanet_jax" else package)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", [module.__file__, *map(str, args)])
        patch.setenv("COLUMNS", "200")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run(module.main)
    return subprocess.CompletedProcess(args, stopped.value.code, out.getvalue(), err.getvalue())


def assert_told(result, *parts):
    """One clear message, exit code 2, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr + result.stdout


def own_scenes(root, count=2):
    """A folder of small RGB scenes with masks of colours."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            ids = np.kron(rng.integers(0, 2, (5, 6)), np.ones((30, 30), int))
            colours = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)[ids]
            noise = rng.integers(0, 40, colours.shape, np.uint8)
            Image.fromarray(np.clip(colours // 2 + noise, 0, 255).astype(np.uint8)).save(
                root / split / "images" / f"s{i}.png"
            )
            Image.fromarray(colours).save(root / split / "masks" / f"s{i}.png")
    classes = [{"id": 0, "name": "roof", "rgb": "#ff0000"}, {"id": 1, "name": "lake", "rgb": "#0000ff"}]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))


@pytest.fixture(scope="module", params=["toy", pytest.param("glcanet", marks=pytest.mark.slow)])
def network(request):
    """One that compiles at once, in this process; GLCANet in a process of its own, as a user has it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "toy":
            patch.setitem(models.NETWORKS, "toy", Toy)
        yield request.param


@pytest.fixture(scope="module")
def command(network):
    return call if network == "toy" else run


@pytest.fixture(scope="module")
def options(network):
    return [*SMALL, "--model.network", network, *(OF_GLCANET if network == "glcanet" else [])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command, options):
    """Own scenes, trained on by command."""
    root = tmp_path_factory.mktemp("folder")
    own_scenes(root / "data")
    result = command(
        "glcanet_jax", "train", "--data.dataset", "folder", "--data.dir", root / "data", "--out", root / "run",
        "--train.steps", "4", "--overlays", "1", "--track", "csv", *options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (root / "told").write_text(result.stdout)
    return root


def test_train_writes_a_run(trained):
    run_folder = trained / "run"
    assert {"config.json", "log.jsonl", "checkpoints", "last.safetensors"} <= {p.name for p in run_folder.iterdir()}
    page = (run_folder / "report.html").read_text()
    assert {"curve.png", "eval-test"} <= {p.name for p in run_folder.iterdir()}
    scored = json.loads((run_folder / "eval-test" / "metrics.json").read_text())
    assert scored["drawn"] == ["s0"] and scored["worst"] and not (run_folder / "eval-test" / "overlay_s1.png").exists()
    assert page.count("data:image/webp") == 2 + len(scored["worst"]) and "Scores on test" in page and "roof" in page
    assert (run_folder / "track" / "train.csv").read_text().count("\n") == 5
    records = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    wanted = {
        "loss", "loss/fused", "loss/local", "loss/global", "loss/regulariser", "grad_norm/local", "param_norm/fusion",
        "update_norm/global", "lr/global", "seconds_per_step", "images_per_second", "data_wait", "memory/host_peak_mb",
    }  # fmt: skip
    assert wanted <= set(steps[0]) and all(np.isfinite(r["loss"]) for r in steps)


def test_whatever_takes_long_is_said_before(trained, network):
    told = [line.partition(" (last time")[0] for line in (trained / "told").read_text().splitlines()]
    said = [
        f"making the network ({network}): compiling what draws its first weights",
        f"training on 2 scenes for 4 steps; everything is written to {trained / 'run'}",
        "phase joint: compiling its first step",
        "scoring test: compiling the network",
    ]
    table = next(i for i, line in enumerate(told) if line.startswith("class "))
    assert [line for line in told[:table] if line in said] == said


def test_what_is_said_is_seen_at_once(monkeypatch):
    """Though it goes into a pipe, which Python fills in blocks."""
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="ascii"))
    seen = []

    def main():
        print("compiling ä")
        seen.append(pipe.getvalue())

    with pytest.raises(SystemExit):
        cli.run(main)
    assert seen == [b"compiling \\xe4\n"]


def test_eval_of_a_run(trained, command, tmp_path):
    result = command(
        "glcanet_jax", "eval", "--data.dataset", "folder", "--data.dir", trained / "data", "--split", "test",
        "--weights", trained / "run", "--out", tmp_path / "scores",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert np.sum(scores["confusion"]) == 2 * 150 * 180 and set(scores["scenes"]) == {"s0", "s1"}
    assert set(scores["protocols"]["all"]["classes"]) == {"roof", "lake"}
    assert "overall accuracy" in result.stdout and "roof" in result.stdout
    with Image.open(tmp_path / "scores" / "overlay_s0.png") as overlay:
        assert overlay.width > 300


def test_what_was_trained_maps_a_scene(trained, command, tmp_path):
    scene = trained / "data" / "test" / "images" / "s0.png"
    result = command(
        "glcanet_jax", "predict", scene, "--weights", trained / "run", "--out", tmp_path / "maps", "--overlay"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "maps" / "report.json").read_text())["scenes"][0]
    assert [row["name"] for row in report["classes"]] == ["roof", "lake"]
    assert sum(row["pixels"] for row in report["classes"]) == 150 * 180
    assert_told(call("glcanet_jax", "predict", "--weights", trained / "run", "--out", tmp_path), "no scene was given")


def test_the_same_folder_with_other_options_is_refused(trained, options):
    before = (trained / "run" / "last.safetensors").read_bytes()
    result = call(
        "glcanet_jax", "train", "--data.dataset", "folder", "--data.dir", trained / "data", "--out", trained / "run",
        "--train.steps", "5", *options,
    )  # fmt: skip
    assert_told(result, "another configuration", "train.steps: 5 here, 4 there")
    assert (trained / "run" / "last.safetensors").read_bytes() == before


def test_eval_tells_what_does_not_fit(trained, tmp_path):
    common = ("glcanet_jax", "eval", "--weights", trained / "run", "--out", tmp_path / "out")
    assert_told(call(*common, "--dataset", "sample"), "the weights know the classes roof, lake")
    assert_told(
        call(*common, "--dataset", "folder", "--data-dir", trained / "data", "--split", "tset"),
        "perhaps you meant 'test'",
    )
    assert not (tmp_path / "out").exists()
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    junk = ("glcanet_jax", "eval", "--out", tmp_path / "out", "--dataset", "sample", "--weights")
    assert_told(call(*junk, tmp_path / "junk.safetensors"), "junk.safetensors")
    assert_told(call(*junk, tmp_path / "none"), "there is no weights file or run at")


def test_check(tmp_path):
    own_scenes(tmp_path)
    good = run("glcanet_jax", "check", "--dataset", "folder", "--data-dir", tmp_path)
    assert good.returncode == 0, good.stderr
    (tmp_path / "train" / "images" / "s0.png").write_bytes(b"no image")
    Image.new("RGB", (5, 5), (255, 0, 0)).save(tmp_path / "train" / "masks" / "s1.png")
    Image.new("RGB", (180, 150), (1, 2, 3)).save(tmp_path / "test" / "masks" / "s0.png")
    (tmp_path / "test" / "masks" / "s1.png").unlink()
    bad = call("glcanet_jax", "check", "--dataset", "folder", "--data-dir", tmp_path)
    assert bad.returncode != 0 and "Traceback" not in bad.stderr
    told = bad.stdout + bad.stderr
    assert "s0.png cannot be read as a raster" in told
    assert "5 x 5 pixels, its image 150 x 180" in told
    assert "(1, 2, 3) on 27000 pixels from row 0 column 0" in told
    assert "s1" in told and "mask" in told


def test_info():
    small = "--model.depth", "10", "--model.width", "8", "--model.fpn-channels", "16"
    result = call("glcanet_jax", "info", "--model.network", "glcanet", *small, "--scene", "2448x2448", "--json")
    told = json.loads(result.stdout)
    assert told["patches"] == 36 and told["contexts"] == 1
    assert told["parameters"]["total"] == sum(told["parameters"][k] for k in ("global", "local", "fusion"))
    assert told["gflop"]["scene"] == pytest.approx(told["gflop"]["context"] + 36 * told["gflop"]["patch"], rel=1e-3)
    assert "parameters total" in call("glcanet_jax", "info", "--model.network", "unet", "--model.width", "4").stdout
    assert_told(call("glcanet_jax", "info", "--scene", "big"), "it must be HEIGHTxWIDTH")
    assert_told(call("glcanet_jax", "info", "--model.network", "glcanett"), "perhaps you meant 'glcanet'")


def test_a_missing_dataset_is_explained(tmp_path):
    for name in ("deepglobe", "mbrsc", "folder"):
        result = call("glcanet_jax", "check", "--dataset", name, "--data-dir", tmp_path / "none")
        assert_told(
            result, f"looked at: {tmp_path / 'none'}", "found:", "expected:", "get it:", "experiments.deepglobe sample"
        )


def asked_of_deepglobe(monkeypatch, cwd, *argv):
    """What ``experiments.deepglobe`` hands to the experiment, in a folder without data."""
    handed = []
    monkeypatch.setattr(experiment, "run", lambda config, splits: handed.append((config, *splits)))
    monkeypatch.setattr(sys, "argv", ["deepglobe", *argv])
    monkeypatch.chdir(cwd)
    deepglobe.main()
    return handed[0]


def test_deepglobe_without_data_goes_on_with_the_sample(monkeypatch, tmp_path, capsys):
    """It says what is missing; whatever else was asked for holds for the sample, too."""
    assert asked_of_deepglobe(monkeypatch, tmp_path) == (deepglobe.SAMPLE, "test")
    told = capsys.readouterr().out
    for part in (
        "deepglobe was not found",
        "looked at: data/deepglobe",
        "_sat.jpg",
        "register at",
        "running the bundled sample",
    ):
        assert part in told
    config, _ = asked_of_deepglobe(monkeypatch, tmp_path, "tiny", "--out", "mine", "--train.steps", "3")
    assert (config.data.dataset, config.out, config.train.steps) == ("sample", "mine", 3)


@pytest.mark.parametrize(
    "asked", [("--data.dir", "none"), ("--data-dir=none",), ("--data.tfds_dir", "none"), ("--dataset", "folder")]
)
def test_data_that_were_asked_for_and_are_not_there_end_the_command(monkeypatch, tmp_path, asked):
    """Nothing else is trained on in their place."""
    with pytest.raises(DatasetMissing):
        asked_of_deepglobe(monkeypatch, tmp_path, "tiny", *asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "command"), [("deepglobe", run), ("mbrsc", call), ("vaihingen", call), ("potsdam", call)]
)
def test_an_experiment_without_its_data_exits_with_2(tmp_path, name, command):
    result = command(f"experiments.{name}", "tiny", "--data.dir", tmp_path / "none", "--out", tmp_path / "run")
    assert_told(result, "was not found", str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_is_told():
    result = call("experiments.mbrsc", "tiny", "--train.stepz", "3")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--train.steps" in result.stderr  # perhaps you meant


def test_options_that_do_not_go_together_are_told(tmp_path):
    common = ("experiments.mbrsc", "sample", "--out", tmp_path / "run")
    assert_told(call(*common, "--train.schedule", "staged", "--model.share-backbone", "True"), "do not go together")
    assert_told(call(*common, "--train.accumulation", "3"), "it must divide the 4 contexts")
    assert_told(call(*common, "--model.depth", "51"), "it must be one of 10, 18, 34, 50, 101")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------- other networks
def test_a_preset_takes_another_network_and_its_options():
    """``--model.network`` changes what options there are; those that both networks have stay the preset's."""
    argv = ["tiny", "--model.network", "unet", "--model.padding", "same", "--train.steps", "3"]
    name, config = cli.choose_preset(deepglobe.PRESETS, "paper", "experiments.deepglobe", argv)
    assert name == "tiny" and config.train.steps == 3
    assert (config.model.network, config.model.padding, config.model.width) == ("unet", "same", 8)
    _, same = cli.choose_preset(deepglobe.PRESETS, "paper", "experiments.deepglobe", ["tiny", "--model.mask=window"])
    assert (same.model.network, same.model.mask) == ("glcanet", "window")
    with pytest.raises(UserError, match="perhaps you meant 'unet'"):
        cli.choose_preset(deepglobe.PRESETS, "paper", "experiments.deepglobe", ["tiny", "--model.network=u-net"])


def test_an_option_of_another_network_is_refused():
    argv = ["tiny", "--model.network", "unet", "--model.mask", "window"]
    told = r"unet has no option --model.mask \(it has view, width, .*\); `python -m experiments.deepglobe --model.network unet --help`"
    with pytest.raises(UserError, match=told):
        cli.choose_preset(deepglobe.PRESETS, "paper", "experiments.deepglobe", argv)


@pytest.mark.slow
def test_info_knows_other_networks():
    """Of one view, and of two passes: each patch is counted once, the context twice."""
    for name, options in (("unet", {}), ("glnet", {"depth": 10, "mutual": True})):
        model, views = configs.model_config(name, **options), Views(context_size=None)
        args = info.Info(model=model, views=views, scene="600x500", json=True)
        told = json.loads(info.report(args))
        assert told["patches"] == 2 and told["parameters"]["total"] > 1e6
        assert told["gflop"]["scene"] == pytest.approx(told["gflop"]["context"] + 2 * told["gflop"]["patch"], rel=1e-3)


@pytest.mark.parametrize(("name", "ended"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ctrl_c_and_sigterm_are_not_lost_in_a_finaliser(name, ended):
    """Python ignores what is raised there: the command would go on as if nobody had asked it to stop."""
    code = f"""
import os, signal, time
from glcanet_jax import cli

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

def main():
    Finalised()
    time.sleep(30)

cli.run(main)
"""
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (ended, "stopped\n") and time.monotonic() - began < 25


@pytest.mark.parametrize(("name", "ended"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_what_is_asked_while_a_module_is_imported_ends_at_once(tmp_path, name, ended):
    """An extension that is being loaded may swallow what is raised, and the command would go on, or die of it."""
    (tmp_path / "swallows.py").write_text(f"""
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000):
        pass
except BaseException:
    pass
""")
    code = f"import sys; from glcanet_jax import cli; sys.path.append({str(tmp_path)!r}); cli.run(lambda: __import__('swallows'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (ended, "stopped\n")


def test_output_that_nobody_reads_ends_a_command_in_a_line():
    code = """
from glcanet_jax import cli

def main():
    for i in range(100_000):
        print(i)

cli.run(main)
"""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == "stopped: nobody reads what is printed\n" and process.wait(60) == 141


def test_a_sigterm_that_is_ignored_or_asked_for_by_others_stays_theirs():
    code = """
import os, signal, sys
from glcanet_jax import cli

def main():
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", file=sys.stderr)

for handler in (signal.SIG_IGN, lambda number, frame: None):
    signal.signal(signal.SIGTERM, handler)
    try:
        cli.run(main)
    except SystemExit as ended:
        assert ended.code == 0 and signal.getsignal(signal.SIGTERM) is handler
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "goes on\n" * 2), result.stderr


def test_a_thread_that_hangs_is_not_waited_for():
    """What is registered for the end would wait for it; the code and what was said are as ever."""
    code = """
import atexit, threading
from glcanet_jax import cli
from glcanet_jax.errors import UserError

def main():
    atexit.register(threading.Event().wait, 50)
    print("begun", end="")
    cli.hanging.set()
    raise UserError("it is lost")

cli.run(main)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=40)
    assert (result.returncode, result.stdout, result.stderr) == (2, "begun", "error: it is lost\n")


@pytest.mark.parametrize("letter", ["\n", "\r", "\x1b", "\x00", "\u2028", "\x9b"])
def test_a_message_is_one_line_whatever_a_file_is_called(letter):
    told = str(UserError(f"a{letter}b.tif cannot be opened"))
    assert len(told.splitlines()) == 1 and letter not in told and told.startswith("a\\")
    assert str(UserError("ä🛰 C:\\new")) == "ä🛰 C:\\new"
