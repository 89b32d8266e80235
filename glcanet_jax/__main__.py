"""``glcanet train|eval|compare|predict|assemble|view|vectorise|export|info|card|push|check|datasets``, or ``python -m glcanet_jax``."""

import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from tyro.conf import OmitArgPrefixes, Positional

from glcanet_jax import cli
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Range, check_fields
from glcanet_jax.maps.options import DEFAULTS, MapOptions
from glcanet_jax.options import Source, given
from glcanet_jax.scaling.options import Cluster


@dataclass(frozen=True, kw_only=True)
class Labelled(Source):
    """The scenes with their labels."""

    # by name, as irrg or rgb+dsm, of a set that has a choice; a folder: numbers, as 4,1,2; None: those trained on
    bands: str | None = None
    split_list: str | None = None  # published splits by name, where there are several; None: those trained with


Precision = Literal["default", "highest"]


@dataclass(frozen=True, kw_only=True)
class Eval:
    data: Labelled
    weights: Path  # a weights file, a run's folder, demo, hf:ORGANISATION/REPOSITORY, or an export's .zip
    out: Path  # folder to write to
    split: str | None = (
        None  # the dataset's: train, val, test ...; without: the one that scores are published of, mostly test
    )
    overlays: Annotated[int | None, Range(0, 10**6)] = None  # scenes that are drawn, at most, spread evenly; None: all
    batch: Annotated[int, Range(1, 2**12)] = 6  # patches at once
    devices: Annotated[int | None, Range(1, 2**10)] = None  # of this machine, at once; without: all, of CPUs one
    tta: bool = False  # mean over the eight views of a square: eight times the work
    precision: Precision = "default"  # of float32 products, which GPUs round (TF32: 1e-3) unless it is highest
    deterministic: bool = False  # on GPUs leave out operations that give other bits every time; slower

    def __post_init__(self):
        check_fields(self, "--")


@dataclass(frozen=True, kw_only=True)
class Where:
    """The scenes with their labels."""

    dataset: str | None = None  # without: what the first run was trained on
    dir: str | None = None  # where it lies; without: where the first run found it


