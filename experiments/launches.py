"""What a training step launches on a GPU that is not there: ``python -m experiments.launches [--depth 50] [--out results/launches.json]``.

Compiled ahead of time (``requirements-aot.txt``), its operations counted in the compiler's last text: each fusion, call of a
library and copy is a launch at least. Those within a condition run only where it holds, as norms at logged steps.
"""

import argparse
import collections
import dataclasses
import json
import os
import re
import sys
import time
from pathlib import Path

from glcanet_jax import cli
from glcanet_jax.errors import UserError

FREE = "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id".split()  # nothing runs
WHOLE = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\([^=]*?\)|\S+) ([\w\-]+)\(")


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program's text, by name; the main one is called ENTRY."""
    found: dict[str, list[str]] = {}
    name = None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():  # without the comments that count a tuple's parts
        if head := WHOLE.match(line):
            name = "ENTRY" if head[1] else head[2]
            found[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            found[name].append(line)
    return found


def launches(text: str) -> dict[str, int]:
    """How many operations of each kind run in a program: in all cases, and ``conditional`` in the longest branches besides.

    The body of a loop counts once.
    """
    parts, counts = computations(text), collections.Counter()

    def count(name: str) -> int:
        total = 0
        for line in parts.get(name, ()):
            kind = operation[1] if (operation := OPERATION.match(line)) else None
            if kind is None or kind in FREE:
                continue
            if kind == "conditional":
                several = re.findall(r"branch_computations=\{([^}]*)\}", line)
                names = several[0].split(",") if several else re.findall(r"(?:true|false)_computation=([^,]+)", line)
                names = [name.strip(" %") for name in names]
                counts["conditional"] += max((count_alone(n) for n in names), default=0)
            elif kind in ("while", "call", "async-start"):
                called = re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line)
                total += sum(count(n) for n in called)
            else:
                counts[kind] += 1
                total += 1
        return total

    def count_alone(name: str) -> int:
        kept = counts.copy()
        total = count(name)
        counts.clear()
        counts.update(kept)
        return total

    total = count("ENTRY")
    return {"all": total, **dict(counts.most_common())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--depth", type=int, default=50, help="of the ResNets (default: 50)")
    parser.add_argument("--side", type=int, default=500, help="pixels of both views (default: 500)")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()
    from glcanet_jax.measure import aot

    if not aot.available():
        raise UserError("this needs XLA's CUDA compiler; pip install -r requirements-aot.txt")
    if any(os.environ.get(name) != value for name, value in aot.ENVIRONMENT.items()):  # before jax is imported
        flags = f"{os.environ.get('XLA_FLAGS', '')} {aot.FLAGS}"
        os.execve(sys.executable, [sys.executable, "-m", "experiments.launches", *sys.argv[1:]], {**os.environ, **aot.ENVIRONMENT, "XLA_FLAGS": flags})  # fmt: skip
    result = measure(aot, args.depth, args.side, args.dtype)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(aot, depth: int, side: int, dtype: str) -> dict[str, object]:
    """Launches of the default network's joint step, and seconds to compile it here."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    from glcanet_jax import runs
    from glcanet_jax.config import Config, model_config

    model = model_config(depth=depth, dtype=dtype, fast_conv=False)
    config = Config(model=model, views=dataclasses.replace(Config().views, global_size=side, patch_size=side))
    gpu = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=aot.describe("h100"))
    one = jax.sharding.Mesh(np.array(gpu.devices)[:1], ("x",))
    sharding = jax.sharding.NamedSharding(one, jax.sharding.PartitionSpec())
    ((name, program, args),) = aot.train_programs(runs.build_model(config, 7), config, 3)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    began, cpu = time.perf_counter(), time.process_time()
    lowered = program.lower(*args)
    traced = time.process_time()
    text = lowered.compile().as_text()
    seconds = {
        "trace": traced - cpu,
        "compile": time.process_time() - traced,
        "wall": time.perf_counter() - began,
    }
    return {
        "phase": name, "depth": depth, "side": side, "dtype": dtype, "jax": jax.__version__, "launches": launches(text),
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
