// The page as a whole: what the controls do.
"use strict";

(() => {
  const { html } = rfatlas.draw;
  const view = rfatlas.view;
  const $ = (id) => document.getElementById(id);

  function start() {
    theme();
    layers();
    thumbnails();
    sorting();
    filters();
    selection();
    downloads();
    scatter();
    explanations();
    keyboard();
    rfatlas.grid.setup($("grid"));
    view.on("rows", status);
    view.on("selection", status);
    $("reset").addEventListener("click", reset);
    $("search").addEventListener("input", (event) => view.change({ search: event.target.value }));
    for (const [button, dialog] of [["show-columns", "columns"], ["show-help", "help"]]) {
      $(button).addEventListener("click", () => $(dialog).showModal());
      $(dialog).querySelector(".close").addEventListener("click", () => $(dialog).close());
      $(dialog).addEventListener("click", (event) => {
        if (event.target === $(dialog)) $(dialog).close();
      });
    }
    view.update();
    rfatlas.passport.setup($("passport"));
    // The library of the scatter plot is large: the grid comes first.
    requestAnimationFrame(() => setTimeout(() => rfatlas.scatter.start()));
    // For measurements: tests/benchmarks/atlas.py reads the marks.
    performance.mark("ready");
    document.body.dataset.ready = "true";
  }

  function theme() {
    const root = document.documentElement;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    let chosen = null;
    try { chosen = localStorage.getItem("rfatlas-theme"); } catch { /* storage is switched off */ }
    const set = (name) => {
      root.dataset.theme = name;
      rfatlas.scatter.draw();
    };
    set(chosen ?? (dark.matches ? "dark" : "light"));
    dark.addEventListener("change", () => chosen === null && set(dark.matches ? "dark" : "light"));
    $("theme").addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("rfatlas-theme", chosen); } catch { /* as above */ }
      set(chosen);
    });
  }

  function layers() {
    const choose = (number) => {
      for (const [i, button] of [...$("layers").children].entries()) {
        button.setAttribute("aria-pressed", String(i === (number === null ? 0 : number + 1)));
      }
      view.change({ layer: number });
    };
    const button = (name, count, number) => html("button", {
      type: "button", "aria-pressed": String(number === null), onclick: () => choose(number),
    }, name, html("span", { class: "quiet" }, ` ${count}`));
    $("layers").append(button("all layers", rfatlas.total, null),
      ...rfatlas.overview.layers.map((layer, n) => button(layer.name, layer.channels, n)));
    layers.choose = choose;
  }

  function thumbnails() {
    const kinds = Object.entries(rfatlas.overview.thumbnails);
    $("thumbnail").append(...kinds.map(([kind, title]) => html("option", { value: kind }, title)));
    $("thumbnail").disabled = kinds.length < 2;
    const show = () => rfatlas.grid.show($("thumbnail").value || null);
    $("thumbnail").addEventListener("change", show);
    queueMicrotask(show);
  }

  // The columns in groups, as docs/columns.md has them.
  function columnOptions(columns) {
    const groups = new Map();
    for (const column of columns) {
      const title = column.section;
      if (!groups.has(title)) groups.set(title, html("optgroup", { label: title }));
      groups.get(title).append(html("option", { value: column.name }, column.name));
    }
    return [...groups.values()];
  }

  function sorting() {
    $("sort").append(html("option", { value: "" }, "network order"),
      ...columnOptions(rfatlas.overview.columns));
    const direct = (descending) => {
      $("direction").setAttribute("aria-pressed", String(descending));
      $("direction").textContent = descending ? "↓" : "↑";
      return descending;
    };
    $("sort").addEventListener("change", () => {
      // Of numbers, the largest are asked for most often.
      const column = rfatlas.column($("sort").value);
      view.change({ sort: $("sort").value || null,
        descending: direct(Boolean(column) && column.kind !== "text" && column.kind !== "choice") });
    });
    $("direction").addEventListener("click", () =>
      view.change({ descending: direct(!view.state.descending) }));
  }

  function filters() {
    const refresh = () => view.change({ filters: view.state.filters });
    const add = (filter) => {
      view.state.filters.push(filter);
      const row = html("div", { class: "filter" });
      const column = html("select", { "aria-label": "Column" }, columnOptions(rfatlas.overview.columns));
      column.value = filter.column;
      const remove = html("button", { type: "button", "aria-label": "Remove this filter",
        onclick: () => {
          view.state.filters = view.state.filters.filter((one) => one !== filter);
          row.remove();
          refresh();
        } }, "×");
      const build = () => {
        const about = rfatlas.column(filter.column);
        const operator = html("select", { "aria-label": "Comparison", onchange: (event) => {
          filter.operator = event.target.value;
          value.hidden = ["known", "missing"].includes(filter.operator);
          refresh();
        } }, view.OPERATORS[about.kind].map((name) => html("option", {}, name)));
        filter.operator = operator.value;
        const take = (event) => {
          filter.value = event.target.value;
          refresh();
        };
        let value;
        if (about.kind === "boolean" || about.kind === "choice") {
          const known = about.kind === "boolean" ? ["yes", "no"]
            : [...new Set(about.values)].filter((v) => v !== null && v !== "").sort();
          value = html("select", { "aria-label": "Value", onchange: take },
            known.map((name) => html("option", {}, name)));
          filter.value = value.value;
        } else {
          value = html("input", { "aria-label": "Value", oninput: take, autocomplete: "off",
            type: about.kind === "number" ? "number" : "text", step: "any" });
          filter.value = "";
        }
        row.replaceChildren(column, operator, value, remove);
      };
      column.addEventListener("change", () => {
        filter.column = column.value;
        build();
        refresh();
      });
      build();
      $("filters").append(row);
      column.focus();
      refresh();
    };
    $("add-filter").addEventListener("click", () => {
      const first = ["inactive", "osi"].find((name) => rfatlas.column(name));
      add({ column: first ?? rfatlas.overview.columns[0].name, operator: "", value: "" });
    });
  }

  function reset() {
    $("filters").replaceChildren();
    $("search").value = "";
    view.state.filters = [];
    view.state.search = "";
    view.state.onlySelected = false;
    layers.choose(null);
  }

  function status() {
    const [shown, chosen] = [view.rows.length, view.state.selection.size];
    $("status").textContent = `${shown} of ${rfatlas.total} channels`
      + (chosen ? `, ${chosen} selected` : "");
    $("clear-selection").hidden = $("only-selected").hidden = chosen === 0;
    $("only-selected").setAttribute("aria-pressed", String(view.state.onlySelected));
    $("nothing").hidden = shown > 0;
  }

  function selection() {
    $("clear-selection").addEventListener("click", () => view.select([]));
    $("only-selected").addEventListener("click", () =>
      view.change({ onlySelected: !view.state.onlySelected }));
  }

  function downloads() {
    const cell = (v) => {
      if (rfatlas.missing(v)) return "";
      if (typeof v === "boolean") return v ? "True" : "False";
      if (v === Infinity || v === -Infinity) return v > 0 ? "inf" : "-inf";
      const text = String(v);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    $("download-table").addEventListener("click", () => {
      const columns = rfatlas.overview.columns;
      const lines = [columns.map((c) => cell(c.name)).join(",")];
      for (const row of view.rows) lines.push(columns.map((c) => cell(c.values[row])).join(","));
      rfatlas.draw.save(`${rfatlas.overview.run}_channels.csv`, [`${lines.join("\n")}\n`],
        "text/csv;charset=utf-8");
    });
    $("download-scatter").addEventListener("click", () => rfatlas.scatter.save());
  }

  function scatter() {
    const numbers = rfatlas.overview.columns.filter((c) => c.kind === "number"
      && c.name !== "channel");
    const known = numbers.filter((c) => c.values.some((v) => !rfatlas.missing(v)));
    const share = (c) => c.values.reduce((sum, v) => sum + !rfatlas.missing(v), 0) / rfatlas.total;
    const first = (...names) => names.find((name) =>
      known.some((c) => c.name === name && share(c) > 0.8));
    for (const [axis, name] of [
      ["x", first("osi", "erf_sigma", "filter_norm") ?? known[0]?.name],
      ["y", first("color_selectivity", "f1_f0", "class_selectivity", "activation_var") ?? known[0]?.name]]) {
      const select = $(`scatter-${axis}`);
      select.append(...columnOptions(known));
      select.value = name;
      rfatlas.scatter.settings[axis] = name ?? null;
      select.addEventListener("change", () => rfatlas.scatter.change({ [axis]: select.value }));
      const log = $(`scatter-${axis}-log`);
      log.addEventListener("change", () => rfatlas.scatter.change({ [`${axis}Log`]: log.checked }));
    }
    $("scatter-colour").append(...columnOptions(
      rfatlas.overview.columns.filter((c) => c.kind !== "text" && c.name !== "channel")));
    $("scatter-colour").value = rfatlas.scatter.settings.colour;
    $("scatter-colour").addEventListener("change", (event) =>
      rfatlas.scatter.change({ colour: event.target.value }));
    rfatlas.scatter.setup($("scatter"), $("scatter-note"));
  }

  // What a number means, when its name is pointed at, focused or touched.
  function explanations() {
    const box = $("tooltip");
    let term = null;
    const hide = () => {
      term = null;
      box.hidden = true;
    };
    const put = () => {
      const place = term.getBoundingClientRect();
      const size = box.getBoundingClientRect();
      const below = place.bottom + size.height + 8 < innerHeight;
      box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - size.width - 8))}px`;
      box.style.top = `${Math.max(8, below ? place.bottom + 4 : place.top - size.height - 4)}px`;
    };
    const show = (event) => {
      const found = event.target.closest?.("[data-explain]");
      if (!found) return;
      term = found;
      const about = rfatlas.column(term.dataset.explain);
      const line = (name, text) => (text ? [html("dt", {}, name), html("dd", {}, text)] : []);
      box.replaceChildren(html("strong", {}, about.name), html("p", {}, about.meaning),
        html("dl", {}, line("unit, range", about.unit), line("formula", about.formula),
          line("source", about.source)));
      // Inside the dialog, or the dialog would cover it.
      (term.closest("dialog") ?? document.body).append(box);
      term.setAttribute("aria-describedby", "tooltip");
      box.hidden = false;
      put();
    };
    for (const name of ["pointerover", "focusin", "click"]) document.addEventListener(name, show);
    for (const name of ["pointerout", "focusout"]) {
      document.addEventListener(name, (event) => event.target.closest?.("[data-explain]") && hide());
    }
    document.addEventListener("scroll", () => term && put(), { capture: true, passive: true });
  }

  function keyboard() {
    document.addEventListener("keydown", (event) => {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (document.querySelector("dialog[open]")) return;
      if (event.key === "/" && !typing) {
        event.preventDefault();
        $("search").focus();
      } else if (event.key === "Escape") {
        if (event.target === $("search") && $("search").value) {
          $("search").value = "";
          view.change({ search: "" });
        } else {
          view.select([]);
        }
      } else if (event.key === "Enter" && event.target === $("search") && view.rows.length) {
        rfatlas.grid.reveal(view.rows[0], true);
      }
    });
  }

  document.addEventListener("rfatlas:ready", start, { once: true });
})();
