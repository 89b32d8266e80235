"""Scenes on the device, all or in turns: where they fit, that they are whole, and that a run never sees how fast they were read."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from glcanet_jax.config import DataConfig
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.data.turns import Turns, pooled
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.training import on_device, residents, sources
from glcanet_jax.training.records import Monitor, Timer
from tests.training.test_on_device import State, step

VIEWS = Views(context_size=48, global_size=32, patch_size=32, overlap=4)
SIZES = [(96, 96), (100, 90), (64, 200), (96, 80), (98, 98), (50, 60), (66, 190), (48, 58)]
CONTEXTS = [4, 4, 6, 4, 4, 2, 6, 2]
ROOM = 210_000  # bytes


def scene(number, read=None):
    """Its number is in every pixel's last bits; ``read`` is told when it is read."""
    height, width = SIZES[number]
    rng = np.random.default_rng(number)
    image = (rng.integers(0, 32, (height, width, 3)) * 8 + number).astype(np.uint8)
    made = ArrayScene(f"s{number}", image, rng.integers(0, 3, (height, width), np.uint8))
    if read is None:
        return made

    class Told(ArrayScene):
        def read_image(self, *window):
            read(number)
            return super().read_image(*window)

    return Told(made.name, made.image, made.labels)


SCENES = [scene(i) for i in range(len(SIZES))]


def plan(devices=1, divided=None, **options):
    config = LoaderConfig(
        **{"batch_size": 4, "patches_per_context": 2, "rare_class_fraction": 0.5, "flips": False} | options
    )
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    return on_device.Plan(VIEWS, config, 3, mesh, devices > 1 if divided is None else divided)


def turns(devices=1, room=ROOM, passes=2.0):
    kinds = pooled(SIZES, CONTEXTS, 4, room, devices)
    assert any(kind.turns for kind in kinds)
    return Turns(kinds, CONTEXTS, 4, passes, 0, 25)


def pool(the_turns, devices=1, scenes=None):
    return residents.Pool(scenes or SCENES, the_turns, plan(devices).mesh, devices > 1)


def lying(placed):
    """Scenes by their place, and their pixels and labels as they lie there."""
    for (group, at), extent, number in zip(*map(np.asarray, (placed.place, placed.extent, placed.scene)), strict=True):
        here = placed.groups[group]
        yield number, *(np.asarray(x[at])[: extent[0], : extent[1]] for x in (here.image, here.labels))


# --------------------------------------------------------------------------------------------------------- what lies there
@pytest.mark.parametrize("devices", [1, 2])
def test_whole_scenes_lie_there_in_turns(devices):
    the_turns = turns(devices, devices * ROOM)
    ours, seen = pool(the_turns, devices), set()
    due = {}
    arrivals = the_turns.arrivals()
    nearest = next(arrivals)
    for now in range(0, 40):
        while nearest.step <= now:
            due[nearest.place], nearest = nearest.scene, next(arrivals)
        found = list(lying(ours.at(now)))
        assert [number for number, *_ in found] == [due[place] for place in sorted(due)]
        for number, image, labels in found:
            np.testing.assert_array_equal(image, SCENES[number].image)
            np.testing.assert_array_equal(labels, SCENES[number].labels)
        seen |= {number for number, *_ in found}
    ours.close()
    assert seen == set(range(len(SCENES)))


