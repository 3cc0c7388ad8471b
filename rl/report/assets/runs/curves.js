// Curves compared: which metrics, by section; per step or per wall time; as measured or smoothed; seeds as a band.

const MAIN = [
  ...["reward/sampling", "reward/reasoning", "held_out/accuracy", "held_out/reward_sampling"],
  ...["held_out/reward_reasoning", "loss/nll", "held_out/nll", "rollout/granted_calls", "rollout/frames"],
  ...["policy/entropy", "grad/norm", "seconds/step"],
];
const MOST_PLOTS = 24;
const SMOOTHINGS = [
  ["1", "as measured"],
  ["5", "mean of 5 points"],
  ["20", "mean of 20 points"],
  ["100", "mean of 100 points"],
];
const kept = new Map(); // run and names -> what the server gave, and of which state of the run
let metricFind = "";

function curvesPage(all) {
  const shown = all.shown(view),
    seeds = familiesOf(shown).some((runs) => runs.length > 1);
  return [
    el("section", { class: "title-block" }, el("h1", {}, "Curves")),
    chosenRuns(shown, { together: Boolean(view.bands) }),
    el(
      "form",
      { class: "filters card", "aria-label": "How curves are drawn", on: { submit: (event) => event.preventDefault() } },
      choice("Curves show", "smoothing", SMOOTHINGS),
      choice("Along", "x", [
        ["step", "steps"],
        ["time", "wall time"],
      ]),
      seeds
        ? choice("Seeds of one name", "bands", [
            ["", "each by itself"],
            ["1", "mean, lowest to highest"],
          ])
        : null,
      el("p", { class: "hint grow" }, "Point at a curve to read all runs there. The axes are the same for every run."),
    ),
    metricChooser(all),
    el("div", { class: "charts", id: "plots" }, el("p", { class: "wait" }, "Reading curves …")),
  ];
}

function metricChooser(all) {
  const sections = Map.groupBy
    ? Map.groupBy(all.metrics, ([name]) => name.split("/")[0])
    : all.metrics.reduce(
        (found, metric) => found.set(metric[0].split("/")[0], [...(found.get(metric[0].split("/")[0]) ?? []), metric]),
        new Map(),
      );
  const sentenceOf = view.metrics.length ? `${count(view.metrics.length)} chosen` : "the main ones";
  const find = el("input", {
    type: "search",
    id: "metric-find",
    value: metricFind,
    placeholder: "Find a metric",
    "aria-label": "Find a metric",
    autocomplete: "off",
    on: {
      input: (event) => {
        metricFind = event.target.value;
        fillSections(sections);
      },
    },
  });
  return el(
    "details",
    { class: "card metrics", id: "metric-chooser" },
    el("summary", {}, el("h2", {}, "Metrics"), el("span", { class: "hint" }, sentenceOf)),
    el(
      "div",
      { class: "checks" },
      find,
      view.metrics.length
        ? el("button", { type: "button", class: "quiet", on: { click: () => look({ metrics: [] }) } }, "the main ones")
        : null,
    ),
    el("div", { class: "metric-sections", id: "metric-sections" }, sectionList(sections)),
  );
}
function fillSections(sections) {
  document.getElementById("metric-sections").replaceChildren(...sectionList(sections));
}
function sectionList(sections) {
  const wanted = metricFind.toLowerCase();
  const boxOf = (label, names, title, id) => {
    const isIn = names.every((name) => view.metrics.includes(name));
    const change = () =>
      look({
        metrics: isIn
          ? view.metrics.filter((name) => !names.includes(name))
          : [...new Set([...view.metrics, ...names])],
      });
    return el(
      "label",
      { class: "check", title },
      el("input", { type: "checkbox", id, checked: isIn, on: { change } }),
      quoted(label),
    );
  };
  return [...sections]
    .map(([section, metrics]) => {
      const found = metrics.filter(([name, , meaning]) => `${name} ${meaning}`.toLowerCase().includes(wanted));
      if (!found.length) return null;
      const names = found.map(([name]) => name);
      return el(
        "fieldset",
        {},
        el("legend", {}, boxOf(section, names, `all of ${section}`, `section-${section}`)),
        found.map(([name, unit, meaning]) =>
          boxOf(name.slice(section.length + 1) || name, [name], `${name} (${unit}): ${meaning}`, `metric-${name}`),
        ),
      );
    })
    .filter(Boolean);
}

async function afterCurvesPage(all) {
  const shown = all.shown(view),
    wanted = view.metrics.length ? view.metrics : MAIN.filter((name) => all.meaning.has(name)),
    names = wanted.slice(0, MOST_PLOTS);
  const found = await Promise.all(shown.map((run) => curvesOf(run, names)));
  const place = document.getElementById("plots");
  if (!place || route() !== "curves") return;
  drawPlots(all, place, shown, found, names, wanted.length);
}

