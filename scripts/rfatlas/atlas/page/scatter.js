// A scatter plot of two columns, over the channels that the grid shows. What is selected here is
// selected there. uPlot draws the axes and knows where a value lies; points and tools are drawn here.
"use strict";

rfatlas.scatter = (() => {
  const { html, svg, COLOURS } = rfatlas.draw;
  const view = rfatlas.view;
  const settings = { x: null, y: null, colour: "layer", xLog: false, yLog: false };
  // Of a column with more texts than this, the rarer ones share a colour.
  const MOST_COLOURS = 6;
  const OTHER = "all other";
  const [SIZE, CHOSEN, FAINT, OPACITY] = [2.6, 4, 0.18, 0.75];
  // Pointers nearer than this to a point, in CSS pixels, mean it.
  const NEAR = 10;
  let element, note, legend, hover, reset;
  let plot = null;
  let tool = "box";
  let zoom = null;
  let asked = 0;
  let drawn = 0;
  let points = { rows: [], x: [], y: [], colours: [], names: [] };

  function setup(places) {
    ({ element, note, legend, hover, reset } = places);
    view.on("rows", draw);
    view.on("selection", () => plot?.redraw(false));
    new ResizeObserver(() => {
      if (plot) plot.setSize(size());
      else draw();
    }).observe(element);
  }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const size = () => ({ width: Math.max(element.clientWidth, 120),
    height: Math.max(element.clientHeight, 120) });
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

  function mixed(stops, share) {
    const at = clamp(share, 0, 1) * (stops.length - 1);
    const i = Math.min(Math.floor(at), stops.length - 2);
    const mix = stops[i].map((c, k) => Math.round(c + (at - i) * (stops[i + 1][k] - c)));
    return `rgb(${mix.join(",")})`;
  }

  // Figures that are saved have the colours of a light page.
  let printing = false;
  const isDark = () => !printing && document.documentElement.dataset.theme === "dark";

  // From violet over green to yellow, an order that stays one in grey; never as dark or as light as
  // the page.
  const stops = () => (isDark()
    ? [[130, 90, 190], [80, 120, 190], [40, 160, 150], [110, 200, 100], [253, 231, 37]]
    : [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 180, 98], [215, 180, 0]]);

  // On a dark page the first of the colours would be too dark.
  const palette = () => (isDark()
    ? [COLOURS[5], ...COLOURS.slice(1, 5), "#f0e442", COLOURS[6]] : COLOURS);

  const grey = () => (isDark() ? "#8a909a" : "#9a9a9a");

  // The colour of each row, and what the legend says of them.
  function colouring(rows) {
    const column = rfatlas.column(settings.colour);
    const plain = { colours: rows.map(() => palette()[0]), legend: [] };
    if (!column) return plain;
    if (column.kind === "number") {
      const values = rows.map((row) => rfatlas.value(column.name, row) ?? NaN);
      const finite = values.filter(Number.isFinite);
      if (!finite.length) return plain;
      const low = finite.reduce((a, b) => Math.min(a, b));
      const high = finite.reduce((a, b) => Math.max(a, b));
      return {
        colours: values.map((v) => (Number.isFinite(v) ? mixed(stops(), (v - low) / (high - low || 1))
          : grey())),
        legend: [], bar: { low, high, colours: stops().map((c) => `rgb(${c.join(",")})`) },
      };
    }
    if (column.name === "layer") {
      const there = new Set(rows.map(rfatlas.layerOf));
      const colour = new Map([...there].sort((a, b) => a - b).map((n, i) => [n,
        there.size > 3 ? mixed(stops(), i / (there.size - 1)) : palette()[i]]));
      return { colours: rows.map((row) => colour.get(rfatlas.layerOf(row))),
        legend: there.size > 1
          ? [...colour].map(([n, one]) => [rfatlas.overview.layers[n].name, one]) : [] };
    }
    const texts = rows.map((row) => rfatlas.text(rfatlas.value(column.name, row)));
    const count = new Map();
    for (const text of texts) if (text !== "–") count.set(text, (count.get(text) ?? 0) + 1);
    const frequent = [...count].sort((a, b) => b[1] - a[1]).slice(0, MOST_COLOURS).map(([name]) => name)
      .sort((a, b) => a.localeCompare(b));
    const colour = new Map(frequent.map((name, i) => [name, palette()[i]]));
    if (count.size > frequent.length) colour.set(OTHER, grey());
    if (texts.includes("–")) colour.set("–", grey());
    return { colours: texts.map((text) => colour.get(text) ?? grey()),
      legend: colour.size > 1 ? [...colour] : [] };
  }

  function collect() {
    const [x, y] = [rfatlas.reader(settings.x).numbers, rfatlas.reader(settings.y).numbers];
    const usable = view.rows.filter((row) => Number.isFinite(x[row]) && Number.isFinite(y[row])
      && (!settings.xLog || x[row] > 0) && (!settings.yLog || y[row] > 0));
    points = {
      rows: usable,
      x: Float64Array.from(usable, (row) => x[row]),
      y: Float64Array.from(usable, (row) => y[row]),
      ...colouring(usable),
    };
  }

  // The ends of an axis: the data with a little room, in its own scale.
  function range(values, log) {
    if (!values.length) return log ? [0.1, 10] : [0, 1];
    let [low, high] = [Infinity, -Infinity];
    for (const v of values) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
    if (log) {
      const room = (high / low) ** 0.04 || 1;
      return high > low ? [low / room, high * room] : [low / 2, high * 2];
    }
    const room = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  }

  async function draw() {
    if (!settings.x || !element?.clientWidth) return;
    const mine = ++asked;
    const names = () => [settings.x, settings.y, settings.colour];
    // Meanwhile the settings may change.
    while (!rfatlas.loaded(names())) {
      try {
        await rfatlas.need(names());
      } catch (error) {
        note.textContent = error.message;
        return;
      }
      // Another drawing was asked for.
      if (mine !== asked) return;
    }
    drawn = mine;
    collect();
    plot?.destroy();
    plot = new uPlot(options(), [null, [points.x, points.y]], element);
    plot.over.addEventListener("pointerdown", down);
    plot.over.addEventListener("pointermove", point);
    plot.over.addEventListener("pointerleave", () => { hover.hidden = true; });
    plot.over.addEventListener("dblclick", () => {
      if (zoom) unzoom();
      else view.select([]);
    });
    explain();
    reset.hidden = zoom === null;
    const left = view.rows.length - points.rows.length;
    note.textContent = left ? `Left out for want of a value: ${left} of the channels shown.` : "";
    element.setAttribute("aria-label",
      `Scatter plot of ${settings.y} against ${settings.x}, ${points.rows.length} channels`);
    if (!element.dataset.drawn) performance.mark("scatter");
    element.dataset.drawn = "true";
  }

  function options() {
    const { ticks, logTicks } = rfatlas.draw;
    const axis = (name, log) => ({
      splits: (_, __, low, high) => (log ? logTicks(low, high) : ticks(low, high, 6)),
      filter: (_, splits) => splits,
      label: name, labelSize: 22, labelFont: "12px system-ui, sans-serif",
      font: "11px system-ui, sans-serif", stroke: css("--ink"),
      grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1, size: 5 },
      values: (_, splits) => splits.map((v) => (v === null ? "" : rfatlas.text(v))),
    });
    const [x, y] = zoom ?? [range(points.x, settings.xLog), range(points.y, settings.yLog)];
    return {
      ...size(), mode: 2, legend: { show: false },
      cursor: { show: false, drag: { x: false, y: false } },
      scales: {
        x: { time: false, distr: settings.xLog ? 3 : 1, range: () => x },
        y: { distr: settings.yLog ? 3 : 1, range: () => y },
      },
      axes: [{ ...axis(settings.x, settings.xLog), size: 34 },
        { ...axis(settings.y, settings.yLog), size: 56 }],
      series: [{}, { facets: [{ scale: "x", auto: true }, { scale: "y", auto: true }], paths }],
    };
  }

  // Many points are small and faint, or they would hide each other.
  const crowd = () => Math.min(1, Math.max(0.4, Math.sqrt(4000 / (points.rows.length || 1))));
  // The points in an order without layers: with a step that shares no factor with their number, each
  // comes once.
  function* mixedOrder() {
    const count = points.rows.length;
    const step = [7919, 7907, 7901].find((prime) => count % prime) ?? 1;
    for (let k = 0, i = 0; k < count; k++, i = (i + step) % count) yield i;
  }

  const anySelected = () => points.rows.some((row) => view.state.selection.has(row));

  function paths(u) {
    const { ctx } = u;
    const ratio = uPlot.pxRatio;
    const any = anySelected();
    const dots = (chosen) => {
      ctx.globalAlpha = chosen ? 1 : (any ? FAINT : OPACITY) * crowd();
      const radius = (chosen ? CHOSEN : SIZE * Math.sqrt(crowd())) * ratio;
      for (const i of mixedOrder()) {
        if ((any && view.state.selection.has(points.rows[i])) !== chosen) continue;
        ctx.fillStyle = points.colours[i];
        ctx.beginPath();
        ctx.arc(u.valToPos(points.x[i], "x", true), u.valToPos(points.y[i], "y", true), radius, 0,
          2 * Math.PI);
        ctx.fill();
      }
    };
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    dots(false);
    if (any) dots(true);
    ctx.restore();
    return null;
  }

  function explain() {
    const swatch = (colour) => html("span", { class: "swatch", style: { background: colour } });
    const { bar } = points;
    legend.replaceChildren(...(bar
      ? [html("span", { class: "quiet" }, settings.colour), rfatlas.text(bar.low),
        html("span", { class: "ramp",
          style: { background: `linear-gradient(to right, ${bar.colours.join(",")})` } }),
        rfatlas.text(bar.high)]
      : points.legend.map(([name, colour]) => html("span", { class: "key" }, swatch(colour), name))));
  }

  // Where the points are in the plot's area, in CSS pixels.
  const place = (i) => [plot.valToPos(points.x[i], "x"), plot.valToPos(points.y[i], "y")];

  function nearest(x, y) {
    let [best, distance] = [-1, NEAR ** 2];
    for (let i = 0; i < points.rows.length; i++) {
      const [px, py] = place(i);
      const d = (px - x) ** 2 + (py - y) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    return best;
  }

  function at(event) {
    const area = plot.over.getBoundingClientRect();
    return [event.clientX - area.left, event.clientY - area.top];
  }

  // The channel under the pointer, with its picture.
  function point(event) {
    if (event.buttons) return;
    const [x, y] = at(event);
    const i = nearest(x, y);
    plot.over.style.cursor = i < 0 ? "crosshair" : "pointer";
    hover.hidden = i < 0;
    if (i < 0) return;
    const row = points.rows[i];
    hover.replaceChildren(rfatlas.grid.picture(row) ?? "",
      html("strong", {}, rfatlas.label(row)),
      html("span", {}, `${settings.x} ${rfatlas.text(points.x[i])}`),
      html("span", {}, `${settings.y} ${rfatlas.text(points.y[i])}`));
    const box = hover.getBoundingClientRect();
    hover.style.left = `${clamp(event.clientX + 14, 4, innerWidth - box.width - 4)}px`;
    hover.style.top = `${clamp(event.clientY + 14, 4, innerHeight - box.height - 4)}px`;
  }

  // A box or a lasso, from where the pointer goes down until it goes up again.
  function down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    hover.hidden = true;
    const { over } = plot;
    over.setPointerCapture(event.pointerId);
    const trace = [at(event)];
    const shape = svg("path", { class: "drawn" });
    const sheet = svg("svg", { class: "sheet" }, shape);
    over.append(sheet);
    const corners = () => {
      const [[x0, y0], [x1, y1]] = [trace[0], trace.at(-1)];
      return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
    };
    const outline = () => (tool === "lasso" ? trace : corners());
    const move = (moved) => {
      const { width, height } = over.getBoundingClientRect();
      const [x, y] = at(moved);
      trace.push([clamp(x, 0, width), clamp(y, 0, height)]);
      shape.setAttribute("d", `${rfatlas.draw.path(outline())}Z`);
    };
    const stop = () => {
      over.removeEventListener("pointermove", move);
      over.removeEventListener("pointerup", up);
      over.removeEventListener("pointercancel", stop);
      sheet.remove();
    };
    const up = (last) => {
      move(last);
      stop();
      const far = trace.some(([x, y]) => Math.hypot(x - trace[0][0], y - trace[0][1]) > 4);
      if (!far) tap(trace[0], last);
      else if (tool === "zoom") zoomTo(corners());
      else pick(outline(), last);
    };
    over.addEventListener("pointermove", move);
    over.addEventListener("pointerup", up);
    over.addEventListener("pointercancel", stop);
  }

  function tap([x, y], event) {
    const i = nearest(x, y);
    if (i < 0) return;
    const row = points.rows[i];
    if (adds(event)) view.toggle(row);
    else view.select([row]);
    rfatlas.grid.reveal(row, false);
  }

  // With Shift, Ctrl, or the switch beside the grid, what is picked comes to what is selected.
  const adds = (event) => event.shiftKey || event.ctrlKey || event.metaKey || rfatlas.grid.selecting;

  function inside([x, y], outline) {
    let within = false;
    for (let i = 0, j = outline.length - 1; i < outline.length; j = i++) {
      const [[xi, yi], [xj, yj]] = [outline[i], outline[j]];
      if ((yi > y) !== (yj > y) && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
    }
    return within;
  }

  function pick(outline, event) {
    const chosen = points.rows.filter((_, i) => inside(place(i), outline));
    view.select(adds(event) ? [...view.state.selection, ...chosen] : chosen);
    const first = view.rows.find((row) => view.state.selection.has(row));
    if (first !== undefined) rfatlas.grid.reveal(first, false);
  }

  function zoomTo([[x0, y0], , [x1, y1]]) {
    const ends = (a, b, scale) => [plot.posToVal(a, scale), plot.posToVal(b, scale)].sort((u, v) => u - v);
    zoom = [ends(x0, x1, "x"), ends(y0, y1, "y")];
    draw();
  }

  function unzoom() {
    zoom = null;
    draw();
  }

  function change(values) {
    Object.assign(settings, values);
    zoom = null;
    return draw();
  }

  // What the colours mean, as the first lines of a saved figure: the parts, and how many lines.
  function key({ legend: names, bar }, left, right) {
    if (bar) {
      const width = 24;
      const words = `${settings.colour}: ${rfatlas.text(bar.low)}`;
      const from = left + 7 * words.length + 8;
      return [[svg("text", { x: left, y: 20 }, words),
        svg("text", { x: from + width * bar.colours.length + 8, y: 20 }, rfatlas.text(bar.high)),
        bar.colours.map((fill, i) => svg("rect", { x: from + i * width, y: 10, width, height: 12,
          fill }))].flat(), 1];
    }
    let [x, line] = [left, 0];
    const parts = names.flatMap(([name, colour]) => {
      const width = 26 + 6.5 * name.length;
      if (x > left && x + width > right) [x, line] = [left, line + 1];
      const found = [svg("circle", { cx: x + 5, cy: 16 + 18 * line, r: 5, fill: colour }),
        svg("text", { x: x + 14, y: 20 + 18 * line }, name)];
      x += width;
      return found;
    });
    return [parts, line + 1];
  }

  // The plot as it stands, as a drawing of its own.
  function save() {
    if (!plot) return;
    printing = true;
    const colours = colouring(points.rows);
    printing = false;
    const [W, left, right, bottom] = [800, 70, 20, 52];
    const [keys, keyLines] = key(colours, left, W - right);
    const top = 16 + 18 * keyLines;
    const H = 566 + top;
    const { ticks, logTicks } = rfatlas.draw;
    const { x: sx, y: sy } = plot.scales;
    const scaled = (v, log) => (log ? Math.log10(v) : v);
    const along = (v, { min, max }, log, from, to) => from
      + ((scaled(v, log) - scaled(min, log)) / (scaled(max, log) - scaled(min, log))) * (to - from);
    const px = (v) => along(v, sx, settings.xLog, left, W - right);
    const py = (v) => along(v, sy, settings.yLog, H - bottom, top);
    const marks = ({ min, max }, log) => (log ? logTicks(min, max) : ticks(min, max, 6));
    const line = (x1, y1, x2, y2) => svg("line", { x1, y1, x2, y2, stroke: "#d0d0d0" });
    const text = (x, y, anchor, words, more = {}) =>
      svg("text", { x, y, "text-anchor": anchor, ...more }, words);
    const any = anySelected();
    const dots = points.rows.map((row, i) => {
      const chosen = any && view.state.selection.has(row);
      const [cx, cy] = [px(points.x[i]), py(points.y[i])];
      if (cx < left || cx > W - right || cy < top || cy > H - bottom) return null;
      return svg("circle", { cx: cx.toFixed(2), cy: cy.toFixed(2), r: chosen ? CHOSEN : SIZE,
        fill: colours.colours[i], "fill-opacity": chosen ? 1 : any ? FAINT : OPACITY },
      svg("title", {}, rfatlas.label(row)));
    });
    const middle = (top + H - bottom) / 2;
    const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, "font-size": 12,
      "font-family": "sans-serif", fill: "currentColor" },
    marks(sx, settings.xLog).flatMap((t) => [line(px(t), top, px(t), H - bottom),
      text(px(t), H - bottom + 16, "middle", rfatlas.text(t))]),
    marks(sy, settings.yLog).flatMap((t) => [line(left, py(t), W - right, py(t)),
      text(left - 6, py(t) + 4, "end", rfatlas.text(t))]),
    dots, keys,
    svg("path", { d: `M${left},${top}V${H - bottom}H${W - right}`, fill: "none", stroke: "currentColor" }),
    text((left + W - right) / 2, H - 12, "middle", settings.x),
    text(18, middle, "middle", settings.y, { transform: `rotate(-90 18 ${middle})` }));
    rfatlas.draw.saveSvg(drawing, `${rfatlas.overview.run}_${settings.y}_${settings.x}`);
  }

  return {
    setup, change, draw, save, settings, unzoom,
    use: (name) => { tool = name; },
    // For tests: what is plotted, and where the values of the axes lie on the page.
    get points() { return points; },
    get plot() { return plot; },
    get settled() { return plot !== null && drawn === asked; },
  };
})();
