"""Memory of programs on a GPU that is not there, and what the network may take of one."""

import dataclasses
import functools
from pathlib import Path

import pytest

from glcanet_jax import config as configs
from glcanet_jax import models
from glcanet_jax.data import open_dataset
from glcanet_jax.data.loader import LoaderConfig, TrainLoader
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.measure import aot, buffers, info

compiler = pytest.mark.skipif(not aot.available(), reason="XLA's CUDA compiler is not installed (requirements-aot.txt)")
SMALL = configs.Config(model=configs.model_config("unet", width=8, padding="same"), views=Views(400, 200, 200, 20))
MB, GB = 2**20, 2**30


@compiler
def test_memory_is_what_must_be_there_and_grows_with_the_batch():
    """Weights, the strip and what a batch holds; twice the patches, more temporaries and the same weights."""
    one, four = (aot.predict_memory(SMALL, 5, 3, batch=batch, context=(400, 400)) for batch in (1, 4))
    assert set(one) == {"encode", "look"}
    weights = 4 * info.parameters(models.build("unet", 5, width=8, padding="same"))["total"]
    assert one["look"]["arguments"] >= weights
    strip, context, patch = 4 * 5 * 200 * 400, 3 * 400 * 400, 3 * 200 * 200
    assert one["look"]["beside"] >= strip + context + patch
    assert one["look"]["peak"] > one["look"]["arguments"]
    first_map = 4 * 8 * 200 * 200  # of one patch, and there are two at a time at least
    assert one["look"]["temporaries"] > 2 * first_map
    assert four["look"]["temporaries"] > 2 * one["look"]["temporaries"]
    assert one["encode"]["unread"] >= weights  # the network looks at patches alone, and its weights lie on the device


@compiler
def test_the_second_pass_is_counted():
    model = configs.model_config("glnet", depth=10, width=8, fpn_channels=16, mutual=True)
    config = dataclasses.replace(SMALL, model=model)
    memory = aot.predict_memory(config, 5, 3, batch=1, context=(400, 400))
    assert set(memory) == {"encode", "collect", "encode_again", "look_again"}
    assert all(sizes["peak"] > 0 for sizes in memory.values())


@compiler
def test_a_training_step_is_told_by_what_it_is_made_of():
    """State once, for it is donated; the buffers come from this package's lines and do not exceed the peak."""
    config = dataclasses.replace(SMALL, loader=LoaderConfig(batch_size=2))
    (step,) = aot.train_memory(config, 5, 3, buffers=400).values()
    weights = 4 * info.parameters(models.build("unet", 5, width=8, padding="same"))["total"]
    images = 2 * (3 + 1) * 200 * 200  # and labels of the patches
    assert 0 < step["arguments"] - 3 * weights - images < 1000  # counts and places
    assert images <= step["unread"] < images + 1000  # those of the contexts, at which U-Net does not look
    assert step["outputs"] < 0.01 * weights
    found = [buffers.Buffer(**buffer) for buffer in step["buffers"]]
    assert [b.bytes for b in found] == sorted((b.bytes for b in found), reverse=True)
    assert sum(b.bytes for b in found if b.part not in (buffers.GAPS, "constants")) <= step["peak"]
    made = [b for b in found if b.source and b.bytes > MB]
    assert len(made) > 5 and all(b.source.startswith("glcanet_jax/") and b.op and b.shape for b in made)
    parts = step["parts"]
    assert parts["optimiser"] == pytest.approx(2 * weights, rel=0.01)
    assert parts["weights"] == pytest.approx(weights, rel=0.05)
    assert any(part.startswith("local/") for part in parts) and "gradients" in parts
    assert sum(parts.values()) == pytest.approx(step["total"], rel=0.01)


@compiler
def test_a_batch_in_parts_takes_less():
    whole = dataclasses.replace(SMALL, loader=LoaderConfig(batch_size=4))
    parted = dataclasses.replace(whole, train=configs.TrainConfig(accumulation=4))
    whole, parted = (aot.train_memory(config, 5, 3)["joint"]["temporaries"] for config in (whole, parted))
    assert parted < 0.6 * whole


@compiler
@pytest.mark.slow
def test_each_phase_is_told_and_recomputing_takes_less():
    model = configs.model_config("glnet", depth=18, width=16, fpn_channels=16)
    train = configs.TrainConfig(schedule="staged")
    plain = dataclasses.replace(SMALL, model=model, loader=LoaderConfig(batch_size=4), train=train)
    recomputed = dataclasses.replace(plain, model=dataclasses.replace(model, remat=True))
    plain, recomputed = (aot.train_memory(config, 5, 3) for config in (plain, recomputed))
    assert set(plain) == set(recomputed) == {"global", "rest"}
    assert all(recomputed[phase]["temporaries"] < 0.9 * sizes["temporaries"] for phase, sizes in plain.items())


# ------------------------------------------------------------------------------------------------------------- budgets
# of the default network, 7 classes, 500-px views of a 2448-px context: a tenth more than what was measured last, or the
# targets, where those are less
@functools.cache
def predicted(dtype: str, batch: int, side: int = 2448) -> dict:
    config = configs.Config(model=configs.model_config(dtype=dtype))
    return aot.predict_memory(config, 7, 3, batch=batch, context=(side, side))


