// A scatter plot of two columns, over the channels that the grid shows. What is selected here is
// selected there.
"use strict";

rfatlas.scatter = (() => {
  const view = rfatlas.view;
  const settings = { x: null, y: null, colour: "layer", xLog: false, yLog: false };
  // More points than this are drawn by WebGL.
  const MANY = 20000;
  // Traces of one colour each; a column with more values than this has a few colours only.
  const MOST_TRACES = 24;
  let element, note;
  let plotted = false;
  let drawn = 0;

  function setup(place, remark) {
    [element, note] = [place, remark];
    view.on("rows", draw);
    view.on("selection", draw);
  }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // From violet over green to yellow, an order that stays one in grey; never as dark or as light as
  // the page.
  function ramp(share) {
    const stops = document.documentElement.dataset.theme === "dark"
      ? [[130, 90, 190], [80, 120, 190], [40, 160, 150], [110, 200, 100], [253, 231, 37]]
      : [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 180, 98], [215, 180, 0]];
    const at = Math.min(share * (stops.length - 1), stops.length - 1.0001);
    const [i, rest] = [Math.floor(at), at - Math.floor(at)];
    return `rgb(${stops[i].map((c, k) => Math.round(c + rest * (stops[i + 1][k] - c))).join(",")})`;
  }

  function groups(rows) {
    const column = rfatlas.column(settings.colour);
    if (!column) return [{ name: "", rows, colour: rfatlas.draw.COLOURS[0] }];
    const byValue = new Map();
    for (const row of rows) {
      const v = rfatlas.text(column.values[row]);
      if (!byValue.has(v)) byValue.set(v, []);
      byValue.get(v).push(row);
    }
    // Layers in the order of the network; what is missing last.
    const names = settings.colour === "layer"
      ? rfatlas.overview.layers.map((layer) => layer.name).filter((name) => byValue.has(name))
      : [...byValue.keys()].sort((a, b) => (a === "–") - (b === "–") || a.localeCompare(b));
    if (names.length > MOST_TRACES) {
      return [{ name: "", rows, colour: rfatlas.draw.COLOURS[0] }];
    }
    const palette = rfatlas.draw.COLOURS;
    return names.map((name, i) => ({
      name, rows: byValue.get(name),
      colour: settings.colour === "layer" && names.length > 3
        ? ramp(names.length > 1 ? i / (names.length - 1) : 0)
        : palette[i % palette.length],
    }));
  }

  function traces(rows) {
    const [x, y] = [rfatlas.column(settings.x).values, rfatlas.column(settings.y).values];
    const usable = rows.filter((row) => Number.isFinite(x[row]) && Number.isFinite(y[row])
      && (!settings.xLog || x[row] > 0) && (!settings.yLog || y[row] > 0));
    const chosen = view.state.selection;
    const number = rfatlas.column(settings.colour)?.kind === "number";
    const parts = number ? [{ name: "", rows: usable, colour: null }] : groups(usable);
    const any = usable.some((row) => chosen.has(row));
    const found = parts.map((part) => ({
      type: usable.length > MANY ? "scattergl" : "scatter",
      mode: "markers",
      name: part.name,
      x: part.rows.map((row) => x[row]),
      y: part.rows.map((row) => y[row]),
      customdata: part.rows,
      text: part.rows.map((row) => plain(rfatlas.label(row))),
      hovertemplate: "%{text}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
      showlegend: parts.length > 1,
      marker: {
        size: 6, opacity: 0.75, line: { width: 0 },
        color: part.colour ?? part.rows.map((row) => rfatlas.value(settings.colour, row)),
        ...(number && { colorscale: "Viridis", showscale: true,
          colorbar: { thickness: 10, len: 0.9, title: { text: settings.colour, side: "right" } } }),
      },
      selectedpoints: any ? part.rows.flatMap((row, i) => (chosen.has(row) ? [i] : [])) : null,
      selected: { marker: { opacity: 1, size: 9 } },
      unselected: { marker: { opacity: 0.12 } },
    }));
    return [found, usable.length];
  }

  // Plotly reads a little markup in its texts; names are shown as they are.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

  function draw() {
    if (!window.Plotly || !settings.x) return;
    const [data, count] = traces(view.rows);
    const ink = css("--ink");
    const axis = (name, log) => ({
      title: { text: name, standoff: 8 }, type: log ? "log" : "linear", gridcolor: css("--line"),
      zerolinecolor: css("--line"), linecolor: css("--quiet"), automargin: true,
    });
    const layout = {
      paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"),
      font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      margin: { l: 52, r: 12, t: 12, b: 46 }, dragmode: "select", hovermode: "closest",
      xaxis: axis(settings.x, settings.xLog), yaxis: axis(settings.y, settings.yLog),
      legend: { orientation: "h", yref: "container", y: 0, font: { size: 11 }, itemsizing: "constant" },
      uirevision: JSON.stringify(settings),
      // Another one each time, or Plotly would keep the points that it marked itself.
      selectionrevision: ++drawn,
      // A box that was drawn does not stay: the marked points say what is selected.
      selections: [],
    };
    const config = { displaylogo: false, showLink: false, plotlyServerURL: "",
      modeBarButtonsToRemove: ["sendDataToCloud", "toImage", "autoScale2d"] };
    window.Plotly.react(element, data, layout, config);
    if (!plotted) {
      plotted = true;
      new ResizeObserver(() => window.Plotly.Plots.resize(element)).observe(element);
      element.on("plotly_selected", picked);
      element.on("plotly_doubleclick", () => view.select([]));
      element.on("plotly_click", (event) => {
        const row = event.points[0].customdata;
        view.select([row]);
        rfatlas.grid.reveal(row, false);
      });
    }
    const left = view.rows.length - count;
    note.textContent = left ? `${left} of the channels shown lack one of the values.` : "";
    element.setAttribute("aria-label",
      `Scatter plot of ${settings.y} against ${settings.x}, ${count} channels`);
  }

  function picked(event) {
    // Plotly reports that `draw` removed the box, too; what a reader drags has a range or a lasso.
    if (!event?.range && !event?.lassoPoints) return;
    const chosen = event.points.map((point) => point.customdata);
    // Drawing from inside Plotly's own event would confuse it.
    setTimeout(() => {
      view.select(chosen);
      const first = view.rows.find((row) => view.state.selection.has(row));
      if (first !== undefined) rfatlas.grid.reveal(first, false);
    });
  }

  async function start() {
    await rfatlas.script("plotly.min.js");
    draw();
    performance.mark("scatter");
  }

  function change(values) {
    Object.assign(settings, values);
    draw();
  }

  function save() {
    if (!plotted) return;
    window.Plotly.downloadImage(element, {
      format: "svg", width: 800, height: 600,
      filename: `${rfatlas.overview.run}_${settings.y}_${settings.x}`,
    });
  }

  return { setup, start, change, draw, save, settings };
})();
