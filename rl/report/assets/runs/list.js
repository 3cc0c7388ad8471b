// The list: every run with its state, how far it is, its last numbers, when it began and from what.

const LISTED = [
  ["held_out/accuracy", "held-out accuracy"],
  ["held_out/reward_sampling", "held-out retrieval"],
  ["held_out/reward_reasoning", "held-out answer"],
  ["reward/sampling", "retrieval reward"],
  ["reward/reasoning", "answer reward"],
  ["held_out/nll", "held-out loss"],
  ["loss/nll", "loss"],
];
const MOST_LISTED = 4; // metrics
const ROWS = 100; // shown before the reader asks for more
const STATES = {
  live: "a process writes it now",
  finished: "it has done all its steps",
  stopped: "it has not done all its steps, and no process writes it",
  empty: "it has not reported a step",
  broken: "nothing of it can be read",
  unread: "it is being read",
};
const ORDERS = {
  updated: ["written last", (run) => -(run.updated_s ?? 0)],
  started: ["started last", (run) => -(run.started_s ?? 0)],
  name: ["name", null],
  state: ["state", (run) => Object.keys(STATES).indexOf(run.state)],
  step: ["most steps", (run) => -(run.step ?? 0)],
};
let rowsShown = ROWS;

function listPage(all) {
  const metrics = LISTED.filter(([name]) => all.meaning.has(name)).slice(0, MOST_LISTED);
  const found = matchingRuns(all);
  return [
    el(
      "section",
      { class: "title-block" },
      el("h1", {}, quoted(all.title)),
      el(
        "p",
        { class: "facts" },
        listFacts(all).map((fact) => el("span", {}, fact)),
      ),
    ),
    all.left_out
      ? el("section", { class: "notices" }, el("p", {}, "There are more runs than are listed: name their folder."))
      : null,
    listFilters(all, metrics),
    found.length
      ? el("div", { class: "card scroll list-card" }, listTable(all, found.slice(0, rowsShown), metrics))
      : el("p", { class: "empty" }, all.runs.length ? "No run passes these filters." : "There is no run here yet."),
    found.length > rowsShown
      ? el(
          "button",
          {
            type: "button",
            class: "more",
            on: {
              click: () => {
                rowsShown += ROWS;
                redraw();
              },
            },
          },
          `Show more of ${count(found.length)} runs`,
        )
      : null,
  ];
}

function listFacts(all) {
  const counted = Object.keys(STATES)
    .map((state) => [all.runs.filter((run) => run.state === state).length, state])
    .filter(([times]) => times);
  return [`${count(all.runs.length)} runs`, ...counted.map(([times, state]) => `${count(times)} ${state}`)];
}

function matchingRuns(all) {
  const wanted = view.find.toLowerCase(),
    [, orderOf] = ORDERS[view.sort] ?? ORDERS.updated;
  const found = all.runs.filter(
    (run) =>
      (!view.state || run.state === view.state) &&
      `${run.name} ${run.folder} ${run.method ?? ""} ${run.policy ?? ""}`.toLowerCase().includes(wanted),
  );
  const named = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
  return found.sort((a, b) => (orderOf ? orderOf(a) - orderOf(b) : 0) || named(a, b));
}

function listFilters(all) {
  const states = Object.keys(STATES).filter((state) => all.runs.some((run) => run.state === state));
  const chosen = view.runs.filter((id) => all.byId.has(id)).length;
  return el(
    "form",
    { class: "filters card", "aria-label": "Find runs", on: { submit: (event) => event.preventDefault() } },
    words("Name, folder or method", "find", "such as seed1"),
    choice("State", "state", [["", "any"], ...states.map((state) => [state, state])]),
    choice(
      "Sort by",
      "sort",
      Object.entries(ORDERS).map(([name, [text]]) => [name, text]),
    ),
    el(
      "div",
      { class: "checks" },
      el(
        "a",
        { class: "button", id: "compare", href: addressOf("curves", view) },
        chosen ? `Compare ${count(chosen)} chosen` : "Compare the newest",
      ),
      chosen
        ? el("button", { type: "button", class: "quiet", on: { click: () => look({ runs: [] }) } }, "choose none")
        : null,
    ),
  );
}

