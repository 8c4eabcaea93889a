// The grid of channels. Only the rows in sight exist as elements, so thousands of channels cost
// no more than a screenful.
"use strict";

rfatlas.grid = (() => {
  const { html, tile } = rfatlas.draw;
  const SHOWN = 72;
  const [CELL, LINE] = [84, 112];
  const view = rfatlas.view;
  let element, inner;
  let columns = 1;
  let active = 0;
  let anchor = 0;
  let kind = null;
  let selecting = false;
  const drawn = new Map();

  function setup(place) {
    element = place;
    inner = html("div", { class: "grid-inner", role: "presentation" });
    element.append(inner);
    element.addEventListener("scroll", () => render(), { passive: true });
    element.addEventListener("keydown", key);
    // Before the click moves the focus: a click with Shift selects from here.
    element.addEventListener("pointerdown", () => { anchor = active; });
    element.addEventListener("click", click);
    element.addEventListener("focusin", (event) => {
      const cell = event.target.closest("[data-place]");
      if (!cell || Number(cell.dataset.place) === active) return;
      cellAt(active)?.setAttribute("tabindex", "-1");
      active = Number(cell.dataset.place);
      cell.setAttribute("tabindex", "0");
    });
    new ResizeObserver(layout).observe(element);
    view.on("rows", () => {
      element.scrollTop = 0;
      active = 0;
      redraw();
    });
    view.on("selection", mark);
  }

  function layout() {
    const fits = Math.max(1, Math.floor((element.clientWidth - 8) / CELL));
    if (fits !== columns || drawn.size === 0) {
      columns = fits;
      redraw();
    } else {
      render();
    }
  }

  function redraw() {
    for (const line of drawn.values()) line.remove();
    drawn.clear();
    const lines = Math.ceil(view.rows.length / columns);
    inner.style.height = `${lines * LINE}px`;
    element.setAttribute("aria-rowcount", lines);
    element.setAttribute("aria-colcount", columns);
    inner.style.setProperty("--cell", `${100 / columns}%`);
    render();
  }

  function render() {
    const lines = Math.ceil(view.rows.length / columns);
    const first = Math.max(0, Math.floor(element.scrollTop / LINE) - 2);
    const last = Math.min(lines, Math.ceil((element.scrollTop + element.clientHeight) / LINE) + 2);
    const wanted = new Set();
    for (let line = first; line < last; line++) wanted.add(line);
    // The line with the focus stays, or the focus would be lost.
    if (lines) wanted.add(Math.floor(active / columns));
    for (const [line, old] of drawn) {
      if (!wanted.has(line)) {
        old.remove();
        drawn.delete(line);
      }
    }
    for (const line of wanted) {
      if (!drawn.has(line)) {
        drawn.set(line, makeLine(line));
        inner.append(drawn.get(line));
      }
    }
  }

  function makeLine(line) {
    const members = view.rows.slice(line * columns, (line + 1) * columns);
    return html("div", { role: "row", class: "grid-line", "aria-rowindex": line + 1,
      style: { transform: `translateY(${line * LINE}px)` } },
    members.map((row, i) => makeCell(row, line * columns + i, i + 1)));
  }

  // The picture of a channel that the grid shows just now, null where there is none.
  function picture(row) {
    const n = rfatlas.layerOf(row);
    const layer = rfatlas.overview.layers[n];
    const sprite = kind && layer.sprites[kind];
    if (!sprite) return null;
    const channel = rfatlas.channelOf(row);
    if (sprite.gaps.some(([first, last]) => first <= channel && channel <= last)) return null;
    const sheet = Math.floor(channel / sprite.tiles);
    // The last sheet of a layer may be smaller.
    const there = Math.min(sprite.tiles, layer.channels - sheet * sprite.tiles);
    const columns = Math.min(sprite.columns, there);
    return tile(`sprites/${kind}-${rfatlas.padded(n, 2)}-${rfatlas.padded(sheet, 2)}.webp`,
      channel % sprite.tiles, { side: sprite.side, columns, rows: Math.ceil(there / columns) }, SHOWN,
      `${rfatlas.overview.thumbnails[kind]} of ${layer.name} channel ${channel}`);
  }

  // The class that a channel prefers, by its number where it has no name; "" where none is known.
  function preferred(row) {
    const number = rfatlas.value("preferred_label", row);
    return rfatlas.value("preferred_class", row) ?? (number === null ? "" : `class ${number}`);
  }

  function makeCell(row, place, column) {
    const layer = rfatlas.overview.layers[rfatlas.layerOf(row)];
    const channel = rfatlas.channelOf(row);
    const sort = view.state.sort;
    const silent = rfatlas.value("inactive", row) === true;
    const shown = sort ? rfatlas.text(rfatlas.value(sort, row))
      : silent ? "" : preferred(row);
    const name = `${layer.name} channel ${channel}`;
    const selected = view.state.selection.has(row);
    return html("div", {
      role: "gridcell", class: silent ? "cell silent" : "cell", "data-row": row,
      "data-place": place, "aria-colindex": column, "aria-selected": String(selected),
      tabindex: place === active ? 0 : -1,
      title: `${rfatlas.label(row)}${silent ? ", inactive" : ""}${shown ? `: ${shown}` : ""}`,
      "aria-label": `${name}${silent ? ", inactive" : ""}${sort ? `, ${sort} ${shown}` : ""}`,
    },
    picture(row) ?? html("div", { class: "tile none", "aria-hidden": "true",
      style: { width: `${SHOWN}px`, height: `${SHOWN}px` } }, kind ? "no picture" : String(channel)),
    html("span", { class: "cell-name" }, view.state.layer === null ? rfatlas.label(row) : String(channel)),
    html("span", { class: "cell-value" }, shown));
  }

  function mark() {
    for (const cell of inner.querySelectorAll("[data-row]")) {
      cell.setAttribute("aria-selected", String(view.state.selection.has(Number(cell.dataset.row))));
    }
  }

  function scrollTo(place) {
    const top = Math.floor(place / columns) * LINE;
    // The frame of the grid is a few pixels wide.
    const bottom = top + LINE + 8;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (bottom > element.scrollTop + element.clientHeight) {
      element.scrollTop = bottom - element.clientHeight;
    }
  }

  function cellAt(place) {
    return inner.querySelector(`[data-place="${place}"]`);
  }

  // Make a place of the grid the active one; with `focus` it takes the keyboard, too.
  function activate(place, focus = true) {
    if (place < 0 || place >= view.rows.length) return;
    cellAt(active)?.setAttribute("tabindex", "-1");
    active = place;
    scrollTo(place);
    render();
    const cell = cellAt(place);
    cell.setAttribute("tabindex", "0");
    if (focus) cell.focus({ preventScroll: true });
  }

  function reveal(row, focus) {
    const place = view.rows.indexOf(row);
    if (place >= 0) activate(place, focus);
  }

  function key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(element.clientHeight / LINE)) * columns;
    const last = view.rows.length - 1;
    const moves = {
      ArrowRight: active + 1, ArrowLeft: active - 1,
      ArrowDown: active + columns, ArrowUp: active - columns,
      PageDown: Math.min(active + page, last), PageUp: Math.max(active - page, 0),
      Home: 0, End: last,
    };
    if (event.key in moves) activate(moves[event.key]);
    else if (event.key === "Enter") rfatlas.passport.open(view.rows[active]);
    else if (event.key === " ") view.toggle(view.rows[active]);
    else return;
    event.preventDefault();
  }

  function click(event) {
    const cell = event.target.closest("[data-row]");
    if (!cell) return;
    const place = Number(cell.dataset.place);
    if (event.shiftKey) {
      const [from, to] = [Math.min(anchor, place), Math.max(anchor, place)];
      view.select([...view.state.selection, ...view.rows.slice(from, to + 1)]);
    } else if (event.ctrlKey || event.metaKey || selecting) {
      view.toggle(Number(cell.dataset.row));
    }
    activate(place);
    if (!event.shiftKey && !event.ctrlKey && !event.metaKey && !selecting) {
      rfatlas.passport.open(Number(cell.dataset.row));
    }
  }

  // With `on`, a click or tap selects a channel instead of opening its passport.
  function selectByClick(on) {
    selecting = on;
    element.classList.toggle("selecting", on);
  }

  function show(chosen) {
    kind = chosen;
    redraw();
  }

  return {
    setup, show, reveal, redraw, picture, selectByClick,
    get selecting() { return selecting; },
  };
})();
