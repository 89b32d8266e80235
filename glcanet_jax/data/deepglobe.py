"""DeepGlobe land cover: 803 labelled images of 2448 x 2448 px, in either of the layouts seen in the wild."""

from functools import cache

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import NAME, Declared, Layout, by_names, read_list

SPLITS = ("train", "val", "test")
GLNET_FOLDERS = ("train", "crossvali", "offical_crossvali")
CLASSES = ClassTable(
    ("unknown", "urban", "agriculture", "rangeland", "forest", "water", "barren"),
    ((0, 0, 0), (0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255)),
    threshold=True,
)


@cache
def split_ids(split: str) -> tuple[str, ...]:
    """The official list of a split (GLNet's; 454, 207 and 142 images)."""
    return read_list(f"deepglobe_{split}")


def _layout(images: str, masks: str, ids_expected: bool = False) -> Layout:
    return Layout(rf"{images}{NAME}_sat\.jpg", (rf"{masks}{NAME}_mask\.png",), ids_expected=ids_expected)


GLNET = f"(?:{'|'.join(GLNET_FOLDERS)})"
DEEPGLOBE = Declared(
    "deepglobe",
    About(
        "DeepGlobe land cover",
        "803 labelled scenes of 2448 x 2448 px, red, green and blue, 0.5 m a pixel; 454 to train on, 207, 142",
        "for research, by the challenge's terms",
        "register at the DeepGlobe land cover challenge (CodaLab 18468, or its Kaggle copy), then --data.dir DIR",
        (
            "GLCANet 73.4 mIoU (this paper's Table 1)",
            "GLNet 71.6 mIoU (its paper; on val, by its author's word)",
            "ISDNet 73.30 mIoU (its README)",
        ),
    ),
    """
DIR/                               the archive of the challenge:
  train/<id>_sat.jpg               images (the folder train/ may be left out)
  train/<id>_mask.png              masks, RGB
or                                 as GLNet wants it:
  train/Sat/<id>_sat.jpg           also crossvali/ and offical_crossvali/
  train/Label/<id>_mask.png        class ids 0 to 6
""",
    CLASSES,
    (
        Protocol("glnet", (1, 2, 3, 4, 5, 6)),
        Protocol("ignore-unknown", (1, 2, 3, 4, 5, 6), ignore=(0,), predict=(1, 2, 3, 4, 5, 6)),
    ),
    (_layout(f"{GLNET}/Sat/", f"{GLNET}/Label/", True), _layout("train/", "train/"), _layout("", "")),
    {"glnet": by_names("GLNet's", lambda: {split: split_ids(split) for split in SPLITS})},
)
