"use strict";
// Draws what the page's data holds: charts when they come near the screen, and the explorer of masks.

const DATA = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function styled(layout) {
  const ink = colour("--ink"), grid = colour("--grid"), clear = "rgba(0,0,0,0)";
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, separatethousands: true,
    exponentformat: "power" };
  const legend = Object.assign({ orientation: "h", yanchor: "bottom", y: 1.02, x: 0, font: { size: 11 } }, layout.legend);
  return Object.assign({}, layout, {
    paper_bgcolor: clear, plot_bgcolor: clear, font: { color: ink, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 60, r: 12, t: 16, b: 48 }, hovermode: layout.hovermode || "closest",
    hoverlabel: { namelength: -1 }, legend: legend,
    xaxis: Object.assign({}, axis, { exponentformat: "SI" }, layout.xaxis), yaxis: Object.assign({}, axis, layout.yaxis),
  });
}

// On a dark page a trace has the colour that its `meta` names.
function coloured(trace) {
  if (!dark.matches || !trace.meta) return trace;
  const light = (trace.line ?? trace.marker).color;
  return JSON.parse(JSON.stringify(trace).replaceAll(light, trace.meta));
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };

function draw(place) {
  const chart = DATA.charts[place.dataset.chart];
  place.dataset.drawn = "yes";
  // A legend of more than two lines adds to the height rather than taking it from the chart.
  const listed = chart.layout.showlegend ? chart.data.filter((trace) => trace.showlegend !== false) : [];
  const wide = listed.reduce((sum, trace) => sum + 60 + 6.5 * trace.name.length, 0);
  const lines = Math.ceil(wide / (place.clientWidth - 80)) + ((chart.layout.legend ?? {}).title?.text ? 1 : 0);
  place.style.height = "";
  place.style.height = `${place.clientHeight + 19 * Math.max(0, lines - 2)}px`;
  // On a narrow screen the numbers in a heat map's fields would overlap.
  const narrow = place.clientWidth < 480;
  const data = chart.data.map((trace) =>
    trace.type === "heatmap" && narrow ? Object.assign({}, trace, { texttemplate: "" }) : coloured(trace));
  return Plotly.react(place, data, styled(chart.layout), CONFIG);
}

// Charts that nobody has scrolled to cost nothing.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "600px" });
for (const place of document.querySelectorAll("[data-chart]")) near.observe(place);

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function parts(name) {
  const value = colour(name).replace("#", "");
  return [0, 2, 4].map((at) => parseInt(value.slice(at, at + 2), 16));
}

// Viridis in a few steps, for shares.
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function viridis(share) {
  const place = Math.min(share * 4, 3.999), low = Math.floor(place), rest = place - low;
  return VIRIDIS[low].map((value, at) => value + rest * (VIRIDIS[low + 1][at] - value));
}

