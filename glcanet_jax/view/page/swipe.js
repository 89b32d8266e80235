// Two layers side by side, divided by a line that is moved.

import { byId, choices, fill } from "./dom.js";
import { showLayers, tiles } from "./layers.js";
import { keepAddress, state } from "./state.js";

let onMap = null;

export function beginSwipe(map, changed) {
  onMap = map;
  byId("swiping").addEventListener("change", (event) => {
    state.swipe = event.target.checked ? [byId("left").value, byId("right").value, 0.5] : null;
    drawSwipe();
    changed();
  });
  for (const [i, id] of ["left", "right"].entries()) {
    byId(id).addEventListener("change", (event) => {
      if (!state.swipe) return;
      state.swipe[i] = event.target.value;
      drawSwipe();
      changed();
    });
  }
  const handle = byId("swipe");
  handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
  handle.addEventListener("pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) moveTo((event.clientX - byId("map").getBoundingClientRect().left) / byId("map").clientWidth);
  });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, PageDown: -0.1, PageUp: 0.1 }[event.key];
    const end = { Home: 0, End: 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    moveTo(end ?? state.swipe[2] + step);
  });
}

// The pairs that there are to choose from, for the scene that is looked at.
export function makeSwipe() {
  const known = [...tiles.values()].map(({ told }) => [told.key, told.words]);
  const has = (key) => tiles.has(key);
  if (state.swipe && !(has(state.swipe[0]) && has(state.swipe[1]))) state.swipe = null;
  const classes = known.map(([key]) => key).filter((key) => key.startsWith("classes"));
  const left = state.swipe?.[0] ?? (has("truth") ? "truth" : classes.length > 1 ? classes[0] : known[0]?.[0]);
  const right = state.swipe?.[1] ?? (has("truth") ? classes[0] : classes.at(-1)) ?? known.at(-1)?.[0];
  fill("left", ...choices(known, left));
  fill("right", ...choices(known, right));
  byId("s-swipe").hidden = known.length < 2;
  for (const { told, layer } of tiles.values()) clip(told.key, layer);
  drawSwipe();
}

export function toggleSwipe() {
  if (!byId("s-swipe").hidden) byId("swiping").click();
}

function moveTo(share) {
  state.swipe[2] = Math.min(1, Math.max(0, share));
  drawSwipe();
}

function drawSwipe() {
  const on = Boolean(state.swipe);
  byId("swiping").checked = on;
  byId("pair").hidden = !on;
  byId("swipe").hidden = byId("sides").hidden = !on;
  if (on) {
    byId("swipe").style.left = `${100 * state.swipe[2]}%`;
    byId("swipe").setAttribute("aria-valuenow", Math.round(100 * state.swipe[2]));
    byId("side-left").textContent = tiles.get(state.swipe[0]).told.words;
    byId("side-right").textContent = tiles.get(state.swipe[1]).told.words;
  }
  showLayers();
  keepAddress();
  onMap.render();
}

// Where a layer is drawn while two are compared: left of the line, right of it, or everywhere.
function sideOf(key) {
  if (!state.swipe || state.swipe[0] === state.swipe[1]) return null;
  if (key === "image" && !state.swipe.includes("image")) return null;
  if (key === "image") return null; // the scene lies under both
  return key === state.swipe[0] ? "left" : key === state.swipe[1] ? "right" : null;
}

function clip(key, layer) {
  let saved = false;
  layer.on("prerender", (event) => {
    const side = sideOf(key);
    saved = Boolean(side);
    if (!saved) return;
    const [width, height] = onMap.getSize();
    const line = width * state.swipe[2];
    const [from, to] = side === "left" ? [0, line] : [line, width];
    const corners = [[from, 0], [to, 0], [to, height], [from, height]].map((corner) => ol.render.getRenderPixel(event, corner));
    event.context.save();
    event.context.beginPath();
    corners.forEach(([x, y], i) => (i ? event.context.lineTo(x, y) : event.context.moveTo(x, y)));
    event.context.closePath();
    event.context.clip();
  });
  layer.on("postrender", (event) => {
    if (saved) event.context.restore();
    saved = false;
  });
}
