"""One training step: who learns, how fast, from what; and the same on several devices."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from glcanet_jax import models
from glcanet_jax.config import LossConfig, OptimiserConfig
from glcanet_jax.errors import UserError
from glcanet_jax.measure import info
from glcanet_jax.presets import TINY
from glcanet_jax.training import freezing, loop, losses, optim, phases, records, sources
from glcanet_jax.training import step as training
from tests.training.test_resume import Toy

SIDE, CLASSES = 48, 4
RATES = OptimiserConfig(global_rate=1e-4, local_rate=2e-5, fusion_rate=3e-5, schedule="constant")


def make_batch(b=4, n=2, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (b, n, 2))
    return {
        "global_image": rng.integers(0, 256, (b, SIDE, SIDE, 3), np.uint8),
        "global_labels": rng.integers(0, CLASSES, (b, SIDE, SIDE), np.uint8),
        "patches": rng.integers(0, 256, (b, n, SIDE, SIDE, 3), np.uint8),
        "patch_labels": rng.integers(0, CLASSES, (b, n, SIDE, SIDE), np.uint8),
        "boxes": np.concatenate([corner, corner + 0.4], -1).astype(np.float32),
        "valid": np.ones((b, n), bool),
    }


def configured(train=None, **parts):
    return dataclasses.replace(TINY, optimiser=RATES, train=dataclasses.replace(TINY.train, **(train or {})), **parts)


def built(network="glcanet", **options):
    small = {"depth": 10, "fast_conv": False, "width": 8, "fpn_channels": 16}
    if network == "nonlinear":
        network, options = "glcanet", {"head": "nonlinear", "feed_forward": 2} | options
    return Toy(CLASSES, **options) if network == "toy" else models.build(network, CLASSES, **{**small, **options})


def start(config, key=0, network="glcanet", **options):
    model = built(network, **options)
    variables = models.init(model, jax.random.key(key), 3)
    spans = phases.plan(config.train.schedule, 10, config.train.global_steps)
    tx = optim.optimiser(config.optimiser, spans)
    return model, tx, spans, training.create_state(variables, tx, jax.random.key(1))


def abstract(model, tx):
    """The shapes of a network's state; nothing is compiled."""
    init = lambda key: training.create_state(models.init(model, key, 3), tx, key)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))


# what is about the step rather than the network is shown with one that compiles at once, and with the real one when asked
networks = pytest.mark.parametrize("network", ["toy", pytest.param("glcanet", marks=pytest.mark.slow)])


def copy(tree):
    return jax.tree.map(np.array, tree)


def moved(before, after):
    """Largest change of a tree of arrays."""
    return max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


JOINT = configured({"log_every": 1}, loss=LossConfig(lovasz=0.1))


@pytest.fixture(scope="module", params=["toy", pytest.param("glcanet", marks=pytest.mark.slow)])
def joint(request):
    """One joint step with BatchNorm: the state before, after, the metrics, and the arrays that were donated."""
    model, tx, spans, state = start(JOINT, network=request.param)
    before = copy({"params": state.params, "stats": state.batch_stats})
    given = jax.tree.leaves((state.params, state.batch_stats, state.opt_state))
    state, metrics = training.make_train_step(model, tx, JOINT, 255.0, spans[0])(state, make_batch())
    return before, state, metrics, given


def test_the_state_is_donated(joint):
    """Parameters and moments are there once, not twice."""
    assert all(x.is_deleted() for x in joint[3])


def test_nothing_is_scattered():
    """GPUs add up what is scattered in any order, so that gradients would have other bits every time."""
    model, spans = built(), phases.plan("joint", 10, None)
    tx = optim.optimiser(JOINT.optimiser, spans)
    step = training.make_train_step(model, tx, JOINT, 255.0, spans[0])
    text = step.lower(abstract(model, tx), make_batch()).as_text()
    assert "stablehlo.gather" in text and "stablehlo.scatter" not in text


