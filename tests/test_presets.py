"""Presets for anybody's data: what fits which scenes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glcanet_jax import presets
from glcanet_jax.data import folder
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.ground import ground_resolution
from glcanet_jax.data.scenes import ArrayScene, WindowScene
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views

sides = st.integers(33, 20000)
NAMES = sorted(presets.PRESETS)


@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    st.none() | st.floats(1e-3, 1e4),
)
def test_no_view_is_larger_than_a_scene(name, sizes, ground):
    before = presets.preset(name).views
    views = presets.fitted(
        before, sizes, ground, presets.METRES.get(name)
    )  # Views itself refuses what does not go together
    smallest = min(map(min, sizes))
    assert views.patch_size <= min(smallest, before.patch_size)
    assert views.global_size <= before.global_size
    if before.context_size is None:
        assert views.context_size is None
        return
    assert views.context_size <= smallest
    patches = views.context_size / views.patch_size
    assert patches <= 6
    if smallest >= 3 * presets.LEAST:  # where scenes allow, a context is a surrounding
        assert patches >= 3


@pytest.mark.parametrize("name", NAMES)
def test_where_it_was_measured_a_preset_is_what_was_measured(name):
    """Scenes as large as DeepGlobe's, and for the recipe MBRSC's resolution."""
    before = presets.preset(name).views
    ground = {"recipe": 380 / 1254, "fast": 0.5}.get(name)
    assert presets.fitted(before, [(2448, 2448)], ground, presets.METRES.get(name)) == before
    assert presets.fitted(before, [(2448, 2448)], None, presets.METRES.get(name)) == before


def test_contexts_keep_their_metres():
    recipe = presets.preset("recipe").views
    context = lambda ground: presets.fitted(recipe, [(9000, 9000)], ground, 380.0).context_size  # noqa: E731
    assert [context(g) for g in (0.05, 0.3, 0.4, 10.0)] == [1536, 1267, 950, 768]


def test_what_somebody_chose_stays():
    recipe = presets.preset("recipe").views
    own = Views(context_size=900, global_size=192, patch_size=96, overlap=7)
    assert (
        presets.fitted(own, [(300, 300)], 5.0, 380.0, ("context_size", "global_size", "patch_size", "overlap")) == own
    )
    patch = presets.fitted(Views(**{**vars(recipe), "patch_size": 64}), [(2000, 2000)], None, None, ("patch_size",))
    assert (patch.patch_size, patch.context_size) == (64, 384)


def test_a_backbone_has_a_recipe_of_its_own():
    own, given = presets.preset("recipe"), presets.preset("recipe", backbone=True)
    assert own.model.depth == 18 and given.model.depth == 50 and given.model.norm == "frozen"
    assert own.loss == given.loss and own.train.ema == given.train.ema == 0.98
    slow, fast = (presets.preset("fast", backbone).optimiser for backbone in (True, False))
    assert fast.global_rate > slow.global_rate  # what begins as noise has further to go
    assert presets.preset("tiny", backbone=True) == presets.preset("tiny")
    with pytest.raises(UserError, match="there are recipe, fast, paper, tiny"):
        presets.preset("best")


def test_the_smaller_presets_are_there():
    assert {*presets.SMALLER, *presets.SMALLER.values(), *presets.METRES} <= presets.PRESETS.keys()


def test_the_ground_resolution_of_a_scene(tmp_path):
    import numpy as np
    import rasterio
    from affine import Affine

    given = {"driver": "GTiff", "height": 40, "width": 50, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32640", "transform": Affine(0.5, 0, 3e5, 0, -0.5, 2.8e6)}
    for name, more in (("a", place), ("b", {})):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **given, **more) as file:
            file.write(np.ones((3, 40, 50), np.uint8))
    table = ClassTable(("x", "y"), ((0, 0, 0), (9, 9, 9)))
    a, b = (folder.FileScene(name, tmp_path / f"{name}.tif", None, table) for name in "ab")
    assert ground_resolution(WindowScene("w", a, 0, 0, 10, 10)) == pytest.approx(0.5, rel=2e-3)  # UTM's scale
    assert ground_resolution(b) is None and ground_resolution(ArrayScene("c", np.zeros((4, 4, 3)))) is None
