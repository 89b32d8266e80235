"""LoveDA: 5987 scenes of 1024 x 1024 px of three Chinese cities, urban and rural, in seven classes."""

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import Declared, Layout, by_group

NUMBER = r"(?P<name>\d+)"  # one running number over all of it
LABELLED, SPLIT = "(?P<split>train|val)", "(?P<split>train|val|test)"
KIND = "(?:urban|rural)"

LOVEDA = Declared(
    "loveda",
    About(
        "LoveDA",
        "5987 PNGs of 1024 x 1024 px, red, green and blue, 0.3 m a pixel, without a place; 2522 to train on, 1669, and 1796 whose "
        "labels a server keeps",
        "CC-BY-NC-SA-4.0, academic use, and the terms of Google Earth: not to be passed on",
        "zenodo.org/records/5706578: Train.zip and Val.zip, then --data.dir DIR",
        (
            "UNetFormer 52.4, DC-Swin 50.6, SegFormer 50.4, PSPNet 48.3 mIoU (test, by the server; zjujournals 20250709, table 6)",
            "LoveNAS (Swin-B) 53.76 mIoU (test; its README)",
        ),
        (
            "how many scenes each split has (2522, 1669, 1796 are from memory): see what `glcanet check` notes",
            "whether masks are plain greys: a palette is read by its colours if these are the classes', else by its ids",
        ),
        (
            "test has no labels, so that val is reported, and chooses nothing; the server takes PNGs of ids 0 to 6, as "
            "`predict` counts them",
            "all seven classes count, background too; id 0 is no data and dropped",
        ),
    ),
    """
DIR/                                  the archives, unpacked:
  Train/Urban/images_png/1366.png     also Val/ and Test/, each with Urban/ and Rural/
  Train/Urban/masks_png/1366.png      class ids 1 to 7, 0 is no data; not in Test/
or                                    as mmsegmentation wants it:
  img_dir/train/1366.png              also val/ and test/
  ann_dir/train/1366.png              also val/
""",
    ClassTable(
        ("background", "building", "road", "water", "barren", "forest", "agricultural"),
        ((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
        ((0, 0, 0),),
        values=(1, 2, 3, 4, 5, 6, 7),
        also=((0, IGNORE),),
    ),
    (Protocol("7-class", tuple(range(7))),),
    (
        Layout(rf"{SPLIT}/{KIND}/images_png/{NUMBER}\.png", (rf"{LABELLED}/{KIND}/masks_png/{NUMBER}\.png",)),
        Layout(rf"img_dir/{SPLIT}/{NUMBER}\.png", (rf"ann_dir/{LABELLED}/{NUMBER}\.png",)),
    ),
    {
        "folders": by_group(
            "the archive's folders; val is reported, and chooses nothing",
            {"train": 2522, "val": 1669, "test": 1796},
            validation=None,
            reported="val",
            hidden=("test",),
        )
    },
    roots=("", "LoveDA"),
)
