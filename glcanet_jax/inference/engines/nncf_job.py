"""Graphs in 8 bits, by NNCF: ``python -m glcanet_jax.inference.engines.nncf_job GRAPHS INPUTS OUT``, a process of its own.

NNCF changes the process that imports it (how it logs, and PyTorch where that is installed), keeps hundreds of megabytes, and tells
its makers what it is asked to do. Here all of that ends with the job, and it finds nothing to tell anybody by.
"""

import logging
import sys
from pathlib import Path

import numpy as np

from glcanet_jax.inference.engines.quiet import without_telemetry


def main(graphs: Path, inputs: Path, out: Path) -> None:
    """Quantise those graphs of a folder that there are inputs of: ``INPUTS/NAME/*.npz``, each with a graph's inputs in order."""
    with without_telemetry():
        import nncf
        import openvino
        from openvino import passes

        folding = passes.Manager()
        folding.register_pass(passes.ConstantFolding())
        nncf.set_log_level(logging.ERROR)
        # biases are not corrected: that takes as long as all else, and changed nothing in what was measured
        advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
        # sums along the network stay as they are: in 8 bits at every block they are half of what 8 bits change, and not faster
        sums = nncf.IgnoredScope(types=["Add"], validate=False)
        core = openvino.Core()
        for folder in sorted(inputs.iterdir()):
            data = nncf.Dataset(sorted(folder.iterdir()), lambda path: dict(enumerate(np.load(path).values())))
            model = core.read_model(graphs / f"{folder.name}.xml")
            folding.run_passes(model)  # weights behind a reshape are none to NNCF
            made = nncf.quantize(model, data, ignored_scope=sums, advanced_parameters=advanced)
            openvino.save_model(made, out / f"{folder.name}.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
