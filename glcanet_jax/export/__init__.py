"""A network as one file for others: StableHLO, which JAX alone can run, or ONNX, which many programs can."""

from pathlib import Path
from typing import Literal

from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference.exported import Exported, load

__all__ = ["FORMATS", "Exported", "export", "load"]

Format = Literal["stablehlo", "onnx"]
FORMATS = {"stablehlo": ".zip", "onnx": ".onnx"}  # and what their files' names end in


def export(
    weights: str | Path, out: str | Path, format: Format | None = None, size: int | None = None
) -> dict[str, float]:
    """Export a weights file, or a run's best, to one file, whole or not at all, after comparing it with the network.

    Args:
        format: None: as the name ends.
        size: of ONNX: pixels a side of its tile; None: a context, of networks that look at patches alone a patch.

    Returns:
        by what was compared, the largest error: of StableHLO relative to the largest value of each function's answer, of ONNX
        that of a probability.

    Raises:
        UserError: no weights, a package is missing, an option or the name does not fit, or the file does not answer as the network.
    """
    out = Path(out)
    ends = {ending: name for name, ending in FORMATS.items()}
    if out.suffix not in ends and not out.is_dir():
        known = " or ".join(f"{ending} ({name})" for ending, name in ends.items())
        raise UserError(f"{out} ends in {out.suffix or 'nothing'}; exports end in {known}: give such a name")
    disk.make_place(out)
    format = format or ends[out.suffix]
    if ends[out.suffix] != format:
        raise UserError(f"{out} ends as a file of {ends[out.suffix]}, and {format} was asked for; give another name")
    if format == "onnx":
        from glcanet_jax.export import onnx

        return onnx.write(weights, out, size)
    if size is not None:
        raise UserError("--size is of ONNX alone, whose tile has one size; leave it out")
    from glcanet_jax.export import stablehlo

    return stablehlo.write(weights, out)
