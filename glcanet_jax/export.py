"""A network as one file that runs with JAX alone: StableHLO of the three functions, the weights, and what they mean.

:func:`export` writes it, :func:`load` reads it with jax, numpy, safetensors and flatbuffers, without Flax or our networks.

The file is a zip, stored uncompressed: ``manifest.json``, ``encode_global.bin``, ``encode_local.bin`` and ``fuse.bin``
(``jax.export``, lowered for the CPU and for CUDA), ``weights.safetensors``. The contexts ``b`` and the patches ``n`` of each
are symbolic, so that one file serves any number of them; the sides of the images are those of the weights' views.
``jax.export`` keeps its files readable for about six months of later JAX releases: keep the weights, and export again.
"""

import dataclasses
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from glcanet_jax import border
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError

FORMAT = "glcanet_jax export"
VERSION = 1
PLATFORMS = ("cpu", "cuda")
INPUTS = {"encode_global": ("image",), "encode_local": ("patches",), "fuse": ("context", "features", "boxes")}
OUTPUTS = {"encode_global": ("context",), "encode_local": ("features",), "fuse": ("logits", "out")}
ANSWERS = ("local/logits",)  # of what the network says beside its logits, where it does
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # largest error relative to the largest value
CHECKED = ((2, 3), (1, 1))  # contexts, patches of each
MUST_SAY = {
    "jax": str,
    "calling_convention": int,
    "geometry": dict,
    "functions": dict,
    "classes": dict,
    "normalisation": dict,
}
COMPATIBILITY = "read by JAX releases of about six months after the one named here; later, export the weights again"


