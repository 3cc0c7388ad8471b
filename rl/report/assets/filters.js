// Which groups page 2 lists, and in which order.

const stepsView = {
  text: "",
  stop: "",
  call: "",
  zeroVariance: false,
  everywhere: false,
  sort: "order",
  sampling: [0, 1],
  reasoning: [0, 1],
  shown: 40,
};
const SORTS = {
  order: ["as recorded", null],
  spread_sampling: ["spread of retrieval reward", (entry) => -entry.spread.sampling],
  spread_reasoning: ["spread of answer reward", (entry) => -entry.spread.reasoning],
  low_sampling: ["lowest retrieval reward", (entry) => entry.mean.sampling ?? Infinity],
  low_reasoning: ["lowest answer reward", (entry) => entry.mean.reasoning ?? Infinity],
  high_sampling: ["highest retrieval reward", (entry) => -(entry.mean.sampling ?? -Infinity)],
  high_reasoning: ["highest answer reward", (entry) => -(entry.mean.reasoning ?? -Infinity)],
  task: ["task", (entry) => entry.group.task],
};

function filterForm(run, change) {
  const siblings = run.report_steps.flatMap((reportStep) => reportStep.groups.flatMap((group) => group.siblings));
  const stops = [...new Set(siblings.map((sibling) => sibling.stop))].sort();
  const looks = {
    with: "looked again",
    without: "did not look",
    malformed: "malformed call",
    refused: "refused call",
  };
  const words = el("input", {
    type: "search",
    id: "filter-text",
    value: stepsView.text,
    placeholder: "question, task id, what the policy wrote",
    autocomplete: "off",
    spellcheck: "false",
    on: { input: (event) => change("text", event.target.value) },
  });
  return el(
    "form",
    { class: "filters card", "aria-label": "Filter groups", on: { submit: (event) => event.preventDefault() } },
    el("label", { class: "field wide" }, "Text or task", words),
    choiceField("Ended", "stop", [["", "any"], ...stops.map((stop) => [stop, stop.replaceAll("_", " ")])], change),
    choiceField("Retrieval", "call", [["", "any"], ...Object.entries(looks)], change),
    rangeField("Retrieval reward", "sampling", change),
    rangeField("Answer reward", "reasoning", change),
    choiceField(
      "Sort by",
      "sort",
      Object.entries(SORTS).map(([name, [words]]) => [name, words]),
      change,
    ),
    el(
      "div",
      { class: "checks" },
      tickField("only zero-variance", "zeroVariance", change),
      tickField("in all steps", "everywhere", change),
    ),
  );
}

function choiceField(label, key, options, change) {
  const choices = options.map(([value, text]) =>
    el("option", { value, selected: value === stepsView[key] }, visible(text)),
  );
  const on = { change: (event) => change(key, event.target.value) };
  return el("label", { class: "field" }, label, el("select", { id: `filter-${key}`, on }, choices));
}

function tickField(label, key, change) {
  const on = { change: (event) => change(key, event.target.checked) };
  return el(
    "label",
    { class: "check" },
    el("input", { type: "checkbox", id: `filter-${key}`, checked: stepsView[key], on }),
    label,
  );
}

function rangeField(label, name, change) {
  const bound = (i) =>
    el("input", {
      type: "number",
      min: 0,
      max: 1,
      step: 0.05,
      value: stepsView[name][i],
      id: `filter-${name}-${i ? "high" : "low"}`,
      "aria-label": `${label}, ${i ? "at most" : "at least"}`,
      on: {
        input: (event) => {
          const range = [...stepsView[name]];
          range[i] = event.target.value === "" ? i : Number(event.target.value);
          change(name, range);
        },
      },
    });
  return el(
    "div",
    { class: "field", role: "group", "aria-label": label },
    label,
    el("span", { class: "pair" }, bound(0), "–", bound(1)),
  );
}

function siblingMatches(sibling) {
  const { stop, call, sampling, reasoning } = stepsView;
  if (stop && sibling.stop !== stop) return false;
  if (call === "with" && !sibling.calls.some(isGranted)) return false;
  if (call === "without" && sibling.calls.some(isGranted)) return false;
  if ((call === "malformed" || call === "refused") && !sibling.calls.includes(call)) return false;
  // 0 and 1 are no bounds: prices lie below 0, sums may lie above 1, and some siblings have no reward
  const inside = (value, [low, high]) =>
    isNumber(value) ? (low <= 0 || value >= low - 1e-9) && (high >= 1 || value <= high + 1e-9) : low <= 0 && high >= 1;
  return inside(sibling.sampling, sampling) && inside(sibling.reasoning, reasoning);
}
