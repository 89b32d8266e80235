"""Datasets by name. Plain files are read with Pillow; rasterio is needed for TIFFs alone, tfds for prepared builds alone."""

import difflib
from pathlib import Path
from typing import Any

from glcanet_jax.data.deepglobe import open_deepglobe
from glcanet_jax.data.folder import open_folder
from glcanet_jax.data.mbrsc import open_mbrsc, open_sample
from glcanet_jax.data.scenes import ClassTable, Dataset, DatasetMissing, Protocol
from glcanet_jax.errors import UserError

__all__ = ["ClassTable", "Dataset", "DatasetMissing", "Protocol", "names", "open_dataset"]

DATASETS = {"deepglobe": open_deepglobe, "mbrsc": open_mbrsc, "folder": open_folder, "sample": open_sample}


def names() -> tuple[str, ...]:
    """The datasets that :func:`open_dataset` knows."""
    return tuple(DATASETS)


def open_dataset(name: str, data_dir: str | Path | None = None, **options: Any) -> Dataset:
    """A dataset by name; ``train=`` and ``val=`` scene names change MBRSC's splits.

    Raises:
        UserError: no such dataset, or an option that it does not take.
        DatasetMissing: it is not in ``data_dir``.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        perhaps = f" (perhaps you meant {near[0]!r})" if near else ""
        raise UserError(f"no dataset is called {name!r}{perhaps}; there are {', '.join(DATASETS)}")
    if options and name != "mbrsc":
        raise UserError(f"{name} takes no {', '.join(options)}; scenes are chosen by name for mbrsc alone")
    return DATASETS[name](data_dir, **options)
