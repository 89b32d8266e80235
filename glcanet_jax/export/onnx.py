"""A network as one ONNX graph that many programs run: a square tile in, the probability of every class out.

``image [1, bands, S, S]`` float32, values divided by their full scale (0 to 1), ``-> probabilities [1, k, S, S]``. Normalisation,
the shrinking to the global view, the cutting of patches and their blending are in the graph: of a network of two views the
tile is a context, mapped as ``predict`` maps a scene of its size. Opset and IR version are those that onnxruntime 1.17
(QGIS Deepness) reads; the metadata are those that Deepness asks for.

jax2onnx converts. It is handed the traced graph rather than the functions: while it traces, it replaces functions of
``jax.numpy`` by its own, which know fewer arguments.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glcanet_jax import geometry, models
from glcanet_jax.data import disk
from glcanet_jax.data.views import most_taps, triangle
from glcanet_jax.errors import UserError
from glcanet_jax.export.common import rebuild

OPSET, IR_VERSION = 20, 9  # the newest that onnxruntime 1.17 reads
TOLERANCE = 1e-4  # of a probability
INPUT, OUTPUT = "image", "probabilities"
LARGEST = 2**13  # pixels a side of a tile
MOST_OVERLAP = 75  # percent: every pixel is computed 16 times then
INSTALL = "pip install onnx onnx-ir onnxruntime sympy && pip install --no-deps jax2onnx"


# --------------------------------------------------------------------------------------------------------- what it computes
def tile_function(
    model: Any, variables: Any, views: geometry.Views, normalisation: dict[str, Any], bands: int, size: int
) -> Callable[[Float[Array, "1 c s s"]], Float[Array, "1 k s s"]]:
    """Probabilities of a tile's pixels, the tile in 0 to 1."""
    ready = models.for_inference(model, bands)
    prepared = ready.prepare(variables)
    mean, std = (tuple(normalisation[name]) for name in ("mean", "std"))
    logits = _of_patch if looks_at_patches(model) else _of_context

    def probabilities(image: Array) -> Array:
        image = models.normalise(jnp.moveaxis(image, 1, -1), mean, std, 1.0)
        return jax.nn.softmax(logits(ready.functions, prepared, image, views), axis=0)[None]

    return probabilities


def looks_at_patches(model: Any) -> bool:
    """Whether a network looks at patches alone: then the tile is a patch."""
    return getattr(model, "view", None) == "patch"


def _of_patch(fns: Any, variables: Any, image: Array, views: geometry.Views) -> Float[Array, "k s s"]:
    """Logits of a tile that is looked at as a patch."""
    box = jnp.array([[[0.0, 0.0, 1.0, 1.0]]], jnp.float32)
    logits, _ = fns.fuse(variables, {}, fns.encode_local(variables, image[:, None]), box)
    return _read(logits[0, 0].transpose(2, 0, 1), geometry.interpolation(logits.shape[2], image.shape[1]))


def _of_context(fns: Any, variables: Any, image: Array, views: geometry.Views) -> Float[Array, "k s s"]:
    """Logits of a tile that is a context: of all its patches, blended."""
    size, patch = image.shape[1], views.patch_size
    starts = geometry.patch_starts(size, patch, views.overlap)
    corners = [(int(y), int(x)) for y in starts for x in starts]
    shrunk = _read(image[0].transpose(2, 0, 1), _dense(size, views.global_size)).transpose(1, 2, 0)
    context = fns.encode_global(variables, shrunk[None])
    patches = jnp.concatenate([image[:, y : y + patch, x : x + patch] for y, x in corners])
    boxes = np.stack([geometry.box_of((y, x, patch, patch), (0, 0, size, size)) for y, x in corners])

    def look(item: Any) -> Array:
        patch, box = item
        return fns.fuse(variables, context, fns.encode_local(variables, patch[None, None]), box[None, None])[0][0, 0]

    logits = jax.lax.map(look, (patches, boxes))  # a loop: the memory is that of one patch
    count, cells = len(starts), logits.shape[1]
    up, weights = geometry.interpolation(cells, patch), geometry.blend_weights(starts, patch, size)
    blend = np.zeros((size, count, cells), np.float32)  # from the cells of a row of patches to pixels
    for i, start in enumerate(starts):
        blend[start : start + patch, i] = weights[i][:, None] * up
    grid = logits.reshape(count, count, cells, cells, -1).transpose(4, 0, 2, 1, 3)
    return _read(grid.reshape(-1, count * cells, count * cells), blend.reshape(size, -1))


def _read(maps: Float[Array, "k h w"], matrix: np.ndarray) -> Array:
    """Maps read along both axes by a matrix ``[new, old]``."""
    rows = jnp.einsum("yh,khw->kyw", matrix, maps, precision="highest")
    return jnp.einsum("kyw,xw->kyx", rows, matrix, precision="highest")


def _dense(length: int, size: int) -> np.ndarray:
    """The matrix ``[size, length]`` of the filter that makes global views."""
    index, weights = triangle(length, size, most_taps(length, size))
    matrix = np.zeros((size, length), np.float32)
    np.add.at(matrix, (np.arange(size)[:, None], index), weights)
    return matrix


