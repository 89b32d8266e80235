"""StableHLO of a network's three functions, with the weights and what they mean, as one file that JAX alone can run.

:mod:`glcanet_jax.inference.exported` reads it. ``jax.export`` keeps its files readable for about six months of later JAX
releases: keep the weights, and export again.
"""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.export.common import rebuild, relative_error
from glcanet_jax.inference.exported import FORMAT, INPUTS, VERSION, load, need_flatbuffers

PLATFORMS = ("cpu", "cuda")
OUTPUTS = {"encode_global": ("context",), "encode_local": ("features",), "fuse": ("logits", "out")}
ANSWERS = ("local/logits",)  # of what the network says beside its logits, where it does
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # largest error relative to the largest value
CHECKED = ((2, 3), (1, 1))  # contexts, patches of each
COMPATIBILITY = "read by JAX releases of about six months after the one named here; later, export the weights again"


def write(weights: str | Path, out: str | Path) -> dict[str, float]:
    """Export a weights file, or a run's best, to one file, whole or not at all, after comparing it with the network.

    Returns:
        for each function, its largest error relative to the largest value of the network's answer.

    Raises:
        UserError: no weights, flatbuffers is missing, or the file does not answer as the network.
    """
    from safetensors.numpy import save as save_arrays

    from glcanet_jax import models

    out = Path(out)
    need_flatbuffers()
    model, variables, config, stored = rebuild(weights)
    flat = _flatten(variables)
    bands = stored.bands
    programs = _lower(model, flat, config.views, bands)
    manifest = _manifest(config, stored, bands, programs)
    parts = {
        "manifest.json": json.dumps(manifest, indent=1).encode(),
        **{f"{name}.bin": bytes(program.serialize()) for name, program in programs.items()},
        "weights.safetensors": save_arrays(flat),
    }
    with disk.whole(out) as place:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:
            for name, part in parts.items():
                archive.writestr(zipfile.ZipInfo(name), part)  # without a time: the same weights give the same file
        return _compare(place, model, variables, TOLERANCE[models.compute_type(model).name])


def _manifest(config: Any, stored: Any, bands: int, programs: dict[str, jax_export.Exported]) -> dict[str, Any]:
    """What the file says of itself."""
    from glcanet_jax import config as configs

    return {
        "format": FORMAT,
        "version": VERSION,
        "jax": jax.__version__,
        "calling_convention": programs["fuse"].calling_convention_version,
        "compatibility": COMPATIBILITY,
        "platforms": list(PLATFORMS),
        "symbolic": {"b": "contexts", "n": "patches of each context"},
        "network": {"name": config.model.network, "options": configs.model_options(config.model)},
        "data": {name: getattr(config.data, name) for name in ("dataset", "bands", "ground_resolution", "licence")},
        "classes": stored.classes,
        "normalisation": stored.normalisation,
        "geometry": {
            **dataclasses.asdict(config.views),
            "bands": bands,
            "logits_stride": _stride(programs, config.views),
        },
        "functions": {name: _describe(name, program) for name, program in programs.items()},
    }


def _stride(programs: dict[str, jax_export.Exported], views: Any) -> int:
    """The stride of the logits, from the shapes of ``fuse``'s answers."""
    from glcanet_jax import geometry

    logits = programs["fuse"].out_avals[0]
    return geometry.stride_of(logits.shape[2], views.patch_size)


