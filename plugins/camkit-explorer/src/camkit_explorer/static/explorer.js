// The page of the explorer. All that is shown follows from `state`; `render` draws it. Classes, opacity, colours
// and scale change without a request, because the maps of all classes are here already.

import { composed, withText } from "./saving.js";
import { chart, drawBar, drawMap, drawMask, figure, inPixels, isFlat, packMask, paint, paintCell, peakOf, percent, seen, sizeOf, sumUnder, unpack } from "./drawing.js";

const SHOWN_CLASSES = 8;
const $ = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

const state = {
  session: null, // what there is
  model: 0, facts: null, // the model and what the page knows of it
  photograph: null, bitmap: null, failed: false,
  backend: "native", method: "gradcam", layer: 0,
  found: null, // the latest answer: scores, box, maps
  maps: new Map(), // by class, those that are here
  target: null, // the class that is shown
  scale: null, held: null, // that of the map that is shown, and the one that is kept
  other: null, // the map beside it
  mask: null, covered: null, covering: false, stroke: null,
  cell: null, // [row, column] that is read
};

// --- asking the server ----------------------------------------------------------------------------------------

const PROMPT = 150; // milliseconds: who waits no longer need not be told, and telling takes its time as well
let open = 0;

function countOpen(by) {
  open += by;
  const tell = () => document.body.toggleAttribute("data-busy", open > 0);
  if (by > 0) setTimeout(tell, PROMPT);
  else if (open === 0) tell();
}

async function ask(path, body, { headers = {}, signal } = {}) {
  countOpen(1);
  try {
    const answer = await fetch(path, body === undefined ? { signal } : { method: "POST", body, headers, signal });
    const type = answer.headers.get("content-type") || "";
    if (!answer.ok) {
      throw new Error(type.includes("json") ? (await answer.json()).error : (await answer.text()).trim() || `HTTP ${answer.status}`);
    }
    return type.includes("json") ? await answer.json() : await answer.arrayBuffer();
  } catch (error) {
    // fetch says only TypeError when nobody answers.
    throw error instanceof TypeError ? new Error("The explorer does not answer: is `camkit explore` still running?") : error;
  } finally {
    countOpen(-1);
  }
}

const question = (more = {}) => JSON.stringify({
  model: state.model, photograph: state.photograph.number, backend: state.backend, method: state.method,
  layer: state.facts.layers[state.layer].name, ...more,
});

const PATIENCE = 1000; // milliseconds that an answer may still take when another one is wanted

// One request at a time; of those that come meanwhile only the last is made, and the server gives up the one before
// if it takes long. failed: what follows from an error. Its `stop` ends what runs.
function latest(work, failed = () => {}) {
  let running = null, again = false;
  const call = async () => {
    if (running) {
      const before = running;
      again = true;
      setTimeout(() => before.abort(), PATIENCE);
      return;
    }
    do {
      again = false;
      running = new AbortController();
      try {
        await work(running.signal);
      } catch (error) {
        if (!again && error.name !== "AbortError") { complain(error); failed(); }
      }
    } while (again);
    running = null;
  };
  call.stop = () => running?.abort();
  return call;
}

function complain(error) {
  if (error.name === "AbortError") return; // it was given up on purpose
  $("alert").textContent = error.message;
  $("alert").hidden = false;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => { $("alert").hidden = true; }, 10_000);
}

// What `work` returns; nothing where it fails, which is told.
const calm = (work) => async (...given) => { try { return await work(...given); } catch (error) { return complain(error); } };

// --- photographs ----------------------------------------------------------------------------------------------

const openPhotograph = calm(async (photograph) => {
  state.photograph = photograph;
  state.bitmap = state.found = state.target = state.other = null;
  state.maps.clear();
  state.failed = false;
  forgetCover();
  $("classes").replaceChildren();
  renderTitle();
  markPhotograph();
  const [bitmap] = await Promise.all([pictureOf(photograph), explain()]);
  if (state.photograph !== photograph) return;
  state.bitmap = bitmap;
  state.failed = !bitmap || !state.found;
  if (bitmap) $("stage").style.setProperty("--ratio", bitmap.width / bitmap.height);
  if (state.failed) $("picture").width = $("marks").width = 1; // not that of another photograph
  render();
});

const pictureOf = calm(async (photograph) => {
  const data = await ask(`/api/models/${state.model}/photographs/${photograph.number}/picture`);
  return createImageBitmap(new Blob([data]));
});

const take = calm(async (files) => {
  for (const file of files) {
    if (file.size > state.session.limits.upload) throw new Error(`${file.name} is larger than ${state.session.limits.upload >> 20} MiB`);
    const entry = await ask("/api/photographs", file, { headers: { "X-Name": encodeURIComponent(file.name || "pasted.png") } });
    state.session.photographs.push(entry);
    listPhotographs();
    await openPhotograph(entry);
  }
});

