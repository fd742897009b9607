// A panel as a PNG: its pictures, their captions, and the settings that they were made with.

const MARGIN = 24, GAP = 16, SHEET = 1040;

function settings(data) {
  const layer = data.layers[state.layer];
  const direction = state.view === "reads" ? "reads" : "is read by";
  const place = `row ${state.row + 1}, column ${state.column + 1} of ${layer.height} x ${layer.width}`;
  return {
    reading: `${layerTitle(layer)} (${layer.name}), ${place}, ${direction}, ${state.mode}, ` +
      `scale: ${state.power === "cube" ? "cube root" : "linear"}${state.common === "1" ? ", one for all maps" : ""}`,
    layers: `all layers, the place of ${place} of ${layerTitle(layer)}, ${direction}, ${state.mode}`,
    walking: `${layerTitle(layer)} (${layer.name}), step ${state.step + 1} of ${layer.height * layer.width}`,
    connections: planChosen ? wordsFor(data, planChosen) : "",
    fields: "effective receptive field of the centre of each stage's map, fifth root",
    classes: "",
  };
}

// Lines of text that fit a width.
function wrapped(context, text, width) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (lines.at(-1) && context.measureText(longer).width > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

// The pictures of a panel and the lines under each.
function pictureCells(id) {
  const width = { classes: 320, layers: 160 }[id] ?? 236;
  const canvases = [...byId(id).querySelectorAll("figure > canvas, .thumbs canvas, #photo")];
  return canvases.map((canvas) => ({
    canvas, width: canvas.id === "whole" ? 488 : width, texts: captionsOf(canvas.parentElement), bar: canvas.id === "whole",
  }));
}

function captionsOf(owner) {
  if (owner.matches(".says")) return [...byId("bars").children].map((item) => item.textContent);
  const rows = [...owner.querySelectorAll("tr")].map((row) => [...row.cells].map((cell) => cell.textContent).join(": "));
  return [...[...owner.querySelectorAll("figcaption, button > span")].map((part) => part.textContent), ...rows];
}

// Where each cell goes; returns the height that they take.
function placeCells(context, cells, top) {
  let x = MARGIN, y = top, height = 0;
  for (const cell of cells) {
    if (x > MARGIN && x + cell.width > SHEET - MARGIN) [x, y, height] = [MARGIN, y + height + GAP, 0];
    cell.lines = cell.texts.flatMap((text) => wrapped(context, text, cell.width));
    cell.height = (cell.width * cell.canvas.height) / cell.canvas.width;
    Object.assign(cell, { x, y });
    height = Math.max(height, cell.height + 18 * cell.lines.length + 8);
    x += cell.width + GAP;
  }
  return y + height - top;
}

// Beside the large picture stand the small ones two by two.
function placeReading(context, [large, ...small], top) {
  const whole = placeCells(context, [large], top);
  small.forEach((cell, k) => {
    placeCells(context, [cell], top);
    cell.x = MARGIN + 488 + GAP + (k % 2) * (236 + GAP);
    cell.y = top + Math.floor(k / 2) * (cell.height + 44);
  });
  return Math.max(whole + 40, ...small.map((cell) => cell.y - top + cell.height + 18 * cell.lines.length));
}

function drawCells(context, cells) {
  for (const { canvas, x, y, width, height, lines, bar } of cells) {
    context.drawImage(canvas, x, y, width, height);
    lines.forEach((line, i) => context.fillText(line, x, y + height + 18 * (i + 1)));
    if (bar) drawScale(context, x, y + height + 18 * lines.length + 8, width);
  }
}

// The colours of the large map and their numbers.
function drawScale(context, x, y, width) {
  const numbers = [...byId("bar-numbers").children].map((number) => number.textContent);
  context.drawImage(byId("bar"), x, y, width, 12);
  numbers.forEach((number, i) => {
    const share = i / (numbers.length - 1);
    context.fillText(number, x + share * (width - context.measureText(number).width), y + 28);
  });
}

function meaningOf(id) {
  const meaning = byId(id).querySelector(".meaning").cloneNode(true);
  meaning.querySelector(".how")?.remove();
  return meaning.textContent.trim();
}

// The drawing of the connections, in the colours that it has on the page.
function drawPlan(context, plan, top, scale) {
  context.save();
  context.translate((SHEET - plan.width * scale) / 2, top);
  context.scale(scale, scale);
  const faint = (item) => (item.element.classList.contains("dim") ? 0.38 : 1);
  for (const line of plan.lines) {
    const style = getComputedStyle(line.element);
    context.globalAlpha = faint(line);
    context.strokeStyle = style.stroke;
    context.lineWidth = parseFloat(style.strokeWidth);
    context.stroke(new Path2D(line.d));
  }
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const node of plan.nodes) {
    const style = getComputedStyle(node.element.firstChild), path = new Path2D();
    path.roundRect(node.x - BOX / 2, node.y - BOX / 2, BOX, BOX, node.layer < 0 ? BOX / 2 : 7);
    Object.assign(context, { globalAlpha: faint(node), fillStyle: style.fill, strokeStyle: style.stroke });
    context.lineWidth = parseFloat(style.strokeWidth);
    context.fill(path);
    context.stroke(path);
    context.fillStyle = themeColour("ink");
    context.fillText(node.text, node.x, node.y);
  }
  context.globalAlpha = 1;
  context.textAlign = "left";
  for (const { x, y, text } of plan.titles) context.fillText(text, x, y);
  context.restore();
}

