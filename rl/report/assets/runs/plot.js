// One metric of several runs on common axes. All plots of the page share one cursor.
//
// A line is {label, color, dash, xs, ys, raw, lows, highs}: xs rise; raw, lows and highs are as long as xs, or absent.

const plotBox = { height: 188, left: 46, right: 12, top: 8, bottom: 24 };

// {title, unit, meaning, width, lines, from, to, xText, cursor}
function linesPlot(spec) {
  const scales = scalesOf(spec),
    readings = spec.lines.map(() => el("span", { class: "reading" })),
    at = el("span", { class: "at-step" });
  const rule = svg("line", { class: "cursor", visibility: "hidden", y1: plotBox.top, y2: scales.bottom });
  const dots = spec.lines.map((line) =>
    svg("circle", { r: 3.2, class: "dot", style: { fill: `var(${line.color})` }, visibility: "hidden" }),
  );
  const drawn = drawLines(spec, scales);
  drawn.append(rule, ...dots);
  const point = (x) => {
    const isInside = x !== null && x >= spec.from && x <= spec.to;
    rule.setAttribute("visibility", isInside ? "visible" : "hidden");
    if (isInside) for (const end of ["x1", "x2"]) rule.setAttribute(end, scales.x(x));
    at.textContent = x === null ? "" : spec.xText(x);
    spec.lines.forEach((line, i) => {
      const place = x === null ? line.xs.length - 1 : lastAt(line.xs, x),
        value = line.ys[place];
      readings[i].textContent = short(value ?? null);
      const isDrawn = x !== null && isNumber(value);
      dots[i].setAttribute("visibility", isDrawn ? "visible" : "hidden");
      if (isDrawn) {
        dots[i].setAttribute("cx", scales.x(line.xs[place]));
        dots[i].setAttribute("cy", scales.y(value));
      }
    });
  };
  spec.cursor.charts.push({ point });
  point(null);
  return el(
    "figure",
    { class: "card chart-card", data: { chart: spec.title } },
    el("figcaption", {}, el("h3", {}, quoted(spec.title)), at, el("span", { class: "unit" }, spec.unit)),
    plotSurface(spec, scales, drawn),
    plotLegend(spec, readings),
    spec.meaning ? el("p", { class: "note" }, spec.meaning) : null,
  );
}

function plotLegend(spec, readings) {
  return el(
    "ul",
    { class: "legend" },
    spec.lines.map((line, i) =>
      el("li", { title: visible(line.label) }, line.key(), el("span", { class: "sr" }, quoted(line.label)), readings[i]),
    ),
  );
}

// The last place of what is not beyond x; -1: all is.
function lastAt(xs, x) {
  let low = -1,
    high = xs.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (xs[middle] <= x) low = middle;
    else high = middle - 1;
  }
  return low;
}

function scalesOf(spec) {
  const inner = { x: plotBox.left, w: spec.width - plotBox.left - plotBox.right };
  const bottom = plotBox.height - plotBox.bottom;
  const layers = spec.lines.map((line) => ({ tops: [...line.ys, ...(line.lows ?? []), ...(line.highs ?? [])] }));
  const { low, high, ticks: levels } = extent(layers, { unit: spec.unit });
  const x = (value) => inner.x + ((value - spec.from) / (spec.to - spec.from || 1)) * inner.w;
  const y = (value) => plotBox.top + (bottom - plotBox.top) * (1 - (value - low) / (high - low || 1));
  return { inner, bottom, levels, x, y };
}