def _flatten(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by their ``/``-joined names."""
    from flax.traverse_util import flatten_dict

    flat = flatten_dict({k: v for k, v in variables.items() if v}, sep="/")
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


def _lower(model: Any, flat: dict[str, np.ndarray], views: Any, bands: int) -> dict[str, jax_export.Exported]:
    """The three functions of the flat variables, with symbolic numbers of contexts and patches."""
    from flax.traverse_util import unflatten_dict

    from glcanet_jax import models

    fns = models.functions(model)
    nested = lambda flat: {"params": {}, "batch_stats": {}} | unflatten_dict(flat, sep="/")  # noqa: E731

    def encode_global(flat, image):
        return fns.encode_global(nested(flat), image)

    def encode_local(flat, patches):
        return fns.encode_local(nested(flat), patches)

    def fuse(flat, context, features, boxes):
        # a number of patches without a value cannot be compared with 1, so the function is mapped over single patches,
        # which do not see each other; what depends on the context alone is still computed once
        def one(features, box):
            logits, out = fns.fuse(
                nested(flat), context, jax.tree.map(lambda x: x[:, None], features), jax.numpy.expand_dims(box, 1)
            )
            return logits[:, 0], {k: v[:, 0] for k, v in out.items() if k in ANSWERS}

        return jax.vmap(one, in_axes=1, out_axes=1)(features, boxes)

    def lowered(function, *specs):
        return jax_export.export(jax.jit(function), platforms=PLATFORMS)(variables, *specs)

    def outputs(program):
        return jax.tree.unflatten(program.out_tree, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.out_avals])

    b, n = jax_export.symbolic_shape("b, n")
    image, patch = (views.global_size,) * 2, (views.patch_size,) * 2
    variables = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat.items()}
    boxes = jax.ShapeDtypeStruct((b, n, 4), np.float32)
    frames = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of this machine in the file
    try:
        of_image = lowered(encode_global, jax.ShapeDtypeStruct((b, *image, bands), np.float32))
        of_patches = lowered(encode_local, jax.ShapeDtypeStruct((b, n, *patch, bands), np.float32))
        fused = lowered(fuse, outputs(of_image), outputs(of_patches), boxes)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)
    return {"encode_global": of_image, "encode_local": of_patches, "fuse": fused}


def _describe(name: str, program: jax_export.Exported) -> dict[str, Any]:
    """Shapes and types of a function's inputs, but for the weights, and outputs."""

    def described(tree):
        dims = lambda x: [d if isinstance(d, int) else str(d) for d in x.shape]  # noqa: E731
        return jax.tree.map(lambda x: {"shape": dims(x), "dtype": str(x.dtype)}, tree)

    (_, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {
        "inputs": dict(zip(INPUTS[name], map(described, inputs), strict=True)),
        "outputs": dict(zip(OUTPUTS[name], map(described, outputs), strict=True)),
    }


def example(manifest: dict[str, Any], b: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random global images, patches and boxes."""
    rng = np.random.default_rng(seed)
    geometry = manifest["geometry"]
    side, patch, bands = geometry["global_size"], geometry["patch_size"], geometry["bands"]
    image = rng.standard_normal((b, side, side, bands), np.float32)
    patches = rng.standard_normal((b, n, patch, patch, bands), np.float32)
    corners = rng.uniform(0, 0.6, (b, n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.4, (b, n, 2))], axis=-1)
    return image, patches, boxes.astype(np.float32)


def _compare(path: Path, model: Any, variables: dict[str, Any], tolerance: float) -> dict[str, float]:
    """Largest relative errors of the file against the network, on the CPU.

    Raises:
        UserError: they are too large, or there is no CPU to compare on.
    """
    from glcanet_jax import models

    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            f"the comparison runs on the CPU, which JAX has been told to leave alone ({error}); add cpu to JAX_PLATFORMS"
        ) from error
    differences = dict.fromkeys(INPUTS, 0.0)
    with jax.default_device(cpu):  # a GPU's default products are rounded more coarsely than what is to be shown
        exported = load(path)
        fns = [jax.jit(f) for f in models.functions(model)[:3]]
        for b, n in CHECKED:
            image, patches, boxes = example(exported.manifest, b, n)
            context, features = exported.encode_global(image), exported.encode_local(patches)
            got = context, features, exported.fuse(context, features, boxes)
            context, features = fns[0](variables, image), fns[1](variables, patches)
            logits, out = fns[2](variables, context, features, boxes)
            wanted = context, features, (logits, {k: v for k, v in out.items() if k in ANSWERS})
            for name, error in zip(INPUTS, map(relative_error, got, wanted), strict=True):
                differences[name] = max(differences[name], error)
                if not error <= tolerance:
                    raise UserError(
                        f"{name} as exported differs from the network by {error:.2g} of its largest value at b={b}, n={n}, "
                        f"at most {tolerance:g} was wanted; nothing was written: "
                        "check that the weights are finite, or export with another release of jax"
                    )
    return differences
