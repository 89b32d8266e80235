"""DeepGlobe land cover: 803 labelled images of 2448 x 2448 px, in either of the layouts seen in the wild."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, DatasetMissing, Protocol
from glcanet_jax.data.files import FileScene

TREE = """
DIR/                               the archive of the challenge:
  train/<id>_sat.jpg               images (the folder train/ may be left out)
  train/<id>_mask.png              masks, RGB
or                                 as GLNet wants it:
  train/Sat/<id>_sat.jpg           also crossvali/ and offical_crossvali/
  train/Label/<id>_mask.png        class ids 0 to 6
"""
HOW = "register at the DeepGlobe land cover challenge (CodaLab 18468, or its Kaggle copy), then --data.dir DIR"
CLASSES = ClassTable(
    ("unknown", "urban", "agriculture", "rangeland", "forest", "water", "barren"),
    ((0, 0, 0), (0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255)),
    threshold=True,
)
PROTOCOLS = (
    Protocol("glnet", (1, 2, 3, 4, 5, 6)),
    Protocol("ignore-unknown", (1, 2, 3, 4, 5, 6), ignore=(0,), predict=(1, 2, 3, 4, 5, 6)),
)
SPLITS = ("train", "val", "test")
GLNET_FOLDERS = ("train", "crossvali", "offical_crossvali")


@cache
def split_ids(split: str) -> tuple[str, ...]:
    """The official list of a split (GLNet's; 454, 207 and 142 images)."""
    return tuple((files("glcanet_jax.data") / "splits" / f"deepglobe_{split}.txt").read_text(encoding="utf-8").split())


def find(root: Path) -> dict[str, tuple[Path, Path | None]]:
    """Images and masks under a folder by id, whatever the layout; empty if there are none."""
    found: dict[str, tuple[Path, Path | None]] = {}
    places = [(root, root), (root / "train", root / "train")]
    places += [(root / f / "Sat", root / f / "Label") for f in GLNET_FOLDERS]
    for images, masks in places:
        for image in sorted(images.glob("*_sat.jpg")) if images.is_dir() else ():
            identifier = image.name.removesuffix("_sat.jpg")
            mask = masks / f"{identifier}_mask.png"
            found[identifier] = (image, mask if mask.exists() else None)
    return found


def open_deepglobe(data_dir: str | Path | None) -> Dataset:
    """The official splits; ``val`` chooses checkpoints, so ``test`` is what to report.

    Raises:
        DatasetMissing: no image is there.
    """
    root = Path(data_dir or "data/deepglobe")
    found = find(root)
    if not found:
        raise DatasetMissing("deepglobe", root, TREE, HOW)
    splits = {
        split: tuple(FileScene(i, *found[i], CLASSES) for i in split_ids(split) if i in found) for split in SPLITS
    }
    return Dataset("deepglobe", CLASSES, splits, PROTOCOLS, root, "val" if splits["val"] else None)
