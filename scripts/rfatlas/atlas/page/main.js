// The page as a whole: what the controls do.
"use strict";

(() => {
  const { html } = rfatlas.draw;
  const view = rfatlas.view;
  const $ = (id) => document.getElementById(id);

  async function start() {
    theme();
    layers();
    thumbnails();
    sorting();
    filters();
    selection();
    downloads();
    scatter();
    dialogs();
    explanations();
    keyboard();
    rfatlas.grid.setup($("grid"));
    rfatlas.passport.setup($("passport"));
    view.on("rows", status);
    view.on("rows", keep);
    view.on("selection", status);
    view.on("problem", (message) => { $("status").textContent = message; });
    $("reset").addEventListener("click", reset);
    $("search").addEventListener("input", (event) => view.change({ search: event.target.value }));
    // What a cell says of its channel.
    await rfatlas.need(["inactive", "preferred_class", "preferred_label"]).catch(() => {});
    await rfatlas.address.setup(restore);
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

  // What can be set, as it stands in the address; null is the setting that the page begins with.
  function keep() {
    const { state } = view;
    const { settings } = rfatlas.scatter;
    rfatlas.address.keep([
      ["layer", state.layer === null ? null : rfatlas.overview.layers[state.layer].name],
      ["q", state.search.trim() || null],
      ["sort", state.sort],
      ["desc", state.descending ? "1" : null],
      ["show", $("thumbnail").selectedIndex > 0 ? $("thumbnail").value : null],
      ...state.filters.map(({ column, operator, value }) => ["f", `${column} ${operator} ${value}`.trim()]),
      ...["x", "y", "colour"].map((name) =>
        [name, settings[name] === scatter.first[name] ? null : settings[name]]),
      ["log", (settings.xLog ? "x" : "") + (settings.yLog ? "y" : "") || null],
    ]);
  }

  // The settings of an address; what it does not name stands as in the beginning.
  async function restore(given) {
    const known = (name) => (rfatlas.column(given.get(name)) ? given.get(name) : null);
    const layer = rfatlas.overview.layers.findIndex((one) => one.name === given.get("layer"));
    layers.mark(layer < 0 ? null : layer);
    $("search").value = given.get("q") ?? "";
    sorting.set(known("sort"), given.get("desc") === "1");
    if (given.has("show")) $("thumbnail").value = given.get("show");
    if ($("thumbnail").selectedIndex < 0) $("thumbnail").selectedIndex = 0;
    rfatlas.grid.show($("thumbnail").value || null);
    filters.clear();
    for (const text of given.getAll("f")) {
      const [column, ...rest] = text.split(" ");
      const operators = view.OPERATORS[rfatlas.column(column)?.kind] ?? [];
      // "is not" before "is".
      const operator = operators.filter((one) => `${rest.join(" ")} `.startsWith(`${one} `))
        .sort((a, b) => b.length - a.length)[0];
      if (operator) {
        filters.add({ column, operator, value: rest.join(" ").slice(operator.length + 1) });
      }
    }
    for (const name of ["x", "y", "colour"]) $(`scatter-${name}`).value = known(name) ?? scatter.first[name];
    for (const name of ["x", "y"]) $(`scatter-${name}-log`).checked = (given.get("log") ?? "").includes(name);
    Object.assign(rfatlas.scatter.settings, scatter.chosen());
    await view.change({ layer: layer < 0 ? null : layer, search: $("search").value });
  }

  function layers() {
    layers.mark = (number) => {
      for (const [i, button] of [...$("layers").children].entries()) {
        button.setAttribute("aria-pressed", String(i === (number === null ? 0 : number + 1)));
      }
    };
    layers.choose = (number) => {
      layers.mark(number);
      view.change({ layer: number });
    };
    const button = (name, count, number) => html("button", {
      type: "button", "aria-pressed": String(number === null), onclick: () => layers.choose(number),
    }, name, html("span", { class: "quiet" }, ` ${count}`));
    $("layers").append(button("all layers", rfatlas.total, null),
      ...rfatlas.overview.layers.map((layer, n) => button(layer.name, layer.channels, n)));
  }

  function thumbnails() {
    const kinds = Object.entries(rfatlas.overview.thumbnails);
    $("thumbnail").append(...kinds.map(([kind, title]) => html("option", { value: kind }, title)));
    $("thumbnail").disabled = kinds.length < 2;
    $("thumbnail").addEventListener("change", () => {
      rfatlas.grid.show($("thumbnail").value || null);
      keep();
    });
  }

  // The columns in groups, as docs/columns.md has them.
  function columnOptions(columns) {
    const groups = new Map();
    for (const column of columns) {
      const title = column.section;
      if (!groups.has(title)) groups.set(title, html("optgroup", { label: title }));
      groups.get(title).append(html("option", { value: column.name,
        disabled: column.known === 0 }, column.name));
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
    sorting.set = (name, descending) => {
      $("sort").value = name ?? "";
      Object.assign(view.state, { sort: name, descending: direct(descending) });
    };
    $("sort").addEventListener("change", () => {
      // Of numbers, the largest are asked for most often.
      const column = rfatlas.column($("sort").value);
      sorting.set(column?.name ?? null,
        Boolean(column) && column.kind !== "text" && column.kind !== "choice");
      view.update();
    });
    $("direction").addEventListener("click", () =>
      view.change({ descending: direct(!view.state.descending) }));
  }

  function filters() {
    const refresh = () => view.update();
    filters.clear = () => {
      $("filters").replaceChildren();
      view.state.filters = [];
    };
    filters.add = (filter) => {
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
        const names = view.OPERATORS[about.kind];
        if (!names.includes(filter.operator)) Object.assign(filter, { operator: names[0], value: null });
        const bare = () => ["known", "missing"].includes(filter.operator);
        const operator = html("select", { "aria-label": "Comparison", onchange: (event) => {
          filter.operator = event.target.value;
          value.hidden = bare();
          refresh();
        } }, names.map((name) => html("option", {}, name)));
        operator.value = filter.operator;
        const take = (event) => {
          filter.value = event.target.value;
          refresh();
        };
        let value;
        if (about.kind === "boolean" || about.kind === "choice") {
          value = html("select", { "aria-label": "Value", onchange: take },
            (about.kind === "boolean" ? ["yes", "no"] : about.choices)
              .map((name) => html("option", { value: name }, name)));
        } else {
          value = html("input", { "aria-label": "Value", oninput: take, autocomplete: "off",
            type: about.kind === "number" ? "number" : "text", step: "any" });
        }
        if (filter.value !== null) value.value = filter.value;
        filter.value = value.value;
        value.hidden = bare();
        row.replaceChildren(column, operator, value, remove);
      };
      column.addEventListener("change", () => {
        filter.column = column.value;
        filter.operator = "";
        build();
        refresh();
      });
      build();
      $("filters").append(row);
      return column;
    };
    $("add-filter").addEventListener("click", () => {
      const first = ["inactive", "osi"].find((name) => rfatlas.column(name));
      filters.add({ column: first ?? rfatlas.overview.columns[0].name, operator: "", value: null }).focus();
      refresh();
    });
  }

  function reset() {
    filters.clear();
    $("search").value = "";
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
    $("select-shown").addEventListener("click", () => view.select(view.rows));
    $("selecting").addEventListener("click", () => {
      const on = !rfatlas.grid.selecting;
      rfatlas.grid.selectByClick(on);
      $("selecting").setAttribute("aria-pressed", String(on));
      $("select-shown").hidden = !on;
    });
  }

  function downloads() {
    const cell = (v) => {
      if (rfatlas.missing(v)) return "";
      if (typeof v === "boolean") return v ? "True" : "False";
      if (v === Infinity || v === -Infinity) return v > 0 ? "inf" : "-inf";
      const text = String(v);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    $("download-table").addEventListener("click", async () => {
      const names = rfatlas.overview.columns.map((column) => column.name);
      const kept = rfatlas.have();
      $("status").textContent = "Putting the table together …";
      try {
        await rfatlas.need(names);
      } catch (error) {
        $("status").textContent = error.message;
        return;
      }
      const readers = names.map(rfatlas.reader);
      const lines = [names.map(cell).join(",")];
      for (const row of view.rows) lines.push(readers.map(({ at }) => cell(at(row))).join(","));
      rfatlas.draw.save(`${rfatlas.overview.run}_channels.csv`, [`${lines.join("\n")}\n`],
        "text/csv;charset=utf-8");
      rfatlas.release(kept);
      status();
    });
    $("download-scatter").addEventListener("click", () => rfatlas.scatter.save());
  }

  function scatter() {
    const numbers = rfatlas.overview.columns.filter((c) => c.kind === "number"
      && c.name !== "channel" && c.known > 0);
    const first = (...names) => names.find((name) =>
      numbers.some((c) => c.name === name && c.known > 0.5 * rfatlas.total));
    scatter.first = {
      x: first("osi", "erf_sigma", "filter_norm") ?? numbers[0]?.name ?? null,
      y: first("color_selectivity", "f1_f0", "class_selectivity", "activation_var")
        ?? numbers[0]?.name ?? null,
      colour: "layer",
    };
    scatter.chosen = () => ({
      x: $("scatter-x").value || null, y: $("scatter-y").value || null,
      colour: $("scatter-colour").value,
      xLog: $("scatter-x-log").checked, yLog: $("scatter-y-log").checked,
    });
    for (const axis of ["x", "y"]) $(`scatter-${axis}`).append(...columnOptions(numbers));
    $("scatter-colour").append(...columnOptions(
      rfatlas.overview.columns.filter((c) => c.kind !== "text" && c.name !== "channel")));
    for (const axis of ["x", "y", "colour"]) $(`scatter-${axis}`).value = scatter.first[axis];
    for (const id of ["x", "y", "colour", "x-log", "y-log"]) {
      $(`scatter-${id}`).addEventListener("change", () => {
        rfatlas.scatter.change(scatter.chosen());
        keep();
      });
    }
    Object.assign(rfatlas.scatter.settings, scatter.chosen());
    const tools = [...document.querySelectorAll("[data-tool]")];
    for (const button of tools) {
      button.addEventListener("click", () => {
        rfatlas.scatter.use(button.dataset.tool);
        for (const one of tools) one.setAttribute("aria-pressed", String(one === button));
      });
    }
    $("unzoom").addEventListener("click", () => rfatlas.scatter.unzoom());
    rfatlas.scatter.setup({ element: $("scatter"), note: $("scatter-note"),
      legend: $("scatter-legend"), hover: $("hover"), reset: $("unzoom") });
  }

  function dialogs() {
    for (const name of ["columns", "findings", "help"]) {
      const [button, dialog] = [$(`show-${name}`), $(name)];
      button.addEventListener("click", () => {
        if (name === "columns") glossary();
        if (name === "findings") overview();
        dialog.showModal();
      });
      dialog.querySelector(".close").addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => {
        if (event.target === dialog) dialog.close();
      });
    }
  }

  // The layers in numbers, and the findings; made when they are first asked for.
  function overview() {
    if ($("by-layer").childElementCount) return;
    const { byLayer, layers, card, findings } = rfatlas.overview;
    const link = (layer, [, column, asked], text) => {
      const settings = new URLSearchParams(layer === null ? {} : { layer });
      if (asked) settings.append("f", `${column} ${asked}`);
      else for (const [key, value] of [["sort", column], ["desc", "1"]]) settings.append(key, value);
      return html("a", { href: `#?${settings}`, onclick: () => $("findings").close() }, text);
    };
    const cell = (layer, measure, found) => {
      if (found === null) return html("td", {}, "–");
      if (!Array.isArray(found)) return html("td", {}, link(layer, measure, rfatlas.text(found)));
      const [count, known] = found;
      return html("td", { class: "share", style: { "--share": `${(100 * count) / known}%` } },
        link(layer, measure, `${count} of ${known}`));
    };
    $("by-layer").append(html("table", {},
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "layer"),
        byLayer.measures.map((measure) => html("th", { scope: "col" }, link(null, measure, measure[0]))))),
      html("tbody", {}, layers.map((layer, n) => html("tr", {},
        html("th", { scope: "row" }, layer.name),
        byLayer.measures.map((measure, i) => cell(layer.name, measure, byLayer.rows[n][i])))))));
    $("card-part").hidden = !card;
    if (card) $("card").append(reportCard(card, layers));
    $("findings-part").hidden = !findings;
    $("findings-list").append(...(findings ?? []).map(finding));
  }

  // A row per layer; a number is shaded by its size.
  function reportCard({ titles, rows }, layers) {
    const cell = (value) => (value === null ? html("td", {}, "–") :
      html("td", { class: "share", style: { "--share": `${100 * value}%` } }, value.toFixed(2)));
    return html("table", {},
      html("thead", {}, html("tr", {}, ["layer", ...titles].map((title) =>
        html("th", { scope: "col" }, title)))),
      html("tbody", {}, layers.map((layer, n) => html("tr", {},
        html("th", { scope: "row" }, layer.name), rows[n].map(cell)))));
  }

  // What a claim came to, and the lines of the tables behind it.
  function finding({ claim, question, sentence, missing, lines }) {
    const place = (table, line) => `../findings.html#${encodeURI(table)}:${line}`;
    const tables = new Map();
    for (const [table, line] of lines) {
      if (!tables.has(table)) tables.set(table, []);
      tables.get(table).push(line);
    }
    return html("section", {},
      html("h3", {}, html("a", { href: `../findings.html#${claim}` }, question)),
      html("p", { class: "sentence" }, missing ? `Not answered: ${missing}.` : sentence),
      [...tables].map(([table, some]) => html("p", { class: "quiet" }, `${table}, line `,
        some.slice(0, 24).flatMap((line, i) => [i ? ", " : "",
          html("a", { href: place(table, line) }, String(line))]))));
  }

  // All columns with their explanations; made when it is first asked for.
  function glossary() {
    if ($("glossary").childElementCount) return;
    const groups = new Map();
    for (const column of rfatlas.overview.columns) {
      if (!groups.has(column.section)) groups.set(column.section, []);
      groups.get(column.section).push(html("tr", { "data-text":
        [column.name, column.meaning, column.source].join(" ").toLowerCase() },
      html("th", { scope: "row" }, column.name), html("td", {}, column.meaning),
      html("td", {}, column.unit), html("td", {}, column.formula), html("td", {}, column.source)));
    }
    const head = () => html("thead", {}, html("tr", {},
      ["column", "meaning", "unit, range", "formula", "source"].map((name) =>
        html("th", { scope: "col" }, name))));
    $("glossary").append(...[...groups].map(([title, rows]) => html("section", {},
      html("h3", {}, title), html("div", { class: "wide" },
        html("table", {}, head(), html("tbody", {}, rows))))));
    if (rfatlas.overview.references.length) {
      $("glossary").append(html("h3", {}, "References"), html("ul", {},
        rfatlas.overview.references.map((text) => html("li", {}, text))));
    }
    $("glossary-search").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      for (const section of $("glossary").querySelectorAll("section")) {
        let any = false;
        for (const row of section.querySelectorAll("tbody tr")) {
          row.hidden = !row.dataset.text.includes(wanted);
          any ||= !row.hidden;
        }
        section.hidden = !any;
      }
    });
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
