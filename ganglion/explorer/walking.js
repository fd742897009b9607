// The routes walking the picture: what each still remembers of the pixels behind it.

const FORGOTTEN = 0.004;
let playing = 0;

// Behind the walker: as bright as it is remembered; before it: the dim photo.
function memoryImage(walk, step, layer) {
  const left = new Float64Array(walk.order.length), { data } = new ImageData(layer.width, layer.height);
  addRow(walk, step, "ww", left, FORGOTTEN * walk.N);
  const colours = table(AMOUNT);
  for (let i = 0; i <= step; i++) {
    const pixel = walk.order[i], share = Math.sqrt(clamp(left[pixel] / walk.N, 0, 1));
    setPixel(data, pixel, colours[Math.round(255 * share)], 45 + 200 * share);
  }
  return new ImageData(data, layer.width, layer.height);
}

function showWalks(data) {
  const layer = data.layers[state.layer], walks = walksOf(data, state.image, state.layer);
  [...byId("walks").children].forEach((tile, k) => {
    const canvas = tile.firstChild, pixel = walks[k].order[state.step];
    fit(canvas, 320);
    drawPhoto(canvas, 0.75);
    overlay(canvas, memoryImage(walks[k], state.step, layer), false, 0.95);
    mark(canvas, Math.floor(pixel / layer.width), pixel % layer.width, layer.height, layer.width);
  });
  byId("step").value = state.step;
  const words = `step ${state.step + 1} of ${layer.height * layer.width}, ${layerTitle(layer)}`;
  byId("step-said").textContent = words;
  byId("step").setAttribute("aria-valuetext", words);
}

function makeWalkTiles(data) {
  const layer = data.layers[state.layer];
  byId("step").max = layer.height * layer.width - 1;
  byId("walks").replaceChildren(
    ...layer.routes.map((route, k) => {
      const canvas = make("canvas", { role: "img", "aria-label": `What route ${k + 1}, ${route.words}, remembers` });
      return make("figure", {}, canvas, make("figcaption", { text: routeTitle(route, k) }));
    })
  );
}

function stop() {
  cancelAnimationFrame(playing);
  playing = 0;
  byId("play").textContent = "Play";
}

// From the step where it stands; a whole walk takes as many seconds as the speed says.
function play(data) {
  const count = () => data.layers[state.layer].height * data.layers[state.layer].width;
  let before = performance.now(), position = state.step >= count() - 1 ? 0 : state.step;
  const frame = (now) => {
    position += ((now - before) / 1000 / Number(byId("speed").value)) * count();
    before = now;
    const step = Math.min(Math.floor(position), count() - 1);
    choose(data, { step });
    if (step >= count() - 1) stop();
    else playing = requestAnimationFrame(frame);
  };
  byId("play").textContent = "Pause";
  playing = requestAnimationFrame(frame);
}

function startWalking(data) {
  const move = (step) => {
    stop();
    choose(data, { step: clamp(step, 0, Number(byId("step").max)) });
  };
  byId("play").addEventListener("click", () => (playing ? stop() : play(data)));
  byId("back").addEventListener("click", () => move(state.step - 1));
  byId("forward").addEventListener("click", () => move(state.step + 1));
  byId("step").addEventListener("input", (event) => move(Number(event.target.value)));
  makeWalkTiles(data);
  showWalks(data);
  listen((changed) => {
    if (changed.has("layer")) {
      stop();
      makeWalkTiles(data);
    }
    if (["image", "layer", "step"].some((name) => changed.has(name))) showWalks(data);
  });
}
