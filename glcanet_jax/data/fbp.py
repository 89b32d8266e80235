"""Five-Billion-Pixels: 150 Gaofen-2 scenes of 50 Mpx in 24 classes; and GID-15, whose scenes are some of them."""

from collections.abc import Sequence

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import NAME, Declared, Found, Layout, Splits, by_group, read_list

EVERY = 12  # of the scenes to train on, one is held out to choose by
FULL_SCALE = 1023.0  # unsure: of the files of 16 bits; the sensor has 10
STEM = r"(?P<name>GF2_PMS[12]__L1A\d{10}-MSS[12])"
MASKS = tuple(rf"Annotation_+{kind}/{STEM}_24label\.(?:png|tiff?)" for kind in ("index", "color"))

FBP_CLASSES = {  # ids 1 to 24 of the index masks; DPA's evaluate.py lists the same colours in another order
    "industrial area": (200, 0, 0),
    "paddy field": (0, 200, 0),
    "irrigated field": (150, 250, 0),
    "dry cropland": (150, 200, 150),
    "garden land": (200, 0, 200),
    "arbor forest": (150, 0, 250),
    "shrub forest": (150, 150, 250),
    "park": (200, 150, 200),
    "natural meadow": (250, 200, 0),
    "artificial meadow": (200, 200, 0),
    "river": (0, 0, 200),
    "urban residential": (250, 0, 150),
    "lake": (0, 150, 200),
    "pond": (0, 200, 250),
    "fish pond": (150, 200, 250),
    "snow": (250, 250, 250),
    "bareland": (200, 200, 200),
    "rural residential": (200, 150, 150),
    "stadium": (250, 200, 150),
    "square": (150, 150, 0),
    "road": (250, 150, 150),
    "overpass": (250, 150, 0),
    "railway station": (250, 200, 250),
    "airport": (200, 150, 0),
}
GID15_CLASSES = {
    "industrial land": (200, 0, 0),
    "urban residential": (250, 0, 150),
    "rural residential": (200, 150, 150),
    "traffic land": (250, 150, 150),
    "paddy field": (0, 200, 0),
    "irrigated land": (150, 250, 0),
    "dry cropland": (150, 200, 150),
    "garden plot": (200, 0, 200),
    "arbor woodland": (150, 0, 250),
    "shrub land": (150, 150, 250),
    "natural grassland": (250, 200, 0),
    "artificial grassland": (200, 200, 0),
    "river": (0, 0, 200),
    "lake": (0, 150, 200),
    "pond": (0, 200, 250),
}


def _table(classes: dict[str, tuple[int, int, int]]) -> ClassTable:
    """Ids from 1 on in masks, where 0 is not labelled."""
    ids = tuple(range(1, len(classes) + 1))
    return ClassTable(tuple(classes), tuple(classes.values()), ((0, 0, 0),), values=ids, also=((0, IGNORE),))


def official(found: Sequence[Found]) -> dict[str, list[Found]]:
    """GID's: the test scenes are listed, all others are to train on."""
    names = read_list("fbp_test")
    test = [scene for scene in found if scene.name in names]
    return {"train": [scene for scene in found if scene.name not in names], "test": test}