# --------------------------------------------------------------------------------------------------------------- in
class Exported:
    """An exported network: images already normalised in, arrays on JAX's default device out.

    ``b`` contexts with ``n`` patches of each, any numbers of both, each pair of numbers compiled once; ``h w`` are the
    sides in ``manifest["geometry"]``, ``manifest["functions"]`` has every shape.
    """

    def __init__(self, manifest: dict[str, Any], programs: dict[str, jax_export.Exported], weights: dict[str, Any]):
        self.manifest = manifest
        self._calls = {name: jax.jit(program.call) for name, program in programs.items()}
        self._weights = jax.device_put(weights)

    def normalise(self, image: Any) -> Any:
        """``(x / scale - mean) / std`` of an image ``[..., h, w, c]`` as it is stored."""
        given = self.manifest["normalisation"]
        shape = (*(1,) * (image.ndim - 1), image.shape[-1])
        mean, std = (np.resize(np.asarray(given[k], np.float32), shape) for k in ("mean", "std"))
        return (image.astype(np.float32) / np.float32(given["scale"]) - mean) / std

    def encode_global(self, image: Any) -> dict[str, jax.Array]:
        """The context, of the whole of it shrunk to ``[b, h, w, c]``; ``"logits"`` is the global branch's own answer."""
        return self._call("encode_global", image)

    def encode_local(self, patches: Any) -> dict[str, jax.Array]:
        """The features of ``[b, n, h, w, c]``."""
        return self._call("encode_local", patches)

    def fuse(self, context: Any, features: Any, boxes: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits ``[b, n, h / s, w / s, k]`` at the stride in ``manifest["geometry"]``, and beside them the local branch's own,
        ``"local/logits"``, if it has any.

        ``boxes`` ``[b, n, 4]`` are (top, left, bottom, right) as fractions of the context.
        """
        return self._call("fuse", context, features, boxes)

    def _call(self, name: str, *args: Any) -> Any:
        for label, wanted, arg in zip(
            INPUTS[name], self.manifest["functions"][name]["inputs"].values(), args, strict=True
        ):
            if not isinstance(arg, dict):
                _check_input(f"{name}: {label}", wanted, arg)
        return self._calls[name](self._weights, *args)


def _check_input(label: str, wanted: dict[str, Any], got: Any) -> None:
    shape = wanted["shape"]
    fits = len(got.shape) == len(shape) and all(
        isinstance(w, str) or w == g for w, g in zip(shape, got.shape, strict=True)
    )
    if not fits or str(got.dtype) != wanted["dtype"]:
        raise UserError(
            f"{label} is {got.dtype} {list(got.shape)}; it must be {wanted['dtype']} [{', '.join(map(str, shape))}], "
            "images normalised with .normalise"
        )


def load(path: str | Path) -> Exported:
    """An exported network, from a source that you trust: it is a program.

    Raises:
        UserError: no such file, not whole, no export of ours, or made for other releases of JAX.
    """
    path = Path(path)
    _need_flatbuffers()
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    if not path.is_file():
        raise UserError(f"there is no exported network at {path}; make one with `export`, or give another path")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(path, archive)
            blobs = {name: archive.read(f"{name}.bin") for name in INPUTS}
            weights = load_arrays(archive.read("weights.safetensors"))
    except (zipfile.BadZipFile, EOFError, OSError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{path} is no readable exported network ({error}); it must be a whole zip that `export` wrote: copy it or export it again"
        ) from error
    try:
        programs = {name: jax_export.deserialize(bytearray(blob)) for name, blob in blobs.items()}
    except (ValueError, TypeError, KeyError, IndexError, NotImplementedError, struct.error) as error:
        raise UserError(_other_jax(path, manifest)) from error
    return Exported(manifest, programs, weights)


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    manifest = None
    if "manifest.json" in archive.namelist():
        inside = f"{path} (manifest.json)"
        manifest = border.parse_json(border.decode(archive.read("manifest.json"), inside), inside)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is a zip but no exported network of glcanet_jax; give a file that `export` wrote")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {manifest.get('version')}, this program reads {VERSION}; export it again"
        )
    wrong = [key for key, kind in MUST_SAY.items() if type(manifest.get(key)) is not kind]
    if wrong:
        raise UserError(f"{path} (manifest.json) does not say {', '.join(wrong)} as it must; export it again")
    oldest = jax_export.minimum_supported_calling_convention_version
    newest = jax_export.maximum_supported_calling_convention_version
    if not oldest <= manifest["calling_convention"] <= newest:
        raise UserError(_other_jax(path, manifest))
    return manifest


def _other_jax(path: Path, manifest: dict[str, Any]) -> str:
    return (
        f"{path} was exported by jax {manifest['jax']}, which jax {jax.__version__} cannot read; "
        f"export it again from its weights, or install jax {manifest['jax']}"
    )


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise UserError(
            "exported networks need flatbuffers, which is not installed; pip install flatbuffers"
        ) from error


# -------------------------------------------------------------------------------------------------------------- out
def export(weights: str | Path, out: str | Path) -> dict[str, float]:
    """Export a weights file, or a run's best, to one file, whole or not at all, after comparing it with the network.

    Returns:
        for each function, its largest error relative to the largest value of the network's answer.

    Raises:
        UserError: no weights, flatbuffers is missing, or the file does not answer as the network.
    """
    from safetensors.numpy import save as save_arrays

    from glcanet_jax import models

    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file to write, {out / 'network.zip'} say")
    _need_flatbuffers()
    model, variables, config, stored = rebuild(weights)
    if models.second_pass(model) is not None:
        raise UserError(
            f"{weights} holds {config.model.network} with a second pass over all patches of a context, which three functions "
            "cannot say; export a network without one, or predict with this package"
        )
    flat = _flatten(variables)
    bands = stored.bands
    programs = _lower(model, flat, config.views, bands)
    manifest = _manifest(config, stored, bands, programs)
    parts = {
        "manifest.json": json.dumps(manifest, indent=1).encode(),
        **{f"{name}.bin": bytes(program.serialize()) for name, program in programs.items()},
        "weights.safetensors": save_arrays(flat),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
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


def rebuild(path: str | Path) -> tuple[Any, dict[str, Any], Any, Any]:
    """The network of a weights file or a run with plain convolutions, its variables, its configuration and the rest."""
    from glcanet_jax import runs

    path = runs.find_weights(path)
    config, stored = runs.read_weights(path)
    # the convolution made for training on CPUs would be lowered for CUDA, too
    plain = {name: False for name in ("fast_conv", "remat") if hasattr(config.model, name)}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **plain))
    return runs.rebuild(path, config, stored), stored.variables, config, stored


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


def relative_error(got: Any, wanted: Any) -> float:
    """Largest difference of any array from its like, relative to the largest value of that."""

    def error(got, wanted):
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        if not wanted.size:
            return 0.0
        return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))

    errors = jax.tree.leaves(jax.tree.map(error, got, wanted))
    return float(np.max(errors))  # NaN if any is