def test_every_root_moves_at_its_own_rate(joint):
    """Adam's first step is the rate, whatever the gradient: the sharpest check of who is labelled what."""
    before, state, metrics, *_ = joint
    for root, rate in {"global": 1e-4, "local": 2e-5, "fusion": 3e-5}.items():
        assert moved(before["params"][root], copy(state.params[root])) == pytest.approx(rate, rel=1e-2)
        assert metrics[f"grad_norm/{root}"] > 0 and metrics[f"update_norm/{root}"] > 0
    assert int(state.step) == 1
    total = sum(v for k, v in metrics.items() if k.startswith("loss/"))
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert {"loss/fused", "loss/local", "loss/global", "loss/regulariser"} <= set(metrics)


def test_norms_are_made_where_they_are_logged():
    """Behind a condition: elsewhere nothing of the sort runs, and they are zero."""
    config = configured({"log_every": 3})
    model, tx, spans, state = start(config, network="toy")
    step = training.make_train_step(model, tx, config, 255.0, spans[0]._replace(stop=4))
    jaxpr = jax.make_jaxpr(step)(state, make_batch()).jaxpr.eqns[0].params["jaxpr"].jaxpr
    (cond,) = [e for e in jaxpr.eqns if e.primitive.name == "cond"]
    roots = [e for e in jaxpr.eqns if e.primitive.name == "sqrt" and not e.outvars[0].aval.shape]
    inside = [sum(e.primitive.name == "sqrt" for e in branch.jaxpr.eqns) for branch in cond.params["branches"]]
    assert roots == [] and inside == [0, 9]
    # without it XLA for GPUs computes them always, and chooses (experiments.launches counts)
    assert "optimization_barrier" in [e.primitive.name for e in cond.params["branches"][1].jaxpr.eqns]
    names = [f"{name}_norm/{root}" for name in ("grad", "update", "param") for root in ("global", "local", "fusion")]
    for i in range(1, 5):
        state, metrics = step(state, make_batch(seed=i))
        assert [metrics[name] > 0 for name in names] == [i in (3, 4)] * 9 and metrics["loss"] > 0
    np.testing.assert_allclose(metrics["param_norm/local"], optax.tree.norm(state.params["local"]), rtol=1e-5)


def test_running_statistics_follow(joint):
    before, state, *_ = joint
    assert moved(before["stats"]["global"], copy(state.batch_stats["global"])) > 0
    assert moved(before["stats"]["local"], copy(state.batch_stats["local"])) > 0


def test_the_moving_average_of_the_weights():
    """By the stated decay at every step, statistics included; training itself does not notice.

    To the bit, where two programs that differ in the average alone are fused alike: by the compiler's own emitters.
    """
    own = {"xla_cpu_use_fusion_emitters": True} if "use_fusion_emitters" in os.environ["XLA_FLAGS"] else {}
    plain, averaged = configured({"schedule": "joint"}), configured({"schedule": "joint", "ema": 0.3})
    model, tx, spans, state = start(plain, network="toy")
    by_hand = copy(state.variables)
    step = training.make_train_step(model, tx, plain, 255.0, spans[0])
    step = step.lower(state, make_batch()).compile(compiler_options=own)
    after = []
    for i in range(4):
        state, _ = step(state, make_batch(seed=i))
        after.append(copy(state.variables))
        decay = min(0.3, (2 + i) / (11 + i))
        by_hand = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, by_hand, after[-1])  # noqa: B023
    variables = models.init(model, jax.random.key(0), 3)
    state = training.create_state(variables, tx, jax.random.key(1), average=True)
    step = training.make_train_step(model, tx, averaged, 255.0, spans[0])
    step = step.lower(state, make_batch()).compile(compiler_options=own)
    for i in range(4):
        state, _ = step(state, make_batch(seed=i))
    assert same(after[-1], copy(state.variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), by_hand, copy(state.answering))
    assert moved(copy(state.answering), after[-1]) > 1e-6


