// Elements and small figures. Text always goes in as text, never as markup.
"use strict";

rfatlas.draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  // Okabe and Ito's colours, distinct under the common colour-vision deficiencies.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676"];

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "style") {
        for (const [key, text] of Object.entries(value)) {
          if (key.startsWith("--")) element.style.setProperty(key, text);
          else element.style[key] = text;
        }
      } else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
    return element;
  }

  const html = (tag, attributes = {}, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  function save(name, parts, type) {
    const url = URL.createObjectURL(new Blob(parts, { type }));
    html("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  function saveSvg(element, name) {
    const copy = element.cloneNode(true);
    copy.setAttribute("xmlns", SVG);
    copy.style.color = "#1a1a1a";
    copy.style.background = "#ffffff";
    save(`${name}.svg`, ['<?xml version="1.0"?>\n', new XMLSerializer().serializeToString(copy)],
      "image/svg+xml");
  }

  // A figure with its caption and a button that saves it.
  function figure(drawing, caption, name) {
    const button = html("button", {
      type: "button", class: "tiny", title: "Save this figure as SVG",
      "aria-label": `Save as SVG: ${caption}`, onclick: () => saveSvg(drawing, name),
    }, "SVG");
    return html("figure", { class: "chart" },
      html("figcaption", {}, caption, " ", button), drawing);
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) {
      found.push(Math.abs(t) < step * 1e-6 ? 0 : t);
    }
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const m of [1, 2, 5]) {
        const t = m * 10 ** p;
        if (t >= low * 0.999 && t <= high * 1.001) found.push(t);
      }
    }
    return found.length > 6 ? found.filter((_, i) => i % 2 === 0) : found;
  }

  const path = (points) =>
    points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

  // Lines over a common axis. `series`: [{values, colour, name, dash}]; `log`: logarithmic x;
  // `mark`: an x to point at, `xTicks` its own ticks.
  function lines({ x, series, xLabel, yLabel, log = false, mark = null, xTicks = null, title }) {
    const [W, H, left, right, bottom] = [300, 190, 54, 10, 38];
    // Several lines have a legend above them.
    const top = series.length > 1 ? 24 : 10;
    const scale = log ? Math.log : (v) => v;
    const [lo, hi] = [scale(x[0]), scale(x[x.length - 1])];
    const px = (v) => left + ((scale(v) - lo) / (hi - lo || 1)) * (W - left - right);
    const all = series.flatMap((s) => s.values).filter((v) => v !== null);
    const ymax = Math.max(...all, 0) || 1;
    const ymin = Math.min(...all, 0);
    const py = (v) => H - bottom - ((v - ymin) / (ymax - ymin)) * (H - top - bottom);
    const parts = [];
    for (const t of ticks(ymin, ymax, 4)) {
      parts.push(
        svg("line", { x1: left, x2: W - right, y1: py(t), y2: py(t), stroke: "currentColor",
          "stroke-opacity": 0.15 }),
        svg("text", { x: left - 5, y: py(t) + 3.5, "text-anchor": "end" }, rfatlas.text(t)));
    }
    for (const t of xTicks ?? (log ? logTicks(x[0], x[x.length - 1]) : ticks(x[0], x[x.length - 1], 5))) {
      parts.push(
        svg("line", { x1: px(t), x2: px(t), y1: H - bottom, y2: H - bottom + 4,
          stroke: "currentColor" }),
        svg("text", { x: px(t), y: H - bottom + 15, "text-anchor": "middle" }, rfatlas.text(t)));
    }
    parts.push(
      svg("path", { d: `M${left},${top}V${H - bottom}H${W - right}`, fill: "none",
        stroke: "currentColor" }),
      svg("text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }, xLabel),
      svg("text", { x: 10, y: (top + H - bottom) / 2, "text-anchor": "middle",
        transform: `rotate(-90 10 ${(top + H - bottom) / 2})` }, yLabel));
    if (mark !== null && mark >= x[0] && mark <= x[x.length - 1]) {
      parts.push(svg("line", { x1: px(mark), x2: px(mark), y1: top, y2: H - bottom,
        stroke: "currentColor", "stroke-dasharray": "3 3", "stroke-opacity": 0.6 }));
    }
    series.forEach((s, i) => {
      const colour = s.colour ?? COLOURS[i % COLOURS.length];
      const points = s.values.map((v, k) => [px(x[k]), py(v ?? 0)]);
      parts.push(svg("path", { d: path(points), fill: "none", stroke: colour, "stroke-width": 2,
        "stroke-dasharray": s.dash }));
      for (const [cx, cy] of points.length <= 40 && !s.dash ? points : []) {
        parts.push(svg("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: 2, fill: colour }));
      }
      if (series.length > 1) {
        parts.push(
          svg("line", { x1: left + 76 * i, x2: left + 76 * i + 16, y1: 8, y2: 8, stroke: colour,
            "stroke-width": 2, "stroke-dasharray": s.dash }),
          svg("text", { x: left + 76 * i + 20, y: 11.5 }, s.name));
      }
    });
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title,
      "font-size": 10.5, "font-family": "system-ui, sans-serif", fill: "currentColor" }, parts);
  }

  // A curve around a circle: `degrees` counter-clockwise from the right. `rim` colours the circle.
  function polar({ degrees, values, mark, axes, rim, title }) {
    const [W, H, R] = [300, 230, 78];
    const [cx, cy] = [W / 2, H / 2];
    const at = (deg, r) => {
      const a = (deg * Math.PI) / 180;
      return [cx + r * Math.cos(a), cy - r * Math.sin(a)];
    };
    const largest = Math.max(...values) || 1;
    const parts = [];
    const step = 360 / rim.length;
    rim.forEach((colour, i) => {
      const [x1, y1] = at((i - 0.55) * step, R + 7);
      const [x2, y2] = at((i + 0.55) * step, R + 7);
      parts.push(svg("path", { d: `M${x1},${y1}A${R + 7},${R + 7} 0 0 0 ${x2},${y2}`,
        fill: "none", stroke: colour, "stroke-width": 8 }));
    });
    for (const share of [0.5, 1]) {
      parts.push(svg("circle", { cx, cy, r: R * share, fill: "none", stroke: "currentColor",
        "stroke-opacity": 0.2 }));
    }
    for (const [deg, name] of axes) {
      const [x2, y2] = at(deg, R);
      const [tx, ty] = at(deg, R + 18);
      const anchor = Math.abs(tx - cx) < 5 ? "middle" : tx > cx ? "start" : "end";
      parts.push(
        svg("line", { x1: cx, y1: cy, x2, y2, stroke: "currentColor", "stroke-opacity": 0.2 }),
        svg("text", { x: tx, y: ty + 4, "text-anchor": anchor }, name));
    }
    const points = values.map((v, i) => at(degrees[i], (R * v) / largest));
    parts.push(svg("path", { d: `${path(points)}Z`, fill: COLOURS[0], "fill-opacity": 0.2,
      stroke: COLOURS[0], "stroke-width": 2 }));
    if (mark !== null && mark !== undefined) {
      const [x2, y2] = at(mark, R);
      parts.push(svg("line", { x1: cx, y1: cy, x2, y2, stroke: COLOURS[1], "stroke-width": 2 }));
    }
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title,
      "font-size": 10.5, "font-family": "system-ui, sans-serif", fill: "currentColor" }, parts);
  }

  // Values with intervals, one per line. `items`: [{name, value, low, high, text}].
  function intervals({ items, xLabel, title }) {
    const [W, row, left, right, top] = [300, 24, 66, 12, 8];
    const H = top + row * items.length + 38;
    const all = items.flatMap((i) => [i.value, i.low, i.high, 0]).filter((v) => v !== null);
    let [lo, hi] = [Math.min(...all), Math.max(...all)];
    const pad = (hi - lo || 1) * 0.08;
    [lo, hi] = [lo - pad, hi + pad];
    const px = (v) => left + ((v - lo) / (hi - lo)) * (W - left - right);
    const parts = [svg("line", { x1: px(0), x2: px(0), y1: top, y2: H - 32, stroke: "currentColor",
      "stroke-opacity": 0.4, "stroke-dasharray": "3 3" })];
    items.forEach((item, i) => {
      const y = top + row * (i + 0.5);
      parts.push(svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, item.name));
      if (item.low !== null && item.high !== null) {
        parts.push(svg("line", { x1: px(item.low), x2: px(item.high), y1: y, y2: y,
          stroke: COLOURS[0], "stroke-width": 2 }));
      }
      parts.push(svg("circle", { cx: px(item.value), cy: y, r: 4, fill: COLOURS[0] }));
    });
    for (const t of ticks(lo, hi, 4)) {
      parts.push(
        svg("line", { x1: px(t), x2: px(t), y1: H - 32, y2: H - 28, stroke: "currentColor" }),
        svg("text", { x: px(t), y: H - 17, "text-anchor": "middle" }, rfatlas.text(t)));
    }
    parts.push(
      svg("line", { x1: left, x2: W - right, y1: H - 32, y2: H - 32, stroke: "currentColor" }),
      svg("text", { x: (left + W - right) / 2, y: H - 3, "text-anchor": "middle" }, xLabel));
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title,
      "font-size": 10.5, "font-family": "system-ui, sans-serif", fill: "currentColor" }, parts);
  }

  // Responses to all gratings: `values` bytes, orientation by orientation; `mark` [orientation,
  // frequency] is the best one.
  function surface({ orientations, frequencies, values, mark, title }) {
    const [W, H, left, right, top, bottom] = [300, 190, 68, 10, 10, 38];
    const [w, h] = [(W - left - right) / orientations.length, (H - top - bottom) / frequencies.length];
    const y = (k) => H - bottom - (k + 1) * h;
    const parts = [];
    orientations.forEach((_, o) => frequencies.forEach((__, f) => {
      const share = values[o * frequencies.length + f] / 255;
      parts.push(svg("rect", { x: (left + o * w).toFixed(1), y: y(f).toFixed(1),
        width: (w + 0.3).toFixed(1), height: (h + 0.3).toFixed(1), fill: COLOURS[0],
        "fill-opacity": share.toFixed(3) }));
    }));
    const step = orientations.length > 1 ? orientations[1] - orientations[0] : 180;
    const px = (degrees) => left + (degrees / step + 0.5) * w;
    for (const t of [0, 45, 90, 135]) {
      parts.push(svg("text", { x: px(t), y: H - bottom + 15, "text-anchor": "middle" }, String(t)));
    }
    frequencies.forEach((v, k) => {
      if (k % Math.ceil(frequencies.length / 6) === 0) {
        parts.push(svg("text", { x: left - 5, y: y(k) + h / 2 + 3.5, "text-anchor": "end" },
          rfatlas.text(Number(v.toPrecision(2)))));
      }
    });
    if (mark) {
      parts.push(svg("rect", { x: left + mark[0] * w, y: y(mark[1]), width: w, height: h,
        fill: "none", stroke: COLOURS[1], "stroke-width": 2 }));
    }
    parts.push(
      svg("rect", { x: left, y: top, width: W - left - right, height: H - top - bottom, fill: "none",
        stroke: "currentColor", "stroke-opacity": 0.5 }),
      svg("text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" },
        "orientation of modulation (°)"),
      svg("text", { x: 10, y: (top + H - bottom) / 2, "text-anchor": "middle",
        transform: `rotate(-90 10 ${(top + H - bottom) / 2})` }, "cycles/px"));
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title,
      "font-size": 10.5, "font-family": "system-ui, sans-serif", fill: "currentColor" }, parts);
  }

  // A tile of a sprite sheet or strip, shown at `shown` CSS pixels.
  function tile(source, index, { side, columns, rows }, shown, label) {
    const [row, column] = [Math.floor(index / columns), index % columns];
    return html("div", {
      class: side < 40 ? "tile pixels" : "tile", role: "img", "aria-label": label,
      style: {
        width: `${shown}px`, height: `${shown}px`, backgroundImage: `url("${source}")`,
        backgroundSize: `${columns * shown}px ${rows * shown}px`,
        backgroundPosition: `${-column * shown}px ${-row * shown}px`,
      },
    });
  }

  return { COLOURS, html, svg, save, saveSvg, figure, ticks, logTicks, path, lines, polar, intervals,
    surface, tile };
})();
