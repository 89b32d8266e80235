"""The functional core of training: state, loss, one jitted step. The loop around it is :mod:`glcanet_jax.training.loop`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from glcanet_jax.config import Config, LossConfig
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.models import auxiliary, contract, normalise, own_loss
from glcanet_jax.training import freezing, losses, optim
from glcanet_jax.training.phases import Batch, Phase

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
        """With a change of the variables, such as a stage begins with, in the average too."""
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


class Whole(NamedTuple):
    """What a part of a batch must know of all of it, for its loss to be its share of the whole's."""

    labels: dict[str, Array]  # as :func:`labels_of` has them
    valid: Array
    parts: int


def labels_of(batch: Batch) -> dict[str, Array]:
    """Labels of every pixel by view: ``local`` ``[b, n, h, w]``, all ignored in patches that only fill a batch up, and ``global`` ``[b, h, w]``."""
    valid = batch["valid"][..., None, None]
    return {"local": jnp.where(valid, batch["patch_labels"], IGNORE), "global": batch["global_labels"]}


def all_terms(
    config: LossConfig,
    model: nn.Module,
    logits: Array | None,
    out: dict[str, Array],
    batch: Batch,
    key: Array,
    whole: Whole | None = None,
) -> dict[str, Array]:
    """The weighted terms of the loss: the common ones, and those of a network's own loss beside or instead of them.

    Raises:
        UserError: the network's own are not what is asked of them.
    """
    own = own_loss(model)
    common = {} if own and own.alone else loss_terms(config, logits, out, batch, auxiliary(model), whole)
    if own is None:
        return common
    stages = out if logits is None else out | {"logits": logits}
    return common | contract.check_terms(model, own.terms(stages, labels_of(batch), key), common)


def loss_terms(
    config: LossConfig,
    logits: Array | None,
    out: dict[str, Array],
    batch: Batch,
    auxiliary: Mapping[str, int | float] | None = None,
    whole: Whole | None = None,
) -> dict[str, Array]:
    """The weighted common terms of the loss (docs/design.md); absent outputs have no term.

    ``auxiliary`` are the weights of a network's own further logits, ``NAME/logits`` of either view. Of a part of a batch the
    ``whole`` is given: the mean of the parts' terms is the whole's then, but for Dice and Lovasz, which are of each part.
    """
    weights = jnp.asarray(config.class_weights, jnp.float32) if config.class_weights else None
    labels = labels_of(batch)

    def over(view: str, logits: Array) -> Array | None:
        if whole is None:
            return None
        truth = losses.at_logits(whole.labels[view], logits)
        return losses.weight_of(truth, logits.shape[-1], weights) / whole.parts

    def of(logits: Array, view: str) -> Array:
        truth = losses.at_logits(labels[view], logits)
        total = losses.focal(logits, truth, config.gamma, weights, config.smoothing, over(view, logits))
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
        valid = None if whole is None else jnp.sum(whole.valid) / whole.parts
        term = losses.regulariser(out["local/x"], out["global/x_at_box"], batch["valid"], valid)
        terms["regulariser"] = config.regulariser * term
    return terms


def average_decay(step: Array, decay: float) -> Array:
    """Decay of the moving average at a step; the first steps, far from where training goes, are forgotten sooner."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, config: Config, scale: float, phase: Phase
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """``train_step(state, batch) -> (state, metrics)``, jitted, the state donated.

    The norms among the metrics are zero at steps that are not :func:`logged`.

    Args:
        scale: full scale of the images' values.
        phase: which roots are trained, and how the forward pass runs.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Array, whole: Whole | None = None):
        inputs = _inputs(config, scale, batch, key)
        drop = jax.random.fold_in(key, 1)  # not what the colours drew from
        if config.freeze:  # no gradient goes there, so that none is computed behind it either
            hold = lambda x, stays: jax.lax.stop_gradient(x) if stays else x  # noqa: E731
            params = jax.tree.map(hold, params, freezing.frozen(params, config.freeze))
        variables = {"params": params, "batch_stats": batch_stats}
        with freezing.frozen_norms(params, config.freeze):
            (logits, out), batch_stats = phase.stage.forward(model, variables, batch | inputs, drop)
        terms = all_terms(config.loss, model, logits, out, batch, jax.random.fold_in(key, 2), whole)
        return sum(terms.values()), (terms, batch_stats)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, terms, stats, grads = _gradients(loss_fn, state, batch, config.train.accumulation)
        updates, opt_state = optim.update(tx, grads, state.opt_state, state.params, phase.roots)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}
        norms = partial(_norms, [root for root in phase.roots if root in params])
        asked = logged(config.train.log_every, phase.stop, state.step + 1)
        metrics |= jax.lax.cond(asked, norms, _zeros(norms), grads, updates, params)
        state = state.replace(params=params, batch_stats=stats, opt_state=opt_state, step=state.step + 1)
        if state.average is not None:
            share = 1 - average_decay(state.step, config.train.ema)
            state = state.replace(average=optax.incremental_update(state.variables, state.average, share))
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)


