// The page: a gallery of scenes, one of which is looked at.

import { ask } from "./api.js";
import { beginAttention, forgetAttention, showAttention } from "./attention.js";
import { makeBasemap } from "./basemap.js";
import { byId, element, fill, grouped, later, percent } from "./dom.js";
import { makeImage } from "./image.js";
import { beginDraw, isDrawing, keepDrawn, loadDrawn } from "./draw.js";
import { beginKeys } from "./keys.js";
import { listLayers, makeLayers, redraw } from "./layers.js";
import { beginLegend, countView, makeLegend, refreshLegend } from "./legend.js";
import { beginPixel, forgetPixel, tellPixel } from "./pixel.js";
import { drawScale } from "./scale.js";
import { extentOf, loadScene, number, projectionOf, reloadScene, scene, viewOf } from "./scene.js";
import { beginSpots, makeSpots } from "./spots.js";
import { addressOf, keepAddress, state, takeAddress } from "./state.js";
import { beginSwipe, makeSwipe, toggleSwipe } from "./swipe.js";
import { beginTheme, nextTheme } from "./theme.js";

const map = new ol.Map({ target: "map", layers: [], controls: ol.control.defaults.defaults({ rotateOptions: { autoHide: true } }), maxTilesLoading: 12 });
let gallery = null;
let basemap = null;
let projection = null;

const seen = () => (map.getSize() ? map.getView().calculateExtent(map.getSize()) : null);
const recount = later(250, () => countView(seen()).catch(fail));

// ------------------------------------------------------------------------------------------------------------- messages
const spoken = new Map(); // problems that are shown, by their words

function fail(error) {
  if (error.name === "AbortError") return;
  say(error.message);
}

function say(words) {
  if (spoken.has(words)) return;
  const line = element("p", { className: "bad" }, words);
  spoken.set(words, line);
  byId("told").append(line);
  setTimeout(() => {
    line.remove();
    spoken.delete(words);
  }, 12000);
}

let polling = 0;
const told = new Set(); // problems of the server that were said
let busyBefore = false;
let doneBefore = 0; // pieces of work that the server had done when it was last asked

// What is being made in the background: shown as it goes on, and drawn again once it is there.
async function watch() {
  clearTimeout(polling);
  const status = await ask("status");
  for (const problem of status.problems.filter((words) => !told.has(words))) {
    told.add(problem);
    say(problem);
  }
  for (const chore of status.chores.filter(({ state: at, problem }) => at === "failed" && !told.has(problem))) {
    told.add(chore.problem);
    say(chore.problem);
  }
  const working = status.chores.filter(({ state: at }) => at === "working" || at === "waiting");
  byId("told").querySelectorAll(".working").forEach((line) => line.remove());
  byId("told").prepend(...working.slice(0, 3).map(({ words, share }) =>
    element("p", { className: "working" }, `${words}: ${percent(share)}`, element("progress", { max: 1, value: share, "aria-label": words }))));
  const before = doneBefore;
  doneBefore = status.done;
  if (busyBefore || before !== status.done) await renew(working.length > 0);
  busyBefore = working.length > 0;
  if (busyBefore) polling = setTimeout(() => watch().catch(fail), 1500);
}

// What was made meanwhile comes into sight: maps that are there now, and parts of overviews.
async function renew(goesOn) {
  const known = () => scene.maps.map(({ ready, state: at }) => `${ready}${at}`).join();
  const [before, at] = [known(), number];
  await reloadScene();
  if (at !== number) return;
  if (before !== known()) furnish();
  else if (!goesOn || drawing()) redraw(() => true, true);
  else return;
  recount();
}

const drawing = () => [...byId("told").querySelectorAll(".working")].some(({ textContent: words }) => /^(overview|tiles) /.test(words));

