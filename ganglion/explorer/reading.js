// What a pixel reads of the picture, or who reads it: the sum over the routes, each route, and every layer.

const NAMES = { CwBdtw: "what is added", CwBw: "faded by distance", CB: "match alone", ww: "fading alone" };
const FORMULAS = {
  CwBdtw: "map[i, j] = mean over channels d of  sum over states n of  C[i, n] * B[j, n] * exp(A[d, n] * E[d]) * dt[j, d]",
  CwBw: "map[i, j] = mean over channels d of  sum over states n of  C[i, n] * B[j, n] * exp(A[d, n] * E[d])",
  CB: "map[i, j] = sum over states n of  C[i, n] * B[j, n]",
  ww: "map[i, j] = mean over channels d of  sum over states n of  exp(A[d, n] * E[d])",
};
const WHERE =
  "\ni: the step of the route that reads, j: the step that is read, before it (else 0)." +
  "\nE[d]: the sum of the step sizes dt walked from j to i; A < 0, so what is far behind fades.";
const MEANINGS = {
  CwBdtw: [
    "Orange pixels are added to what the marked pixel becomes, blue ones are taken away from it; the stronger the colour, the more.",
    "Orange pixels have the marked pixel added to what they become, blue ones have it taken away; the stronger the colour, the more.",
  ],
  CwBw: [
    "How well each pixel fits what the marked one looks for, faded by the way walked between them: orange fits, blue is its opposite.",
    "How well the marked pixel fits what each other one looks for, faded by the way walked between them: orange fits, blue is its opposite.",
  ],
  CB: [
    "How well each pixel fits what the marked one looks for, as if nothing faded on the way: orange fits, blue is its opposite.",
    "How well the marked pixel fits what each other one looks for, as if nothing faded on the way: orange fits, blue is its opposite.",
  ],
  ww: [
    "How much of each pixel is still in the scan's memory when it comes to the marked one: the stronger the orange, the more is left.",
    "How much of the marked pixel is still in the scan's memory when it comes to each other one: the stronger the orange, the more is left.",
  ],
};
let shownMaps = { routes: [], whole: null, milliseconds: 0 };
let thumbTimer = 0;

function computeMaps(data) {
  const start = performance.now(), layer = data.layers[state.layer];
  const walks = walksOf(data, state.image, state.layer), pixel = state.row * layer.width + state.column;
  const routes = walks.map((walk) => pixelMap([walk], pixel, state.mode, state.view === "reads"));
  const whole = new Float64Array(routes[0].length);
  for (const map of routes) for (let i = 0; i < map.length; i++) whole[i] += map[i];
  shownMaps = { routes, whole, milliseconds: performance.now() - start };
}

function showMaps(data) {
  const layer = data.layers[state.layer], { routes, whole } = shownMaps;
  const common = state.common === "1" ? limitOf(whole, ...routes) : 0;
  const limit = common || limitOf(whole);
  fit(byId("whole"), 640);
  drawMap(byId("whole"), whole, layer, limit, state);
  [...byId("routes").children].forEach((tile, k) => {
    const canvas = tile.firstChild;
    fit(canvas, 320);
    drawMap(canvas, routes[k], layer, common || limitOf(routes[k]), state);
  });
  showScale(limit, whole.some((value) => value < 0));
}

function showScale(limit, signed) {
  const canvas = byId("bar"), count = 256;
  canvas.width = count;
  canvas.height = 1;
  const values = Float64Array.from({ length: count }, (_, i) => {
    const share = signed ? (2 * i) / (count - 1) - 1 : i / (count - 1);
    return Math.sign(share) * valueAt(Math.abs(share), limit, state.power);
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#3a3a3e";
  context.fillRect(0, 0, count, 1);
  overlay(canvas, signedImage(values, count, 1, limit, state.power), false, 1);
  const shares = signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.5, 1];
  const numbers = shares.map((share) => inWords(Math.sign(share) * valueAt(Math.abs(share), limit, state.power)));
  byId("bar-numbers").replaceChildren(...numbers.map((text) => make("span", { text })));
  canvas.setAttribute("aria-label", `Colours from ${numbers[0]} to ${numbers.at(-1)}`);
}

function showWords(data) {
  const layer = data.layers[state.layer], reads = state.view === "reads";
  const place = `row ${state.row + 1}, column ${state.column + 1} of ${layer.height} x ${layer.width}`;
  byId("reading-title").textContent = reads ? "What a pixel reads" : "Who reads a pixel";
  byId("reading-meaning").textContent = MEANINGS[state.mode][reads ? 0 : 1];
  byId("formula").textContent = FORMULAS[state.mode] + WHERE;
  byId("whole-caption").textContent = `${layer.routes.length > 1 ? "all routes together" : "the one route"}, ${place}`;
  const what = `${reads ? "What the pixel reads" : "Who reads the pixel"} in ${place}, ${layerTitle(layer)}`;
  byId("whole").setAttribute("aria-label", `${what}: all routes together`);
  [...byId("routes").children].forEach((tile, k) => {
    tile.firstChild.setAttribute("aria-label", `${what}: route ${k + 1}, ${layer.routes[k].words}`);
  });
  const at = shownMaps.whole[state.row * layer.width + state.column];
  const time = shownMaps.milliseconds.toFixed(0);
  byId("value").textContent = `of itself: ${inWords(at)}; computed here in ${time} ms`;
}

// The value under the pointer, in all maps.
function sayValue(data, event) {
  const layer = data.layers[state.layer], { row, column } = pixelAt(event, layer), i = row * layer.width + column;
  const routes = shownMaps.routes.map((map, k) => `route ${k + 1}: ${inWords(map[i])}`).join(", ");
  byId("value").textContent = `row ${row + 1}, column ${column + 1}: ${inWords(shownMaps.whole[i])} (${routes})`;
}

const ARROWS = { right: "\u2192", left: "\u2190", down: "\u2193", up: "\u2191" };

function routeTitle(route, k) {
  const [first, then] = route.words.split(/, then |, /);
  return `route ${k + 1}: ${ARROWS[first]}${ARROWS[then]} ${route.words}`;
}

function makeRouteTiles(data) {
  byId("routes").classList.add("pick");
  byId("routes").replaceChildren(
    ...data.layers[state.layer].routes.map((route, k) => {
      const canvas = make("canvas", { role: "img" });
      listenToPointer(data, canvas);
      return make("figure", {}, canvas, make("figcaption", { text: routeTitle(route, k) }));
    })
  );
}

function listenToPointer(data, canvas) {
  canvas.addEventListener("click", (event) => choose(data, pixelAt(event, data.layers[state.layer])));
  canvas.addEventListener("pointermove", (event) => sayValue(data, event));
  canvas.addEventListener("pointerleave", () => showWords(data));
}

function next(values, value, by = 1) {
  return values[(values.indexOf(value) + by + values.length) % values.length];
}

function onKey(data, event) {
  const layer = data.layers[state.layer], by = event.shiftKey ? 5 : 1;
  const moves = { ArrowUp: [-by, 0], ArrowDown: [by, 0], ArrowLeft: [0, -by], ArrowRight: [0, by] };
  const others = {
    PageUp: { layer: Math.max(state.layer - 1, 0) },
    PageDown: { layer: Math.min(state.layer + 1, data.layers.length - 1) },
    m: { mode: next(MODES, state.mode) },
    r: { view: next(CHOICES.view, state.view) },
  };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || !(key in moves || key in others)) return;
  event.preventDefault();
  if (key in others) return choose(data, others[key]);
  const [down, right] = moves[key];
  choose(data, {
    row: clamp(state.row + down, 0, layer.height - 1),
    column: clamp(state.column + right, 0, layer.width - 1),
  });
}

