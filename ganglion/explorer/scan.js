// The scan as attention between pixels: the recurrence, run backwards from the one who asks, or forwards from the one
// who is asked. For a route with steps i >= j, E = the sum of the step sizes dt between j and i, per channel d:
//   CB = sum_n C_i B_j;  CwBw = sum_n C_i B_j exp(A E);  CwBdtw = CwBw dt_j;  ww = sum_n exp(A E);  mean over d.

const MODES = ["CwBdtw", "CwBw", "CB", "ww"];

// The pixel of every step, and after how many steps the state is empty again.
function routeOf(code, height, width) {
  const transpose = code & 1, flipRows = code & 2, flipColumns = code & 4, restart = code & 8;
  const row = flipRows ? -width : width, column = flipColumns ? -1 : 1;
  const offset = (flipRows ? (height - 1) * width : 0) + (flipColumns ? width - 1 : 0);
  const line = transpose ? height : width, count = height * width;
  const [outer, inner] = transpose ? [column, row] : [row, column];
  const order = new Int32Array(count), stepOf = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    order[i] = offset + outer * Math.floor(i / line) + inner * (i % line);
    stepOf[order[i]] = i;
  }
  return { order, stepOf, line: restart ? line : count };
}

function softplus(z) {
  return z > 0 ? z + Math.log1p(Math.exp(-z)) : Math.log1p(Math.exp(z));
}

// Step sizes (L, D) by steps: softplus(weight low + bias), low (L, R) by pixels.
function stepSizes(layer, order, low, weight, bias) {
  const { channels: D, rank: R } = layer, dt = new Float64Array(order.length * D);
  for (let i = 0; i < order.length; i++) {
    const first = order[i] * R;
    for (let d = 0; d < D; d++) {
      let z = bias[d];
      for (let r = 0; r < R; r++) z += weight[d * R + r] * low[first + r];
      dt[i * D + d] = softplus(z);
    }
  }
  return dt;
}

// (L, N) by pixels -> by steps.
function byStep(order, N, values) {
  const found = new Float64Array(order.length * N);
  for (let i = 0; i < order.length; i++) for (let n = 0; n < N; n++) found[i * N + n] = values[order[i] * N + n];
  return found;
}

function makeWalks(layer, given) {
  const { height, width, channels: D, rank: R, states: N } = layer, L = height * width;
  const low = unpack(given.low), B = unpackFloats(given.B), C = unpackFloats(given.C);
  const weight = unpack(layer.dtWeight), bias = unpackFloats(layer.dtBias), A = unpackFloats(layer.A);
  return layer.routes.map(({ code }, k) => {
    const of = (values, size) => values.subarray(k * size, (k + 1) * size), route = routeOf(code, height, width);
    return {
      ...route, D, N,
      A: Float64Array.from(of(A, D * N)),
      dt: stepSizes(layer, route.order, of(low, L * R), of(weight, D * R), of(bias, D)),
      B: byStep(route.order, N, of(B, L * N)),
      C: byStep(route.order, N, of(C, L * N)),
    };
  });
}

// The entry of reader i and of step j, given E.
function entry(walk, i, j, E, mode) {
  const { D, N, A, B, C, dt } = walk;
  let total = 0;
  if (mode === "CB") {
    for (let n = 0; n < N; n++) total += C[i * N + n] * B[j * N + n];
    return total;
  }
  for (let n = 0; n < N; n++) {
    let part = 0;
    if (mode === "CwBdtw") for (let d = 0; d < D; d++) part += Math.exp(A[d * N + n] * E[d]) * dt[j * D + d];
    else for (let d = 0; d < D; d++) part += Math.exp(A[d * N + n] * E[d]);
    total += mode === "ww" ? part : part * C[i * N + n] * B[j * N + n];
  }
  return total / D;
}

function addStep(walk, E, step) {
  for (let d = 0; d < walk.D; d++) E[d] += walk.dt[step * walk.D + d];
}

// What step i reads: added to `out` by pixels. floor: end where an entry is below it.
function addRow(walk, i, mode, out, floor = -Infinity) {
  const E = new Float64Array(walk.D);
  for (let j = i; j >= i - (i % walk.line); j--) {
    const value = entry(walk, i, j, E, mode);
    if (value < floor) break;
    out[walk.order[j]] += value;
    addStep(walk, E, j);
  }
}

// Who reads step j: added to `out` by pixels.
function addColumn(walk, j, mode, out) {
  const E = new Float64Array(walk.D);
  const end = Math.min(j - (j % walk.line) + walk.line, walk.order.length);
  for (let i = j; i < end; i++) {
    if (i > j) addStep(walk, E, i);
    out[walk.order[i]] += entry(walk, i, j, E, mode);
  }
}

// The map of one pixel along some walks, (H * W) row by row.
function pixelMap(walks, pixel, mode, reads) {
  const out = new Float64Array(walks[0].order.length);
  for (const walk of walks) (reads ? addRow : addColumn)(walk, walk.stepOf[pixel], mode, out);
  return out;
}

// Walks are kept up to 32 million step sizes (256 MB); the oldest go first.
const KEPT = 32e6;
const kept = new Map();

function walksOf(data, image, index) {
  const key = `${image} ${index}`;
  if (!kept.has(key)) kept.set(key, makeWalks(data.layers[index], data.images[image].scans[index]));
  const walks = kept.get(key);
  kept.delete(key);
  kept.set(key, walks);
  let size = 0;
  for (const some of kept.values()) for (const walk of some) size += walk.dt.length;
  for (const [old, some] of kept) {
    if (size <= KEPT || old === key) break;
    for (const walk of some) size -= walk.dt.length;
    kept.delete(old);
  }
  return walks;
}
