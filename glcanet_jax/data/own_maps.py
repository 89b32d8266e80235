"""How maps that `predict` made are known among a folder's rasters: by their names, and the report beside them."""

from pathlib import Path

LAYERS = ("classes", "confidence", "probabilities")  # what a walk makes; the rest is drawn from the classes
RASTERS = {kind: f"_{kind}.tif" for kind in LAYERS} | {"overlay": "_overlay.png"}
SUFFIX = ".report.json"
PROBABILITY_STEPS = 254  # a probability p is stored as round(254 p); 255 is nodata


def is_map(file: Path) -> bool:
    """Whether a file is a map that was made here."""
    ends = [end for end in RASTERS.values() if file.name.endswith(end)]
    return any(file.with_name(f"{file.name.removesuffix(end)}{SUFFIX}").exists() for end in ends)
