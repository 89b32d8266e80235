"""A CRS that GeoTIFF's keys cannot hold, written beside the map as GDAL's ``.aux.xml`` (PAM), which QGIS reads too."""

from typing import Any
from xml.etree import ElementTree as xml

import numpy as np

from glcanet_jax.data.gdal import environment, failures, open_raster
from glcanet_jax.data.georeference import LONLAT, Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps.degrees import grid, moved

SUFFIX = ".aux.xml"  # behind the map's whole name


def crs_beside(what: str, place: Georeference, height: int, width: int) -> str | None:
    """The text of the file that a map needs beside itself for its CRS; None where the map holds it.

    Args:
        what: the scene, for the message.

    Raises:
        UserError: neither can hold it.
    """
    if place.crs is None or _comes_back(place, (height, width)):
        return None
    text = _pam(place)
    if text is None or not _comes_back(place, (height, width), text):
        raise UserError(
            f"{what} has the CRS {crs_name(place)}, which neither GeoTIFF nor {SUFFIX} can hold; "
            "reproject it, as with `gdalwarp -t_srs EPSG:4326`"
        )
    return text


def crs_name(place: Georeference) -> str:
    """What a CRS is called; its text, where PROJ has no name for it."""
    try:
        return place.name
    except (*failures(), AttributeError):
        return str(place.crs)


def _pam(place: Georeference) -> str | None:
    """Coordinates are in GIS's order, x first, as the file's are: no mapping of axes is said."""
    try:
        wkt = place.crs.to_wkt(version="WKT2_2019")
    except failures():
        return None
    root = xml.Element("PAMDataset")
    if place.gcps:
        points = xml.SubElement(root, "GCPList", {"Projection": wkt})
        for i, p in enumerate(place.gcps, 1):
            at = {"Pixel": p.col, "Line": p.row, "X": p.x, "Y": p.y, "Z": p.z or 0.0}
            xml.SubElement(points, "GCP", {"Id": str(i), **{k: repr(float(v)) for k, v in at.items()}})
    else:
        xml.SubElement(root, "SRS").text = wkt
    return xml.tostring(root, encoding="unicode") + "\n"


def _comes_back(place: Georeference, size: tuple[int, int], pam: str | None = None) -> bool:
    """Whether a GeoTIFF of one pixel, with this file beside it, has the same CRS when it is read."""
    import rasterio
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    options = dict(driver="GTiff", width=1, height=1, count=1, dtype="uint8")
    try:
        with environment(), MemoryFile(ext=".tif") as file:
            with open_raster(file.name, "w", **options) as out:
                if place.gcps:
                    out.gcps = list(place.gcps), place.crs
                else:
                    out.transform, out.crs = place.transform or Affine(1, 0, 0, 0, -1, 1), place.crs
            if pam is None:
                with open_raster(file.name) as again:
                    return _same(place, again, size)
            with MemoryFile(pam.encode(), filename=f"{file.name.rpartition('/')[2]}{SUFFIX}", dirname=_folder(file)):
                with rasterio.Env(GDAL_PAM_ENABLED=True), open_raster(file.name) as again:
                    return _same(place, again, size)
    except failures():
        return False


def _folder(file: Any) -> str:
    """Of GDAL's memory, where a file lies."""
    return file.name.removeprefix("/vsimem/").rpartition("/")[0]


def _same(place: Georeference, file: Any, size: tuple[int, int]) -> bool:
    """Whether a file's CRS is that of the scene, by what it says or by where it puts the scene's pixels."""
    there = file.gcps[1] if place.gcps else file.crs
    if not there or there == place.crs:
        return bool(there)
    if (there.is_geographic, there.units_factor) != (place.crs.is_geographic, place.crs.units_factor):
        return False
    points = np.stack(place.to_crs(*grid(*size).T), axis=1)
    ours, theirs = (moved(points, crs, LONLAT) for crs in (place.crs, there))
    known = np.isfinite(ours)
    return bool(known.any() and np.allclose(ours, theirs, rtol=0, atol=1e-9, equal_nan=True))
