// What could not be scored or decoded: each cause once, with its traceback and its first trajectory.

function failureSection(run) {
  if (!run.failures.length) return null;
  const masked = run.failures.reduce((sum, failure) => sum + failure.count, 0);
  return el(
    "section",
    { "aria-labelledby": "failures" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "failures" }, "Failures"),
      el(
        "p",
        { class: "hint" },
        `${count(run.failures.length)} ${run.failures.length === 1 ? "cause" : "causes"}, ` +
          `${count(masked)} trajectories masked: left out of learning, never scored 0. failures.jsonl has all of it.`,
      ),
    ),
    el(
      "div",
      { class: "card scroll" },
      el(
        "table",
        { id: "failure-table" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "cause"),
            ["trajectories", "first step", "last step"].map((name) =>
              el("th", { scope: "col", class: "number" }, name),
            ),
            el("th", { scope: "col" }, "first task"),
          ),
        ),
        el(
          "tbody",
          {},
          run.failures.map((failure) => failureRow(run, failure)),
        ),
      ),
    ),
  );
}

function failureRow(run, failure) {
  const [first, last] = [failure.first_step, failure.last_step].map((step) =>
    run.stepById.has(String(step)) ? el("a", { href: `#/steps/${step}` }, count(step)) : count(step),
  );
  const folded = (title, text) =>
    text ? el("details", {}, el("summary", {}, title), el("pre", { class: "traceback" }, visible(text))) : null;
  return el(
    "tr",
    {},
    el(
      "td",
      { class: "told" },
      quoted(failure.cause),
      folded("Traceback", failure.traceback),
      folded("What the policy wrote", failure.text),
    ),
    el("td", { class: "number" }, count(failure.count)),
    el("td", { class: "number" }, first),
    el("td", { class: "number" }, last),
    el("td", { class: "word" }, failedTask(run, failure)),
  );
}

// A link to the first trajectory where its record was kept; after a resume another one may stand in its place.
function failedTask(run, failure) {
  const group = run.stepById.get(String(failure.first_step))?.groups[failure.group];
  const isKept = group?.task === failure.task && group.siblings.some((each) => each.sibling === failure.sibling);
  const link = `#/trajectory/${failure.first_step}/${failure.group}/${failure.sibling}`;
  return isKept ? el("a", { href: link }, quoted(failure.task)) : quoted(failure.task);
}
