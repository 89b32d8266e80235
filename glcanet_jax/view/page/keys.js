// Keys that work wherever nothing is typed.

import { byId, element, fill } from "./dom.js";

export function beginKeys(known) {
  fill("key-list", ...known.flatMap(([key, words]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, words)]));
  byId("help").addEventListener("click", () => byId("keys").showModal());
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("select, textarea, dialog, input:not([type=checkbox])");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const found = known.find(([key, , work]) => work && key.toLowerCase() === event.key.toLowerCase());
    if (found) {
      event.preventDefault();
      found[2]();
    } else if (/^[1-9]$/.test(event.key)) {
      byId("layers").querySelectorAll("input[type=checkbox]")[Number(event.key) - 1]?.click();
    }
  });
}
