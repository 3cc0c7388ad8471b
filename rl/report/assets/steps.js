// Page 2: a step's groups, how their siblings differ, which teach nothing.

function momentName(moment) {
  return moment.kind === "held_out" ? `Held-out tasks after step ${count(moment.step)}` : `Step ${count(moment.step)}`;
}

function groupEntry(moment, group, number) {
  const values = (name) => group.siblings.map((sibling) => sibling[name]).filter(isNumber);
  const spreadOf = (list) => (list.length ? most(list) - least(list) : 0);
  const sampling = values("sampling"),
    reasoning = values("reasoning");
  const compared = group.siblings.length > 1;
  return {
    moment,
    group,
    number,
    mean: { sampling: mean(sampling), reasoning: mean(reasoning) },
    spread: { sampling: spreadOf(sampling), reasoning: spreadOf(reasoning) },
    degenerate: {
      sampling: compared && sampling.length > 0 && spreadOf(sampling) === 0,
      reasoning: compared && spreadOf(reasoning) === 0,
    },
    annotated: sampling.length > 0,
    compared,
  };
}

function stepsPage(run, id) {
  if (!run.moments.length)
    return [
      el("h1", {}, "Steps"),
      el("p", { class: "empty" }, "No trajectories have been recorded yet (logging.trajectories_per_step may be 0)."),
    ];
  const trained = run.moments.filter((moment) => moment.kind === "train");
  const moment = run.moment.get(id) ?? trained[trained.length - 1] ?? run.moments[run.moments.length - 1];
  const at = run.moments.indexOf(moment);
  const go = (number) => {
    location.hash = `#/steps/${run.moments[Math.min(run.moments.length - 1, Math.max(0, number))].id}`;
  };
  const change = (key, value) => {
    stepsView[key] = value;
    stepsView.shown = 40;
    fillGroups(run, moment);
  };
  return [
    el(
      "section",
      { class: "title-block" },
      el(
        "div",
        { class: "stepper" },
        el("h1", { id: "moment-name" }, momentName(moment)),
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
              disabled: at === run.moments.length - 1,
              on: { click: () => go(at + 1) },
            },
            "→",
          ),
        ),
      ),
      el("div", { class: "scrubber", id: "scrubber" }),
      el("input", {
        type: "range",
        id: "step-slider",
        class: "slider",
        min: 0,
        max: run.moments.length - 1,
        value: at,
        "aria-label": "Step",
        "aria-valuetext": momentName(moment),
        on: {
          change: (event) => go(Number(event.target.value)),
          input: (event) => {
            document.getElementById("moment-name").textContent = momentName(run.moments[Number(event.target.value)]);
          },
        },
      }),
    ),
    filterForm(run, change),
    el(
      "div",
      { class: "list-head" },
      el("p", { id: "group-count", role: "status" }),
      el(
        "ul",
        { class: "legend keys", "aria-label": "Legend" },
        el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c1)" } }), "sampling reward"),
        el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c2)" } }), "reasoning reward"),
        el("li", {}, el("span", { class: "swatch band" }), "evidence"),
        el("li", {}, el("span", { class: "swatch thin" }), "window granted"),
      ),
    ),
    el("ol", { class: "groups", id: "groups" }),
    el("div", { id: "more" }),
  ];
}

function afterStepsPage(run, id) {
  if (!run.moments.length) return;
  const trained = run.moments.filter((moment) => moment.kind === "train");
  const moment = run.moment.get(id) ?? trained[trained.length - 1] ?? run.moments[run.moments.length - 1];
  drawScrubber(run, moment);
  fillGroups(run, moment);
}

// Mean rewards of every step's recorded trajectories: where to look.
function drawScrubber(run, current) {
  const place = document.getElementById("scrubber"),
    width = place.clientWidth,
    height = 64,
    gap = 8;
  const x = (i) => gap + (run.moments.length === 1 ? 0.5 : i / (run.moments.length - 1)) * (width - 2 * gap);
  const y = (value) => height - 6 - value * (height - 14);
  const drawn = svg("svg", {
    width,
    height,
    class: "chart",
    "aria-hidden": "true",
    on: {
      click: (event) => {
        const at =
          ((event.clientX - drawn.getBoundingClientRect().left - gap) / (width - 2 * gap)) * (run.moments.length - 1);
        location.hash = `#/steps/${run.moments[Math.min(run.moments.length - 1, Math.max(0, Math.round(at)))].id}`;
      },
    },
  });
  for (const value of [0, 1])
    drawn.append(svg("line", { x1: 0, x2: width, y1: y(value), y2: y(value), class: "grid" }));
  const here = run.moments.indexOf(current);
  drawn.append(svg("line", { x1: x(here), x2: x(here), y1: 2, y2: height - 4, class: "here" }));
  run.moments.forEach((moment, i) => {
    if (moment.kind === "held_out")
      drawn.append(svg("line", { x1: x(i), x2: x(i), y1: height - 6, y2: height, class: "here faint" }));
  });
  for (const [name, color] of [
    ["sampling", "--c1"],
    ["reasoning", "--c2"],
  ]) {
    const points = run.moments.map((moment, i) => [
      moment,
      x(i),
      mean(moment.groups.flatMap((group) => group.siblings.map((sibling) => sibling[name]).filter(isNumber))),
    ]);
    const path = points
      .filter(([moment, , value]) => moment.kind === "train" && isNumber(value))
      .map(([, at, value]) => `${at.toFixed(1)},${y(value).toFixed(1)}`);
    if (path.length > 1)
      drawn.append(
        svg("path", { d: `M${path.join("L")}`, class: "curve", style: { stroke: `var(${color})`, fill: "none" } }),
      );
    for (const [moment, at, value] of points)
      if (isNumber(value) && (moment.kind === "held_out" || moment === current))
        drawn.append(
          svg("circle", {
            cx: at,
            cy: y(value),
            r: moment === current ? 4 : 2.6,
            style: { fill: moment.kind === "held_out" ? "var(--panel)" : `var(${color})`, stroke: `var(${color})` },
            class: "mark-dot",
          }),
        );
  }
  place.replaceChildren(drawn);
}

let fillTurn = 0;
async function fillGroups(run, moment) {
  const turn = ++fillTurn;
  const scope = stepsView.everywhere ? run.moments : [moment];
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
      if (stepsView.degenerate && !(entry.degenerate.sampling || entry.degenerate.reasoning)) return;
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
  const degenerate = entries.filter((entry) => entry.degenerate.sampling || entry.degenerate.reasoning).length;
  document.getElementById("group-count").textContent =
    `${count(entries.length)} of ${count(total)} groups` +
    (degenerate ? `, ${count(degenerate)} degenerate in a role` : "");
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
                  fillGroups(run, moment);
                },
              },
            },
            `Show ${Math.min(80, left)} more of ${count(left)}`,
          ),
        ]
      : []),
  );
}
