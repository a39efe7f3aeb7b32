
"use strict";
// The explorer: a map of layers and positions, and the curve of one layer. Texts go into the page as textContent only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const STEPS = 64;  // colours of the map
  const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
  const FIRST_COLOUR = data.metrics.length && data.metrics[0].startsWith("entropy") ? 0 : 1;
  const state = { metric: 0, sample: 0, layer: 0, share: false, heads: false, column: null };
  if (!data.layers.length || !data.metrics.length) return;

  // ---- numbers ----

  // the positions of all layers, and where each stands in a layer's own list
  const columns = [...new Set(data.positions.flat())].sort((a, b) => a - b);
  const columnOf = new Map(columns.map((position, column) => [position, column]));
  const places = data.positions.map((list) => {
    const place = new Int32Array(columns.length).fill(-1);
    list.forEach((position, k) => { place[columnOf.get(position)] = k; });
    return place;
  });

  const inBatch = (layer) => state.sample < layer.caps.length;
  const capOf = (layer, k) => data.caps[layer.caps[state.sample]][k];
  const scaled = (layer, k, value) => {
    if (value === null || value === undefined) return null;
    const cap = capOf(layer, k);
    return !state.share ? value : cap > 0 ? value / cap : null;
  };
  const meanAt = (layer, column) => {
    const k = places[layer.positions][column];
    return k < 0 || !inBatch(layer) ? null : scaled(layer, k, layer.values[state.metric].mean[state.sample][k]);
  };
  const shown = (value) => value === null || value === undefined ? "no data" : String(Number(value.toPrecision(4)));

  // ---- drawing ----

  const SVG = "http://www.w3.org/2000/svg";
  const draw = (parent, name, attributes = {}, text = null) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return parent.appendChild(node);
  };
  const canvas = (holder, width, height, label) => {
    const svg = document.createElementNS(SVG, "svg");
    for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height, role: "img" })) {
      svg.setAttribute(key, value);
    }
    svg.setAttribute("aria-label", label);
    holder.replaceChildren(svg);
    return svg;
  };
  const colour = (step) => {
    const place = step / (STEPS - 1) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const channel = (hex, c) => parseInt(hex.slice(2 * c, 2 * c + 2), 16);
    const mixed = [0, 1, 2].map((c) => {
      const [a, b] = [channel(VIRIDIS[low], c), channel(VIRIDIS[low + 1], c)];
      return Math.round(a + (b - a) * (place - low));
    });
    return `rgb(${mixed.join(",")})`;
  };
  const metricColour = (metric) => `var(--m${(metric + FIRST_COLOUR) % 6})`;
  const ticks = (top, most) => {
    const raw = top / most;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= raw);
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, n) => Number((n * step).toPrecision(6)));
  };
  // round positions among those of a list in rising order, some 80 pixels apart
  const positionTicks = (positions, pixels) => {
    const [first, last] = [positions[0], positions[positions.length - 1]];
    if (first === last) return [first];
    return ticks(last, Math.max(2, pixels / 80)).filter((tick) => Number.isInteger(tick) && tick >= first);
  };
  const cut = (text, most) => text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;

  // ---- the map ----

  let map = null;  // its geometry, for the pointer

  const drawMap = () => {
    const holder = at("map");
    const width = Math.max(260, holder.clientWidth);
    const count = data.layers.length;
    const tall = Math.max(7, Math.min(count < 8 ? 34 : 24, Math.floor(560 / count)));
    const names = data.layers.map((layer) => `${layer.short} ${layer.mixer}`);
    const longest = Math.max(...names.map((name) => name.length));
    const left = Math.min(7.4 * longest + 14, Math.round(width * (width < 560 ? 0.28 : 0.24)));
    const [top, plot, right] = [4, count * tall, 10];
    const inner = width - left - right;
    const svg = canvas(holder, width, top + plot + 38, `${data.metrics[state.metric]} by layer and position`);
    map = { left, top, tall, inner, svg };
    draw(svg, "rect", { class: "gap", x: left, y: top, width: inner, height: plot });

    const bins = Math.min(columns.length, Math.max(1, Math.floor(inner / 1.5)));
    const edge = (bin) => Math.round(bin * columns.length / bins);
    const rows = data.layers.map((layer) => Array.from({ length: bins }, (_, bin) => {
      let [sum, seen] = [0, 0];
      for (let column = edge(bin); column < edge(bin + 1); column++) {
        const value = meanAt(layer, column);
        if (value !== null) { sum += value; seen++; }
      }
      return seen ? sum / seen : null;
    }));
    const largest = state.share ? 1 : Math.max(1e-9, ...rows.map((row) => Math.max(0, ...row.filter((x) => x !== null))));
    const paths = Array.from({ length: STEPS }, () => []);
    const x = (column) => left + inner * column / columns.length;
    rows.forEach((row, number) => {
      for (let bin = 0; bin < bins;) {
        const step = row[bin] === null ? -1 : Math.min(STEPS - 1, Math.round(row[bin] / largest * (STEPS - 1)));
        const first = bin;
        do bin++;
        while (bin < bins && (row[bin] === null ? -1 : Math.min(STEPS - 1, Math.round(row[bin] / largest * (STEPS - 1)))) === step);
        if (step < 0) continue;
        const [from, to] = [x(edge(first)), x(edge(bin))];
        paths[step].push(`M${from.toFixed(2)} ${top + number * tall}H${to.toFixed(2)}v${tall}H${from.toFixed(2)}z`);
      }
    });
    paths.forEach((found, step) => {
      if (found.length) draw(svg, "path", { d: found.join(""), fill: colour(step), "shape-rendering": "crispEdges" });
    });

    if (!state.share) {
      const d = capEdges(x, top, tall).join("");
      draw(svg, "path", { class: "edge-under", d });
      draw(svg, "path", { class: "edge", d });
    }
    for (const mark of marks()) {
      const column = columns.findIndex((position) => position >= mark);
      if (column >= 0) draw(svg, "path", { class: "edge", "stroke-opacity": 0.6, d: `M${x(column + 0.5)} ${top}v${plot}` });
    }
    const every = Math.max(1, Math.ceil(12 / tall));
    names.forEach((name, row) => {
      if (row % every && row !== state.layer) return;
      const place = { x: left - 6, y: top + (row + 0.5) * tall + 4, "text-anchor": "end" };
      draw(svg, "text", { ...place, class: row === state.layer ? "chosen" : "" }, cut(name, Math.floor((left - 10) / 7.4)));
    });
    for (const tick of positionTicks(columns, inner)) {
      const column = columns.findIndex((position) => position >= tick);
      draw(svg, "text", { x: x(column + 0.5), y: top + plot + 16, "text-anchor": "middle" }, String(columns[column]));
    }
    draw(svg, "text", { x: left + inner / 2, y: top + plot + 33, "text-anchor": "middle" }, "position i");
    drawScale(largest);
    drawCursor();
  };

  // where a layer's cap stops being at its largest
  const capEdges = (x, top, tall) => {
    const found = [];
    data.layers.forEach((layer, row) => {
      if (!inBatch(layer)) return;
      const list = data.caps[layer.caps[state.sample]];
      const most = list.reduce((a, b) => Math.max(a, b), 1);
      let before = false;
      for (let column = 0; column <= columns.length; column++) {
        const k = column < columns.length ? places[layer.positions][column] : -1;
        if (k < 0 && column < columns.length) continue;  // not measured there
        const now = k >= 0 && list[k] === most;
        if (now !== before) found.push(`M${x(column).toFixed(2)} ${top + row * tall}v${tall}`);
        before = now;
      }
    });
    return found;
  };

  const drawScale = (largest) => {
    const holder = at("scale");
    holder.replaceChildren();
    const say = (text) => { holder.appendChild(document.createElement("span")).textContent = text; };
    say("0");
    const svg = draw(holder, "svg", { viewBox: `0 0 ${STEPS} 8`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (let step = 0; step < STEPS; step++) {
      draw(svg, "rect", { x: step, y: 0, width: STEPS - step, height: 8, fill: colour(step) });
    }
    say(shown(largest));
    say(`${data.metrics[state.metric]}${state.share ? ", share of cap" : ""}, mean over heads`);
    if (!state.share) say("Between dashed marks the cap is at its largest.");
  };

  const drawCursor = () => {
    map.svg.querySelector("#cursor")?.remove();
    if (state.column === null) return;
    const group = draw(map.svg, "g", { id: "cursor", "pointer-events": "none" });
    const wide = map.inner / columns.length;
    const box = {
      x: map.left + state.column * wide - Math.max(0, 5 - wide) / 2,
      y: map.top + state.row * map.tall,
      width: Math.max(5, wide),
      height: map.tall,
    };
    draw(group, "rect", { class: "cursor-under", ...box });
    draw(group, "rect", { class: "cursor", ...box });
  };

  const marks = () => data.marks && state.sample < data.marks.length ? data.marks[state.sample] : [];

  // ---- the curve of one layer ----

  let curve = null;

  const pathOf = (values, x, y) => {
    let [d, pen] = ["", false];
    values.forEach((value, k) => {
      if (value === null) { pen = false; return; }
      // a dot where a number stands alone between gaps
      const alone = !pen && (k + 1 >= values.length || values[k + 1] === null);
      d += `${pen ? "L" : "M"}${x(k).toFixed(1)} ${y(value).toFixed(1)}${alone ? "m-2 0h4m-2 0" : ""}`;
      pen = true;
    });
    return d;
  };

  // a closed outline for each stretch without gaps
  const bandOf = (low, high, x, y) => {
    let [d, stretch] = ["", []];
    const close = () => {
      if (stretch.length > 1) {
        const point = (value) => (k) => `${x(k).toFixed(1)} ${y(value[k]).toFixed(1)}`;
        d += `M${stretch.map(point(low)).join("L")}L${stretch.reverse().map(point(high)).join("L")}z`;
      }
      stretch = [];
    };
    low.forEach((value, k) => { if (value === null || high[k] === null) close(); else stretch.push(k); });
    close();
    return d;
  };

  const drawCurve = () => {
    const layer = data.layers[state.layer];
    const holder = at("curve");
    const size = layer.tss === null ? "the state grows with i" : `a state of ${layer.tss}`;
    at("curve-title").textContent = `${layer.name}: ${layer.mixer}, ${size}`;
    if (!inBatch(layer)) {
      holder.replaceChildren("This layer has no such row.");
      curve = null;
      return;
    }
    const positions = data.positions[layer.positions];
    const width = Math.max(260, holder.clientWidth);
    const [left, right, top, plot] = [46, 10, 8, 240];
    const inner = width - left - right;
    const caps = positions.map((_, k) => capOf(layer, k) > 0 ? (state.share ? 1 : capOf(layer, k)) : null);
    const most = 1.05 * caps.reduce((a, b) => Math.max(a, b ?? 0), state.share ? 0 : 1);
    const span = Math.max(1, positions[positions.length - 1] - positions[0]);
    const x = (k) => left + inner * (positions.length > 1 ? (positions[k] - positions[0]) / span : 0.5);
    const y = (value) => top + plot * (1 - value / most);
    const svg = canvas(holder, width, top + plot + 40, `ESS against position, ${layer.mixer}`);
    for (const tick of ticks(most, 5)) {
      draw(svg, "path", { class: "axis", d: `M${left} ${y(tick)}h${inner}` });
      draw(svg, "text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick));
    }
    for (const value of positionTicks(positions, inner)) {
      const place = left + inner * (value - positions[0]) / span;
      draw(svg, "text", { x: place, y: top + plot + 17, "text-anchor": "middle" }, String(value));
    }
    const axis = `position i${state.share ? "; ESS as a share of the cap" : ""}`;
    draw(svg, "text", { x: left + inner / 2, y: top + plot + 35, "text-anchor": "middle" }, axis);
    for (const mark of marks()) {
      if (mark < positions[0] || mark > positions[positions.length - 1]) continue;
      draw(svg, "path", { class: "mark", d: `M${left + inner * (mark - positions[0]) / span} ${top}v${plot}` });
    }
    const sampled = (list) => list[state.sample].map((value, k) => scaled(layer, k, value));
    const chosen = layer.values[state.metric];
    const band = draw(svg, "path", { class: "band", d: bandOf(sampled(chosen.low), sampled(chosen.high), x, y) });
    band.style.fill = metricColour(state.metric);
    if (state.heads && chosen.heads) {
      for (const head of chosen.heads[state.sample]) {
        const values = head.map((value, k) => scaled(layer, k, value));
        draw(svg, "path", { class: "one-head", d: pathOf(values, x, y) }).style.stroke = metricColour(state.metric);
      }
    }
    layer.values.forEach((found, metric) => {
      const kind = metric === state.metric ? "line wanted" : "line";
      const line = draw(svg, "path", { class: kind, d: pathOf(sampled(found.mean), x, y) });
      line.style.stroke = metricColour(metric);
    });
    draw(svg, "path", { class: "cap", d: pathOf(caps, x, y) });
    curve = { svg, left, inner, top, plot, positions, span, x };
    drawHere();
    drawLegend(layer);
  };

  const drawLegend = (layer) => {
    const holder = at("legend");
    holder.replaceChildren();
    const entry = (text, kind, stroke) => {
      const item = holder.appendChild(document.createElement("span"));
      const svg = draw(item, "svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
      const line = draw(svg, "path", { class: kind, d: "M0 5h26" });
      if (stroke) line.style.stroke = stroke;
      item.appendChild(document.createElement("span")).textContent = text;
    };
    data.metrics.forEach((name, metric) => {
      const chosen = metric === state.metric;
      entry(chosen ? `${name}: mean, band from the smallest head to the largest` : name, chosen ? "line wanted" : "line", metricColour(metric));
    });
    entry(layer.tss === null ? "cap min(i, L-i)" : `cap min(${layer.tss}, i, L-i)`, "cap", "");
    if (marks().length) entry("delimiter has been read", "mark", "");
  };

  const drawHere = () => {
    if (!curve) return;
    curve.svg.querySelector("#here")?.remove();
    if (state.column === null) return;
    const k = places[data.layers[state.layer].positions][state.column];
    if (k < 0) return;
    draw(curve.svg, "path", { id: "here", class: "here", d: `M${curve.x(k)} ${curve.top}v${curve.plot}` });
  };

  // ---- what is under the pointer ----

  const describe = () => {
    const layer = data.layers[state.row];
    const position = columns[state.column];
    const k = places[layer.positions][state.column];
    let text = `${layer.name} (${layer.mixer}), position ${position}`;
    const words = data.tokens && data.tokens[state.sample];
    if (words && position <= words.length) {
      const quoted = (n) => n < words.length ? JSON.stringify(words[n]) : "the end";
      text += `: after ${quoted(position - 1)}, before ${quoted(position)}`;
    }
    if (k < 0 || !inBatch(layer)) {
      text += "\nnot measured here";
    } else if (capOf(layer, k) <= 0) {
      text += "\npadding, or the start of a sequence";
    } else {
      const cap = capOf(layer, k);
      const parts = data.metrics.map((name, metric) => {
        const values = layer.values[metric];
        const [middle, low, high] = [values.mean, values.low, values.high].map((list) => list[state.sample][k]);
        if (middle === null) return `${name}: bad data`;
        return `${name}: ${shown(middle)} (heads ${shown(low)} to ${shown(high)}; ${shown(100 * middle / cap)} % of cap)`;
      });
      text += `\ncap ${cap} · ${parts.join(" · ")}`;
    }
    at("readout").textContent = text;
  };

  const point = (row, column) => {
    state.row = Math.max(0, Math.min(data.layers.length - 1, row));
    state.column = Math.max(0, Math.min(columns.length - 1, column));
    drawCursor();
    drawHere();
    describe();
  };

  const choose = (layer) => {
    state.layer = layer;
    at("layer").value = String(layer);
    drawMap();
    drawCurve();
  };

  // ---- controls ----

  const fill = (select, names, change) => {
    names.forEach((name, number) => {
      const option = select.appendChild(document.createElement("option"));
      option.value = String(number);
      option.textContent = name;
    });
    select.value = "0";
    select.addEventListener("change", () => change(Number(select.value)));
  };
  const redraw = () => {
    drawMap();
    drawCurve();
    if (state.column !== null) describe();
  };
  fill(at("metric"), data.metrics, (metric) => { state.metric = metric; redraw(); });
  fill(at("sample"), Array.from({ length: data.samples }, (_, row) => String(row)), (row) => { state.sample = row; redraw(); });
  fill(at("layer"), data.layers.map((layer) => layer.name), choose);
  for (const name of ["share", "heads"]) {
    at(name).checked = state[name];  // a browser may remember another choice
    at(name).addEventListener("change", () => { state[name] = at(name).checked; redraw(); });
  }
  if (!data.layers.some((layer) => layer.values[0].heads)) {
    at("heads").disabled = true;
    at("heads").parentElement.title = "This report holds the mean, smallest and largest head only.";
  }
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());

  const cellAt = (event) => {
    const box = map.svg.getBoundingClientRect();
    const scale = map.svg.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale - map.left, (event.clientY - box.top) * scale - map.top];
    const [row, column] = [Math.floor(y / map.tall), Math.floor(x / map.inner * columns.length)];
    return { row, column, inside: row >= 0 && row < data.layers.length && column < columns.length };
  };
  at("map").addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    if (cell.inside && cell.column >= 0) point(cell.row, cell.column);
  });
  at("map").addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell.inside) return;
    if (cell.column >= 0) point(cell.row, cell.column);
    choose(cell.row);
  });
  at("map").addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const [row, column] = state.column === null ? [state.layer, 0] : [state.row, state.column];
    const moves = {
      ArrowLeft: () => point(row, column - far),
      ArrowRight: () => point(row, column + far),
      ArrowUp: () => point(row - 1, column),
      ArrowDown: () => point(row + 1, column),
      Home: () => point(row, 0),
      End: () => point(row, columns.length - 1),
      Enter: () => choose(row),
      " ": () => choose(row),
    };
    if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    moves[event.key]();
  });
  at("curve").addEventListener("pointermove", (event) => {
    if (!curve) return;
    const box = curve.svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * curve.svg.viewBox.baseVal.width / box.width - curve.left;
    const wanted = curve.positions[0] + x / curve.inner * curve.span;
    const nearest = curve.positions.reduce((a, b) => Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
    point(state.layer, columnOf.get(nearest));
  });
  for (const button of document.querySelectorAll("button[data-layer]")) {
    button.addEventListener("click", () => {
      choose(Number(button.dataset.layer));
      at("curve-title").scrollIntoView({ block: "nearest" });
    });
  }

  // where one layer's cap is far above another's, as attention's is, only shares of it can share a scale
  const tallest = data.layers.map((layer) => Math.max(...layer.caps.map((n) => data.caps[n].reduce((a, b) => Math.max(a, b), 1))));
  state.share = Math.max(...tallest) > 4 * Math.min(...tallest);
  at("share").checked = state.share;

  at("explorer").hidden = false;
  redraw();
  let width = at("map").clientWidth;
  new ResizeObserver(() => {
    if (at("map").clientWidth === width) return;
    width = at("map").clientWidth;
    redraw();
  }).observe(at("map"));
})();
