// Page 2: a step's groups, how their siblings differ, which have zero variance.

function stepName(reportStep) {
  return reportStep.kind === "held_out"
    ? `Held-out tasks after step ${count(reportStep.step)}`
    : `Step ${count(reportStep.step)}`;
}

function groupEntry(reportStep, group, number) {
  const values = (name) => group.siblings.map((sibling) => sibling[name]).filter(isNumber);
  const spreadOf = (list) => (list.length ? most(list) - least(list) : 0);
  const sampling = values("sampling"),
    reasoning = values("reasoning");
  const compared = group.siblings.length > 1;
  return {
    reportStep,
    group,
    number,
    mean: { sampling: mean(sampling), reasoning: mean(reasoning) },
    spread: { sampling: spreadOf(sampling), reasoning: spreadOf(reasoning) },
    zeroVariance: {
      sampling: compared && sampling.length > 0 && spreadOf(sampling) === 0,
      reasoning: compared && spreadOf(reasoning) === 0,
    },
    annotated: sampling.length > 0,
    compared,
  };
}

function stepsPage(run, id) {
  if (!run.report_steps.length)
    return [
      el("h1", {}, "Steps"),
      el("p", { class: "empty" }, "No trajectories have been recorded yet (logging.trajectories_per_step may be 0)."),
    ];
  const trained = run.report_steps.filter((reportStep) => reportStep.kind === "train");
  const reportStep =
    run.stepById.get(id) ?? trained[trained.length - 1] ?? run.report_steps[run.report_steps.length - 1];
  const at = run.report_steps.indexOf(reportStep);
  const go = (number) => {
    location.hash = `#/steps/${run.report_steps[Math.min(run.report_steps.length - 1, Math.max(0, number))].id}`;
  };
  const change = (key, value) => {
    stepsView[key] = value;
    stepsView.shown = 40;
    fillGroups(run, reportStep);
  };
  return [
    el(
      "section",
      { class: "title-block" },
      stepButtons(run, reportStep, at, go),
      el("div", { class: "scrubber", id: "scrubber" }),
      stepSlider(run, reportStep, at, go),
    ),
    filterForm(run, change),
    listHead(),
    el("ol", { class: "groups", id: "groups" }),
    el("div", { id: "more" }),
  ];
}

function stepButtons(run, reportStep, at, go) {
  return el(
    "div",
    { class: "stepper" },
    el("h1", { id: "step-name" }, stepName(reportStep)),
    el(
      "div",
      { class: "buttons" },
      el(
        "button",
        { type: "button", "aria-label": "Step before", disabled: at === 0, on: { click: () => go(at - 1) } },
        "←",
      ),
      el(
        "button",
        {
          type: "button",
          "aria-label": "Next step",
          disabled: at === run.report_steps.length - 1,
          on: { click: () => go(at + 1) },
        },
        "→",
      ),
    ),
  );
}

function stepSlider(run, reportStep, at, go) {
  return el("input", {
    type: "range",
    id: "step-slider",
    class: "slider",
    min: 0,
    max: run.report_steps.length - 1,
    value: at,
    "aria-label": "Step",
    "aria-valuetext": stepName(reportStep),
    on: {
      change: (event) => go(Number(event.target.value)),
      input: (event) => {
        document.getElementById("step-name").textContent = stepName(run.report_steps[Number(event.target.value)]);
      },
    },
  });
}

function listHead() {
  return el(
    "div",
    { class: "list-head" },
    el("p", { id: "group-count", role: "status" }),
    el(
      "ul",
      { class: "legend keys", "aria-label": "Legend" },
      el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c1)" } }), "retrieval reward"),
      el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c2)" } }), "answer reward"),
      el("li", {}, el("span", { class: "swatch band" }), "evidence"),
      el("li", {}, el("span", { class: "swatch thin" }), "window granted"),
    ),
  );
}

function afterStepsPage(run, id) {
  if (!run.report_steps.length) return;
  const trained = run.report_steps.filter((reportStep) => reportStep.kind === "train");
  const reportStep =
    run.stepById.get(id) ?? trained[trained.length - 1] ?? run.report_steps[run.report_steps.length - 1];
  drawScrubber(run, reportStep);
  fillGroups(run, reportStep);
}

