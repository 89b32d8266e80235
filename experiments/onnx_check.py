"""ONNX exports against ``predict``, in the environment of those who run them: onnxruntime 1.17.0 and numpy under 2.

Two commands, for JAX and that onnxruntime want other releases of numpy::

    python -m experiments.onnx_check make DIR                 # beside training, with the extra onnx
    OLD/bin/python experiments/onnx_check.py compare DIR      # in an environment with onnxruntime==1.17.0 "numpy<2"

``make`` exports every network that an export can say, small ones with random weights, and the demo weights. Beside each graph
it keeps a tile and the probabilities that the walk of ``predict`` finds for a scene of that size: other code than the graph's.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

SMALL = {"depth": 10, "width": 8, "fpn_channels": 16}
CASES = {
    "glcanet": SMALL,
    "glcanet-window": SMALL | {"mask": "window", "attn_levels": (5, 4, 3), "norm": "group"},
    "glcanet-nonlinear": SMALL | {"head": "nonlinear", "feed_forward": 2},
    "glcanet-glnet": SMALL | {"sharing": "glnet"},
    "branch": SMALL,
    "branch-global": SMALL | {"view": "global"},
    "unet": {"width": 4},
    "segnet": {"width": 4},
    "fcn8s": {"width": 4},
    "pspnet": {"depth": 18, "width": 8},
    "deeplabv3plus": {"depth": 18, "width": 8, "channels": 16},
    "icnet": {"depth": 18, "width": 8},
    "encnet": {"depth": 18, "width": 8, "channels": 16},
    "refinenet": {"depth": 18, "width": 8, "channels": 16, "coarse_channels": 16},
    "isdnet": {"depth": 18, "width": 8, "channels": 16, "shallow_width": 8},
    "srafcn": {"width": 4, "input_size": 64},
    "bsnet": {"depth": 18, "width": 8, "channels": 16},
    "cbam": {"depth": 18, "width": 8},
    "mask2former": {"depth": 18, "width": 8, "channels": 16, "encoder_layers": 2, "decoder_layers": 3, "queries": 20},
    "demo": {},
}
TOLERANCE = 1e-4  # of a probability


def small_weights(name: str, options: dict, path: Path) -> None:
    """A weights file of a small network with random weights."""
    from glcanet_jax import geometry, runs
    from glcanet_jax.config import Config, NormalisationConfig, model_config
    from glcanet_jax.data.classes import ClassTable
    from glcanet_jax.data.datasets import Dataset, Protocol
    from glcanet_jax.data.scenes import ArrayScene
    from tests.drawn import drawn

    views = geometry.Views(context_size=160, global_size=64, patch_size=64, overlap=16)
    model = model_config(name.partition("-")[0], **options)
    config = Config(views=views, model=model, normalisation=NormalisationConfig(scale=255.0))
    table = ClassTable(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    scene = ArrayScene("made", np.zeros((64, 64, 3), np.uint8))
    dataset = Dataset("made", table, {"train": (scene,)}, (Protocol("all", (0, 1, 2)),))
    runs.save(path, config, dataset, drawn(runs.build_model(config, 3)))


def mapped(weights: Path | str, image: np.ndarray) -> np.ndarray:
    """Probabilities ``[1, k, S, S]`` of a tile in 0 to 1, by the walk over a scene."""
    from glcanet_jax import runs
    from glcanet_jax.data.scenes import ArrayScene
    from glcanet_jax.inference import walk

    predictor, _, classes = runs.load_predictor(weights, batch=1, scale=1.0, dtype=None)
    scene = ArrayScene("tile", np.ascontiguousarray(image[0].transpose(1, 2, 0)))
    sink = walk.ArraySink(scene.height, scene.width)
    walk.predict_scene(predictor, scene, sink, outputs=["logits"])
    logits = np.asarray(sink.arrays["logits"], np.float64)
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return (exponents / exponents.sum(-1, keepdims=True)).astype(np.float32).transpose(2, 0, 1)[None]


def make(folder: Path, only: list[str]) -> int:
    from glcanet_jax.export import onnx

    folder.mkdir(parents=True, exist_ok=True)
    for name, options in CASES.items():
        if only and name not in only:
            continue
        weights: Path | str = "demo"
        if name != "demo":
            weights = folder / f"{name}.safetensors"
            small_weights(name, options, weights)
        graph = folder / f"{name}.onnx"
        error = onnx.write(weights, graph, None)[onnx.OUTPUT]
        size = onnx_size(graph)
        image = onnx.example(size[1], size[2], seed=2)
        np.savez(folder / f"{name}.npz", image=image, probabilities=mapped(weights, image))
        print(
            f"{name}: {graph.stat().st_size / 1e6:.1f} MB, {error:.1e} from the network in this onnxruntime", flush=True
        )
    return 0


def onnx_size(graph: Path) -> list[int]:
    import onnx

    tensor = onnx.load(graph).graph.input[0].type.tensor_type
    return [d.dim_value for d in tensor.shape.dim]


def compare(folder: Path, only: list[str]) -> int:
    """Prints a line a graph; 1 if one differs."""
    import onnxruntime

    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
    worst = 0.0
    for graph in sorted(folder.glob("*.onnx")):
        if only and graph.stem not in only:
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of every constant of the loop that it has folded
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        held = np.load(graph.with_suffix(".npz"))
        (given,), (answer,) = session.get_inputs(), session.get_outputs()
        began = time.process_time()
        (got,) = session.run(None, {given.name: held["image"]})
        seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        error = float(np.abs(got - held["probabilities"]).max())
        told = session.get_modelmeta().custom_metadata_map
        overlap, names = json.loads(told["tiles_overlap"]), json.loads(told["class_names"])
        shapes = f"{given.shape} -> {answer.shape}, overlap {overlap} %, {len(names)} classes"
        print(f"{graph.stem:<20} {shapes}: {error:.1e}, {seconds:.2f} CPU-s, peak so far {peak:.0f} MB")
        worst = max(worst, error) if error == error else float("inf")
    return int(not worst <= TOLERANCE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("step", choices=("make", "compare"))
    parser.add_argument("folder", type=Path, help="where graphs, tiles and probabilities lie")
    parser.add_argument("--only", nargs="*", default=[], help="names of networks; none: all")
    args = parser.parse_args()
    return (make if args.step == "make" else compare)(args.folder, args.only)


if __name__ == "__main__":
    sys.exit(main())
