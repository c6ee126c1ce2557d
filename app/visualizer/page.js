"use strict";
// Draws the blocks that page.py put into this file. Text always goes in as text, never as HTML: names are strangers' words.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title"]);
const COLOURS = 10, FEW = 40;
const painters = [];  // functions that draw again, after a change of a control or of the width

function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const repaint = () => painters.forEach((paint) => paint());
const cut = (text, length) => text.length > length ? text.slice(0, length - 1) + "…" : text;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function short(value) {
  if (typeof value !== "number") return value === null || value === undefined ? "" : String(value);
  const size = Math.abs(value);
  return size === 0 || (size >= 1e-4 && size < 1e6) ? String(Number(value.toPrecision(5))) : Number(value.toPrecision(3)).toExponential();
}

function watchWidth(box, paint) {
  painters.push(paint);
  let width = 0;
  // In the next frame: what a painter changes must not be seen by the observer that called it.
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (box.clientWidth !== width) { width = box.clientWidth; paint(); }
  })).observe(box);
}

// ---- Plots: lines and dots in SVG, with values under the pointer, zoom by dragging, curves that can be hidden ----

function scale(low, high, from, to, log) {
  const forward = log ? Math.log10 : (value) => value;
  const begin = forward(low), size = forward(high) - begin || 1;
  const at = (value) => from + (forward(value) - begin) / size * (to - from);
  at.value = (place) => { const value = begin + (place - from) / (to - from) * size; return log ? 10 ** value : value; };
  return at;
}

function ticks(low, high, count, log) {
  if (log) {
    const decades = Math.log10(high / low), found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of decades > 3 ? [1] : [1, 2, 5]) found.push(digit * 10 ** power);
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 1) return inside.filter((_, index) => index % Math.ceil(inside.length / count) === 0);
  }
  const rough = (high - low) / count || 1, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find((factor) => factor * unit >= rough) || 10);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index++) found.push(Number((index * step).toPrecision(12)));
  return found;
}

function extent(values, pad, log) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null && Number.isFinite(value) && !(log && value <= 0)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) return [0, 1];
  if (low === high) return log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  return log ? [low / (high / low) ** pad, high * (high / low) ** pad] : [low - pad * (high - low), high + pad * (high - low)];
}

