"""The functional core of training: state, loss, one jitted step. The loop around it is :mod:`glcanet_jax.training.loop`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from glcanet_jax.models import auxiliary, functions, normalise, second_pass
from glcanet_jax.training import losses, optim

Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """All that a step changes. Its fields may be arrays, their shapes, or whatever else JAX puts in their places."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: Any  # int32: steps done
    key: Any  # never changes; a step's randomness is fold_in(key, step)
    average: Any = None  # moving average of the variables, if one is kept

    @property
    def variables(self) -> dict[str, Any]:
        """What is trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def answering(self) -> dict[str, Any]:
        """What is scored and saved: the average, if one is kept."""
        return self.variables if self.average is None else self.average

    def entering(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> "TrainState":
        """With a change of the variables, such as :func:`glcanet_jax.models.enter`, in the average too."""
        new = change(self.variables)
        average = None if self.average is None else jax.tree.map(jnp.copy, change(self.average))
        return self.replace(params=new["params"], batch_stats=new["batch_stats"], average=average)


def create_state(
    variables: dict[str, Any], tx: optax.GradientTransformation, key: Array, average: bool = False
) -> TrainState:
    """A state at step zero, with or without a moving average of its variables."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = TrainState(params, stats, jax.jit(tx.init)(params), jnp.zeros((), jnp.int32), key)
    # copies: a step consumes its state, and no array can be consumed twice
    return state.replace(average=jax.tree.map(jnp.copy, state.variables)) if average else state


def jitter_colour(
    key: Array, image: Array, patches: Array, strength: float, bands: int | None = None
) -> tuple[Array, Array]:
    """Brightness, contrast and the gain of each band changed by up to ``strength``, alike in both views of a context.

    Args:
        image: ``[b, h, w, c]`` from 0 to 1; patches: ``[b, n, h, w, c]``.
        bands: the first ones are colours, the others are left as they are; None: all are.
    """
    if bands is not None:
        new = jitter_colour(key, image[..., :bands], patches[..., :bands], strength)
        return tuple(
            jnp.concatenate([x, old[..., bands:]], axis=-1) for x, old in zip(new, (image, patches), strict=True)
        )
    b, c = image.shape[0], image.shape[-1]
    keys = jax.random.split(key, 3)
    draw = lambda k, width: jax.random.uniform(k, (b, width), minval=-strength, maxval=strength)  # noqa: E731
    gain = (1 + draw(keys[0], 1)) * (1 + 0.5 * draw(keys[1], c))
    contrast = (1 + draw(keys[2], 1))[:, None, None]
    mean = image.mean(axis=(1, 2), keepdims=True)  # of the context, for its patches too

    def change(x: Array, mean: Array, contrast: Array, gain: Array) -> Array:
        return jnp.clip(((x - mean) * contrast + mean) * gain, 0.0, 1.0)

    return (
        change(image, mean, contrast, gain[:, None, None]),
        change(patches, mean[:, None], contrast[:, None], gain[:, None, None, None]),
    )


def loss_terms(
    config: Any,
    logits: Array | None,
    out: dict[str, Array],
    batch: Batch,
    auxiliary: Mapping[str, int | float] | None = None,
) -> dict[str, Array]:
    """The weighted terms of the loss (docs/design.md); absent outputs have no term.

    ``auxiliary`` are the weights of a network's own further logits, ``NAME/logits`` of either view.
    """
    weights = jnp.asarray(config.class_weights, jnp.float32) if config.class_weights else None
    labels = {
        "local": jnp.where(batch["valid"][..., None, None], batch["patch_labels"], losses.IGNORE),
        "global": batch["global_labels"],
    }

    def of(logits: Array, view: str) -> Array:
        truth = losses.at_logits(labels[view], logits)
        total = losses.focal(logits, truth, config.gamma, weights, config.smoothing)
        if config.dice:
            total = total + config.dice * losses.dice(logits, truth)
        return total + config.lovasz * losses.lovasz(logits, truth) if config.lovasz else total

    terms = {}
    if logits is not None:
        terms["fused"] = config.fused * of(logits, "local")
    for view, weight in (("local", config.local), ("global", config.glob)):
        if f"{view}/logits" in out:
            terms[view] = weight * of(out[f"{view}/logits"], view)
        for name, share in (auxiliary or {}).items():
            if f"{view}/{name}/logits" in out:
                terms[name] = share * of(out[f"{view}/{name}/logits"], view)
    if "global/x_at_box" in out and config.regulariser:
        term = losses.regulariser(out["local/x"], out["global/x_at_box"], batch["valid"])
        terms["regulariser"] = config.regulariser * term
    return terms