def test_every_term_has_its_region_losses():
    """Dice and Lovasz beside every focal term, with its weight."""
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.standard_normal((4, 2, SIDE, SIDE, CLASSES)), jnp.float32)
    out = {"local/logits": logits[..., ::-1], "global/logits": logits[:, 0]}
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    batch["valid"] = batch["valid"].at[1].set(False)  # ignored by all of them
    labels = jnp.where(batch["valid"][..., None, None], batch["patch_labels"], 255)
    config = LossConfig(gamma=0.0, fused=0.5, local=2.0, dice=0.7, lovasz=0.2, regulariser=0.0)
    terms = training.loss_terms(config, logits, out, batch)
    of = lambda x, y: losses.focal(x, y, 0.0) + 0.7 * losses.dice(x, y) + 0.2 * losses.lovasz(x, y)  # noqa: E731
    assert terms.keys() == {"fused", "local", "global"}
    np.testing.assert_allclose(terms["fused"], 0.5 * of(logits, labels), rtol=1e-6)
    np.testing.assert_allclose(terms["local"], 2.0 * of(logits[..., ::-1], labels), rtol=1e-6)
    np.testing.assert_allclose(terms["global"], of(logits[:, 0], batch["global_labels"]), rtol=1e-6)


@pytest.mark.parametrize(
    "network",
    ["toy", pytest.param("glcanet", marks=pytest.mark.slow), pytest.param("nonlinear", marks=pytest.mark.slow)],
)
def test_staged_trains_one_after_the_other(network):
    config = configured({"schedule": "staged", "global_steps": 1})
    model, tx, spans, state = start(config, network=network)
    assert [(p.name, p.start, p.stop) for p in spans] == [("global", 0, 1), ("rest", 1, 10)]
    begin = copy({"params": state.params, "stats": state.batch_stats})
    state, metrics = training.make_train_step(model, tx, config, 255.0, spans[0])(state, make_batch())
    middle = copy({"params": state.params, "stats": state.batch_stats})
    assert moved(begin["params"]["global"], middle["params"]["global"]) == pytest.approx(1e-4, rel=1e-2)
    for root in ("local", "fusion"):
        assert same(begin["params"][root], middle["params"][root])
    assert same(begin["stats"]["local"], middle["stats"]["local"])
    assert set(k for k in metrics if k.startswith("loss/")) == {"loss/global"}
    state, _ = training.make_train_step(model, tx, config, 255.0, spans[1])(state, make_batch(seed=1))
    end = copy({"params": state.params, "stats": state.batch_stats})
    assert same(middle["params"]["global"], end["params"]["global"])
    assert same(middle["stats"]["global"], end["stats"]["global"])
    assert moved(middle["params"]["local"], end["params"]["local"]) == pytest.approx(2e-5, rel=1e-2)
    assert moved(middle["params"]["fusion"], end["params"]["fusion"]) == pytest.approx(3e-5, rel=1e-2)
    assert moved(middle["stats"]["local"], end["stats"]["local"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"sharing": "glnet"}, {"head": "nonlinear"}], ids=str)
def test_a_frozen_branch_takes_no_gradient_from_the_others(options):
    """The fusion learns as in joint training also from what it makes of the global maps while they are encoded."""
    model, _, _, state = start(configured(), norm="frozen", **options)
    batch = {k: jnp.asarray(v) for k, v in make_batch(b=1).items()}
    batch |= {k: batch[k].astype(jnp.float32) / 255 for k in ("global_image", "patches")}

    @jax.jit
    def gradients(params):
        def loss(params, stage):
            variables = {"params": params, "batch_stats": state.batch_stats}
            (logits, _), _ = stage.forward(model, variables, batch, jax.random.key(0))
            return jnp.mean(logits**2)

        return [jax.grad(loss)(params, stage) for stage in (phases.JOINT, phases.REST)]

    params = jax.tree.map(lambda x: x + 0.02, state.params)  # nothing is at zero any more
    joint, rest = gradients(params)
    assert (
        moved(rest["global"], jax.tree.map(np.zeros_like, rest["global"])) == 0 < moved(joint["global"], rest["global"])
    )
    for root in ("local", "fusion"):
        for a, b in zip(jax.tree.leaves(joint[root]), jax.tree.leaves(rest[root]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(a).max()))


