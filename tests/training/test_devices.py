"""A batch, or each of its parts, shared by several devices; and a run that goes on where there are others."""

import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from glcanet_jax import cli, report, runs
from glcanet_jax.config import DataConfig
from glcanet_jax.errors import UserError
from glcanet_jax.training import loop, sources
from glcanet_jax.training import step as training
from tests.training.test_resume import ROOT, Toy, environment
from tests.training.test_resume import configured as whole_run
from tests.training.test_step import close, configured, copy, make_batch, start


def steps_on(count, parts, batches):
    """Variables and metrics after steps on some devices, and what one of them computes a step, in FLOP."""
    config = configured({"accumulation": parts})
    model, _, spans, state = start(config, network="toy")
    roots = {root: root for root in state.params}
    tx = optax.multi_transform({root: optax.sgd(0.1) for root in roots}, roots)  # not Adam's signs of rounding errors
    state = training.create_state(state.variables, tx, jax.random.key(1))
    mesh = loop.make_mesh(8, count, parts)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    placed = [sources.place_batch(batch, mesh) for batch in batches]
    compiled = training.make_train_step(model, tx, config, 255.0, spans[0]).lower(state, placed[0]).compile()
    for batch in placed:
        state, metrics = compiled(state, batch)
    return copy(state.variables), copy(metrics), compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("parts", [1, 2])
def test_devices_share_a_batch_and_each_part_of_it(parts):
    """The same step, of which each of four devices does a quarter."""
    batches = [make_batch(b=8, n=1, seed=seed) for seed in range(2)]
    one, alone, work = steps_on(1, parts, batches)
    four, spread, share = steps_on(4, parts, batches)
    for name, value in alone.items():
        np.testing.assert_allclose(spread[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    close(one["params"], four["params"])
    close(one["batch_stats"], four["batch_stats"])
    assert share < 0.4 * work


def test_parts_that_devices_do_not_divide():
    assert loop.make_mesh(8, None, 4).size == 2
    with pytest.raises(UserError, match="train.devices is 4; there are 4, and 2 contexts of each of a batch's 4 parts"):
        loop.make_mesh(8, 4, 4)


def validated(out):
    config = whole_run(out, schedule="joint", global_steps=None, steps=6, checkpoint_every=2, eval_every=2)
    return dataclasses.replace(config, data=DataConfig("sample", val_split="test"))


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, monkeypatch):
    """Begun with four, ended with one: the same weights but for rounding, and the best ones are handed out, too."""
    monkeypatch.setattr(runs, "build_model", lambda config, classes: Toy(classes, "group"))
    out = loop.train(validated(tmp_path / "run"))
    before = load_file(out / "last.safetensors")
    losses = [r["loss"] for r in report.read_log(out / "log.jsonl") if r["kind"] == "train"]
    shutil.rmtree(out / "checkpoints" / "last" / "6")
    for name in ("last.safetensors", "best.safetensors"):
        (out / name).unlink()
    done = subprocess.run(
        [sys.executable, __file__, str(out)], cwd=ROOT, env=environment(os.environ["JAX_COMPILATION_CACHE_DIR"]),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "going on from step 4" in done.stdout, done.stderr
    after = load_file(out / "last.safetensors")
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    again = [r["loss"] for r in report.read_log(out / "log.jsonl") if r["kind"] == "train"]
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    assert (out / "best.safetensors").exists()


if __name__ == "__main__":  # on the one device that there is then
    runs.build_model = lambda config, classes: Toy(classes, "group")
    cli.run(lambda: (loop.train(validated(sys.argv[1])), 0)[1])
