// Effective receptive fields of the stages, and the squares that hold parts of them.

function drawSquare(canvas, field, square) {
  if (!square.side) return;
  const context = canvas.getContext("2d"), w = canvas.width / field.width, h = canvas.height / field.height;
  const left = ((field.width >> 1) - (square.side >> 1)) * w, top = ((field.height >> 1) - (square.side >> 1)) * h;
  for (const [line, colour] of [[5, "#000000"], [2.5, SQUARES[Math.round(100 * square.fraction)]]]) {
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(left, top, square.side * w, square.side * h);
  }
}

function sideOf(square) {
  if (!square.side) return `more than ${square.largest} px`;
  return `${square.side} px, ${(100 * square.area).toFixed(square.area < 0.1 ? 1 : 0)} %`;
}

function squareTable(field) {
  const rows = field.squares.map((square) => {
    const percent = Math.round(100 * square.fraction);
    const swatch = make("span", { class: "swatch", style: `border-color: ${SQUARES[percent]}; background: #222` });
    return make("tr", {}, make("td", {}, swatch, `${percent} %`), make("td", { text: sideOf(square) }));
  });
  return make("table", {}, make("tbody", {}, ...rows));
}

const fieldImages = [];

// The shades of all receptive fields in colours, one sheet for each image and stage.
async function loadFields(data) {
  for (const { fields } of data.images) {
    const sheets = [];
    for (const { shades, width, height } of fields) {
      const canvas = await openPicture(shades), context = canvas.getContext("2d");
      const grey = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
      context.putImageData(amountImage(grey, width, height), 0, 0);
      sheets.push(canvas);
    }
    fieldImages.push(sheets);
  }
}

function showFields(data) {
  const fields = data.images[state.image].fields;
  byId("field-tiles").replaceChildren(
    ...fields.map((field, s) => {
      const words = `stage ${s + 1}: map of ${field.map[0]} x ${field.map[1]}`;
      const label = `Effective receptive field of ${words}`;
      const canvas = make("canvas", { role: "img", "aria-label": label });
      fit(canvas, 320);
      drawSheet(canvas, fieldImages[state.image][s], false);
      if (state.squares === "1") for (const square of field.squares) drawSquare(canvas, field, square);
      return make("figure", {}, canvas, make("figcaption", { text: words }), squareTable(field));
    })
  );
  byId("squares").checked = state.squares === "1";
}

function startFields(data) {
  byId("fields").hidden = data.images.every(({ fields }) => !fields.length);
  byId("squares").addEventListener("change", (event) => choose(data, { squares: event.target.checked ? "1" : "0" }));
  showFields(data);
  listen((changed) => (changed.has("image") || changed.has("squares")) && showFields(data));
}