const TALLEST = 380;
function paint(canvas, height, width, shade) {
  canvas.width = width;
  canvas.height = height;
  canvas.style.maxWidth = `${(TALLEST * width) / height}px`; // as wide as there is room, but no taller than the screen
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let at = 0; at < height * width; at++) {
    const [red, green, blue] = shade(at);
    image.data.set([red, green, blue, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
}

class Explorer {
  constructor(root, about) {
    this.root = root;
    this.about = about;
    this.loaded = new Map();
    this.layer = root.querySelector(".layer");
    this.round = root.querySelector(".round");
    about.layers.forEach((layer, at) => this.layer.add(new Option(layer.name, at)));
    this.round.max = about.rounds.length - 1;
    this.round.value = about.rounds.length - 1;
    root.querySelector(".pixels").hidden = about.pixels === null;
    this.layer.addEventListener("change", () => this.show());
    this.round.addEventListener("input", () => this.show());
    this.show();
  }

  async bytes(item, field) {
    if (!this.loaded.has(item)) this.loaded.set(item, unpacked(item[field]));
    return this.loaded.get(item);
  }

  async show() {
    const at = Number(this.round.value), layer = this.about.layers[Number(this.layer.value)];
    this.root.querySelector(".position").textContent =
      `${this.about.rounds[at]}: ${this.about.densities[at].toPrecision(3)} %`;
    await Promise.all([this.mask(layer, at), this.pixels(at), this.histogram(layer, at)]);
    this.root.dataset.shown = `${this.layer.value}/${at}`;
  }

  async mask(layer, at) {
    const canvas = this.root.querySelector(".mask"), exact = "pruned" in layer;
    const values = await this.bytes(layer, exact ? "pruned" : "shares");
    const size = layer.height * layer.width, alive = parts("--alive"), gone = parts("--gone");
    const turned = layer.height > 3 * layer.width;
    const height = turned ? layer.width : layer.height, width = turned ? layer.height : layer.width;
    const from = (place) =>
      turned ? (place % width) * layer.width + Math.floor(place / width) : place;
    const shade = exact
      ? (place) => (values[from(place)] > at ? alive : gone)
      : (place) => {
          const share = values[at * size + from(place)] / 255;
          return gone.map((low, each) => low + share * (alive[each] - low));
        };
    paint(canvas, height, width, shade);
    const kept = layer.kept[at], whole = layer.total.toLocaleString("en");
    this.root.querySelector(".mask-caption").textContent =
      `${layer.shape}${turned ? ", turned on its side" : ""}; ${kept.toLocaleString("en")} of ${whole} weights ` +
      `(${((100 * kept) / layer.total).toPrecision(3)} %)${exact ? "" : "; a block of weights a dot"}, ` +
      `seed ${this.about.seed}. Outputs run ${turned ? "from left to right" : "downwards"}.`;
  }

  async pixels(at) {
    const pixels = this.about.pixels;
    if (pixels === null) return;
    const values = await this.bytes(pixels, "shares"), size = pixels.height * pixels.width;
    paint(this.root.querySelector(".pixel"), pixels.height, pixels.width,
      (place) => viridis(values[at * size + place] / 255));
    this.root.querySelector(".pixel-caption").textContent =
      `Share of each pixel's weights into ${pixels.layer} that survive: from none (dark) to ` +
      `${(100 * pixels.most[at]).toPrecision(3)} % (bright).`;
  }

  histogram(layer, at) {
    const place = this.root.querySelector(".histogram"), histogram = layer.histogram;
    if (!histogram) {
      place.textContent = "The weights of this run could not be read.";
      return null;
    }
    const counts = histogram.counts[at], bins = counts.length, reach = histogram.reach;
    const middles = counts.map((_, bin) => reach * ((2 * bin + 1) / bins - 1));
    const data = [{ type: "bar", x: middles, y: counts, marker: { color: colour("--alive") },
      hovertemplate: "%{x:.3g}: %{y:,}<extra></extra>" }];
    const layout = { bargap: 0.05, showlegend: false, xaxis: { title: { text: "weight" }, range: [-reach, reach] },
      yaxis: { title: { text: "surviving weights" } } };
    return Plotly.react(place, data, styled(layout), CONFIG);
  }
}

const explorers = new Map();
const close = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const root = entry.target;
    if (entry.isIntersecting && !explorers.has(root)) {
      close.unobserve(root);
      explorers.set(root, new Explorer(root, DATA.explorers[root.dataset.explorer]));
    }
  }
}, { rootMargin: "600px" });
for (const root of document.querySelectorAll("[data-explorer]")) close.observe(root);

const choice = document.getElementById("run");
if (choice !== null) {
  choice.addEventListener("change", () => {
    for (const run of document.querySelectorAll("[data-run]")) run.hidden = run.dataset.run !== choice.value;
  });
}

dark.addEventListener("change", () => {
  for (const place of document.querySelectorAll("[data-drawn]")) draw(place);
  for (const explorer of explorers.values()) explorer.show();
});