@dataclass(frozen=True, kw_only=True)
class Compare:
    # folders of runs or weights files, or NAME=RUN; RUN@local/logits is what a stage within GLCANet says
    runs: Positional[tuple[str, ...]]
    data: Where = Where()
    out: Path = Path("compared")  # folder to write compare.html, compare.md, compare.json and pictures to
    split: str = "test"  # the dataset's: train, val, test ...
    batch: Annotated[int, Range(1, 2**12)] = 6  # patches at once
    tta: bool = False  # mean over the eight views of a square: eight times the work
    precision: Precision = "default"  # of float32 products, which GPUs round (TF32: 1e-3) unless it is highest
    deterministic: bool = False  # on GPUs leave out operations that give other bits every time; slower

    def __post_init__(self):
        check_fields(self, "--")


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Scenes with their labels, beside what the paths hold."""

    dataset: str | None = None  # by name, as mbrsc; without: none
    dir: str | None = None  # where it lies; without: data/ and its name


@dataclass(frozen=True, kw_only=True)
class View:
    # scenes, maps, folders of them, folders of predict, runs, or folders of labelled scenes
    paths: Positional[tuple[str, ...]] = ()
    data: Looked = Looked()
    # a URL of map tiles, as https://tile.openstreetmap.org/{z}/{x}/{y}.png, under georeferenced scenes; the browser asks that server
    basemap: str | None = None
    port: Annotated[int, Range(0, 2**16 - 1)] = 0  # of this machine; 0: any that is free
    open: bool = True  # the page, in a browser
    # a .geojson file that polygons drawn in the page are saved to, which train takes; {scene} in its name stands for the scene's
    labels: Path | None = None
    # an .html file to write in place of serving: scenes, maps and areas in one page, to send to somebody
    export: Path | None = None
    side: Annotated[int, Range(64, 4096)] = 1024  # pixels of the pictures in it, at most

    def __post_init__(self):
        check_fields(self, "--")


@dataclass(frozen=True, kw_only=True)
class Predict:
    # GeoTIFF, COG, JPEG, PNG, VRT ..., or folders of them; s3://, gs://, az:// and https:// too; or see --scenes-from
    scenes: Positional[tuple[str, ...]]
    weights: Path  # a weights file, a run's folder, demo, hf:ORGANISATION/REPOSITORY, or an export's .zip
    out: str  # folder to write to, or a store: s3://BUCKET/FOLDER, gs:// or az://
    options: OmitArgPrefixes[MapOptions] = DEFAULTS
    # a file or URL that lists scenes, a path or URL a line, or a STAC item collection; -: the standard input
    scenes_from: str | None = None
    asset: str | None = None  # of STAC items, the key of what is mapped; without: the only image, or that of role data
    stac: bool = False  # a STAC collection of the maps: collection.json, an Item of each, and one of the weights
    shard: str | None = None  # I/N: only every N-th scene, from the I-th on; with --part-blocks every N-th part
    cluster: OmitArgPrefixes[Cluster] = Cluster()
    precision: Precision = "default"  # of float32 products, which GPUs round (TF32: 1e-3) unless it is highest
    deterministic: bool = False  # on GPUs leave out operations that give other bits every time; slower

    def __post_init__(self):
        check_fields(self, "--")
        if self.asset is not None and self.scenes_from is None:
            raise UserError("--asset names an asset of the STAC items of --scenes-from, which is not given; give both")


@dataclass(frozen=True, kw_only=True)
class Assemble:
    out: Positional[tuple[str, ...]]  # the folder, or store, that predict wrote parts of scenes to
    # folder in which maps for an object store are made before they go there; without: ~/.cache/glcanet_jax/maps
    work: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Vectorise:
    map: Positional[tuple[Path, ...]]  # a class map, as NAME_classes.tif
    out: Path | None = None  # a .geojson or .gpkg file to write; without: NAME_polygons.geojson beside the map
    # polygons under it are merged into their largest neighbour, if one is not under it; m2 (pixels without a CRS)
    min_area: float = 0.0
    overwrite: bool = False  # replace the file that is there


@dataclass(frozen=True, kw_only=True)
class Export:
    weights: Path  # a weights file, a run's folder, demo, or hf:ORGANISATION/REPOSITORY
    out: Path  # a .zip or .onnx file to write
    format: Literal["stablehlo", "onnx"] | None = None  # without: as the file's name ends
    # ONNX: pixels a side of the tile; without: a context, of a network of one view a patch
    size: Annotated[int | None, Range(1, 2**13)] = None

    def __post_init__(self):
        check_fields(self, "--")


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a card says that the weights do not."""

    licence: str | None = None  # of the data, as CC-BY-4.0; without: what was given to train
    scores: tuple[Path, ...] = ()  # files metrics.json of eval; none: those below the run's folder
    picture: Path | None = None  # as predict --overlay or eval makes; without: the first below the run's folder
    title: str | None = None  # of the card and the STAC Item; without: after network and data


@dataclass(frozen=True, kw_only=True)
class Card(Described):
    weights: Positional[tuple[str, ...]]  # a weights file, a run's folder, demo, a name on the hub, or an export's .zip
    out: Path | None = None  # a Markdown file to write; without: the card is printed
    stac: Path | None = None  # a JSON file to write: a STAC Item with the Machine Learning Model extension
    name: str | None = None  # by which the card gives the weights to commands; without: as they were given here


@dataclass(frozen=True, kw_only=True)
class Push(Described):
    what: Positional[tuple[str, ...]]  # the weights, as for card; then ORGANISATION/REPOSITORY
    private: bool = False  # a repository that is made is not public
    message: str | None = None  # of the commit


