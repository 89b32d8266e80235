"""The paper's Table 1: ``python -m experiments.table1 --data.dataset mbrsc --data.dir DIR [--networks ...] [--budget 200steps]``.

Every network of the table is trained with the same data, augmentation, loss and number of steps, those of one view twice: on
patches, and on the whole scene shrunk. What is there already is not done again. The scored split chooses nothing: the weights
of the last step are scored. Rows whose backbones start from ImageNet's weights and rows from scratch are never ranked together;
GLCANet is there both ways when ``--backbone`` is given.
"""

from dataclasses import dataclass

from experiments import tables
from experiments.common.sizes import SCENE, Source
from experiments.tables import Entry, Table, by_inference
from glcanet_jax import cli

ENTRIES = {
    "unet": Entry("U-Net", "unet", {"patch": (37.3, 949), "global": (38.4, 5507)}),
    "icnet": Entry("ICNet", "icnet", {"patch": (35.5, 1195), "global": (40.2, 2557)}),
    "pspnet": Entry("PSPNet", "pspnet", {"patch": (53.3, 1513), "global": (56.6, 6289)}, pretrained=True),
    "segnet": Entry("SegNet", "segnet", {"patch": (60.8, 1139), "global": (61.2, 10339)}),
    "deeplabv3plus": Entry(
        "DeepLabv3+", "deeplabv3plus", {"patch": (63.1, 1279), "global": (63.5, 3199)}, pretrained=True
    ),
    "fcn8s": Entry("FCN-8s", "fcn8s", {"patch": (64.3, 1963), "global": (70.1, 5227)}),
    "glnet-g2l": Entry("GLNet G=>L", "glnet", {"both": (70.9, 1395)}, pretrained=True),
    "glnet": Entry("GLNet G<=>L", "glnet", {"both": (71.6, 1865)}, {"mutual": True}, pretrained=True),
    "glcanet": Entry("GLCANet", "glcanet", {"both": (73.4, 1766)}, pretrained=True),
    "isdnet": Entry("ISDNet", "isdnet", {"patch": (None, None), "global": (None, None)}),
    "branch": Entry("GLCANet's local branch alone", "branch", {"patch": (None, None)}, pretrained=True),
}
CONTROLS = ("branch",)
TABLE = Table(
    number=1,
    dataset="deepglobe",
    scene=(SCENE, SCENE),
    entries=ENTRIES,
    asked=("isdnet", *CONTROLS),
    pages=by_inference.write,
    printed=("mIoU", "MB"),
    words="The paper's columns are its own numbers for DeepGlobe on a GTX 1080Ti (gpustat) and not comparable with ours.",
)


@dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    data: Source


def main() -> int:
    return tables.main(TABLE, Options, __doc__)


if __name__ == "__main__":
    cli.run(main)