// --------------------------------------------------------------------------------------------------------------- scenes
async function show(wanted, keep = false) {
  await keepDrawn();
  if (!keep) Object.assign(state, { view: null, pixel: null, off: [], bands: [], stretch: "", swipe: null, layers: {} });
  state.scene = wanted;
  byId("scenes").value = String(wanted);
  const at = await loadScene(wanted);
  document.title = `${at.name} – GLCANet`;
  byId("size").textContent = `${grouped(at.width)} × ${grouped(at.height)} px`;
  forgetAttention();
  for (const line of spoken.values()) line.remove();
  spoken.clear();
  projection = projectionOf();
  map.setView(viewOf(projection));
  if (basemap) map.removeLayer(basemap);
  basemap = makeBasemap(map, gallery.basemap, projection);
  furnish();
  map.updateSize();
  if (!state.view) map.getView().fit(extentOf(), { padding: [12, 12, 12, 12] });
  loadDrawn().catch(fail);
  forgetPixel();
  if (state.pixel) tellPixel(...state.pixel).catch(fail);
  const notes = [...at.notes, ...gallery.notes];
  byId("s-notes").hidden = notes.length === 0;
  fill("notes", ...notes.map((note) => element("li", {}, note)));
  byId("previous").disabled = wanted === 0;
  byId("next").disabled = wanted === gallery.scenes.length - 1;
  keepAddress();
  recount();
  watch().catch(fail);
}

// The panel and the layers of the scene as it is now known.
function furnish() {
  makeLayers(map, projection);
  listLayers(layerChanged);
  makeSwipe();
  makeLegend();
  makeSpots();
  makeImage();
  refreshLegend();
}

function layerChanged(layer, toMake) {
  if (toMake === undefined) refreshLegend();
  else {
    ask(`scene/${number}/make`, { map: toMake }, { method: "POST" }).then(reloadScene).then(() => {
      listLayers(layerChanged);
      busyBefore = true;
      return watch();
    }).catch(fail);
  }
}

function step(by) {
  const wanted = number + by;
  if (wanted >= 0 && wanted < gallery.scenes.length) show(wanted).catch(fail);
}

function fold() {
  const folded = document.body.classList.toggle("folded");
  byId("fold").setAttribute("aria-expanded", String(!folded));
  map.updateSize();
}

async function share() {
  history.replaceState(null, "", `#${addressOf()}`);
  try {
    await navigator.clipboard.writeText(location.href);
    byId("share").textContent = "Copied";
  } catch {
    byId("share").textContent = "See the address";
  }
  setTimeout(() => (byId("share").textContent = "Link"), 1500);
}

function listScenes() {
  const groups = Map.groupBy ? Map.groupBy(gallery.scenes.map((item, i) => ({ ...item, i })), ({ group }) => group) : new Map([["", gallery.scenes.map((item, i) => ({ ...item, i }))]]);
  const option = ({ name, i }) => element("option", { value: String(i) }, name);
  fill("scenes", ...[...groups].flatMap(([group, items]) => (group ? [element("optgroup", { label: group }, ...items.map(option))] : items.map(option))));
  byId("scenes").addEventListener("change", (event) => show(Number(event.target.value)).catch(fail));
}

async function begin() {
  beginTheme();
  beginPixel(map, (...given) => showAttention(...given).catch(fail), fail, isDrawing);
  beginAttention(map);
  beginDraw(map, fail);
  beginSpots(map, fail);
  beginLegend(seen);
  beginSwipe(map, refreshLegend);
  beginKeys([
    ["N", "next scene", () => step(1)], ["P", "previous scene", () => step(-1)], ["S", "swipe", toggleSwipe],
    ["F", "the whole scene", () => map.getView().fit(extentOf(), { padding: [12, 12, 12, 12] })],
    ["1 – 9", "layers, from the top"], ["L", "copy a link to this view", share], ["H", "show or hide the panel", fold],
    ["T", "colours of the page", nextTheme], ["D, E", "with --labels: draw polygons, change them"], ["1 – 9, 0", "while drawing: the class; 0 is an annotated area"], ["Enter", "the pixel in the middle of the map"], ["?", "this list", () => byId("keys").showModal()],
  ]);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("fold").addEventListener("click", fold);
  byId("share").addEventListener("click", share);
  map.on("moveend", () => {
    const view = map.getView();
    const [x, y] = view.getCenter();
    state.view = [Math.round(100 * x) / 100, Math.round(-100 * y) / 100, Number(view.getResolution().toPrecision(6)), Number(view.getRotation().toFixed(5))];
    drawScale(view.getResolution());
    keepAddress();
    recount();
  });
  map.on("loadend", () => {
    document.body.dataset.drawn = "1"; // for whoever waits for it
    watch().catch(fail);
  });
  gallery = await ask("gallery");
  doneBefore = (await ask("status")).done;
  listScenes();
  takeAddress();
  if (state.scene >= gallery.scenes.length) state.scene = 0;
  await show(state.scene, true);
  addEventListener("hashchange", () => {
    takeAddress();
    show(Math.min(state.scene, gallery.scenes.length - 1), true).catch(fail);
  });
}

begin().catch(fail);
