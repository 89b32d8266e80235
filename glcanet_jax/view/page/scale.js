// A bar that says how long things are: metres on the ground, or pixels where nobody knows.

import { byId, element } from "./dom.js";
import { scene } from "./scene.js";

const WIDTH = 110; // of the screen, at most

export function drawScale(resolution) {
  if (!scene || !resolution) return;
  const metres = scene.place?.metres;
  const each = resolution * (metres || 1);
  const whole = WIDTH * each;
  const power = 10 ** Math.floor(Math.log10(whole));
  const nice = [5, 2, 1].map((of) => of * power).find((length) => length <= whole);
  const words = metres ? (nice >= 1000 ? `${nice / 1000} km` : `${nice} m`) : `${nice} px`;
  byId("scale").hidden = false;
  byId("scale").replaceChildren(words, element("i", { style: { width: `${nice / each}px` } }));
}
