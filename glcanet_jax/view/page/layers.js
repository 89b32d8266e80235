// Tiles of each layer, and the list that shows them and says how strongly.

import { tileUrl } from "./api.js";
import { byId, element, fill } from "./dom.js";
import { gridOf, layersOf, number, scene } from "./scene.js";
import { keepAddress, state } from "./state.js";

export const tiles = new Map(); // by key

let drawing = 0; // how often tiles were asked for anew: browsers keep a picture by its address

const queryOf = (layer) => {
  const anew = drawing ? { v: drawing } : {};
  if (layer.key === "image") return { bands: state.bands.join(","), stretch: state.stretch, ...anew };
  if (!layer.legend) return anew;
  const off = layer.legend.names.map((name, i) => (state.off.includes(name) ? i : -1)).filter((i) => i >= 0);
  return { off: off.join(","), ...anew };
};

export function makeLayers(map, projection, zIndex = 1) {
  for (const made of tiles.values()) map.removeLayer(made.layer);
  tiles.clear();
  const grid = gridOf();
  layersOf().forEach((told, i) => {
    const source = new ol.source.TileImage({
      projection,
      tileGrid: grid,
      interpolate: false,
      transition: 0,
      wrapX: false,
      tileUrlFunction: urlsOf(told),
    });
    const layer = new ol.layer.Tile({ source, zIndex: zIndex + i, className: `layer-${told.key}` });
    tiles.set(told.key, { told, layer, source });
    map.addLayer(layer);
  });
  showLayers();
}

function urlsOf(told) {
  const at = number;
  const query = queryOf(told);
  return ([z, x, y]) => tileUrl(at, told.key, z, x, y, query);
}

export const isShown = (told) => (state.layers[told.key] ? Boolean(state.layers[told.key][0]) : told.shown);
const opacityOf = (told) => state.layers[told.key]?.[1] ?? told.opacity;

// Which are seen: those that are switched on, or, while two are compared, these over the scene.
export function showLayers() {
  for (const { told, layer } of tiles.values()) {
    const compared = state.swipe && [state.swipe[0], state.swipe[1]].includes(told.key);
    layer.setVisible(state.swipe ? compared || told.key === "image" : isShown(told));
    layer.setOpacity(opacityOf(told));
  }
  byId("layers").classList.toggle("aside", Boolean(state.swipe)); // their switches wait until nothing is compared
}

// Draw layers as they are now to be drawn; or as they now can be, where what was not there has been made.
export function redraw(wanted = () => true, anew = false) {
  drawing += Number(anew);
  for (const made of tiles.values()) if (wanted(made.told)) made.source.setTileUrlFunction(urlsOf(made.told), `${Math.random()}`);
}

export function listLayers(changed) {
  const rows = [...tiles.values()].reverse().map(({ told }) => layerRow(told, changed));
  const waiting = scene.maps.map((map, i) => [map, i]).filter(([map]) => !map.ready);
  fill("layers", ...waiting.map(([map, i]) => waitingRow(map, i, changed)), ...rows);
}

function layerRow(told, changed) {
  const id = `layer-${told.key}`;
  const set = (shown, opacity) => {
    state.layers[told.key] = [Number(shown), opacity];
    showLayers();
    keepAddress();
    changed(told);
  };
  const box = element("input", { type: "checkbox", id, checked: isShown(told) });
  const range = element("input", {
    type: "range", min: 0, max: 1, step: 0.05, value: opacityOf(told), "aria-label": `Opacity of ${told.words}`, title: "Opacity",
  });
  box.addEventListener("change", () => set(box.checked, Number(range.value)));
  range.addEventListener("input", () => set(box.checked, Number(range.value)));
  return element("li", {}, box, element("label", { htmlFor: id, title: told.words }, told.words), range);
}

function waitingRow(map, i, changed) {
  const busy = ["waiting", "working"].includes(map.state);
  const words = map.problem || (busy ? `${map.label} is mapping this scene` : `${map.label} has not mapped this scene`);
  const button = element("button", { type: "button", disabled: busy }, busy ? "…" : "Map it");
  button.addEventListener("click", () => changed(null, i));
  return element("li", {}, element("span", { "aria-hidden": "true" }, "·"), element("span", { className: map.problem ? "bad" : "quiet" }, words), button);
}
