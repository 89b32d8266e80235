// Polygons of classes, drawn and changed on the scene, and saved as the labels of the command's --labels.

import { ask } from "./api.js";
import { byId, element, fill } from "./dom.js";
import { number as current, scene } from "./scene.js";

const KEPT = 200; // steps that can be undone
const source = new ol.source.Vector();
let map = null;
let fail = null;
let legend = { names: [], colours: [] };
let area = ""; // what an annotated area is called, the last of the names
let file = "";
let stamp = "";
let at = -1; // the scene whose polygons these are
let mode = "off"; // or draw, edit
let chosen = 0;
let past = [];
let future = [];
let saved = "[]";
let draw = null;
let select = null;
let modify = null;

export const isDrawing = () => mode !== "off";

// ----------------------------------------------------------------------------------------------------------- what is drawn
const colourOf = (name) => legend.colours[legend.names.indexOf(name)] ?? "#888888";

function styleOf(feature, strong = false) {
  const colour = colourOf(feature.get("name"));
  const around = feature.get("name") === area;
  const lineDash = around ? [8, 6] : undefined;
  const casing = new ol.style.Style({ stroke: new ol.style.Stroke({ color: strong ? "#000" : "rgb(255 255 255 / 85%)", width: strong ? 7 : 5 }) });
  const inner = new ol.style.Style({
    fill: new ol.style.Fill({ color: `${colour}${around ? "0d" : "55"}` }),
    stroke: new ol.style.Stroke({ color: strong ? "#fff" : colour, width: 2.5, lineDash }),
    zIndex: around ? 0 : 1,
  });
  if (!strong) return [casing, inner];
  const corners = new ol.style.Style({
    image: new ol.style.Circle({ radius: 5, fill: new ol.style.Fill({ color: "#fff" }), stroke: new ol.style.Stroke({ color: "#000", width: 1.5 }) }),
    geometry: (of) => new ol.geom.MultiPoint(of.getGeometry().getCoordinates().flat()),
  });
  return [casing, inner, corners];
}

const rounded = (value) => Math.round(100 * value) / 100;

function polygons() {
  return source.getFeatures().map((feature) => ({
    name: feature.get("name"),
    rings: feature.getGeometry().getCoordinates().map((ring) => ring.map(([x, y]) => [rounded(x), rounded(-y)])),
  }));
}

function put(told) {
  select?.getFeatures().clear();
  source.clear();
  source.addFeatures(told.map(({ name, rings }) => {
    const feature = new ol.Feature(new ol.geom.Polygon(rings.map((ring) => closed(ring.map(([x, y]) => [x, -y])))));
    feature.set("name", name);
    return feature;
  }));
}

const closed = (ring) => (String(ring[0]) === String(ring.at(-1)) ? ring : [...ring, ring[0]]);
const written = () => JSON.stringify(polygons());

let last = "[]"; // as it was before what is done now
function done() {
  const now = written();
  if (now === last) return;
  past = [...past, last].slice(-KEPT);
  future = [];
  last = now;
  tell();
}

function back(from, to) {
  if (draw?.getOverlay().getSource().getFeatures().length && from === past) {
    draw.removeLastPoint(); // of what is being drawn
    return;
  }
  if (!from.length) return;
  to.push(last);
  last = from.pop();
  put(JSON.parse(last));
  tell();
}

// -------------------------------------------------------------------------------------------------------------- the panel
function tell(words = "") {
  const count = source.getFeatures().length;
  const clean = written() === saved;
  byId("d-told").textContent = words || `${count} polygon${count === 1 ? "" : "s"}${clean ? "" : ", not saved"}`;
  byId("d-save").disabled = clean;
  byId("d-undo").disabled = !past.length;
  byId("d-redo").disabled = !future.length;
  byId("d-delete").disabled = mode !== "edit" || !select.getFeatures().getLength();
  for (const wanted of ["draw", "edit"]) byId(`d-${wanted}`).setAttribute("aria-pressed", String(mode === wanted));
  byId("d-hint").textContent = {
    off: "",
    draw: "Click corners; the last one twice, or Enter. Shift draws freehand, Esc gives up.",
    edit: "Click a polygon, then drag its corners and edges. Alt and a click remove a corner.",
  }[mode];
  document.body.classList.toggle("drawing", mode === "draw");
}

function listClasses() {
  fill("d-classes", ...legend.names.map((name, i) => {
    const radio = element("input", { type: "radio", name: "d-class", value: String(i), checked: i === chosen });
    radio.addEventListener("change", () => choose(i));
    const key = name === area ? "0" : i < 9 ? String(i + 1) : "";
    return element("label", { title: name }, radio, element("span", { className: name === area ? "swatch around" : "swatch", style: { background: legend.colours[i] }, "aria-hidden": "true" }), element("span", {}, name), key && element("kbd", { "aria-hidden": "true" }, key));
  }));
}

function choose(i) {
  if (i >= legend.names.length) return;
  chosen = i;
  byId("d-classes").querySelectorAll("input")[i].checked = true;
  if (mode === "edit") change((feature) => feature.set("name", legend.names[i]));
}

function chooseByKey(digit) {
  const classes = legend.names.length - 1;
  if (digit <= classes) choose(digit ? digit - 1 : classes);
}

function change(work) {
  select.getFeatures().forEach(work);
  done();
}

