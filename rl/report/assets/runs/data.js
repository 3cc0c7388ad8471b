// What the server knows, read as it is needed; and what is looked at, which the page's address holds.

const POLL_MS = 2000;
const SOON_MS = 150; // while runs are still being read
const REWARD_NAMES = { sampling: "retrieval", reasoning: "answer" };

const server = {
  tag: null,
  // The list of runs, or null where nothing has changed since the last one.
  async runs() {
    const answer = await fetch("data/runs", { headers: this.tag ? { "If-None-Match": this.tag } : {} });
    if (answer.status === 304) return null;
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    this.tag = answer.headers.get("ETag");
    return answer.json();
  },
  // Fields whose value is a list are given once for each.
  async get(what, fields) {
    const pairs = Object.entries(fields).flatMap(([key, value]) => [value].flat().map((one) => [key, one]));
    const answer = await fetch(`data/${what}?${new URLSearchParams(pairs)}`);
    return answer.ok ? answer.json() : null;
  },
};

// The runs as the pages use them: the list, with look-ups.
class Runs {
  constructor(index) {
    Object.assign(this, index);
    this.byId = new Map(index.runs.map((run) => [run.id, run]));
    this.meaning = new Map(index.metrics.map(([name, unit, meaning]) => [name, { unit, meaning }]));
  }
  // The runs that are looked at: those chosen, or, where none is, those that wrote last.
  shown(view, { most: limit = 6, where = (run) => run.step || run.updated_s } = {}) {
    const chosen = view.runs.map((id) => this.byId.get(id)).filter(Boolean);
    if (chosen.length) return chosen.slice(0, MOST_SHOWN);
    return [...this.runs]
      .filter(where)
      .sort((a, b) => (b.updated_s ?? 0) - (a.updated_s ?? 0))
      .slice(0, limit);
  }
}
const MOST_SHOWN = 24; // runs at once: eight colours, three kinds of line

const VIEW = {
  runs: [],
  find: "",
  state: "",
  sort: "updated",
  metrics: [],
  smoothing: "1",
  x: "step",
  bands: "",
  evaluation: "",
  metric: "",
  type: "",
  look: "",
  text: "",
  order: "wrong",
  offset: "",
};
const PAGES_VIEW = {
  runs: ["find", "state", "sort"],
  curves: ["metrics", "smoothing", "x", "bands"],
  predictions: ["evaluation", "metric", "type", "look", "text", "order", "offset"],
};
let view = { ...VIEW };

function viewOf(hash) {
  const fields = new URLSearchParams(hash.includes("?") ? hash.slice(hash.indexOf("?") + 1) : "");
  const read = Object.entries(VIEW).map(([key, usual]) => {
    const text = fields.get(key);
    if (text === null) return [key, usual];
    return [key, Array.isArray(usual) ? text.split(",").filter(Boolean) : text];
  });
  return Object.fromEntries(read);
}
function addressOf(page, wanted) {
  const fields = new URLSearchParams();
  for (const key of ["runs", ...PAGES_VIEW[page]]) {
    const value = Array.isArray(wanted[key]) ? wanted[key].join(",") : wanted[key];
    if (value !== String(VIEW[key])) fields.set(key, value);
  }
  const text = fields.toString();
  return `#/${page}${text ? `?${text}` : ""}`;
}

// What belongs to one of the runs that are shown: its colour and its kind of line.
const DASHES = ["", "7 3", "2 3"];
function looksOf(place) {
  return { color: SERIES[place % SERIES.length], dash: DASHES[Math.floor(place / SERIES.length) % DASHES.length] };
}
function keyOf(place) {
  const { color, dash } = looksOf(place);
  const style = { stroke: `var(${color})`, "stroke-dasharray": dash || "none" };
  return svg(
    "svg",
    { width: 18, height: 10, class: "key", "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 17, y1: 5, y2: 5, style }),
  );
}

// Runs of one name, in the order of the first of them.
function familiesOf(runs) {
  const found = new Map();
  for (const run of runs) found.set(run.family ?? run.id, [...(found.get(run.family ?? run.id) ?? []), run]);
  return [...found.values()];
}

// The runs that are shown, each with its colour, and a way to take it away.
function chosenRuns(shown, { together = false } = {}) {
  const isChosen = view.runs.length > 0,
    families = familiesOf(shown);
  const placeOf = (run, place) => (together ? families.findIndex((runs) => runs.includes(run)) : place);
  return el(
    "section",
    { class: "card chosen", "aria-label": "Runs that are shown" },
    el(
      "ul",
      { class: "chips" },
      shown.map((run, place) =>
        el(
          "li",
          { class: "chip", title: run.folder },
          keyOf(placeOf(run, place)),
          el("a", { href: `run/${run.id}/`, class: "name" }, quoted(run.name)),
          run.state === "live" ? el("span", { class: "state is-live small" }, "live") : null,
          isChosen
            ? el(
                "button",
                {
                  type: "button",
                  class: "link",
                  "aria-label": `Leave out ${visible(run.name)}`,
                  on: { click: () => look({ runs: view.runs.filter((id) => id !== run.id), offset: "" }) },
                },
                "×",
              )
            : null,
        ),
      ),
    ),
    el(
      "p",
      { class: "hint" },
      isChosen
        ? view.runs.length > MOST_SHOWN
          ? `The first ${MOST_SHOWN} of ${view.runs.length} chosen runs. `
          : ""
        : `None is chosen: these wrote last. `,
      el("a", { href: addressOf("runs", view) }, "Choose runs"),
    ),
  );
}

function choice(label, key, options, attributes = {}) {
  const choices = options.map(([value, text]) =>
    el("option", { value, selected: value === view[key] }, visible(text)),
  );
  const on = { change: (event) => look({ [key]: event.target.value, ...(attributes.also ?? {}) }) };
  return el("label", { class: "field" }, label, el("select", { id: `view-${key}`, on }, choices));
}
let typing = 0;
function words(label, key, placeholder, also = {}) {
  const on = {
    input: (event) => {
      const text = event.target.value;
      clearTimeout(typing);
      typing = setTimeout(() => look({ [key]: text, ...also }), 180);
    },
  };
  const fixed = { type: "search", autocomplete: "off", spellcheck: "false" };
  const field = el("input", { ...fixed, id: `view-${key}`, value: view[key], placeholder, on });
  return el("label", { class: "field wide" }, label, field);
}

function ago(secondsSince) {
  if (secondsSince < 90) return "now";
  if (secondsSince < 5400) return `${Math.round(secondsSince / 60)} min ago`;
  if (secondsSince < 48 * 3600) return `${Math.round(secondsSince / 3600)} h ago`;
  return `${Math.round(secondsSince / 86400)} days ago`;
}
function clock(epoch) {
  return new Date(epoch * 1000).toLocaleString("sv");
}
