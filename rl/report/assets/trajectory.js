// Page 3: one trajectory: when it looked, what it wrote, what each token was credited with; its siblings beside it.

function locate(run, id, number, siblingNumber) {
  const trained = run.report_steps.filter((reportStep) => reportStep.kind === "train" && reportStep.groups.length);
  const reportStep =
    id === undefined
      ? (trained[trained.length - 1] ?? run.report_steps.find((each) => each.groups.length))
      : run.stepById.get(id);
  if (!reportStep) return null;
  const group = reportStep.groups[Number(number ?? 0)];
  const i =
    siblingNumber === undefined
      ? 0
      : (group?.siblings.findIndex((sibling) => String(sibling.sibling) === siblingNumber) ?? -1);
  return group && i >= 0 ? { reportStep, group, number: Number(number ?? 0), i, sibling: group.siblings[i] } : null;
}

function trajectoryPage(run, ...path) {
  const at = locate(run, ...path);
  if (!at)
    return [
      el("h1", {}, "Trajectory"),
      el(
        "p",
        { class: "empty" },
        run.report_steps.length ? "This run holds no such trajectory." : "No trajectories have been recorded yet.",
        " ",
        el("a", { href: "#/steps" }, "Choose one from the steps."),
      ),
    ];
  const { reportStep, group, number, sibling } = at;
  return [
    el(
      "section",
      { class: "title-block" },
      el(
        "p",
        { class: "crumbs" },
        el("a", { href: `#/steps/${reportStep.id}` }, stepName(reportStep)),
        " / ",
        `group ${number} of ${fromZero(reportStep.groups.length)}`,
        " / ",
        el("span", { class: "task-id" }, quoted(group.task)),
      ),
      el(
        "div",
        { class: "stepper" },
        el(
          "h1",
          {},
          `Sibling ${sibling.sibling}`,
          el("span", { class: "of" }, ` of ${fromZero(group.siblings.length)}`),
        ),
        neighbourLinks(neighbours(run, at)),
      ),
      el("p", { class: "question large" }, longText(asking(group.question))),
      trajectoryFacts(group, sibling),
    ),
    el(
      "div",
      { class: "trajectory" },
      el(
        "div",
        { class: "trajectory-main", id: "trajectory-main" },
        el("p", { class: "wait" }, "Unpacking this step …"),
      ),
      el("aside", { class: "siblings card", "aria-label": "Siblings", id: "siblings" }),
    ),
  ];
}

function trajectoryFacts(group, sibling) {
  return el(
    "p",
    { class: "group-facts" },
    el("span", {}, "reference ", el("b", {}, quoted(clipText(group.answer, 200)))),
    el("span", {}, "answer ", el("b", {}, sibling.answer === null ? "no answer" : quoted(sibling.answer))),
    el("span", { class: sibling.stop === "answered" ? "" : "warn" }, `ended: ${sibling.stop.replaceAll("_", " ")}`),
    el("span", {}, quoted(group.video.split("/").slice(-2).join("/"), { class: "path", title: visible(group.video) })),
  );
}

function neighbourLinks(near) {
  const to = (target) => (target ? { href: target } : { "aria-disabled": "true" });
  return el(
    "nav",
    { class: "buttons", "aria-label": "Neighbours" },
    el("a", { ...to(near.groupBefore), class: "button", title: "Shift + ←" }, "⇤ group"),
    el("a", { ...to(near.before), class: "button", title: "←" }, "← sibling"),
    el("a", { ...to(near.after), class: "button", title: "→" }, "sibling →"),
    el("a", { ...to(near.groupAfter), class: "button", title: "Shift + →" }, "group ⇥"),
  );
}

// How many there are, and that they are counted from 0, as records and links do.
function fromZero(number) {
  return number > 1 ? `${number} (0–${number - 1})` : String(number);
}

function neighbours(run, { reportStep, group, number, i }) {
  const link = (toNumber, sibling) => trajectoryLink(reportStep, toNumber, sibling);
  const firstOf = (toNumber) =>
    reportStep.groups[toNumber] ? link(toNumber, reportStep.groups[toNumber].siblings[0].sibling) : null;
  return {
    before: group.siblings[i - 1] ? link(number, group.siblings[i - 1].sibling) : null,
    after: group.siblings[i + 1] ? link(number, group.siblings[i + 1].sibling) : null,
    groupBefore: firstOf(number - 1),
    groupAfter: firstOf(number + 1),
  };
}

async function afterTrajectoryPage(run, ...path) {
  const at = locate(run, ...path);
  if (!at) return;
  const main = document.getElementById("trajectory-main");
  drawSiblings(run, at);
  const clipId = run.clips[at.group.video]?.id;
  const [detail, clip] = await Promise.all([
    details.get(at.reportStep.id),
    clipId === undefined ? null : clips.get(clipId),
  ]);
  if (!main.isConnected) return;
  const group = detail?.[at.number],
    own = group?.siblings[at.i];
  if (!own) {
    main.replaceChildren(
      el(
        "p",
        { class: "empty" },
        "The text of this step was left out to keep the page small; write it with a larger --max-mib.",
      ),
    );
    return;
  }
  main.replaceChildren(
    bigTimeline(run, at.group, group, own, clip, main.clientWidth - 26),
    textPanel(run, at, own, group, clip),
    rewardPanel(run, at, own),
  );
}

function drawSiblings(run, { reportStep, group, number, i }) {
  const place = document.getElementById("siblings"),
    width = place.clientWidth - 26;
  place.replaceChildren(
    el("h2", {}, "Siblings"),
    el(
      "ol",
      {},
      group.siblings.map((sibling, index) =>
        el(
          "li",
          {},
          el(
            "a",
            {
              href: trajectoryLink(reportStep, number, sibling.sibling),
              class: index === i ? "sibling current" : "sibling",
              "aria-current": index === i ? "true" : null,
              title: siblingTitle(sibling),
            },
            el(
              "span",
              { class: "sibling-head" },
              el("b", {}, String(sibling.sibling)),
              sibling.failed
                ? el("span", { class: "warn" }, quoted(`masked: ${sibling.failed}`))
                : [score("sampling", sibling.sampling, "--c1"), score("reasoning", sibling.reasoning, "--c2")],
              el(
                "span",
                { class: "given-answer" },
                sibling.answer === null ? "–" : quoted(clipText(sibling.answer, 14)),
              ),
            ),
            miniWindows(run, { ...group, siblings: [sibling] }, width - 20, () => {}, true),
            sibling.stop === "answered" ? null : el("span", { class: "warn" }, sibling.stop.replaceAll("_", " ")),
          ),
        ),
      ),
    ),
    el("p", { class: "hint" }, "Keys: ← → siblings, shift ← → groups."),
  );
}

function score(name, value, color) {
  return el(
    "span",
    { class: "score", title: `${REWARD_NAMES[name]} reward` },
    el("span", { class: "swatch", style: { "--own": `var(${color})` } }),
    el("span", { class: "sr" }, `${REWARD_NAMES[name]} `),
    isNumber(value) ? fixed(value, 2) : "–",
  );
}