@dataclass(frozen=True, kw_only=True)
class Chosen(Source):
    """The scenes, and which of their bands."""

    bands: str | None = None  # of a folder's images, by number from 1, as 4,1,2; None: all but alpha
    split_list: str | None = None  # published splits by name, where there are several; None: the first


@dataclass(frozen=True, kw_only=True)
class Datasets:
    names: Positional[tuple[str, ...]] = ()  # of published data sets, of which all is told; without: all, in short


@dataclass(frozen=True, kw_only=True)
class Check:
    data: Chosen
    normalisation: Path | None = None  # a file to write for --data.normalisation, where images are not of 8 bits
    patch_size: Annotated[int, Range(1, 2**14)] = 500  # pixels; scenes smaller than a patch are told

    def __post_init__(self):
        check_fields(self, "--")


def train(argv: Sequence[str], page: tuple[str, str]) -> None:
    from glcanet_jax import runs, settings

    asked = settings.read(argv, page)
    from glcanet_jax import experiment
    from glcanet_jax.training import extending, loop, processes
    from glcanet_jax.training.tracking import Tracking

    processes.begin(asked.config.distributed)
    with Tracking(asked.args.track) as tracking:
        with processes.quiet():
            if asked.hint:
                print(asked.hint)
            dataset = runs.open_data(asked.config.data)
            config = settings.fit(asked, dataset) if asked.args.preset else asked.config
        config, told = extending.named(config), {"tracking": tracking, "advice": asked.advice, "dataset": dataset}
        if asked.args.report:
            experiment.run(config, overlays=asked.args.overlays, **told)
        else:
            loop.train(config, **told)
    if processes.first():
        print(f"done: {config.out}")


def evaluate(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Eval, argv, *page)
    from glcanet_jax import backend, metrics, runs, scoring

    backend.enable_compilation_cache()
    path = runs.find_weights(args.weights)
    dataset = runs.open_for(path, args.data.dataset, args.data.dir, args.data.bands, args.data.split_list)
    with backend.computing(args.precision, args.deterministic):
        options = {"tta": args.tta, "devices": args.devices, "overlays": args.overlays}
        split = args.split or dataset.reported
        result = scoring.evaluate_split(path, dataset, split, args.out, args.batch, **options)
    for name, scores in result["protocols"].items():
        print(f"\n{dataset.title} {split}, protocol {name}\n{metrics.format_table(scores)}")
    print(f"\nwritten to {args.out}")


def predict(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Predict, argv, *page)
    from glcanet_jax import backend
    from glcanet_jax.maps import catalogue, listing, mapping

    listed = [] if args.scenes_from is None else listing.read(args.scenes_from, args.asset)
    scenes, work = [*args.scenes, *listed], args.options.work
    with catalogue.written(args.stac, args.out, work, args.weights, scenes, args.shard):
        if args.cluster.on is not None:
            from glcanet_jax.scaling import scenes as scaled

            computing = {"precision": args.precision, "deterministic": args.deterministic}
            scaled.map_scenes(scenes, args.weights, args.out, args.options, args.cluster, shard=args.shard, **computing)
            return
        with backend.computing(args.precision, args.deterministic):
            mapping.map_scenes(scenes, args.weights, args.out, args.options, args.shard)


def assemble(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Assemble, argv, *page)
    if len(args.out) != 1:
        raise UserError(f"{len(args.out)} folders were given; name the --out of predict, as in `assemble maps`")
    from glcanet_jax.maps import mapping

    mapping.assemble(args.out[0], args.work)


def vectorise(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Vectorise, argv, *page)
    if len(args.map) != 1:
        raise UserError(f"{len(args.map)} maps were given; name one, as in `vectorise maps/scene_classes.tif`")
    from glcanet_jax.maps import vectorise as vectorising

    files, count = vectorising.vectorise(args.map[0], args.out, args.min_area, args.overwrite)
    print(f"{count} polygons written to {', '.join(map(str, files.values()))}")


