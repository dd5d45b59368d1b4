
"use strict";
// Texts of strangers become text nodes and attributes, never markup.

/** An element with attributes or properties, and children that are nodes or texts; empty ones are left out. */
function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}
const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const number = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(4))));
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const compare = new Intl.Collator(undefined, { numeric: true }).compare;

if (at("grid")) run(JSON.parse(at("data").textContent));
document.querySelectorAll("table.sortable").forEach(sortable);

/** A table whose rows a click on the head of a column sorts: numbers the highest first, texts by the alphabet. */
function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const isNumber = head.classList.contains("number");
    const sort = () => {
      const is = head.getAttribute("aria-sort");
      const up = is ? is === "descending" : !isNumber;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].textContent;
      const empty = (row) => value(row) === "" || (isNumber && Number.isNaN(parseFloat(value(row))));
      body.append(...[...body.rows].sort((a, b) => empty(a) - empty(b)
        || (up ? 1 : -1) * (isNumber ? parseFloat(value(a)) - parseFloat(value(b)) : compare(value(a), value(b)))));
    };
    head.replaceChildren(make("button", { type: "button", onclick: sort }, head.textContent));
  });
}

/** The page of a run: rows of a manifest, of which every one knows the setup that it shares with others. */
function run(data) {
  const rows = data.rows.map((row, index) => Object.assign(Object.create(data.setups[row.setup]), { predicted: [], warnings: [] }, row, { index }));
  const photos = grouped(rows, photo);
  const kinds = {
    all: ["All", () => true],
    wrong: ["Model wrong", (row) => isWrong(row)],
    unsure: ["Model unsure", (row) => isUnsure(row)],
    warned: ["Warnings", (row) => row.warnings?.length > 0],
    failed: ["Failed", (row) => row.status === "error"],
  };
  const orders = {
    name: ["name", null, 1],
    least: ["probability, lowest first", "probability", 1],
    most: ["probability, highest first", "probability", -1],
    border: ["evidence in the border, most first", "border_share", -1],
    inner: ["evidence in the border, least first", "border_share", 1],
    off: ["evidence on the object, least first", "truth_share", 1],
    on: ["evidence on the object, most first", "truth_share", -1],
  };
  const asked = { kind: "all", class: "", confusion: "", order: "name", words: [] };
  for (const row of rows) row.text = [row.image, row.class_name, row.predicted_name, row.label, row.error].join("\n").toLowerCase();
  let shown = rows;
  const shared = sharedFolder(rows.map((row) => row.image)); // which every name begins with, so tiles leave it out

  function photo(row) { return `${row.image}\n${row.image_sha256}`; }
  // Of a function as target, and a likeness, nothing is predicted.
  function isNamed(row) { return Boolean(row.label) && row.status === "ok" && row.class_index != null; }
  function isWrong(row) { return isNamed(row) && !row.predicted.includes(row.label); }
  function isUnsure(row) {
    return row.status === "ok" && row.scores !== "none" && (row.predicted.length === 0 || row.predicted_probability < 0.5);
  }

  // --- what is shown ---

  function tally(values) {
    const counts = new Map();
    for (const value of values) if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
    return counts;
  }
  function choices(select, first, counts, byCount) {
    const sorted = [...counts].sort(byCount ? (a, b) => b[1] - a[1] || compare(a[0], b[0]) : (a, b) => compare(a[0], b[0]));
    select.append(make("option", { value: "" }, first), ...sorted.map(([value, n]) => make("option", { value }, `${value.replace("\n", " → ")} (${n})`)));
  }
  const confusion = (row) => (isWrong(row) ? `${row.label}\n${row.predicted.join(", ") || "nothing"}` : null);

  const good = rows.filter((row) => row.status === "ok");
  const labelled = good.filter(isNamed);
  at("summary").textContent = summary();
  choices(at("class"), "all", tally(rows.map((row) => row.class_name)));
  if (labelled.some(isWrong)) {
    choices(at("confusion"), "all", tally(labelled.map(confusion)), true);
    at("confusions").hidden = false;
  }
  at("order").append(...Object.entries(orders)
    .filter(([, [, field]]) => !field || good.some((row) => row[field] !== undefined))
    .map(([value, [text]]) => make("option", { value }, text)));
  for (const [kind, [text, is]] of Object.entries(kinds)) {
    const n = rows.filter(is).length;
    if (n && (kind === "all" || n)) {
      at("kinds").append(make("button", {
        type: "button", class: "chip", "data-kind": kind, "aria-pressed": kind === "all",
        onclick: () => ask({ kind }),
      }, text, make("b", {}, n.toLocaleString("en"))));
    }
  }

  function summary() {
    const setups = (field) => [...new Set(good.map((row) => row[field]).filter(Boolean))];
    const parts = [count(good.length, "map") + " of " + count(photos.size, "photograph")];
    for (const [noun, field] of [["model", "model"], ["methods", "method"], ["layers", "layer"], ["backends", "backend"]]) {
      const found = setups(field);
      if (found.length > 3) parts.push(`${found.length} ${noun}`);
      else if (found.length) parts.push(found.join(", "));
    }
    if (labelled.length) {
      const known = new Set(labelled.map(photo));
      const wrong = new Set(labelled.filter(isWrong).map(photo)).size;
      parts.push(`${known.size.toLocaleString("en")} named after a class, of these ${wrong.toLocaleString("en")} wrong`);
    }
    return parts.join(" · ");
  }

  function ask(change) {
    Object.assign(asked, change);
    const is = kinds[asked.kind][1];
    shown = rows.filter((row) => is(row)
      && (!asked.class || row.class_name === asked.class)
      && (!asked.confusion || confusion(row) === asked.confusion)
      && asked.words.every((word) => row.text.includes(word)));
    const [, field, sign] = orders[asked.order];
    const missing = (row) => row[field] === undefined || row[field] === null;
    shown.sort(field
      ? (a, b) => missing(a) - missing(b) || sign * (a[field] - b[field]) || a.index - b.index
      : (a, b) => compare(a.image, b.image) || a.index - b.index);
    for (const chip of at("kinds").children) chip.setAttribute("aria-pressed", chip.dataset.kind === asked.kind);
    at("class").value = asked.class;
    at("confusion").value = asked.confusion;
    const some = new Set(shown.map(photo)).size;
    at("count").textContent = shown.length === rows.length ? "" : `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`
      + (some < shown.length ? `, ${count(some, "photograph")}` : "");
    at("nothing").hidden = shown.length > 0;
    current = 0;
    grid.replaceChildren();
    draw();
  }

  // --- the grid: tiles of one size, of which those in view are there ---

  const grid = at("grid"), gap = 14, words = 74, least = 158;
  let columns = 1, width = 0, height = 0, current = 0;

  function measure() {
    const room = grid.clientWidth;
    columns = Math.max(1, Math.floor((room + gap) / (least + gap)));
    if (room > 1000) columns = Math.max(1, Math.floor((room + gap) / (190 + gap)));
    width = (room - gap * (columns - 1)) / columns;
    height = Math.round(width * 0.8 + words);
  }
  function draw() {
    measure();
    const step = height + gap, lines = Math.ceil(shown.length / columns);
    grid.style.height = `${Math.max(0, lines * step - gap)}px`;
    const top = -grid.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / step) - 2) * columns;
    const last = Math.min(shown.length, (Math.ceil((top + window.innerHeight) / step) + 2) * columns);
    const there = new Map([...grid.children].map((item) => [Number(item.dataset.place), item]));
    for (const [place, item] of there) if (place < first || place >= last) item.remove();
    for (let place = first; place < last; place++) {
      const item = there.get(place) ?? tile(place);
      item.style.width = `${width}px`;
      item.style.height = `${height}px`;
      item.style.transform = `translate(${(place % columns) * (width + gap)}px, ${Math.floor(place / columns) * step}px)`;
      if (!item.isConnected) grid.insertBefore(item, [...grid.children].find((other) => Number(other.dataset.place) > place) ?? null);
    }
    for (const item of grid.children) item.firstChild.tabIndex = Number(item.dataset.place) === current ? 0 : -1;
    if (!grid.querySelector('[tabindex="0"]') && grid.firstChild) grid.firstChild.firstChild.tabIndex = 0;
  }
  function badges(row) {
    return Object.entries({ wrong: "model wrong", unsure: "model unsure", warned: "warning", failed: "failed" })
      .filter(([kind]) => kinds[kind][1](row)).map(([kind, text]) => make("span", { class: `badge ${kind}` }, text));
  }
  const isAgainst = (row) => Boolean(row.against);
  const called = (row, none) => (isAgainst(row) ? `against ${row.class_name}` : row.class_name ?? none);
  function figure(row) { // in brackets where the picture shows what speaks against the class
    const value = row.probability !== undefined ? percent(row.probability) : row.logit === undefined ? "" : number(row.logit);
    return value && isAgainst(row) ? `(${value})` : value;
  }
  function tile(place) {
    const row = shown[place], bar = make("i"), ordered = orders[asked.order][1];
    const where = { border_share: "in the border", truth_share: "on the object" }[ordered];
    bar.style.width = `${100 * (row.probability ?? 0)}%`;
    const why = row.status === "error" ? row.error : row.thumb ? null : row.large ? "no small picture" : row.overlay_file ? "the picture is not there" : "not drawn";
    return make("li", { "data-place": place, "aria-setsize": shown.length, "aria-posinset": place + 1 },
      make("button", { type: "button", class: "tile", title: row.image, onclick: () => open(place) },
        make("span", { class: "thumb" },
          make("span", { class: "badges" }, badges(row), where && row[ordered] !== undefined ? make("span", { class: "badge" }, `${percent(row[ordered])} ${where}`) : null),
          row.thumb ? make("img", { src: row.thumb, alt: "", loading: "lazy", decoding: "async" }) : null,
          why && make("span", { class: "why" }, why)),
        make("span", { class: "words" },
          make("span", { class: "class" }, make("span", {}, called(row, "no map")), make("span", { class: "figure" }, figure(row))),
          make("span", { class: "name" }, row.image.slice(shared)),
          make("span", { class: "meter", "aria-hidden": "true" }, bar))));
  }
  function focus(place) {
    current = Math.min(shown.length - 1, Math.max(0, place));
    const step = height + gap, above = at("grid").getBoundingClientRect().top + window.scrollY;
    const top = above + Math.floor(current / columns) * step, bar = document.querySelector(".bar").offsetHeight;
    if (top - bar - gap < window.scrollY) window.scrollTo(0, top - bar - gap);
    else if (top + step > window.scrollY + window.innerHeight) window.scrollTo(0, top + step - window.innerHeight);
    draw();
    grid.querySelector(`[data-place="${current}"]`)?.firstChild.focus({ preventScroll: true });
  }

  // --- one result, large ---

  const large = at("large");
  let opened = null;

  function open(place) {
    current = place;
    show(shown[place]);
    if (!large.open) large.showModal();
  }
  function step(by) {
    const place = current + by;
    if (place >= 0 && place < shown.length) open(place);
  }
  function show(row) {
    opened = row;
    const picture = at("large-picture");
    picture.hidden = !row.large;
    at("large-missing").hidden = Boolean(row.large);
    at("large-missing").textContent = row.status === "error" ? "There is no map of this photograph." : row.overlay_file ? "The picture is not in the folder any more." : "Not drawn: `camkit render` draws the maps of a folder.";
    if (row.large) {
      picture.src = row.large;
      picture.alt = `${row.method} map ${isAgainst(row) ? "" : "of "}${called(row)} over ${row.image}`;
    } else picture.removeAttribute("src");
    at("large-title").textContent = row.image;
    at("facts").replaceChildren(...details(row).filter(Boolean));
    at("side").scrollTop = 0;
    at("place").textContent = `${(current + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
    at("back").disabled = current === 0;
    at("on").disabled = current === shown.length - 1;
  }
  function details(row) {
    if (row.status === "error") return [make("p", { class: "remark failed" }, row.error), ...sections(row)];
    const said = row.predicted.length ? row.predicted.join(", ") : "none";
    const truth = isNamed(row) && make("span", { class: `badge ${isWrong(row) ? "wrong" : "right"}` }, `named ${row.label}: ${isWrong(row) ? "wrong" : "right"}`);
    return [
      make("p", { class: "verdict" }, make("span", { class: "big" }, `${called(row, "?")} ${figure(row)}`)),
      make("p", { class: "verdict" }, row.predicted.includes(row.class_name) ? make("span", { class: "quiet" }, "the predicted class") : make("span", { class: "quiet" }, `predicted: ${said}`), truth, isUnsure(row) ? make("span", { class: "badge unsure" }, "model unsure") : null),
      ...(row.warnings ?? []).map((text) => make("p", { class: "remark" }, String(text))),
      ...others(row),
      ...repeat(row),
      ...sections(row),
    ];
  }
  function others(row) {
    const group = photos.get(photo(row));
    const sheet = row.sheet ? [make("button", { type: "button", class: "copy", onclick: () => { at("large-picture").src = row.sheet; } }, "Show the maps side by side")] : [];
    if (group.length < 2) return sheet;
    return [make("h3", {}, `${group.length} maps of this photograph`), make("div", { class: "others" }, group.map((other) => make("button", {
      type: "button", "aria-current": other === row, title: `${called(other, "failed")} ${figure(other)}, ${other.backend} ${other.method}${other.layer && `, ${other.layer}`}`,
      onclick: () => { const place = shown.indexOf(other); if (place < 0) show(other); else open(place); },
    }, other.thumb ? make("img", { src: other.thumb, alt: "", loading: "lazy" }) : null, make("span", {}, called(other, "failed")), make("span", {}, figure(other)), make("span", {}, other.method ?? "")))), ...sheet];
  }
  function sections(row) {
    const list = (value) => (value && typeof value === "object" ? Object.entries(value).filter(([, item]) => item !== null).map(([key, item]) => `${key} ${Array.isArray(item) ? item.map((one) => (typeof one === "number" ? number(one) : one)).join(" × ") : item}`).join(", ") : value);
    const cells = row.map_shape && row.map_shape[0] > 2 && row.map_shape[1] > 2 ? 1 - ((row.map_shape[0] - 2) * (row.map_shape[1] - 2)) / (row.map_shape[0] * row.map_shape[1]) : null;
    const known = {
      "The map": {
        method: row.method, backend: [row.backend, row.backend_dist !== row.backend && row.backend_dist, row.backend_version].filter(Boolean).join(" "),
        layer: row.layer, layout: row.layout, options: list(row.options),
        size: row.map_shape?.join(" × "), values: row.map_range && `${number(row.map_range[0])} to ${number(row.map_range[1])}`,
        "in the border": row.border_share !== undefined ? `${percent(row.border_share)} of the evidence for the class` + (cells ? ` (the outermost cells are ${percent(cells)} of the map)` : "") : null,
        "on the object": row.truth_share !== undefined ? `${percent(row.truth_share)} of the evidence for the class` + (row.truth_area !== undefined ? ` (the object covers ${percent(row.truth_area)} of what the model saw)` : "") : null,
        drawn: list(row.picture),
      },
      "The model": {
        model: row.model, "loaded from": row.model_spec, score: row.logit !== undefined ? number(row.logit) : null, "scores are": row.scores,
        "class number": row.class_index, "predicted with": row.predicted_probability !== undefined ? percent(row.predicted_probability) : null,
        "photograph prepared": list(row.preprocessing), weights: row.model_sha256,
      },
      Files: { photograph: row.image_path ?? row.image, picture: row.overlay_file, map: row.map_file, "name in it": row.map_file?.endsWith(".npy") ? null : row.map_key, sheet: row.sheet_file, "photograph's hash": row.image_sha256, "map's hash": row.map_sha256, "picture's hash": row.overlay_sha256 },
      Environment: { camkit: row.camkit_version, torch: row.torch_version, device: row.device, type: row.dtype, request: row.request, "name of its results": row.name, results: row.results, schema: row.schema },
    };
    const code = new Set(["weights", "photograph", "picture", "map", "name in it", "sheet", "photograph's hash", "map's hash", "picture's hash", "request", "name of its results"]);
    return Object.entries(known).flatMap(([title, facts]) => {
      const said = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
      return said.length ? [make("h3", {}, title), make("dl", { class: "facts" }, said.flatMap(([name, value]) => [make("dt", {}, name), make("dd", { class: code.has(name) ? "mono" : null }, String(value))]))] : [];
    });
  }
  function repeat(row) {
    if (!row.command) return [];
    const text = make("code", {}, row.command);
    return [make("h3", {}, "Again"), make("pre", { class: "command mono" }, text), row.lacks && make("p", { class: "quiet" }, row.lacks), copyButton(text)];
  }

  // --- what the user does ---

  let waiting = null;
  at("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => ask({ words: at("search").value.toLowerCase().split(/\s+/).filter(Boolean) }), 60);
  });
  for (const name of ["class", "confusion", "order"]) at(name).addEventListener("change", () => ask({ [name]: at(name).value }));
  at("reset").addEventListener("click", () => {
    at("search").value = "";
    ask({ kind: "all", class: "", confusion: "", words: [] });
    at("search").focus();
  });
  at("back").addEventListener("click", () => step(-1));
  at("on").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => large.close());
  // By itself the browser goes back to the tile that was opened first.
  large.addEventListener("close", () => focus(shown.includes(opened) ? shown.indexOf(opened) : current));
  at("large-picture").addEventListener("load", ({ target }) => { // small ones are shown at most twice as large
    target.style.maxWidth = `${2 * target.naturalWidth}px`;
    target.style.maxHeight = `${2 * target.naturalHeight}px`;
  });
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (large.open) {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(by);
      return;
    }
    const typing = event.target.matches("input, select");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      at("search").focus();
    } else if (event.key === "Escape" && event.target === at("search")) {
      at("search").value = "";
      ask({ words: [] });
    } else if (event.target === at("search") && ["ArrowDown", "Enter"].includes(event.key) && shown.length) {
      event.preventDefault();
      focus(0);
    } else if (grid.contains(event.target)) {
      const place = event.key === "Home" ? 0 : event.key === "End" ? shown.length - 1 : by === undefined ? null : current + by;
      if (place === null) return;
      event.preventDefault();
      if (place >= 0 && place < shown.length) focus(place);
    }
  });
  let due = false;
  const soon = () => { if (!due) { due = true; requestAnimationFrame(() => { due = false; draw(); }); } };
  window.addEventListener("scroll", soon, { passive: true });
  window.addEventListener("resize", soon);
  grid.addEventListener("focusin", (event) => { current = Number(event.target.closest("li").dataset.place); });
  ask({});
}

function grouped(rows, key) {
  const groups = new Map();
  for (const row of rows) {
    const group = groups.get(key(row));
    if (group) group.push(row);
    else groups.set(key(row), [row]);
  }
  return groups;
}

/** How many signs the folder has that all of some names begin with. */
function sharedFolder(names) {
  const first = names[0] ?? "";
  let length = first.lastIndexOf("/") + 1;
  for (const name of names) while (length && !name.startsWith(first.slice(0, length))) length = first.lastIndexOf("/", length - 2) + 1;
  return length;
}

/** A button that copies a text, or marks it where the browser does not allow that. */
function copyButton(text) {
  const button = make("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Marked: copy it with the keyboard";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  });
  return button;
}