@functools.cache
def frozen(network):
    """Variables before and after one step with frozen norms, and its metrics: the measure for what must change nothing."""
    return one_step(configured(), network=network, norm="frozen")


def one_step(config, *batches, mesh=None, **options):
    """Variables after one step of plain gradient descent, for differences to be gradients and not Adam's signs.

    Returns the variables before, and for each batch by itself those after and the metrics.
    """
    model, _, spans, state = start(config, **options)
    labels = {root: root for root in state.params}
    tx = optax.multi_transform({root: optax.sgd(1.0) for root in labels}, labels)
    before = copy(state.variables)
    step = training.make_train_step(model, tx, config, 255.0, spans[0])
    out = []
    for batch in batches or (make_batch(),):
        state = training.create_state(jax.tree.map(jnp.array, before), tx, jax.random.key(1))
        if mesh is not None:
            state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
            batch = sources.place_batch(batch, mesh)
        state, metrics = step(state, batch)
        out.append((copy(state.variables), copy(metrics)))
    return before, *out


def close(a, b, tolerance=1e-5):
    scale = max(1.0, max(np.abs(x).max() for x in jax.tree.leaves(a)))
    assert moved(a, b) <= tolerance * scale


@pytest.mark.parametrize("network", ["branch", pytest.param("glcanet", marks=pytest.mark.slow)])
def test_frozen_norms_stay(network):
    before, (after, _) = frozen(network)
    for root in ("local",) if network == "branch" else ("global", "local"):
        parts = lambda v, kind: v[kind][root].get("branch", v[kind][root])["resnet"]  # noqa: B023, E731
        assert same(parts(before, "batch_stats"), parts(after, "batch_stats"))
        old, new = (flatten_dict(parts(v, "params")) for v in (before, after))
        norms = [path for path in old if any("norm" in part for part in path)]
        assert len(norms) >= 2 * 9  # scale and bias of a ResNet-10's stem and blocks
        assert all(np.array_equal(old[path], new[path]) for path in norms)
        assert all((old[path] != new[path]).any() for path in old if path not in norms)


