"""A plan on paper: ``python -m experiments.scale`` writes ``docs/scale.md``, what 10^12 pixels take, from numbers that were measured.

Nothing here is a measurement of such a run. Every figure comes from a file in ``results/``, a page of the documentation, or an assumption
that is named; a test holds the page to what this computes.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from glcanet_jax import geometry

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "scale.md", ROOT / "results"
PIXELS, METRES = 10**12, 0.2
SIDE = 10_000  # pixels of a scene: 2 km
WORKERS = (1, 8, 64, 512)
VIEWS = geometry.Views(context_size=2448)


@dataclass(frozen=True)
class Known:
    """A number, and where it comes from."""

    value: float
    unit: str
    what: str
    source: str


def _result(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def measured() -> dict[str, Known]:
    """What was measured, of a scene of 2448 px unless said; a scene of it is 5.993 Mpx and 36 patches."""
    gpu, feed, engines = _result("gpu.json")["found"], _result("feed.json"), _result("engines.json")
    walks = {
        case: statistics.median(row["walk_seconds"] for row in engines["rows"] if row["case"] == case)
        for case in ("openvino bfloat16", "jax float32")
    }
    per_gpu = "results/gpu.json, NVIDIA H200, 16 cores"
    feeding = "results/feed.json, 2 busy virtual cores"
    turns = "results/engines.json, 2 virtual cores with AMX"
    return {
        "h100": Known(0.0188, "s a scene", "an H100 alone", "[performance](performance.md#an-h100)"),
        "h200": Known(1 / gpu["scenes bfloat16 12"]["scenes_per_second"], "s a scene", "an H200 alone", per_gpu),
        "command": Known(gpu["predict"]["warm"]["scenes_per_second_after_the_first"], "scenes/s", "`predict` of JPEGs, an H200", per_gpu),
        "walk": Known(gpu["predict"]["large"]["walk_megapixels_per_second"], "Mpx/s", "`predict` of one 10 000-px GeoTIFF, its walk", per_gpu),
        "start": Known(gpu["predict"]["warm"]["first_map_seconds"], "s", "start of a process to its first map, programs in the cache", per_gpu),
        "cold": Known(gpu["predict"]["cold"]["first_map_seconds"], "s", "the same with nothing compiled", per_gpu),
        "host": Known(feed["predict geotiff"]["here"]["cpu_seconds"], "CPU s a scene", "host's work, tiled GeoTIFF to map", feeding),
        "openvino": Known(2 * walks["openvino bfloat16"], "core s a scene", "OpenVINO in bfloat16, its walk on two cores", turns),
        "jax": Known(2 * walks["jax float32"], "core s a scene", "JAX in float32, its walk on two cores", turns),
        "map": Known(398e3, "bytes a scene", "class map with overviews, DEFLATE", "[performance](performance.md#prediction-beside-the-network)"),
        "jpeg": Known(2.5e6, "bytes a scene", "the image in JPEG tiles", "`experiments.hosted`, quality 90"),
        "raw": Known(3 * 2448**2, "bytes a scene", "the image as it is, three bands of 8 bits", "arithmetic"),
        "gets": Known(5, "requests a context", "GDAL's, of a window of 2448 px in tiles of 512", "counted at a local S3: 3 to 6"),
        "opening": Known(4, "requests a scene", "looked at, listed beside, opened, looked at again", "`tests/maps/test_destination.py`"),
        "asking": Known(11, "requests a scene", "what is there already, and whether all was written", "`tests/maps/test_destination.py`"),
        "puts": Known(5, "requests a scene", "class map, style, report, and what was there before removed", "`tests/maps/test_destination.py`"),
    }  # fmt: skip


def assumed() -> dict[str, Known]:
    """What was not measured here."""
    return {
        "cores": Known(16, "cores", "beside each GPU", "the machine of results/gpu.json"),
        "network": Known(10e9 / 8, "bytes/s", "of each worker to the store", "assumption: 10 Gbit/s"),
        "store_gets": Known(
            5500, "requests/s", "reads a prefix of a bucket takes", "Amazon's guide to S3's performance"
        ),
        "store_puts": Known(3500, "requests/s", "writes a prefix of a bucket takes", "the same"),
        "prefixes": Known(16, "prefixes", "over which scenes and maps lie", "assumption: folders, as by map sheet"),
        "busy": Known(
            0.9, "", "share of the time that workers have work", "assumption: parts of minutes, bounded retries"
        ),
        "images": Known(1, "", "scenes lie in JPEG tiles", "assumption; uncompressed they are seven times the bytes"),
    }


# ----------------------------------------------------------------------------------------------------------- the amounts
@dataclass(frozen=True)
class Amounts:
    """What 10^12 pixels are."""

    scenes: int
    patches: int
    contexts: int
    reread: float  # pixels read of each pixel
    read: float  # bytes
    read_raw: float
    written: float
    gets: float
    puts: float
    alike: float  # scenes of 2448 px with as many patches
    megapixels: float


def amounts() -> Amounts:
    known = measured()
    scenes = math.ceil(PIXELS / SIDE**2)
    walk = geometry.walk_scene(SIDE, SIDE, VIEWS)
    contexts = sum(1 for _ in walk.blocks())
    patches = sum(len(b.rows.patches) * len(b.columns.patches) for b in walk.blocks())
    reread = contexts * VIEWS.context_size**2 / SIDE**2
    share = PIXELS / VIEWS.context_size**2  # scenes of 2448 px in it
    return Amounts(
        scenes=scenes,
        patches=scenes * patches,
        contexts=scenes * contexts,
        reread=reread,
        read=share * known["jpeg"].value * reread,
        read_raw=share * known["raw"].value * reread,
        written=share * known["map"].value,
        gets=scenes * (contexts * known["gets"].value + known["opening"].value + known["asking"].value),
        puts=scenes * known["puts"].value,
        alike=scenes * patches / 36,
        megapixels=PIXELS / 1e6,
    )


# -------------------------------------------------------------------------------------------------------------- the time
def seconds_of(workers: int) -> dict[str, float]:
    """Seconds that each part takes with so many workers, a GPU and its cores each; what takes longest bounds the run."""
    known, guess, all_ = measured(), assumed(), amounts()
    share = PIXELS / VIEWS.context_size**2
    at_once = workers * guess["busy"].value
    prefixes = guess["prefixes"].value
    return {
        "GPU": all_.alike * known["h100"].value / at_once,
        "host": share * known["host"].value / (at_once * guess["cores"].value),
        "walk, as measured": all_.megapixels / known["walk"].value / at_once,
        "network": (all_.read + all_.written) / (at_once * guess["network"].value),
        "reads of the store": all_.gets / (prefixes * guess["store_gets"].value),
        "writes of the store": all_.puts / (prefixes * guess["store_puts"].value),
    }


def bound(workers: int) -> tuple[str, float, float]:
    """What bounds a run, its seconds with the start, and the seconds if the walk kept pace with the rest."""
    known, parts = measured(), seconds_of(workers)
    last = SIDE**2 / 1e6 / known["walk"].value + SIDE**2 / VIEWS.context_size**2 * known["host"].value
    start = known["cold"].value + last  # before the first scene, and the last scene's end, which nothing else fills
    slowest = max(parts, key=lambda name: parts[name])
    ideal = max(value for name, value in parts.items() if name != "walk, as measured")
    return slowest, parts[slowest] + start, ideal + start


# -------------------------------------------------------------------------------------------------------------- the page
def _long(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 120
        else f"{seconds:.0f} s"
    )


def _amount(value: float) -> str:
    if value >= 1e12:
        return f"{value / 1e12:.2f} TB"
    return f"{value / 1e9:.0f} GB"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page() -> str:
    """The page as Markdown."""
    known, guess, all_ = measured(), assumed(), amounts()
    parts: dict[str, Callable[[], str]] = {
        "{amounts}": lambda: _amounts_table(all_),
        "{time}": _time_table,
        "{parts}": _parts_table,
        "{cpu}": _cpu_table,
        "{known}": lambda: _known_table(known),
        "{assumed}": lambda: _known_table(guess),
    }
    text = TEXT
    for mark, make in parts.items():
        text = text.replace(mark, make())
    hours = all_.alike * known["h100"].value / 3600
    return (
        text.replace("{gpu_hours}", f"{hours:.1f}")
        .replace("{reread}", f"{all_.reread:.2f}")
        .replace("{walk_hours}", f"{bound(1)[1] / 3600:.1f}")
    )


def _amounts_table(all_: Amounts) -> str:
    rows = [
        ["ground", f"{PIXELS * METRES**2 / 1e6:,.0f} km2 at {METRES * 100:.0f} cm"],
        [f"scenes of {SIDE:,} px", f"{all_.scenes:,}"],
        ["contexts, patches", f"{all_.contexts:,}, {all_.patches:,}"],
        ["bytes read, scenes in JPEG tiles", _amount(all_.read)],
        ["bytes read, scenes uncompressed", _amount(all_.read_raw)],
        ["bytes written, class maps with overviews", _amount(all_.written)],
        ["requests that read", f"{all_.gets / 1e6:.2f} million"],
        ["requests that write", f"{all_.puts / 1e6:.2f} million"],
    ]
    return _table(["of 10^12 pixels", ""], rows)


def _time_table() -> str:
    rows = []
    for workers in WORKERS:
        slowest, seconds, ideal = bound(workers)
        hours = workers * seconds / 3600
        rows.append([str(workers), _long(seconds), slowest, f"{hours:,.0f}", _long(ideal), _next_bound(workers)])
    return _table(
        ["workers, a GPU each", "the whole", "what bounds it", "GPU hours", "if the walk kept pace", "bound by then"],
        rows,
    )


def _next_bound(workers: int) -> str:
    parts = {name: value for name, value in seconds_of(workers).items() if name != "walk, as measured"}
    return max(parts, key=lambda name: parts[name])


def _parts_table() -> str:
    names = list(seconds_of(1))
    rows = [[str(n), *(_long(seconds_of(n)[name]) for name in names)] for n in WORKERS]
    return _table(["workers", *names], rows)


def _cpu_table() -> str:
    known, all_ = measured(), amounts()
    rows = []
    for name in ("openvino", "jax"):
        core_seconds = all_.alike * known[name].value
        each = [_long(core_seconds / (16 * n * assumed()["busy"].value)) for n in WORKERS]
        rows.append([known[name].what.split(",")[0], f"{core_seconds / 3600:,.0f}", *each])
    return _table(["engine", "core hours", *(f"{n} x 16 cores" for n in WORKERS)], rows)


def _known_table(known: dict[str, Known]) -> str:
    rows = [[k.what, f"{_number(k.value)} {k.unit}".strip(), k.source] for k in known.values()]
    return _table(["what", "", "from"], rows)


TEXT = """# A country at 20 cm

