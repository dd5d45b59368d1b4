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

const ROUNDING = 64 * 2 ** -23; // of the peak: values of one sign that are not above it are no evidence (evidence.py)

// What is drawn of a map, by its view: both signs, what speaks for the class, or what speaks against it.
export function seen({ values }, view) {
  const least = ROUNDING * peakOf(values);
  const part = (sign) => {
    const found = values.map((value) => Math.max(sign * value, 0));
    return peakOf(found) > least ? found : found.fill(0);
  };
  if (view !== "signed") return part(view === "for" ? 1 : -1);
  const against = part(-1);
  return part(1).map((value, index) => value - against[index]);
}

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
  const context = canvas.getContext("2d"), place = inPixels(box, canvas);
  const [x, y, width, height] = inside(place, canvas);
  context.imageSmoothingQuality = "high";
  context.drawImage(photograph, 0, 0, canvas.width, canvas.height);
  context.fillStyle = `rgba(0, 0, 0, ${1 - DIM})`;
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  context.rect(x, y, width, height);
  context.fill("evenodd");
  if (width > 0 && height > 0) {
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.imageSmoothingEnabled = false;
    if (look.cells) context.drawImage(heat(look, viewed(map, look), map.width, map.height), ...place);
    else context.drawImage(heat(look, between(map, look, place, [x, y, width, height]), width, height), x, y);
    context.restore();
  }
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

// The whole pixels of a canvas that a box covers, as [x, y, width, height]: as camkit's pictures have them.
function inside([x, y, width, height], canvas) {
  const left = Math.max(0, whole(x)), top = Math.max(0, whole(y));
  return [left, top, Math.min(canvas.width, whole(x + width)) - left, Math.min(canvas.height, whole(y + height)) - top];
}

const whole = (value) => (Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value)); // halves to the even one

// What is drawn of the cells; of one colour everywhere nothing, as that would look like evidence.
const viewed = (map, look) => isFlat(map) ? map.values.map(() => 0) : seen(map, look.view);

// Values in their colours, transparent where they say nothing.
function heat(look, values, width, height) {
  const image = new ImageData(width, height), pixels = image.data;
  const colours = palette(look), signed = look.view === "signed", scale = look.scale || 1;
  for (let place = 0, at = 0; place < values.length; place++, at += 4) {
    const t = Math.max(-1, Math.min(1, values[place] / scale));
    const colour = colours[Math.round((signed ? (t + 1) / 2 : t) * 255)];
    pixels[at] = colour[0];
    pixels[at + 1] = colour[1];
    pixels[at + 2] = colour[2];
    pixels[at + 3] = 255 * colour[3];
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// What was computed last: opacity, colours and scale change the same values.
const sampled = [];
const KEPT = 3; // a map, another one beside it, and their difference

// A map, stretched over `place`, at the middles of the pixels of `part`, both [x, y, width, height]: by Keys' kernel,
// cut off at the map's extremes, as in the pictures of camkit, which a test holds against these.
function between(map, look, place, part) {
  const key = JSON.stringify([look.view, place, part]);
  const known = sampled.find((one) => one.map === map && one.key === key);
  if (known) return known.values;
  const cellValues = viewed(map, look);
  const [x, y, width, height] = part, values = new Float32Array(width * height), line = new Float64Array(map.width);
  const columns = taps(map.width, place[0], place[2], x, width), rows = taps(map.height, place[1], place[3], y, height);
  let low = Infinity, high = -Infinity;
  for (const value of cellValues) { low = Math.min(low, value); high = Math.max(high, value); }
  for (let row = 0, at = 0; row < height; row++) {
    line.fill(0);
    for (let tap = 4 * row; tap < 4 * row + 4; tap++) {
      const weight = rows.weights[tap], from = rows.cells[tap] * map.width;
      for (let column = 0; column < map.width; column++) line[column] += weight * cellValues[from + column];
    }
    for (let column = 0; column < width; column++, at++) {
      const tap = 4 * column, { cells, weights } = columns;
      const value = weights[tap] * line[cells[tap]] + weights[tap + 1] * line[cells[tap + 1]]
        + weights[tap + 2] * line[cells[tap + 2]] + weights[tap + 3] * line[cells[tap + 3]];
      values[at] = Math.max(low, Math.min(high, value));
    }
  }
  sampled.unshift({ map, key, values });
  sampled.length = Math.min(sampled.length, KEPT);
  return values;
}

// For each of `pixels` from `first` on the four of `count` cells, which lie over [start, start + length), that it is
// made of, with their weights (a = -0.5); the outermost cells go on outside.
function taps(count, start, length, first, pixels) {
  const cells = new Int32Array(4 * pixels), weights = new Float64Array(4 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = ((first + pixel + 0.5 - start) / length) * count - 0.5;
    const centre = Math.max(-0.5, Math.min(count - 0.5, place)), before = Math.floor(centre) - 1;
    for (let tap = 0; tap < 4; tap++) {
      const x = Math.abs(centre - before - tap);
      cells[4 * pixel + tap] = Math.max(0, Math.min(count - 1, before + tap));
      weights[4 * pixel + tap] = x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    }
  }
  return { cells, weights };
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

// What is covered, over `place`, [x, y, width, height].
export function drawMask(context, mask, side, place) {
  const image = new ImageData(side, side), pixels = new Uint32Array(image.data.buffer), colour = new Uint32Array(Uint8Array.of(235, 236, 240, 215).buffer)[0];
  for (let index = 0; index < pixels.length; index++) if (mask[index]) pixels[index] = colour;
  const small = new OffscreenCanvas(side, side);
  small.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(small, ...place);
}

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
