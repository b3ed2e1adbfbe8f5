"use strict";

const CONFIG = {
  aria: false, // the surrounding element has the text alternative
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    domainColor: "var(--rule)", gridColor: "var(--rule)", tickColor: "var(--rule)",
    labelColor: "var(--muted)", titleColor: "var(--muted)", titleFontWeight: "normal",
  },
  legend: { labelColor: "var(--muted)", titleColor: "var(--muted)" },
};

// Converts columns {step: [1, 2], value: [3, 4]} to rows, the format of Vega.
function rows(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, place) => Object.fromEntries(names.map((name) => [name, columns[name][place]])));
}

async function draw(element, chart) {
  const datasets = Object.fromEntries(Object.entries(chart.data).map(([name, columns]) => [name, rows(columns)]));
  const options = {
    actions: false, renderer: "svg", config: CONFIG, defaultStyle: false,
    ast: true, // interprets expressions, because the content security policy forbids eval
    tooltip: { disableDefaultStyle: true },
  };
  const { view } = await vegaEmbed(element, { ...chart.spec, datasets }, options);
  return view;
}

async function start() {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const elements = [...document.querySelectorAll("[data-chart]")];
  const views = await Promise.all(elements.map((element) => draw(element, charts[element.dataset.chart])));
  const boxes = [...document.querySelectorAll("[data-run]")];
  for (const box of boxes) {
    box.addEventListener("change", () => {
      const visible = boxes.filter((each) => each.checked).map((each) => Number(each.dataset.run));
      for (const view of views) view.signal("visible", visible).runAsync();
    });
  }
  document.body.dataset.drawn = "yes";
}

start();