@networks
def test_accumulation_adds_up(network):
    """Norms that do not see the batch: the parts of a batch give the step of the whole, however many pixels of each count."""
    batch = make_batch()
    batch["patch_labels"][0] = 255
    batch["patch_labels"][1, :, 8:] = 255
    batch["global_labels"][2, 5:] = 255
    batch["valid"][3, 1] = False
    loss = dataclasses.replace(TINY.loss, class_weights=(1.0, 5.0, 0.2, 1.0), smoothing=0.1)
    before, (whole, metrics) = one_step(configured(loss=loss), batch, network=network, norm="group")
    for parts in (2, 4):
        _, (after, accumulated) = one_step(
            configured({"accumulation": parts}, loss=loss), batch, network=network, norm="group"
        )
        assert moved(before["params"], whole["params"]) > 1e-3
        close(whole["params"], after["params"])
        for name in ("loss", *(key for key in metrics if key.startswith("loss/"))):
            np.testing.assert_allclose(accumulated[name], metrics[name], rtol=1e-5)


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    _, (plain, metrics) = frozen("glcanet")
    _, (after, again) = one_step(configured(), norm="frozen", remat=True)
    close(plain["params"], after["params"])
    np.testing.assert_allclose(again["loss"], metrics["loss"], rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_and_keeps_float32():
    _, (plain, metrics) = frozen("glcanet")
    _, (after, low) = one_step(configured(), norm="frozen", dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(after)} == {np.dtype("float32")}
    assert low["loss"].dtype == np.float32
    np.testing.assert_allclose(low["loss"], metrics["loss"], rtol=0.05)
    assert moved(plain["params"], after["params"]) > 1e-7  # it did compute otherwise


@pytest.mark.slow
def test_bfloat16_batch_norm_keeps_float32():
    """Running statistics, moments and metrics too."""
    config = configured()
    model, tx, spans, state = start(config, dtype="bfloat16")
    step = training.make_train_step(model, tx, config, 255.0, spans[0])

    def parts(state, batch):
        after, metrics = step(state, batch)
        return after.params, after.batch_stats, [x for x in jax.tree.leaves(after.opt_state) if x.ndim], metrics

    for part in jax.eval_shape(parts, state, make_batch()):
        assert {x.dtype for x in jax.tree.leaves(part)} == {np.dtype("float32")}


@networks
def test_invalid_patches_do_not_count(network):
    """Whatever is in a patch that is not valid."""
    batch, other = make_batch(), make_batch()
    batch["valid"][:, 1] = other["valid"][:, 1] = False
    other["patch_labels"][:, 1] = 0
    other["patches"][:, 1] = 7
    _, (a, first), (b, second) = one_step(configured(), batch, other, network=network, norm="group")
    close(a["params"], b["params"], 1e-6)
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-6)


