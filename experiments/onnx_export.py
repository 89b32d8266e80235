"""A network as one ONNX graph, checked with onnxruntime: ``python experiments/onnx_export.py --weights W --out FILE.onnx``.

Best effort; ``python -m glcanet_jax export`` is the supported way. It needs an environment of its own, since jax2onnx wants
an older orbax-checkpoint than training does::

    python3.11 -m venv onnx-venv && onnx-venv/bin/pip install -r experiments/onnx-requirements.txt

One context with a fixed number of patches (``--patches``), images already normalised, all float32:
``global_image [1, G, G, C]``, ``patches [1, n, P, P, C]``, ``boxes [1, n, 4]`` -> ``logits [1, n, P/s, P/s, k]``, s the network's stride. Normalisation,
classes and geometry are in the file's metadata. Nothing is written unless the graph answers as the network does.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

if not __package__:  # run as a file: the project lies beside this folder
    sys.path.insert(0, str(Path(__file__).parents[1]))

from glcanet_jax import cli, export, models, runs
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import stride_of
from glcanet_jax.models.layers import attention

TOLERANCE = 1e-4  # largest error relative to the largest logit
INPUTS, OUTPUT = ("global_image", "patches", "boxes"), "logits"


def plain_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, *_: Any) -> jax.Array:
    """``attention.attend`` in plain products.

    jax2onnx 0.17.1 turns a masked ``jax.nn.dot_product_attention`` into softmax, mask, division by the sum: where a hidden
    score exceeds the visible ones by about 100 these underflow, and the answer is zero. Here the mask comes first.
    """
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1]).astype(np.float32)
    if mask is None:
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)
    seen = mask[:, None].astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1) * seen  # a row that sees nothing: zero
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def convert(apply: Any, examples: tuple[np.ndarray, ...]) -> Any:
    """The ONNX model of ``apply(global_image, patches, boxes)``."""
    try:
        from jax2onnx import to_onnx
        from jax2onnx.converter import ir_optimizations
    except ImportError as error:
        raise UserError(
            f"jax2onnx is needed ({error}); pip install -r experiments/onnx-requirements.txt in an environment of its own"
        ) from error
    # this pass drops transposes that are still needed: ResNet-50's additions then have shapes that do not fit
    kept = tuple(p for p in ir_optimizations._OPTIMIZER_PASSES if p.name != "remove_redundant_transpose_pairs")
    replaced = (ir_optimizations, "_OPTIMIZER_PASSES", kept), (attention, "attend", plain_attention)
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in examples]
        return to_onnx(apply, specs, model_name="glcanet", opset=21, input_names=INPUTS, output_names=(OUTPUT,))
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


def run_onnx(graph: bytes, examples: tuple[np.ndarray, ...]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every constant that the conversion left unused
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], dict(zip(INPUTS, examples, strict=True)))[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--weights", type=Path, required=True, help="a weights file, or a run's folder")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--patches", type=int, default=4, help="patches at once")
    args = parser.parse_args()
    if args.patches < 1:
        raise UserError(f"--patches is {args.patches}; it must be at least 1")
    model, variables, config, stored = export.rebuild(args.weights)
    config = runs.computing_in(config, "float32")
    model = runs.build_model(config, len(stored.classes["names"]))
    if models.second_pass(model) is not None:
        raise UserError(
            f"{args.weights} holds a network with a second pass over all patches of a context; give another"
        )
    network = models.functions(model)
    geometry = {**dataclasses.asdict(config.views), "bands": stored.bands}
    examples = [export.example({"geometry": geometry}, 1, args.patches, seed) for seed in (0, 1)]

    def apply(global_image, patches, boxes):
        return network.apply(variables, global_image, patches, boxes)[0]

    cells = jax.eval_shape(apply, *examples[0]).shape[2]
    geometry["logits_stride"] = stride_of(cells, config.views.patch_size)
    print("converting, about half a minute", flush=True)
    graph = convert(apply, examples[0])
    metadata = {"classes": stored.classes, "normalisation": stored.normalisation, "geometry": geometry}
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    data = graph.SerializeToString()
    wanted_of = jax.jit(apply)
    worst = 0.0
    for inputs in examples:
        wanted, got = np.asarray(wanted_of(*inputs)), run_onnx(data, inputs)
        relative = export.relative_error(got, wanted)
        print(f"largest error {np.abs(got - wanted).max():.2e}, of the largest logit {relative:.2e}")
        worst = max(worst, relative) if relative == relative else np.inf
    if worst > TOLERANCE:
        print(f"error: over {TOLERANCE:g}: nothing is written; use `python -m glcanet_jax export`", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(args.out.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, args.out)
    print(f"written to {args.out}: {len(data) / 1e6:.1f} MB, {len(graph.graph.node)} nodes, logits {list(got.shape)}")
    return 0


if __name__ == "__main__":
    cli.run(main)
