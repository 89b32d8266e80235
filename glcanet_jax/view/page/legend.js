// Classes: names, colours, a switch each, and their areas in the view and in the whole scene.

import { lastAsk } from "./api.js";
import { byId, choices, element, fill, grouped } from "./dom.js";
import { redraw, tiles, isShown } from "./layers.js";
import { number, scene } from "./scene.js";
import { keepAddress, state } from "./state.js";

const askAreas = lastAsk();
let inView = null; // the areas of the view, by the name of the class
let wholeTruth = null;

const sources = () => {
  const found = scene.maps.map((map, i) => [String(i), map]).filter(([, map]) => map.ready);
  const named = found.map(([key, map]) => [key, map.label]);
  return scene.truth ? [...named, ["truth", "truth"]] : named;
};

// Whose areas are told: what was chosen, else the first map, else the truth.
function countedNow() {
  const known = sources().map(([key]) => key);
  return known.includes(state.counted) ? state.counted : known[0];
}

const legendOf = () => (countedNow() === "truth" ? scene.truth : scene.maps[Number(countedNow())]?.legend);

export function makeLegend() {
  const known = sources();
  byId("s-classes").hidden = known.length === 0;
  fill("counted", ...choices(known, countedNow()));
  byId("of-whom").hidden = known.length < 2;
  inView = null;
  wholeTruth = null;
  drawLegend();
}

export function beginLegend(view) {
  byId("counted").addEventListener("change", (event) => {
    state.counted = event.target.value;
    inView = null;
    keepAddress();
    drawLegend();
    countView(view());
  });
}

function drawLegend() {
  const legend = legendOf();
  if (!legend) return;
  const whole = countedNow() === "truth" ? wholeTruth : scene.maps[Number(countedNow())].whole;
  const cell = (told, i) => {
    if (!told) return [""];
    if (told.unfinished) return ["…"];
    const row = told.rows[i];
    const amount = row.hectares === null ? pixels(row.pixels, told.exact) : `${hectares(row.hectares)} ha`;
    return [`${row.percent.toFixed(1)} %`, element("small", {}, `${told.exact ? "" : "≈ "}${amount}`)];
  };
  const head = element("tr", {}, element("th", { scope: "col" }, "class"), element("th", { scope: "col" }, "in view"), element("th", { scope: "col" }, "whole"));
  byId("legend").tHead.replaceChildren(head);
  byId("legend").tBodies[0].replaceChildren(
    ...legend.names.map((name, i) =>
      element("tr", {},
        element("td", {}, classSwitch(name, legend.colours[i])),
        element("td", {}, ...cell(inView, i)),
        element("td", {}, ...cell(whole, i)))));
  byId("ramp").hidden = ![...tiles.values()].some(({ told }) => told.key.startsWith("confidence") && (isShown(told) || state.swipe?.includes(told.key)));
}

export const refreshLegend = () => drawLegend();

const pixels = (value, exact) => (value >= (exact ? 1e7 : 1e6) ? `${(value / 1e6).toPrecision(4)} Mpx` : `${grouped(value)} px`);

const hectares = (value) => (value >= 1000 ? grouped(value) : value.toPrecision(3).includes("e") ? value.toFixed(4) : value >= 100 ? value.toFixed(0) : value.toPrecision(3));

function classSwitch(name, colour) {
  const box = element("input", { type: "checkbox", checked: !state.off.includes(name) });
  box.addEventListener("change", () => {
    state.off = box.checked ? state.off.filter((other) => other !== name) : [...state.off, name];
    redraw((told) => Boolean(told.legend));
    keepAddress();
  });
  return element("label", { title: name }, box, element("span", { className: "swatch", style: { background: colour }, "aria-hidden": "true" }), element("span", {}, name));
}

// Ask for the areas of what is seen now, an extent of the plane.
export async function countView(extent) {
  const legend = legendOf();
  if (!legend || !extent) return;
  const box = [-extent[3], extent[0], -extent[1], extent[2]].map((side, i) => (i < 2 ? Math.floor(side) : Math.ceil(side)));
  try {
    const at = number;
    const counted = countedNow();
    const seen = box[2] > 0 && box[3] > 0 && box[0] < scene.height && box[1] < scene.width;
    const told = seen ? await askAreas(`scene/${at}/areas`, { box: box.join(","), map: counted }) : null;
    if (counted === "truth" && (!wholeTruth || wholeTruth.unfinished)) wholeTruth = await askAreas(`scene/${at}/areas`, { map: "truth" });
    if (at !== number || counted !== countedNow()) return;
    inView = told;
    drawLegend();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}
