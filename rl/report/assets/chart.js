// Small curves over steps. All curves of a page share one cursor: pointing at a step shows its values everywhere.

const SERIES = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
const SEGMENT_COLORS = { sampling: ["--c1", "--c5", "--c7"], reasoning: ["--c2", "--c6", "--c8"] };
const OTHER_COLORS = ["--c3", "--c4", "--c7", "--c8"];
const chartBox = { height: 168, left: 44, right: 10, top: 8, bottom: 22 };

function movingMean(values, width) {
  if (width <= 1) return values;
  return values.map((value, i) => {
    if (!isNumber(value)) return value;
    const near = values.slice(Math.max(0, i - width + 1), i + 1).filter(isNumber);
    return mean(near);
  });
}

class Cursor {
  constructor() {
    this.charts = [];
  }
  move(step) {
    for (const chart of this.charts) chart.point(step);
  }
}

// {title, note, unit, steps, series: [{label, values, color, sparse, help}], stacked, log, floor, cursor, onPick,
//  faults: {steps: [[step, how many]], newest}}
function lineChart(spec) {
  const readings = spec.series.map(() => el("span", { class: "reading" }));
  const stepLabel = el("span", { class: "at-step" });
  const plot = plotOf(spec);
  const point = pointer(spec, plot, readings, stepLabel);
  spec.cursor.charts.push({ point });
  point(null);
  return el(
    "figure",
    { class: "card chart-card", data: { chart: spec.title } },
    el("figcaption", {}, el("h3", {}, spec.title), stepLabel, el("span", { class: "unit" }, spec.unit)),
    surfaceOf(spec, plot),
    el(
      "ul",
      { class: "legend" },
      spec.series.map((series, i) =>
        el(
          "li",
          { title: series.help },
          el("span", { class: `swatch${series.sparse ? " sparse" : ""}`, style: { "--own": `var(${series.color})` } }),
          el("span", { class: "name" }, visible(series.label)),
          readings[i],
        ),
      ),
    ),
    spec.note ? el("p", { class: "note" }, spec.note) : null,
  );
}

// The drawing, and what is needed to point into it: {box, inner, low, high, x, y, layers, marks, rule, dots, drawn}.
function plotOf(spec) {
  const box = chartBox,
    inner = { x: box.left, w: spec.width - box.left - box.right, h: box.height - box.top - box.bottom };
  const low = spec.steps[0],
    high = spec.steps[spec.steps.length - 1];
  const x = (step) => inner.x + (high === low ? inner.w / 2 : ((step - low) / (high - low)) * inner.w);
  const layers = spec.stacked
    ? stack(spec.series)
    : spec.series.map((series) => ({
        ...series,
        tops: series.smooth ?? series.values,
        raw: series.smooth && series.values,
      }));
  const range = extent(layers, spec);
  const scaled = (value) => (spec.log ? Math.log10(value) : value);
  const y = (value) => box.top + inner.h * (1 - (scaled(value) - range.low) / (range.high - range.low || 1));
  const marks = faultMarks(spec.faults.steps, low, high, x, box.top + inner.h);
  const rule = svg("line", { y1: box.top, y2: box.top + inner.h, class: "cursor", visibility: "hidden" });
  const dots = layers.map((layer) =>
    svg("circle", { r: 3.2, class: "dot", style: { fill: `var(${layer.color})` }, visibility: "hidden" }),
  );
  const plot = { box, inner, low, high, x, y, layers, marks, rule, dots };
  return { ...plot, drawn: drawPlot(spec, plot, range.ticks) };
}

function drawPlot(spec, { box, inner, low, high, x, y, layers, marks, rule, dots }, levels) {
  const drawn = svg("svg", {
    width: spec.width,
    height: box.height,
    viewBox: `0 0 ${spec.width} ${box.height}`,
    class: "chart",
    role: "img",
    "aria-label": describeChart(spec, marks.nodes.length),
  });
  for (const value of levels) {
    const at = y(value);
    drawn.append(
      svg("line", { x1: inner.x, x2: spec.width - box.right, y1: at, y2: at, class: "grid" }),
      svg("text", { x: inner.x - 6, y: at + 3.5, class: "tick", "text-anchor": "end" }, tickText(value)),
    );
  }
  for (const step of ticks(low, high, Math.min(6, inner.w / 60)).filter((value) => Number.isInteger(value)))
    drawn.append(svg("text", { x: x(step), y: box.height - 6, class: "tick", "text-anchor": "middle" }, count(step)));
  for (const layer of [...layers].reverse())
    drawn.append(spec.stacked ? area(layer, spec.steps, x, y) : line(layer, spec, x, y));
  drawn.append(...marks.nodes, rule, ...dots);
  return drawn;
}