function listPhotographs() {
  const all = state.session.photographs;
  $("strip").hidden = all.length < 2;
  if (all.length < 2) return;
  const known = $("photographs").children.length;
  for (const entry of all.slice(known)) {
    const button = make("button", { type: "button", title: entry.name });
    button.dataset.number = entry.number;
    button.append(make("img", { src: `/api/photographs/${entry.number}/thumbnail`, alt: entry.name, loading: "lazy" }));
    button.addEventListener("click", () => openPhotograph(entry));
    const item = make("li");
    item.append(button);
    $("photographs").append(item);
  }
  const more = all.length - 1;
  if (state.session.is_cut && known === 0) $("photographs").append(make("li", { class: "hint" }, `only the first ${more + 1} are listed`));
  markPhotograph();
}

function markPhotograph() {
  const strip = $("photographs");
  for (const button of strip.querySelectorAll("button")) {
    const current = Number(button.dataset.number) === state.photograph.number;
    button.setAttribute("aria-current", String(current));
    if (current) strip.scrollLeft = button.offsetLeft - (strip.clientWidth - button.offsetWidth) / 2;
  }
}

function stepPhotograph(by) {
  const all = state.session.photographs, next = all[all.indexOf(state.photograph) + by];
  if (next) openPhotograph(next);
}

// --- maps -----------------------------------------------------------------------------------------------------

const explain = latest(async (signal) => {
  for (const stale of [needTarget, compare, tests]) stale.stop();
  const asked = question();
  const found = unpack(await ask("/api/maps", asked, { signal }));
  if (asked !== question()) return; // of another photograph or layer; the next one is on its way
  const { backend, method } = JSON.parse(asked);
  state.found = { ...found, backend, method }; // what is said of it: the controls may have moved on
  state.maps.clear();
  keep(found);
  state.held = chosen("scale") === "held" ? state.held : null;
  state.ranking = [...found.likely.keys()].sort((a, b) => found.likely[b] - found.likely[a]);
  if (state.target === null) state.target = state.ranking[0];
  afterMap();
  needTarget();
}, showWhatThereIs);

// After an error the controls go back to the map that is shown.
async function showWhatThereIs() {
  if (!state.found) return;
  const { backend, method, layer } = state.found;
  state.method = method;
  state.layer = state.facts.layers.findIndex(({ name }) => name === layer);
  $("layer").value = state.layer;
  nameLayer();
  $("backend").value = backend;
  await useBackend(backend);
  render();
}

function keep(found) {
  found.classes.forEach((index, place) => state.maps.set(index, found.map(place)));
}

const mapOf = (index) => state.maps.get(state.found.shared ? state.found.classes[0] : index);

// The map of the class that is shown, where it did not come with the others.
const needTarget = latest(async (signal) => {
  const { target } = state;
  if (!state.found || mapOf(target)) return;
  const asked = question();
  const found = unpack(await ask("/api/maps", question({ classes: [target] }), { signal }));
  if (asked !== question()) return;
  keep(found);
  Object.assign(state.found.remarks, found.remarks);
  afterMap();
});

function show(index) {
  state.target = index;
  afterMap();
  needTarget();
}

// Whatever belongs to the former map goes.
function afterMap() {
  $("tested").replaceChildren();
  state.other = null;
  render();
  if ($("beside").value) compare();
}

const compare = latest(async (signal) => {
  const asked = question({ target: state.target, beside_backend: $("beside").value, beside_method: $("beside-method").value });
  const found = unpack(await ask("/api/beside", asked, { signal }));
  const now = question({ target: state.target, beside_backend: $("beside").value, beside_method: $("beside-method").value });
  if (asked !== now) return;
  const { beside_backend: backend, beside_method: method } = JSON.parse(asked);
  state.other = { ...found, backend, method };
  render();
});

const methodsOf = (() => {
  const known = new Map();
  return async (backend) => {
    if (!known.has(backend)) known.set(backend, await ask(`/api/backends/${encodeURIComponent(backend)}`));
    return known.get(backend);
  };
})();

// --- drawing --------------------------------------------------------------------------------------------------

function look(map) {
  const view = chosen("view"), own = peakOf(seen(map, view));
  const scales = {
    map: () => own,
    classes: () => Math.max(...[...state.maps.values()].map((one) => one.peak)),
    held: () => (state.held ??= own),
  };
  return { view, table: table(), scale: scales[chosen("scale")](), opacity: Number($("opacity").value), cells: $("cells").checked };
}

const table = () => state.session.colours[$("colours").value || chosen("view")];

