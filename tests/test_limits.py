"""Ranges beside fields hold for command lines and for what is made in Python alike."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

from glcanet_jax import __main__ as main
from glcanet_jax import cli, config, models
from glcanet_jax.config import Config, LossConfig, NormalisationConfig, OptimiserConfig, TrainConfig
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.limits import Range, check_fields
from glcanet_jax.maps.inputs import parse_shard
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.measure import info
from glcanet_jax.profiling import parse_bytes


@pytest.mark.parametrize(
    ("span", "words", "inside", "outside"),
    [
        (Range(), "", (-1e300, 0), (math.inf, -math.inf, math.nan)),
        (Range(0), "of at least 0", (0, 5), (-1e-9, math.nan, math.inf)),
        (Range(0, open="low"), "above 0", (1e-9,), (0, math.inf)),
        (Range(1, 10**9), "from 1 to 1000000000", (1, 10**9), (0, 10**9 + 1)),
        (Range(0, 1, open="high"), "of at least 0 and under 1", (0, 0.999), (1, -0.1)),
        (Range(0, 100, open="low"), "above 0 and at most 100", (100,), (0, 101)),
        (Range(high=1), "at most 1", (1, -5), (2, -math.inf)),
    ],
)
def test_a_range_says_what_it_holds(span, words, inside, outside):
    assert str(span) == words
    assert all(v in span for v in inside) and not any(v in span for v in outside)


@dataclass(frozen=True)
class Made:
    count: Annotated[int | None, Range(1, 9)] = None
    shares: Annotated[tuple[float, ...], Range(0, 1)] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    plain: float = 0.0
    kind: Literal["x", "y"] = "x"
    flag: bool = False
    text: str = ""


@pytest.mark.parametrize(
    "good", [{}, {"count": 9}, {"count": np.int64(3)}, {"shares": (0, 1, 0.5)}, {"plain": 3}, {"plain": np.float32(2)}]
)
def test_good_fields_pass(good):
    check_fields(Made(**good), "made.")


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"count": 0}, "made.count is 0; it must be a whole number from 1 to 9 or None"),
        ({"count": 2.0}, "made.count is 2.0"),
        ({"count": "2"}, "made.count is '2'"),
        ({"count": True}, "made.count is True"),
        ({"shares": (0.5, 2)}, "made.shares is (0.5, 2); it must be numbers from 0 to 1"),
        ({"shares": (math.nan,)}, "made.shares is (nan,)"),
        ({"shares": None}, "made.shares is None; it must be a tuple of numbers"),
        ({"pair": (1.0,)}, "made.pair is (1.0,); it must be 2 numbers"),
        ({"plain": math.inf}, "made.plain is inf; it must be a number"),
        ({"plain": None}, "made.plain is None; it must be a number"),
        ({"kind": "z"}, "made.kind is 'z'; it must be one of x, y"),
        ({"flag": 1}, "made.flag is 1; it must be True or False"),
    ],
)
def test_bad_fields_are_told(bad, told):
    with pytest.raises(UserError) as error:
        check_fields(Made(**bad), "made.")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_all_bad_fields_are_told_at_once():
    with pytest.raises(UserError, match="made.count is 0; .*; made.flag is 'no'"):
        check_fields(Made(count=0, flag="no"), "made.")


# ------------------------------------------------------------------------------------------------------- configurations
@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (TrainConfig, {"steps": 0}),
        (TrainConfig, {"steps": -5}),
        (TrainConfig, {"epochs": 0}),
        (TrainConfig, {"global_steps": -1}),
        (TrainConfig, {"accumulation": 0}),
        (TrainConfig, {"ema": 1.0}),
        (TrainConfig, {"colour_jitter": math.nan}),
        (TrainConfig, {"devices": 0}),
        (TrainConfig, {"seed": 2**40}),
        (TrainConfig, {"log_every": 0}),
        (TrainConfig, {"eval_every": 0}),
        (TrainConfig, {"checkpoint_every": -1}),
        (OptimiserConfig, {"global_rate": math.nan}),
        (OptimiserConfig, {"local_rate": -1e-3}),
        (OptimiserConfig, {"fusion_rate": math.inf}),
        (OptimiserConfig, {"b1": 1.0}),
        (OptimiserConfig, {"clip": 0.0}),
        (OptimiserConfig, {"warmup_steps": -1}),
        (LossConfig, {"gamma": -1.0}),
        (LossConfig, {"smoothing": 1.0}),
        (LossConfig, {"class_weights": (1.0, -1.0)}),
        (NormalisationConfig, {"std": (0.0,)}),
        (NormalisationConfig, {"mean": (math.inf,)}),
        (NormalisationConfig, {"scale": -255.0}),
        (LoaderConfig, {"threads": 10**9}),
        (LoaderConfig, {"prefetch": 0}),
        (LoaderConfig, {"seed": -1}),
        (Views, {"overlap": 63, "patch_size": 64}),
        (Views, {"overlap": -1}),
        (Views, {"context_size": 0}),
        (Views, {"patch_size": 10**12}),
        (Views, {"global_size": -3}),
        (Views, {"scene_size": 0}),
        (Config, {"eval_batch": 0}),
        (MapOptions, {"scale": math.inf}),
        (MapOptions, {"min_area": math.nan}),
        (MapOptions, {"min_area": -1.0}),
        (MapOptions, {"batch": 10**20}),
        (MapOptions, {"context_size": -5}),
        (MapOptions, {"overlap": 10**9}),
        (info.Info, {"bands": 0}),
        (info.Info, {"classes": -1}),
    ],
)
def test_what_is_made_in_python_has_the_same_ranges(kind, bad):
    with pytest.raises(UserError) as error:
        kind(**bad)
    name = next(iter(bad))
    assert {name, name.replace("_", "-")} & set(str(error.value).replace(".", " ").replace("--", "").split())
    assert "\n" not in str(error.value)


def test_the_largest_overlap_leaves_a_step_of_an_eighth():
    assert Views(patch_size=64, overlap=56, context_size=64).overlap == 56
    with pytest.raises(UserError, match="overlap is 57 px; it must be at most 56 px, as a patch has 64 px a side"):
        Views(patch_size=64, overlap=57, context_size=64)


@pytest.mark.parametrize("network", models.NETWORKS)
def test_options_of_networks_have_ranges(network):
    assert config.model_config(network).network == network
    with pytest.raises(UserError, match="model.width is 0; it must be a whole number from 1 to 4096"):
        config.model_config(network, width=0)


# ------------------------------------------------------------------------------------------------------- command lines
PREDICT = "a.tif --weights demo --out o"


@pytest.mark.parametrize(
    ("kind", "line", "told"),
    [
        (main.Predict, f"{PREDICT} --scale inf", "--scale is 'inf'; it must be a number above 0"),
        (main.Predict, f"{PREDICT} --scale nan", "--scale is 'nan'"),
        (main.Predict, f"{PREDICT} --min-area nan", "--min-area is 'nan'; it must be a number of at least 0"),
        (main.Predict, f"{PREDICT} --min-area -1", "--min-area is '-1'"),
        (main.Predict, f"{PREDICT} --batch {10**20}", "--batch is '100000000000000000000'"),
        (main.Predict, f"{PREDICT} --batch 0", "--batch is '0'; it must be a whole number from 1 to 4096"),
        (main.Predict, f"{PREDICT} --context-size 0", "--context-size is '0'"),
        (main.Eval, "--dataset sample --weights demo --out o --batch -1", "--batch is '-1'"),
        (Config, "--optimiser.local-rate nan", "--optimiser.local-rate is 'nan'; it must be a number of at least 0"),
        (Config, "--optimiser.local-rate -1e-3", "--optimiser.local-rate is '-1e-3'"),
        (Config, "--train.steps 0", "--train.steps is '0'; it must be a whole number from 1 to 1000000000"),
        (Config, "--train.steps -3", "--train.steps is '-3'"),
        (Config, "--loader.threads 1000000000", "--loader.threads is '1000000000'"),
        (Config, "--loader.seed -1", "--loader.seed is '-1'"),
        (Config, "--loss.class-weights 1 inf", "--loss.class-weights is 'inf'"),
        (Config, "--model.width 1000000000000", "--model.width is '1000000000000'"),
        (Config, "--views.patch-size 64 --views.overlap 63", "overlap is 63 px; it must be at most 56 px"),
        (Config, "--views.context-size 100", "context_size is 100 px; it must be at least the patch size"),
        (info.Info, "--bands 0", "--bands is '0'"),
    ],
)
def test_options_out_of_range_are_told(kind, line, told):
    default = [] if kind in (main.Predict, main.Eval) else [kind()]
    with pytest.raises(UserError) as error:
        cli.parse(kind, line.split(), "glcanet it", "Does it.", *default)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        *((parse_bands, text) for text in ("0", "-1", "1,,2", "", "1.5", "red", "1,0", "9" * 40, "\u0663")),
        *((parse_shard, text) for text in ("0/2", "3/2", "1/0", "1", "", "a/b", "-1/2", "1/" + "9" * 5000)),
        *((parse_bytes, text) for text in ("4", "0GB", "-1GB", "1023kB", "9" * 400, "inf", "GB", "1e9", "99999999TB")),
        *((lambda text: info.report(info.Info(scene=text)), text) for text in ("0x5", "5x", "axb", "1" * 5000 + "x1")),
    ],
)  # fmt: skip
def test_words_of_options_are_looked_at(call, text):
    with pytest.raises(UserError) as error:
        call(text)
    assert "it must be" in str(error.value) or "less than the least, 1 MB" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
