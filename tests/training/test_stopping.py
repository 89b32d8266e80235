"""Runs that are asked to stop save and go on to the same bits; what cannot be trained on is told before anything is compiled."""

import dataclasses
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file

from glcanet_jax import backend, cli, report, runs, weights
from glcanet_jax.config import Config, DataConfig
from glcanet_jax.errors import Stopped, UserError
from glcanet_jax.training import freezing, loop
from glcanet_jax.training.checkpoints import Checkpoints
from glcanet_jax.training.records import Log, Timer, room_told
from glcanet_jax.training.step import create_state
from glcanet_jax.training.stopping import listening, on_any_host
from tests.data.test_identity import CLASSES, write_scene, write_splits
from tests.training import once
from tests.training.test_resume import ROOT, Toy, configured

PLAIN = dict(schedule="joint", global_steps=None, steps=6, eval_every=3, checkpoint_every=4)


def toy(monkeypatch, out, **train):
    """A run of a network that compiles in a second, validated on the bundled scene's lower third."""
    monkeypatch.setattr(runs, "build_model", lambda config, classes: Toy(classes))
    once.share(monkeypatch)
    config = configured(out, **PLAIN | train)
    return dataclasses.replace(config, data=DataConfig("sample", val_split="test"), views=once.FEW)


def steps_of(out, kind):
    return [record["step"] for record in report.read_log(out / "log.jsonl") if record["kind"] == kind]


def same_weights(a, b):
    for name in ("last", "best"):
        ours, theirs = (load_file(out / f"{name}.safetensors") for out in (a, b))
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{name} {key}")


