"use strict";
// Every map is a PNG of a palette: its ids are read here, so that classes can be left out. Without a script, or where a
// browser cannot inflate, the pictures stay as they are.

async function idsOf(img) {
  const text = atob(img.src.slice(img.src.indexOf(",") + 1));
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const found = {};
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    found[text.slice(at + 4, at + 8)] = bytes.subarray(at + 8, at + 8 + length);
    at += 12 + length;
  }
  const stream = new Blob([found.IDAT]).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  const head = new DataView(found.IHDR.buffer, found.IHDR.byteOffset);
  return { rows, width: head.getUint32(0), height: head.getUint32(4), palette: found.PLTE, alpha: found.tRNS };
}

function draw(canvas, map, on) {
  const picture = new ImageData(map.width, map.height);
  const pixels = new Uint32Array(picture.data.buffer);
  const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
  const colours = new Uint32Array(256);
  for (let id = 0; id < 256; id++) {
    if (!on(id) || !map.alpha[id]) continue;
    const [r, g, b] = map.palette.subarray(3 * id, 3 * id + 3);
    colours[id] = little ? (255 << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | 255;
  }
  for (let y = 0, i = 0; y < map.height; y++) {
    const row = y * (map.width + 1) + 1;
    for (let x = 0; x < map.width; x++) pixels[i++] = colours[map.rows[row + x]];
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function zoomable(frame, stage, out, into) {
  let zoom = 1;
  const to = (by) => {
    const old = zoom;
    zoom = Math.min(16, Math.max(1, zoom * by));
    const middle = [frame.scrollLeft + frame.clientWidth / 2, frame.scrollTop + frame.clientHeight / 2];
    stage.style.setProperty("--zoom", zoom);
    frame.scrollTo((middle[0] * zoom) / old - frame.clientWidth / 2, (middle[1] * zoom) / old - frame.clientHeight / 2);
    stage.classList.toggle("near", zoom > 3);
    out.disabled = zoom === 1;
    into.disabled = zoom === 16;
  };
  out.addEventListener("click", () => to(1 / 1.5));
  into.addEventListener("click", () => to(1.5));
  frame.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") to(1.5);
    else if (event.key === "-") to(1 / 1.5);
  });
  let from = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    from = [event.clientX + frame.scrollLeft, event.clientY + frame.scrollTop];
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (from) frame.scrollTo(from[0] - event.clientX, from[1] - event.clientY);
  });
  stage.addEventListener("pointerup", () => (from = null));
  stage.addEventListener("pointercancel", () => (from = null));
  to(1);
}

async function liven(section) {
  const one = (selector) => section.querySelector(selector);
  const stage = one(".stage");
  const legends = [...section.querySelectorAll(".legend")];
  const pictures = [...section.querySelectorAll("img.classes")];
  const maps = await Promise.all(pictures.map(idsOf));
  const canvases = pictures.map((img, i) => {
    const canvas = document.createElement("canvas");
    canvas.width = maps[i].width;
    canvas.height = maps[i].height;
    canvas.className = "classes";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", img.alt);
    canvas.hidden = img.hidden;
    img.replaceWith(canvas);
    return canvas;
  });
  const names = [];
  legends.forEach((legend, i) => {
    const boxes = [...legend.querySelectorAll("input")];
    names.push(new Map(boxes.map((box) => [Number(box.value), box.parentElement.textContent])));
    const redraw = () => {
      const on = new Set(boxes.filter((box) => box.checked).map((box) => Number(box.value)));
      draw(canvases[i], maps[i], (id) => on.has(id));
    };
    for (const box of boxes) {
      box.disabled = false;
      box.addEventListener("change", redraw);
    }
    for (const button of legend.querySelectorAll(".many button")) {
      button.parentElement.hidden = false;
      button.addEventListener("click", () => {
        for (const box of boxes) box.checked = Boolean(button.value);
        redraw();
      });
    }
    redraw();
  });
  let shown = 0;
  for (const radio of section.querySelectorAll("fieldset input")) {
    radio.checked = radio.value === "0"; // as a reload leaves them
    radio.addEventListener("change", () => {
      shown = Number(radio.value);
      canvases.forEach((canvas, i) => (canvas.hidden = i !== shown));
      legends.forEach((legend, i) => (legend.hidden = i !== shown));
    });
  }
  const opacity = one(".opacity");
  if (opacity) {
    const apply = () => stage.style.setProperty("--opacity", opacity.value / 100);
    opacity.addEventListener("input", apply);
    apply();
  }
  const told = one("output");
  stage.addEventListener("pointermove", (event) => {
    if (!maps.length) return;
    const box = stage.getBoundingClientRect();
    const map = maps[shown];
    const x = Math.floor(((event.clientX - box.left) / box.width) * map.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * map.height);
    const inside = x >= 0 && y >= 0 && x < map.width && y < map.height;
    told.textContent = (inside && names[shown].get(map.rows[y * (map.width + 1) + 1 + x])) || "";
  });
  stage.addEventListener("pointerleave", () => (told.textContent = ""));
  zoomable(one(".frame"), stage, ...section.querySelectorAll(".zoom button"));
  one(".controls").hidden = false;
}

for (const section of document.querySelectorAll("section")) liven(section);
