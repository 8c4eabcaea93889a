// The passport of a channel: all that is known of it, each number with its explanation, and for what
// is not known why it is not.
"use strict";

rfatlas.passport = (() => {
  const { html, svg, figure, lines, polar, intervals, surface, tile } = rfatlas.draw;
  const SHOWN = 112;
  // Numbers of a section beyond these are folded away.
  const FIRST = 14;
  // A Gaussian that explains less of the mean absolute gradient says nothing about its width.
  const GOOD_FIT = 0.5;
  const MODES = ["zero", "mean", "shuffle"];
  // How far the other numbers can be trusted.
  const TRUST = ["split_half", "n_units", "certificate_max", "gradient_change", "energy_inside", "erf_r2", "gabor_r2",
    "gabor_n_starts_agreeing", "gabor_converged", "grating_blank_dependent", "sf_aliased",
    "grating_suppressed", "contrast_saturated", "size_r2", "contrast_r2",
    "stimulus_agreement", "stimulus_converged", "stimulus_gain", "virtual_match", "zero_n_exact", "zero_n_estimate", "zero_q"];
  let dialog, current = null;

  function setup(element) {
    dialog = element;
    dialog.addEventListener("close", () => {
      const row = current;
      current = null;
      document.title = `${rfatlas.overview.run} · rfatlas`;
      if (rfatlas.address.channel) rfatlas.address.visit("");
      if (row !== null) rfatlas.grid.reveal(row, true);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SUMMARY") return;
      // Up and down scroll.
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      move(step);
    });
  }

  // Show the channel of this name, or none; the address has changed.
  function follow(name) {
    const row = rfatlas.find(name);
    if (row >= 0 && row !== current) show(row);
    else if (row < 0 && dialog.open) dialog.close();
  }

  function open(row) {
    if (row !== undefined) rfatlas.address.visit(rfatlas.label(row));
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
    const of = { row, n, layer, channel: rfatlas.channelOf(row), label: rfatlas.label(row) };
    const old = dialog.querySelector("button:focus")?.className;
    let content;
    try {
      Object.assign(of, await rfatlas.facts(row));
      content = [heading(of), glance(of), units(of), pictures(firstStages(), of, "What it prefers"),
        html("div", { class: "cards" }, html("div"), html("div"))];
    } catch (error) {
      content = [heading({ ...of, get: () => null }), html("p", { class: "nothing" }, error.message)];
    }
    // Another channel was asked for in the meantime.
    if (current !== row) return;
    dialog.replaceChildren(...content);
    document.title = `${of.label} · ${rfatlas.overview.run} · rfatlas`;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    if (of.data) stack(dialog.querySelector(".cards"), sections(of));
    const again = old && dialog.querySelector(`.${CSS.escape(old.split(" ")[0])}`);
    (again || dialog.querySelector(".close")).focus({ preventScroll: true });
    dialog.dataset.shows = of.label;
  }

  // Two columns of about the same height, the first cards on top.
  function stack(place, cards) {
    const [left, right] = place.children;
    // A narrow page has one column.
    const one = right.offsetTop > left.offsetTop;
    for (const card_ of cards) {
      (one || left.offsetHeight <= right.offsetHeight ? left : right).append(card_);
    }
  }

  function heading({ row, label, get }) {
    const chips = [
      get("inactive") ? "inactive" : null,
      get("orientation_selective") ? "orientation-selective" : null,
      get("color_class")?.replaceAll("_", "-"),
    ].filter(Boolean);
    const button = (name, text, title, action) => html("button", {
      type: "button", class: name, "aria-label": title, title, onclick: action,
    }, text);
    const chosen = () => rfatlas.view.state.selection.has(row);
    const select = html("button", { type: "button", class: "choose", "aria-pressed": String(chosen()),
      onclick: () => {
        rfatlas.view.toggle(row);
        select.setAttribute("aria-pressed", String(chosen()));
      } }, "Select");
    return html("header", {},
      html("h2", { id: "passport-title" }, label),
      html("p", { class: "chips" }, chips.map((chip) => html("span", { class: "chip" }, chip))),
      html("div", { class: "actions" }, select,
        button("before", "‹", "The channel before (←)", () => move(-1)),
        button("after", "›", "The channel after (→)", () => move(1)),
        button("close", "×", "Close (Esc)", () => dialog.close())));
  }

  const term = (name, text = name) =>
    html("button", { type: "button", class: "term", "data-explain": name }, text);
  const brief = (v) => rfatlas.text(typeof v === "number" ? Number(v.toPrecision(3)) : v);
  const points = (share) => `${share > 0 ? "+" : ""}${brief(100 * share)}`;
  const interval = (of, mode) => {
    const [lo, hi] = ["lo", "hi"].map((end) => of.get(`${mode}_delta_top1_${end}`));
    if (lo === null || hi === null) return "";
    const [exact, all] = ["exact", "estimate"].map((kind) => of.get(`${mode}_n_${kind}`));
    const images = all === null ? "" : `; exact on ${exact} images, estimated on ${all}`;
    return `95 % interval ${points(lo)} to ${points(hi)}${images}`;
  };

  // The numbers that a reader asks for first.
  function glance(of) {
    const { get } = of;
    const shown = (name, unit = "") => (get(name) === null ? null : `${brief(get(name))}${unit}`);
    const mode = MODES.find((one) => get(`${one}_delta_top1`) !== null) ?? "zero";
    const effect = get(`${mode}_delta_top1`);
    // A double-opponent channel hardly answers to uniform fields: its colour is that of gratings.
    const gratings = get("color_class") === "double_opponent";
    // A channel without opponency has no hue: cone weights are not opponency.
    const opponent = gratings || get("color_class") === "single_opponent";
    const hue = opponent ? get(gratings ? "color_direction_deg" : "hue_deg") : null;
    const fits = get("erf_r2") >= GOOD_FIT;
    const label = get("preferred_label");
    // What is left of a dead channel prefers nothing.
    const dead = get("inactive") && get("color_class") === "unresponsive";
    const cells = [
      ["orientation_deg", "orientation", shown("orientation_deg", "°"),
        [shown("osi") && `OSI ${shown("osi")}`, shown("bandwidth_deg") && `± ${shown("bandwidth_deg")}°`,
          get("grating_blank_dependent") ? "depends on the blank" : null]],
      ["sf_cpp", "spatial frequency", shown("sf_cpp", " c/px"),
        [shown("sf_bandwidth_oct") && `${shown("sf_bandwidth_oct")} octaves`,
          shown("f1_f0") && `F1/F0 ${shown("f1_f0")}`, get("sf_aliased") ? "aliased" : null]],
      ["color_class", "colour", get("color_class")?.replaceAll("_", "-") ?? null,
        [hue === null ? null : `${gratings ? "direction" : "hue"} ${rfatlas.text(Math.round(hue))}°`,
          get("color_class") === "non_opponent" ? "no hue of its own" : null,
          shown("color_sensitivity_lm_same_sf") && `sensitivity L−M ${
            shown("color_sensitivity_lm_same_sf")}, S ${shown("color_sensitivity_s_same_sf") ?? "–"}`]],
      ["erf_sigma", "effective RF", fits ? shown("erf_sigma", " px") : null,
        ["sigma", get("rf_local_size") === null ? null
          : `of ${shown("rf_local_size")} px${get("rf_kind") === "local" ? ", the local field" : ""}`]],
      [`${mode}_delta_top1`, "top-1 without it", effect === null ? null : `${points(effect)} points`,
        [interval(of, mode)]],
      ["preferred_class", "prefers",
        dead || label === null ? null : get("preferred_class") ?? `class ${label}`,
        [shown("class_selectivity") && `selectivity ${shown("class_selectivity")}`]],
      ["split_half", "reliability", shown("split_half"), ["split-half correlation"]],
    ].filter(([name]) => rfatlas.column(name));
    return html("dl", { class: "glance" }, cells.map(([name, title, main, more]) => html("div", {},
      html("dt", {}, term(name, title)),
      html("dd", {}, html("strong", { title: main }, main ?? "–"),
        main === null ? "" : html("span", {}, more.filter(Boolean).join(", "))))));
  }

  // Why there is nothing of a stage for this channel; `otherwise` where nothing else is known.
  function why(stage, { get }, otherwise = "there is none of this channel") {
    const { absent, reason, reasons } = rfatlas.stage(stage);
    const said = (reason && get(reason)) || "";
    if (absent) return absent;
    if (said in reasons) return reasons[said];
    if (said && said !== "not_measured") return said;
    if (rfatlas.column("n_units")) {
      if (get("n_units") === null) return "it is not among the channels of receptive_fields.channels";
      if (get("n_units") === 0) return "no image drives it";
    }
    return said || otherwise;
  }

  function picture(name, { layer, n, channel }, label) {
    const index = layer.strip ? layer.strip.tiles.indexOf(name) : -1;
    if (index < 0) return null;
    return tile(`passports/${rfatlas.padded(n, 2)}/${channel}.webp`, index, layer.strip, SHOWN, label);
  }

  function units(of) {
    const { data, i } = of;
    const names = rfatlas.overview.classNames;
    const section = (...content) => html("section", {}, html("h3", {}, "Top patches"), ...content);
    if (!data.top.units[i].length) {
      return section(html("p", { class: "quiet" }, "No image drives this channel."));
    }
    const has = (rank) => of.layer.strip?.tiles.includes(`patch_${rank}`)
      && !data.missing[i].includes(`patch_${rank}`);
    const pictured = has(0);
    const figures = data.top.units[i].map(([file, label, value], rank) => {
      const name = label >= 0 ? names[label] || `class ${label}` : "";
      const image = has(rank)
        ? picture(`patch_${rank}`, of, `Patch of rank ${rank + 1}${name ? `, ${name}` : ""}`) : null;
      if (!image && pictured) return null;
      return html("figure", { class: "shot", title: data.top.files[file] }, image,
        html("figcaption", {}, html("span", { class: "clip" }, name || data.top.files[file]),
          html("span", { class: "quiet" }, rfatlas.text(value))));
    });
    return section(pictured ? "" : html("p", { class: "quiet" },
      `Without pictures: ${why("receptive_fields", of)}.`), html("div", { class: "shots" }, figures));
  }

  const firstStages = () => rfatlas.overview.stages.filter((stage) => stage.first);

  function pictures(stages, of, title = null) {
    const shots = stages.flatMap((stage) => stage.pictures.map((about) => shot(stage, about, of)));
    return html("section", {}, title ? html("h3", {}, title) : "",
      html("div", { class: "shots" }, shots));
  }

  // A picture of the channel, one of them with an outline over it, or why there is none.
  function shot(stage, { name, title, note, over }, of) {
    const shown = over || name;
    const drawing = over ? outline(name, of) : null;
    const image = of.data.missing[of.i].includes(shown) || (over && !drawing) ? null
      : picture(shown, of, over ? note : `${title} of ${of.label}`);
    if (image && drawing) image.append(drawing);
    const reason = image ? "" : why(stage.name, of);
    return html("figure", { class: "shot", title: image && note },
      image ?? html("div", { class: "gap", role: "img", "aria-label": `No ${title}: ${reason}` },
        // Names of settings may break after their dots and underscores.
        html("span", {}, `Not computed: ${reason}.`.replace(/[._](?=\w)/g, "$&\u200b"))),
      html("figcaption", {}, title));
  }

  // A Gabor, of the columns that begin with this name: its envelope at one sigma, and the line of
  // its bars.
  function outline(prefix, { get, layer }) {
    const [x, y, sx, sy, theta, r2] = ["x", "y", "sigma_x", "sigma_y", "theta_deg", "r2"]
      .map((name) => get(`${prefix}_${name}`));
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
  const card = (title, ...content) => html("section", { class: "card" }, html("h3", {}, title), ...content);

  function sections(of) {
    const bySection = new Map();
    for (const column of rfatlas.overview.columns) {
      if (column.name === "layer" || column.name === "channel") continue;
      if (!bySection.has(column.section)) bySection.set(column.section, []);
      bySection.get(column.section).push(column);
    }
    const cards = [...bySection].map(([title, columns]) => ({
      stages: stagesOf(columns), make: () => sectionCard(title, columns, of),
    }));
    // A stage that is off has no columns, and still says so.
    const there = new Set(cards.flatMap(({ stages }) => stages));
    for (const { name, title, absent } of rfatlas.overview.stages) {
      if (there.has(name) || !absent) continue;
      cards.push({ stages: [name], make: () => card(title, html("p", { class: "quiet" },
        `Not computed: ${absent}.`)) });
    }
    // Those with charts come first.
    const first = Object.keys(CHARTS).flatMap((stage) => cards.filter(({ stages }) => stages.includes(stage)));
    const rest = cards.filter((one) => !first.includes(one));
    return [...first.map((one) => one.make()), trust(of), others(of), ...rest.map((one) => one.make())]
      .filter(Boolean);
  }

  function sectionCard(title, columns, of) {
    const stages = stagesOf(columns);
    const list = (some) => html("dl", {}, some.flatMap((column) => number(column, of)));
    // Of many numbers those that are not known are folded away first.
    const known = columns.filter((column) => !rfatlas.missing(of.get(column.name)));
    const empty = stages.find((stage) => known.length <= 1 && rfatlas.stage(stage)?.reason
      && of.get(rfatlas.stage(stage).reason));
    const pictured = stages.map(rfatlas.stage).filter((stage) => stage?.pictures.length && !stage.first);
    const first = empty ? [] : columns.length > FIRST ? known.slice(0, FIRST) : columns;
    const rest = columns.filter((column) => !first.includes(column));
    return card(title,
      pictured.length ? pictures(pictured, of) : "",
      html("div", { class: "charts" }, stages.flatMap((stage) => CHARTS[stage]?.(stage, of) ?? [])),
      stages.includes("ablation") ? classLosses(of) : "",
      title === "Classes" ? classBars(of) : "",
      empty ? html("p", { class: "quiet" }, `Not computed: ${why(empty, of)}.`) : list(first),
      rest.length ? folded(empty ? `${rest.length} columns` : `${rest.length} more`, () => list(rest)) : "");
  }

  // What is made only when a reader unfolds it: most numbers of most passports are never looked at.
  function folded(title, make) {
    const details = html("details", {}, html("summary", {}, title));
    details.addEventListener("toggle", () => details.append(make()), { once: true });
    return details;
  }

  function trust(of) {
    const columns = TRUST.map(rfatlas.column)
      .filter((column) => column && !rfatlas.missing(of.get(column.name)));
    return columns.length ? card("How reliable this is",
      html("dl", {}, columns.flatMap((column) => number(column, of)))) : "";
  }

  // The channels of other networks that the stage compare matched with this one.
  function others({ data, i, layer }) {
    const found = data.matches[i];
    if (!found.length) return "";
    const { runs } = rfatlas.overview;
    const name = ([run, channel]) => `${layer.name}/${channel}`;
    return card("Its match in other networks",
      html("p", { class: "quiet" },
        "Paired so that the sum of the correlations over images is largest; unrelated channels are "
          + "paired, too, and correlate a little."),
      html("dl", {}, found.flatMap((match) => [
        html("dt", {}, match[0]),
        html("dd", {}, runs.includes(match[0])
          ? html("a", { href: `../../${encodeURIComponent(match[0])}/atlas/index.html#${rfatlas.address.encoded(name(match))}` },
            name(match))
          : name(match),
        html("span", { class: "quiet" }, ` correlation ${rfatlas.text(match[2])}`))])));
  }

  function number(column, of) {
    const unit = /^(°|px|octaves|cycles per pixel)/.exec(column.unit)?.[0];
    const short = { "cycles per pixel": "c/px", octaves: "oct" }[unit] ?? unit;
    const shown = rfatlas.text(of.get(column.name));
    return [
      html("dt", {}, term(column.name)),
      html("dd", {}, shown, short && shown !== "–" ? html("span", { class: "quiet" },
        short === "°" ? short : ` ${short}`) : ""),
    ];
  }

  const className = (label) => rfatlas.overview.classNames[label] || `class ${label}`;

  function bars(caption, rows, largest) {
    return html("table", { class: "bars" }, html("caption", {}, caption),
      html("tbody", {}, rows.map(({ label, share, text, loses }) => html("tr", {},
        html("th", { scope: "row" }, className(label)),
        html("td", {}, html("span", { class: loses ? "bar loses" : "bar",
          style: { width: `${(100 * Math.abs(share)) / (largest || 1)}%` } })),
        html("td", { class: "quiet" }, text)))));
  }

  function classBars({ data, i }) {
    const found = data.classes?.[i] ?? [];
    if (!found.length) return "";
    return bars("Mean activation by class",
      found.map(([label, mean]) => ({ label, share: mean, text: rfatlas.text(mean) })),
      Math.max(...found.map(([, mean]) => Math.abs(mean))));
  }

  // The classes that lose and gain most without the channel.
  function classLosses({ data, i }) {
    const found = data.losses?.values[i];
    if (!found) return "";
    const mode = data.losses.mode;
    if (!found.length) {
      return html("p", { class: "quiet" }, `No class changes without it (${mode}).`);
    }
    const rows = found.map(([label, change, images]) => ({ label, share: change, loses: change < 0,
      text: `${points(change)} points of ${images} ${images === 1 ? "image" : "images"}` }));
    return bars(`Top-1 accuracy by class without it (${mode})`, rows,
      Math.max(...found.map(([, change]) => Math.abs(change))));
  }

  // A chart that there is not, and why.
  const gap = (caption, stage, of, otherwise) => html("figure", { class: "chart" },
    html("figcaption", {}, caption),
    html("p", { class: "gap wide-gap" }, `Not computed: ${why(stage, of, otherwise)}.`));

  const curve = ({ data, i }, kind) => data[kind]?.values[i] ?? null;

  function chart(drawing, caption, { label }, suffix) {
    const name = `${rfatlas.overview.run}_${label.replace("/", "_")}`;
    return figure(drawing, caption, `${name}_${suffix}`);
  }

  // What is drawn of a stage; their sections come first, in this order.
  const CHARTS = {
    gratings: tuning,
    size: withFit("size", "Size tuning", "diameter (px)", "size_summation_px"),
    contrast: withFit("contrast", "Response to contrast", "contrast", "contrast_half"),
    color: colours,
    ablation: effects,
  };

  function tuning(stage, of) {
    const { data, i, label, get } = of;
    const [orientation, frequency, phase] = ["orientation", "frequency", "phase"]
      .map((kind) => curve(of, kind));
    if (!orientation) return [gap("Orientation, spatial frequency, phase", stage, of)];
    const [o, f] = [data.surface.orientation, data.surface.frequency];
    const all = rfatlas.bytes(data.surface.values[i]);
    const best = all.indexOf(255);
    return [
      // The curve is periodic: it ends where it begins.
      chart(lines({ x: [...data.orientation.axis, 180], series: [{ values: [...orientation, orientation[0]] }],
        xLabel: "orientation of modulation (°)", yLabel: "response", mark: get("orientation_deg"),
        xTicks: [0, 45, 90, 135, 180], title: `Orientation tuning of ${label}` }),
      "Orientation", of, "orientation"),
      chart(lines({ x: data.frequency.axis, series: [{ values: frequency }], log: true,
        xLabel: "spatial frequency (cycles/px)", yLabel: "response", mark: get("sf_cpp"),
        title: `Spatial-frequency tuning of ${label}` }), "Spatial frequency", of, "frequency"),
      chart(surface({ orientations: o, frequencies: f, values: all,
        mark: [Math.floor(best / f.length), best % f.length],
        title: `Responses of ${label} to all gratings` }), "All gratings", of, "gratings"),
      chart(lines({ x: [...data.phase.axis, 360], series: [{ values: [...phase, phase[0]] }],
        xLabel: "phase (°)", yLabel: "response", xTicks: [0, 90, 180, 270, 360],
        title: `Response of ${label} to the phase of its best grating` }),
      "Phase of the best grating", of, "phase"),
    ];
  }

  // Responses of the channel's own grating over a logarithmic axis, and a curve fitted to them.
  function withFit(kind, caption, xLabel, mark) {
    return (stage, of) => {
      const found = curve(of, kind);
      if (!found) return [gap(caption, stage, of)];
      const [values, fit] = found;
      return [chart(lines({ x: of.data[kind].axis, log: true, xLabel, yLabel: "response",
        series: [{ name: "measured", values }, { name: "fit", values: fit, dash: "4 3" }],
        mark: of.get(mark), title: `${caption} of ${of.label}` }), caption, of, kind)];
    };
  }

  function colours(stage, of) {
    const { data, label, get } = of;
    const [hue, axes, direction] = ["hue", "axes", "direction"].map((kind) => curve(of, kind));
    return [
      hue && get("color_class") !== "unresponsive"
        ? chart(polar({ degrees: data.hue.axis, values: hue, mark: get("hue_deg"),
          axes: [[0, "+L−M"], [90, "+S"], [180, "−L+M"], [270, "−S"]], rim: data.hue.colours,
          title: `Hue tuning of ${label} in the DKL plane` }),
        "Hue, DKL plane (line: hue_deg)", of, "hue")
        : gap("Hue, DKL plane", stage, of, "no uniform field drives it"),
      axes
        ? chart(lines({ x: data.axes.axis, log: true, xLabel: "spatial frequency (cycles/px)",
          yLabel: "response", series: ["L+M", "L−M", "S−(L+M)"].map((axis, k) => (
            { name: axis, values: axes[k], colour: ["#767676", "#D55E00", "#7A5BC7"][k] })),
          title: `Responses of ${label} to gratings along three opponent axes` }),
        "Gratings along the opponent axes", of, "axes")
        : gap("Gratings along the opponent axes", stage, of),
      direction && chart(lines({ x: [...data.direction.axis, 180],
        series: [{ values: [...direction, direction[0]] }], xTicks: [0, 45, 90, 135, 180],
        xLabel: "direction of colour (°): 0 L−M, 90 S", yLabel: "response",
        mark: get("color_direction_deg"),
        title: `Tuning of ${label} to the direction of colour of gratings` }),
      "Coloured gratings", of, "direction"),
    ];
  }

  function effects(stage, of) {
    const { get } = of;
    return [
      ["delta_top1", "Top-1 without it", "change of top-1 accuracy"],
      ["delta_loss", "Loss without it", "change of loss (nats)"],
    ].map(([column, caption, unit]) => {
      const items = MODES.filter((mode) => rfatlas.column(`${mode}_${column}`)).map((mode) => ({
        name: mode,
        value: get(`${mode}_${column}`),
        low: get(`${mode}_${column}_lo`),
        high: get(`${mode}_${column}_hi`),
      })).filter((item) => item.value !== null);
      if (!items.length) return column === "delta_top1" ? gap(caption, stage, of) : null;
      return chart(intervals({ items, xLabel: `${unit}, 95 % interval`,
        title: `${caption}: ${items.map((one) => `${one.name} ${rfatlas.text(one.value)}`).join(", ")}` }),
      caption, of, column);
    });
  }

  return { setup, open, follow, get current() { return current; } };
})();
