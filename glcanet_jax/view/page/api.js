// What the server is asked: all addresses are relative to the page's own, which holds the token.

const base = new URL(".", location.href.split("#")[0]);

// The answer as JSON; an answer that says what went wrong, or none, is an Error with its words.
export async function ask(path, query = {}, options = {}) {
  const url = new URL(`api/${path}`, base);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: it may have been ended.");
  }
  if (!response.ok) throw new Error("There is nothing of that kind here.");
  const told = await response.json();
  if (told.problem) throw new Error(told.problem);
  return told;
}

// Asks of one kind: a new one gives up the one before.
export function lastAsk() {
  let under = null;
  return async (path, query) => {
    under?.abort();
    under = new AbortController();
    return ask(path, query, { signal: under.signal });
  };
}

export const tileUrl = (scene, layer, z, x, y, query) => {
  const given = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const tail = given.size ? `?${given}` : "";
  return new URL(`tile/${scene}/${layer}/${z}/${x}/${y}${tail}`, base).href;
};