A plan on paper: what it takes to map 10^12 pixels, 40 000 km2 at 20 cm, with scenes and maps in an object store. `python -m experiments.scale` computes this page
from numbers that were measured on single machines; **no run of this size has been made**. Each number and each assumption stands below with
where it comes from.

In short: the network itself is {gpu_hours} hours of one H100. As `predict` walks over a large GeoTIFF today, one worker needs {walk_hours} hours, since the
device waits for the host more than half of the time; with 64 workers it is minutes, with 512 the start of each worker counts as much as its work.

## What there is

{amounts}

Contexts overlap, so that each patch sees its surroundings: a pixel is read {reread} times. Scenes of several gigabytes in tiles cost no more than these, a pixel.

## How long

{time}

A worker is a process with a GPU and 16 cores beside it. *The whole* has the start of a process with nothing compiled and the end
of its last scene in it.
*If the walk kept pace* leaves out what was measured of the walk of one scene and takes the slowest of the other parts:

{parts}

* **1 and 8 workers**: the walk over a scene is the bottleneck: one thread reads contexts for the device. Several scenes in one command are read beside each other (`--readers`).
* **64 workers**: the same. The network to the store is used to a few percent: JPEG tiles are small beside what a GPU computes of them.
* **512 workers**: minutes of work, of which compiling is a good part. Keep compiled programs on a shared disk (`JAX_COMPILATION_CACHE_DIR`), and use fewer workers for longer.
* **The store**: requests stay under what 16 prefixes take. With all scenes under one prefix 512 workers would wait for it: its reads alone take six minutes.

## Without GPUs

{cpu}

OpenVINO in bfloat16 needs processors with instructions for it. Two cores were measured; whether 16 are eight times as fast was not.

## What it costs

Prices change; these are what to multiply with yours.

* **GPU hours**, the table above: what matters most. Machines that may be taken away are cheap, and a scene that is lost is made again alone.
* **Bytes that leave a region**, if the workers are not where the scenes are: the bytes read. Put the workers there.
* **Requests**: reads are a million or two, writes far fewer; they cost less than an hour of a GPU.
* **What is kept**: the maps, a fiftieth of the scenes as they are uncompressed.

## Measured

Of a scene of 2448 x 2448 px (6 megapixels, 36 patches) unless it says otherwise.

{known}

## Assumed

{assumed}

What is left out: scenes that fail and are tried again, queues of a cluster, confidence and probabilities (1 and k bands more), polygons, and `report.json`, which every
command gathers from all reports that are there.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="the page that is written")
    args = parser.parse_args()
    args.out.write_text(page(), encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
