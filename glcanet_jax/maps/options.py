"""What can be asked for when scenes are mapped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from glcanet_jax.limits import METRES, SHARE, Range, check_fields


@dataclass(frozen=True)
class MapOptions:
    """What is made of each scene, and how."""

    bands: str | None = None  # numbers from 1, as 4,1,2; without: the scene's own, an alpha band left out
    # full scale of the scenes' values, if it is not what the weights were trained on
    scale: Annotated[float | None, Range(0, open="low")] = None
    resample: bool = False  # read scenes at the ground resolution that the weights were trained at; maps have it, too
    # metres a pixel of what the weights were trained on, where their file does not say, or is wrong
    ground_resolution: Annotated[float | None, METRES] = None
    confidence: bool = False  # probability of the chosen class, one uint8 band
    probabilities: bool = False  # of every class, a uint8 band each
    polygons: Literal["geojson", "gpkg"] | None = None  # of the classes, in a file of this format
    # polygons under it are merged into their largest neighbour, if one is not under it; m2 (pixels without a CRS)
    min_area: Annotated[float, Range(0)] = 0.0
    overlay: bool = False  # a PNG to look at
    # of the class map; zstd is written in half the time, and read by GDAL, QGIS and rasterio, not by every other program
    compression: Literal["deflate", "zstd"] = "deflate"
    aoi: Path | None = None  # polygons in GeoJSON, a GeoPackage or a Shapefile; nothing is predicted outside
    aoi_layer: str | None = None  # the layer of a GeoPackage with several
    csv: bool = False  # areas.csv: pixels, hectares and percent of every class of every scene
    tta: bool = False  # mean over the eight views of a square: eight times the work
    overlap: Annotated[int | None, Range(0, 2**14)] = None  # least overlap of patches, pixels; without: the weights'
    # patches as large as the scene's size asks for, near those trained on: fewer pixels are looked at, and maps differ
    fit_patches: bool = False
    context_size: Annotated[int | None, Range(1, 2**20)] = None  # scene pixels a side; without: the weights'
    batch: Annotated[int | None, Range(1, 2**12)] = None  # patches at once; without: what the memory allows
    # blocks a side of the parts that a scene is mapped in, each by itself; without: a scene is one, with --on ray as many as take minutes
    part_blocks: Annotated[int | None, Range(1, 2**10)] = None
    memory_budget: str | None = None  # as 4GB (of 1024 MB of 1024 x 1024 bytes): the batch is chosen to stay under it
    devices: Annotated[int | None, Range(1, 2**10)] = None  # of this machine, at once; without: all, of CPUs one
    readers: Annotated[int | None, Range(1, 2**8)] = None  # scenes read at once; without: half the cores, 2 to 8
    writers: Annotated[int | None, Range(1, 2**8)] = (
        None  # scenes finished at once; without: a quarter of the cores, 1 to 8
    )
    # what computes the network; auto: OpenVINO on CPUs where it is installed, else JAX
    engine: Literal["auto", "jax", "openvino"] = "auto"
    # of the computation; without: float32 on CPUs, else bfloat16; int8 is OpenVINO's
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    calibration: Path | None = None  # scene that int8 is calibrated on; without: the first of those to be mapped
    # of the pixels of patches that int8 was not calibrated on: if more change their class against float32, it is refused
    most_changed: Annotated[float, SHARE] = 0.015
    resume: bool = True  # go on where a killed run stopped
    drivers: str | None = None  # of GDAL beyond the common formats, as netCDF,MRF; those of servers open the network
    # folder in which maps for an object store are made before they go there; without: ~/.cache/glcanet_jax/maps
    work: Path | None = None
    overwrite: bool = False  # replace maps made with other weights or options

    def __post_init__(self):
        check_fields(self, "--")


DEFAULTS = MapOptions()
