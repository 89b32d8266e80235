"""Fine-tuning against noise: the folder that is made, what each way begins with, the table and the curve."""

import numpy as np

from experiments import finetune
from glcanet_jax.config import InitConfig
from glcanet_jax.data import open_dataset


def test_the_folder_is_the_bundled_scene_with_other_names(tmp_path):
    dataset, sample = open_dataset("folder", finetune.make_folder(tmp_path)), open_dataset("sample")
    assert dataset.classes.names == ("roof", "ground", "road", "plants", "water")
    for split in ("train", "test"):
        (own,), (whole,) = dataset.scenes(split), sample.scenes(split)
        assert (own.height, own.width) == (round(whole.height * 2 / 3), round(whole.width * 2 / 3))
        shares = [np.bincount(s.read_labels().ravel(), minlength=256) / (s.height * s.width) for s in (own, whole)]
        np.testing.assert_allclose(*shares, atol=2e-3)


def test_ways_differ_in_what_they_begin_with(tmp_path):
    options = finetune.Options(work=tmp_path)
    noise, tuned = (finetune.configure("tile2", way, 1, options) for way in ("scratch", "demo"))
    assert noise.init.weights is None and tuned.init == InitConfig("demo") and tuned.freeze == ("backbone",)
    assert noise.model == tuned.model and noise.views == tuned.views and noise.loader == tuned.loader
    assert noise.train == tuned.train and noise.loss == tuned.loss


def test_a_table_compares_seeds_that_both_have(tmp_path):
    curves = {("demo", 0): 50.0, ("demo", 1): 48.0, ("scratch", 0): 40.0}
    runs = [{"dataset": "tile2", "from": way, "seed": s, "curve": [[5, 9.0], [9, v]]} for (way, s), v in curves.items()]
    assert finetune.table(runs) == [{"dataset": "tile2", "scratch": [40.0], "demo": [50.0, 48.0], "gained": 10.0}]
    finetune.draw(tmp_path / "curve.webp", runs)
    assert (tmp_path / "curve.webp").stat().st_size > 1000