function listTable(all, rows, metrics) {
  const place = new Map(all.shown(view).map((run, i) => [run.id, i]));
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, el("span", { class: "sr" }, "chosen")),
    ["run", "state", "step"].map((name) => el("th", { scope: "col" }, name)),
    metrics.map(([name, label]) =>
      el("th", { scope: "col", class: "number", title: `${name}: ${all.meaning.get(name).meaning}` }, label),
    ),
    ["started", "last number"].map((name) => el("th", { scope: "col" }, name)),
  );
  const body = rows.map((run) => listRow(all, run, metrics, view.runs.length ? place.get(run.id) : undefined));
  return el("table", { id: "run-table" }, el("thead", {}, head), el("tbody", {}, body));
}

function listRow(all, run, metrics, place) {
  const isChosen = view.runs.includes(run.id);
  const toggle = () =>
    look({ runs: isChosen ? view.runs.filter((id) => id !== run.id) : [...view.runs, run.id], offset: "" });
  const box = { type: "checkbox", checked: isChosen, id: `choose-${run.id}`, on: { change: toggle } };
  return el(
    "tr",
    { class: isChosen ? "is-chosen" : "", data: { run: run.id } },
    el("td", {}, el("input", { ...box, "aria-label": `choose ${visible(run.name)}` })),
    el("th", { scope: "row" }, runName(all, run, place)),
    el("td", { data: { label: "state" } }, statePill(run)),
    el("td", { data: { label: "step" } }, stepsOf(run)),
    metrics.map(([name, label]) =>
      el("td", { class: "number", data: { label } }, short(run.numbers?.[name] ?? null)),
    ),
    [run.started_s, run.updated_s].map((epoch, i) =>
      el(
        "td",
        { class: "when", data: { label: i ? "last number" : "started" }, title: epoch ? clock(epoch) : null },
        epoch ? ago(Date.now() / 1000 - epoch) : "–",
      ),
    ),
  );
}

function runName(all, run, place) {
  const [from] = run.ancestry ?? [];
  const ancestor = from && (from.id ? all.byId.get(from.id) : null);
  return [
    el(
      "p",
      { class: "run-name" },
      place === undefined ? null : keyOf(place),
      el("a", { href: `run/${run.id}/` }, quoted(run.name)),
      run.evaluations
        ? el(
            "a",
            { class: "badge", href: addressOf("predictions", { ...VIEW, runs: [run.id] }) },
            run.evaluations === 1 ? "1 evaluation" : `${count(run.evaluations)} evaluations`,
          )
        : null,
    ),
    el("p", { class: "path" }, quoted(run.folder)),
    from
      ? el(
          "p",
          { class: "hint" },
          "from ",
          ancestor ? el("a", { href: `run/${ancestor.id}/` }, quoted(ancestor.name)) : quoted(from.run || from.source),
          from.step === null ? "" : `, step ${count(from.step)}`,
          run.ancestry.length > 1 ? `, and ${run.ancestry.length - 1} before it` : "",
        )
      : null,
    (run.reasons ?? []).map((reason) => el("p", { class: "warn reason" }, quoted(reason))),
  ];
}

function statePill(run) {
  return el("span", { class: `state is-${run.state}`, title: STATES[run.state] }, run.state);
}

function stepsOf(run) {
  if (run.state === "unread") return "";
  const share = run.planned ? Math.min(1, run.step / run.planned) : 0;
  return [
    el("span", { class: "steps-done" }, run.planned ? `${count(run.step)} of ${count(run.planned)}` : count(run.step)),
    run.planned
      ? el("span", { class: "progress", "aria-hidden": "true" }, el("span", { style: { width: `${100 * share}%` } }))
      : null,
  ];
}