// A spec: {series: [{name, group, colour, x, y, dots, labels}], label, words (of x = 0, 1, …), marks: [{x, text}], log, logX, nearest}
function plot(specOf) {
  const box = make("div", {class: "plot"}), legend = make("div", {class: "legend"}), tip = make("div", {class: "tip", hidden: ""});
  const hidden = new Set();
  let zoom = null, view = null, label = null;

  function paint() {
    const width = box.clientWidth, height = box.clientHeight;
    if (!width) return;
    const spec = specOf();
    if (spec.label !== label) { zoom = null; label = spec.label; }
    paintLegend(spec);
    const shown = spec.series.filter((series) => !hidden.has(series.group));
    const log = spec.log && shown.every((series) => series.y.every((value) => value === null || value > 0));
    const [left, right] = zoom || (spec.words ? [-0.5, spec.words.length - 0.5] : extent(shown.flatMap((series) => series.x), spec.logX ? 0.03 : shown.some((series) => series.dots) ? 0.03 : 0, spec.logX));
    const inside = shown.flatMap((series) => series.y.filter((_, index) => series.x[index] >= left && series.x[index] <= right));
    const [bottom, top] = extent(inside, 0.05, log);
    const rows = ticks(bottom, top, 5, log), names = rows.map(short);
    const margin = {left: 14 + 6.6 * Math.max(...names.map((name) => name.length), 1), bottom: 36};
    const x = scale(left, right, margin.left, width - 10, spec.logX), y = scale(bottom, top, height - margin.bottom, 10, log);
    const floor = height - margin.bottom;
    const art = make("svg", {width, height, role: "img"});
    rows.forEach((value, index) => art.append(make("line", {class: "grid", x1: margin.left, x2: width - 10, y1: y(value), y2: y(value)}),
      make("text", {x: margin.left - 6, y: y(value) + 4, "text-anchor": "end"}, names[index])));
    const columns = spec.words ? spec.words.map((_, index) => index) : ticks(left, right, Math.max(2, width / 80), spec.logX);
    const room = spec.words ? (width - margin.left) / spec.words.length / 6.8 : Infinity;
    columns.forEach((value, index) => {
      if (room < 3 && index % Math.ceil(3 / room)) return;
      art.append(make("text", {x: x(value), y: floor + 15, "text-anchor": "middle"}, spec.words ? cut(spec.words[value], Math.max(3, Math.floor(room))) : short(value)));
    });
    art.append(make("line", {class: "frame", x1: margin.left, x2: width - 10, y1: floor, y2: floor}),
      make("text", {x: (margin.left + width) / 2, y: height - 4, "text-anchor": "middle"}, spec.label));
    let free = -Infinity;
    for (const mark of spec.marks || []) {
      if (mark.x < left || mark.x > right) continue;
      const named = x(mark.x) > free;
      if (named) free = x(mark.x) + 60;
      art.append(make("line", {class: "mark", x1: x(mark.x), x2: x(mark.x), y1: 10, y2: floor}, make("title", {}, mark.text)),
        named ? make("text", {x: x(mark.x) + 3, y: 19}, "resumed") : "");
    }
    for (const series of shown) art.append(...lines(series, x, y, log, left, right, shown.length));
    art.append(make("g"));
    box.replaceChildren(art, tip);
    tip.hidden = true;
    view = {spec, shown, x, y, left, right, floor, width, over: art.lastChild, log};
  }

  function lines(series, x, y, log, left, right, count) {
    const colour = `var(--c${series.colour % COLOURS})`, found = [];
    let path = "", pen = "M", dots = [];
    for (let index = 0; index < series.x.length; index++) {
      const value = series.y[index];
      // One point beyond each edge of a zoom stays, so that the line leaves the plot there.
      if ((series.x[index + 1] ?? right) < left || (series.x[index - 1] ?? left) > right) continue;
      if (value === null || (log && value <= 0)) { pen = "M"; continue; }
      const place = [Math.min(Math.max(x(series.x[index]), -1e4), 1e5).toFixed(1), y(value).toFixed(1)];
      path += pen + place.join(" "); pen = "L";
      if (series.x[index] >= left && series.x[index] <= right) dots.push(place);
    }
    if (!series.dots) found.push(make("path", {class: "curve" + (count > 60 ? " many" : count > 8 || series.thin ? " thin" : ""), d: path, style: `stroke: ${colour}`, "clip-path": `inset(0 10px 0 0 view-box)`}));
    if (series.dots || (dots.length <= FEW && count <= 8) || dots.length === 1)
      found.push(...dots.map(([cx, cy]) => make("circle", {cx, cy, r: series.dots || 2.5, style: `fill: ${colour}`, opacity: series.dots ? 0.6 : 1})));
    return found;
  }

  function paintLegend(spec) {
    const groups = new Map(spec.series.map((series) => [series.group, series.colour]));
    legend.replaceChildren(...(groups.size === 1 && spec.series.length > 1 ? [] : [...groups]).map(([group, colour]) => make("button", {type: "button", "aria-pressed": !hidden.has(group),
      onclick: () => { hidden.has(group) ? hidden.delete(group) : hidden.add(group); paint(); }},
    make("span", {class: "swatch", style: `background: var(--c${colour % COLOURS})`}), group)));
  }

  // The point of each curve that is nearest in x; of many curves, the one point that is nearest on the screen.
  function near(px, py) {
    const {spec, shown, x, y, left, right} = view, found = [];
    for (const series of shown) {
      let best = null, distance = Infinity;
      for (let index = 0; index < series.x.length; index++) {
        if (series.y[index] === null || series.x[index] < left || series.x[index] > right) continue;
        const away = spec.nearest ? Math.hypot(x(series.x[index]) - px, y(series.y[index]) - py) : Math.abs(x(series.x[index]) - px);
        if (away < distance) { distance = away; best = index; }
      }
      if (best !== null) found.push({series, index: best, distance});
    }
    found.sort((one, two) => one.distance - two.distance);
    return spec.nearest ? found.slice(0, found.length && found[0].distance < 40 ? 1 : 0) : found.filter((entry) => entry.distance < 30);
  }

  function hover(event) {
    if (!view) return;
    const place = box.getBoundingClientRect(), px = event.clientX - place.left, py = event.clientY - place.top;
    const found = near(px, py), {spec, x, y, over, floor, width} = view;
    over.replaceChildren();
    if (drag !== null) over.append(make("rect", {class: "zoom", x: Math.min(px, drag), width: Math.abs(px - drag), y: 10, height: floor - 10}));
    tip.hidden = !found.length;
    if (!found.length) return;
    const at = found[0].series.x[found[0].index];
    if (!spec.nearest) over.append(make("line", {class: "here", x1: x(at), x2: x(at), y1: 10, y2: floor}));
    over.append(...found.map(({series, index}) => make("circle", {cx: x(series.x[index]), cy: y(series.y[index]), r: 4, style: `fill: var(--c${series.colour % COLOURS})`})));
    tip.replaceChildren(make("b", {}, spec.words ? spec.words[at] ?? "" : `${spec.label} ${short(at)}`),
      ...found.map(({series, index}) => make("div", {}, make("span", {class: "swatch", style: `background: var(--c${series.colour % COLOURS})`}),
        `${series.labels ? series.labels[index] : series.name}: ${short(series.y[index])}`)));
    tip.style.top = "8px";
    tip.style.left = px < width / 2 ? `${px + 16}px` : "auto";
    tip.style.right = px < width / 2 ? "auto" : `${width - px + 16}px`;
  }

  let drag = null;
  const offset = (event) => event.clientX - box.getBoundingClientRect().left;
  box.addEventListener("pointermove", hover);
  box.addEventListener("pointerleave", () => { drag = null; tip.hidden = true; if (view) view.over.replaceChildren(); });
  box.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse" && view && !view.spec.words) { drag = offset(event); event.preventDefault(); } });
  box.addEventListener("pointerup", (event) => {
    if (drag !== null && Math.abs(offset(event) - drag) > 8) { zoom = [drag, offset(event)].map(view.x.value).sort((one, two) => one - two); drag = null; paint(); }
    drag = null;
  });
  box.addEventListener("dblclick", () => { zoom = null; paint(); });
  watchWidth(box, paint);
  return make("div", {}, legend, box);
}

