"""What a trained network makes of its global view: ``python -m experiments.converge.blind DATA OUT --network NAME:option=value``.

Scores weights that ``experiments.converge`` kept in OUT on tile 2 of MBRSC in DATA with the view of the patch's own context, with that
of another place, and with none. Where the three are alike the network does not use the view; where the others are worse it
does, whatever it gains by it. Writes OUT/blind-NAME.json.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import sizes
from experiments.converge.field import CLASSES, OPTIONS, Sizes, read
from experiments.converge.scoring import VIEWS, make_confusion, placed, told
from experiments.converge.training import build, kept, place_of
from experiments.mbrsc import DEMO
from glcanet_jax import cli, models, report
from glcanet_jax.profiling import machine


def scores(network: str, variables: Any, data: Path) -> dict[str, Any]:
    """Of tile 2 by what is shown."""
    given, model = Sizes(), build(network, OPTIONS | {"dtype": "float32"})
    (scene,) = read(data, "test").values()
    on_canvas, out = placed(scene, scene[1].shape, given), {}
    for view in VIEWS:
        confusion = jax.jit(make_confusion(models.functions(model).apply, DEMO, given, CLASSES, view))
        out[view] = told(np.asarray(confusion(variables, *on_canvas), np.float64))
        print(view, out[view], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.converge.blind", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", default="glcanet:head=nonlinear,share_backbone=True")
    given = parser.parse_args()
    place = place_of(given.out, given.network)
    found = {"network": given.network, "tile2": scores(given.network, kept(place), given.data)}
    made = {
        "command": "python -m experiments.converge.blind DATA OUT",
        "machine": machine() | {"commit": sizes.commit()},
    }
    report.write_json(place.with_name(f"blind-{place.name}.json"), made | found)


if __name__ == "__main__":
    cli.run(main)
