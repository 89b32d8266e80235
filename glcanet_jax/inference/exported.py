"""A network that was exported to one file, read with jax, numpy, safetensors and flatbuffers, without Flax or our networks.

The file is a zip, stored uncompressed: ``manifest.json``, ``encode_global.bin``, ``encode_local.bin`` and ``fuse.bin``
(``jax.export``, lowered for the CPU and for CUDA), ``weights.safetensors``. The contexts ``b`` and the patches ``n`` of each
are symbolic, so that one file serves any number of them; the sides of the images are those of the weights' views.
:mod:`glcanet_jax.export.stablehlo` writes it.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from glcanet_jax import border
from glcanet_jax.errors import UserError

FORMAT = "glcanet_jax export"
VERSION = 1
INPUTS = {"encode_global": ("image",), "encode_local": ("patches",), "fuse": ("context", "features", "boxes")}
MUST_SAY = {
    "jax": str,
    "calling_convention": int,
    "geometry": dict,
    "functions": dict,
    "classes": dict,
    "normalisation": dict,
}
MAY_SAY = ("network", "data")  # objects
TYPES = ("float32", "bfloat16")  # that networks compute in


def is_one(path: Path) -> bool:
    """Whether a file is meant as an exported network: a zip by its name, or by how it begins."""
    if path.suffix == ".zip":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


class Exported:
    """An exported network: images already normalised in, arrays on JAX's default device out.

    ``b`` contexts with ``n`` patches of each, any numbers of both, each pair of numbers compiled once; ``h w`` are the
    sides in ``manifest["geometry"]``, ``manifest["functions"]`` has every shape.
    """

    second_pass = False  # as networks say it

    def __init__(self, manifest: dict[str, Any], programs: dict[str, jax_export.Exported], weights: dict[str, Any]):
        self.manifest, self._programs, self.weights = manifest, programs, weights
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

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return len(self.manifest["classes"]["names"])

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch: it takes no others."""
        return self.manifest["geometry"]["patch_size"]

    @property
    def dtype(self) -> str:
        """What it computes in."""
        told = self.options.get("dtype")
        return told if told in TYPES else "float32"

    @property
    def options(self) -> dict[str, Any]:
        """Of the network, as far as the file says them."""
        told = self.manifest.get("network", {}).get("options")
        return told if isinstance(told, dict) else {}

    def for_inference(self) -> Any:
        """As :func:`glcanet_jax.models.for_inference` has networks: functions of its ``weights``."""
        from glcanet_jax.models import Functions, Inference

        def function(name: str) -> Any:
            return lambda variables, *args: self._programs[name].call(variables, *args)

        calls = {name: function(name) for name in INPUTS}

        def apply(variables, image, patches, boxes):
            features = calls["encode_local"](variables, patches)
            return calls["fuse"](variables, calls["encode_global"](variables, image), features, boxes)

        return Inference(lambda variables: variables, Functions(*calls.values(), apply), None)

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
    need_flatbuffers()
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
    _check_programs(path, manifest, programs)
    return Exported(manifest, programs, weights)


def _check_programs(path: Path, manifest: dict[str, Any], programs: dict[str, jax_export.Exported]) -> None:
    """Raises UserError if the programs are of other sizes, bands or classes than the manifest says."""
    told, names = manifest["geometry"], manifest["classes"].get("names")
    said, held = [len(names) if isinstance(names, list) else None], [programs["fuse"].out_avals[0].shape[-1]]
    for name, side in (("encode_global", "global_size"), ("encode_local", "patch_size")):
        said += [told.get(side), told.get(side), told.get("bands")]
        held += programs[name].in_avals[-1].shape[-3:]
    if said != held:
        raise UserError(
            f"{path} (manifest.json) says {', '.join(map(str, said))} of its classes, global view and patches, the programs "
            f"beside it {', '.join(map(str, held))}; export it again"
        )


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
    wrong += [key for key in MAY_SAY if type(manifest.get(key, {})) is not dict]
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


def need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise UserError(
            "exported networks need flatbuffers, which is not installed; pip install flatbuffers"
        ) from error
