"""What devices are told: the precision of products, operations left out, the type that a network computes in."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest

from glcanet_jax import backend, runs
from glcanet_jax.config import Config, InitConfig, TrainConfig
from glcanet_jax.errors import UserError


def test_a_precision_holds_inside_alone():
    x = jnp.ones((4, 4))
    told = lambda: jax.jit(lambda x: x @ x).lower(x).as_text().count("HIGHEST")  # noqa: E731
    assert told() == 0
    with backend.computing("highest"):
        assert told() == 2
    with backend.computing("default"):
        assert told() == 0
    assert jax.config.jax_default_matmul_precision is None


def test_what_is_not_deterministic_is_left_out_on_gpus(monkeypatch):
    """XLA must know the word: one that it does not know ends the process."""
    assert backend.compiler_options(True) == backend.compiler_options(False) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.compiler_options(False) == {}
    options = backend.compiler_options(True)
    program = jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile(options)
    assert len(options) == 1 and program(jnp.ones(2)).sum() == 4
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile({"xla_gpu_no_such_word": True})


def test_a_command_that_is_deterministic_tells_xla(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_xnnpack=false")
    with backend.computing("default", deterministic=True):
        assert os.environ["XLA_FLAGS"] == "--xla_cpu_use_xnnpack=false --xla_gpu_exclude_nondeterministic_ops=true"


@pytest.mark.parametrize("dtype, computed", [(None, "bfloat16"), ("float32", "float32")])
def test_a_default_type_is_what_nobody_chose(dtype, computed):
    predictor, config, _ = runs.load_predictor("demo", dtype=dtype, default="bfloat16")
    assert config.model.dtype == computed and predictor.model.network.dtype == computed


def test_a_longer_run_is_told_how_to_go_on(tmp_path):
    short, long = (dataclasses.replace(Config(), out=str(tmp_path), train=TrainConfig(steps=n)) for n in (8, 12))
    runs.open_run(short)
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(UserError, match="train.steps: 12 here, 8 there.*--more-steps 4 to go on"):
        runs.open_run(long)
    with pytest.raises(UserError, match="go on with it$"):
        runs.open_run(dataclasses.replace(short, eval_tta=True))


def test_classes_of_no_weights_are_refused():
    with pytest.raises(UserError, match="--init.classes a=b needs --init"):
        runs.resolve(dataclasses.replace(Config(), init=InitConfig(classes="a=b")), None)


def test_the_place_that_was_looked_at_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="which is not at data/mbrsc; give"):
        runs.data_of(runs.find_weights("demo"))
