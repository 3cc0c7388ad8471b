// Who worked when over a step: a lane per worker, from the report of the step before to its own.

const LANE = { label: 108, share: 62, row: 14, gap: 7, axis: 24, least: 1.5 }; // pixels
const LANE_KINDS = [
  // what stands before the / of a worker's name, in the order of the lanes
  ["rollout", "--c1", "engines"],
  ["reward", "--c3", "reward workers"],
  ["learner", "--c2", "learner ranks"],
  ["push", "--c4", "push of weights"],
  ["save", "--c6", "copy for a checkpoint"],
  ["checkpoint", "--c8", "checkpoint written"],
  ["evaluation", "--c5", "evaluation"],
  ["profile", "--c7", "profiles written"],
  ["asleep", "--c1", "engines asleep"],
  ["offloaded", "--c2", "learner ranks off the GPU"],
];
const lanesView = { step: null }; // null: the newest

function lanesSection(run) {
  const { steps, left_out: leftOut } = run.lanes;
  if (!steps.length) return null;
  const choose = (step) => {
    lanesView.step = step === lastOf(steps).step ? null : step;
    fillLanes(run);
  };
  const move = (by) => choose(steps[Math.max(0, Math.min(steps.length - 1, laneIndex(run) + by))].step);
  const button = (id, label, by) =>
    el("button", { type: "button", id, "aria-label": label, on: { click: () => move(by) } }, by < 0 ? "◀" : "▶");
  return el(
    "section",
    { "aria-labelledby": "lanes-title" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "lanes-title" }, "Who worked when"),
      el(
        "label",
        { class: "field inline" },
        "Step ",
        el(
          "select",
          { id: "lanes-step", on: { change: (event) => choose(Number(event.target.value)) } },
          steps.map((line) => el("option", { value: line.step }, count(line.step))),
        ),
      ),
      button("lanes-before", "The step before", -1),
      button("lanes-after", "The next step", 1),
      el(
        "p",
        { class: "hint" },
        "From the report of the step before to its own, by the workers' clocks.",
        leftOut ? ` ${count(leftOut)} older steps are in lanes.jsonl.` : "",
      ),
    ),
    el("div", { class: "card scroll", id: "lanes" }),
  );
}

function laneIndex(run) {
  const found = run.lanes.steps.findIndex((line) => line.step === lanesView.step);
  return found < 0 ? run.lanes.steps.length - 1 : found;
}

function fillLanes(run) {
  const place = document.getElementById("lanes");
  if (!place) return;
  const index = laneIndex(run),
    shown = run.lanes.steps[index];
  document.getElementById("lanes-step").value = String(shown.step);
  document.getElementById("lanes-before").disabled = index === 0;
  document.getElementById("lanes-after").disabled = index === run.lanes.steps.length - 1;
  const lanes = lanesOf(run.lanes.steps, shown);
  const kinds = LANE_KINDS.filter(([kind]) => lanes.some((lane) => lane.kind === kind));
  place.replaceChildren(
    lanesDrawing(shown, lanes, Math.max(360, place.clientWidth - 26)),
    el(
      "ul",
      { class: "legend" },
      kinds.map(([, color, meaning]) =>
        el("li", {}, el("span", { class: "swatch", style: { "--own": `var(${color})` } }), meaning),
      ),
    ),
    profilesOf(run, shown.step),
  );
}

// Where the profiles of a step lie; of the others, which steps have some.
function profilesOf(run, step) {
  const files = run.profiles[step] ?? [],
    others = Object.keys(run.profiles).filter((known) => Number(known) !== step);
  if (!files.length && !others.length) return null;
  const elsewhere = others.length ? `Profiles of step${others.length > 1 ? "s" : ""} ${others.join(", ")}.` : "";
  return el(
    "p",
    { class: "hint profiles" },
    files.length
      ? ["Profiles of this step, for Perfetto or chrome://tracing: ", files.map((name) => [quoted(name, { class: "path" }), " "])]
      : elsewhere,
  );
}