def test_a_pool_begun_later_is_the_same():
    the_turns = turns()
    whole, later = pool(the_turns), pool(the_turns)
    for now in (0, 7, 8, 31):
        of_whole = whole.at(now)
    assert whole.told()["pool/came"] > sum(kind.places for kind in the_turns.pool)
    for ours, theirs in zip(jax.tree.leaves(of_whole), jax.tree.leaves(later.at(31)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert whole.told()["pool/came"] == later.told()["pool/came"] and whole.until(31) == later.until(31) > 31
    whole.close()
    later.close()


@pytest.mark.parametrize("devices", [1, 2])
def test_it_takes_what_it_may(devices, monkeypatch):
    """All that lies on the devices, what is on its way included, while scenes come."""
    before, taken = {id(x) for x in jax.live_arrays()}, []
    put = jax.device_put

    def noted(*args):
        out = put(*args)
        ours = [x for x in jax.live_arrays() if x.dtype == jnp.uint8 and id(x) not in before]
        shards = [shard for x in ours for shard in x.addressable_shards]  # each of them once
        taken.append(sum({(s.device, s.data.unsafe_buffer_pointer()): s.data.nbytes for s in shards}.values()))
        return out

    monkeypatch.setattr(jax, "device_put", noted)
    the_turns = turns(devices, devices * ROOM)
    ours = pool(the_turns, devices)
    for now in range(0, 60):
        ours.at(now)
    ours.close()
    assert len(taken) > 20 and max(taken) <= devices * ROOM
    assert max(taken) > 0.6 * devices * ROOM


# ------------------------------------------------------------------------------------------------------------ what is drawn
def batches(the_turns, devices, steps):
    ours, the_plan = pool(the_turns, devices), plan(devices)
    make = jax.jit(lambda key, scenes: on_device.make_batch(key, scenes, the_plan))
    for now in steps:
        yield jax.tree.map(np.asarray, make(jax.random.fold_in(jax.random.key(3), now), ours.at(now)))
    ours.close()


def test_devices_that_share_a_pool_draw_what_one_draws():
    the_turns = turns()
    for one, four in zip(batches(the_turns, 1, range(6)), batches(the_turns, 4, range(6)), strict=True):
        assert {number % 8 for number in np.unique(one["patches"] % 8)} == set(one["scene"].tolist())
        for name in one:
            np.testing.assert_array_equal(one[name], four[name], err_msg=name)


COMPILED = {}  # the one program of them all


def trained(the_turns, counts, scenes=None, begin=None, data=None):
    """State, log and position after dispatches of so many steps, each cut where others come."""
    source = sources.FromDevice(pool(the_turns, 1, scenes), plan(), Monitor(SCENES))
    state = State(jnp.int32(0), jnp.float32(0)) if begin is None else begin
    if data is not None:
        source.set_state(data)
    take = source.steps(
        step, lambda program, *given: COMPILED.get(0) or COMPILED.setdefault(0, program.lower(*given).compile())
    )
    for count in counts:
        stop = int(state.step) + count
        while (now := int(state.step)) < stop:
            state, _ = take(state, now, min(stop, source.until(now)) - now, Timer())
    source.flush()
    told, position = source.told(), source.get_state()
    source.close()
    return state, told, position


def test_a_run_goes_on_to_the_same_bits_however_slow_the_disk_is():
    rng = np.random.default_rng(0)
    slow = [scene(i, lambda _: time.sleep(rng.uniform(0, 0.02))) for i in range(len(SIZES))]
    whole, told, position = trained(turns(), [24])
    half, _, data = trained(turns(), [3, 8], slow)
    again, told_again, position_again = trained(turns(), [13], slow, half, data)
    assert int(whole.step) == int(again.step) == 24 and whole.total == again.total
    assert told == told_again and position == position_again
    assert sum(position["drawn"]) == 24 * 4 == position["contexts"]
    assert told["pool/draws"] == pytest.approx(24 * 4 / told["pool/came"], abs=1e-3) and told["pool/least"] > 0


def test_a_scene_that_cannot_be_read_is_told_when_its_turn_comes():
    def read(number):
        if reads.append(number) or reads.count(2) > 1:
            raise UserError("s2.tif was cut")

    reads = []
    ours = pool(turns(), 1, [scene(i, read) for i in range(len(SIZES))])
    with pytest.raises(UserError, match=r"s2\.tif was cut"):
        for now in range(400):
            ours.at(now)
    assert now > 0
    ours.close()


# --------------------------------------------------------------------------------------------------------- where it fits
def chosen(on_device="auto", pool=None, scenes=SCENES, the_plan=None):
    found = sources.choose(DataConfig(on_device=on_device, pool=pool), scenes, [1] * len(scenes), the_plan or plan())
    return found.on_device, found.pool


def test_what_cannot_lie_there_is_told():
    wide = ArrayScene("wide", np.zeros((200, 200, 3), np.uint16), np.zeros((200, 200), np.uint8))
    small = ArrayScene("small", np.zeros((15, 200, 3), np.uint8), np.zeros((15, 200), np.uint8))
    for other, word in ((wide, "scene wide holds uint16"), (small, "smaller than a patch of 32 px")):
        with pytest.raises(UserError, match=f"--data.on-device always cannot be: .*{word}"):
            chosen("always", scenes=[*SCENES, other])
        assert chosen("auto", scenes=[*SCENES, other]) == chosen("auto", "1MB", [*SCENES, other]) == ("never", None)
    assert chosen("never") == chosen("auto") == ("never", None)  # on a CPU
    assert chosen("always") == ("always", None)
    with pytest.raises(UserError, match="--data.pool is of no use with --data.on-device never"):
        chosen("never", "8GB")
    with pytest.raises(UserError, match="--data.pool is 'much'; it must be a size"):
        chosen("auto", "much")


def big(count):
    return [
        ArrayScene(f"b{i}", np.zeros((600, 600, 3), np.uint8), np.zeros((600, 600), np.uint8)) for i in range(count)
    ]


def test_a_pool_is_taken_where_its_size_is_given(capsys, monkeypatch):
    scenes, contexts = big(6), [1] * 6
    choose = lambda pool, the_plan=None, where="auto": sources.choose(  # noqa: E731
        DataConfig(on_device=where, pool=pool), scenes, contexts, the_plan or plan()
    )
    for where in ("auto", "always"):
        found = choose("5MB", where=where)
        assert (found.on_device, found.pool) == ("always", str(5 * 2**20))
        assert choose(found.pool) == found  # what was chosen is chosen again
    assert "6 scenes take turns on the device, 2 of them at a time, in 5 MB" in capsys.readouterr().out
    assert (choose("9MB").on_device, choose("9MB").pool) == ("always", None)
    assert choose("9MB", plan(2)).pool == str(9 * 2**20)  # two devices would each have all of them
    with pytest.raises(UserError, match=r"--data.pool is 2\.0 MB; the largest scene takes 1\.4 MB.*at least 3 MB"):
        choose("2MB")
    monkeypatch.setattr(sources, "free_memory", lambda: 4 * 2**20)
    with pytest.raises(UserError, match="--data.pool is 5 MB, and 4 MB are free there; give less"):
        choose("5MB")
    few = sources.choose(DataConfig(pool="5MB"), scenes[:2], contexts[:2], plan())
    assert (few.on_device, few.pool) == ("always", None)  # which need less
    assert sum(k.places for k in sources.turns_of(choose("4MB"), scenes, contexts, plan()).pool) == 1


def test_on_accelerators_what_fits_is_chosen(capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    scenes, told = big(40), lambda: capsys.readouterr().out
    size = residents.bytes_of(scenes)
    assert size == 40 * math.prod((600, 600, 4))

    def on(free, where="auto", **options):
        monkeypatch.setattr(sources, "free_memory", lambda: free)
        found = sources.choose(DataConfig(on_device=where), scenes, [1] * 40, plan(**options))
        return found.on_device, found.pool

    assert on(int(size / sources.SHARE) + 3) == ("always", None) and "40 scenes are decoded once" in told()
    less = int(size / sources.SHARE) - 3
    where, pool = on(less)
    assert where == "always" and int(pool) == int(sources.SHARE * less) and "38 of them at a time" in told()
    assert on(less, positions="grid") == ("never", None) and "epochs are exact" in told()
    assert (
        on(size) == ("never", None) and "of 55 MB that are free 40% are for them" in told()
    )  # 15 places for 4 contexts
    with pytest.raises(UserError, match="always cannot be: the scenes take 55 MB.*or a --data.pool"):
        on(size - 1, "always")
