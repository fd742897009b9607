// Numbers out of the page's text, as packing.py wrote them.

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

function unpackFloats(packed) {
  return new Float32Array(bytesOf(typeof packed === "string" ? packed : packed.float32).buffer);
}

// (K, M, P): float32, or 16 or 20 bits each, relative to the largest of its (k, p).
function unpack(packed) {
  if (packed.float32 !== undefined) return unpackFloats(packed);
  const [K, M, P] = packed.shape, half = packed.scale;
  const largest = unpackFloats(packed.largest);
  const high = new Uint16Array(bytesOf(packed.high).buffer);
  const low = packed.low === undefined ? null : bytesOf(packed.low);
  const values = new Float64Array(K * M * P);
  for (let k = 0, i = 0; k < K; k++) {
    for (let m = 0; m < M; m++) {
      for (let p = 0; p < P; p++, i++) {
        const whole = low ? high[i] * 16 + ((low[i >> 1] >> (4 * (i % 2))) & 15) : high[i];
        values[i] = ((whole - half) / half) * largest[k * P + p];
      }
    }
  }
  return values;
}

function inWords(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e4 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// The largest distance from 0 in some maps, never 0 itself.
function limitOf(...maps) {
  let limit = 0;
  for (const map of maps) for (const value of map) if (Math.abs(value) > limit) limit = Math.abs(value);
  return limit || 1;
}
