// The passport of a channel: all that is known of it, each number with its explanation.
"use strict";

rfatlas.passport = (() => {
  const { html, svg, figure, lines, polar, intervals, tile } = rfatlas.draw;
  const SHOWN = 112;
  // Numbers of a section beyond these are folded away.
  const FIRST = 14;
  const MODES = ["zero", "mean", "shuffle"];
  const HERO = ["mean_image", "mean_gradient", "gabor", "effective", "stimulus", "off_stimulus"];
  // These sections come first, the others in the order of the columns.
  const ORDER = ["gratings", "color", "ablation", "gabor", "receptive_fields"];
  // Which pictures and curves belong to the columns of which stage.
  const PICTURES = {
    color: ["dkl_lum", "dkl_lm", "dkl_s"],
    virtual_filters: ["virtual_filter", "virtual_linear"],
    skip_residual: ["skip", "residual"],
  };
  let dialog, current = null;

  function setup(element) {
    dialog = element;
    dialog.addEventListener("close", () => {
      const row = current;
      current = null;
      if (location.hash) history.pushState(null, "", location.pathname + location.search);
      if (row !== null) rfatlas.grid.reveal(row, true);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SUMMARY") return;
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (step === undefined || (event.key.length > 7 && event.key !== "ArrowRight"
        && event.key !== "ArrowLeft")) return;
      event.preventDefault();
      move(step);
    });
    addEventListener("hashchange", follow);
    follow();
  }

  function follow() {
    const row = rfatlas.find(asked());
    if (row >= 0) show(row);
    else if (dialog.open) dialog.close();
  }

  // The channel in the address; an address that is no text names none.
  function asked() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return "";
    }
  }

  function open(row) {
    if (row === undefined) return;
    const hash = `#${encodeURI(rfatlas.label(row))}`;
    if (location.hash === hash) show(row);
    else location.hash = hash;
  }

  function move(step) {
    // In the order of the grid; a channel that the grid does not show, in that of the network.
    const place = rfatlas.view.rows.indexOf(current);
    const next = place < 0 ? current + step : rfatlas.view.rows[place + step];
    if (next !== undefined && next >= 0 && next < rfatlas.total) open(next);
  }

  async function show(row) {
    current = row;
    const n = rfatlas.layerOf(row);
    const layer = rfatlas.overview.layers[n];
    const channel = rfatlas.channelOf(row);
    let data = null;
    let problem = null;
    try {
      data = await rfatlas.loadLayer(n);
    } catch (error) {
      problem = error.message;
    }
    // Another channel was asked for in the meantime.
    if (current !== row) return;
    const old = dialog.querySelector("button:focus")?.className;
    dialog.replaceChildren(
      heading(row, layer, channel),
      problem === null ? "" : html("p", { class: "nothing" }, problem),
      data ? units(layer, n, channel, data) : "",
      pictures(HERO, row, layer, n, channel, data, "What it prefers"),
      html("div", { class: "cards" }, sections(row, layer, n, channel, data)));
    document.title = `${rfatlas.label(row)} · ${rfatlas.overview.run} · rfatlas`;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    const again = old && dialog.querySelector(`.${CSS.escape(old.split(" ")[0])}`);
    (again || dialog.querySelector(".close")).focus({ preventScroll: true });
  }

  function heading(row, layer, channel) {
    const chips = [
      rfatlas.value("inactive", row) ? "inactive" : null,
      rfatlas.value("orientation_selective", row) ? "orientation-selective" : null,
      rfatlas.value("color_class", row)?.replaceAll("_", "-"),
      rfatlas.value("preferred_class", row) ? `prefers ${rfatlas.value("preferred_class", row)}` : null,
    ].filter(Boolean);
    const button = (name, text, label, action, disabled) => html("button", {
      type: "button", class: name, "aria-label": label, title: label, onclick: action, disabled,
    }, text);
    return html("header", {},
      html("h2", { id: "passport-title" }, `${layer.name}/${channel}`),
      html("p", { class: "chips" }, chips.map((chip) => html("span", { class: "chip" }, chip))),
      html("div", { class: "actions" },
        button("before", "‹", "The channel before (←)", () => move(-1)),
        button("after", "›", "The channel after (→)", () => move(1)),
        button("close", "×", "Close (Esc)", () => dialog.close())));
  }

  function picture(name, layer, n, channel, label) {
    const index = layer.strip ? layer.strip.tiles.findIndex((one) => one.name === name) : -1;
    if (index < 0) return null;
    return tile(`passports/${String(n).padStart(2, "0")}/${channel}.webp`, index, layer.strip,
      SHOWN, label);
  }

  function units(layer, n, channel, data) {
    const found = data.top.units[channel];
    const names = rfatlas.overview.classNames;
    if (!layer.strip || !found.length || layer.strip.tiles[0].name !== "patch_0") {
      return found.length ? "" : html("p", { class: "quiet" }, "No image drives this channel.");
    }
    const figures = found.map(([file, label, value], rank) => {
      const name = label >= 0 ? names[label] || `class ${label}` : "";
      const image = picture(`patch_${rank}`, layer, n, channel,
        `Patch of rank ${rank + 1}${name ? `, ${name}` : ""}`);
      return image && html("figure", { class: "shot", title: data.top.files[file] }, image,
        html("figcaption", {}, html("span", { class: "clip" }, name || data.top.files[file]),
          html("span", { class: "quiet" }, rfatlas.text(value))));
    });
    return html("section", {}, html("h3", {}, "Top units"),
      html("div", { class: "shots" }, figures));
  }

  function pictures(wanted, row, layer, n, channel, data, title = null) {
    const shots = wanted.map((name) => {
      const shown = name === "gabor" ? "mean_gradient" : name;
      const about = layer.strip?.tiles.find((one) => one.name === shown);
      const drawing = name === "gabor" ? outline(row, layer) : null;
      if (!about || data?.missing[channel].includes(shown) || (name === "gabor" && !drawing)) {
        return null;
      }
      const image = picture(shown, layer, n, channel, `${about.title} of ${rfatlas.label(row)}`);
      if (drawing) image.append(drawing);
      return html("figure", { class: "shot", title: drawing ? GABOR : about.note }, image,
        html("figcaption", {}, html("span", {}, drawing ? "its Gabor" : about.title)));
    }).filter(Boolean);
    if (!shots.length) return "";
    return html("section", {}, title ? html("h3", {}, title) : "",
      html("div", { class: "shots" }, shots));
  }

  const GABOR = "The Gabor fitted to the mean gradient: its envelope at one sigma, "
    + "and a line along its bars.";

  // The Gabor fitted to the mean gradient: its envelope at one sigma, and the line of its bars.
  function outline(row, layer) {
    const [x, y, sx, sy, theta, r2] = ["x", "y", "sigma_x", "sigma_y", "theta_deg", "r2"]
      .map((name) => rfatlas.value(`gabor_${name}`, row));
    if ([x, y, sx, sy, theta].some((v) => v === null)) return null;
    const size = layer.window;
    const [cx, cy] = [size / 2 + x, size / 2 - y];
    const drawing = svg("svg", { viewBox: `0 0 ${size} ${size}`, class: "outline", role: "img",
      "aria-label": `Gabor fit: ${rfatlas.text(theta)}°, r² ${rfatlas.text(r2)}` });
    for (const [colour, width] of [["#000", 2.5], ["#fff", 1.2]]) {
      drawing.append(svg("g", { transform: `rotate(${-theta} ${cx} ${cy})`, fill: "none",
        stroke: colour, "stroke-width": width },
      svg("ellipse", { cx, cy, rx: sx, ry: sy, "vector-effect": "non-scaling-stroke" }),
      svg("line", { x1: cx, x2: cx, y1: cy - sy, y2: cy + sy, "vector-effect": "non-scaling-stroke" })));
    }
    return drawing;
  }

  const stagesOf = (columns) => columns[0].stages.split(/, */);

  function sections(row, layer, n, channel, data) {
    const bySection = new Map();
    for (const column of rfatlas.overview.columns) {
      if (column.name === "layer" || column.name === "channel") continue;
      const title = column.section;
      if (!bySection.has(title)) bySection.set(title, []);
      bySection.get(title).push(column);
    }
    const rank = (columns) => {
      const found = ORDER.findIndex((stage) => stagesOf(columns).includes(stage));
      return found < 0 ? ORDER.length : found;
    };
    const ordered = [...bySection].sort(([, a], [, b]) => rank(a) - rank(b));
    return ordered.map(([title, columns]) => {
      const stages = stagesOf(columns);
      const shown = [
        ...stages.flatMap((stage) => (PICTURES[stage]
          ? [pictures(PICTURES[stage], row, layer, n, channel, data)] : [])),
        html("div", { class: "charts" }, stages.flatMap((stage) => charts(stage, row, channel, data))),
        title === "Classes" && data?.classes ? classBars(data.classes[channel]) : "",
      ];
      const list = (some) => html("dl", {}, some.flatMap((column) => number(column, row)));
      // Of many numbers those that are not known are folded away first.
      const known = columns.filter((column) => !rfatlas.missing(column.values[row]));
      const first = columns.length > FIRST ? known.slice(0, FIRST) : columns;
      const rest = columns.filter((column) => !first.includes(column));
      return html("section", { class: "card" }, html("h3", {}, title), shown, list(first),
        rest.length
          ? html("details", {}, html("summary", {}, `${rest.length} more`), list(rest))
          : "");
    });
  }

  function number(column, row) {
    const unit = /^(°|px|octaves|cycles per pixel)/.exec(column.unit)?.[0];
    const short = { "cycles per pixel": "c/px", octaves: "oct" }[unit] ?? unit;
    const shown = rfatlas.text(column.values[row]);
    return [
      html("dt", {}, html("button", { type: "button", class: "term", "data-explain": column.name },
        column.name)),
      html("dd", {}, shown, short && shown !== "–" ? html("span", { class: "quiet" },
        short === "°" ? short : ` ${short}`) : ""),
    ];
  }

  function classBars(bars) {
    if (!bars.length) return "";
    const largest = Math.max(...bars.map(([, mean]) => Math.abs(mean)));
    return html("table", { class: "bars" },
      html("caption", {}, "Mean activation by class"),
      bars.map(([label, mean]) => html("tr", {},
        html("th", { scope: "row" }, rfatlas.overview.classNames[label] || `class ${label}`),
        html("td", {}, html("span", { class: "bar",
          style: { width: `${(100 * Math.abs(mean)) / (largest || 1)}%` } })),
        html("td", { class: "quiet" }, rfatlas.text(mean)))));
  }

  function charts(stage, row, channel, data) {
    const name = `${rfatlas.overview.run}_${rfatlas.label(row).replace("/", "_")}`;
    const found = [];
    const add = (drawing, caption, suffix) =>
      found.push(figure(drawing, caption, `${name}_${suffix}`));
    const curve = (kind) => data?.[kind]?.values[channel] ?? null;
    if (stage === "gratings") {
      const orientation = curve("orientation");
      if (orientation) {
        // The curve is periodic: it ends where it begins.
        add(lines({ x: [...data.orientation.axis, 180], series: [{ values: [...orientation, orientation[0]] }],
          xLabel: "orientation of modulation (°)", yLabel: "response",
          mark: rfatlas.value("orientation_deg", row), xTicks: [0, 45, 90, 135, 180],
          title: `Orientation tuning of ${rfatlas.label(row)}` }), "Orientation", "orientation");
      }
      const frequency = curve("frequency");
      if (frequency) {
        add(lines({ x: data.frequency.axis, series: [{ values: frequency }], log: true,
          xLabel: "spatial frequency (cycles/px)", yLabel: "response",
          mark: rfatlas.value("sf_cpp", row),
          title: `Spatial-frequency tuning of ${rfatlas.label(row)}` }), "Spatial frequency", "frequency");
      }
      const phase = curve("phase");
      if (phase) {
        add(lines({ x: [...data.phase.axis, 360], series: [{ values: [...phase, phase[0]] }],
          xLabel: "phase (°)", yLabel: "response", xTicks: [0, 90, 180, 270, 360],
          title: `Response of ${rfatlas.label(row)} to the phase of its best grating` }),
        "Phase of the best grating", "phase");
      }
    }
    if (stage === "color") {
      const hue = curve("hue");
      if (hue) {
        add(polar({ degrees: data.hue.axis, values: hue, mark: rfatlas.value("hue_deg", row),
          axes: [[0, "+L−M"], [90, "+S"], [180, "−L+M"], [270, "−S"]], rim: data.hue.colours,
          title: `Hue tuning of ${rfatlas.label(row)} in the DKL plane` }), "Hue, DKL plane (line: hue_deg)", "hue");
      }
      const axes = curve("axes");
      if (axes) {
        add(lines({ x: data.axes.axis, log: true, xLabel: "spatial frequency (cycles/px)",
          yLabel: "response", series: ["L+M", "L−M", "S−(L+M)"].map((axis, i) => (
            { name: axis, values: axes[i], colour: ["#767676", "#D55E00", "#7A5BC7"][i] })),
          title: `Responses of ${rfatlas.label(row)} to gratings along three opponent axes` }),
        "Opponent axes", "axes");
      }
    }
    if (stage === "ablation") {
      for (const [column, caption, unit] of [
        ["delta_top1", "Top-1 without it", "change of top-1 accuracy"],
        ["delta_loss", "Loss without it", "change of loss"]]) {
        const items = MODES.filter((mode) => rfatlas.column(`${mode}_${column}`)).map((mode) => ({
          name: mode,
          value: rfatlas.value(`${mode}_${column}`, row),
          low: rfatlas.value(`${mode}_${column}_lo`, row),
          high: rfatlas.value(`${mode}_${column}_hi`, row),
        })).filter((item) => item.value !== null);
        if (items.length) {
          add(intervals({ items, xLabel: `${unit}, 95 % interval`,
            title: `${caption}: ${items.map((i) => `${i.name} ${rfatlas.text(i.value)}`).join(", ")}` }),
          caption, column);
        }
      }
    }
    return found;
  }

  return { setup, open, get current() { return current; } };
})();
