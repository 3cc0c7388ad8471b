// Page 3: one trajectory: when it looked, what it wrote, what each token was credited with; its siblings beside it.

function locate(run, id, number, siblingNumber) {
  const trained = run.moments.filter((moment) => moment.kind === "train" && moment.groups.length);
  const moment =
    id === undefined
      ? (trained[trained.length - 1] ?? run.moments.find((each) => each.groups.length))
      : run.moment.get(id);
  if (!moment) return null;
  const group = moment.groups[Number(number ?? 0)];
  const i =
    siblingNumber === undefined
      ? 0
      : (group?.siblings.findIndex((sibling) => String(sibling.sibling) === siblingNumber) ?? -1);
  return group && i >= 0 ? { moment, group, number: Number(number ?? 0), i, sibling: group.siblings[i] } : null;
}

function trajectoryPage(run, ...path) {
  const at = locate(run, ...path);
  if (!at)
    return [
      el("h1", {}, "Trajectory"),
      el(
        "p",
        { class: "empty" },
        run.moments.length ? "This run holds no such trajectory." : "No trajectories have been recorded yet.",
        " ",
        el("a", { href: "#/steps" }, "Choose one from the steps."),
      ),
    ];
  const { moment, group, number, sibling, i } = at;
  const near = neighbours(run, at);
  const to = (target) => (target ? { href: target } : { "aria-disabled": "true" });
  return [
    el(
      "section",
      { class: "title-block" },
      el(
        "p",
        { class: "crumbs" },
        el("a", { href: `#/steps/${moment.id}` }, momentName(moment)),
        " / ",
        `group ${number} of ${moment.groups.length}`,
        " / ",
        el("span", { class: "task-id" }, said(group.task)),
      ),
      el(
        "div",
        { class: "stepper" },
        el("h1", {}, `Sibling ${sibling.sibling}`, el("span", { class: "of" }, ` of ${group.siblings.length}`)),
        el(
          "nav",
          { class: "buttons", "aria-label": "Neighbours" },
          el("a", { ...to(near.groupBefore), class: "button", title: "Shift + ←" }, "⇤ group"),
          el("a", { ...to(near.before), class: "button", title: "←" }, "← sibling"),
          el("a", { ...to(near.after), class: "button", title: "→" }, "sibling →"),
          el("a", { ...to(near.groupAfter), class: "button", title: "Shift + →" }, "group ⇥"),
        ),
      ),
      el("p", { class: "question large" }, longText(asking(group.question))),
      el(
        "p",
        { class: "group-facts" },
        el("span", {}, "reference ", el("b", {}, said(clipText(group.answer, 200)))),
        el("span", {}, "it said ", el("b", {}, sibling.answer === null ? "no answer" : said(sibling.answer))),
        el("span", { class: sibling.stop === "answered" ? "" : "warn" }, `ended: ${sibling.stop.replaceAll("_", " ")}`),
        el(
          "span",
          {},
          said(group.video.split("/").slice(-2).join("/"), { class: "path", title: visible(group.video) }),
        ),
      ),
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

function neighbours(run, { moment, group, number, i }) {
  const link = (toNumber, sibling) => trajectoryLink(moment, toNumber, sibling);
  const firstOf = (toNumber) =>
    moment.groups[toNumber] ? link(toNumber, moment.groups[toNumber].siblings[0].sibling) : null;
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
    details.get(at.moment.id),
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

function drawSiblings(run, { moment, group, number, i }) {
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
              href: trajectoryLink(moment, number, sibling.sibling),
              class: index === i ? "sibling current" : "sibling",
              "aria-current": index === i ? "true" : null,
              title: siblingTitle(sibling),
            },
            el(
              "span",
              { class: "sibling-head" },
              el("b", {}, String(sibling.sibling)),
              sibling.failed
                ? el("span", { class: "warn" }, said(`masked: ${sibling.failed}`))
                : [score("sampling", sibling.sampling, "--c1"), score("reasoning", sibling.reasoning, "--c2")],
              el("span", { class: "said-answer" }, sibling.answer === null ? "–" : said(clipText(sibling.answer, 14))),
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
    { class: "score", title: `${name} reward` },
    el("span", { class: "swatch", style: { "--own": `var(${color})` } }),
    el("span", { class: "sr" }, `${name} `),
    isNumber(value) ? fixed(value, 2) : "–",
  );
}