// Mean rewards of every step's recorded trajectories: where to look.
function drawScrubber(run, current) {
  const place = document.getElementById("scrubber"),
    width = place.clientWidth,
    height = 64,
    gap = 8;
  const x = (i) => gap + (run.report_steps.length === 1 ? 0.5 : i / (run.report_steps.length - 1)) * (width - 2 * gap);
  const y = (value) => height - 6 - value * (height - 14);
  const drawn = svg("svg", {
    width,
    height,
    class: "chart",
    "aria-hidden": "true",
    on: {
      click: (event) => {
        const at =
          ((event.clientX - drawn.getBoundingClientRect().left - gap) / (width - 2 * gap)) *
          (run.report_steps.length - 1);
        location.hash = `#/steps/${run.report_steps[Math.min(run.report_steps.length - 1, Math.max(0, Math.round(at)))].id}`;
      },
    },
  });
  for (const value of [0, 1])
    drawn.append(svg("line", { x1: 0, x2: width, y1: y(value), y2: y(value), class: "grid" }));
  const here = run.report_steps.indexOf(current);
  drawn.append(svg("line", { x1: x(here), x2: x(here), y1: 2, y2: height - 4, class: "here" }));
  run.report_steps.forEach((reportStep, i) => {
    if (reportStep.kind === "held_out")
      drawn.append(svg("line", { x1: x(i), x2: x(i), y1: height - 6, y2: height, class: "here faint" }));
  });
  for (const [name, color] of [
    ["sampling", "--c1"],
    ["reasoning", "--c2"],
  ]) {
    const points = run.report_steps.map((reportStep, i) => [
      reportStep,
      x(i),
      mean(reportStep.groups.flatMap((group) => group.siblings.map((sibling) => sibling[name]).filter(isNumber))),
    ]);
    const path = points
      .filter(([reportStep, , value]) => reportStep.kind === "train" && isNumber(value))
      .map(([, at, value]) => `${at.toFixed(1)},${y(value).toFixed(1)}`);
    if (path.length > 1)
      drawn.append(
        svg("path", { d: `M${path.join("L")}`, class: "curve", style: { stroke: `var(${color})`, fill: "none" } }),
      );
    for (const [reportStep, at, value] of points)
      if (isNumber(value) && (reportStep.kind === "held_out" || reportStep === current))
        drawn.append(
          svg("circle", {
            cx: at,
            cy: y(value),
            r: reportStep === current ? 4 : 2.6,
            style: { fill: reportStep.kind === "held_out" ? "var(--panel)" : `var(${color})`, stroke: `var(${color})` },
            class: "mark-dot",
          }),
        );
  }
  place.replaceChildren(drawn);
}

let fillTurn = 0;
async function fillGroups(run, reportStep) {
  const turn = ++fillTurn;
  const scope = stepsView.everywhere ? run.report_steps : [reportStep];
  const wanted = stepsView.text.trim().toLowerCase();
  const texts = new Map();
  if (wanted) {
    document.getElementById("group-count").textContent = "searching …";
    for (const each of scope) {
      texts.set(each.id, await details.get(each.id));
      if (turn !== fillTurn) return;
    }
  }
  const entries = [];
  for (const each of scope)
    each.groups.forEach((group, number) => {
      const entry = groupEntry(each, group, number);
      if (stepsView.zeroVariance && !(entry.zeroVariance.sampling || entry.zeroVariance.reasoning)) return;
      const detail = texts.get(each.id)?.[number];
      const inTask = wanted && `${group.task} ${group.question} ${group.answer}`.toLowerCase().includes(wanted);
      entry.matching = group.siblings.map(
        (sibling, i) =>
          siblingMatches(sibling) &&
          (!wanted || inTask || (detail?.siblings[i]?.text ?? "").toLowerCase().includes(wanted)),
      );
      if (entry.matching.some(Boolean)) entries.push(entry);
    });
  const key = SORTS[stepsView.sort][1];
  if (key) entries.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
  const groups = document.getElementById("groups");
  if (!groups) return;
  const total = scope.reduce((sum, each) => sum + each.groups.length, 0);
  const flat = entries.filter((entry) => entry.zeroVariance.sampling || entry.zeroVariance.reasoning).length;
  document.getElementById("group-count").textContent =
    `${count(entries.length)} of ${count(total)} groups` + (flat ? `, ${count(flat)} with zero variance` : "");
  const wide = groups.clientWidth > 900 ? 240 : 200;
  groups.replaceChildren(...entries.slice(0, stepsView.shown).map((entry) => groupRow(run, entry, wide)));
  if (!entries.length) groups.replaceChildren(el("li", { class: "empty" }, "No group passes these filters."));
  const left = entries.length - stepsView.shown;
  document.getElementById("more").replaceChildren(
    ...(left > 0
      ? [
          el(
            "button",
            {
              type: "button",
              class: "more",
              on: {
                click: () => {
                  stepsView.shown += 80;
                  fillGroups(run, reportStep);
                },
              },
            },
            `Show ${Math.min(80, left)} more of ${count(left)}`,
          ),
        ]
      : []),
  );
}