function makeThumbs(data) {
  byId("thumbs").replaceChildren(
    ...data.layers.map((layer, i) => {
      const canvas = make("canvas", { role: "img", "aria-label": `Map of ${layerTitle(layer)}` });
      const words = [layerTitle(layer), `${layer.height} x ${layer.width}`].map((text) => make("span", { text }));
      return make("button", { type: "button", onclick: () => choose(data, { layer: i }) }, canvas, ...words);
    })
  );
}

// The thumbnails, one layer at a time, so that the page answers meanwhile.
function showThumbs(data, i = 0) {
  clearTimeout(thumbTimer);
  if (i >= data.layers.length) return void (document.documentElement.dataset.ready = "1");
  thumbTimer = setTimeout(() => {
    const layer = data.layers[i], here = data.layers[state.layer], button = byId("thumbs").children[i];
    const row = Math.floor(((state.row + 0.5) / here.height) * layer.height);
    const column = Math.floor(((state.column + 0.5) / here.width) * layer.width);
    const walks = walksOf(data, state.image, i);
    const map = pixelMap(walks, row * layer.width + column, state.mode, state.view === "reads");
    fit(button.firstChild, 160);
    drawMap(button.firstChild, map, layer, limitOf(map), { ...state, row, column });
    showThumbs(data, i + 1);
  }, i ? 0 : 60);
}

function markThumb() {
  [...byId("thumbs").children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.layer));
}

function makeChoice(data, name, words) {
  byId(name).replaceChildren(
    ...Object.entries(words).map(([value, text]) =>
      make("button", { type: "button", text, title: value, "data-value": value, onclick: () => choose(data, { [name]: value }) })
    )
  );
}

function markChoices() {
  for (const name of ["mode", "view"]) {
    for (const button of byId(name).children) {
      button.setAttribute("aria-pressed", button.dataset.value === state[name]);
    }
  }
  for (const name of ["layer", "power", "opacity"]) byId(name).value = state[name];
  for (const name of ["common", "smooth"]) byId(name).checked = state[name] === "1";
}

function startReading(data) {
  makeChoice(data, "view", { reads: "reads", read: "is read by" });
  makeChoice(data, "mode", NAMES);
  byId("layer").replaceChildren(
    ...data.layers.map((layer, i) =>
      make("option", { value: i, text: `${layerTitle(layer)}: ${layer.height} x ${layer.width}, ${layer.channels} channels` })
    )
  );
  for (const name of ["layer", "power", "opacity"]) {
    byId(name).addEventListener("input", (event) => choose(data, { [name]: event.target.value }));
  }
  for (const name of ["common", "smooth"]) {
    byId(name).addEventListener("change", (event) => choose(data, { [name]: event.target.checked ? "1" : "0" }));
  }
  listenToPointer(data, byId("whole"));
  byId("whole").addEventListener("keydown", (event) => onKey(data, event));
  makeThumbs(data);
  makeRouteTiles(data);
  const all = (changed) => {
    const has = (...names) => names.some((name) => changed.has(name));
    if (has("layer")) makeRouteTiles(data);
    if (has("image", "layer", "row", "column", "mode", "view")) computeMaps(data);
    if (has("image", "layer", "row", "column", "mode", "view", "power", "common", "smooth", "opacity")) {
      showMaps(data);
      showWords(data);
      showThumbs(data);
    }
    markThumb();
    markChoices();
  };
  listen(all);
  all(new Set(["image", "layer"]));
}