// ---- Blocks ----

function choice(label, options, change) {
  const select = make("select", {onchange: () => { change(select.value); repaint(); }}, ...options.map((word) => make("option", {value: word}, word)));
  return make("label", {class: "hint"}, `${label} `, select);
}

function toggle(label, change) {
  const button = make("button", {type: "button", "aria-pressed": false, onclick: () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", pressed);
    change(pressed);
    repaint();
  }}, label);
  return button;
}

const HINT = "Move over a plot for its values; drag to zoom in, double-click to zoom out; click a name to hide its curve.";

function charts({title, charts: entries, marks, fold}) {
  const view = {axis: "step", log: false};
  const card = (entry) => make("div", {class: "card"}, make("h3", {}, entry.title), plot(() => ({
    label: view.axis, log: view.log, marks: marks.map((mark) => ({x: mark[view.axis], text: mark.text})),
    series: entry.curves.map((curve, index) => ({name: curve.name, group: curve.name, x: curve[view.axis], y: curve.value,
      colour: index + (entry.curves[0].name.startsWith("train/") ? 0 : 1), thin: curve.name.startsWith("train/")})),  // blue is for training
  })));
  const grid = make("div", {class: "charts"}, ...entries.map(card));
  if (fold) return [make("details", {}, make("summary", {}, title), grid)];
  return [make("div", {class: "row"}, make("h2", {}, title), toggle("x axis: epochs", (on) => { view.axis = on ? "epoch" : "step"; }),
    toggle("log scale", (on) => { view.log = on; })), grid, make("p", {class: "hint"}, HINT)];
}

function effects({metric, effects: entries}) {
  return [make("div", {class: "charts"}, ...entries.map((entry) => {
    const continuous = entry.numbers && entry.numbers.length > 6;
    const places = continuous ? entry.numbers : entry.words.map((_, index) => index);
    const dots = {name: metric, group: "points", colour: 0, dots: 3.5, x: [], y: [], labels: []};
    entry.results.forEach((results, row) => results.forEach((result, index) => {
      dots.x.push(places[row]); dots.y.push(result); dots.labels.push(entry.names[row][index]);
    }));
    const means = {name: "mean", group: "mean", colour: 1, x: places, y: entry.results.map(mean), dots: entry.numbers ? false : 5};
    const logX = continuous && Math.min(...places) > 0 && Math.max(...places) / Math.min(...places) > 50;
    return make("div", {class: "card"}, make("h3", {}, entry.axis),
      plot(() => ({label: entry.axis, words: continuous ? null : entry.words, logX, nearest: true, series: continuous ? [dots] : [dots, means]})));
  }))];
}

