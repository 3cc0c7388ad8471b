// What evaluations predicted: question by question, those that went wrong first, every run on the same time axis.

const SORTED = [
  ["wrong", "wrong first"],
  ["right", "right first"],
  ["spread", "runs that differ most first"],
  ["order", "as in the benchmark"],
];
const LOOKED = [
  ["", "any"],
  ["with", "looked again"],
  ["without", "did not look"],
  ["malformed", "malformed call"],
  ["refused", "refused call"],
  ["problem", "no prediction"],
];
const MOST_COMPARED = 8; // runs on one axis
const again = { offset: "" };

function predictionsPage(all) {
  const shown = all.shown(view, { most: 4, where: (run) => run.evaluations });
  return [
    el("section", { class: "title-block" }, el("h1", {}, "Predictions")),
    chosenRuns(shown.slice(0, MOST_COMPARED)),
    el("div", { id: "predictions" }, el("p", { class: "wait" }, "Reading predictions …")),
  ];
}

async function afterPredictionsPage(all) {
  const shown = all.shown(view, { most: 4, where: (run) => run.evaluations }).slice(0, MOST_COMPARED),
    ids = shown.map((run) => run.id);
  const held = ids.length ? ((await server.get("evaluations", { run: ids })) ?? {}) : {};
  const names = [...new Set(Object.values(held).flat())].sort();
  const place = () => (route() === "predictions" ? document.getElementById("predictions") : null);
  if (!names.length) {
    const why = "None of these runs has an evaluation. `dynframe eval CONFIG --run RUN` makes one.";
    return place()?.replaceChildren(el("p", { class: "empty" }, why));
  }
  const evaluation = names.includes(view.evaluation) ? view.evaluation : mostHeld(names, held);
  const { metric, type, look: looked, text, order: sort, offset } = view;
  const asked = { evaluation, run: ids, metric, type, look: looked, text, sort, offset };
  const page = await server.get("predictions", asked);
  if (!page) return place()?.replaceChildren(el("p", { class: "empty" }, "These predictions cannot be read."));
  const having = page.ids.map((id) => all.byId.get(id)).filter(Boolean);
  fillPredictions(place(), { names, evaluation, page, shown: having, places: having.map((run) => shown.indexOf(run)) });
}
function mostHeld(names, held) {
  const times = (name) => Object.values(held).filter((evaluations) => evaluations.includes(name)).length;
  return names.reduce((best, name) => (times(name) > times(best) ? name : best), names[0]);
}

// What is being read or filtered stays where it is: only what has changed is drawn again.
function fillPredictions(place, told) {
  if (!place) return;
  const drawn = JSON.stringify([told.page, told.evaluation, told.names, place.clientWidth]);
  if (place.dataset.drawn === drawn) return;
  place.dataset.drawn = drawn;
  const focused = document.activeElement?.id,
    caret = document.activeElement?.selectionStart;
  const { page } = told,
    wide = place.clientWidth;
  place.replaceChildren(
    ...[
      predictionFilters(told),
      predictionNotices(told),
      typesTable(told),
      pager(page),
      page.rows.length
        ? el(
            "ol",
            { class: "questions", id: "questions" },
            page.rows.map((row) => questionCard(row, told, wide)),
          )
        : el("p", { class: "empty" }, "No question passes these filters."),
      page.matching > page.rows.length ? pager(page) : null,
    ].filter(Boolean),
  );
  const field = focused && document.getElementById(focused);
  if (field && place.contains(field)) {
    field.focus({ preventScroll: true });
    if (field.type === "search" && caret !== null && caret !== undefined) field.setSelectionRange(caret, caret);
  }
}

function predictionFilters({ names, evaluation, page }) {
  const types = page.types.map(({ type, count: times }) => [type, `${type || "untyped"} (${count(times)})`]);
  view.evaluation ||= evaluation;
  view.metric ||= page.metric;
  return el(
    "form",
    { class: "filters card", "aria-label": "Find questions", on: { submit: (event) => event.preventDefault() } },
    choice("Evaluation", "evaluation", names.map((name) => [name, name]), { also: { ...again, metric: "", type: "" } }),
    choice("By the metric", "metric", page.metrics.map((name) => [name, name]), { also: again }),
    types.length > 1 ? choice("Type", "type", [["", "all"], ...types], { also: again }) : null,
    choice("Retrieval", "look", LOOKED, { also: again }),
    choice("Sort", "order", SORTED, { also: again }),
    words("Text or task", "text", "question, answer, what the policy wrote", again),
  );
}

function predictionNotices({ page, shown }) {
  const told = page.runs.flatMap((run, i) => {
    const name = visible(shown[i].name);
    return [
      run.broken ? `${name}: ${count(run.broken)} broken ${run.broken === 1 ? "line" : "lines"}, first: ${run.reason}` : "",
      run.is_done ? "" : `${name}: under way or interrupted, ${count(run.answered)} predictions so far`,
      run.has_questions ? "" : `${name}: this evaluation did not record its questions`,
    ].filter(Boolean);
  });
  if (!told.length) return null;
  return el(
    "section",
    { class: "notices" },
    told.map((text) => el("p", {}, quoted(text))),
  );
}