def held_out(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Of those to train on every twelfth chooses checkpoints, for nobody has published which."""
    of = official(found)
    val = of["train"][EVERY - 1 :: EVERY]
    return {"train": [scene for scene in of["train"] if scene not in val], "val": val, "test": of["test"]}


def _layout(folder: str, order: str, suffix: str, ending: str = "", scale: float = 255.0) -> Layout:
    """Files whose bands lie in this order, letters of n, r, g and b; ``ending`` of the choices of bands."""
    choices = {"rgbir": "rgbn", "rgb": "rgb", "irrg": "nrg"}
    bands = {f"{name}{ending}": tuple(order.index(band) + 1 for band in picked) for name, picked in choices.items()}
    return Layout(rf"{folder}/{STEM}\.{suffix}", MASKS, bands, scale)


FBP = Declared(
    "fbp",
    About(
        "Five-Billion-Pixels",
        "150 Gaofen-2 scenes of 6908 x 7300 px, blue, green, red and infrared, of 8 or of 16 bits, 4 m a pixel; 120 to train on, 30",
        "called open source, without a licence: not to be passed on",
        "x-ytong.github.io/project/Five-Billion-Pixels.html (Google Drive or Baidu), one folder of images and "
        "Annotation__index, then --data.dir DIR",
        (
            "REST 72.95, Swin-L 69.68 mIoU (24 classes; REST's README)",
            "SFR-Net 77.24 mIoU (25 classes, the unlabelled among them; its paper)",
        ),
        (
            "the full scale of 16 bits, taken as 1023: see the range that `glcanet check` tells, and what it suggests",
            "the order of bands in a folder Image_16bit_RGBNir, as repacked, is taken from its name: infrared is brightest on "
            "vegetation",
            "whether all 150 scenes have the same size: `glcanet check` tells them",
            "no validation was published: every twelfth of the scenes to train on, in natural order, is val; "
            "--data.split-list official trains on all 120",
        ),
        (
            "files of 8 bits are tagged as CMYK and are none: their four bands are read as they are",
            "borders were padded, white in 8 bits and black in 16, and are not labelled; nor is about a third of the ground",
            "24 classes count and the unlabelled is dropped; some papers count it as a 25th",
        ),
    ),
    """
DIR/
  Image__8bit_NirRGB/GF2_PMS1__L1A0001064454-MSS1.tif            infrared, red, green, blue
  Image_16bit_BGRNir/GF2_PMS1__L1A0001064454-MSS1.tiff           or this, of 16 bits: blue, green, red, infrared
  Annotation__index/GF2_PMS1__L1A0001064454-MSS1_24label.png     class ids 1 to 24, 0 is not labelled
  Annotation__color/..._24label.tif                              in their place, colours
""",
    _table(FBP_CLASSES),
    (Protocol("24-class", tuple(range(24))),),
    (
        _layout("Image_+8bit_NirRGB", "nrgb", "tiff?"),
        _layout("Image_+16bit_BGRNir", "bgrn", "tiff?", "-16", FULL_SCALE),
        _layout("Image_+16bit_RGBNir", "rgbn", "tiff?", "-16", FULL_SCALE),  # unsure: as its name has it
    ),
    {
        "held-out": Splits(
            "GID's 30 test scenes; every twelfth of the others is val",
            {"train": 110, "val": 10, "test": 30},
            held_out,
            lambda: {"test": read_list("fbp_test")},
        ),
        "official": Splits(
            "GID's 30 test scenes; all others are to train on, and nothing chooses a checkpoint",
            {"train": 120, "test": 30},
            official,
            lambda: {"test": read_list("fbp_test")},
            validation=None,
        ),
    },
    roots=("", "Five-Billion-Pixels"),
    never_after=("gid15",),
)

GID15 = Declared(
    "gid15",
    About(
        "GID-15 (the contest's pack)",
        "150 Gaofen-2 scenes of 6800 x 7200 px, red, green and blue, 4 m a pixel; test without labels",
        "none named: not to be passed on",
        "the contest's pack gid-15 (as torchgeo's GID15 fetches it, MD5 615682bf659c3ed981826c6122c10c83), then --data.dir DIR",
        (),
        ("how many scenes are in train and val: see what `glcanet check` tells",),
        (
            "all ten scenes of GID-15's fine set are test scenes of fbp: weights trained here may not begin a run on fbp",
            "test has no labels, so that val is reported, and chooses nothing",
        ),
    ),
    """
DIR/                                 or in GID/ and gid-15/GID/:
  img_dir/train/<name>.tif           also val/ and test/; red, green, blue
  ann_dir/train/<name>_15label.png   also val/; class ids 1 to 15, 0 is not labelled
""",
    _table(GID15_CLASSES),
    (Protocol("15-class", tuple(range(15))),),
    (
        Layout(
            rf"img_dir/(?P<split>train|val|test)/{NAME}\.tiff?", (rf"ann_dir/(?P<split>train|val)/{NAME}_15label\.png",)
        ),
    ),
    {
        "folders": by_group(
            "the pack's folders",
            {"train": None, "val": None, "test": None},
            validation=None,
            reported="val",
            hidden=("test",),
        )
    },
    roots=("", "GID", "gid-15/GID"),
)