function remove() {
  const gone = [...select.getFeatures().getArray()];
  select.getFeatures().clear();
  gone.forEach((feature) => source.removeFeature(feature));
  done();
}

// --------------------------------------------------------------------------------------------------------------- the modes
function enter(wanted) {
  for (const interaction of [draw, select, modify]) if (interaction) map.removeInteraction(interaction);
  draw = select = modify = null;
  mode = mode === wanted ? "off" : wanted;
  if (mode === "draw") {
    draw = new ol.interaction.Draw({ source, type: "Polygon", style: (feature) => pencil(feature) });
    draw.on("drawend", ({ feature }) => {
      feature.set("name", legend.names[chosen]);
      setTimeout(done); // the source has it then
    });
    map.addInteraction(draw);
  } else if (mode === "edit") {
    select = new ol.interaction.Select({ layers: [layer], style: (feature) => styleOf(feature, true), hitTolerance: 4 });
    modify = new ol.interaction.Modify({ features: select.getFeatures() });
    modify.on("modifyend", done);
    select.on("select", () => {
      const [feature] = select.getFeatures().getArray();
      if (feature) {
        chosen = Math.max(0, legend.names.indexOf(feature.get("name")));
        byId("d-classes").querySelectorAll("input")[chosen].checked = true;
      }
      tell();
    });
    map.addInteraction(select);
    map.addInteraction(modify);
  }
  tell();
}

function pencil(feature) {
  const colour = legend.colours[chosen];
  const image = new ol.style.Circle({ radius: 5, fill: new ol.style.Fill({ color: colour }), stroke: new ol.style.Stroke({ color: "#fff", width: 2 }) });
  const lines = [["#fff", 5], [colour, 2.5]].map(([color, width]) => new ol.style.Style({ stroke: new ol.style.Stroke({ color, width }), fill: new ol.style.Fill({ color: `${colour}33` }), image }));
  return feature.getGeometry().getType() === "Polygon" ? lines.slice(1) : lines;
}

const keys = {
  Escape: () => {
    if (draw?.getOverlay().getSource().getFeatures().length) draw.abortDrawing();
    else enter(mode);
  },
  Enter: () => draw?.finishDrawing(),
  Delete: () => mode === "edit" && remove(),
  Backspace: () => (mode === "edit" ? remove() : draw?.removeLastPoint()),
};

function pressed(event) {
  if (byId("s-draw").hidden || event.target.closest("select, textarea, dialog, input:not([type=checkbox]):not([type=radio])")) return;
  const held = event.ctrlKey || event.metaKey;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let work = null;
  if (held && key === "s") work = () => save().catch(fail);
  else if (held && key === "z" && !event.shiftKey) work = () => back(past, future);
  else if (held && (key === "y" || key === "z")) work = () => back(future, past);
  else if (held || event.altKey || event.target.closest("button, a")) return;
  else if (key === "d") work = () => enter("draw");
  else if (key === "e") work = () => enter("edit");
  else if (mode !== "off" && /^[0-9]$/.test(key)) work = () => chooseByKey(Number(key));
  else if (mode !== "off" && key in keys) work = keys[key];
  if (!work) return;
  event.preventDefault();
  event.stopPropagation();
  work();
}

// ---------------------------------------------------------------------------------------------------- from and to the server
const layer = new ol.layer.Vector({ source, zIndex: 900, style: (feature) => styleOf(feature) });

export function beginDraw(onMap, onFail) {
  map = onMap;
  fail = onFail;
  map.addLayer(layer);
  byId("d-draw").addEventListener("click", () => enter("draw"));
  byId("d-edit").addEventListener("click", () => enter("edit"));
  byId("d-undo").addEventListener("click", () => back(past, future));
  byId("d-redo").addEventListener("click", () => back(future, past));
  byId("d-delete").addEventListener("click", remove);
  byId("d-save").addEventListener("click", () => save().catch(fail));
  document.addEventListener("keydown", pressed, true);
  addEventListener("beforeunload", (event) => {
    if (at >= 0 && written() !== saved) event.preventDefault();
  });
}

// Of the scene that is looked at now; nothing where the command names no --labels.
export async function loadDrawn() {
  if (mode !== "off") enter(mode);
  at = -1;
  put([]);
  byId("s-draw").hidden = true; // until it is known what there is
  if (!scene.draws) return;
  const wanted = current;
  const told = await ask(`scene/${wanted}/labels`);
  if (wanted !== current) return;
  byId("s-draw").hidden = false;
  [area, file, stamp, at] = [told.area, told.file, told.stamp, wanted];
  legend = { names: [...told.legend.names, area], colours: [...told.legend.colours, "#7a7a7a"] };
  chosen = Math.min(chosen, legend.names.length - 1);
  put(told.polygons);
  [past, future] = [[], []];
  last = saved = written();
  listClasses();
  byId("d-file").textContent = file;
  byId("d-file").title = file;
  tell();
}

// What was drawn is saved before another scene is shown; a save that fails keeps this one.
export async function keepDrawn() {
  if (at >= 0 && written() !== saved) await save();
}

async function save() {
  const now = written();
  if (now === saved) return;
  tell("saving …");
  try {
    const told = await ask(`scene/${at}/labels`, {}, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ polygons: JSON.parse(now), stamp }),
    });
    stamp = told.stamp;
    saved = now;
  } finally {
    tell();
  }
}
