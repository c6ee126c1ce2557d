"use strict";
const font = { family: 'system-ui, "Segoe UI", Roboto, Arial, sans-serif', size: 13, color: "#1d2733" };
const axisStyle = { gridcolor: "#e3e8ee", zerolinecolor: "#e3e8ee", linecolor: "#c7d0da", automargin: true };
const layout = (more) => ({ font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 60, r: 16, t: 30, b: 46 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: "#a9b4c0", activecolor: "#2f6fed" }, ...more });
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const safe = (words) => words.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

const effects = document.getElementById("effects");
if (!report.effects.length) effects.innerHTML = "<p>No parameter has two values with results yet.</p>";
const places = report.effects.map(() => effects.appendChild(document.createElement("div")));
for (const [index, effect] of report.effects.entries()) {
  const dots = { x: [], y: [], text: [] };
  effect.values.forEach((_, row) => effect.results[row].forEach((result, which) => {
    dots.x.push(row); dots.y.push(result); dots.text.push(effect.names[row][which]);
  }));
  Plotly.newPlot(places[index], [
    { ...dots, type: "scatter", mode: "markers", marker: { size: 8, opacity: 0.55, color: report.colours[0] }, hovertemplate: "%{text}<br>%{y:.5g}<extra></extra>" },
    { x: [...effect.values.keys()], y: effect.results.map(mean), type: "scatter", mode: effect.ordinal ? "lines+markers" : "markers", line: { color: report.colours[1], width: 2 }, marker: { size: 9, symbol: "diamond", color: report.colours[1] }, hovertemplate: "mean %{y:.5g}<extra></extra>" },
  ], layout({ showlegend: false, title: { text: effect.axis, font: { size: 14 } }, xaxis: { ...axisStyle, tickvals: [...effect.values.keys()], ticktext: effect.values.map(safe), range: [-0.5, effect.values.length - 0.5] }, yaxis: { ...axisStyle, title: { text: report.metric } } }), { ...config, displayModeBar: false });
}

const metricOf = document.getElementById("metric"), over = document.getElementById("over"), colour = document.getElementById("colour");
const metrics = [...new Set(report.curves.flatMap((curve) => Object.keys(curve.series)))].sort();
const option = (select, word) => select.appendChild(Object.assign(document.createElement("option"), { textContent: word, value: word }));
metrics.forEach((metric) => option(metricOf, metric));
[...report.axes, "point"].forEach((axis) => option(colour, axis));
if (metrics.includes(report.metric)) metricOf.value = report.metric;

function drawCurves() {
  const keyOf = (curve) => colour.value === "point" ? curve.name : curve.axes[colour.value] ?? "(default)";
  const keys = [...new Set(report.curves.map(keyOf))].sort((one, other) => Number(one) - Number(other) || (one > other ? 1 : -1));
  const shown = new Set();
  const longest = Math.max(...report.curves.flatMap((curve) => curve.series[metricOf.value]?.[over.value] ?? []));
  const traces = report.curves.filter((curve) => curve.series[metricOf.value]).map((curve) => {
    const series = curve.series[metricOf.value], key = keyOf(curve), first = !shown.has(key);
    shown.add(key);
    const hovertemplate = safe(curve.name) + "<br>%{x}: %{y:.5g}<extra></extra>";
    return { x: series[over.value], y: series.y, type: "scatter", mode: series.y.length > 1 ? "lines" : "markers", name: safe(key), legendgroup: key, showlegend: first, opacity: 0.8,
      legendrank: keys.indexOf(key), line: { width: 1.8, color: report.colours[keys.indexOf(key) % report.colours.length] }, marker: { color: report.colours[keys.indexOf(key) % report.colours.length] }, hovertemplate };
  });
  Plotly.react("curves", traces, layout({ hovermode: "closest", legend: { title: { text: colour.value } }, xaxis: { ...axisStyle, title: { text: over.value }, ...(longest <= 20 ? { dtick: 1 } : {}) }, yaxis: { ...axisStyle, title: { text: metricOf.value } } }), config);
}
if (metrics.length) {
  [metricOf, over, colour].forEach((select) => select.addEventListener("change", drawCurves));
  drawCurves();
} else document.getElementById("curves").outerHTML = "<p>No validation has been written yet.</p>";

for (const heading of document.querySelectorAll("th")) heading.addEventListener("click", () => {
  const body = heading.closest("table").tBodies[0], column = heading.cellIndex, down = heading.dataset.down !== "1";
  heading.dataset.down = down ? "1" : "0";
  const valueOf = (row) => row.cells[column].textContent;
  const compare = (one, other) => Number(valueOf(one)) - Number(valueOf(other)) || valueOf(one).localeCompare(valueOf(other));
  [...body.rows].sort((one, other) => down ? compare(other, one) : compare(one, other)).forEach((row) => body.append(row));
});
