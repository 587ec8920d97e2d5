"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("curves").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
  const ink = dark ? "#e8e8e8" : "#000000";
  const grid = dark ? "#3a3d42" : "#e6e6e6";
  // Plotly reads markup in names; a run's name is plain text.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const traces = (figure) => figure.curves.map((curve) => {
    const colour = dark ? curve.dark : curve.color;
    const rows = curve.kind === "rows" || curve.kind === "before";
    const trace = {
      type: "scatter", name: plain(curve.name), x: curve.x, y: curve.y,
      mode: rows ? "markers" : curve.kind === "points" ? "lines+markers" : "lines",
      marker: { color: curve.kind === "before" ? "#8a8a8a" : colour },
      line: { color: colour, dash: curve.dash, width: 1.6 },
    };
    if ((rows || curve.kind === "points") && curve.low && curve.high) {
      const middle = rows ? curve.x : curve.y;
      trace[rows ? "error_x" : "error_y"] = {
        type: "data", symmetric: false,
        array: curve.high.map((high, i) => high === null ? 0 : high - middle[i]),
        arrayminus: curve.low.map((low, i) => low === null ? 0 : middle[i] - low),
      };
    }
    return trace;
  });
  const axis = (title) => ({ title: { text: plain(title) }, gridcolor: grid, color: ink, zeroline: false });
  const layout = (figure) => {
    const shapes = [];
    if (figure.warmup !== null) {
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: 0, x1: figure.warmup, y0: 0, y1: 1,
        fillcolor: grid, opacity: 0.6, line: { width: 0 }, layer: "below" });
    }
    if (figure.line !== null) {
      shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: figure.line, y1: figure.line,
        line: { color: "#8a8a8a", dash: "dash", width: 1 } });
    }
    const scale = { type: figure.log ? "log" : "linear" };
    const named = { tickvals: figure.rows.map((_, i) => i), ticktext: figure.rows.map(plain), autorange: "reversed", automargin: true };
    return {
      xaxis: axis(figure.x), yaxis: { ...axis(figure.y), ...(figure.rows.length ? named : scale) }, shapes,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink },
      margin: { l: 60, r: 10, t: 36, b: 45 }, height: 340, showlegend: figure.curves.length > 1,
      legend: { orientation: "h", y: -0.25 },
    };
  };
  // Only what works without a network and without images: no picture, no link, nothing that is sent.
  const buttons = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, modeBarButtons: buttons };
  for (const details of document.querySelectorAll("details.interactive")) {
    details.addEventListener("toggle", () => {
      const place = details.querySelector("div");
      if (details.open && !place.hasChildNodes()) {
        const figure = figures[place.dataset.figure];
        Plotly.newPlot(place, traces(figure), layout(figure), config);
      }
    });
  }
})();
