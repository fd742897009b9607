// Colours that colour-blind readers tell apart: orange against blue for signs, dark to bright for amounts.

const ADDS = [[110, 38, 0], [214, 92, 10], [255, 150, 40], [255, 226, 150]];
const TAKES = [[8, 36, 110], [30, 92, 214], [74, 152, 255], [190, 226, 255]];
const AMOUNT = [
  [6, 5, 20], [43, 17, 84], [92, 24, 126], [146, 38, 128], [198, 54, 107], [238, 92, 72], [252, 156, 82],
  [252, 218, 142], [252, 250, 214],
];
const SQUARES = { 20: "#ffffff", 30: "#7fd4ff", 50: "#ffd84a", 99: "#7dff9b" };

// A colour of a ramp, share from 0 to 1.
function ramp(stops, share) {
  const at = clamp(share, 0, 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2), part = at - low;
  return stops[low].map((value, c) => value + part * (stops[low + 1][c] - value));
}

// How strongly a value is shown, from 0 to 1.
function strength(value, limit, power) {
  const share = clamp(Math.abs(value) / limit, 0, 1);
  return power === "cube" ? Math.cbrt(share) : share;
}

// The value that is shown so strongly.
function valueAt(share, limit, power) {
  return limit * (power === "cube" ? share ** 3 : share);
}

const tables = new Map();

// A ramp as a table of 256 colours.
function table(stops) {
  if (!tables.has(stops)) tables.set(stops, Array.from({ length: 256 }, (_, i) => ramp(stops, i / 255)));
  return tables.get(stops);
}

// Signed values as an image of their own size: colour by sign and strength, and as opaque as strong.
function signedImage(values, width, height, limit, power) {
  const { data } = new ImageData(width, height), adds = table(ADDS), takes = table(TAKES);
  for (let i = 0; i < values.length; i++) {
    const strong = strength(values[i], limit, power);
    setPixel(data, i, (values[i] < 0 ? takes : adds)[Math.round(strong * 255)], 255 * Math.min(1, 1.25 * strong));
  }
  return new ImageData(data, width, height);
}

function setPixel(data, i, colour, alpha) {
  data[4 * i] = colour[0];
  data[4 * i + 1] = colour[1];
  data[4 * i + 2] = colour[2];
  data[4 * i + 3] = alpha;
}

// Amounts from 0 to 255 as an opaque image.
function amountImage(shades, width, height) {
  const { data } = new ImageData(width, height), colours = table(AMOUNT);
  for (let i = 0; i < shades.length; i++) setPixel(data, i, colours[shades[i]], 255);
  return new ImageData(data, width, height);
}

function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
