// Faults and how they were recovered: marks under the curves' axis, and the table of page 1.

const MARK = { gap: 7, half: 3.5, height: 5 }; // pixels; steps closer than the gap share a mark
const MOST_POPPED = 3; // faults told at a mark; the table has the others
const faultsView = { kind: "", shown: 50 };

function faultWords(number) {
  return number === 1 ? "1 fault" : `${count(number)} faults`;
}

// Marks of the steps with faults that lie on an axis from `low` to `high`, drawn just below `top`.
// {nodes, ofStep: step -> mark, near: x in pixels -> mark}; a mark: {x, steps, count, node}
function faultMarks(steps, low, high, x, top) {
  const marks = [],
    owner = new Map();
  for (const [step, number] of steps) {
    if (step < low || step > high) continue;
    const last = marks[marks.length - 1];
    if (last && x(step) - last.x < MARK.gap) {
      last.steps.push(step);
      last.count += number;
    } else marks.push({ x: x(step), steps: [step], count: number });
    owner.set(step, marks[marks.length - 1]);
  }
  for (const mark of marks) {
    const foot = top + 1 + MARK.height;
    mark.node = svg("path", {
      d: `M${mark.x.toFixed(1)},${top + 1}L${(mark.x - MARK.half).toFixed(1)},${foot}h${2 * MARK.half}Z`,
      class: "fault-mark",
    });
  }
  return {
    nodes: marks.map((mark) => mark.node),
    ofStep: (step) => owner.get(step),
    near: (at) => marks.find((mark) => Math.abs(mark.x - at) <= MARK.gap),
  };
}

function popFaults(mark, listed) {
  if (!mark) return hidePop();
  const inside = new Set(mark.steps),
    found = listed.filter((fault) => inside.has(fault.step));
  const first = count(mark.steps[0]),
    last = count(lastOf(mark.steps));
  const left = mark.count - Math.min(found.length, MOST_POPPED);
  const where = first === last ? `step ${first}` : `steps ${first}–${last}`;
  const rest = found.length > MOST_POPPED ? "more" : "older than those listed";
  popUp(
    mark.node,
    [
      el("p", { class: "pop-head" }, `${where}: ${faultWords(mark.count)}`),
      found.slice(0, MOST_POPPED).map((fault) => el("p", {}, faultLine(fault))),
      left > 0 ? el("p", { class: "hint" }, `${count(left)} ${rest}`) : null,
    ],
    { below: true, class: "fault-pop" },
  );
}

function faultLine(fault) {
  return [
    el("b", {}, quoted(fault.kind)),
    fault.worker ? [" ", quoted(fault.worker)] : "",
    fault.cause ? [": ", quoted(fault.cause)] : "",
    fault.action ? [" → ", quoted(fault.action)] : "",
    fault.recovery_s === null ? "" : ` (${short(fault.recovery_s)} s)`,
  ];
}

function faultTable(run) {
  const { count: total, kinds } = run.faults;
  if (!total) return null;
  const choose = (event) => {
    faultsView.kind = event.target.value;
    faultsView.shown = 50;
    fillFaults(run);
  };
  const options = [["", "any kind"], ...kinds.map(([kind, number]) => [kind, `${kind} (${count(number)})`])];
  if (!options.some(([kind]) => kind === faultsView.kind)) faultsView.kind = "";
  return el(
    "section",
    { "aria-labelledby": "faults" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "faults" }, "Faults recovered"),
      el(
        "label",
        { class: "field inline" },
        "Kind ",
        el(
          "select",
          { id: "fault-kind", on: { change: choose } },
          options.map(([value, text]) => el("option", { value, selected: value === faultsView.kind }, visible(text))),
        ),
      ),
      el("p", { class: "hint", id: "fault-count", role: "status" }),
    ),
    el(
      "div",
      { class: "card scroll" },
      el(
        "table",
        { id: "fault-table" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col", class: "number" }, "step"),
            ["kind", "worker", "cause", "action"].map((name) => el("th", { scope: "col" }, name)),
            el(
              "th",
              { scope: "col", class: "number", title: "seconds from its detection until work went on" },
              "recovered after",
            ),
            el("th", { scope: "col" }, "detected, UTC"),
          ),
        ),
        el("tbody", { id: "fault-rows" }),
      ),
    ),
    el("div", { id: "more-faults" }),
  );
}

function fillFaults(run) {
  const { count: total, kinds, newest } = run.faults;
  if (!total) return;
  const ofKind = faultsView.kind ? kinds.find(([kind]) => kind === faultsView.kind)[1] : total;
  const rows = newest.filter((fault) => !faultsView.kind || fault.kind === faultsView.kind);
  const thinned = rows.length < ofKind ? `; the newest ${count(rows.length)} are listed, faults.jsonl has all` : "";
  document.getElementById("fault-count").textContent =
    (faultsView.kind ? `${count(ofKind)} of ${faultWords(total)}` : faultWords(total)) + thinned;
  const shown = rows.slice(0, faultsView.shown);
  document.getElementById("fault-rows").replaceChildren(...shown.map((fault) => faultRow(run, fault)));
  const left = rows.length - faultsView.shown;
  const more = () => {
    faultsView.shown += 100;
    fillFaults(run);
  };
  const label = `Show ${count(Math.min(100, left))} more of ${count(left)}`;
  const buttons = left > 0 ? [el("button", { type: "button", class: "more", on: { click: more } }, label)] : [];
  document.getElementById("more-faults").replaceChildren(...buttons);
}

function faultRow(run, fault) {
  const step = count(fault.step);
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row", class: "number" },
      run.stepById.has(String(fault.step)) ? el("a", { href: `#/steps/${fault.step}` }, step) : step,
    ),
    el("td", { class: "word" }, quoted(fault.kind)),
    el("td", { class: "word" }, quoted(fault.worker)),
    el("td", { class: "told" }, quoted(fault.cause), lastLog(fault.failure)),
    el("td", { class: "told" }, quoted(fault.action)),
    el("td", { class: "number" }, fault.recovery_s === null ? "–" : `${short(fault.recovery_s)} s`),
    el("td", { class: "when" }, clock(fault.detected_s)),
  );
}

// Where a lost worker ran and how its log ends, folded; nothing for other faults.
function lastLog(failure) {
  return failure
    ? el("details", {}, el("summary", {}, "Its log"), el("pre", { class: "traceback" }, visible(failure)))
    : "";
}

// A time of day with its date; a time no calendar has is open.
function clock(epoch_s) {
  const date = new Date(epoch_s === null ? NaN : epoch_s * 1000);
  return Number.isNaN(date.getTime()) ? "–" : date.toISOString().slice(0, 19).replace("T", " ");
}
