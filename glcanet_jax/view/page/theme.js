// Light, dark, or as the system has it.

import { byId } from "./dom.js";

const kinds = ["", "light", "dark"];
const words = { "": "Auto", light: "Light", dark: "Dark" };

export function beginTheme() {
  setTheme(kinds.includes(localStorage.getItem("glcanet-theme")) ? localStorage.getItem("glcanet-theme") : "");
  byId("theme").addEventListener("click", nextTheme);
}

export function nextTheme() {
  setTheme(kinds[(kinds.indexOf(document.documentElement.dataset.theme || "") + 1) % kinds.length]);
}

function setTheme(kind) {
  if (kind) document.documentElement.dataset.theme = kind;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("glcanet-theme", kind);
  byId("theme").textContent = words[kind];
  byId("theme").setAttribute("aria-label", `Colours: ${words[kind]}`);
}