def export(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Export, argv, *page)
    from glcanet_jax import export as exporting

    differences = exporting.export(args.weights, args.out, args.format, args.size)
    print(f"written to {args.out}; reloaded and compared with the network:")
    for name, value in differences.items():
        print(f"  {name:<14} largest error {value:.1e}")


def info(argv: Sequence[str], page: tuple[str, str]) -> None:
    from glcanet_jax.config import model_config
    from glcanet_jax.measure import info as information

    default = information.Info(model=model_config(cli.chosen(argv) or "glcanet"))
    args = cli.parse(information.Info, argv, *page, default)
    if args.weights:
        from glcanet_jax.sharing import card as cards

        asked = sorted(f"--{name.replace('_', '-')}" for name in given(argv, information.Info, default) - {"json"})
        if asked:
            raise UserError(
                f"{', '.join(asked)} and the weights {args.weights[0]} were given; options are for a network that is counted: "
                "leave them out, or the weights"
            )
        told = _facts(args.weights, "info")
        print(cards.as_json(told) if args.json else cards.text(told))
        return
    print(information.report(args))


def _facts(weights: Sequence[str], command: str, described: Described | None = None) -> Any:
    from glcanet_jax.sharing import facts

    if len(weights) != 1:
        raise UserError(f"{len(weights)} weights were given; name one, as in `{command} demo`")
    if described is None:
        return facts.read(weights[0])
    return facts.read(weights[0], described.licence, described.scores, described.picture, described.title)


def card(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Card, argv, *page)
    from glcanet_jax.sharing import card as cards
    from glcanet_jax.sharing import push as pushing

    told = _facts(args.weights, "card", args)
    name = args.name or args.weights[0]
    for path in pushing.write(told, args.out, args.stac, name):
        print(f"written to {path}")
    if args.out is None and args.stac is None:
        print(cards.markdown(told, name, None if told.picture is None else str(told.picture)), end="")


def push(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Push, argv, *page)
    if len(args.what) != 2:
        raise UserError(
            f"push takes the weights and a repository's name, not {len(args.what)} words; as in `push runs/mine organisation/name`"
        )
    from glcanet_jax.sharing import push as pushing

    weights, repository = args.what
    name = pushing.push(_facts([weights], "push", args), repository, args.message, args.private)
    print(f"published; use it as --weights {name}")


def check(argv: Sequence[str], page: tuple[str, str]) -> int:
    args = cli.parse(Check, argv, *page)
    from glcanet_jax.data import check as checks

    data = args.data
    return checks.main(data.dataset, data.dir, data.bands, args.normalisation, args.patch_size, data.split_list)


def datasets(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Datasets, argv, *page)
    from glcanet_jax.data import catalogue

    lines = lambda words: "\n".join(cli.listing({label: told}) for label, told in words)  # noqa: E731
    if not args.names:
        for entry in catalogue.entries().values():
            print(f"{entry.name}: {entry.about.title}\n{lines(entry.short)}\n")
        print("Further ones are folder and tiles, of your own, and sample, which is bundled.")
    for entry in map(catalogue.entry, args.names):
        print(f"{entry.name}: {entry.about.title}\n{lines(entry.long)}")
        print(f"  files\n{textwrap.indent(entry.tree.strip(chr(10)), '    ')}\n")


