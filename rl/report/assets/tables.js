// Tables of page 1: evaluations, every metric, the configuration.

function tables(run) {
  return [heldOutTable(run), evaluationTable(run)];
}

function heldOutTable(run) {
  const names = run.under("held_out/"),
    rows = run.steps
      .map((step, i) => [step, i])
      .filter(([, i]) => names.some((name) => isNumber(run.metric.get(name).values[i])));
  if (!rows.length) return null;
  return el(
    "section",
    { "aria-labelledby": "held-out" },
    el("div", { class: "section-head" }, el("h2", { id: "held-out" }, "Held-out evaluations")),
    el(
      "div",
      { class: "card scroll" },
      el(
        "table",
        { id: "held-out-table" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col", class: "number" }, "step"),
            names.map((name) =>
              el(
                "th",
                { scope: "col", class: "number", title: run.metric.get(name).meaning },
                quoted(name.slice(9).replaceAll("_", " ")),
              ),
            ),
          ),
        ),
        el(
          "tbody",
          {},
          rows.map(([step, i]) =>
            el(
              "tr",
              {},
              el(
                "th",
                { scope: "row", class: "number" },
                run.stepById.has(`h${step}`) ? el("a", { href: `#/steps/h${step}` }, count(step)) : count(step),
              ),
              names.map((name) => el("td", { class: "number" }, short(run.metric.get(name).values[i]))),
            ),
          ),
        ),
      ),
    ),
  );
}

function evaluationTable(run) {
  if (!run.evaluations.length) return null;
  const hasPublished = run.evaluations.some((row) => row.comparable !== null);
  return el(
    "section",
    { "aria-labelledby": "benchmarks" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "benchmarks" }, "Benchmarks"),
      el("p", { class: "hint" }, "Bars: 95 % intervals"),
    ),
    el(
      "div",
      { class: "card scroll" },
      el(
        "table",
        { id: "eval-table" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ["benchmark", "metric"].map((name) => el("th", { scope: "col" }, name)),
            ["value", "low", "high", "n"].map((name) => el("th", { scope: "col", class: "number" }, name)),
            el("th", { scope: "col" }, "0 … 1"),
            hasPublished ? el("th", { scope: "col", class: "number" }, "authors print") : null,
            hasPublished ? el("th", { scope: "col" }, "comparable with published numbers") : null,
          ),
        ),
        el(
          "tbody",
          {},
          run.evaluations.map((row) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, quoted(row.benchmark)),
              el("td", {}, quoted(row.metric)),
              [row.value, row.low, row.high].map((value) => el("td", { class: "number" }, short(value))),
              el("td", { class: "number" }, row.count === null ? "–" : count(row.count)),
              el("td", {}, row.too_few ? el("span", { class: "hint" }, "too few for an interval") : interval(row)),
              hasPublished ? el("td", { class: "number" }, row.printed === null ? "" : quoted(row.printed)) : null,
              hasPublished ? el("td", {}, comparable(row)) : null,
            ),
          ),
        ),
      ),
    ),
  );
}

function comparable(row) {
  if (row.comparable === null) return "";
  return row.comparable ? "yes" : el("span", { class: "hint" }, "no: ", quoted(row.why_not ?? "the reason is not given"));
}

function interval(row) {
  if (row.value < 0 || row.value > 1) return "";
  const x = (value) => 4 + 132 * Math.min(1, Math.max(0, value));
  return svg(
    "svg",
    { width: 140, height: 16, "aria-hidden": "true" },
    svg("line", { x1: 4, x2: 136, y1: 8, y2: 8, class: "grid" }),
    row.low !== null && row.high !== null
      ? svg("line", { x1: x(row.low), x2: x(row.high), y1: 8, y2: 8, class: "whisker" })
      : null,
    svg("circle", { cx: x(row.value), cy: 8, r: 3.5, style: { fill: "var(--c1)" } }),
  );
}

function allMetrics(run) {
  return el(
    "section",
    { "aria-labelledby": "all-metrics" },
    el(
      "details",
      { id: "metrics-details" },
      el("summary", {}, el("h2", { id: "all-metrics" }, `Every metric (${run.metrics.length})`)),
      searchField("Find a metric", "metric-search", runView.metricFilter, (text) => {
        runView.metricFilter = text;
        fillMetrics(run);
      }),
      el(
        "div",
        { class: "card scroll" },
        el(
          "table",
          { id: "metric-table" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              el("th", { scope: "col" }, "metric"),
              el("th", { scope: "col" }, "curve"),
              ["first", "last", "lowest", "highest"].map((name) => el("th", { scope: "col", class: "number" }, name)),
              el("th", { scope: "col" }, "unit"),
              el("th", { scope: "col" }, "meaning"),
            ),
          ),
          el("tbody", { id: "metric-rows" }),
        ),
      ),
    ),
  );
}

function fillMetrics(run) {
  const wanted = runView.metricFilter.toLowerCase();
  document.getElementById("metric-rows").replaceChildren(
    ...run.metrics
      .filter((metric) => `${metric.name} ${metric.meaning}`.toLowerCase().includes(wanted))
      .map((metric) => {
        const known = metric.values.filter(isNumber);
        return el(
          "tr",
          {},
          el("th", { scope: "row" }, quoted(metric.name)),
          el("td", {}, sparkline(metric.values)),
          [
            known[0],
            metric.text ?? known[known.length - 1],
            known.length ? least(known) : null,
            known.length ? most(known) : null,
          ].map((value) => el("td", { class: "number" }, isNumber(value) ? short(value) : quoted(value ?? "–"))),
          el("td", {}, quoted(metric.unit)),
          el("td", { class: "meaning" }, quoted(metric.meaning)),
        );
      }),
  );
}

function fillConfig(run) {
  const wanted = runView.configFilter.toLowerCase();
  const rows = run.config.filter(([key, value]) => `${key} ${value}`.toLowerCase().includes(wanted));
  document.getElementById("config-count").textContent = `${count(rows.length)} of ${count(run.config.length)} keys`;
  const sections = new Map();
  for (const [key, value] of rows) {
    const name = key.includes(".") ? key.slice(0, key.indexOf(".")) : "";
    sections.set(name, [...(sections.get(name) ?? []), [name ? key.slice(name.length + 1) : key, value]]);
  }
  document.getElementById("config-table").replaceChildren(
    ...[...sections].map(([name, pairs]) =>
      el(
        "div",
        { class: "config-section" },
        el("h3", {}, name ? quoted(name) : "run"),
        el(
          "dl",
          {},
          pairs.map(([key, value]) =>
            el(
              "div",
              {},
              el("dt", {}, quoted(key)),
              el("dd", {}, value === "" ? el("span", { class: "hint" }, "empty") : longText(value)),
            ),
          ),
        ),
      ),
    ),
  );
}

function searchField(label, id, value, onInput) {
  return el(
    "label",
    { class: "field" },
    el("span", { class: "sr" }, label),
    el("input", {
      type: "search",
      id,
      value,
      placeholder: label,
      autocomplete: "off",
      spellcheck: "false",
      on: { input: (event) => onInput(event.target.value) },
    }),
  );
}
