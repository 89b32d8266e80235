"""Options that are out of range, of another type, unheard of, or contradict each other."""

from collections.abc import Iterator
from pathlib import Path

from tests.campaign.cases import ARGV, TINY, Case, dice

NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "x",
    "",
    "0x10",
    "1_0_",
    "10" + "0" * 20,
    "None",
    "--",
    "\u0664x",
    "1,5",
    " ",
)
PREDICT = (*ARGV["predict"], "scene.tif")
WHOLE = {  # options that are whole numbers above 0
    "predict": ("batch", "context-size", "part-blocks"),
    "train": ("train.epochs", "train.log-every", "views.patch-size", "loader.batch-size", "eval-batch"),
    "info": ("classes", "bands"),
    "eval": ("batch",),
    "check": ("patch-size",),
}
FLOATS = {
    "predict": ("scale", "min-area"),
    "train": ("loss.gamma", "optimiser.local-rate", "train.ema", "loss.smoothing", "normalisation.scale"),
    "vectorise": ("min-area",),
}
SINGLE = {
    "predict": (
        "--bands 0", "--bands 1,2", "--bands 9,9,9", "--bands a", "--bands=", "--overlap 63", "--overlap 64", "--overlap 16384",
        "--polygons shp", "--memory-budget 4", "--memory-budget 0GB", "--memory-budget 1e9GB", "--memory-budget x", "--dtype int8",
        "--shard 0/1", "--shard 2/1", "--shard 1", "--shard a/b", "--shard 1/0", "--aoi", "--aoi-layer x", "--unheard-of", "--tta yes",
        "--confidence=maybe", "--batch", "--batch 1 2", "--context-size 1048577", "--scale 0",
    ),
    "train": (
        "--model.network resnet", "--model.width 0", "--model.width 4.5", "--model.depth 50", "--loader.batch-size 0",
        "--train.accumulation 3", "--train.steps 0", "--train.seed -1", "--train.schedule never", "--views.overlap 64",
        "--views.patch-size 9999999999", "--views.context-size 0", "--data.train-split nowhere", "--data.val-split nowhere",
        "--data.bands 7", "--data.bands 0", "--normalisation.mean", "--normalisation.mean 0.5", "--normalisation.std 0 0 0",
        "--loss.class-weights 1", "--loss.class-weights -1 1 1", "--freeze nothing*", "--backbone nowhere.pth", "--backbone data",
        "--train.devices 9", "--train.ema 1", "--train.colour-jitter 2", "--data.dataset nowhere", "--data.normalisation nowhere.json",
        "--data.normalisation data", "--model.dtype float16", "--optimiser.schedule x", "--out=",
        "--preset best", "--preset", "--config nowhere.json", "--config data", "--config w.safetensors", "--overlays -1", "--overlays x",
        "--track neptune", "--track csv x", "--report=maybe",
    ),
    "info": ("--scene 0x0", "--scene 10", "--scene x", "--scene 9999999x1", "--model.network", "--model.depth 7", "--json yes", "more"),
    "eval": ("--split", "--split=", "--data.bands 9", "--data.dataset x", "--tta=2", "--batch 5000"),
    "compare": ("--split nowhere", "--data.dataset x", "--batch 5000", "--tta=2", "nowhere", "=w.safetensors", "--out=", "--unheard-of"),
    "check": ("--data.dataset x", "--data.bands 9", "--data.bands=", "--normalisation data", "--patch-size 1.5"),
    "vectorise": ("--out out/x.shp", "--out out", "--out=", "--min-area", "scene.tif"),
    "export": ("--out data", "--weights=", "--out="),
}  # fmt: skip


def base(command: str) -> tuple[str, ...]:
    """A command line that is right as it stands."""
    return {"predict": PREDICT, "vectorise": (*ARGV["vectorise"], "map_classes.tif")}.get(command, ARGV[command])


def replaced(argv: tuple[str, ...], flag: str, *values: str) -> tuple[str, ...]:
    """A command line with an option given anew."""
    words = list(argv)
    if flag in words:
        at = words.index(flag)
        del words[at : at + 2]
    return (*words, flag, *values)


def nothing(_: Path) -> None:
    """Needs no file of its own."""


def data_beside(folder: Path) -> None:
    """Something that is no file."""
    (folder / "data").mkdir(exist_ok=True)


def options(seed: int) -> Iterator[Case]:
    """Each option of each command with each word that it cannot have."""
    for command, names in WHOLE.items():
        for name in names:
            for word in (*NUMBERS, "0", "1.5"):
                if not _means(word, name, whole=True):
                    yield _case(command, f"--{name}", word)
    for command, names in FLOATS.items():
        for name in names:
            for word in NUMBERS:
                if not _means(word, name, whole=False):
                    yield _case(command, f"--{name}", word)
    for command, lines in SINGLE.items():
        for line in lines:
            flag, *values = line.split() if "=" not in line else [line]
            argv = replaced(base(command), flag, *values)
            yield Case("options", line, argv, data_beside)


def _case(command: str, flag: str, word: str) -> Case:
    return Case("options", f"{flag} {word!r}", replaced(base(command), flag, word), data_beside)


def _means(word: str, name: str, whole: bool) -> bool:
    """Whether a word is a value of this option after all."""
    empty = name in ("batch", "context-size", "scale", "normalisation.scale") and word == "None"
    large = (
        not whole
        and word.startswith("1000")
        and name in ("scale", "min-area", "optimiser.local-rate", "normalisation.scale")
    )
    return empty or large


def lines(seed: int) -> Iterator[Case]:
    """Command lines that are none."""
    rng = dice(seed, "lines")
    words = [
        "predict",
        "--out",
        "train",
        "--",
        "-x",
        "=",
        "--=",
        "-",
        "\x7f",
        "--model.",
        "--data.dir=",
        "é" * 50,
        "eval",
        "@w",
        "%s",
    ]
    for i in range(20):
        line = tuple(rng.choice(words) for _ in range(rng.randrange(1, 6)))
        yield Case("lines", f"{i} {line}"[:80], line, nothing)
    for command in ("eval", "predict", "vectorise", "export"):
        yield Case("lines", f"{command} alone", (command,), nothing)
    yield Case("lines", "twice", (*ARGV["train"], *TINY[:1], "unet", "glcanet"), nothing)