# -------------------------------------------------------------------------------------------------------------- the tile
def tile_size(model: Any, views: geometry.Views, size: int | None) -> int:
    """Pixels a side of the tile: those asked for, or a context, or of networks that look at patches alone a patch.

    Raises:
        UserError: it is smaller than a patch, or too large.
    """
    patches = looks_at_patches(model)
    whole = views.patch_size if patches else views.context_size or views.scene_size or views.patch_size
    size = whole if size is None else size
    least = geometry.WHOLE.low if patches else views.patch_size
    if not least <= size <= LARGEST:
        raise UserError(
            f"--size is {size}; it must be from {least} to {LARGEST} px, the weights were trained on {whole}"
        )
    if size != whole:
        what = "patches" if patches else "contexts"
        print(
            f"the weights were trained on {what} of {whole} px: the answers of a tile of {size} px differ from theirs"
        )
    return size


def overlap_percent(model: Any, views: geometry.Views, size: int) -> int:
    """How much of a tile its neighbours share, in percent, so that what is kept of each has the surround it has in ``predict``."""
    if looks_at_patches(model):
        return round(100 * min(views.overlap, size // 2) / size)
    share = 2 * geometry.surround(size, views.patch_size) / size if size > views.patch_size else 0.0
    return min(round(100 * share), MOST_OVERLAP)


def metadata(config: Any, stored: Any, model: Any, size: int) -> dict[str, Any]:
    """What the file says of itself: Deepness's names first, then our own."""
    names, scale = stored.classes["names"], stored.normalisation["scale"]
    told = {
        "model_type": "Segmentor",
        "class_names": {str(i): name for i, name in enumerate(names)},
        "tile_size": size,
        "tiles_size": size,
        "tiles_overlap": overlap_percent(model, config.views, size),
        "seg_thresh": 0.0,  # else pixels whose best class is under it become class 0
        "seg_small_segment": 0,
        # Deepness divides by 255 and then does this: 0 to 1 comes out, whatever the full scale
        "standardization_mean": [0.0] * stored.bands,
        "standardization_std": [scale / 255] * stored.bands,
    }
    if stored.ground_resolution is not None:
        told["resolution"] = round(100 * stored.ground_resolution, 4)  # centimetres
    own = {"classes": stored.classes, "normalisation": stored.normalisation, "network": config.model.network}
    return told | own | {"geometry": {**dataclasses.asdict(config.views), "bands": stored.bands}}


# ------------------------------------------------------------------------------------------------------------- the graph
def need_packages() -> tuple[Any, Any]:
    """jax2onnx and onnxruntime.

    Raises:
        UserError: one is not installed.
    """
    for logger in ("jax2onnx", "onnx_ir"):  # it loads its examples, and tells of each whose packages are not there
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX needs jax2onnx, onnxruntime and what they use ({error}); {INSTALL}") from error
    return jax2onnx, onnxruntime


def convert(function: Callable[[Array], Array], bands: int, size: int) -> Any:
    """The ONNX model of a tile's function."""
    from jax.extend.core import jaxpr_as_fun

    spec = jax.ShapeDtypeStruct((1, bands, size, size), np.float32)
    traced = jaxpr_as_fun(jax.make_jaxpr(function)(spec))
    names = {"input_names": (INPUT,), "output_names": (OUTPUT,)}
    to_onnx = need_packages()[0].to_onnx
    model = to_onnx(lambda image: traced(image)[0], [spec], model_name="glcanet", opset=OPSET, **names)
    model.ir_version = IR_VERSION
    _prune(model.graph)
    return model


def _used(graph: Any) -> set[str]:
    """The values that nodes of a graph, and of those in it, take, and its outputs."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _used(attribute.g)
    return names


def _prune(graph: Any) -> None:
    """Remove constants that nothing takes, of which a converted loop is full: onnxruntime warns of each."""
    used = _used(graph)
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _prune(attribute.g)


def run(data: bytes, image: np.ndarray) -> np.ndarray:
    """What onnxruntime makes of a tile ``[1, bands, S, S]``."""
    session = need_packages()[1].InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: image})[0]


def example(bands: int, size: int, seed: int) -> Float[np.ndarray, "1 c s s"]:
    """A random tile, coarse and fine parts in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((1, bands, -(-size // 16), -(-size // 16)), np.float32)
    coarse = coarse.repeat(16, axis=2).repeat(16, axis=3)[..., :size, :size]
    return np.float32(0.8) * coarse + np.float32(0.2) * rng.random((1, bands, size, size), np.float32)


def write(weights: str | Path, out: Path, size: int | None) -> dict[str, float]:
    """As :func:`glcanet_jax.export.export`."""
    from glcanet_jax import runs

    need_packages()
    _, variables, config, stored = rebuild(weights)
    config = runs.computing_in(config, "float32")
    model = runs.build_model(config, len(stored.classes["names"]))
    size = tile_size(model, config.views, size)
    function = tile_function(model, variables, config.views, stored.normalisation, stored.bands, size)
    print(f"converting the network for a tile of {size} px, about a minute", flush=True)
    graph = convert(function, stored.bands, size)
    for key, value in metadata(config, stored, model, size).items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    data, wanted_of, worst = graph.SerializeToString(), jax.jit(function), 0.0
    for seed in (0, 1):
        image = example(stored.bands, size, seed)
        error = float(np.abs(run(data, image) - np.asarray(wanted_of(image))).max())
        worst = max(worst, error) if error == error else np.inf
    if not worst <= TOLERANCE:
        raise UserError(
            f"the graph's probabilities differ from the network's by {worst:.2g}, at most {TOLERANCE:g} was wanted; nothing was "
            "written: export with --format stablehlo, or try another release of jax2onnx"
        )
    with disk.whole(out) as place:
        place.write_bytes(data)
    return {OUTPUT: worst}
