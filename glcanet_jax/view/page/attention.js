// What a network looks at from a pixel: the tokens of its global view that the mask lets it see, and how it weighs them.

import { lastAsk } from "./api.js";
import { element } from "./dom.js";
import { number } from "./scene.js";

const askAttention = lastAsk();
let onMap = null;
let drawn = [];

export function beginAttention(map) {
  onMap = map;
}

export function forgetAttention() {
  for (const layer of drawn) onMap.removeLayer(layer);
  drawn = [];
}

export async function showAttention(map, row, column, button) {
  if (drawn.length && button.dataset.shown) {
    forgetAttention();
    delete button.dataset.shown;
    button.textContent = "What it looks at from here";
    return;
  }
  button.disabled = true;
  button.textContent = "Looking … (the network is loaded first)";
  try {
    const told = await askAttention(`scene/${number}/attention`, { map, row, column });
    forgetAttention();
    drawn = [picture(told), frames(told)];
    for (const layer of drawn) onMap.addLayer(layer);
    button.dataset.shown = "1";
    button.textContent = "Hide what it looks at";
    button.after(element("p", { className: "quiet" }, `Dashed: the patch. Solid: the context. Bright: what counts (level P${told.level}, at most ${(100 * told.largest).toFixed(1)} % on a token); dark: what the mask hides.`));
  } catch (error) {
    button.textContent = "What it looks at from here";
    throw error;
  } finally {
    button.disabled = false;
  }
}

const extentOfWindow = ([top, left, height, width]) => [left, -(top + height), left + width, -top];

function picture(told) {
  const rows = told.weights.length;
  const columns = told.weights[0].length;
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  told.weights.flat().forEach((weight, i) => {
    const seen = told.visible[Math.floor(i / columns)][i % columns];
    const colour = seen ? told.colours[Math.round(weight * (told.colours.length - 1))] : [0, 0, 0];
    pixels.data.set([...colour, seen ? 60 + 195 * weight : 150], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  const source = new ol.source.ImageStatic({ url: canvas.toDataURL(), imageExtent: extentOfWindow(told.context), projection: onMap.getView().getProjection(), interpolate: false });
  return new ol.layer.Image({ source, zIndex: 900, opacity: 0.75 });
}

function frames(told) {
  const frame = (window, dash) => {
    const feature = new ol.Feature(ol.geom.Polygon.fromExtent ? ol.geom.Polygon.fromExtent(extentOfWindow(window)) : boxOf(extentOfWindow(window)));
    const line = (color, width) => new ol.style.Style({ stroke: new ol.style.Stroke({ color, width, lineDash: dash }) });
    feature.setStyle([line("#fff", 4), line("#111", 2)]);
    return feature;
  };
  return new ol.layer.Vector({ source: new ol.source.Vector({ features: [frame(told.context), frame(told.patch, [6, 6])] }), zIndex: 901 });
}

const boxOf = ([left, bottom, right, top]) => new ol.geom.Polygon([[[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]]);
