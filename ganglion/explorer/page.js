// The page as a whole.

function showHead(data) {
  const { name, weights, parameters, size } = data.network;
  byId("title").textContent = `How ${name} reads a picture`;
  byId("facts").textContent = `${(parameters / 1e6).toFixed(2)} M parameters, pictures of ${size[0]} x ${size[1]}; ${weights}. ` +
    "Every map on this page is computed here, from what the network's scans were given.";
  byId("foot").textContent = "A page of ganglion explore. It is one file, and asks the network for nothing.";
}

function makeImageButtons(data) {
  if (data.images.length < 2) return;
  byId("images").replaceChildren(
    ...data.images.map((image, i) =>
      make("button", { type: "button", text: image.name, onclick: () => choose(data, { image: i }) })
    )
  );
}

function barOf({ name, probability }) {
  const fill = make("span", { class: "fill", style: `width: ${100 * probability}%` });
  const percent = make("span", { class: "percent", text: `${(100 * probability).toFixed(1)} %` });
  return make("li", {}, percent, " ", make("span", { class: "name" }, fill, name));
}

function showClasses(data) {
  const { name, classes } = data.images[state.image], canvas = byId("photo");
  fit(canvas, 380);
  drawPhoto(canvas, 0);
  canvas.setAttribute("aria-label", `${name}, as the network sees it`);
  byId("bars").replaceChildren(...classes.map(barOf));
  byId("classes-meaning").textContent = classes.length
    ? "The picture as the network gets it; the longer a bar, the surer it is that the picture is of this class."
    : "The picture as the network gets it; this network names no classes.";
  [...byId("images").children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.image));
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  const dark = state.theme === "auto" ? systemDark.matches : state.theme === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").value = state.theme;
}

// For tests and for the curious: maps as numbers. route: null for the sum over all; pixel: [row, column].
function makeApi(data) {
  return {
    data,
    state: () => ({ ...state }),
    choose: (wanted) => choose(data, wanted),
    map: ({ image = 0, layer = 0, mode = "CwBdtw", route = null, pixel, reads = true }) => {
      const walks = walksOf(data, image, layer), at = pixel[0] * data.layers[layer].width + pixel[1];
      return [...pixelMap(route === null ? walks : [walks[route]], at, mode, reads)];
    },
    unpack: (packed) => [...unpack(packed)],
    shown: () => ({ whole: [...shownMaps.whole], routes: shownMaps.routes.map((map) => [...map]) }),
    milliseconds: () => shownMaps.milliseconds,
  };
}

async function start() {
  const data = JSON.parse(byId("data").textContent);
  startState(data);
  showTheme();
  showHead(data);
  await loadPhotos(data.images);
  await loadFields(data);
  makeImageButtons(data);
  showClasses(data);
  byId("theme").addEventListener("input", (event) => choose(data, { theme: event.target.value }));
  systemDark.addEventListener("change", showTheme);
  listen((changed) => changed.has("theme") && showTheme());
  listen((changed) => changed.has("image") && showClasses(data));
  startReading(data);
  startWalking(data);
  const plan = startConnections(data);
  startFields(data);
  startSaving(data, plan);
  window.ganglion = makeApi(data);
}

start();