// Every worker's spans that reach into the step, whichever step's line tells of them; seconds from the step's start.
// [{worker, kind, color, spans: [{work, start, end, row}], rows, share}]
function lanesOf(lines, shown) {
  const lanes = new Map();
  for (const line of lines) {
    const later = line.start_s - shown.start_s;
    for (const [worker, spans] of line.lanes)
      for (const [work, first, last] of spans) {
        const start = first + later,
          end = last + later;
        if (line !== shown && (end <= 0 || start >= shown.seconds)) continue;
        if (!lanes.has(worker)) lanes.set(worker, []);
        lanes.get(worker).push({ work, start, end });
      }
  }
  const order = (kind) => {
    const found = LANE_KINDS.findIndex(([known]) => known === kind);
    return found < 0 ? LANE_KINDS.length : found;
  };
  return [...lanes]
    .map(([worker, spans]) => {
      const kind = worker.split("/")[0];
      spans.sort((a, b) => a.start - b.start);
      return {
        worker,
        kind,
        color: LANE_KINDS[order(kind)]?.[1] ?? "--c7",
        spans,
        rows: putInRows(spans),
        share: shown.seconds ? covered(spans, shown.seconds) / shown.seconds : 0,
      };
    })
    .sort((a, b) => order(a.kind) - order(b.kind));
}

// What overlaps lies one below the other; returns the number of rows.
function putInRows(spans) {
  const ends = [];
  for (const each of spans) {
    const free = ends.findIndex((end) => end <= each.start);
    each.row = free < 0 ? ends.length : free;
    ends[each.row] = each.end;
  }
  return Math.max(1, ends.length);
}

// Seconds of the step within at least one span.
function covered(spans, seconds) {
  let total = 0,
    reached = 0;
  for (const { start, end } of spans) {
    const last = Math.min(end, seconds);
    total += Math.max(0, last - Math.max(start, reached));
    reached = Math.max(reached, last);
  }
  return total;
}

function lanesDrawing(shown, lanes, width) {
  const inner = width - LANE.label - LANE.share;
  const x = (seconds) => LANE.label + inner * Math.min(1, Math.max(0, shown.seconds ? seconds / shown.seconds : 0));
  let top = 4;
  const drawn = lanes.map((lane) => {
    const height = lane.rows * LANE.row,
      nodes = laneNodes(lane, top, width, x);
    top += height + LANE.gap;
    return nodes;
  });
  const marks = ticks(0, shown.seconds, Math.max(2, Math.floor(inner / 90)));
  const grid = marks.map((at) => [
    svg("line", { x1: x(at), x2: x(at), y1: 0, y2: top, class: "grid" }),
    svg("text", { x: x(at), y: top + 14, "text-anchor": "middle", class: "tick" }, `${Number(at.toPrecision(6))} s`),
  ]);
  const said = lanes.map((lane) => `${visible(lane.worker)} ${Math.round(100 * lane.share)} %`).join(", ");
  return svg(
    "svg",
    {
      width,
      height: top + LANE.axis,
      class: "chart",
      role: "img",
      "aria-label": `Step ${shown.step}, ${short(shown.seconds)} s; share of it at work: ${said}`,
    },
    grid,
    drawn,
  );
}

function laneNodes(lane, top, width, x) {
  const middle = top + (lane.rows * LANE.row) / 2 + 3.5;
  const bars = lane.spans.map((each) => {
    const left = x(each.start),
      bar = svg("rect", {
        x: left,
        y: top + each.row * LANE.row + 1,
        width: Math.max(LANE.least, x(each.end) - left),
        height: LANE.row - 2,
        rx: 1.5,
        class: "work-span",
        style: { fill: `var(${lane.color})` },
      });
    const told = `${short(each.end - each.start)} s, from ${short(each.start)} s to ${short(each.end)} s`;
    bar.addEventListener("mouseenter", () =>
      popUp(bar, [
        el("p", { class: "pop-head" }, quoted(lane.worker), each.work === lane.worker ? "" : [": ", quoted(each.work)]),
        el("p", {}, told),
      ]),
    );
    bar.addEventListener("mouseleave", hidePop);
    return bar;
  });
  return [
    svg("rect", { x: x(0), y: top, width: width - LANE.label - LANE.share, height: lane.rows * LANE.row, class: "lane" }),
    svg("text", { x: LANE.label - 10, y: middle, "text-anchor": "end", class: "lane-label" }, visible(lane.worker)),
    bars,
    svg("text", { x: width, y: middle, "text-anchor": "end", class: "tick" }, `${Math.round(100 * lane.share)} %`),
  ];
}
