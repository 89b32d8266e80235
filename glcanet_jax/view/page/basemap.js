// A base map under the scene, only where one was asked for: bent onto the scene's own pixels.

import { number, scene } from "./scene.js";

const SIDE = 8; // steps of the grid that says where the scene lies

export function makeBasemap(map, url, projection) {
  const grid = scene.place?.grid;
  if (!url || !grid) return null;
  bend(projection, grid.map(([lon, lat]) => ol.proj.fromLonLat([lon, lat])));
  const source = new ol.source.XYZ({ url, crossOrigin: "anonymous", wrapX: true, attributions: new URL(url.replaceAll(/[{}]/g, "")).host });
  const layer = new ol.layer.Tile({ source, zIndex: 0, className: `basemap-${number}` });
  map.addLayer(layer);
  return layer;
}

// Coordinates of the scene to Web Mercator and back, from a grid of both: bilinear in its cells, and beyond them.
function bend(projection, places) {
  const place = ([x, y]) => {
    const [u, v] = [(x / scene.width) * SIDE, (-y / scene.height) * SIDE];
    const [i, j] = [u, v].map((at) => Math.min(SIDE - 1, Math.max(0, Math.floor(at))));
    const at = (row, column) => places[row * (SIDE + 1) + column];
    const [s, t] = [u - i, v - j];
    return [0, 1].map((axis) =>
      (1 - t) * ((1 - s) * at(j, i)[axis] + s * at(j, i + 1)[axis]) + t * ((1 - s) * at(j + 1, i)[axis] + s * at(j + 1, i + 1)[axis]));
  };
  const pixel = (wanted) => {
    let at = [scene.width / 2, -scene.height / 2];
    for (let turn = 0; turn < 8; turn += 1) {
      const step = Math.max(scene.width, scene.height) / 1000;
      const here = place(at);
      const [right, up] = [place([at[0] + step, at[1]]), place([at[0], at[1] + step])];
      const [a, b, c, d] = [right[0] - here[0], up[0] - here[0], right[1] - here[1], up[1] - here[1]];
      const area = a * d - b * c;
      const [dx, dy] = [wanted[0] - here[0], wanted[1] - here[1]];
      at = [at[0] + (step * (d * dx - b * dy)) / area, at[1] + (step * (a * dy - c * dx)) / area];
    }
    return at;
  };
  ol.proj.addProjection(projection);
  ol.proj.addCoordinateTransforms(projection, "EPSG:3857", place, pixel);
}