# ------------------------------------------------------------------------------------------------------ asked to stop
def test_stopped_between_steps_and_in_a_validation(monkeypatch, tmp_path, capsys):
    """By either signal; it goes on to the same bits, and validates what it had to leave."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    whole, cut = (toy(monkeypatch, tmp_path / name) for name in ("whole", "cut"))
    loop.train(whole)
    write, evaluate = Log.write, loop.evaluate

    def at_step_2(log, line):
        write(log, line)
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def in_validation(*args, **given):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **given)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match="stopped at step 2 of 6, which is saved; the same") as told,
    ):
        patch.setattr(Log, "write", at_step_2)
        loop.train(cut)
    assert told.value.code == 130 and steps_of(tmp_path / "cut", "train") == [1, 2]
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped at step 3 of 6") as told:
        patch.setattr(loop, "evaluate", in_validation)
        loop.train(cut)
    assert told.value.code == 143 and steps_of(tmp_path / "cut", "eval") == []
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    loop.train(cut)
    assert "going on from step 3" in capsys.readouterr().out
    assert steps_of(tmp_path / "cut", "eval") == [3, 6] and steps_of(tmp_path / "cut", "train") == [*range(1, 7)]
    same_weights(tmp_path / "whole", tmp_path / "cut")


def test_asked_at_the_last_step_it_is_done(monkeypatch, tmp_path):
    config = toy(monkeypatch, tmp_path / "run", steps=1, eval_every=9)
    monkeypatch.setattr(loop, "validate", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert loop.train(config) and (tmp_path / "run" / "last.safetensors").exists()


def test_in_another_thread_signals_stay_what_they_were():
    found = []
    handler = signal.getsignal(signal.SIGINT)

    def look():
        with listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [handler]


def test_what_is_ignored_stays_ignored():
    """A command in the background of a script must not hear the Ctrl-C of its terminal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_was_stopped_says_how_to_go_on(capsys):
    def command():
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            while stop.signal is None:
                time.sleep(0.001)
        raise stop.told(3, 9)

    with pytest.raises(SystemExit) as ended:
        cli.run(command)
    assert ended.value.code == 143
    told = capsys.readouterr().err
    assert told.endswith("stopped at step 3 of 9, which is saved; the same command goes on from there\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_compiled_code_at_once(number):
    """Which Python itself would hear of when that code is done: here in an hour."""
    code = """
        import hashlib
        from glcanet_jax import cli
        from glcanet_jax.training.stopping import listening
        def work():
            with listening():
                print("under way", flush=True)
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        cli.run(work)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "under way\n"
            time.sleep(0.3)  # until it is in the compiled code
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(number)
            assert process.wait(5) == 128 + number
            assert process.stderr.read() == "stopped\n"
        finally:
            process.kill()


def test_hosts_agree(monkeypatch):
    """Here three; what one of them wants all do, and only where they meet."""
    others = np.array([[False, False], [False, True]])
    gather = lambda own: np.concatenate([own[None], others])  # noqa: E731
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    assert on_any_host(True, False) == (True, False)  # one host asks nobody
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert on_any_host(True, False) == (True, True) and on_any_host(False, False) == (False, True)
    assert on_any_host(True, True, meeting=False) == (False, False)


# ------------------------------------------------------------------------------------------------------ checkpoints
def kept(out):
    return sorted(int(p.name) for p in (out / "checkpoints" / "last").iterdir() if p.name.isdigit())


def test_there_is_a_checkpoint_every_few_minutes(monkeypatch, tmp_path):
    """Whatever the steps say; here a minute is over after every step."""
    now = iter(range(0, 10**9, 61))
    monkeypatch.setattr(loop, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(now))}))
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda c, state, *rest: saved.append(int(state.step)) or save(c, state, *rest)
    )
    loop.train(toy(monkeypatch, tmp_path / "run", checkpoint_every=100, checkpoint_minutes=1.0))
    assert saved == [1, 2, 3, 4, 5, 6] and kept(tmp_path / "run") == [5, 6]


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_minutes_must_be_some(monkeypatch, tmp_path, minutes):
    with pytest.raises(UserError, match="checkpoint.minutes is .*above 0"):
        toy(monkeypatch, tmp_path / "run", checkpoint_minutes=minutes)


def state_at(step, seed=0, size=1500):
    values = {"w": jnp.array(np.random.default_rng(seed).standard_normal((size,)), jnp.float32)}
    state = create_state({"params": values, "batch_stats": {}}, optax.sgd(1e-3), jax.random.key(0))
    return state.replace(step=state.step + step)


def truncated(path):
    for file in [p for p in path.rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lost(path):
    shutil.rmtree(path / "state")


def garbage(path):
    for file in [p for p in path.rglob("*") if p.is_file()]:
        file.write_bytes(b"\x00\xff" * 40)


def zeroed(path):
    """An array's numbers alone: what describes them is there, and finds them too short."""
    max(path.rglob("state/**/d/*"), key=lambda p: p.stat().st_size).write_bytes(bytes(50))


@pytest.mark.parametrize("damage", [truncated, lost, garbage, zeroed])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    """It is told and moved aside, and its step can be saved again."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(3, 3), {"at": 3}, 0.5)
    checkpoints.save(state_at(5, 5), {"at": 5}, 0.5, unscored=True)
    checkpoints.close()
    damage(tmp_path / "last" / "5")
    checkpoints = Checkpoints(tmp_path)
    restored, saved = checkpoints.restore(state_at(0))
    told = capsys.readouterr().out
    assert "the checkpoint of step 5 cannot be read (" in told and told.endswith("): that of step 3 is taken\n")
    assert int(restored.step) == 3 and saved["data"] == {"at": 3} and not saved["unscored"]
    np.testing.assert_array_equal(restored.params["w"], state_at(3, 3).params["w"])
    assert (tmp_path / "damaged" / "5").is_dir() and checkpoints.last_step() == 3
    checkpoints.save(restored.replace(step=restored.step + 2), {"at": 5}, 0.5)
    checkpoints.close()
    assert Checkpoints(tmp_path).restore(state_at(0))[1]["data"] == {"at": 5}


def test_when_all_are_damaged_nothing_is_moved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 5):
        checkpoints.save(state_at(step), {}, None)
        garbage(tmp_path / "last" / str(step))
    checkpoints.close()
    with pytest.raises(UserError, match="at step 5 does not fit this configuration, or is damaged") as told:
        Checkpoints(tmp_path).restore(state_at(0))
    assert "\n" not in str(told.value) and sorted(p.name for p in (tmp_path / "last").iterdir()) == ["3", "5"]


def test_a_damaged_best_one_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for _ in range(2):  # a run that was killed comes to the same step again
        checkpoints.save_best(state_at(4), 0.5)
    garbage(tmp_path / "best" / "4")
    with pytest.raises(UserError, match="the best checkpoint, of step 4, cannot be read"):
        checkpoints.restore_best(state_at(0))


def test_what_a_kill_left_half_written_is_cleared(tmp_path):
    half = tmp_path / "last" / "9.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), {}, None)
    checkpoints.close()
    assert not half.exists()


def test_a_full_disk_ends_in_one_line_and_the_last_checkpoint_stays(tmp_path, capsys):
    """Here the system refuses files above a size. Nothing else is told, in no thread."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(2, 2, 10**6), {}, None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(
            UserError,
            match=r"the checkpoint of step 3 cannot be written to .*last \(File too large\); that of step 2 is whole",
        ) as told:
            checkpoints.save(state_at(3, 3, 10**6), {}, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(told.value) and capsys.readouterr().err == ""
    restored, _ = Checkpoints(tmp_path).restore(state_at(0, 0, 10**6))
    assert int(restored.step) == 2


def test_weights_on_a_full_disk_leave_those_that_were_there(tmp_path):
    path, limits = tmp_path / "last.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    meta = {"config": {}, "classes": {}, "normalisation": {}, "bands": 3}
    weights.save_weights(path, {"params": {"w": np.zeros(10, np.float32)}}, **meta)
    before = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(UserError, match="last.safetensors could not be written whole .*free space"):
            weights.save_weights(path, {"params": {"w": np.zeros(10**6, np.float32)}}, **meta)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_files_on_a_full_disk(tmp_path):
    with pytest.raises(UserError, match="cannot be written to .*No space left.*; make room"), room_told(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), room_told(tmp_path):  # our bug, perhaps
        raise PermissionError(errno.EPERM, "no")


# ------------------------------------------------------------------------------------------------------ the data
@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i, name in enumerate(("s0", "s1")):
        write_scene(root, name, i)
    write_splits(root, train=["s0"], val=["s1"], none=[])
    report.write_json(root / "classes.json", {"classes": CLASSES})
    return root


def blank(root, name):
    Image.fromarray(np.full((16, 20), 255, np.uint8)).save(root / "masks" / f"{name}.png")


@pytest.mark.parametrize(
    ("change", "data", "told"),
    [
        (lambda root: blank(root, "s1"), {}, "no pixel of split val is labelled"),
        (lambda root: blank(root, "s0"), {}, "no pixel of split train is labelled"),
        (lambda root: (root / "masks" / "s1.png").unlink(), {}, "scene s1 of split val has no labels; validation needs"),
        (lambda root: (root / "masks" / "s0.png").unlink(), {}, "scene s0 of split train has no labels; training needs"),
        (None, {"train_split": "none"}, "split none holds no scenes; training needs some"),
        (None, {"val_split": "none"}, "split none holds no scenes; validation needs some"),
        (None, {"val_split": "vla"}, "has no split 'vla' (perhaps you meant 'val')"),
        (None, {"train_split": "trian"}, "has no split 'trian' (perhaps you meant 'train')"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_told_before_anything_is_compiled(
    folder, monkeypatch, tmp_path, change, data, told
):
    if change is not None:
        change(folder)
    config = Config(data=DataConfig("folder", str(folder), **data), out=str(tmp_path / "run"))
    monkeypatch.setattr(runs, "build_model", None)
    with pytest.raises(UserError) as error:
        loop.train(config)
    assert told in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_weights_of_which_none_counts_are_told(folder, tmp_path):
    config = Config(data=DataConfig("folder", str(folder)), out=str(tmp_path / "run"))
    with pytest.raises(UserError, match="--loss.class-weights are all 0"):
        loop.prepare(dataclasses.replace(config, loss=dataclasses.replace(config.loss, class_weights=(0.0, 0.0, 0.0))))


def begun(folder, out, step=True):
    """A run of which a step is kept, or not yet."""
    config = Config(data=DataConfig("folder", str(folder)), out=str(out))
    dataset = runs.open_data(config.data)
    config = runs.resolve(config, dataset)
    runs.know_data(runs.open_run(config), config, dataset)
    if step:
        (out / "checkpoints" / "last" / "5").mkdir(parents=True, exist_ok=True)
    return config


def test_a_run_goes_on_with_its_own_data_alone(folder, tmp_path):
    """Or a copy of it, wherever it lies; one without a step begins anew with whatever is there."""
    out = tmp_path / "run"
    begun(folder, out, step=False)
    write_scene(folder, "s0", 9)
    begun(folder, out)
    begun(folder, out)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    begun(copy, out)
    before = (out / "data.json").read_bytes()
    write_scene(folder, "s0", 10)
    with pytest.raises(
        UserError, match="holds a run on other data: images/s0.png, masks/s0.png of train have changed; give"
    ) as told:
        begun(folder, out)
    assert "\n" not in str(told.value) and (out / "data.json").read_bytes() == before


def test_a_run_from_before_the_record_takes_what_is_there(folder, tmp_path):
    begun(folder, tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    begun(folder, tmp_path / "run")
    assert (tmp_path / "run" / "data.json").exists()


# ------------------------------------------------------------------------------------------------------ around it
def test_without_a_home_nothing_is_kept_between_runs(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(backend.Path, "home", homeless)
    assert backend.cache_folder("xla") is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert backend.cache_folder("xla") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert backend.cache_folder("xla") == tmp_path / "glcanet_jax" / "xla"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders there have no such rights")
def test_compiled_programs_lie_where_nobody_else_can_write(monkeypatch, tmp_path, capsys):
    """Who can write them can have code run. An open folder is closed; one that is another's, or holds what is, is not used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "glcanet_jax" / "xla"
    before = os.umask(0)
    try:
        assert backend.cache_folder("xla") == folder
    finally:
        os.umask(before)
    rights = lambda: [path.stat().st_mode & 0o777 for path in (folder, folder.parent)]  # noqa: E731
    assert rights() == [0o700, 0o700]
    (folder / "program").touch()
    folder.chmod(0o777)
    folder.parent.chmod(0o755)
    assert backend.cache_folder("xla") == folder and rights() == [0o700, 0o700]
    assert capsys.readouterr().out == ""
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert backend.cache_folder("xla") is None
    told = capsys.readouterr().out
    assert (
        told.startswith(f"compiled programs are not kept: others can write to {folder.parent}; remove it")
        and told.count("\n") == 1
    )
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder.chmod(0o777)
    real = os.scandir
    entry = type("Entry", (), {"stat": lambda self, **_: type("Found", (), {"st_uid": os.geteuid() + 1})()})
    monkeypatch.setattr(os, "scandir", lambda path: [*real(path), entry()])
    assert backend.cache_folder("xla") is None and str(folder) in capsys.readouterr().out


def test_a_place_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run cannot be made .*; give another --out"):
        runs.open_run(Config(out=str(tmp_path / "file" / "run")))


PARAMETERS = {"local": {"resnet": {"stem": 1, "stage1": {"a": 1}}, "lem": 1}, "fusion": {"head": 1}}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (
            "bakcbone",
            "--freeze bakcbone means no parameter (perhaps you meant 'backbone'); give backbone, all-but-heads, or a pattern as",
        ),
        ("local/resnet/stage", "means no parameter (perhaps you meant 'local/resnet/stage1')"),
        ("zzz", "--freeze zzz means no parameter; the network has backbone, fusion, local; give"),
    ],
)
def test_a_pattern_that_freezes_nothing_is_told_with_what_is_near(pattern, told):
    with pytest.raises(UserError) as error:
        freezing.frozen(PARAMETERS, (pattern,))
    assert told in str(error.value) and len(str(error.value)) < 200


def test_compiling_is_no_part_of_a_step(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timer = Timer()
    with timer.apart():
        now[0] += 100
    for _ in range(2):
        with timer:
            now[0] += 1
        now[0] += 3
        timer.step(8)
    assert timer.read() == {"seconds_per_step": 4.0, "images_per_second": 2.0, "data_wait": 0.25}
