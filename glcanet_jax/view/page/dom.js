// Elements. Texts of files and classes go in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

// An element: properties by name (dataset, style and aria-* too), then children, each an element or a text.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") Object.assign(made.style, value);
    else if (name.includes("-") || name === "for" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function fill(id, ...children) {
  byId(id).replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

export const choices = (pairs, chosen) =>
  pairs.map(([value, words]) => element("option", { value, selected: value === chosen }, words));

export function later(milliseconds, work) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}

export const grouped = (value) => Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;
