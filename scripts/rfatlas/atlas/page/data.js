// What the data scripts hand over, and how the rest of the page reads it.
"use strict";

const rfatlas = (() => {
  const waiting = new Map();
  const columns = new Map();
  const loading = new Map();
  const passports = new Map();
  // Passports are looked at one after the other; the blocks looked at before are let go.
  const MOST_BLOCKS = 4;
  let overview = null;
  let byName = new Map();
  let stages = new Map();
  let layerOf = null;

  // Each data script calls this once, with its own name.
  function receive(name, data) {
    if (name === "overview") begin(data);
    else waiting.get(name)?.(data);
    waiting.delete(name);
  }

  function begin(given) {
    overview = given;
    byName = new Map(overview.columns.map((column, place) => [column.name, { ...column, place }]));
    overview.columns = [...byName.values()];
    stages = new Map(overview.stages.map((stage) => [stage.name, stage]));
    const total = overview.layers.reduce((sum, layer) => sum + layer.channels, 0);
    layerOf = new Uint16Array(total);
    overview.layers.forEach((layer, n) =>
      layerOf.fill(n, layer.first, layer.first + layer.channels));
    document.dispatchEvent(new Event("rfatlas:ready"));
  }

  // A page from disk may not fetch files, but it may load scripts.
  function load(name) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      waiting.set(name, resolve);
      element.src = `data/${name}.js`;
      element.onload = () => element.remove();
      element.onerror = () => {
        element.remove();
        waiting.delete(name);
        reject(new Error(`data/${name}.js cannot be read`));
      };
      document.head.append(element);
    });
  }

  const padded = (number, digits) => String(number).padStart(digits, "0");

  function bytes(text) {
    const raw = atob(text);
    const found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }

  // `at(row)` gives a number (NaN where missing), a truth value or a text (null where missing).
  function reader(data) {
    if (data.numbers !== undefined) {
      const numbers = new Float64Array(bytes(data.numbers).buffer);
      return { numbers, at: (row) => numbers[row] };
    }
    const codes = new Uint32Array(bytes(data.codes).buffer);
    return { values: data.values, codes, at: (row) => (codes[row] ? data.values[codes[row] - 1] : null) };
  }

  const wanted = (names) => names.filter((name) => byName.has(name) && !columns.has(name));
  const loaded = (names) => wanted(names).length === 0;

  function loadColumn(name) {
    if (!loading.has(name)) {
      loading.set(name, load(`column-${padded(byName.get(name).place, 3)}`)
        .then((data) => columns.set(name, reader(data)))
        .finally(() => loading.delete(name)));
    }
    return loading.get(name);
  }

  const need = (names) => Promise.all(wanted(names).map(loadColumn));

  const have = () => new Set(columns.keys());

  // Lets go of the columns that were not there at the time of `kept`.
  function release(kept) {
    for (const name of columns.keys()) if (!kept.has(name)) columns.delete(name);
  }

  // All that a passport shows: `get(name)` is the value of a column, null where missing.
  async function facts(row) {
    const n = layerOf[row];
    const block = Math.floor(channelOf(row) / overview.block);
    const name = `passports-${padded(n, 2)}-${padded(block, 2)}`;
    if (!passports.has(name)) passports.set(name, load(name));
    const asked = passports.get(name);
    passports.delete(name);
    passports.set(name, asked);
    for (const old of passports.keys()) {
      if (passports.size > MOST_BLOCKS) passports.delete(old);
    }
    try {
      const data = await asked;
      const i = row - data.first;
      return { data, i, get: (column) => known(data.values[i], column) };
    } catch (error) {
      passports.delete(name);
      throw error;
    }
  }

  function known(values, name) {
    const about = byName.get(name);
    if (about === undefined) return null;
    const v = values[about.place];
    // JSON has no infinities.
    if (about.kind === "number" && typeof v === "string") return v === "inf" ? Infinity : -Infinity;
    return v;
  }

  const missing = (v) => v === null || v === "" || Number.isNaN(v);
  const column = (name) => byName.get(name);
  const at = (name, row) => columns.get(name)?.at(row) ?? null;
  const value = (name, row) => {
    const found = at(name, row);
    return missing(found) ? null : found;
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
    receive, need, loaded, have, release, facts, column, value, missing, text, bytes, padded,
    channelOf, label, find,
    reader: (name) => columns.get(name),
    // What the register of stages says of one, with the reason why it is `absent`; undefined of one
    // that brings no columns.
    stage: (name) => stages.get(name),
    get overview() { return overview; },
    get total() { return layerOf.length; },
    layerOf: (row) => layerOf[row],
  };
})();