def logged(every: int, last: int, step: Any) -> Any:
    """Whether a step is told in the log: its norms are computed then alone, in two launches an array on GPUs."""
    return (step % every == 0) | (step == last)


def _norms(roots: list[str], grads: Any, updates: Any, params: Any) -> Metrics:
    # what is behind the barrier XLA does not take out of its branch; it would compute both and choose
    grads, updates, params = jax.lax.optimization_barrier((grads, updates, params))
    trees = {"grad": grads, "update": updates, "param": params}
    return {f"{name}_norm/{root}": _norm(tree[root]) for name, tree in trees.items() for root in roots}


def _norm(tree: Any) -> Array:
    """Euclidean norm of all leaves. Vectors are most of the leaves and few of the numbers: one reduction takes them all."""
    leaves = jax.tree.leaves(tree)
    vectors = [x for x in leaves if x.ndim < 2]
    together = [jnp.concatenate([x.ravel() for x in vectors])] if vectors else []
    return optax.tree.norm(together + [x for x in leaves if x.ndim > 1])


def _zeros(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same arguments whose answers are zeros."""
    return lambda *args: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args))


def _inputs(config: Config, scale: float, batch: Batch, key: Array) -> Batch:
    """The images of a batch as the network takes them: colours changed, normalised."""
    unit = dict(mean=(0.0,), std=(1.0,), scale=scale)
    image, patches = normalise(batch["global_image"], **unit), normalise(batch["patches"], **unit)
    if config.train.colour_jitter:
        strength, bands = config.train.colour_jitter, config.train.jitter_bands
        image, patches = jitter_colour(key, image, patches, strength, bands)
    mean, std = config.normalisation.mean, config.normalisation.std
    return {"global_image": normalise(image, mean, std, 1.0), "patches": normalise(patches, mean, std, 1.0)}


def _gradients(loss_fn: Callable[..., Any], state: TrainState, batch: Batch, parts: int) -> tuple[Any, ...]:
    """Loss, its terms, new batch statistics and gradients; the mean over the ``parts`` of a batch, one after another."""
    key = jax.random.fold_in(state.key, state.step)
    whole = Whole(labels_of(batch), batch["valid"], parts) if parts > 1 else None
    grad_fn = jax.value_and_grad(partial(loss_fn, whole=whole), has_aux=True)
    if parts == 1:
        (loss, (terms, stats)), grads = grad_fn(state.params, state.batch_stats, batch, key)
        return loss, terms, stats, grads

    def add(carry, part):
        stats, total = carry
        (loss, (terms, stats)), grads = grad_fn(state.params, stats, part[0], part[1])
        return (stats, jax.tree.map(jnp.add, total, (loss, terms, grads))), None

    # every part takes contexts of every device: the parts follow one another, the devices share each of them
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    first = jax.tree.map(lambda x: x[0], split)
    (loss, (terms, _)), grads = jax.eval_shape(grad_fn, state.params, state.batch_stats, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, terms, grads))
    (stats, total), _ = jax.lax.scan(add, (state.batch_stats, zeros), (split, jax.random.split(key, parts)))
    loss, terms, grads = jax.tree.map(lambda x: x / parts, total)
    return loss, terms, stats, grads
