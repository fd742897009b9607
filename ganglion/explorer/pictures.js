// The photo and what is laid over it, on canvases of a fixed size of their own.

const photos = [];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

function sheet(width, height) {
  return make("canvas", { width, height });
}

// A picture out of the page's text.
async function openPicture({ type, bytes }) {
  const bitmap = await createImageBitmap(new Blob([bytesOf(bytes)], { type }));
  const canvas = sheet(bitmap.width, bitmap.height);
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
  return canvas;
}

// The same in a dim grey, on which colours stand out.
function dimmed(colour) {
  const { width, height } = colour, grey = sheet(width, height);
  const pixels = colour.getContext("2d").getImageData(0, 0, width, height), { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    data.fill(18 + 0.5 * (0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]), i, i + 3);
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  return grey;
}

async function loadPhotos(images) {
  for (const { picture } of images) {
    const colour = await openPicture(picture);
    photos.push({ colour, grey: dimmed(colour) });
  }
}

// The size of a canvas that shows the picture, so that a pixel of the screen is about one of its own.
function fit(canvas, side) {
  const { width, height } = photos[state.image].colour;
  const scale = side / Math.max(width, height);
  const size = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== size[0]) canvas.width = size[0];
  if (canvas.height !== size[1]) canvas.height = size[1];
}

function drawSheet(canvas, source, smooth, alpha = 1) {
  const context = canvas.getContext("2d");
  context.globalAlpha = alpha;
  context.imageSmoothingEnabled = smooth;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
}

const grounds = new Map();

// The photo, the dimmer the more opaque what comes over it. Kept for each size, since every click needs it again.
function drawPhoto(canvas, opacity) {
  const key = `${canvas.width} ${canvas.height}`, wanted = `${state.image} ${opacity}`;
  if (grounds.get(key)?.wanted !== wanted) {
    const { colour, grey } = photos[state.image], ground = sheet(canvas.width, canvas.height);
    const smooth = colour.width > 96;
    drawSheet(ground, colour, smooth);
    drawSheet(ground, grey, smooth, Math.min(1, 1.15 * opacity));
    grounds.set(key, { wanted, ground });
  }
  canvas.getContext("2d").drawImage(grounds.get(key).ground, 0, 0);
}

// An ImageData over the whole canvas.
function overlay(canvas, image, smooth, alpha) {
  const small = sheet(image.width, image.height);
  small.getContext("2d").putImageData(image, 0, 0);
  drawSheet(canvas, small, smooth, alpha);
}

// A frame around a pixel of a map, seen on any ground.
function mark(canvas, row, column, height, width) {
  const context = canvas.getContext("2d");
  const w = canvas.width / width, h = canvas.height / height;
  const room = Math.max(0, 5 - Math.min(w, h) / 2);
  for (const [line, colour] of [[5, "#000000"], [2.4, "#ffffff"]]) {
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(column * w - room, row * h - room, w + 2 * room, h + 2 * room);
  }
}

// A signed map over the photo, the asking pixel marked.
function drawMap(canvas, values, layer, limit, { row, column, power, smooth, opacity }) {
  drawPhoto(canvas, Number(opacity));
  overlay(canvas, signedImage(values, layer.width, layer.height, limit, power), smooth === "1", Number(opacity));
  mark(canvas, row, column, layer.height, layer.width);
}

// The pixel of a map under the pointer.
function pixelAt(event, layer) {
  const box = event.currentTarget.getBoundingClientRect();
  const part = (at, start, size, count) => clamp(Math.floor(((at - start) / size) * count), 0, count - 1);
  return {
    row: part(event.clientY, box.top, box.height, layer.height),
    column: part(event.clientX, box.left, box.width, layer.width),
  };
}

function layerTitle(layer) {
  return `stage ${layer.stage + 1}, block ${layer.block + 1}`;
}