def forward(model: nn.Module, phase: str, params: Any, batch_stats: Any, batch: Batch, key: Array):
    """A training pass of a phase: ``(logits, out), new batch statistics``.

    ``global`` runs the global branch alone; ``rest`` holds it frozen: stop-gradient, BatchNorm in inference mode, running
    statistics untouched; ``feedback`` holds both branches frozen and trains what their joint answer goes back into.

    Args:
        batch: its images normalised; key: what dropout draws from.
    """
    image, patches, boxes = batch["global_image"], batch["patches"], batch["boxes"]
    fns = functions(model)
    variables = {"params": params, "batch_stats": batch_stats}
    if phase == "joint":
        return fns.apply(variables, image, patches, boxes, train=True, key=key)
    if phase == "global":
        context, stats = fns.encode_global(variables, image, train=True, key=key)
        return (None, _answers_of(context)), batch_stats | stats
    if phase == "feedback":
        context = jax.lax.stop_gradient(fns.encode_global(variables, image))
        return _feedback(model, variables, context, batch, key)
    # only the branch is frozen: what the fusion makes of its maps while they are encoded is trained
    frozen = jax.lax.stop_gradient({k: v for k, v in params.items() if k == "global"})
    context = fns.encode_global({"params": params | frozen, "batch_stats": batch_stats}, image)
    features, stats = fns.encode_local(variables, patches, train=True, key=key)
    merged = batch_stats | stats
    (logits, out), fused = fns.fuse(
        {"params": params, "batch_stats": merged}, context, features, boxes, train=True, key=key
    )
    merged = merged | fused
    if "global" in batch_stats:
        merged["global"] = batch_stats["global"]
    return (logits, out), merged


def _answers_of(context: dict[str, Array]) -> dict[str, Array]:
    return {f"global/{k}": v for k, v in context.items() if k.endswith("logits")}


def _feedback(model: nn.Module, variables: Any, context: Any, batch: Batch, key: Array):
    """The third phase of a network with a second pass: one context after another, so that one's patches are in memory."""
    fns, second = functions(model), second_pass(model)

    def collect(item: Any) -> Any:
        context, patches, boxes, valid = jax.tree.map(lambda x: x[None], item)
        kept, gathered = second.collect(variables, context, fns.encode_local(variables, patches), boxes, valid)
        return jax.tree.map(lambda x: x[0], (kept, gathered))

    items = context, batch["patches"], batch["boxes"], batch["valid"]
    kept, gathered = jax.lax.stop_gradient(jax.lax.map(collect, items))
    again, stats = second.encode_again(variables, context, gathered, batch["global_image"], train=True, key=key)
    variables = variables | {"batch_stats": variables["batch_stats"] | stats}
    (logits, out), fused = second.fuse_again(variables, again, kept, batch["boxes"], train=True, key=key)
    return (logits, out | _answers_of(again)), variables["batch_stats"] | fused


def average_decay(step: Array, decay: float) -> Array:
    """Decay of the moving average at a step; the first steps, far from where training goes, are forgotten sooner."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, config: Any, scale: float, phase: optim.Phase
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """``train_step(state, batch) -> (state, metrics)``, jitted, the state donated.

    Args:
        config: a :class:`glcanet_jax.config.Config`; scale: full scale of the images' values.
        phase: which roots are trained, and how the forward pass runs.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Array):
        unit = dict(mean=(0.0,), std=(1.0,), scale=scale)
        image, patches = normalise(batch["global_image"], **unit), normalise(batch["patches"], **unit)
        if config.train.colour_jitter:
            strength, bands = config.train.colour_jitter, config.train.jitter_bands
            image, patches = jitter_colour(key, image, patches, strength, bands)
        mean, std = config.normalisation.mean, config.normalisation.std
        inputs = {"global_image": normalise(image, mean, std, 1.0), "patches": normalise(patches, mean, std, 1.0)}
        drop = jax.random.fold_in(key, 1)  # not what the colours drew from
        (logits, out), batch_stats = forward(model, phase.name, params, batch_stats, batch | inputs, drop)
        terms = loss_terms(config.loss, logits, out, batch, auxiliary(model))
        return sum(terms.values()), (terms, batch_stats)

    def gradients(state: TrainState, batch: Batch):
        key = jax.random.fold_in(state.key, state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        parts = config.train.accumulation
        if parts == 1:
            (loss, (terms, stats)), grads = grad_fn(state.params, state.batch_stats, batch, key)
            return loss, terms, stats, grads

        def add(carry, part):
            stats, total = carry
            (loss, (terms, stats)), grads = grad_fn(state.params, stats, part[0], part[1])
            return (stats, jax.tree.map(jnp.add, total, (loss, terms, grads))), None

        split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(grad_fn, state.params, state.batch_stats, first, key)
        (loss, (terms, _)), grads = shapes
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, terms, grads))
        (stats, total), _ = jax.lax.scan(add, (state.batch_stats, zeros), (split, jax.random.split(key, parts)))
        loss, terms, grads = jax.tree.map(lambda x: x / parts, total)
        return loss, terms, stats, grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, terms, stats, grads = gradients(state, batch)
        updates, opt_state = optim.update(tx, grads, state.opt_state, state.params, phase.roots)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}
        for root in (r for r in phase.roots if r in params):
            metrics[f"grad_norm/{root}"] = optax.tree.norm(grads[root])
            metrics[f"update_norm/{root}"] = optax.tree.norm(updates[root])
            metrics[f"param_norm/{root}"] = optax.tree.norm(params[root])
        state = state.replace(params=params, batch_stats=stats, opt_state=opt_state, step=state.step + 1)
        if state.average is not None:
            share = 1 - average_decay(state.step, config.train.ema)
            state = state.replace(average=optax.incremental_update(state.variables, state.average, share))
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)