function drawLines(spec, { inner, bottom, levels, x, y }) {
  const described = spec.lines
    .slice(0, 8)
    .map((line) => `${visible(line.label)} ${short(line.ys[line.ys.length - 1] ?? null)}`)
    .join(", ");
  const drawn = svg("svg", {
    width: spec.width,
    height: plotBox.height,
    viewBox: `0 0 ${spec.width} ${plotBox.height}`,
    class: "chart",
    role: "img",
    "aria-label": `${spec.title} at the end: ${described}`,
  });
  for (const value of levels)
    drawn.append(
      svg("line", { x1: inner.x, x2: inner.x + inner.w, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: inner.x - 6, y: y(value) + 3.5, class: "tick", "text-anchor": "end" }, tickText(value)),
    );
  for (const value of ticks(spec.from, spec.to, Math.min(6, inner.w / 64)))
    drawn.append(
      svg("text", { x: x(value), y: bottom + 17, class: "tick", "text-anchor": "middle" }, tickText(value)),
    );
  for (const line of spec.lines) {
    const style = { stroke: `var(${line.color})`, "stroke-dasharray": line.dash || "none" };
    if (line.lows) drawn.append(bandOf(line, x, y));
    if (line.raw) drawn.append(svg("path", { d: pathOf(line.xs, line.raw, x, y), class: "curve raw", style }));
    drawn.append(svg("path", { d: pathOf(line.xs, line.ys, x, y), class: "curve", style }));
    if (line.xs.length === 1)
      drawn.append(svg("circle", { cx: x(line.xs[0]), cy: y(line.ys[0]), r: 3, style: { fill: `var(${line.color})` } }));
  }
  return drawn;
}

function pathOf(xs, ys, x, y) {
  return xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(1)},${y(ys[i]).toFixed(1)}`).join("");
}
function bandOf(line, x, y) {
  const upper = line.xs.map((value, i) => `${x(value).toFixed(1)},${y(line.highs[i]).toFixed(1)}`),
    lower = line.xs.map((value, i) => `${x(value).toFixed(1)},${y(line.lows[i]).toFixed(1)}`).reverse();
  return svg("path", {
    d: `M${upper.join("L")}L${lower.join("L")}Z`,
    class: "seeds",
    style: { fill: `var(${line.color})` },
  });
}

function plotSurface(spec, { inner }, drawn) {
  let at = spec.to;
  const move = (x) => spec.cursor.move(x);
  const every = [...new Set(spec.lines.flatMap((line) => line.xs))].sort((a, b) => a - b);
  const on = {
    pointermove: (event) => {
      const bounds = drawn.getBoundingClientRect();
      const share = (event.clientX - bounds.left - inner.x) / inner.w;
      const x = spec.from + Math.min(1, Math.max(0, share)) * (spec.to - spec.from);
      at = every[nearestTo(every, x)] ?? x;
      move(at);
      popReadings(event.currentTarget, spec, at);
    },
    pointerleave: () => {
      move(null);
      hidePop();
    },
    blur: () => {
      move(null);
      hidePop();
    },
    keydown: (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      const place = Math.min(every.length - 1, Math.max(0, nearestTo(every, at) + by));
      at = every[place];
      move(at);
      popReadings(event.currentTarget, spec, at);
    },
  };
  const label = `${spec.title}: arrow keys move along the curves`;
  return el("div", { class: "surface", tabindex: "0", role: "group", "aria-label": label, on }, drawn);
}
function nearestTo(xs, x) {
  const before = Math.max(0, lastAt(xs, x));
  return before + 1 < xs.length && xs[before + 1] - x < x - xs[before] ? before + 1 : before;
}

// What every run had by then, the largest first.
function popReadings(target, spec, x) {
  const known = spec.lines
    .map((line) => ({ line, value: line.ys[lastAt(line.xs, x)] }))
    .filter(({ value }) => isNumber(value))
    .sort((a, b) => b.value - a.value);
  if (!known.length) return hidePop();
  const rows = known.map(({ line, value }) =>
    el("p", { class: "pop-row" }, line.key(), quoted(clipped(line.label, 40)), el("b", {}, short(value))),
  );
  popUp(target, [el("p", { class: "pop-head" }, spec.xText(x)), rows], { below: true, class: "readings" });
}
function clipped(text, limit) {
  return text.length > limit ? `${text.slice(0, limit)} …` : text;
}