@networks
def test_four_devices_are_as_one(network):
    """Batch of 8, batch statistics and all, through the loop's own mesh.

    By gradient descent at rate 1: Adam's first steps are the gradient's sign, which for a gradient of rounding errors
    is chance.
    """
    config = configured(loss=LossConfig(gamma=2.0))
    batch, results = make_batch(b=8, n=1), {}
    for count in (1, 4):
        mesh = loop.make_mesh(8, count)
        assert mesh.size == count
        _, results[count] = one_step(config, batch, mesh=mesh, network=network)
    (one, alone), (four, spread) = results[1], results[4]
    for name, value in alone.items():
        np.testing.assert_allclose(spread[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert moved(one["params"], four["params"]) <= 1e-5
    assert moved(one["batch_stats"], four["batch_stats"]) <= 1e-5


def test_devices_that_do_not_fit():
    assert loop.make_mesh(6, None).size == 3  # of four, the most that divide six contexts
    with pytest.raises(UserError, match="6 contexts a batch must divide by it"):
        loop.make_mesh(6, 4)


def test_the_first_loss_that_is_not_finite_stops():
    """Naming its step, its terms and its scenes; one step late at most."""
    scene = dataclasses.make_dataclass("S", ["name"])
    monitor = records.Monitor([scene("north"), scene("south")])
    batch = {"scene": np.array([1, 0]), "context": np.array([[0, 0, 5, 5], [7, 8, 5, 5]])}
    monitor.watch(1, {"loss": jnp.float32(1.0)}, batch)
    monitor.watch(2, {"loss": jnp.float32(np.nan), "loss/local": jnp.float32(np.inf)}, batch)
    with pytest.raises(
        UserError, match=r"step 2: loss, loss/local; .*south at \(0, 0, 5, 5\), north at \(7, 8, 5, 5\)"
    ):
        monitor.watch(3, {"loss": jnp.float32(1.0)}, batch)


def test_a_gradient_that_is_not_finite_stops_before_anything_is_saved():
    """By its norm where that is known, else by what it left in the state: the loss is still finite."""
    scene = dataclasses.make_dataclass("S", ["name"])
    batch = {"scene": np.array([0]), "context": np.array([[0, 0, 5, 5]])}
    params = {"local": {"w": jnp.ones(3)}, "fusion": {"w": jnp.ones(2)}}
    state = training.create_state({"params": params}, optax.adam(1e-3), jax.random.key(0), average=True)
    monitor = records.Monitor([scene("north")])
    monitor.watch(1, {"loss": jnp.float32(1.0), "grad_norm/local": jnp.float32(2.0)}, batch)
    monitor.flush(state)
    monitor.watch(2, {"loss": jnp.float32(1.0), "grad_norm/local": jnp.float32(np.inf)}, batch)
    with pytest.raises(UserError, match=r"not finite at step 2: grad_norm/local; scenes .*north at \(0, 0, 5, 5\)"):
        monitor.flush()
    bad = jnp.array([1.0, np.nan, np.inf])
    moments = jax.tree.map(lambda x: x + np.inf if x.ndim else x, state.opt_state)
    for changed, told in (
        ({"params": params | {"local": {"w": bad}}}, "params/local"),
        ({"opt_state": moments}, "opt_state"),
        ({"average": {"params": {"local": bad}}}, "average"),
    ):
        monitor.watch(3, {"loss": jnp.float32(1.0)}, batch)
        with pytest.raises(UserError, match=f"not finite at step 7: {told}; scenes .*north"):
            monitor.flush(state.replace(step=state.step + 7, **changed))


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_schedules(schedule):
    config = OptimiserConfig(global_rate=1e-3, schedule=schedule, warmup_steps=4)
    rate = optim.rates(config, phases.plan("joint", 24, None))["global"]
    values = np.array([float(rate(i)) for i in range(24)])
    assert values[0] < values[1] < values[2] < values[3] <= 1e-3 * (1 + 1e-6)
    left = 1 - np.arange(20) / 20
    expected = {"poly": left**0.9, "cosine": 0.5 * (1 + np.cos(np.pi * (1 - left))), "constant": np.ones(20)}[schedule]
    np.testing.assert_allclose(values[4:], 1e-3 * expected, rtol=1e-4, atol=1e-9)


def test_phases():
    assert [(p.name, *p[1:]) for p in phases.plan("joint", 10, 4)] == [("global", 0, 4), ("joint", 4, 10)]
    assert [(p.name, *p[1:]) for p in phases.plan("staged", 170, None)] == [("global", 0, 120), ("rest", 120, 170)]
    assert [(p.name, *p[1:]) for p in phases.plan("joint", 10, None)] == [("joint", 0, 10)]
    stages = ("global", "rest", "feedback")  # GLNet's epochs are 120, 50 and 120
    assert [tuple(p)[1:] for p in phases.plan("staged", 290, None, stages)] == [(0, 120), (120, 170), (170, 290)]
    assert [tuple(p)[1:] for p in phases.plan("staged", 270, 100, stages)] == [(0, 100), (100, 150), (150, 270)]
    for schedule in ("joint", "staged"):  # a network of one phase has it, whatever the schedule
        assert phases.plan(schedule, 9, None, ("joint",)) == (phases.Phase(phases.JOINT, 0, 9),)
    with pytest.raises(UserError, match="train.global_steps is 11; it must lie between 0 and the 10 steps"):
        phases.plan("staged", 10, 11)


def test_a_frozen_root_keeps_its_moments_and_its_place_in_the_schedule():
    config = OptimiserConfig(local_rate=1e-3)
    spans = phases.plan("staged", 10, 6)
    params = {root: {"w": jnp.ones(3)} for root in phases.ROOTS}
    tx = optim.optimiser(config, spans)
    state = tx.init(params)
    for _ in range(3):
        updates, new = optim.update(tx, params, state, params, spans[0].roots)
        assert not updates["local"]["w"].any() and not updates["fusion"]["w"].any() and updates["global"]["w"].all()
        for root in ("local", "fusion"):
            assert same(new.inner_states[root], state.inner_states[root])
        assert not same(new.inner_states["global"], state.inner_states["global"])
        state = new
    updates, _ = optim.update(tx, params, state, params, spans[1].roots)
    np.testing.assert_allclose(updates["local"]["w"], -1e-3, rtol=1e-3)  # a first step at the full rate
    assert float(optim.rates(config, spans)["local"](4)) == 0  # all of its schedule in the four steps that train it


def test_clipping_and_weight_decay():
    """The norm of a root's gradient is bounded; decay pulls coupled, as an addition to the gradient."""
    params = {root: {"w": jnp.full((4,), 2.0)} for root in ("global", "local", "fusion")}
    grads = jax.tree.map(lambda x: 100 * jnp.ones_like(x), params)
    spans = phases.plan("joint", 10, None)
    roots = spans[0].roots
    for clip, norm in ((1.0, 1.0), (None, 200.0)):
        tx = optim.optimiser(OptimiserConfig(clip=clip), spans)
        _, state = optim.update(tx, grads, tx.init(params), params, roots)
        first_moment = optax.tree_utils.tree_get(state.inner_states["local"], "mu")
        np.testing.assert_allclose(optax.tree.norm(first_moment), (1 - 0.9) * norm, rtol=1e-5)
    none = jax.tree.map(jnp.zeros_like, params)
    tx = optim.optimiser(OptimiserConfig(weight_decay=0.1, schedule="constant"), spans)
    updates, _ = optim.update(tx, none, tx.init(params), params, roots)
    np.testing.assert_allclose(updates["local"]["w"], -2e-5, rtol=1e-3)  # Adam of the decay alone


# --------------------------------------------------------------------------------------------------------------- freezing
def with_backbone(freeze):
    """A branch and the shapes of its state, whose backbone may be frozen; nothing is compiled."""
    model = models.build("branch", CLASSES, depth=10, fpn_channels=16, norm="frozen", fast_conv=False)
    config = configured(freeze=freeze)
    (phase,) = spans = phases.plan("joint", 10, None, models.stages(model))
    tx = optim.optimiser(config.optimiser, spans, freeze)
    step = training.make_train_step(model, tx, config, 255.0, phase)
    return step, abstract(model, tx)


def test_a_frozen_backbone_costs_no_backward_pass_and_no_moments():
    cost, moments = {}, {}
    for freeze in ((), ("backbone",)):
        step, state = with_backbone(freeze)
        cost[freeze] = info.count_flops(jax.make_jaxpr(step)(state, make_batch()).jaxpr)
        moments[freeze] = sum(x.size for x in jax.tree.leaves(state.opt_state))
        backbone = sum(x.size for x in jax.tree.leaves(state.params["local"]["branch"]["resnet"]))
    assert moments[()] - moments[("backbone",)] == 2 * backbone
    assert cost[("backbone",)] < 0.75 * cost[()]


def test_what_is_frozen_stays_and_the_rest_moves():
    rates = OptimiserConfig(global_rate=1e-3, local_rate=1e-3, fusion_rate=1e-3, weight_decay=0.1)
    config = dataclasses.replace(configured(freeze=("local/*",)), optimiser=rates)
    model, _, spans, state = start(configured(), network="toy")
    tx = optim.optimiser(config.optimiser, spans, config.freeze)
    state = training.create_state(copy(state.variables), tx, jax.random.key(1))
    before = copy(state.params)
    state, _ = training.make_train_step(model, tx, config, 255.0, spans[0])(state, make_batch())
    assert same(before["local"], copy(state.params["local"]))
    assert moved(before["global"], copy(state.params["global"])) > 0


@pytest.mark.parametrize(
    "patterns, told",
    [
        (("local/resnet",), "means no parameter .perhaps you meant .*; give all-but-heads, or a pattern"),
        (("*",), "nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_told(patterns, told):
    params = {"local": {"lem": {"kernel": np.zeros(2)}}}
    with pytest.raises(UserError, match=told):
        freezing.frozen(params, patterns)
