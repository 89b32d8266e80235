"""URUR (CVPR 2023): 3008 scenes of 5120 x 5120 px of 63 cities in eight classes."""

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import NAME, Declared, Layout, by_group

SPLIT = "(?P<split>train|val|test)"

# unsure: two code bases call id 7 "others" and shift all names by one; the official README lists it first, as here
CLASSES = ClassTable(
    ("others", "building", "farmland", "greenhouse", "woodland", "bareland", "water", "road"),
    (
        (0, 0, 0), (230, 230, 230), (95, 163, 7), (100, 100, 100), (200, 230, 160), (255, 255, 100), (150, 200, 250),
        (240, 100, 80),
    ),
)  # fmt: skip
URUR = Declared(
    "urur",
    About(
        "URUR",
        "3008 PNGs of 5120 x 5120 px, red, green and blue, without a place; 2157 to train on, 280, 571",
        "MIT stands beside the code; of images and labels nothing is said: not to be passed on",
        "the Baidu share named at github.com/jankyee/URUR, or the mirror heig-vd-geo/URUR on the Hugging Face hub, then "
        "--data.dir DIR; test/ and val/ are enough to score",
        (
            "CASWiT 49.2 mIoU (test; arXiv 2601.11310)",
            "WSDNet 46.9, ISDNet 45.8, FCtL 43.1, GLNet 41.2 mIoU (test; to be looked up in the papers)",
        ),
        (
            "which id is others: look at one mask; where 0 is no leftover class but buildings, the names here are shifted by one",
            "how many scenes each split has (2157, 280 and 571 are from memory): see what `glcanet check` notes",
            "whether masks are plain greys or a palette: either is read, a palette by its colours if these are the classes'",
        ),
        (
            "all eight classes count, others too",
            "published code chooses its checkpoint on test; here val does",
            "a scene takes 79 MB decoded: training keeps them as tiles beside the data",
        ),
    ),
    """
DIR/
  train/image/<name>.png      also val/ and test/
  train/label/<name>.png      the same name; class ids 0 to 7
or                            as RUE wants it:
  imgs/train/<name>.png       labels/train/<name>.png; also val/ and test/
""",
    CLASSES,
    (Protocol("all", tuple(range(8))),),
    (
        Layout(rf"{SPLIT}/images?/{NAME}\.png", (rf"{SPLIT}/labels?/{NAME}\.png",)),
        Layout(rf"imgs/{SPLIT}/{NAME}\.png", (rf"labels/{SPLIT}/{NAME}\.png",)),
    ),
    {"folders": by_group("the archive's folders", {"train": 2157, "val": 280, "test": 571})},
    roots=("", "URUR"),
)