def trained(dtype: str, remat: bool) -> dict:
    config = configs.Config(model=configs.model_config(dtype=dtype, remat=remat), loader=LoaderConfig(batch_size=6))
    return aot.train_memory(config, 7, 3)


@compiler
@pytest.mark.parametrize(
    ("dtype", "batch", "budget"),
    [("float32", 1, 381), ("bfloat16", 1, 214), ("float32", 6, 671), ("bfloat16", 6, 359)],
)
def test_prediction_stays_within_its_budget(dtype, batch, budget):
    """MB on the device, all weights included, those that one program does not read too."""
    assert max(program["total"] for program in predicted(dtype, batch).values()) <= budget * MB


@compiler
def test_the_size_of_the_scene_costs_nothing():
    assert predicted("float32", 1, 30_000) == predicted("float32", 1)


@compiler
@pytest.mark.parametrize(("dtype", "remat", "budget"), [("float32", False, 8.82), ("bfloat16", True, 3.0)])
def test_training_six_pairs_stays_within_its_budget(dtype, remat, budget):
    """GB on the device."""
    assert trained(dtype, remat)["joint"]["total"] <= budget * GB


# ---------------------------------------------------------------------------------------------------- without a compiler
def test_a_batch_is_as_the_loader_makes_it():
    loader = LoaderConfig(batch_size=2, patches_per_context=3, threads=1)
    config = configs.Config(views=Views(256, 64, 64, 8), loader=loader)
    batch = next(iter(TrainLoader(open_dataset("sample").scenes("train"), config.views, loader, 6)))
    shapes = aot.batch_shapes(config, 3)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {k: (x.shape, x.dtype) for k, x in shapes.items()}


def test_another_card_is_the_same_gpu_with_another_memory():
    text = aot.describe("h100", 24 * GB)
    assert f"device_memory_size: {24 * GB}" in text
    assert text.replace(str(24 * GB), "84942979072") == aot.describe("h100")
    with pytest.raises(UserError, match="the memory of a GPU is 0 bytes; give a positive number"):
        aot.describe("h100", 0)


@pytest.mark.parametrize("ask", [aot.predict_memory, aot.train_memory])
def test_an_unknown_gpu_is_told(ask, monkeypatch):
    monkeypatch.setattr(aot, "available", lambda: True)
    more = {"batch": 1, "context": (400, 400)} if ask is aot.predict_memory else {}
    with pytest.raises(UserError, match="no GPU is described as 'a100'; there are h100, h200"):
        ask(SMALL, 5, 3, target="a100", **more)


def test_a_batch_that_does_not_divide_is_told():
    config = dataclasses.replace(SMALL, train=configs.TrainConfig(accumulation=4))
    with pytest.raises(UserError, match="train.accumulation is 4; it must divide the 6 contexts"):
        aot.train_memory(config, 5, 3)


def test_without_the_compiler_it_is_told(monkeypatch):
    monkeypatch.setattr(aot, "available", lambda: False)
    with pytest.raises(UserError, match="pip install jax-cuda13-plugin=="):
        aot.predict_memory(SMALL, 5, 3, batch=1, context=(400, 400))


def test_the_error_is_what_is_told_of_a_traceback():
    log = (
        "Traceback ...\n  File\njax.errors.SomeError: too much\n--------\nFor simplicity, JAX has removed its frames.\n"
    )
    assert aot.reason(log) == "jax.errors.SomeError: too much"
    assert aot.reason("killed") == "killed"
    assert aot.reason("") == "no reason given" and aot.reason("", -9) == "no reason given, exit status -9"


