"""GLCANet on MBRSC Dubai: ``python -m experiments.mbrsc [paper|fast|cpu|tiny|sample] --data.dir DIR [--backbone FILE ...]``.

Trains on tiles 4, 5, 6 and 8, scores tile 2 once, at the end, with the last step's weights: nothing is chosen on it.
"""

import dataclasses
import sys

from experiments.presets import FAST, PAPER, SAMPLE, TINY
from glcanet_jax import cli
from glcanet_jax.config import Config, LossConfig, OptimiserConfig, TrainConfig, model_config
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.geometry import Views


def _on_mbrsc(config: Config, name: str) -> Config:
    data = dataclasses.replace(config.data, dataset="mbrsc", dir="data/mbrsc")
    return dataclasses.replace(config, data=data, out=f"runs/mbrsc-{name}")


# ImageNet ResNet-50s with frozen norms, 256-px views in contexts of the paper's ratio, on two CPU cores
CPU = Config(
    views=Views(context_size=1254, global_size=256, patch_size=256, overlap=32),
    loader=LoaderConfig(batch_size=2, patches_per_context=4, rare_class_fraction=0.4, scale_jitter=(0.6, 1.5)),
    model=model_config(norm="frozen", fpn_channels=128),
    loss=LossConfig(gamma=2.0),
    optimiser=OptimiserConfig(
        global_rate=1e-4, local_rate=1e-4, fusion_rate=3e-4, clip=1.0, warmup_steps=20, weight_decay=0.0
    ),
    train=TrainConfig(steps=560, colour_jitter=0.3, log_every=5, checkpoint_every=50),
)

PRESETS = {
    "paper": ("the paper's settings to the letter", _on_mbrsc(PAPER, "paper")),
    "fast": ("bf16 and six patches a context, for a GPU of 40 GB or more", _on_mbrsc(FAST, "fast")),
    "cpu": (
        "ResNet-50 from ImageNet weights (--backbone), 256-px patches, under 45 minutes on two cores",
        _on_mbrsc(CPU, "cpu"),
    ),
    "tiny": ("seconds on a CPU: shows that everything runs", _on_mbrsc(TINY, "tiny")),
    "sample": ("the bundled scene alone, a few minutes on two cores", SAMPLE),
}


def main() -> None:
    name, config = cli.choose_preset(PRESETS, "paper", "experiments.mbrsc", sys.argv[1:])
    from glcanet_jax import experiment

    experiment.run(config, split="test" if name == "sample" else "val")


if __name__ == "__main__":
    cli.run(main)
