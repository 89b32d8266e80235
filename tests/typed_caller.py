from pathlib import Path

import numpy as np

import glcanet_jax

segmenter: glcanet_jax.Segmenter = glcanet_jax.load("demo")
prediction = segmenter.predict("scene.tif", out="maps", confidence=True, polygons="gpkg")
classes: np.ndarray = prediction.classes
sure: np.ndarray | None = prediction.confidence
names: tuple[str, ...] = prediction.names
run: Path = glcanet_jax.train(glcanet_jax.Config(out="runs/mine"))
scores = segmenter.evaluate(glcanet_jax.open_dataset("folder", "DIR"), split="test")
print(names, np.asarray(prediction).shape, scores["protocols"], glcanet_jax.models.names(), glcanet_jax.__version__)
