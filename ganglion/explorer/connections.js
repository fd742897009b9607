// Which earlier features every layer reads, as a drawing: a row for each stage, arcs above and below the layers.

const STEP = 46, BOX = 28, LEFT = 74, PAD = 16;
const SVG = "http://www.w3.org/2000/svg";
let planChosen = null;

function makeSvg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// What a layer reads: its input, the one before it (-1: the stage's input), and what its plan names.
function readsOf(stage, layer) {
  return [...new Set([layer - 1, ...stage.reads[layer]])];
}

function readersOf(stage, layer) {
  return stage.reads.map((_, i) => i).filter((i) => readsOf(stage, i).includes(layer));
}

function rise(from, to) {
  return 10 + 13 * (to - from) ** 0.72;
}

// All boxes and lines with their places. side: -1 above the layers, 1 below them.
function planLayout(stages) {
  const nodes = [], lines = [], titles = [];
  let top = PAD;
  stages.forEach((stage, s) => {
    const arcs = stage.reads.flatMap((reads, to) => reads.map((from) => ({ from, to })));
    const isGanglion = (i) => i >= 0 && stage.reads[i].length > 0;
    const sideOf = ({ from }) => (isGanglion(from) ? 1 : -1);
    const room = (side) => Math.max(0, ...arcs.filter((a) => sideOf(a) === side).map((a) => rise(a.from, a.to)));
    const y = top + room(-1) + BOX / 2 + 4, x = (i) => LEFT + PAD + (i + 1) * STEP;
    titles.push({ x: PAD, y, text: `stage ${s + 1}` });
    for (let i = -1; i < stage.reads.length; i++) {
      nodes.push({ stage: s, layer: i, x: x(i), y, ganglion: isGanglion(i), text: i < 0 ? "in" : String(i + 1) });
      if (i >= 0) lines.push({ stage: s, from: i - 1, to: i, d: `M${x(i - 1) + BOX / 2} ${y}L${x(i) - BOX / 2} ${y}` });
    }
    for (const arc of arcs) {
      const side = sideOf(arc), foot = y + (side * BOX) / 2, control = foot + (side * rise(arc.from, arc.to)) / 0.75;
      const [a, b] = [x(arc.from) + 4, x(arc.to) - 4];
      lines.push({ stage: s, ...arc, d: `M${a} ${foot}C${a} ${control} ${b} ${control} ${b} ${foot}` });
    }
    top = y + BOX / 2 + room(1) + 14;
  });
  const deepest = Math.max(...stages.map((stage) => stage.reads.length));
  return { nodes, lines, titles, width: LEFT + 2 * PAD + (deepest + 0.5) * STEP, height: top + PAD };
}

function nameOf(node) {
  return node.layer < 0 ? `the input of stage ${node.stage + 1}` : `stage ${node.stage + 1}, block ${node.layer + 1}`;
}

function wordsFor(data, node) {
  const stage = data.stages[node.stage];
  const list = (layers) => layers.map((i) => (i < 0 ? "the stage's input" : `block ${i + 1}`)).join(", ");
  const readers = readersOf(stage, node.layer);
  const reads = node.layer < 0 ? "" : ` reads ${list(readsOf(stage, node.layer))};`;
  const last = node.layer === stage.reads.length - 1;
  const after = last ? (node.stage + 1 < data.stages.length ? "the next stage" : "the head") : "";
  const by = [list(readers), after].filter(Boolean).join(", ");
  return `${nameOf(node)[0].toUpperCase()}${nameOf(node).slice(1)}${reads} is read by ${by}.`;
}

// How a line or a box stands to the chosen box: "reads", "read", "chosen" or "".
function relation(data, node, item) {
  if (!node || item.stage !== node.stage) return "";
  if ("d" in item) return item.to === node.layer ? "reads" : item.from === node.layer ? "read" : "";
  if (item.layer === node.layer) return "chosen";
  const stage = data.stages[node.stage];
  if (node.layer >= 0 && readsOf(stage, node.layer).includes(item.layer)) return "reads";
  return readersOf(stage, node.layer).includes(item.layer) ? "read" : "";
}

function showPlan(data, plan, node) {
  planChosen = node;
  for (const item of [...plan.nodes, ...plan.lines]) {
    const how = relation(data, node, item);
    item.element.classList.remove("reads", "read", "chosen", "dim");
    if (how) item.element.classList.add(how);
    else if (node) item.element.classList.add("dim");
  }
  byId("plan-said").textContent = node ? wordsFor(data, node) : "";
}

function layerIndex(data, node) {
  return data.layers.findIndex((layer) => layer.stage === node.stage && layer.block === node.layer);
}

function makeNode(data, plan, node) {
  const { x, y, text } = node, round = node.layer < 0 ? BOX / 2 : 7;
  const shape = makeSvg("rect", { x: x - BOX / 2, y: y - BOX / 2, width: BOX, height: BOX, rx: round });
  const label = makeSvg("text", { x, y });
  label.textContent = text;
  const group = makeSvg("g", {
    class: `node${node.ganglion ? " ganglion" : ""}`, tabindex: node === plan.nodes[0] ? 0 : -1, role: "button",
    "aria-label": wordsFor(data, node),
  }, shape, label);
  const open = () => {
    const layer = layerIndex(data, node);
    if (layer < 0) return;
    choose(data, { layer });
    byId("reading").scrollIntoView();
    byId("whole").focus({ preventScroll: true });
  };
  group.addEventListener("pointerenter", () => showPlan(data, plan, node));
  group.addEventListener("focus", () => showPlan(data, plan, node));
  group.addEventListener("click", open);
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") open();
    else if (!moveFocus(plan, node, event.key)) return;
    event.preventDefault();
  });
  return group;
}

// Arrow keys go from box to box.
function moveFocus(plan, node, key) {
  const across = { ArrowLeft: -1, ArrowRight: 1 }[key], down = { ArrowUp: -1, ArrowDown: 1 }[key];
  if (!across && !down) return false;
  const stage = node.stage + (down || 0);
  const row = plan.nodes.filter((other) => other.stage === stage);
  const target = row[clamp(node.layer + 1 + (across || 0), 0, row.length - 1)];
  if (target) {
    for (const other of plan.nodes) other.element.setAttribute("tabindex", other === target ? 0 : -1);
    target.element.focus();
  }
  return true;
}

function startConnections(data) {
  const plan = planLayout(data.stages), scale = clamp(900 / plan.width, 1, 1.5);
  const svg = makeSvg("svg", {
    viewBox: `0 0 ${plan.width} ${plan.height}`, width: plan.width * scale, height: plan.height * scale, role: "group",
    "aria-label": "Layers and what they read",
  });
  for (const { x, y, text } of plan.titles) {
    const title = makeSvg("text", { x, y, class: "stage" });
    title.textContent = text;
    svg.append(title);
  }
  for (const line of plan.lines) svg.append((line.element = makeSvg("path", { d: line.d })));
  for (const node of plan.nodes) svg.append((node.element = makeNode(data, plan, node)));
  byId("plan").replaceChildren(svg);
  const current = () => {
    const { stage, block } = data.layers[state.layer];
    return plan.nodes.find((node) => node.stage === stage && node.layer === block);
  };
  svg.addEventListener("pointerleave", () => showPlan(data, plan, current()));
  listen((changed) => changed.has("layer") && showPlan(data, plan, current()));
  showPlan(data, plan, current());
  return plan;
}
