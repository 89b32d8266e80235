// What is looked at, kept in the address behind #, so that a link brings it back. Nothing of it is sent to the server.

export const state = {
  scene: 0,
  view: null, // [column, row, pixels of the scene a pixel of the screen, radians]
  layers: {}, // by key: [shown, opacity]
  off: [], // names of classes that are switched off
  bands: [], // from 1; none: red, green and blue
  stretch: "",
  swipe: null, // [left layer, right layer, share of the width]
  pixel: null, // [row, column]
  counted: null, // the map whose areas are told, or truth; none: the first
};

const read = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
};
const isNumbers = (value, count) =>
  Array.isArray(value) && (count === undefined || value.length === count) && value.every(Number.isFinite);
const rules = {
  scene: (v) => Number.isInteger(v) && v >= 0,
  view: (v) => v === null || (isNumbers(v, 4) && v[2] > 0),
  layers: (v) =>
    v !== null && typeof v === "object" && !Array.isArray(v) && Object.values(v).every((pair) => isNumbers(pair, 2)),
  off: (v) => Array.isArray(v) && v.every((name) => typeof name === "string"),
  bands: (v) => isNumbers(v) && v.length <= 3 && v.every((band) => Number.isInteger(band) && band > 0),
  stretch: (v) => ["", "none", "98", "99.8", "full"].includes(v),
  swipe: (v) => v === null || (Array.isArray(v) && v.length === 3 && typeof v[0] === "string" && typeof v[1] === "string" && v[2] >= 0 && v[2] <= 1),
  pixel: (v) => v === null || isNumbers(v, 2),
  counted: (v) => v === null || typeof v === "string",
};

// Take what the address says; what it says wrongly is left as it was. Returns whether another scene is named.
export function takeAddress() {
  const before = state.scene;
  for (const [key, text] of new URLSearchParams(location.hash.slice(1))) {
    const value = read(text);
    if (key in rules && rules[key](value)) state[key] = value;
  }
  return state.scene !== before;
}

let timer = 0;
export function keepAddress() {
  clearTimeout(timer);
  timer = setTimeout(() => history.replaceState(null, "", `#${addressOf()}`), 200);
}

export function addressOf() {
  const empty = { view: null, layers: {}, off: [], bands: [], stretch: "", swipe: null, pixel: null, counted: null, scene: -1 };
  const said = Object.entries(state).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(empty[key]));
  return new URLSearchParams(said.map(([key, value]) => [key, JSON.stringify(value)])).toString();
}
