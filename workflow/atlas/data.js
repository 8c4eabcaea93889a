// What the data scripts hand over, and how the rest of the page reads it.
"use strict";

const rfatlas = (() => {
  const waiting = new Map();
  const loading = new Map();
  let overview = null;
  let byName = new Map();
  let layerOf = null;

  // data/table.js calls this once, data/layer-<n>.js the next when it is asked for.
  function table(given) {
    overview = given;
    for (const column of overview.columns) {
      if (column.kind === "number") {
        // NaN is what is missing; texts are infinities, which JSON does not have.
        column.values = Float64Array.from(column.values, (v) =>
          (v === null ? NaN : typeof v === "string" ? (v === "inf" ? Infinity : -Infinity) : v));
      }
    }
    byName = new Map(overview.columns.map((column) => [column.name, column]));
    const total = overview.layers.reduce((sum, layer) => sum + layer.channels, 0);
    layerOf = new Uint16Array(total);
    overview.layers.forEach((layer, n) =>
      layerOf.fill(n, layer.first, layer.first + layer.channels));
    document.dispatchEvent(new Event("rfatlas:ready"));
  }

  function layer(number, data) {
    waiting.get(number)?.(data);
  }

  // A page from disk may not fetch files, but it may load scripts.
  function script(source) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = source;
      element.onload = resolve;
      element.onerror = () => reject(new Error(`${source} cannot be read`));
      document.head.append(element);
    });
  }

  function loadLayer(number) {
    if (!loading.has(number)) {
      loading.set(number, new Promise((resolve, reject) => {
        waiting.set(number, resolve);
        script(`data/layer-${String(number).padStart(2, "0")}.js`).catch((error) => {
          loading.delete(number);
          reject(error);
        });
      }));
    }
    return loading.get(number);
  }

  const missing = (v) => v === null || v === "" || Number.isNaN(v);
  const column = (name) => byName.get(name);
  const value = (name, row) => {
    const found = byName.get(name);
    return found === undefined || missing(found.values[row]) ? null : found.values[row];
  };

  function text(v) {
    if (v === undefined || missing(v)) return "–";
    if (typeof v === "boolean") return v ? "yes" : "no";
    if (typeof v !== "number") return v;
    if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
    const size = Math.abs(v);
    const short = Number.isInteger(v) && size < 1e6 ? String(v)
      : size !== 0 && (size < 1e-3 || size >= 1e6) ? v.toExponential(2)
        : String(Number(v.toPrecision(4)));
    return short.replaceAll("-", "−");
  }

  const channelOf = (row) => row - overview.layers[layerOf[row]].first;
  const label = (row) => `${overview.layers[layerOf[row]].name}/${channelOf(row)}`;

  // The row of "conv1/12", -1 where there is none.
  function find(name) {
    const cut = name.lastIndexOf("/");
    const found = overview.layers.find((one) => one.name === name.slice(0, cut));
    const channel = name.slice(cut + 1);
    if (!found || !/^\d+$/.test(channel) || Number(channel) >= found.channels) return -1;
    return found.first + Number(channel);
  }

  return {
    table, layer, script, loadLayer, column, value, missing, text, channelOf, label, find,
    get overview() { return overview; },
    get total() { return layerOf.length; },
    layerOf: (row) => layerOf[row],
  };
})();
