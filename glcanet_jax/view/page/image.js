// Which bands of the scene are shown as red, green and blue, and how their values are stretched.

import { byId, choices, element, fill } from "./dom.js";
import { redraw } from "./layers.js";
import { scene } from "./scene.js";
import { keepAddress, state } from "./state.js";

export function makeImage() {
  const image = scene.image;
  byId("s-image").hidden = !image;
  if (!image) return;
  if (state.bands.some((band) => band > image.bands.length)) state.bands = [];
  const names = image.bands.map((name, i) => [String(i + 1), image.bands.length > 1 ? `${i + 1} · ${name}` : name]);
  const plain = image.dtype === "uint8";
  const rows = [];
  if (image.choice && image.bands.length > 1) {
    const chosen = state.bands.length === 3 ? state.bands : image.looking;
    ["red", "green", "blue"].forEach((colour, i) => {
      const select = element("select", {}, ...choices(names, String(chosen[i] ?? chosen[0])));
      select.addEventListener("change", () => {
        state.bands = [...byId("bands").querySelectorAll("select.band")].map((one) => Number(one.value));
        changed();
      });
      select.className = "band";
      rows.push(element("label", {}, colour, select));
    });
  }
  const ways = [["none", "as stored"], ["98", "2 % to 98 %"], ["99.8", "0.1 % to 99.9 %"], ["full", "least to largest"]];
  const select = element("select", {}, ...choices(ways, state.stretch || (plain ? "none" : "98")));
  select.addEventListener("change", () => {
    state.stretch = select.value;
    changed();
  });
  rows.push(element("label", {}, "values", select));
  fill("bands", ...rows);
}

function changed() {
  redraw((told) => told.key === "image");
  keepAddress();
}