// Of each kind of question, what every run reached.
function typesTable({ page, shown, places }) {
  if (page.types.length < 2) return null;
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "type"),
    el("th", { scope: "col", class: "number" }, "questions"),
    shown.map((run, i) =>
      el("th", { scope: "col", class: "number" }, keyOf(places[i]), " ", quoted(clipped(run.name, 24))),
    ),
  );
  const body = page.types.map(({ type, count: times, means }) =>
    el(
      "tr",
      { class: type === view.type ? "is-chosen" : "" },
      el(
        "th",
        { scope: "row" },
        el(
          "button",
          { type: "button", class: "link", on: { click: () => look({ type: type === view.type ? "" : type, ...again }) } },
          quoted(type || "untyped"),
        ),
      ),
      el("td", { class: "number" }, count(times)),
      means.map((value) => el("td", { class: "number" }, short(value))),
    ),
  );
  return el(
    "details",
    { class: "card scroll", id: "types", open: true },
    el("summary", {}, el("h2", {}, `${page.metric} by type`)),
    el("table", { id: "type-table" }, el("thead", {}, head), el("tbody", {}, body)),
  );
}

function pager(page) {
  const first = page.matching ? page.offset + 1 : 0,
    last = page.offset + page.rows.length;
  const go = (offset) => () => {
    look({ offset: offset ? String(offset) : "" });
    window.scrollTo(0, 0);
  };
  const inAll = page.matching === page.total ? "" : ` (${count(page.total)} in all)`;
  return el(
    "p",
    { class: "list-head pager" },
    el("span", { role: "status" }, `${count(first)}–${count(last)} of ${count(page.matching)} questions${inAll}`),
    el(
      "span",
      { class: "buttons" },
      el("button", { type: "button", disabled: page.offset === 0, on: { click: go(Math.max(0, page.offset - 20)) } }, "before"),
      el("button", { type: "button", disabled: last >= page.matching, on: { click: go(last) } }, "next"),
    ),
  );
}

function questionCard(row, told, wide) {
  const { shown, places, page } = told,
    narrow = wide < 720;
  const lane = Math.max(180, narrow ? wide - 34 : wide - 34 - 180 - 220);
  return el(
    "li",
    { class: "question-card card", data: { task: row.task } },
    el(
      "p",
      { class: "group-name" },
      el("span", { class: "task-id" }, quoted(row.task)),
      row.type ? el("span", { class: "badge" }, quoted(row.type)) : null,
    ),
    row.question ? el("p", { class: "question" }, longText(row.question.replace(/^\s*<video>\s*/, ""))) : null,
    row.options.length
      ? el(
          "ol",
          { class: "options" },
          row.options.map((option, i) => {
            const letter = String.fromCharCode(65 + i);
            return el("li", { class: letter === row.answer.trim() ? "gold" : "" }, `${letter}. `, quoted(option));
          }),
        )
      : null,
    row.answer && !isOption(row) ? el("p", { class: "group-facts" }, el("span", {}, "right: ", el("b", {}, quoted(row.answer)))) : null,
    el(
      "div",
      { class: "on-axis" },
      el(
        "ul",
        { class: "lane-names" },
        shown.map((run, i) => el("li", {}, keyOf(places[i]), quoted(clipped(run.name, 26)))),
      ),
      lanesOf(row, shown, places, lane),
      el(
        "ul",
        { class: "lane-answers" },
        row.runs.map((run) => answerOf(run, page.metric)),
      ),
    ),
    row.runs.map((run, i) => (run ? writtenBy(row, run, shown[i], told) : null)),
  );
}
function isOption({ answer, options }) {
  return options.some((_, i) => String.fromCharCode(65 + i) === answer.trim());
}

function answerOf(run, metric) {
  if (!run) return el("li", { class: "hint" }, "not answered yet");
  if (run.problem) return el("li", { class: "warn", title: visible(run.problem) }, quoted(clipped(run.problem, 60)));
  const right = isNumber(run.value) ? (run.value >= 0.5 ? "right" : "wrong") : "";
  return el(
    "li",
    { title: isNumber(run.value) ? `${metric} ${short(run.value)}` : null },
    el("b", { class: `worth ${right}` }, isNumber(run.value) ? short(run.value) : "–"),
    run.answer === null ? el("span", { class: "hint" }, "no answer") : quoted(clipped(run.answer, 60)),
  );
}

function writtenBy(row, run, of, { evaluation }) {
  return el(
    "details",
    { class: "written" },
    el("summary", {}, "what ", quoted(clipped(of.name, 30)), " wrote"),
    el("p", { class: "said" }, longText(run.text), run.is_cut ? el("span", { class: "hint" }, " … cut here") : null),
    el(
      "p",
      { class: "hint" },
      `ended: ${visible(run.stop.replaceAll("_", " "))} · `,
      Object.entries(run.metrics)
        .map(([name, value]) => `${visible(name)} ${short(value)}`)
        .join(" · "),
    ),
    row.has_video ? picturesOf(row, of, evaluation) : null,
  );
}
