// One row per group: its task, its rewards as two strips of dots, its windows on the clip.

function trajectoryLink(reportStep, number, sibling) {
  return `#/trajectory/${reportStep.id}/${number}/${sibling}`;
}

function groupRow(run, entry, wide) {
  const { reportStep, group, number, zeroVariance } = entry;
  const both = zeroVariance.sampling && zeroVariance.reasoning;
  const open = (i) => {
    location.hash = trajectoryLink(reportStep, number, group.siblings[i].sibling);
  };
  const badge = both
    ? "zero variance in both"
    : zeroVariance.sampling
      ? "zero variance in retrieval"
      : zeroVariance.reasoning
        ? "zero variance in answers"
        : "";
  const failed = group.siblings.filter((sibling) => sibling.failed).length,
    looked = group.siblings.filter((sibling) => sibling.calls.some(isGranted)).length;
  return el(
    "li",
    { class: `group card${both ? " zero-variance" : ""}`, data: { group: number } },
    el(
      "div",
      { class: "group-text" },
      el(
        "p",
        { class: "group-name" },
        el(
          "a",
          {
            href: trajectoryLink(reportStep, number, group.siblings[entry.matching.indexOf(true)].sibling),
            class: "open",
          },
          stepsView.everywhere
            ? `${reportStep.kind === "held_out" ? "Held-out" : "Step"} ${count(reportStep.step)} · `
            : "",
          `Group ${number}`,
        ),
        el("span", { class: "task-id" }, quoted(group.task)),
        badge ? el("span", { class: "badge" }, badge) : null,
      ),
      el("p", { class: "question" }, quoted(clipText(asking(group.question), 260))),
      el(
        "p",
        { class: "group-facts" },
        el("span", {}, "answer ", el("b", {}, quoted(clipText(group.answer, 60)))),
        el("span", {}, `${looked} of ${group.siblings.length} looked`),
        failed ? el("span", { class: "warn" }, `${failed} masked`) : null,
        answerCounts(group),
      ),
    ),
    el("div", { class: "strips" }, stripPlot(entry, "sampling", wide, open), stripPlot(entry, "reasoning", wide, open)),
    miniWindows(run, group, wide, open),
  );
}

// A question without the mark of where the video goes.
function asking(question) {
  return question.replace(/^\s*<video>\s*/, "");
}

function clipText(text, most) {
  return text.length > most ? `${text.slice(0, most)} …` : text;
}

function answerCounts(group) {
  const counts = new Map();
  for (const sibling of group.siblings)
    counts.set(sibling.answer ?? "none", (counts.get(sibling.answer ?? "none") ?? 0) + 1);
  const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 4);
  return el(
    "span",
    { class: "answers" },
    "answers ",
    common.map(([answer, times], i) => [
      i ? ", " : "",
      quoted(clipText(answer, 24)),
      group.siblings.length > 1 ? el("span", { class: "times" }, ` ×${times}`) : null,
    ]),
  );
}

// One dot per sibling along its reward, those of equal reward on top of each other.
function stripPlot(entry, name, width, open) {
  const height = 46,
    left = 6,
    right = 58,
    color = name === "sampling" ? "--c1" : "--c2",
    piles = new Map();
  const known = entry.group.siblings.filter((sibling) => isNumber(sibling[name]));
  const values = known.map((sibling) => sibling[name]);
  const [low, high] = [Math.min(0, least([0, ...values])), Math.max(1, most([1, ...values]))]; // 0..1, and what is beyond
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
  const described = values.length
    ? `mean ${short(entry.mean[name])}, from ${short(least(values))} to ${short(most(values))}`
    : "none known";
  const drawn = svg("svg", {
    width,
    height,
    class: "strip",
    role: "img",
    "aria-label": `${REWARD_NAMES[name]} reward of ${known.length} siblings: ${described}`,
  });
  const base = height - 9,
    pileOf = (sibling) => Math.round(x(sibling[name]) / 6);
  const highest = most(known.map((sibling) => known.filter((other) => pileOf(other) === pileOf(sibling)).length));
  const step = Math.min(6, (base - 10) / Math.max(1, highest - 1));
  drawn.append(svg("line", { x1: x(low), x2: x(high), y1: base, y2: base, class: "axis" }));
  for (const value of [0, 0.5, 1])
    drawn.append(svg("line", { x1: x(value), x2: x(value), y1: base, y2: base + 3, class: "axis" }));
  entry.group.siblings.forEach((sibling, i) => {
    if (!isNumber(sibling[name])) return;
    const level = piles.get(pileOf(sibling)) ?? 0;
    piles.set(pileOf(sibling), level + 1);
    const style = { fill: `var(${color})` },
      faint = entry.matching[i] ? "" : " faint",
      title = `sibling ${sibling.sibling}: ${REWARD_NAMES[name]} reward ${short(sibling[name])}`;
    const at = { cx: x(sibling[name]), cy: base - 5 - level * step, r: 3.4 };
    const on = { click: () => open(i) };
    drawn.append(svg("circle", { ...at, class: `sibling-dot${faint}`, style, on }, svg("title", {}, title)));
  });
  if (known.length)
    drawn.append(
      svg(
        "path",
        { d: `M${x(entry.mean[name])},${base + 1}l4,7h-8z`, class: "mean-mark" },
        svg("title", {}, `mean ${short(entry.mean[name])}`),
      ),
    );
  drawn.append(
    svg(
      "text",
      { x: width - 2, y: base - 2, class: "strip-value", "text-anchor": "end" },
      known.length ? fixed(entry.mean[name], 3) : name === "sampling" ? "no evidence" : "masked",
    ),
  );
  return el("div", { class: "strip-row" }, drawn);
}
