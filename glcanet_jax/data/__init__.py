"""Datasets by name. Images and masks are read with rasterio; tfds is needed for prepared builds alone."""

from pathlib import Path
from typing import Any

from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import OWN, Dataset, DatasetMissing, Protocol
from glcanet_jax.data.deepglobe import DEEPGLOBE
from glcanet_jax.data.fbp import FBP, GID15
from glcanet_jax.data.flair import FLAIR
from glcanet_jax.data.folder import open_folder
from glcanet_jax.data.inria import INRIA
from glcanet_jax.data.isprs import SURVEYS, open_potsdam, open_vaihingen
from glcanet_jax.data.loveda import LOVEDA
from glcanet_jax.data.mbrsc import open_mbrsc, open_sample
from glcanet_jax.data.tiled import open_tiles
from glcanet_jax.data.urur import URUR
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

__all__ = [
    "OWN",
    "ClassTable",
    "Dataset",
    "DatasetMissing",
    "Protocol",
    "check_options",
    "choices",
    "names",
    "open_dataset",
]

DECLARED = {declared.name: declared for declared in (DEEPGLOBE, INRIA, URUR, FBP, GID15, FLAIR, LOVEDA)}
DATASETS = {
    **{name: declared.open for name, declared in DECLARED.items()},
    "vaihingen": open_vaihingen,
    "potsdam": open_potsdam,
    "mbrsc": open_mbrsc,
    "folder": open_folder,
    "tiles": open_tiles,
    "sample": open_sample,
}
OPTIONS = {
    **{name: declared.options for name, declared in DECLARED.items()},
    "mbrsc": ("train", "val"),
    "vaihingen": ("bands",),
    "potsdam": ("bands", "drop_faulty"),
    "folder": ("bands",),
    "tiles": ("bands",),
}


def names() -> tuple[str, ...]:
    """The datasets that :func:`open_dataset` knows."""
    return tuple(DATASETS)


def choices(name: str) -> tuple[str, ...]:
    """The choices of bands that a dataset has by name."""
    sets = SURVEYS | DECLARED
    return sets[name].choices if name in sets else ()


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises UserError if a dataset does not take all of these options."""
    refused = [option for option in options if option not in OPTIONS.get(name, ())]
    if refused:
        takers = {option: [other for other, taken in OPTIONS.items() if option in taken] for option in refused}
        listed = "; ".join(
            f"{o} is for {', '.join(t[:-1])}{' and ' * (len(t) > 1)}{t[-1]} alone" if t else f"nothing takes {o}"
            for o, t in takers.items()
        )
        raise UserError(f"{name} takes no {', '.join(refused)}: {listed}")


def open_dataset(name: str, data_dir: str | Path | None = None, **options: Any) -> Dataset:
    """A dataset by name, with those of :data:`OPTIONS` that it takes.

    ``train=`` and ``val=`` scene names change MBRSC's splits; ``drop_faulty=`` is Potsdam's; ``bands=`` chooses
    bands by name, and by number those of a folder's images or tiles; ``split_list=`` chooses among published splits.

    Raises:
        UserError: no such dataset, or an option that it does not take.
        DatasetMissing: it is not in ``data_dir``.
    """
    if name not in DATASETS:
        raise UserError(
            f"no dataset is called {name!r}{perhaps(name, list(DATASETS))}; there are {', '.join(DATASETS)}"
        )
    check_options(name, options)
    return DATASETS[name](data_dir, **options)
