"""Inria Aerial Image Labeling: 180 labelled tiles of 5000 x 5000 px of five cities, buildings and the rest."""

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import Declared, Found, Layout, Splits, by_names, read_list

CITIES = ("austin", "chicago", "kitsap", "tyrol-w", "vienna")
HIDDEN = ("bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e")  # unsure: the prefixes of the last two
COUNT, HELD_OUT = 36, 5  # tiles of a city, of which the first are the official validation
TILE = rf"(?P<name>(?:{'|'.join(CITIES)})[1-9]\d?)"
FOLDERS = "(?:train|crossvali|offical_crossvali)"


def official() -> dict[str, tuple[str, ...]]:
    """The contest's hint: tiles 1 to 5 of every city are held out."""
    tiles = {city: [f"{city}{n + 1}" for n in range(COUNT)] for city in CITIES}
    return {
        "train": tuple(tile for of in tiles.values() for tile in of[HELD_OUT:]),
        "val": tuple(tile for of in tiles.values() for tile in of[:HELD_OUT]),
    }


def _official(found: list[Found]) -> dict[str, list[Found]]:
    """With the tiles whose labels the contest keeps as the test."""
    hidden = [scene for scene in found if scene.mask is None and scene.name.rstrip("0123456789") in HIDDEN]
    return dict(by_names("", official).assign(found)) | ({"test": hidden} if hidden else {})


INRIA = Declared(
    "inria",
    About(
        "Inria Aerial Image Labeling",
        "180 labelled GeoTIFFs of 5000 x 5000 px (and 180 whose labels the contest keeps), red, green and blue, 0.3 m a pixel",
        "no open one was found: not to be passed on",
        "register at project.inria.fr/aerialimagelabeling, join the five volumes aerialimagelabeling.7z.001 to .005, unpack "
        "twice, then --data.dir DIR; train/ is enough, for test/ has no labels",
        (
            "ISDNet 74.39 building IoU (FCtL's split; its README)",
            "GLNet 71.2, FCtL 73.7, WSDNet 75.2, GPWFormer 76.5 building IoU (FCtL's split; to be looked up in the papers)",
        ),
        (
            "which 27 tiles a paper scores: FCtL's code chooses on crossvali and draws the other 27, ISDNet's scores a test "
            "folder; here val chooses and test is scored",
            "the prefixes of the contest's test cities sfo and tyrol-e: see `ls test/images`",
        ),
        (
            "mIoU of this set is the building IoU alone in papers on scenes of this size; the mean of both classes, which is "
            "told too, lies 13 higher or so",
            "kitsap's tiles are nearly empty, and masks come from the cadastre: roofs that lean are beside their labels",
        ),
    ),
    """
DIR/                                 the archive, unpacked; or in NEW2-AerialImageDataset/ and AerialImageDataset/:
  train/images/austin1.tif           austin, chicago, kitsap, tyrol-w and vienna, 1 to 36
  train/gt/austin1.tif               0, and 255 for buildings
or                                   as FCtL wants it:
  train/Sat/austin1_sat.tif          also crossvali/ and offical_crossvali/
  train/Label/austin1_mask.png       0 and 1
or                                   as ISDNet wants it:
  imgs/train/austin1_sat.tif         also val/ and test/
  labels/train/austin1_mask.png      0 and 1
""",
    # 255 is a building here, and no "ignore"; copies for FCtL and ISDNet have 1 in its place
    ClassTable(("background", "building"), ((0, 0, 0), (255, 255, 255)), values=(0, 255), also=((1, 1),)),
    (Protocol("building", (1,)), Protocol("both", (0, 1))),
    (
        Layout(rf"train/images/{TILE}\.tiff?", (rf"train/gt/{TILE}\.tiff?",)),
        Layout(rf"{FOLDERS}/Sat/{TILE}_sat\.tiff?", (rf"{FOLDERS}/Label/{TILE}_mask\.png",)),
        Layout(
            rf"imgs/(?:train|val|test)/{TILE}(?:_sat)?\.(?:tiff?|png)",
            (rf"labels/(?:train|val|test)/{TILE}(?:_mask)?\.(?:tiff?|png)",),
        ),
        Layout(rf"test/images/(?P<name>(?:{'|'.join(HIDDEN)})[1-9]\d?)\.tiff?"),
    ),
    {
        "fctl": by_names(
            "FCtL's draw, which papers on scenes of this size use",
            lambda: {split: read_list(f"inria_{split}") for split in ("train", "val", "test")},
        ),
        "official": Splits(
            "the contest's hint: tiles 1 to 5 of every city are val, which is reported and so chooses nothing",
            {"train": 155, "val": 25},
            _official,
            official,
            validation=None,
            reported="val",
            hidden=("test",),
        ),
    },
    roots=("", "AerialImageDataset", "NEW2-AerialImageDataset/AerialImageDataset"),
)
