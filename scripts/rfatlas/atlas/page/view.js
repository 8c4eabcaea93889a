// Which channels are shown and in what order, and which of them are selected.
"use strict";

rfatlas.view = (() => {
  const OPERATORS = {
    number: ["≥", "≤", "=", "≠", "known", "missing"],
    boolean: ["is", "known", "missing"],
    choice: ["is", "is not", "known", "missing"],
    text: ["contains", "is", "is not", "known", "missing"],
  };
  const state = {
    layer: null, search: "", filters: [], sort: null, descending: false,
    selection: new Set(), onlySelected: false,
  };
  const listeners = { rows: [], selection: [], problem: [] };
  let rows = [];
  let asked = 0;
  let done = 0;

  const { missing } = rfatlas;
  const textual = () => rfatlas.overview.columns
    .filter((c) => (c.kind === "choice" || c.kind === "text") && c.name !== "layer")
    .map((c) => c.name);

  // A test of one row; a filter without a value yet lets everything pass.
  function test(filter) {
    const { at } = rfatlas.reader(filter.column);
    if (filter.operator === "missing") return (row) => missing(at(row));
    if (filter.operator === "known") return (row) => !missing(at(row));
    if (filter.value === "") return () => true;
    const kind = rfatlas.column(filter.column).kind;
    if (kind === "number") {
      const bound = Number(filter.value);
      // NaN, which is what is missing, fails each of them.
      return {
        "≥": (row) => at(row) >= bound,
        "≤": (row) => at(row) <= bound,
        "=": (row) => at(row) === bound,
        "≠": (row) => !missing(at(row)) && at(row) !== bound,
      }[filter.operator];
    }
    if (kind === "boolean") return (row) => at(row) === (filter.value === "yes");
    const wanted = filter.value.toLowerCase();
    return (row) => {
      const has = at(row)?.toLowerCase();
      if (has === undefined) return false;
      if (filter.operator === "contains") return has.includes(wanted);
      return (has === wanted) === (filter.operator === "is");
    };
  }

  // A word is looked for in the name of the channel and in all columns with texts.
  function word(wanted) {
    const hits = textual().map((name) => {
      const { values, codes } = rfatlas.reader(name);
      const fits = values.map((text) => text.toLowerCase().includes(wanted));
      return (row) => codes[row] > 0 && fits[codes[row] - 1];
    });
    return (row) => {
      const label = rfatlas.label(row).toLowerCase();
      return label.includes(wanted) || hits.some((hit) => hit(row));
    };
  }

  function tests() {
    const found = state.filters.map(test);
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const name = words.length === 1 && words[0].includes("/");
    if (name) {
      found.push((row) => {
        const label = rfatlas.label(row).toLowerCase();
        return /\d$/.test(words[0]) ? label.endsWith(words[0]) : label.includes(words[0]);
      });
    } else if (words.length) {
      found.push(...words.map(word));
    }
    return found;
  }

  function order(list) {
    const column = state.sort && rfatlas.column(state.sort);
    if (!column) return state.descending ? list.reverse() : list;
    const sign = state.descending ? -1 : 1;
    const { at } = rfatlas.reader(state.sort);
    return list.sort((a, b) => {
      const [v, w] = [at(a), at(b)];
      // Missing values stand last either way.
      if (missing(v) || missing(w)) return missing(v) - missing(w) || a - b;
      return (typeof v === "string" ? v.localeCompare(w) : v - w) * sign || a - b;
    });
  }

  function needed() {
    return [
      ...state.filters.map((filter) => filter.column),
      ...(state.sort ? [state.sort] : []),
      ...(state.search.trim() ? textual() : []),
    ];
  }

  async function update() {
    const mine = ++asked;
    while (!rfatlas.loaded(needed())) {
      try {
        await rfatlas.need(needed());
      } catch (error) {
        done = mine;
        listeners.problem.forEach((listener) => listener(error.message));
        return;
      }
      // Something else was asked for in the meantime.
      if (mine !== asked) return;
    }
    const list = [];
    const only = state.onlySelected && state.selection.size > 0;
    const passes = tests();
    for (let row = 0; row < rfatlas.total; row++) {
      if (state.layer !== null && rfatlas.layerOf(row) !== state.layer) continue;
      if (only && !state.selection.has(row)) continue;
      if (passes.every((pass) => pass(row))) list.push(row);
    }
    rows = order(list);
    done = mine;
    listeners.rows.forEach((listener) => listener());
  }

  function change(values) {
    Object.assign(state, values);
    return update();
  }

  function select(chosen) {
    const only = state.onlySelected;
    state.selection = new Set(chosen);
    if (state.selection.size === 0) state.onlySelected = false;
    listeners.selection.forEach((listener) => listener());
    // With "only these" on, or just off, what is shown has changed as well.
    if (only) update();
  }

  function toggle(row) {
    const chosen = new Set(state.selection);
    if (!chosen.delete(row)) chosen.add(row);
    select(chosen);
  }

  return {
    OPERATORS, state, change, update, select, toggle,
    on: (what, listener) => listeners[what].push(listener),
    get rows() { return rows; },
    // Whether the rows are those that were asked for last.
    get settled() { return done === asked; },
  };
})();
