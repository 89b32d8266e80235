// The scene that is looked at: its pixels are the plane of the map, columns to the right and rows downwards.

import { ask } from "./api.js";
import { state } from "./state.js";

export let scene = null; // as the server tells it
export let number = -1;

export async function loadScene(wanted) {
  const told = await ask(`scene/${wanted}`);
  scene = told;
  number = wanted;
  return told;
}

export async function reloadScene() {
  const at = number;
  const told = await ask(`scene/${at}`);
  if (at === number) scene = told;
}

export const extentOf = () => [0, -scene.height, scene.width, 0];

export function projectionOf() {
  return new ol.proj.Projection({ code: `scene-${number}`, units: "pixels", extent: extentOf(), metersPerUnit: scene.place?.metres || 1 });
}

export function gridOf() {
  const resolutions = Array.from({ length: scene.levels + 1 }, (_, z) => 2 ** (scene.levels - z));
  return new ol.tilegrid.TileGrid({ extent: extentOf(), origin: [0, 0], resolutions, tileSize: scene.tile });
}

// A view of the scene: as it was left, or all of it, north upwards where that is known.
export function viewOf(projection) {
  const side = Math.max(scene.width, scene.height);
  const view = new ol.View({
    projection,
    center: [scene.width / 2, -scene.height / 2],
    extent: [-side, -scene.height - side, scene.width + side, side],
    smoothExtentConstraint: false,
    maxResolution: Math.max(1, side / 128),
    minResolution: 1 / 64,
    constrainRotation: false,
    resolution: 1,
    rotation: scene.place?.north || 0,
  });
  if (state.view) {
    view.setCenter([state.view[0], -state.view[1]]);
    view.setResolution(state.view[2]);
    view.setRotation(state.view[3]);
  }
  return view;
}

// The layers that there are, from the lowest to the highest: key, words, whether it is shown at first, opacity, legend if it has classes.
export function layersOf() {
  const found = [];
  if (scene.image) found.push({ key: "image", words: "scene", shown: true, opacity: 1 });
  if (scene.truth) found.push({ key: "truth", words: "truth", shown: scene.maps.length === 0, opacity: 0.6, legend: scene.truth });
  const several = scene.maps.length > 1;
  scene.maps.forEach((map, i) => {
    const of = several ? ` · ${map.label}` : "";
    if (!map.ready) return;
    found.push({ key: `classes-${i}`, words: `classes${of}`, shown: i === 0, opacity: scene.image ? 0.6 : 1, legend: map.legend });
    if (map.confidence) found.push({ key: `confidence-${i}`, words: `confidence${of}`, shown: false, opacity: 0.8 });
    if (scene.truth) found.push({ key: `errors-${i}`, words: `errors${of}`, shown: false, opacity: 1 });
    for (let j = 0; j < i; j += 1) {
      if (scene.maps[j].ready) {
        found.push({ key: `differs-${j}-${i}`, words: `${scene.maps[j].label} ≠ ${map.label}`, shown: false, opacity: 1 });
      }
    }
  });
  return found;
}