def compare(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(Compare, argv, *page)
    from glcanet_jax import backend, runs
    from glcanet_jax import compare as comparing
    from glcanet_jax import page as pages

    asked = comparing.find_runs(args.runs)
    first = next(iter(asked.values())).weights
    if args.data.dataset is None:
        dataset = runs.open_data(runs.data_of(first, args.data.dir))
    else:
        dataset = runs.open_for(first, args.data.dataset, args.data.dir)
    command = f"glcanet compare {comparing.words(asked, args.split, args.tta)}"
    with backend.computing(args.precision, args.deterministic):
        compared = comparing.build(asked, dataset, args.split, command=command, batch=args.batch, tta=args.tta)
    told = comparing.write(compared, args.out, "compare")
    print(pages.markdown(told))
    print(f"written to {args.out / 'compare.html'}")


def view(argv: Sequence[str], page: tuple[str, str]) -> None:
    args = cli.parse(View, argv, *page)
    if not args.paths and args.data.dataset is None:
        raise UserError("nothing to look at was given; name scenes, maps, folders or runs, as in `view maps`")
    from glcanet_jax.view import export, serving

    paths, folder = [Path(path) for path in args.paths], None if args.data.dir is None else Path(args.data.dir)
    if args.export is not None:
        if args.labels is not None:
            raise UserError("--labels is for drawing, and --export writes a page and ends; give one of them")
        path = export.export_page(paths, args.export, args.side, args.data.dataset, folder)
        print(f"written to {path}, {path.stat().st_size / 1e6:.1f} MB")
        return
    serving.serve(paths, args.data.dataset, folder, args.basemap, args.port, args.open, args.labels)


class Command(NamedTuple):
    call: Callable[[Sequence[str], tuple[str, str]], int | None]
    words: str
    example: str


COMMANDS = {
    "train": Command(
        train,
        "Train a network, score and draw it, going on where a killed run of the same command stopped.",
        "--preset recipe --data.dataset folder --data.dir DIR --out runs/mine",
    ),
    "eval": Command(
        evaluate,
        "Score weights on a split: metrics.json, the confusion matrix, a picture of every scene.",
        "--data.dataset folder --data.dir DIR --weights runs/mine --out scores",
    ),
    "compare": Command(
        compare,
        "Set runs side by side on the same scenes: scores by class and scene, where they err, where they differ.",
        "runs/a runs/b --out compared",
    ),
    "predict": Command(
        predict,
        "Map scenes of any size: georeferenced class maps, areas, and what else is asked for.",
        "scene.tif --weights demo --out maps",
    ),
    "assemble": Command(
        assemble,
        "Put parts of scenes together that processes with --shard and --part-blocks have mapped.",
        "maps",
    ),
    "view": Command(
        view,
        "Look at scenes, maps, labels and runs in a browser, on this machine alone.",
        "maps",
    ),
    "vectorise": Command(
        vectorise,
        "Make polygons of a class map that is there.",
        "maps/scene_classes.tif --out scene.gpkg --min-area 50",
    ),
    "export": Command(
        export,
        "Write a network as StableHLO or ONNX, with all that is needed to use it without its code.",
        "--weights runs/mine --out network.zip",
    ),
    "info": Command(
        info,
        "Say what a weights file is; or count a network's parameters, and GFLOP per scene and per patch.",
        "demo",
    ),
    "card": Command(
        card,
        "Describe weights: a model card in Markdown, and a STAC Item.",
        "runs/mine --out CARD.md --stac item.json",
    ),
    "push": Command(
        push,
        "Publish weights on the Hugging Face hub, with their card and STAC Item.",
        "runs/mine organisation/repository --licence CC-BY-4.0",
    ),
    "check": Command(
        check,
        "Read a whole dataset and list every problem.",
        "--data.dataset folder --data.dir DIR",
    ),
    "datasets": Command(
        datasets,
        "Tell of the published data sets that are read: scenes, classes, licence, where to get them, scores.",
        "inria",
    ),
}


def main() -> int | None:
    program, argv = cli.program(), sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        words = "Segmentation of very large remote-sensing images."
        print(cli.overview(program, words, {name: c[1:] for name, c in COMMANDS.items()}), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(cli.version())
        return 0
    if argv[0] not in COMMANDS:
        raise cli.no_command(argv[0], tuple(COMMANDS), program)
    command = COMMANDS[argv[0]]
    program = f"{program} {argv[0]}"
    return command.call(argv[1:], (program, f"{command.words} ``{program} {command.example}``"))


def run() -> None:
    """The console script ``glcanet``."""
    cli.run(main)


if __name__ == "__main__":
    run()
