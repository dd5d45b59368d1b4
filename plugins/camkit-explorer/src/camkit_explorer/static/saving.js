// What the page shows as one picture to be saved: panels side by side, and below them what is said of them.

const PAD = 16, GAP = 12, LINE = 20, WIDEST = 1800, NARROWEST = 420; // pixels
const FAMILY = "system-ui, 'Noto Sans', 'Noto Sans CJK SC', sans-serif";
const TITLE = `600 17px ${FAMILY}`, TEXT = `13px ${FAMILY}`, INK = "#1c1d21";

// panels: [{ layers, text }], canvases of one size over each other; bar: the canvas of the scale with the texts of its
// `ticks`; lines: texts, of which empty ones are left out.
export function composed({ title, panels, bar, ticks, lines }) {
  const [first] = panels[0].layers;
  const across = Math.min(first.width, (WIDEST - GAP * (panels.length - 1)) / panels.length), scale = across / first.width;
  const high = Math.round(first.height * scale), wide = Math.round(across * panels.length + GAP * (panels.length - 1));
  const width = Math.max(NARROWEST, wide), room = width - 2 * PAD;
  const measure = new OffscreenCanvas(1, 1).getContext("2d");
  const fitted = (text, font, space) => { measure.font = font; return wrapped(measure, text, space).map((line) => ({ line, font })); };
  const below = panels.map(({ text }) => text ? fitted(text, TEXT, across) : []);
  const above = fitted(title, TITLE, room), after = lines.filter(Boolean).flatMap((text) => fitted(text, TEXT, room));
  const captions = LINE * Math.max(...below.map((part) => part.length)), top = high + captions + PAD;
  const scaleTop = top + LINE * above.length, textTop = scaleTop + 12 + LINE + 8;
  const canvas = new OffscreenCanvas(width, textTop + LINE * after.length + PAD / 2), context = canvas.getContext("2d");
  const write = (part, x, y) => part.forEach(({ line, font }, number) => { context.font = font; context.fillText(line, x, y + LINE * number + 14); });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = INK;
  context.imageSmoothingQuality = "high";
  panels.forEach(({ layers }, place) => {
    const x = Math.round((width - wide) / 2 + place * (across + GAP));
    for (const layer of layers) context.drawImage(layer, x, 0, Math.round(across), high);
    write(below[place], x, high + 4);
  });
  write(above, PAD, top);
  context.drawImage(bar, PAD, scaleTop + 4, room, 12);
  context.font = TEXT;
  ticks.forEach((tick, place) => {
    context.textAlign = ["left", "center", "right"][place];
    context.fillText(tick, [PAD, width / 2, width - PAD][place], scaleTop + 32);
  });
  context.textAlign = "left";
  write(after, PAD, textTop);
  return canvas;
}

// The file of a PNG with one more text in it, in ASCII, right behind its header.
export function withText(png, key, text) {
  const ascii = (words) => Uint8Array.from(words, (sign) => sign.charCodeAt(0));
  const data = ascii(`tEXt${key}\0${text}`), chunk = new Uint8Array(data.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, data.length - 4);
  chunk.set(data, 4);
  view.setUint32(data.length + 4, checksum(data));
  const header = 33; // the signature and the chunk IHDR
  return new Blob([png.slice(0, header), chunk, png.slice(header)], { type: "image/png" });
}

// CRC-32, as a PNG has it.
function checksum(data) {
  let rest = 0xffffffff;
  for (const byte of data) {
    rest ^= byte;
    for (let bit = 0; bit < 8; bit++) rest = (rest >>> 1) ^ (rest & 1 ? 0xedb88320 : 0);
  }
  return (rest ^ 0xffffffff) >>> 0;
}

// A text in lines of at most `room` pixels: broken at blanks, and inside of what has none.
function wrapped(context, text, room) {
  const lines = [];
  let line = "";
  const fits = (more) => context.measureText(more).width <= room;
  for (const word of text.split(/(?<= )/)) {
    if (fits((line + word).trimEnd())) { line += word; continue; }
    if (line) lines.push(line.trimEnd());
    line = "";
    for (const sign of word) {
      if (line && !fits(line + sign)) { lines.push(line); line = ""; }
      line += sign;
    }
  }
  return line.trim() ? [...lines, line.trimEnd()] : lines;
}