// Shows the values of a step. null: nothing is pointed at; a step this curve does not have leaves its readings open.
function pointer(spec, { low, high, x, y, layers, rule, dots }, readings, stepLabel) {
  const placeOf = new Map(spec.steps.map((step, i) => [step, i])),
    broken = new Map(spec.faults.steps);
  return (step) => {
    const at = placeOf.get(step),
      isInside = step !== null && step >= low && step <= high;
    rule.setAttribute("visibility", isInside ? "visible" : "hidden");
    if (isInside) for (const end of ["x1", "x2"]) rule.setAttribute(end, x(step));
    stepLabel.textContent = step === null ? "" : `step ${count(step)}`;
    if (broken.has(step)) stepLabel.textContent += ` · ${faultWords(broken.get(step))}`;
    layers.forEach((layer, i) => {
      readings[i].textContent = short(step === null ? lastOf(layer.values) : layer.values[at]);
      const top = layer.tops[at],
        isDrawn = isNumber(top) && (!spec.log || top > 0);
      dots[i].setAttribute("visibility", isDrawn ? "visible" : "hidden");
      if (isDrawn) {
        dots[i].setAttribute("cx", x(step));
        dots[i].setAttribute("cy", y(top));
      }
    });
  };
}

// What the pointer and the keys move over.
function surfaceOf(spec, { box, inner, low, high, marks, drawn }) {
  const markAt = (event) => {
    const bounds = drawn.getBoundingClientRect();
    return event.clientY - bounds.top < box.top + inner.h - MARK.gap ? null : marks.near(event.clientX - bounds.left);
  };
  const leave = () => {
    spec.cursor.move(null);
    popFaults(null);
  };
  const nearest = (event) => {
    const bounds = drawn.getBoundingClientRect();
    const step = low + ((event.clientX - bounds.left - inner.x) / inner.w) * (high - low);
    return spec.steps.reduce(
      (best, value, i) => (Math.abs(value - step) < Math.abs(spec.steps[best] - step) ? i : best),
      0,
    );
  };
  let focused = spec.steps.length - 1;
  const on = {
    pointermove: (event) => {
      spec.cursor.move(spec.steps[(focused = nearest(event))]);
      popFaults(markAt(event), spec.faults.newest);
    },
    pointerleave: leave,
    blur: leave,
    click: () => spec.onPick?.(spec.steps[focused]),
    keydown: (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Enter") spec.onPick?.(spec.steps[focused]);
      if (by === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      focused = Math.min(spec.steps.length - 1, Math.max(0, focused + by));
      spec.cursor.move(spec.steps[focused]);
      popFaults(marks.ofStep(spec.steps[focused]), spec.faults.newest);
    },
  };
  const label = `${spec.title}: arrow keys move over the steps`;
  return el("div", { class: "surface", tabindex: "0", role: "group", "aria-label": label, on }, drawn);
}

function tickText(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(0).replace("e-", "e−");
  return minus(String(Number(value.toPrecision(4))));
}

function lastOf(values) {
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
  return null;
}

function stack(series) {
  const floor = series[0].values.map(() => 0);
  return series.map((layer) => {
    const bottoms = [...floor];
    layer.values.forEach((value, i) => {
      if (isNumber(value)) floor[i] += value;
    });
    return { ...layer, bottoms, tops: layer.values.map((value, i) => (isNumber(value) ? floor[i] : null)) };
  });
}

function extent(layers, spec) {
  let values = layers.flatMap((layer) => layer.tops.filter(isNumber));
  if (spec.log) {
    values = values.filter((value) => value > 0).map(Math.log10);
    if (!values.length) return { low: -1, high: 0, ticks: [] };
    const low = Math.floor(least(values)),
      high = Math.max(low + 1, Math.ceil(most(values)));
    const every = Math.max(1, Math.ceil((high - low) / 5)),
      powers = [];
    for (let power = low; power <= high; power += every) powers.push(10 ** power);
    return { low, high, ticks: powers };
  }
  if (!values.length) return { low: 0, high: 1, ticks: [0, 1] };
  let low = least(values),
    high = most(values);
  if (spec.floor === 0 || spec.stacked) low = Math.min(0, low);
  if (spec.unit === "share" || spec.unit === "0..1") {
    low = Math.min(0, low);
    high = Math.max(1, high);
  }
  if (high - low < 1e-12) {
    const pad = Math.abs(high) * 0.1 || 1;
    low -= low === 0 ? 0 : pad;
    high += pad;
  } else if (!(spec.unit === "share" || spec.unit === "0..1")) high += (high - low) * 0.06;
  return { low, high, ticks: ticks(low, high, 4) };
}

function line(layer, spec, x, y) {
  const points = spec.steps.map((step, i) => {
    const value = layer.tops[i];
    return isNumber(value) && (!spec.log || value > 0) ? [x(step), y(value)] : null;
  });
  const path = (list) => {
    let text = "",
      open = false;
    for (const at of list) {
      if (at === null) {
        if (!layer.sparse) open = false;
        continue;
      }
      text += `${open ? "L" : "M"}${at[0].toFixed(1)},${at[1].toFixed(1)}`;
      open = true;
    }
    return text;
  };
  const group = svg("g", { style: { stroke: `var(${layer.color})`, fill: "none" } });
  if (layer.raw) {
    const faint = spec.steps.map((step, i) =>
      isNumber(layer.raw[i]) && (!spec.log || layer.raw[i] > 0) ? [x(step), y(layer.raw[i])] : null,
    );
    group.append(svg("path", { d: path(faint), class: "raw" }));
  }
  group.append(svg("path", { d: path(points), class: layer.sparse ? "curve sparse" : "curve" }));
  const alone = points.filter(Boolean).length === 1;
  if (layer.sparse || alone)
    for (const at of points)
      if (at)
        group.append(
          svg("circle", { cx: at[0], cy: at[1], r: 2.8, style: { fill: "var(--panel)" }, class: "mark-dot" }),
        );
  return group;
}

function area(layer, steps, x, y) {
  const upper = [],
    lower = [];
  steps.forEach((step, i) => {
    if (!isNumber(layer.tops[i])) return;
    upper.push(`${x(step).toFixed(1)},${y(layer.tops[i]).toFixed(1)}`);
    lower.unshift(`${x(step).toFixed(1)},${y(layer.bottoms[i]).toFixed(1)}`);
  });
  if (!upper.length) return svg("g");
  if (upper.length === 1) {
    const [at, top] = upper[0].split(",").map(Number),
      bottom = Number(lower[0].split(",")[1]);
    return svg("rect", {
      x: at - 8,
      width: 16,
      y: top,
      height: Math.max(0, bottom - top),
      style: { fill: `var(${layer.color})` },
      class: "area",
    });
  }
  return svg("path", {
    d: `M${upper.join("L")}L${lower.join("L")}Z`,
    class: "area",
    style: { fill: `var(${layer.color})` },
  });
}

function describeChart(spec, marks) {
  return (
    `${spec.title}: ` +
    spec.series.map((series) => `${series.label} ${short(lastOf(series.values))} at the end`).join(", ") +
    (marks ? `; ${marks === 1 ? "a mark" : `${marks} marks`} of faults under the axis` : "")
  );
}

function sparkline(values, width = 96, height = 20) {
  const known = values.map((value, i) => [i, value]).filter((pair) => isNumber(pair[1]));
  const drawn = svg("svg", { width, height, class: "spark", "aria-hidden": "true" });
  if (known.length < 2) return drawn;
  const low = least(known.map((pair) => pair[1])),
    high = most(known.map((pair) => pair[1]));
  const points = known.map(
    ([i, value]) =>
      `${(2 + (i / (values.length - 1)) * (width - 4)).toFixed(1)},` +
      `${(height - 3 - ((value - low) / (high - low || 1)) * (height - 6)).toFixed(1)}`,
  );
  drawn.append(svg("path", { d: `M${points.join("L")}`, class: "curve thin" }));
  return drawn;
}
