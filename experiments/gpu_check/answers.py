"""What one process tells of a device: its description, and how far its answers are from the CPU's."""

from typing import Any

from experiments.speed.cases import CLASSES, Sizes, noise, our_config

# largest difference from the CPU, relative to the largest value
BOUNDS = {"float32": 2e-3, "bfloat16": 0.1}


def answers(sizes: Sizes) -> dict[str, Any]:
    """How far this device's answers and gradients are from the CPU's: the largest difference over the largest value.

    float32 at the highest precision of its products; bfloat16 against the CPU's float32. Images have half of ``sizes.view``,
    so that the CPU has done in time, and 64 px at least: CPUs know no bfloat16 products of one token alone.
    """
    import jax
    import jax.numpy as jnp

    from glcanet_jax import models, runs

    side = max(64, sizes.view // 2)
    rng = np_rng()
    images = [rng.standard_normal(shape, "float32") for shape in ((1, side, side, 3), (1, 2, side, side, 3))]
    boxes = jnp.array([[[0.1, 0.2, 0.4, 0.5], [0.5, 0.4, 0.8, 0.7]]])

    def build(dtype: str) -> Any:
        return runs.build_model(our_config(sizes, dtype, norm="frozen", fast_conv=False), CLASSES)

    variables = noise(lambda key: models.init(build("float32"), key, 3), jax.random.key(0))

    def run(device: Any, dtype: str) -> tuple[Any, Any]:
        fns = models.functions(build(dtype))

        def loss(params: Any, image: Any, patches: Any) -> Any:
            logits, out = fns.apply(variables | {"params": params}, image, patches, boxes)
            return jnp.mean(jnp.square(logits)), logits

        highest = jax.default_matmul_precision("highest" if dtype == "float32" else None)
        with jax.default_device(device), highest:
            given = jax.device_put((variables["params"], *images), device)
            gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(*given)
            return jax.device_get((gradients, logits))

    # of all gradients what the optimiser sees of each root: its direction and its size
    exact_gradients, exact = run(jax.devices("cpu")[0], "float32")
    out = {}
    for dtype in BOUNDS:
        gradients, logits = run(jax.devices()[0], dtype)
        off = {"logits": apart([logits], [exact])}
        off |= {
            f"gradient/{root}": apart(jax.tree.leaves(gradients[root]), jax.tree.leaves(exact_gradients[root]))
            for root in exact_gradients
        }
        same = float((logits.argmax(-1) == exact.argmax(-1)).mean())
        good = off["logits"] <= BOUNDS[dtype]
        out[dtype] = {"apart": off, "same class": round(same, 5), "bound of logits": BOUNDS[dtype], "good": good}
    return out


def places(sizes: Sizes, batch: int) -> dict[str, Any]:
    """Whether a patch is computed alike, to the bit, at every place of a batch, whatever is beside it, as maps that go on ask for.

    By type of the computation: ``alike``; how many of the patches ``differ`` somewhere; and the ``largest`` difference.
    """
    import numpy as np

    from experiments.speed.cases import our_predictor

    rng, out = np_rng(), {}
    view = lambda *lead: rng.integers(0, 256, (*lead, sizes.view, sizes.view, 3), np.uint8)  # noqa: E731
    corners = rng.uniform(0, 0.7, (batch, 2)).astype(np.float32)
    patches, boxes, image, others = view(batch), np.concatenate([corners, corners + 0.2], -1), view(), view(batch)
    for dtype in BOUNDS:
        predictor, *_ = our_predictor(sizes, dtype, batch)
        (context,), _ = predictor.encode(image)

        def look(patches: Any, boxes: Any, predictor: Any = predictor, context: Any = context) -> Any:
            contexts = predictor.gather(None, context, np.ones(batch, bool))
            return np.asarray(predictor.look(contexts, 0, patches, boxes)[0], np.float32)

        plain, off = look(patches, boxes), np.zeros(batch)
        for shift in range(1, batch):
            moved = look(np.roll(patches, shift, 0), np.roll(boxes, shift, 0))
            off = np.maximum(off, np.abs(np.roll(moved, -shift, 0) - plain).max((1, 2, 3)))
        for i in range(batch):  # one stays, the others change
            mixed = np.where((np.arange(batch) == i)[:, None, None, None], patches, others)
            off[i] = max(off[i], np.abs(look(mixed, boxes)[i] - plain[i]).max())
        found = {"alike": not off.any(), "differ": int((off > 0).sum()), "largest": float(off.max())}
        out[dtype] = found | {"batch": batch}
    return out


def np_rng() -> Any:
    import numpy as np

    return np.random.default_rng(0)


def apart(got: list[Any], wanted: list[Any]) -> float:
    """Norm of the difference of many arrays, over the norm of what is wanted."""
    import numpy as np

    square = lambda arrays: sum(float(np.sum(np.square(np.asarray(a, np.float64)))) for a in arrays)  # noqa: E731
    return float((square([a - b for a, b in zip(got, wanted, strict=True)]) / square(wanted)) ** 0.5)


def device() -> dict[str, Any]:
    """What the device is called, and its description as XLA's compiler takes it (``glcanet_jax/measure/targets/NAME.txtpb``)."""
    import jax

    from glcanet_jax.profiling import machine

    out = {"machine": machine(), "memory": jax.local_devices()[0].memory_stats(), "target": None}
    if jax.default_backend() == "gpu":
        from jax._src.lib import xla_client  # jax has no public name for it

        topology = xla_client.get_topology_for_devices(jax.devices()[:1])
        out["target"] = str(topology.target_config)
    return out