function panelSheet(data, plan, id) {
  const canvas = sheet(2 * SHEET, 10), context = canvas.getContext("2d");
  const font = (size, weight = "") => `${weight} ${size}px system-ui, "DejaVu Sans", sans-serif`;
  context.font = font(13);
  const title = byId(`${id}-title`).textContent, name = data.images[state.image].name;
  const said = [`${data.network.name}, ${data.network.weights}, ${name}`, settings(data)[id]].filter(Boolean);
  const above = said.flatMap((line) => wrapped(context, line, SHEET - 2 * MARGIN));
  const below = wrapped(context, meaningOf(id), SHEET - 2 * MARGIN);
  const top = MARGIN + 34 + 19 * above.length + 10, cells = id === "connections" ? [] : pictureCells(id);
  const scale = Math.min(1.6, (SHEET - 2 * MARGIN) / plan.width);
  const height = id === "connections" ? plan.height * scale
    : (id === "reading" ? placeReading : placeCells)(context, cells, top);
  canvas.height = 2 * (top + height + 19 * below.length + MARGIN + 12);
  context.scale(2, 2);
  context.fillStyle = themeColour("panel");
  context.fillRect(0, 0, SHEET, canvas.height);
  context.fillStyle = themeColour("ink");
  context.font = font(22, "bold");
  context.fillText(title, MARGIN, MARGIN + 20);
  context.font = font(13);
  context.fillStyle = themeColour("soft");
  above.forEach((line, i) => context.fillText(line, MARGIN, MARGIN + 46 + 19 * i));
  below.forEach((line, i) => context.fillText(line, MARGIN, top + height + 26 + 19 * i));
  drawCells(context, cells);
  if (id === "connections") drawPlan(context, plan, top, scale);
  return canvas;
}

function fileName(data, id) {
  const layer = data.layers[state.layer].name, pixel = `${state.row}-${state.column}`;
  const more = { reading: [layer, pixel, state.mode, state.view], layers: [pixel, state.mode, state.view],
    walking: [layer, `step-${state.step}`] }[id] ?? [];
  const name = [data.network.name, data.images[state.image].name, id, ...more].join("_");
  return `${name.replace(/[^\w.-]+/g, "-")}.png`;
}

function startSaving(data, plan) {
  for (const button of document.querySelectorAll(".save")) {
    const { id } = button.closest(".panel");
    button.setAttribute("aria-label", `Save "${byId(`${id}-title`).textContent}" as PNG`);
    button.addEventListener("click", () => {
      // Not toBlob, which waits for the browser to be idle, for seconds.
      const bytes = bytesOf(panelSheet(data, plan, id).toDataURL().split(",")[1]);
      const address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
      make("a", { href: address, download: fileName(data, id) }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
    });
  }
}