// Fetched again when the run has gone on.
async function curvesOf(run, names) {
  const key = `${run.id} ${names.join(",")}`,
    state = `${run.updated_s} ${run.step}`;
  const before = kept.get(key);
  if (before?.state === state) return before.curves;
  const given = names.length ? await server.get("curves", { run: run.id, names }) : { curves: {} };
  const curves = given?.curves ?? before?.curves ?? {};
  kept.delete(key);
  kept.set(key, { state, curves });
  if (kept.size > 200) kept.delete(kept.keys().next().value);
  return curves;
}

function drawPlots(all, place, shown, found, names, wanted) {
  const columns = Math.max(1, Math.floor((place.clientWidth + 16) / 396));
  const width = Math.floor((place.clientWidth - (columns - 1) * 16) / columns) - 26;
  place.style.setProperty("--columns", columns);
  const perTime = view.x === "time",
    lines = new Map(names.map((name) => [name, linesOf(name, shown, found, perTime)])),
    ends = [...lines.values()].flat().map((line) => line.xs[line.xs.length - 1]);
  const cursor = new Cursor(),
    to = most(ends.concat(0));
  const unit = perTime ? timeUnit(to) : 1;
  const drawn = names
    .filter((name) => lines.get(name).length)
    .map((name) => {
      const { unit: of, meaning } = all.meaning.get(name) ?? { unit: "", meaning: "" };
      return linesPlot({
        title: name,
        unit: of,
        meaning: meaning ? `${meaning[0].toUpperCase()}${meaning.slice(1)}.` : "",
        width,
        lines: lines.get(name).map((line) => ({ ...line, xs: line.xs.map((x) => x / unit) })),
        from: 0,
        to: Math.max(to / unit, 1e-9),
        xText: perTime ? (x) => `${tickText(x)} ${TIME_NAMES.get(unit)}` : (x) => `step ${count(x)}`,
        cursor,
      });
    });
  const nothing = el("p", { class: "empty" }, "None of these runs has reported a number of these metrics.");
  place.replaceChildren(...(drawn.length ? drawn : [nothing]));
  if (wanted > names.length)
    place.append(el("p", { class: "hint" }, `The first ${MOST_PLOTS} of ${count(wanted)} metrics are drawn.`));
  if (perTime && drawn.length)
    place.append(el("p", { class: "hint" }, `Hours and minutes since a run's first number, pauses included.`));
}
const TIME_NAMES = new Map([
  [1, "s"],
  [60, "min"],
  [3600, "h"],
  [86400, "days"],
]);
function timeUnit(lasting) {
  return [86400, 3600, 60, 1].find((one) => lasting >= 3 * one) ?? 1;
}

// A line per run, or per name where seeds are drawn together.
function linesOf(name, shown, found, perTime) {
  const own = shown
    .map((run, place) => {
      const curve = found[place][name];
      if (!curve) return null;
      const smooth = movingMean(curve.values, Number(view.smoothing) || 1);
      const raw = smooth === curve.values ? null : curve.values;
      return { run, place, steps: curve.steps, seconds: curve.seconds, ys: smooth, raw };
    })
    .filter(Boolean);
  const alone = (line) => ({
    ...looksOf(line.place),
    label: line.run.name,
    xs: perTime ? line.seconds : line.steps,
    ys: line.ys,
    raw: line.raw,
    key: () => keyOf(line.place),
  });
  if (!view.bands) return own.map(alone);
  return familiesOf(shown)
    .map((runs, place) => ({ lines: own.filter((line) => runs.includes(line.run)), place }))
    .filter(({ lines }) => lines.length)
    .map(({ lines, place }) => (lines.length > 1 ? meanOf(lines, place, perTime) : alone({ ...lines[0], place })))
    .filter((line) => line.xs.length);
}
// Of the steps that all of them have reported: a run that is behind does not bend the mean.
function meanOf(lines, place, perTime) {
  const values = lines.map((line) => new Map(line.steps.map((step, i) => [step, [line.ys[i], line.seconds[i]]])));
  const steps = lines[0].steps.filter((step) => values.every((known) => known.has(step)));
  const at = steps.map((step) => values.map((known) => known.get(step)));
  return {
    ...looksOf(place),
    label: `${lines[0].run.family}, ${lines.length} seeds`,
    xs: perTime ? at.map((each) => mean(each.map((pair) => pair[1]))) : steps,
    ys: at.map((each) => mean(each.map((pair) => pair[0]))),
    lows: at.map((each) => least(each.map((pair) => pair[0]))),
    highs: at.map((each) => most(each.map((pair) => pair[0]))),
    key: () => keyOf(place),
  };
}