function curves({metric, metrics, axes, points, grids}) {
  const view = {metric, over: "epoch", colour: "point"}, byNumber = (one, two) => Number(one) - Number(two) || (one > two ? 1 : -1);
  const keyOf = (point) => view.colour === "point" ? point.name : point.axes[view.colour] ?? "(default)";
  if (axes.length) view.colour = axes[0];
  const spec = () => {
    const keys = [...new Set(points.map(keyOf))].sort(byNumber);
    const series = points.filter((point) => point.series[view.metric]).map((point) => {
      const [grid, y] = point.series[view.metric];
      return {name: point.name, group: keyOf(point), colour: keys.indexOf(keyOf(point)), x: grids[grid][view.over], y};
    });
    series.sort((one, two) => keys.indexOf(one.group) - keys.indexOf(two.group));
    return {label: view.over, nearest: series.length > 8, series};
  };
  return [make("div", {class: "row"}, choice("value", metrics, (word) => { view.metric = word; }), choice("over", ["epoch", "step"], (word) => { view.over = word; }),
    choice("colour by", [...axes, "point"], (word) => { view.colour = word; })),
  make("div", {class: "card tall"}, plot(spec)), make("p", {class: "hint"}, HINT)];
}

function matrix({title, note, names, counts}) {
  const box = make("div", {class: "matrix"}), tip = make("div", {class: "tip", hidden: ""});
  const sums = new Array(names.length).fill(0);
  counts.forEach(([row, , count]) => { sums[row] += count; });
  const cells = new Map(counts.map(([row, column, count]) => [row * names.length + column, count]));
  let side = 0, from = 0;
  const paint = () => {
    const width = box.clientWidth, named = names.length <= 40;
    if (!width) return;
    from = named ? 22 + 7.2 * Math.min(14, Math.max(...names.map((name) => [...name].reduce((sum, letter) => sum + (letter > "\u2e80" ? 1.7 : 1), 0)))) : 22;
    side = Math.max(named ? 17 : 900 / names.length, Math.min(44, (width - from - 12) / names.length));
    const size = side * names.length, art = make("svg", {width: from + size + 10, height: size + from + 6});
    for (const [row, column, count] of counts) {
      const share = count / (sums[row] || 1);
      art.append(make("rect", {x: from + column * side, y: row * side, width: side, height: side, style: "fill: var(--c0)", opacity: Math.sqrt(share).toFixed(3)}));
      if (side >= 24) art.append(make("text", {x: from + (column + 0.5) * side, y: (row + 0.5) * side + 4, "text-anchor": "middle",
        style: `fill: var(${share > 0.25 ? "--card" : "--ink"})`}, String(count)));
    }
    art.append(make("rect", {class: "frame", x: from, y: 0, width: size, height: size}));
    if (named) names.forEach((name, index) => {
      const middle = (index + 0.5) * side;
      art.append(make("text", {x: from - 6, y: middle + 4, "text-anchor": "end"}, cut(name, 14), make("title", {}, name)),
        make("text", {x: -size - 6, y: from + middle + 4, "text-anchor": "end", transform: "rotate(-90)"}, cut(name, 14), make("title", {}, name)));
    });
    art.append(make("text", {x: -size / 2, y: 11, "text-anchor": "middle", transform: "rotate(-90)"}, "truth"),
      make("text", {x: from + size / 2, y: size + from + 2, "text-anchor": "middle"}, "prediction"));
    box.replaceChildren(art, tip);
  };
  box.addEventListener("pointermove", (event) => {
    const place = box.firstChild.getBoundingClientRect();
    const column = Math.floor((event.clientX - place.left - from) / side), row = Math.floor((event.clientY - place.top) / side);
    tip.hidden = !(row >= 0 && row < names.length && column >= 0 && column < names.length);
    if (tip.hidden) return;
    tip.textContent = `truth ${names[row]}, prediction ${names[column]}: ${cells.get(row * names.length + column) || 0} of ${sums[row]}`;
    tip.style.left = `${Math.max(0, Math.min(event.clientX - place.left + 12, box.clientWidth - 180))}px`;
    tip.style.top = `${event.clientY - place.top + 16}px`;
  });
  box.addEventListener("pointerleave", () => { tip.hidden = true; });
  watchWidth(box, paint);
  return [make("div", {class: "card"}, make("div", {class: "row"}, make("h3", {}, title), make("span", {class: "hint"}, note)), box)];
}

function cellOf(cell, real) {
  if (cell && typeof cell === "object") return cell.href ? make("a", {href: cell.href}, cell.text) : make("span", {class: `chip ${cell.chip}`}, cell.text);
  return typeof cell === "number" && real ? (Math.abs(cell) >= 1e-3 || cell === 0 ? cell.toFixed(4) : short(cell)) : short(cell);
}

