// Windows worth looking at, as a list that flies there.

import { ask } from "./api.js";
import { byId, choices, element, fill, percent } from "./dom.js";
import { number, scene } from "./scene.js";

const frame = new ol.source.Vector();
let onMap = null;
let asked = 0;

export function beginSpots(map, fail) {
  onMap = map;
  const line = (color, width) => new ol.style.Style({ stroke: new ol.style.Stroke({ color, width }) });
  map.addLayer(new ol.layer.Vector({ source: frame, zIndex: 999, style: [line("#fff", 5), line("#111", 2)] }));
  byId("kind").addEventListener("change", () => find().catch(fail));
}

export function makeSpots() {
  asked += 1;
  frame.clear();
  fill("spots");
  byId("spots-told").textContent = "";
  const kinds = [["", "choose …"]];
  const of = (map) => (scene.maps.length > 1 ? `, ${map.label}` : "");
  scene.maps.forEach((map, i) => {
    if (!map.ready) return;
    if (scene.truth) kinds.push([JSON.stringify({ kind: "worst", map: i }), `worst windows${of(map)}`]);
    if (map.confidence) kinds.push([JSON.stringify({ kind: "unsure", map: i }), `least certain windows${of(map)}`]);
    for (let j = 0; j < i; j += 1) {
      if (scene.maps[j].ready) kinds.push([JSON.stringify({ kind: "unlike", map: j, other: i }), `where ${scene.maps[j].label} and ${map.label} differ`]);
    }
  });
  byId("s-spots").hidden = kinds.length === 1;
  fill("kind", ...choices(kinds, ""));
}

const told = { worst: "wrong", unsure: "certain", unlike: "different" };

async function find() {
  const mine = (asked += 1);
  frame.clear();
  fill("spots");
  const query = byId("kind").value ? JSON.parse(byId("kind").value) : null;
  byId("spots-told").textContent = "";
  while (query && mine === asked) {
    const found = await ask(`scene/${number}/spots`, query);
    if (mine !== asked) return;
    if (found.state === "failed") throw new Error(found.problem);
    if (found.state === "done") {
      byId("spots-told").textContent = found.windows.length ? "" : "There are none.";
      fill("spots", ...found.windows.map((window, i) => spotRow(window, i, told[query.kind])));
      return;
    }
    byId("spots-told").textContent = `Looking through the scene: ${percent(found.share)}`;
    await new Promise((go) => setTimeout(go, 400));
  }
}

function spotRow(window, i, words) {
  const button = element("button", { type: "button" },
    element("span", {}, `${i + 1}. row ${window.top}, col. ${window.left}`), element("b", {}, `${percent(window.value)} ${words}`));
  button.addEventListener("click", () => flyTo(window));
  return element("li", {}, button);
}

function flyTo({ top, left, height, width }) {
  const ring = [[left, -top], [left + width, -top], [left + width, -(top + height)], [left, -(top + height)], [left, -top]];
  frame.clear();
  frame.addFeature(new ol.Feature(new ol.geom.Polygon([ring])));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  onMap.getView().fit([left, -(top + height), left + width, -top], { padding: [40, 40, 40, 40], duration: still ? 0 : 600 });
}
