// What is chosen, all of it in the address behind the #, so that a link shows the same.

const CHOICES = {
  mode: MODES, view: ["reads", "read"], power: ["cube", "linear"], theme: ["auto", "light", "dark"],
  common: ["0", "1"], smooth: ["0", "1"], squares: ["0", "1"],
};
const listeners = [];
let state = {};

function defaultState(data) {
  const third = data.layers.findIndex((layer) => layer.stage === 0);
  const layer = Math.max(third, 0), { height, width } = data.layers[layer];
  return {
    image: 0, layer, row: height >> 1, column: width >> 1, mode: "CwBdtw", view: "reads", power: "cube", common: "0",
    smooth: "0", opacity: 0.9, squares: "1", step: Math.floor(height * width * 0.4), theme: "auto",
  };
}

// A state in which every value is one that exists. What is not is as before.
function checked(data, wanted, before) {
  const found = { ...before };
  const whole = (name, count) => {
    const value = Math.round(Number(wanted[name]));
    if (wanted[name] !== undefined && value >= 0 && value < count) found[name] = value;
  };
  whole("image", data.images.length);
  whole("layer", data.layers.length);
  const { height, width } = data.layers[found.layer], old = data.layers[before.layer];
  if (found.layer !== before.layer) {
    found.row = Math.floor(((before.row + 0.5) / old.height) * height);
    found.column = Math.floor(((before.column + 0.5) / old.width) * width);
    found.step = Math.floor(((before.step + 0.5) / (old.height * old.width)) * height * width);
  }
  whole("row", height);
  whole("column", width);
  whole("step", height * width);
  for (const [name, values] of Object.entries(CHOICES)) {
    if (values.includes(String(wanted[name]))) found[name] = String(wanted[name]);
  }
  const opacity = wanted.opacity === undefined ? NaN : Number(wanted.opacity);
  if (opacity >= 0 && opacity <= 1) found.opacity = opacity;
  return found;
}

function fromAddress() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function toAddress(data) {
  const usual = defaultState(data), asked = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (String(value) !== String(usual[name]) || ["layer", "row", "column"].includes(name)) asked.set(name, value);
  }
  history.replaceState(null, "", `#${asked}`);
}

let addressTimer = 0, addressAt = -Infinity;

// Browsers refuse an address that changes all the time: at most three times a second.
function toAddressSoon(data) {
  clearTimeout(addressTimer);
  const left = addressAt + 350 - performance.now();
  if (left > 0) addressTimer = setTimeout(() => toAddressSoon(data), left);
  else {
    addressAt = performance.now();
    toAddress(data);
  }
}

// Change some of the state and tell those who show it which.
function choose(data, wanted) {
  const before = state;
  state = checked(data, wanted, before);
  const changed = Object.keys(state).filter((name) => state[name] !== before[name]);
  if (!changed.length) return;
  toAddressSoon(data);
  for (const listener of listeners) listener(new Set(changed));
}

function listen(listener) {
  listeners.push(listener);
}

function startState(data) {
  const usual = defaultState(data);
  state = checked(data, fromAddress(), usual);
  addEventListener("hashchange", () => choose(data, fromAddress()));
}
