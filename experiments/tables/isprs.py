"""The twelve systems of the paper's Tables 2 and 3 and GLCANet, trained with the same data, augmentation and number of steps, on
patches; scored under all protocols of the data: mean over five classes and over six, of eroded and of full labels. What is there already
is not done again. The scored split chooses nothing: the weights of the last step are scored. Rows whose backbones start from ImageNet's
weights and rows from scratch are never ranked together. On ``--data.dataset sample`` (bundled) and ``mbrsc`` it shows that everything
runs, at reduced size. The paper's numbers stand apart, as copied.
"""

from experiments.tables import Entry, Table, by_class

COLUMNS = ("impervious", "building", "low vegetation", "tree", "car", "OA, as headed", "mIoU")
# by network: its label, and whether it takes ResNet-50 weights, in the paper's order
SYSTEMS = {
    "fcn8s": ("FCN-8s", False),
    "unet": ("U-Net", False),
    "segnet": ("SegNet", False),
    "encnet": ("EncNet", True),
    "refinenet": ("RefineNet", True),
    "cbam": ("CBAM (an FCN of our choice)", True),
    "deeplabv3plus": ("DeepLabv3+", True),
    "srafcn": ("S-RA-FCN", False),
    "pspnet": ("PSPNet", True),
    "bsnet": ("BSNet (reconstructed)", True),
    "mask2former": ("Mask2Former", True),
    "seggpt": ("SegGPT", False),
    "glcanet": ("GLCANet", True),
}
ASKED = {"isdnet": ("ISDNet", False), "branch": ("GLCANet's local branch alone", True)}
WORDS = (
    "None of it was measured here, and it says no settings. Columns of classes are F1; the one headed OA is their plain mean, mean F1, in every "
    "row but SegGPT's. {miou} All rows but those of Mask2Former, SegGPT and GLCANet were most likely copied from BSNet's paper (2022), whose gains over PSPNet are "
    "the differences of these rows to the digit; the row of S-RA-FCN is not what its own paper reports."
)


def table(number: int, dataset: str, scene: tuple[int, int], paper: dict[str, tuple[float, ...]], miou: str) -> Table:
    """One of the two.

    Args:
        scene: height and width of its scenes; paper: what it prints, by network; miou: what its mIoU is.
    """
    entries = {
        name: Entry(label, name, {"both" if name == "glcanet" else "patch": paper[name]}, pretrained=pretrained)
        for name, (label, pretrained) in SYSTEMS.items()
    }
    nothing = (None,) * len(COLUMNS)
    entries |= {
        name: Entry(label, name, {"patch": nothing}, pretrained=pretrained)
        for name, (label, pretrained) in ASKED.items()
    }
    return Table(number, dataset, scene, entries, tuple(ASKED), by_class.write, COLUMNS, WORDS.format(miou=miou))
