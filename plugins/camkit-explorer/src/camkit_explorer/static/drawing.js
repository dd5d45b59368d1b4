// Maps on their way to the eye: unpacking, drawing, measuring. Nothing here knows the page or the server.

// --- packed maps (packing.py) ---------------------------------------------------------------------------------

const HALVES = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  HALVES[bits] = (bits & 0x8000 ? -1 : 1) * size;
}

// The header, with `map(i)`: the i-th map as { values: Float64Array [height * width], width, height, peak }.
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const { count, height, width } = header, cells = height * width;
  const scales = new Float64Array(buffer, 4 + length, count);
  const halves = new Uint16Array(buffer, 4 + length + 8 * count, count * cells);
  const kept = new Map();
  header.map = (index) => {
    if (!kept.has(index)) {
      const part = halves.subarray(index * cells, (index + 1) * cells);
      const values = Float64Array.from(part, (bits) => HALVES[bits] * scales[index]);
      kept.set(index, { values, width, height, peak: peakOf(values) });
    }
    return kept.get(index);
  };
  return header;
}

export const peakOf = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

// --- drawing --------------------------------------------------------------------------------------------------

// What is drawn of a value: signed, what speaks for the class, or what speaks against it.
export const VIEWS = { signed: (v) => v, for: (v) => Math.max(v, 0), against: (v) => Math.max(-v, 0) };
const RASTER = 256; // pixels of the longer side of the heat; the canvas smooths the rest
const GAMMA = 0.8; // opacity grows with the evidence, a little faster at first, so that weak evidence shows
const BLANK = 112; // the grey of zero in the tables, on which a bar shows how opaque its colours are
const DIM = 0.55; // how bright the part is that the model did not see

// The 256 colours of a look, from the lowest to the highest value: [red, green, blue, opacity from 0 to 1].
function palette({ view, table, opacity }) {
  return table.map((colour, index) => {
    const place = view === "signed" ? index / 127.5 - 1 : index / 255;
    return [...colour, opacity * Math.abs(place) ** GAMMA];
  });
}

export const isFlat = (map) => map.values.every((value) => value === map.values[0]);

// A photograph with a map over the part of it that the model saw; the rest is dimmed.
// look: { view, table, scale, opacity, cells }; box: fractions of the photograph [left, top, right, bottom].
export function drawMap(canvas, photograph, map, box, look) {
  [canvas.width, canvas.height] = sizeOf(photograph);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(photograph, 0, 0, canvas.width, canvas.height);
  const [x, y, width, height] = inPixels(box, canvas);
  context.save();
  context.fillStyle = `rgba(0, 0, 0, ${1 - DIM})`;
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  context.rect(x, y, width, height);
  context.fill("evenodd");
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.imageSmoothingEnabled = !look.cells;
  context.imageSmoothingQuality = "high";
  context.drawImage(heat(map, width / height, look), x, y, width, height);
  context.restore();
  const line = Math.max(1, Math.round(canvas.width / 500));
  context.strokeStyle = "#fff";
  context.lineWidth = line;
  context.strokeRect(x - line / 2, y - line / 2, width + line, height + line); // just outside
}

// Of a canvas for a photograph: small ones are enlarged, or the map over them would be coarse.
const LONGER_SIDE = 900;
export function sizeOf({ width, height }) {
  const scale = Math.max(1, LONGER_SIDE / Math.max(width, height));
  return [Math.round(width * scale), Math.round(height * scale)];
}

export function inPixels([left, top, right, bottom], { width, height }) {
  return [left * width, top * height, (right - left) * width, (bottom - top) * height];
}

// The map in its colours, transparent where it says nothing; bilinear between the middles of the cells.
function heat(map, proportion, look) {
  const wide = proportion >= 1;
  const width = look.cells ? map.width : Math.round(wide ? RASTER : RASTER * proportion);
  const height = look.cells ? map.height : Math.round(wide ? RASTER / proportion : RASTER);
  const image = new ImageData(Math.max(1, width), Math.max(1, height)), pixels = image.data;
  const across = places(image.width, map.width), down = places(image.height, map.height);
  const colours = palette(look), signed = look.view === "signed", scale = look.scale || 1;
  const seen = isFlat(map) ? () => 0 : VIEWS[look.view]; // one colour everywhere would look like evidence
  const { values, width: stride } = map;
  for (let y = 0, at = 0; y < image.height; y++) {
    const upper = down.first[y] * stride, lower = down.second[y] * stride, low = down.near[y];
    for (let x = 0; x < image.width; x++, at += 4) {
      const left = across.first[x], right = across.second[x], near = across.near[x];
      const above = values[upper + left] * (1 - near) + values[upper + right] * near;
      const below = values[lower + left] * (1 - near) + values[lower + right] * near;
      const t = Math.max(-1, Math.min(1, seen(above * (1 - low) + below * low) / scale));
      const colour = colours[Math.round((signed ? (t + 1) / 2 : t) * 255)];
      pixels[at] = colour[0];
      pixels[at + 1] = colour[1];
      pixels[at + 2] = colour[2];
      pixels[at + 3] = 255 * colour[3];
    }
  }
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// For each of so many pixels the two cells that it lies between, and how near it is to the second.
function places(pixels, cells) {
  const first = new Int32Array(pixels), second = new Int32Array(pixels), near = new Float64Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = Math.max(0, Math.min(cells - 1, ((pixel + 0.5) / pixels) * cells - 0.5));
    first[pixel] = Math.floor(place);
    second[pixel] = Math.min(first[pixel] + 1, cells - 1);
    near[pixel] = place - first[pixel];
  }
  return { first, second, near };
}

