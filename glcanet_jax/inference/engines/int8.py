"""An engine's graphs in 8 bits: what their inputs are, the job that quantises them, and what that changes."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import glcanet_jax
from glcanet_jax.errors import UserError
from glcanet_jax.inference import calibration
from glcanet_jax.inference.engines import store

INSTALL = "pip install 'glcanet-jax[openvino-int8]'"
CHANGED = "changed"  # a file beside the graphs
JOB = "glcanet_jax.inference.engines.nncf_job"


def need_nncf() -> str:
    """The package's version.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("nncf") is None:
        raise UserError(f"--dtype int8 needs nncf, which is not installed; {INSTALL}")
    return metadata.version("nncf")


def quantise(plain: Any, drawn: calibration.Calibration, folder: Path) -> None:
    """Fill a folder with the graphs of an engine of float32, quantised.

    Raises:
        UserError: NNCF fails.
    """
    inputs = Path(tempfile.mkdtemp(prefix="inputs-", dir=folder))
    try:
        with plain.recording() as kept:
            for sample in drawn.on:
                calibration.play(plain, sample)
        for name, many in kept.items():
            (inputs / name).mkdir()
            for i, arrays in enumerate(many):
                np.savez(inputs / name / f"{i:04}.npz", *arrays)
        kept.clear()
        plain.let_go()
        _run_job(plain.folder, inputs, folder)
    finally:
        shutil.rmtree(inputs, ignore_errors=True)
    for path in plain.folder.iterdir():
        if path.suffix not in (".xml", ".bin"):
            shutil.copyfile(path, folder / path.name)


def _run_job(source: Path, inputs: Path, folder: Path) -> None:
    root = str(Path(glcanet_jax.__file__).parents[1])
    above = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", JOB, str(source), str(inputs), str(folder)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": above}, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise UserError(f"NNCF could not quantise the network ({said[:200]}); give --dtype bfloat16 or float32")


def check(plain: Any, quantised: Any, drawn: calibration.Calibration) -> float:
    """The share of the cells of patches that it was not calibrated on whose class is not that by float32."""
    got = [calibration.play(quantised, sample) for sample in drawn.others]
    quantised.let_go()
    wanted = [calibration.play(plain, sample) for sample in drawn.others]
    plain.let_go()
    return calibration.changed(wanted, got)


def note(folder: Path, share: float) -> None:
    """Keep with the graphs what :func:`check` found."""
    (folder / CHANGED).write_text(repr(share))


def noted(folder: Path) -> float:
    """What :func:`check` had found.

    Raises:
        UserError: the folder is damaged; it is removed.
    """
    try:
        return float((folder / CHANGED).read_text())
    except (OSError, ValueError) as error:
        store.forget(folder)
        raise UserError(f"{folder / CHANGED} cannot be read ({error}), its folder is removed; run again") from error
