"""GLCANet on MBRSC Dubai: ``python -m experiments.mbrsc [paper|fast|cpu|demo|small|tiny|sample] --data.dir DIR [--backbone FILE ...]``.

Trains on tiles 4, 5, 6 and 8, scores tile 2 once, at the end, with the last step's weights: nothing is chosen on it.
"""

import sys

from experiments.common.standard import on
from glcanet_jax import cli
from glcanet_jax.config import model_config
from glcanet_jax.presets import FAST, PAPER, PRETRAINED, RECIPE, SAMPLE, SMALL, TINY, changed

# scenes that are left out together to choose by: tiles 4 and 8 share ground; tile 2 is the test
FOLDS = {"4+8": ("tile4", "tile8"), "5": ("tile5",), "6": ("tile6",)}


# the recipe in 256-px views, ImageNet ResNet-50s with frozen norms, on two CPU cores
CPU = changed(PRETRAINED, {"train": {"log_every": 5, "eval_every": None, "checkpoint_every": 50}})

# a ResNet-18 of half the width, from scratch
LITTLE = changed(SMALL, {"train": {"eval_every": None}, "": {"eval_batch": 6}})

# what the bundled weights were trained with: GLCANet's branch alone, many patches a step, a few seconds of a large GPU
DEMO = changed(
    CPU,
    {
        "": {"model": model_config("branch", norm="frozen", fpn_channels=128), "eval_batch": 6},
        "loader": {"batch_size": 6, "patches_per_context": 4, "scale_jitter": (1 / 1.5, 1 / 0.6)},
        "optimiser": {"warmup_steps": 50},
        "train": {"steps": 600, "ema": 0.99},
    },
)

PRESETS = {
    "paper": ("the paper's settings to the letter", on(PAPER, "mbrsc", "paper")),
    "fast": (
        "the recipe of docs/results.md, bf16 and six patches a context, for a GPU of 40 GB or more",
        on(changed(FAST, RECIPE), "mbrsc", "fast"),
    ),
    "cpu": (
        "the same recipe, ResNet-50 from ImageNet weights (--backbone), 256-px patches, under 45 minutes on two cores",
        on(CPU, "mbrsc", "cpu"),
    ),
    "demo": (
        "the branch of ResNet-50 alone, 24 patches of 256 px a step: the bundled weights (--backbone), for a GPU",
        on(DEMO, "mbrsc", "demo"),
    ),
    "small": ("a ResNet-18 of half the width from scratch, 30 minutes on two cores", on(LITTLE, "mbrsc", "small")),
    "tiny": ("a few steps of a small network: shows that everything runs", on(TINY, "mbrsc", "tiny")),
    "sample": ("the bundled scene alone, a few minutes on two cores", SAMPLE),
}


def main() -> None:
    _, config = cli.choose_preset(PRESETS, "paper", "experiments.mbrsc", sys.argv[1:], __doc__)
    from glcanet_jax import experiment

    experiment.run(config, ("test",))


if __name__ == "__main__":
    cli.run(main)
