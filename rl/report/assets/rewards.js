// A trajectory's rewards, by segment and term, beside its group's.

function rewardPanel(run, at, own) {
  if (own.failed)
    return el(
      "section",
      { class: "card" },
      el("h2", {}, "Rewards"),
      el(
        "p",
        { class: "warn" },
        quoted(`Masked, never scored: ${own.failed.term} ${own.failed.cause}. ${own.failed.detail}`),
      ),
    );
  const terms = Object.entries(own.terms).map(([name, value]) => ({
    name,
    value,
    segment: run.settings.get(`rewards.${name}.segment`) ?? "",
    weight: Number(run.settings.get(`rewards.${name}.weight`)),
    fn: run.settings.get(`rewards.${name}.fn`) ?? "",
  }));
  const rows = rewardRows(at, own, terms);
  return el(
    "section",
    { class: "card", "aria-labelledby": "rewards-title" },
    el("h2", { id: "rewards-title" }, "Rewards"),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "rewards", id: "rewards" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "term"),
            ["weight", "value"].map((name) => el("th", { scope: "col", class: "number" }, name)),
            el("th", { scope: "col" }, "0 … 1, group mean marked"),
            el("th", { scope: "col", class: "number" }, "group mean"),
            el("th", { scope: "col", class: "number" }, "advantage"),
          ),
        ),
        el("tbody", {}, rows),
      ),
    ),
    own.note ? el("p", { class: "note" }, quoted(own.note)) : null,
  );
}

function rewardRows(at, own, terms) {
  const rows = [];
  for (const [role, color] of [
    ["sampling", "--c1"],
    ["reasoning", "--c2"],
  ]) {
    const values = at.group.siblings.map((sibling) => sibling[role]).filter(isNumber),
      total = own[role];
    const turns = own.turns.filter((turn) => turn.segment === role && "advantage" in turn);
    rows.push(
      el(
        "tr",
        { class: "role" },
        el(
          "th",
          { scope: "row" },
          el("span", { class: "swatch", style: { "--own": `var(${color})` } }),
          REWARD_NAMES[role],
        ),
        el("td", { class: "number" }),
        el("td", { class: "number" }, isNumber(total) ? fixed(total, 3) : "–"),
        el(
          "td",
          {},
          isNumber(total) ? meter(total, color, mean(values)) : role === "sampling" ? "the task has no evidence" : "",
        ),
        el("td", { class: "number" }, values.length ? fixed(mean(values), 3) : "–"),
        el(
          "td",
          { class: "number" },
          turns.length
            ? turns.map((turn) => (isNumber(turn.advantage) ? signed(turn.advantage, 3) : "masked")).join(", ")
            : "–",
        ),
      ),
    );
    const weights = terms.filter((term) => term.segment === role).reduce((sum, term) => sum + (term.weight || 0), 0);
    for (const term of terms.filter((each) => each.segment === role)) rows.push(termRow(term, color, weights));
  }
  for (const term of terms.filter((each) => each.segment !== "sampling" && each.segment !== "reasoning"))
    rows.push(termRow(term, "--context", 0));
  return rows;
}

function termRow(term, color, weights) {
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row", class: "term" },
      quoted(term.name),
      term.fn && term.fn !== term.name ? el("span", { class: "hint" }, " ", quoted(term.fn)) : null,
    ),
    el("td", { class: "number" }, weights && isNumber(term.weight) ? fixed(term.weight / weights, 2) : "–"),
    el("td", { class: "number" }, isNumber(term.value) ? fixed(term.value, 3) : quoted(term.value ?? "–")),
    el("td", {}, isNumber(term.value) ? meter(term.value, color, null) : ""),
    el("td", {}),
    el("td", {}),
  );
}

function meter(value, color, marked) {
  const x = (each) => 2 + 156 * Math.min(1, Math.max(0, each));
  return svg(
    "svg",
    { width: 160, height: 12, class: "meter", "aria-hidden": "true" },
    svg("rect", { x: 2, y: 3, width: 156, height: 6, rx: 3, class: "meter-back" }),
    svg("rect", { x: 2, y: 3, width: Math.max(0, x(value) - 2), height: 6, rx: 3, style: { fill: `var(${color})` } }),
    isNumber(marked) ? svg("line", { x1: x(marked), x2: x(marked), y1: 0, y2: 12, class: "mean" }) : null,
  );
}