function render() {
  renderTitle();
  if (state.found) { renderClasses(); renderMap(); renderCovered(); }
  $("done").value = "";
}

function renderTitle() {
  const name = state.photograph ? state.photograph.name : "";
  const title = $("shown");
  const waiting = state.failed ? `${name} could not be explained` : "Explaining …";
  title.replaceChildren(state.found && state.target !== null ? nameOf(state.target) : waiting);
  if (state.found && state.target !== null) title.append(" ", make("small", {}, `${valueOf(state.found, state.target)} · ${state.found.method} · ${layerName()} · ${name}`));
  document.title = state.found ? `${nameOf(state.target)} · camkit explorer` : "camkit explorer";
}

const nameOf = (index) => state.facts.classes[index];
const layerName = () => state.found.layer;
const valueOf = (answer, index) => answer.kind === "none" ? figure(answer.likely[index]) : percent(answer.likely[index]);

function renderMap() {
  const map = mapOf(state.target);
  $("figure").toggleAttribute("data-waiting", !map);
  if (!state.bitmap || !map) return;
  const drawn = look(map);
  drawMap($("picture"), state.bitmap, map, state.found.box, drawn);
  $("picture").setAttribute("aria-label", `${state.photograph.name} with the map of ${nameOf(state.target)}. ${inWords(map)}`);
  drawBar($("bar"), drawn);
  state.scale = drawn.scale;
  const ends = endsOf(drawn), beyond = beyondOf(map, drawn);
  [...$("ticks").children].forEach((tick, place) => { tick.textContent = beyond[place] + figure(ends[place], { sign: true }); });
  const nothing = drawn.view === "signed" ? isFlat(map) : !seen(map, drawn.view).some(Boolean);
  const said = [
    nothing ? { signed: "The map is constant: it says nothing.", for: `Nothing in this map speaks for ${nameOf(state.target)}.`, against: `Nothing in this map speaks against ${nameOf(state.target)}.` }[drawn.view] : "",
    state.found.shared ? `${state.found.method} knows no class: its map is the same for all.` : "",
    ...(state.found.remarks[state.target] || []), ...state.found.notes, state.facts.note,
  ].filter(Boolean);
  $("notes").textContent = said.join(" ");
  $("notes").hidden = !said.length;
  renderOther(map, drawn);
  renderMarks();
}

const endsOf = ({ view, scale }) => ({ signed: [-scale, 0, scale], for: [0, scale / 2, scale], against: [0, -scale / 2, -scale] })[view];

// What stands before the ends of the bar where values lie beyond them.
function beyondOf(map, { view, scale }) {
  const above = map.values.some((value) => value > scale) ? "≥ " : "", below = map.values.some((value) => value < -scale) ? "≤ " : "";
  return { signed: [below, "", above], for: ["", "", above], against: ["", "", below] }[view];
}

function inWords(map) {
  const high = map.values.indexOf(Math.max(...map.values)), row = Math.floor(high / map.width) + 1, column = (high % map.width) + 1;
  return `${map.height} by ${map.width} cells; the highest value is ${figure(map.values[high])} in row ${row}, column ${column}.`;
}

function renderOther(map, drawn) {
  const other = state.other && state.other.map(0);
  $("other").hidden = $("first-text").hidden = $("agreement").hidden = !other;
  $("between").hidden = !other || state.other.difference === null;
  if (!other) return;
  const same = state.other.difference !== null;
  const { backend, method } = state.other;
  const scale = same ? drawn.scale : peakOf(seen(other, drawn.view));
  drawMap($("second"), state.bitmap, other, state.found.box, { ...drawn, scale });
  $("first-text").textContent = `${state.found.backend} ${state.found.method}`;
  $("second-text").textContent = `${backend} ${method}${same ? "" : ", on a scale of its own"}`;
  $("second").setAttribute("aria-label", `The map of ${backend} ${method}. ${inWords(other)}`);
  if (same) {
    const values = map.values.map((value, index) => value - other.values[index]);
    drawMap($("difference"), state.bitmap, { ...map, values }, state.found.box, { ...drawn, view: "signed", table: state.session.colours.signed, scale: map.peak });
    $("difference-text").textContent = "difference, on the same scale";
    $("difference").setAttribute("aria-label", "The difference of the two maps");
  }
  const rank = state.other.spearman, parts = [
    rank === null ? "Their cells cannot be ranked against each other." : `Rank correlation ${rank.toFixed(3)}: ${rank > 0.95 ? "the same order of cells" : rank > 0.5 ? "a similar order of cells" : "another order of cells"}.`,
    same ? `Largest difference ${figure(state.other.difference)} of the peak.` : "Other methods have other units, so there is no difference.",
  ];
  $("agreement").textContent = `${state.found.backend} ${state.found.method} and ${backend} ${method}: ${parts.join(" ")}`;
}