# -------------------------------------------------------------------------------------------- what the compiler writes down
MODULE = f"""HloModule jit_step, is_scheduled=true

FileNames
1 "{buffers.PACKAGE}/training/step.py"
2 "{buffers.PACKAGE}/models/layers/fpn.py"
3 "/lib/site-packages/flax/linen/linear.py"

FunctionNames
1 "step"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=47 end_line=47 column=1 end_column=2}}
3 {{file_name_id=3 function_name_id=1 line=90 end_line=90 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=3}}

%inside (p: f32[100]) -> (f32[100], f32[100], s8[64]) {{
  %p = f32[100] parameter(0)
  %joined = f32[100] negate(%p), metadata={{op_name="jit(step)/jvp(Net)/Net.fuse/smoothing2/neg" stack_frame_id=3}}
  ROOT %both = (f32[100], f32[100], /*index=2*/s8[64]) tuple(%p, %joined, /*index=2*/%p)
}}

ENTRY %main (w: f32[10], x: f32[100]) -> f32[10] {{
  %w = f32[10] parameter(0), metadata={{op_name="state.params[\\'local\\'][\\'kernel\\']"}}
  %x = f32[100] parameter(1), metadata={{op_name="batch[\\'patches\\']"}}
  %fused = (f32[100], f32[100], /*index=2*/s8[64]) fusion(%x), kind=kLoop, calls=%inside, metadata={{op_name="jit(step)/jvp()/sum" stack_frame_id=1}}
  %gradient = f32[50] negate(%x), metadata={{op_name="jit(step)/transpose(jvp(Net))/Net.fuse/head/conv" stack_frame_id=2}}
  %again = f32[50] negate(%x), metadata={{op_name="jit(step)/mul" source_file="/home/me/mine.py" source_line=5}}
  ROOT %copy.1 = f32[10] copy(%w)
}}
"""
ASSIGNMENT = """BufferAssignment:
allocation 0: size 40, parameter 0, shape |f32[10]| at ShapeIndex {}, maybe-live-out:
 value: <1 w @0> (size=40,offset=0): f32[10]{0}
allocation 1: size 400, parameter 1, shape |f32[100]| at ShapeIndex {}:
 value: <2 x @0> (size=400,offset=0): f32[100]{0}
allocation 2: size 16, constant:
 value: <3 c @0> (size=16,offset=0): f32[4]{0}
allocation 3: size 4, thread-local:
 value: <4 p @0> (size=4,offset=0): f32[]
allocation 4: size 1500, preallocated-temp:
 value: <5 fused{} @0> (size=16,offset=1200): (f32[100]{0}, f32[100]{0}, s8[64]{0})
 value: <6 fused{0} @0> (size=400,offset=0): f32[100]{0}
 value: <7 fused{1} @0> (size=400,offset=512): f32[100]{0}
 value: <8 gradient @0> (size=200,offset=1024): f32[50]{0}
 value: <9 again @0> (size=200,offset=1024): f32[50]{0}
 value: <11 fused{2} @0> (size=64,offset=1300): s8[64]{0}
 value: <10 copy.1 @0> (size=40,offset=0): f32[10]{0}
"""
LIVE = """HloLiveRange (max 6):
  InstructionSequence:
    0:w
  BufferLiveRange:
    fused{}:2-2
    fused{0}:2-3
    fused{1}:2-5
    fused{2}:2-5
    gradient{}:3-4
    again{}:3-5
    copy.1{}:5-6
  Live ranges at 3 (peak):
    fused{0}: 400 bytes (cumulative: 400 bytes)
"""


def test_buffers_are_read_from_the_compilers_texts(tmp_path: Path):
    """What lives at the fullest moment, each with the module and the line that made it; a place counts once."""
    program = tmp_path / "module_1.jit_step.sm_9.0_gpu_after_optimizations.txt"
    for text, ending in ((MODULE, ""), (ASSIGNMENT, "-buffer-assignment"), (LIVE, "-live-range")):
        program.with_name(program.name.replace(".txt", f"{ending}.txt")).write_text(text)
    assert buffers.find_program(tmp_path) == program
    found = buffers.at_peak(program)
    assert buffers.parts(found) == {
        "inputs": 400, "fuse/smoothing": 400, "training": 400, "gaps": 436, "gradients": 200, "workspace": 64, "weights": 40, "constants": 16,
    }  # fmt: skip
    assert sum(b.bytes for b in found) == 40 + 400 + 16 + 1500
    by_part = {b.part: b for b in found}
    fused = by_part["fuse/smoothing"]
    assert fused == buffers.Buffer(
        400, "fuse/smoothing", "f32[100]", "jvp(Net)/Net.fuse/smoothing2/neg", "glcanet_jax/models/layers/fpn.py:47"
    )
    assert by_part["training"].source == "glcanet_jax/training/step.py:10"
    with pytest.raises(FileNotFoundError, match="XLA left no program in"):
        buffers.find_program(tmp_path / "none")
    assert by_part["weights"].op == "state.params['local']['kernel']"


@pytest.mark.parametrize(
    ("op", "source", "part"),
    [
        ("GLCANet.encode_local/local.features/resnet/stage1_block3/conv3/conv", "", "local/resnet"),
        ("jvp(GLCANet)/GLCANet._global_stages/global.attend/attention_5/dot", "", "global/attention"),
        ("jvp(GLCANet)/GLCANet.fuse/GLCANet._cross/local_asks_4/while/body/dot", "", "fuse/local_asks"),
        ("jvp(GLCANet)/GLCANet.fuse/vmap(vmap())/add", "glcanet_jax/models/layers/sampling.py:3", "fuse/sampling"),
        ("transpose(jvp(GLCANet))/GLCANet.fuse/aggregate/conv", "", "gradients"),
        ("GLCANet.encode_global/GLCANet._global_stages/aggregate.mix/dot_general", "", "global/aggregate"),
        ("jvp(GLCANet.fuse)/smoothing/concatenate", "", "fuse/smoothing"),
        ("transpose(jvp(A))/A.f/rematted_computation/global.features/resnet/max", "", "global/resnet"),
        ("SingleView._local_stages/SingleView._stages/local/down1/conv", "", "local/down"),
        ("jvp()/reduce_sum", "glcanet_jax/training/losses.py:42", "losses"),
        ("state.params['local']['kernel']", "", "copies"),
    ],
)
def test_parts_are_named_after_the_networks_modules(op, source, part):
    assert buffers.part_of(op, source) == part