// The colours from the lowest to the highest value, as opaque as in the picture.
export function drawBar(canvas, look) {
  const image = new ImageData(256, 1);
  palette(look).forEach(([red, green, blue, cover], index) => {
    const mixed = [red, green, blue].map((channel) => BLANK * (1 - cover) + channel * cover);
    image.data.set([...mixed, 255], 4 * index);
  });
  const line = new OffscreenCanvas(256, 1);
  line.getContext("2d").putImageData(image, 0, 0);
  canvas.getContext("2d").drawImage(line, 0, 0, canvas.width, canvas.height);
}

// --- a mask of side x side cells over what the model sees -----------------------------------------------------

export function paint(mask, side, x, y, radius, proportion) {
  const across = proportion >= 1 ? radius / proportion : radius, down = proportion >= 1 ? radius : radius * proportion;
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      const dx = ((column + 0.5) / side - x) / across, dy = ((row + 0.5) / side - y) / down;
      if (dx * dx + dy * dy <= 1) mask[row * side + column] = 1;
    }
  }
}

export function paintCell(mask, side, map, row, column) {
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const inside = Math.floor(((y + 0.5) / side) * map.height) === row && Math.floor(((x + 0.5) / side) * map.width) === column;
      if (inside) mask[y * side + x] = 1;
    }
  }
}

// The sum of a map over the mask; of a cell that is covered in part, that part counts.
export function sumUnder(mask, side, map) {
  const shares = new Float64Array(map.values.length);
  const rows = overlaps(side, map.height), columns = overlaps(side, map.width);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (!mask[y * side + x]) continue;
      for (const [row, high] of rows[y]) {
        for (const [column, wide] of columns[x]) shares[row * map.width + column] += high * wide;
      }
    }
  }
  return shares.reduce((sum, share, index) => sum + share * map.values[index], 0);
}

// For each of `side` cells of [0, 1] the coarse cells that it touches, with the share of these that it fills.
function overlaps(side, cells) {
  return Array.from({ length: side }, (_, index) => {
    const begin = (index / side) * cells, end = ((index + 1) / side) * cells, found = [];
    for (let cell = Math.floor(begin); cell < Math.min(cells, Math.ceil(end)); cell++) {
      found.push([cell, Math.min(end, cell + 1) - Math.max(begin, cell)]);
    }
    return found;
  });
}

export function packMask(mask) {
  const bytes = new Uint8Array(mask.length / 8);
  mask.forEach((bit, index) => { bytes[index >> 3] |= bit << (7 - (index & 7)); });
  return btoa(String.fromCharCode(...bytes));
}

// --- charts ---------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Lines over the share of changed pixels. lines: [{ name, values }]; the first one is the map's.
export function chart(label, lines, text = figure) {
  const width = 300, height = 150, left = 34, bottom = 128, right = 292, top = 8;
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const high = niceAbove(Math.max(...known, 1e-9)), low = Math.min(0, ...known);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const made = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of [low, (low + high) / 2, high]) {
    made.append(shape("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" }));
    made.append(shape("text", { x: left - 5, y: y(value) + 3, class: "end" }, text(value)));
  }
  made.append(shape("text", { x: left, y: height - 6 }, "0 %"), shape("text", { x: right, y: height - 6, class: "end" }, "100 % of the pixels"));
  [...lines.entries()].reverse().forEach(([index, line]) => {
    const points = line.values.map((value, step) => value === null ? null : `${left + (step / (line.values.length - 1)) * (right - left)},${y(value)}`);
    made.append(shape("polyline", { points: points.filter(Boolean).join(" "), class: `line line-${index}` }));
  });
  return made;
}

// The next of 1, 2 and 5 times a power of ten.
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * (1 - 1e-9));
}

// --- numbers --------------------------------------------------------------------------------------------------

// Three digits, and a sign where it is asked for.
export function figure(value, { sign = false } = {}) {
  const size = Math.abs(value);
  const far = size !== 0 && (size < 1e-3 || size >= 1e5);
  const text = far ? size.toExponential(2) : String(Number(size.toPrecision(3)));
  return (value < 0 ? "−" : sign && value > 0 ? "+" : "") + text;
}

export function percent(value) {
  const share = 100 * value;
  if (share > 0 && share < 0.1) return "< 0.1 %";
  return `${share < 10 ? share.toFixed(1) : share > 99.9 && share < 100 ? "> 99.9" : share.toFixed(0)} %`;
}