function renderClasses() {
  const rows = state.ranking.slice(0, SHOWN_CLASSES), list = $("classes");
  if (!rows.includes(state.target)) rows.push(state.target);
  const shown = state.found.likely, after = state.covered && state.covered.likely;
  const low = state.found.kind === "none" ? Math.min(0, ...shown) : 0, high = state.found.kind === "none" ? Math.max(...shown) : 1;
  const wide = (value) => `${100 * Math.max(0, Math.min(1, (value - low) / (high - low || 1)))}%`;
  list.replaceChildren(...rows.map((index) => {
    const row = make("li", { role: "option", id: `class-${index}`, "aria-selected": String(index === state.target) });
    row.dataset.index = index;
    const change = after ? `${valueOf(state.found, index)} → ${valueOf(state.covered, index)}` : valueOf(state.found, index);
    row.append(make("span", { class: "name" }, nameOf(index)), make("span", { class: "value" }, change));
    const bar = make("span", { class: "bar" }), now = make("i");
    now.style.width = wide((after || shown)[index]);
    bar.append(now);
    if (after) {
      const before = make("b");
      before.style.width = wide(shown[index]);
      bar.append(before);
    }
    row.append(bar);
    return row;
  }));
  list.setAttribute("aria-activedescendant", `class-${state.target}`);
}

// --- reading the map, and covering ----------------------------------------------------------------------------

// Once a frame: a question to the server, which comes first, shares the processor with what is drawn.
const renderMarks = (() => {
  let due = false;
  return () => {
    if (!due) requestAnimationFrame(() => { due = false; drawMarks(); });
    due = true;
  };
})();

