"""FLAIR #1 and #2 (IGN): tiles of 512 px with five bands, joined to the zones that they were cut from."""

from collections.abc import Sequence
from functools import partial

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import Declared, Found, Layout, Splits

CLASSES = {
    "building": (219, 14, 154),
    "pervious surface": (147, 142, 123),
    "impervious surface": (248, 12, 0),
    "bare soil": (169, 113, 1),
    "water": (21, 83, 174),
    "coniferous": (25, 74, 38),
    "deciduous": (70, 228, 131),
    "brushwood": (243, 166, 13),
    "vineyard": (102, 0, 130),
    "herbaceous vegetation": (85, 255, 0),
    "agricultural land": (255, 243, 13),
    "plowed land": (228, 223, 124),
    "other": (0, 0, 0),
}
OTHER, LAST = 12, 19  # ids from 13 to 19 in masks are "other"
# of red, green, blue, infrared and height, as IGN's own configurations have them
MOMENTS = ((105.08, 52.17), (110.87, 45.38), (101.82, 44.0), (106.38, 39.69), (53.26, 79.3))
BANDS = {"rgbir+dsm": (1, 2, 3, 4, 5), "rgbir": (1, 2, 3, 4), "rgb": (1, 2, 3), "irrg": (4, 1, 2)}
VAL = ("D004_2021", "D014_2020", "D029_2021", "D031_2019", "D058_2020", "D066_2021", "D067_2021")  # and an eighth
PLACE = r"(?P<domain>D\d{3}_\d{4})/(?P<zone>Z\d+_[AFNU]{2})"


def assign(found: Sequence[Found], edition: str, val: Sequence[str]) -> dict[str, list[Found]]:
    """By domains, of the tiles that both editions train on; the test has folders of its own."""
    train = [tile for tile in found if tile.groups["part"].lower() in ("", "train")]
    return {
        "train": [tile for tile in train if tile.groups["domain"] not in val],
        "val": [tile for tile in train if tile.groups["domain"] in val],
        "test": [tile for tile in found if tile.groups["part"].lower() in (f"{edition}_", "test")],
    }


def _splits(edition: str, eighth: str, train: int | None, val: int | None, test: int) -> Splits:
    return Splits(
        f"the test of FLAIR #{edition}; val of eight domains, {eighth} among them, the others to train on",
        {"train": train, "val": val, "test": test},
        partial(assign, edition=edition, val=(*VAL, eighth)),
    )


def _layout(image: str, mask: str) -> Layout:
    return Layout(image, (mask,), BANDS, moments=MOMENTS, heights=5)


FLAIR = Declared(
    "flair",
    About(
        "FLAIR #1 and #2",
        "77,412 tiles of 512 x 512 px (#2: 77,762), joined to 950 zones of 2560 px and more a side; red, green, blue, infrared and "
        "height, 0.2 m a pixel",
        "Etalab-2.0: may be passed on with attribution (IGN)",
        "ignf.github.io/FLAIR or IGNF/FLAIR on the Hugging Face hub: aerial train, labels train, and the test of #1 or #2, then "
        "--data.dir DIR",
        (
            "U-Net 54.43, with metadata and augmentation 55.70, the winners 65.92 mIoU (#1; its README and page)",
            "U-T&T 57.58, with satellite series, the winners 64.13 mIoU (#2; its README and page)",
        ),
        (
            "the eighth domain of val: D070_2020 (flair1) or D077_2021 (flair1-d077); compare with the CSVs of your download",
            "how zones lie: tiles are joined by their geotransforms, never by their numbers; `glcanet check` tells the scenes",
            "heights, five a metre and cut at 255: look at a building of known height",
        ),
        (
            "12 classes count; ids from 13 on are other, which is learnt and predicted, and where it is predicted wrongly counts",
            "both editions train on the same domains; domains of their two tests are shared",
        ),
    ),
    """
DIR/
  flair_aerial_train/D004_2021/Z10_UU/img/IMG_000123.tif     red, green, blue, infrared, height
  flair_labels_train/D004_2021/Z10_UU/msk/MSK_000123.tif     class ids 1 to 19
  flair_1_aerial_test/  flair_1_labels_test/                 likewise; or flair_2_aerial_test/ and flair_2_labels_test/
or                                                           as the challenge packed it:
  train/D004_2021/Z10_UU/img/IMG_000123.tif                  also test/
  train/D004_2021/Z10_UU/msk/MSK_000123.tif
""",
    ClassTable(
        tuple(CLASSES),
        tuple(CLASSES.values()),
        values=tuple(range(1, OTHER + 2)),
        also=tuple((number, OTHER) for number in range(OTHER + 2, LAST + 1)),
    ),
    (Protocol("12-class", tuple(range(OTHER))),),
    (
        _layout(
            rf"flair_(?P<part>|1_|2_)aerial_(?:train|test)/{PLACE}/img/IMG_(?P<tile>\d+)\.tiff?",
            rf"flair_(?P<part>|1_|2_)labels_(?:train|test)/{PLACE}/msk/MSK_(?P<tile>\d+)\.tiff?",
        ),
        _layout(
            rf"(?P<part>train|test)/{PLACE}/img/IMG_(?P<tile>\d+)\.tiff?",
            rf"(?P<part>train|test)/{PLACE}/msk/MSK_(?P<tile>\d+)\.tiff?",
        ),
    ),
    {
        "flair1": _splits("1", "D070_2020", 47587, 14125, 15700),
        "flair1-d077": _splits("1", "D077_2021", None, None, 15700),  # unsure: public files differ in the eighth
        "flair2": _splits("2", "D070_2020", 47587, 14125, 16050),
    },
    zone="{domain}_{zone}",
    unit="tiles",
)