function table({title, note, columns, rows, bars, words}) {
  const body = make("tbody");
  const reals = columns.map((_, column) => bars && rows.some((row) => typeof row[column] === "number" && !Number.isInteger(row[column])));
  const plain = (cell) => cell && typeof cell === "object" ? cell.text : cell;
  const fill = (sorted) => body.replaceChildren(...sorted.map((row) => make("tr", {}, ...row.map((cell, column) => {
    const share = typeof cell === "number" && reals[column] && cell >= 0 && cell <= 1 ? 100 * cell : null;
    const style = share === null ? null : `background: linear-gradient(to right, color-mix(in srgb, var(--c0) 16%, transparent) ${share}%, transparent ${share}%)`;
    return make("td", {style, class: typeof cell === "number" ? "number" : null}, cellOf(cell, reals[column]));
  }))));
  const sort = (event, column) => {
    const head = event.currentTarget, down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (one, two) => typeof one === "number" && typeof two === "number" ? one - two : String(one ?? "").localeCompare(String(two ?? ""), undefined, {numeric: true});
    fill([...rows].sort((one, two) => (down ? -1 : 1) * compare(plain(one[column]), plain(two[column]))));
  };
  const heads = columns.map((name, column) => make("th", {scope: "col", tabindex: 0, onclick: (event) => sort(event, column),
    onkeydown: (event) => { if (event.key === "Enter") sort(event, column); }}, name));
  fill(rows);
  return [make("div", {class: "card"}, title ? make("div", {class: "row"}, make("h3", {}, title), make("span", {class: "hint"}, note || "")) : null,
    make("div", {class: "scroll" + (words ? " words" : "")}, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)))];
}

function album({title, entries}) {
  const output = make("output"), pictures = make("div", {class: "pictures"});
  const show = (index) => {
    output.textContent = entries[index].note;
    pictures.replaceChildren(...entries[index].images.map(({source, caption}) => make("figure", {}, make("img", {src: source, alt: caption, title: caption}),
      /[^\u0000-\u00ff]/.test(caption) ? make("figcaption", {}, caption) : null)));  // a font of the pictures may lack these letters
  };
  const slider = make("input", {type: "range", min: 0, max: entries.length - 1, value: entries.length - 1, "aria-label": "evaluation", oninput: () => show(Number(slider.value))});
  const step = (change) => () => { slider.value = Number(slider.value) + change; show(Number(slider.value)); };
  const controls = entries.length < 2 ? [] : [make("button", {type: "button", "aria-label": "earlier", onclick: step(-1)}, "◀"), slider,
    make("button", {type: "button", "aria-label": "later", onclick: step(1)}, "▶")];
  show(entries.length - 1);
  return [make("div", {class: "card album"}, make("h3", {}, title), make("div", {class: "row"}, ...controls, output), pictures)];
}

const fold = (block, ...inside) => [make("details", {open: block.open ? "" : null}, make("summary", {}, block.title), make("div", {class: "card"}, ...inside))];
const code = (text) => make("div", {class: "card code"}, make("pre", {}, text));

const BLOCKS = {
  tiles: ({items}) => [make("section", {class: "tiles"}, ...items.map((item) =>
    make("div", {class: "card tile"}, make("span", {}, item.label), make("b", {}, item.value), make("span", {}, item.note))))],
  heading: ({text}) => [make("h2", {}, text)],
  note: ({text}) => [make("p", {class: "hint"}, text)],
  code: ({text}) => [code(text)],
  columns: ({blocks}) => [make("div", {class: "two"}, ...blocks.flatMap((block) => BLOCKS[block.kind](block)))],
  text: (block) => fold(block, make("pre", {}, block.text)),
  pairs: (block) => fold(block, make("table", {class: "pairs words"}, make("tbody", {}, ...block.rows.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, short(value))))))),
  failures: ({items}) => [make("div", {class: "failures"}, ...items.map((item) => make("div", {class: "failure"},
    make("div", {class: "row"}, make("h3", {}, item.name), make("span", {class: "chip failed"}, item.reason)), code(item.error), make("p", {class: "hint"}, "again, by itself:"), code(item.command))))],
  footer: ({text}) => [make("footer", {}, text)],
  charts, effects, curves, matrix, table, album,
};

const dark = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement.dataset;
const follow = () => { root.theme = dark.matches ? "dark" : "light"; };
follow();
dark.addEventListener("change", follow);
const page = document.getElementById("page");
page.append(make("header", {}, make("h1", {}, data.title), data.badge ? make("span", {class: `chip ${data.badge}`}, data.badge) : null,
  make("button", {id: "theme", type: "button", onclick: () => { root.theme = root.theme === "dark" ? "light" : "dark"; }}, "Light / dark"),
  make("div", {class: "sub"}, data.words.filter(Boolean).join("  ·  "))));
for (const block of data.blocks) page.append(...BLOCKS[block.kind](block));
repaint();