function drawMarks() {
  if (!state.found || !state.bitmap) return;
  const canvas = $("marks"), map = mapOf(state.target);
  [canvas.width, canvas.height] = sizeOf(state.bitmap);
  const context = canvas.getContext("2d"), [x, y, width, height] = inPixels(state.found.box, canvas);
  if (state.mask) drawMask(context, state.mask, state.session.limits.side, [x, y, width, height]);
  if (state.cell && map) {
    const [row, column] = state.cell, line = Math.max(1, canvas.width / 400);
    const place = [x + (column / map.width) * width, y + (row / map.height) * height, width / map.width, height / map.height];
    for (const [colour, thick] of [["rgba(0, 0, 0, 0.7)", 3 * line], ["#fff", line]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.strokeRect(...place);
    }
  }
}

function read(cell) {
  const map = state.found && mapOf(state.target);
  if (!map) return;
  state.cell = cell;
  if (state.bitmap) renderMarks();
  $("needle").hidden = !cell;
  if (!cell) { $("reading").textContent = "Point at the map to read its value."; return; }
  const value = map.values[cell[0] * map.width + cell[1]], share = map.peak ? value / map.peak : 0;
  $("reading").textContent = `Row ${cell[0] + 1}, column ${cell[1] + 1} of ${map.height} × ${map.width}: ${figure(value, { sign: true })} (${figure(100 * share, { sign: true })} % of the peak)`;
  const [low, , high] = endsOf(look(map)), place = (value - low) / (high - low || 1);
  $("needle").style.left = `${100 * Math.max(0, Math.min(1, place))}%`;
}

// Where a pointer is over what the model sees: fractions, which lie outside [0, 1] elsewhere.
function pointed(event) {
  const canvas = $("marks"), [left, top, right, bottom] = state.found.box;
  const x = event.offsetX / canvas.clientWidth, y = event.offsetY / canvas.clientHeight;
  return [(x - left) / (right - left), (y - top) / (bottom - top)];
}

const within = (x, y) => x >= 0 && y >= 0 && x < 1 && y < 1;

function point(event) {
  if (!state.found || !state.bitmap || !mapOf(state.target)) return;
  const map = mapOf(state.target), [x, y] = pointed(event);
  if (state.covering && event.buttons & 1) brush(x, y);
  else state.stroke = null;
  read(within(x, y) ? [Math.floor(y * map.height), Math.floor(x * map.width)] : null);
}

function brush(x, y) {
  const { side } = state.session.limits, [, , width, height] = inPixels(state.found.box, state.bitmap);
  state.mask ??= new Uint8Array(side * side);
  // From where the stroke was: pointers that move fast are seen at few places.
  const [fromX, fromY] = state.stroke || [x, y], steps = Math.ceil(Math.hypot(x - fromX, y - fromY) / 0.02) || 1;
  for (let step = 1; step <= steps; step++) {
    paint(state.mask, side, fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps, Number($("size").value), width / height);
  }
  state.stroke = [x, y];
  renderMarks();
  cover();
}

const cover = latest(async () => {
  if (!state.mask || !state.mask.some(Boolean)) return;
  const { mask } = state, copy = mask.slice(); // it may be painted on meanwhile
  const covered = await ask("/api/cover", question({ mask: packMask(copy), fill: chosen("fill") }));
  if (state.mask !== mask) return; // it was cleared
  state.covered = { ...covered, mask: copy };
  renderClasses();
  renderCovered();
});

function forgetCover() {
  state.mask = state.covered = null;
}

function setCovering(on) {
  state.covering = on;
  $("brush").setAttribute("aria-pressed", String(on));
  $("brushing").hidden = !on;
  $("marks").classList.toggle("covering", on);
  if (!on) { forgetCover(); render(); }
}

// What a measured change of a score says of the predicted one.
function verdictOf(predicted, measured, map) {
  const little = 0.02 * map.values.reduce((sum, value) => sum + Math.abs(value), 0);
  if (Math.max(Math.abs(predicted), Math.abs(measured)) <= little) return "The score hardly changes, as the map predicts.";
  const ratio = measured / predicted;
  if (!(ratio > 0)) return "The score changes the other way than the map predicts.";
  if (ratio < 0.5) return "The score changes less than the map predicts.";
  return ratio > 2 ? "The score changes more than the map predicts." : "The score changes about as the map predicts.";
}

// To the left of the middle where a score falls. part: from -1 to 1.
function changeBar(part) {
  const bar = make("span", { class: "bar change" }), now = make("i");
  now.style.width = `${50 * Math.abs(part)}%`;
  now.style.left = `${50 + Math.min(0, 50 * part)}%`;
  bar.append(now);
  return bar;
}

// What a cover changes, as a verdict, if the map predicts anything, and [what, text, part of the longest bar].
function coveredFacts(map) {
  const { side } = state.session.limits, { mask } = state.covered, share = mask.reduce((sum, bit) => sum + bit, 0) / mask.length;
  const sum = sumUnder(mask, side, map), name = nameOf(state.target);
  const before = state.found.scores[state.target], after = state.covered.scores[state.target];
  const facts = [["Covered", `${percent(share)} of what the model sees`]];
  let verdict = "";
  if (state.found.of_score) {
    const most = Math.max(Math.abs(sum), Math.abs(after - before));
    verdict = verdictOf(-sum, after - before, map);
    facts.push(["The map predicts", `${figure(-sum, { sign: true })} for the score of ${name}`, -sum / most]);
    facts.push(["Measured", `${figure(after - before, { sign: true })} (${figure(before)} → ${figure(after)})`, (after - before) / most]);
  } else {
    const positive = { ...map, values: seen(map, "for") };
    const whole = positive.values.reduce((total, value) => total + value, 0);
    facts.push(["Of the evidence for it", whole ? `${percent(sumUnder(mask, side, positive) / whole)} lies there` : "there is none in this map"]);
    facts.push(["Measured", `${figure(after - before, { sign: true })} for the score of ${name} (${figure(before)} → ${figure(after)})`]);
  }
  if (state.found.kind !== "none") facts.push(["Probability", `${valueOf(state.found, state.target)} → ${valueOf(state.covered, state.target)}`]);
  return { verdict, facts };
}

function renderCovered() {
  const place = $("covered"), map = mapOf(state.target);
  place.replaceChildren();
  if (!state.covered || !map) return;
  const { verdict, facts } = coveredFacts(map);
  if (verdict) place.append(make("h3", {}, verdict));
  const list = make("dl", { class: "facts" });
  for (const [term, text, part] of facts) {
    const told = make("dd", {}, text);
    if (part) told.append(changeBar(part));
    list.append(make("dt", {}, term), told);
  }
  const explained = make("details");
  explained.append(make("summary", {}, "What is compared?"), make("p", {}, state.found.of_score
    ? `Predicted is minus the sum of the raw map over the covered cells. Of ${state.found.method} that is, to first order, how much the score would fall if ${layerName()} were zero there; exactly that where the score is linear in the layer, as behind a global mean and one linear layer. Measured is the score with the pixels replaced. The two differ because replaced pixels do not make the layer zero, because pixels reach the cells beside them, and because of what is not linear above the layer.`
    : `A map of ${state.found.method} is not in units of the score, so it predicts no change; only its share of the evidence can be compared. gradcam and hirescam predict one.`));
  place.append(list, explained);
}

// --- tests of the map -----------------------------------------------------------------------------------------

const tests = { running: new AbortController(), stop() { this.running.abort(); this.running = new AbortController(); } };

const testing = (button, path, draw) => calm(async () => {
  const asked = question({ target: state.target });
  button.setAttribute("aria-busy", "true");
  button.disabled = true;
  try {
    const found = await ask(path, asked, { signal: tests.running.signal });
    if (asked === question({ target: state.target })) $("tested").replaceChildren(...draw(found));
  } finally {
    button.removeAttribute("aria-busy");
    button.disabled = false;
  }
});

const NAMES = { map: "this map", random: "a random map", centre: "a bump in the centre" };

function drawCurves(found) {
  const what = state.found.kind === "none" ? "score" : "probability";
  const parts = [
    ["deletion", `Removed, the most important first: the ${what} should fall early`, Math.min],
    ["insertion", `Put into a blurred photograph, the most important first: the ${what} should rise early`, Math.max],
  ];
  return parts.map(([kind, text, best]) => {
    const { areas, curves } = found[kind], part = make("section", { class: "curve" });
    const lines = found.names.map((name, place) => ({ name, values: curves[place] }));
    const legend = make("ul", { class: "legend" });
    lines.forEach((line, place) => legend.append(make("li", { class: `line-${place}` }, `${NAMES[line.name]} ${areas[place] === null ? "not defined" : areas[place].toFixed(3)}`)));
    const known = areas.every((area) => area !== null);
    const verdict = !known ? "The map is constant: there is nothing to rank." : areas[0] === best(...areas) && areas[0] !== areas[1] ? "Better than both controls, for this photograph." : "Not better than the controls, for this photograph.";
    part.append(make("h3", {}, text), chart(`${kind}: ${lines.map((line, place) => `${NAMES[line.name]} ${areas[place]}`).join(", ")}`, lines, state.found.kind === "none" ? figure : percent), legend, make("p", { class: "hint" }, `${verdict} The numbers are areas under the lines.`));
    return part;
  });
}

function drawSanity(buffer) {
  const found = unpack(buffer), part = make("section", { class: "curve" });
  const verdict = found.passed === null ? "Not defined: with random weights there is no map to compare with."
    : found.passed ? "Passed: with random weights the map is another one, so it depends on what the model has learnt."
      : "Failed: with random weights the map is much the same, so it shows the photograph rather than what the model has learnt.";
  const list = make("ol", { class: "stages" });
  found.stages.forEach((name, place) => {
    const value = found.similarity[place], row = make("li"), bar = make("span", { class: "bar" }), now = make("i");
    now.style.width = `${100 * (value ?? 0)}%`;
    bar.append(now);
    row.append(make("span", { class: "name" }, `random down to ${name}`), make("span", { class: "value" }, value === null ? "–" : value.toFixed(2)), bar);
    list.append(row);
  });
  const canvas = make("canvas", { role: "img", "aria-label": "The map with random weights" });
  const map = found.map(0);
  drawMap(canvas, state.bitmap, map, state.found.box, { ...look(map), scale: map.peak });
  const picture = make("figure", { class: "figure" });
  picture.append(canvas, make("figcaption", {}, "all weights random, on its own scale"));
  const row = make("div", { class: "sanity" });
  row.append(list, picture);
  part.append(make("h3", {}, verdict), row, make("p", { class: "hint" }, `Likeness is the absolute rank correlation with the map above. What counts is the last one, with all weights random: it has to be below ${found.limit}. The weights are back as they were.`));
  return [part];
}

// --- taking it away -------------------------------------------------------------------------------------------

// The map, what covers it, and what is beside it.
function panels() {
  const covered = new OffscreenCanvas($("picture").width, $("picture").height);
  if (state.mask) drawMask(covered.getContext("2d"), state.mask, state.session.limits.side, inPixels(state.found.box, covered));
  const shown = [{ layers: [$("picture"), covered], text: $("first-text").hidden ? "" : $("first-text").textContent }];
  for (const [figure, canvas, text] of [["other", "second", "second-text"], ["between", "difference", "difference-text"]]) {
    if (!$(figure).hidden) shown.push({ layers: [$(canvas)], text: $(text).textContent });
  }
  return shown;
}

function needMap() {
  if (!state.found || !state.bitmap || !mapOf(state.target)) throw new Error("The map is not there yet: try again when it is.");
}

// What is shown, as the server can make it again.
function shownQuestion() {
  const { backend, method, layer } = state.found; // another map may be on its way
  const scale = chosen("scale") === "map" ? null : look(mapOf(state.target)).scale || null;
  return question({ backend, method, layer, target: state.target, rectified: chosen("view") === "for", against: chosen("view") === "against", cells: $("cells").checked, opacity: Number($("opacity").value), colours: $("colours").value, scale });
}

const save = calm(async () => {
  needMap();
  const record = ask("/api/record", shownQuestion());
  const evidence = { signed: "for and against", for: "for", against: "against" }[chosen("view")];
  const scale = { map: "own scale", classes: "one scale for all classes", held: "a scale that was kept" }[chosen("scale")];
  const { verdict, facts } = state.covered ? coveredFacts(mapOf(state.target)) : { facts: [] };
  const canvas = composed({
    title: `${nameOf(state.target)}  ${valueOf(state.found, state.target)}`,
    panels: panels(), bar: $("bar"), ticks: [...$("ticks").children].map((tick) => tick.textContent),
    lines: [
      `evidence ${evidence} · ${scale} · ${state.found.backend} ${state.found.method} · ${layerName()} · ${state.facts.name} · ${state.photograph.name}`,
      facts.map(([what, text]) => `${what}: ${text}`).join(" · "), verdict,
      $("agreement").hidden ? "" : $("agreement").textContent, $("notes").hidden ? "" : $("notes").textContent,
    ],
  });
  const link = make("a", { download: `${state.photograph.name}.${state.found.method}.${nameOf(state.target)}.png`.replace(/[\\/:*?"<>|]/g, "_") });
  // JSON in ASCII, as a text in a PNG has to be.
  const told = JSON.stringify(await record).replace(/[\u007f-\uffff]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
  link.href = URL.createObjectURL(withText(await canvas.convertToBlob({ type: "image/png" }), "camkit", told));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  $("done").value = "Saved";
});

const copy = (kind) => calm(async () => {
  needMap();
  const found = await ask("/api/lines", shownQuestion());
  await navigator.clipboard.writeText(found[kind]);
  $("done").value = "Copied";
});

// --- controls -------------------------------------------------------------------------------------------------

function make(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => { const one = make("option", {}, text); one.value = key; return one; }));
  select.value = value;
}

function useModel(facts) {
  state.facts = facts;
  state.layer = facts.layers.findIndex((layer) => layer.name === facts.automatic);
  state.target = null;
  $("layer").max = facts.layers.length - 1;
  $("layer").value = state.layer;
  $("names").replaceChildren(...facts.classes.map((name) => { const one = make("option"); one.value = name; return one; }));
  nameLayer();
}

function nameLayer() {
  const { name, grid } = state.facts.layers[state.layer];
  $("layer-name").value = `${name} · ${grid.join(" × ")}${name === state.facts.automatic ? " · automatic" : ""}`;
  $("layer").setAttribute("aria-valuetext", $("layer-name").value);
}

function setLayer(index) {
  state.layer = Math.max(0, Math.min(state.facts.layers.length - 1, index));
  $("layer").value = state.layer;
  nameLayer();
  explain();
}

const useBackend = calm(async (backend) => {
  const { methods, notes } = await methodsOf(backend);
  state.backend = backend;
  if (!methods.includes(state.method)) state.method = methods[0];
  $("methods").replaceChildren(...methods.map((method) => {
    const chip = make("label", { class: "chip", title: notes[method] || "" }), radio = make("input", { type: "radio", name: "method" });
    radio.value = method;
    radio.checked = method === state.method;
    chip.append(radio, make("span", {}, method));
    return chip;
  }));
  const others = state.session.backends.filter((name) => name !== backend);
  options($("beside"), [["", "nothing"], ...others.map((name) => [name, name]), [backend, `${backend}, another method`]], "");
  $("beside-way").hidden = true;
});

const useBeside = calm(async (backend) => {
  $("beside-way").hidden = !backend;
  state.other = null;
  if (backend) {
    const { methods } = await methodsOf(backend), same = methods.includes(state.method) && backend !== state.backend;
    options($("beside-method"), methods.map((name) => [name, name]), same ? state.method : methods.find((name) => name !== state.method) || methods[0]);
    compare();
  }
  render();
});

function findClass(text) {
  const wanted = text.trim().toLowerCase(), names = state.facts.classes.map((name) => name.toLowerCase());
  const exact = names.indexOf(wanted);
  const hit = exact >= 0 ? exact : wanted.length > 2 ? names.findIndex((name) => name.includes(wanted)) : -1;
  if (hit >= 0) { show(hit); $("search").value = ""; } else if (wanted) { complain(new Error(`The model has no class ${text}.`)); }
}

function stepClass(by) {
  if (!state.found) return;
  const place = state.ranking.indexOf(state.target) + by;
  if (place < 0 || place >= state.ranking.length) return;
  show(state.ranking[place]);
  // Whoever reads something else on the page stays where they are.
  if (document.activeElement === $("classes")) $(`class-${state.target}`).scrollIntoView({ block: "nearest" });
}

const KEYS = {
  ArrowDown: () => stepClass(1), ArrowUp: () => stepClass(-1),
  ArrowRight: () => setLayer(state.layer + 1), ArrowLeft: () => setLayer(state.layer - 1),
  PageDown: () => stepPhotograph(1), PageUp: () => stepPhotograph(-1),
  Escape: () => setCovering(false),
};
const CELL_KEYS = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || $("keys").open) return;
  const at = event.target, map = state.found && mapOf(state.target);
  if (at === $("marks") && map && (event.key in CELL_KEYS || event.key === " ")) {
    const [row, column] = state.cell || [(map.height - 1) >> 1, (map.width - 1) >> 1];
    const [down, right] = (state.cell && CELL_KEYS[event.key]) || [0, 0];
    const cell = [Math.max(0, Math.min(map.height - 1, row + down)), Math.max(0, Math.min(map.width - 1, column + right))];
    if (event.key === " " && state.covering) {
      const { side } = state.session.limits;
      state.mask ??= new Uint8Array(side * side);
      paintCell(state.mask, side, map, ...cell);
      cover();
    }
    read(cell);
  } else if (event.key in KEYS && (event.key === "Escape" || !at.matches("input, select, textarea, summary"))) {
    KEYS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
}

function listen() {
  const on = (id, event, work) => $(id).addEventListener(event, work);
  on("choose", "click", () => $("file").click());
  on("file", "change", async (event) => { await take([...event.target.files]); event.target.value = ""; });
  on("help", "click", () => $("keys").showModal());
  on("model", "change", calm(async (event) => {
    const former = state.model;
    try {
      const facts = await ask("/api/model", JSON.stringify({ model: Number(event.target.value) }));
      state.model = Number(event.target.value);
      useModel(facts);
      await openPhotograph(state.photograph);
    } catch (error) {
      event.target.value = former;
      throw error;
    }
  }));
  on("classes", "click", (event) => { const row = event.target.closest("li"); if (row) show(Number(row.dataset.index)); });
  on("search", "change", (event) => findClass(event.target.value));
  on("methods", "change", (event) => { state.method = event.target.value; if ($("beside").value && $("beside").value !== state.backend) useBeside($("beside").value); explain(); });
  on("layer", "input", (event) => setLayer(Number(event.target.value)));
  on("backend", "change", async (event) => { await useBackend(event.target.value); explain(); });
  on("beside", "change", (event) => useBeside(event.target.value));
  on("beside-method", "change", compare);
  for (const id of ["view", "opacity", "colours", "cells"]) on(id, "input", render);
  on("scale", "input", () => { state.held = chosen("scale") === "held" ? state.scale : null; render(); });
  on("save", "click", save);
  on("command", "click", copy("command"));
  on("python", "click", copy("python"));
  on("brush", "click", () => setCovering(!state.covering));
  on("clear", "click", () => { forgetCover(); render(); });
  for (const radio of document.getElementsByName("fill")) radio.addEventListener("change", cover);
  on("curves", "click", testing($("curves"), "/api/curves", drawCurves));
  on("sanity", "click", testing($("sanity"), "/api/sanity", drawSanity));
  const marks = $("marks");
  marks.addEventListener("pointerdown", (event) => { if (state.covering) { marks.setPointerCapture(event.pointerId); point(event); } else point(event); });
  marks.addEventListener("pointermove", point);
  marks.addEventListener("pointerleave", () => read(null));
  document.addEventListener("keydown", onKey);
  // Who uses a pointer has the arrow keys for classes and layers, and does not turn a list on by chance.
  let pointing = false;
  document.addEventListener("pointerdown", () => { pointing = true; }, true);
  document.addEventListener("keydown", () => { pointing = false; }, true);
  document.addEventListener("change", (event) => { if (pointing && event.target.matches("select, [type=radio], [type=range]")) event.target.blur(); });
  document.addEventListener("paste", (event) => { const files = [...event.clipboardData.files]; if (files.length) take(files); });
  on("alert", "click", () => { $("alert").hidden = true; });
  const carries = (event) => [...event.dataTransfer.types].includes("Files");
  window.addEventListener("dragover", (event) => { if (carries(event)) { event.preventDefault(); $("drop").hidden = false; } });
  window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  window.addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; take([...event.dataTransfer.files]); });
}

const start = calm(async () => {
  history.replaceState(null, "", "/"); // the token stays out of the history; the cookie has it
  state.session = await ask("/api/session");
  options($("model"), state.session.models.map((spec, index) => [index, spec]), 0);
  options($("backend"), state.session.backends.map((name) => [name, name]), state.backend);
  options($("colours"), [["", "made for it"], ...Object.keys(state.session.colours).filter((name) => !["signed", "for", "against"].includes(name)).map((name) => [name, name])], "");
  useModel(state.session.model);
  listen();
  await Promise.all([openPhotograph(state.session.photographs[0]), useBackend(state.backend)]);
  listPhotographs(); // they are read one after the other, and the photograph comes first
  document.body.setAttribute("data-ready", "");
});

start();
