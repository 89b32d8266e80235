"""``predict`` ended at random moments, then the same command again."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.campaign.bench import ROOT, environment
from tests.campaign.cases import dice, picture, write_tiff
from tests.campaign.verdict import digests

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CODES = {signal.SIGKILL: (-9,), signal.SIGINT: (130, -2), signal.SIGTERM: (143, -15)}
AT_MOST = 6  # kills of a map, until it is left to end


def start(scene: Path, weights: Path, out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "glcanet_jax", "predict", scene, "--weights", weights, "--out", out, "--confidence"]
    words += ["--polygons", "geojson", "--min-area", "20", "--context-size", "256", "--batch", "4"]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(list(map(str, words)), cwd=ROOT, env=environment(), stdout=log, stderr=log)


def kills(folder: Path, weights: Path, count: int, side: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """What was done, and what is wrong with what stands then under final names."""
    rng, scene = dice(seed, "kills"), folder / "scene.tif"
    write_tiff(scene, np.moveaxis(picture(side, side, 7), -1, 0), tiled=True, blockxsize=256, blockysize=256)
    began = time.monotonic()
    assert start(scene, weights, folder / "whole").wait() == 0
    undisturbed, wanted = time.monotonic() - began, digests(folder / "whole")
    yield f"undisturbed in {undisturbed:.1f} s: {', '.join(wanted)}", []
    done, rounds = 0, 0
    while done < count:
        rounds += 1
        out, here = folder / f"out{rounds}", 0
        while True:
            process = start(scene, weights, out)
            stop = done < count and here < AT_MOST
            moment = rng.uniform(0.2, 1) * undisturbed
            try:
                code = process.wait(moment if stop else None)
                yield f"round {rounds} ends after {here} kills", _wrong(out, wanted, code, (0,), whole=True)
                break
            except subprocess.TimeoutExpired:
                number = rng.choice(SIGNALS)
                process.send_signal(number)
                code = process.wait()
                done, here = done + 1, here + 1
                wrong = _wrong(out, wanted, code, (*CODES[number], 0), whole=False)
                yield f"kill {done} ({number.name} after {moment:.1f} s, code {code})", wrong


def _wrong(out: Path, wanted: dict[str, str], code: int, codes: tuple[int, ...], whole: bool) -> list[str]:
    said = out.with_suffix(".log").read_text(errors="replace")
    made = digests(out)
    told = [f"exit code {code}"] * (code not in codes)
    told += ["a traceback"] * ("Traceback" in said)
    told += [f"{name} is unheard of" for name in made.keys() - wanted.keys()]
    told += [f"{name} differs" for name in made.keys() & wanted.keys() if made[name] != wanted[name] and _is_map(name)]
    if whole:
        told += [f"{name} lacks" for name in wanted.keys() - made.keys()]
        told += [f"{path.name} is left" for path in out.glob(".*")]
    return told


def _is_map(name: str) -> bool:
    """Reports hold times."""
    return not name.endswith(".json")
