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
  const listeners = { rows: [], selection: [] };
  let rows = [];
  let haystack = null;

  const { missing } = rfatlas;

  function passes(filter, row) {
    const v = rfatlas.value(filter.column, row);
    if (filter.operator === "missing") return missing(v);
    if (filter.operator === "known") return !missing(v);
    // A filter without a value yet lets everything pass.
    if (filter.value === "") return true;
    if (missing(v)) return false;
    const kind = rfatlas.column(filter.column).kind;
    if (kind === "number") {
      const bound = Number(filter.value);
      return { "≥": v >= bound, "≤": v <= bound, "=": v === bound, "≠": v !== bound }[filter.operator];
    }
    if (kind === "boolean") return v === (filter.value === "yes");
    const has = String(v).toLowerCase();
    const wanted = filter.value.toLowerCase();
    if (filter.operator === "contains") return has.includes(wanted);
    return (has === wanted) === (filter.operator === "is");
  }

  function words(row) {
    haystack ??= new Array(rfatlas.total);
    haystack[row] ??= [
      rfatlas.label(row),
      rfatlas.label(row).replace("/", " "),
      ...rfatlas.overview.columns.filter((c) => c.kind === "choice" || c.kind === "text")
        .map((c) => c.values[row] ?? ""),
    ].join(" ").toLowerCase();
    return haystack[row];
  }

  function found(row, asked) {
    if (asked.length === 1 && asked[0].includes("/")) {
      const label = rfatlas.label(row).toLowerCase();
      return /\d$/.test(asked[0]) ? label.endsWith(asked[0]) : label.includes(asked[0]);
    }
    return asked.every((word) => words(row).includes(word));
  }

  function order(list) {
    const column = state.sort && rfatlas.column(state.sort);
    if (!column) return state.descending ? list.reverse() : list;
    const sign = state.descending ? -1 : 1;
    const values = column.values;
    return list.sort((a, b) => {
      const [v, w] = [values[a], values[b]];
      // Missing values stand last either way.
      if (missing(v) || missing(w)) return missing(v) - missing(w) || a - b;
      return (typeof v === "string" ? v.localeCompare(w) : v - w) * sign || a - b;
    });
  }

  function update() {
    const list = [];
    const asked = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const only = state.onlySelected && state.selection.size > 0;
    for (let row = 0; row < rfatlas.total; row++) {
      if (state.layer !== null && rfatlas.layerOf(row) !== state.layer) continue;
      if (only && !state.selection.has(row)) continue;
      if (!state.filters.every((filter) => passes(filter, row))) continue;
      if (asked.length && !found(row, asked)) continue;
      list.push(row);
    }
    rows = order(list);
    listeners.rows.forEach((listener) => listener());
  }

  function change(values) {
    Object.assign(state, values);
    update();
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
  };
})();
