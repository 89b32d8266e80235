"""What is written of a region: its class, its area and its geometry in the file's coordinates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps.placing import Placer
from glcanet_jax.maps.regions import Regions


class Feature(NamedTuple):
    """A region as it is in the file."""

    class_id: int
    area: float  # square metres; pixels where there is no CRS
    geometry: bytes  # GeoJSON's, or WKB


class Drawer:
    """Makes features of a scene's regions, for a file of GeoJSON (``geojson``) or a GeoPackage (``gpkg``)."""

    def __init__(self, kind: str, place: Georeference, height: int, width: int):
        self.kind, self._place = kind, place
        self._placed = Placer(place, height, width, lonlat=kind == "geojson")

    def __call__(self, regions: Regions) -> list[Feature]:
        """Raises UserError if a part has no longitude and latitude, and these are wanted."""
        import shapely

        if not len(regions.ids):
            return []
        rings, outer = np.abs(self._place.ring_areas(*regions.rings)), regions.polygons[:-1]
        areas = 2 * rings[outer] - np.add.reduceat(rings, outer)  # the outer ring less the holes
        placed = self._placed(regions)
        if self.kind == "geojson":
            geometries = [text.encode() for text in shapely.to_geojson(placed).tolist()]
        else:
            geometries = shapely.to_wkb(placed).tolist()
        return list(map(Feature, regions.ids.tolist(), areas.tolist(), geometries))

    def made(self, regions: Regions) -> "Drawn":
        return Drawn(regions, self)


class Drawn:
    """Features of regions in memory, made when they are taken (:class:`glcanet_jax.maps.tracing.Source`)."""

    def __init__(self, regions: Regions, draw: Drawer):
        self.bottoms, self.firsts = regions.bottoms, regions.firsts
        self._regions, self._draw = regions, draw

    def take(self, part: slice) -> Sequence[Feature]:
        return self._draw(self._regions.take(part))
