// What is known of the pixel that was clicked, and its mark on the map.

import { lastAsk } from "./api.js";
import { byId, element, fill, percent } from "./dom.js";
import { number, scene } from "./scene.js";
import { keepAddress, state } from "./state.js";

const askPixel = lastAsk();
const marks = new ol.source.Vector();
let onAttention = null;

export function beginPixel(map, attention, fail, busy) {
  onAttention = attention;
  const ring = new ol.style.Circle({ radius: 7, stroke: new ol.style.Stroke({ color: "#fff", width: 4 }) });
  const inner = new ol.style.Circle({ radius: 7, stroke: new ol.style.Stroke({ color: "#111", width: 2 }) });
  map.addLayer(new ol.layer.Vector({ source: marks, zIndex: 1000, style: [new ol.style.Style({ image: ring }), new ol.style.Style({ image: inner })] }));
  const at = ([x, y]) => tellPixel(Math.floor(-y), Math.floor(x)).catch(fail);
  map.on("singleclick", (event) => busy() || at(event.coordinate));
  byId("map").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === byId("map")) at(map.getView().getCenter());
  });
}

export function forgetPixel() {
  marks.clear();
  fill("pixel", element("p", { className: "quiet" }, "Click on the map."));
}

export async function tellPixel(row, column) {
  if (row < 0 || column < 0 || row >= scene.height || column >= scene.width) return;
  state.pixel = [row, column];
  keepAddress();
  marks.clear();
  marks.addFeature(new ol.Feature(new ol.geom.Point([column + 0.5, -row - 0.5])));
  try {
    const told = await askPixel(`scene/${number}/pixel`, { row, column });
    fill("pixel", placeOf(told), ...told.maps.map((of, i) => mapOf(of, i, told)));
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}

function placeOf(told) {
  const rows = [["row, column", `${told.row}, ${told.column}`]];
  if (told.place) {
    rows.push([told.place.crs, `${short(told.place.x)}, ${short(told.place.y)}`]);
    if (told.place.lonlat) rows.push(["lon, lat", `${told.place.lonlat[0].toFixed(6)}, ${told.place.lonlat[1].toFixed(6)}`]);
  }
  if (scene.image) rows.push(["values", told.values?.map((value) => Number(value.toPrecision(6))).join(", ") ?? "no data"]);
  if (scene.truth) rows.push(["truth", told.truth ?? "not labelled"]);
  return element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

const short = (value) => (Math.abs(value) > 1000 ? value.toFixed(2) : value.toFixed(7));

function mapOf(of, i, told) {
  const legend = scene.maps[i].legend;
  const at = legend.names.indexOf(of.class);
  const swatch = at < 0 ? null : element("span", { className: "swatch", style: { background: legend.colours[at] }, "aria-hidden": "true" });
  const wrong = told.truth && of.class && told.truth.toLowerCase() !== of.class.toLowerCase() ? element("span", { className: "bad" }, "wrong") : null;
  const name = scene.maps.length > 1 ? `${of.label}: ` : "";
  const sure = of.confidence === null ? "" : `, ${percent(of.confidence)}`;
  const words = of.class === null ? (scene.maps[i].ready ? "no data" : "not mapped yet") : `${of.class}${sure}`;
  const parts = [element("h3", {}, swatch, `${name}${words}`, wrong)];
  if (of.probabilities) parts.push(...barsOf(of.probabilities, legend));
  if (scene.maps[i].attention && scene.maps[i].ready) {
    const button = element("button", { type: "button" }, "What it looks at from here");
    button.addEventListener("click", () => onAttention(i, told.row, told.column, button));
    parts.push(button);
  }
  return element("div", {}, ...parts);
}

function barsOf(shares, legend) {
  const order = shares.map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]).slice(0, 12);
  return order.map(([share, i]) =>
    element("div", { className: "bar" },
      element("span", { title: legend.names[i] }, legend.names[i]),
      element("meter", { min: 0, max: 1, value: share, "aria-label": legend.names[i] }),
      element("b", {}, percent(share))));
}
