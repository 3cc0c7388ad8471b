// Page 3: one trajectory: when it looked, what it wrote, what each token was credited with; its siblings beside it.

const TINTS = [["advantage", "advantage"], ["gap", "engine − learner"], ["surprise", "surprise"], ["none", "none"]];
const trajectoryView = { tint: "advantage" };
const NAT = 100000;

function locate(run, id, number, siblingNumber) {
  const trained = run.moments.filter((moment) => moment.kind === "train" && moment.groups.length);
  const moment = id === undefined ? trained[trained.length - 1] ?? run.moments.find((each) => each.groups.length) : run.moment.get(id);
  if (!moment) return null;
  const group = moment.groups[Number(number ?? 0)];
  const i = siblingNumber === undefined ? 0 : group?.siblings.findIndex((sibling) => String(sibling.sibling) === siblingNumber) ?? -1;
  return group && i >= 0 ? { moment, group, number: Number(number ?? 0), i, sibling: group.siblings[i] } : null;
}

function trajectoryPage(run, ...path) {
  const at = locate(run, ...path);
  if (!at) return [el("h1", {}, "Trajectory"), el("p", { class: "empty" }, run.moments.length ? "This run holds no such trajectory." : "No trajectories have been recorded yet.", " ", el("a", { href: "#/steps" }, "Choose one from the steps."))];
  const { moment, group, number, sibling, i } = at;
  const near = neighbours(run, at);
  const to = (target) => (target ? { href: target } : { "aria-disabled": "true" });
  return [
    el("section", { class: "title-block" },
      el("p", { class: "crumbs" }, el("a", { href: `#/steps/${moment.id}` }, momentName(moment)), " / ", `group ${number + 1} of ${moment.groups.length}`, " / ", el("span", { class: "task-id" }, said(group.task))),
      el("div", { class: "stepper" }, el("h1", {}, `Sibling ${sibling.sibling}`, el("span", { class: "of" }, ` of ${group.siblings.length}`)),
        el("nav", { class: "buttons", "aria-label": "Neighbours" },
          el("a", { ...to(near.groupBefore), class: "button", title: "Shift + ←" }, "⇤ group"), el("a", { ...to(near.before), class: "button", title: "←" }, "← sibling"),
          el("a", { ...to(near.after), class: "button", title: "→" }, "sibling →"), el("a", { ...to(near.groupAfter), class: "button", title: "Shift + →" }, "group ⇥"))),
      el("p", { class: "question large" }, longText(asking(group.question))),
      el("p", { class: "group-facts" }, el("span", {}, "reference ", el("b", {}, said(clipText(group.answer, 200)))), el("span", {}, "it said ", el("b", {}, sibling.answer === null ? "no answer" : said(sibling.answer))), el("span", { class: sibling.stop === "answered" ? "" : "warn" }, `ended: ${sibling.stop.replaceAll("_", " ")}`), el("span", {}, said(group.video.split("/").slice(-2).join("/"), { class: "path", title: visible(group.video) })))),
    el("div", { class: "trajectory" }, el("div", { class: "trajectory-main", id: "trajectory-main" }, el("p", { class: "wait" }, "Unpacking this step …")),
      el("aside", { class: "siblings card", "aria-label": "Siblings", id: "siblings" })),
  ];
}

function neighbours(run, { moment, group, number, i }) {
  const link = (toNumber, sibling) => trajectoryLink(moment, toNumber, sibling);
  const firstOf = (toNumber) => (moment.groups[toNumber] ? link(toNumber, moment.groups[toNumber].siblings[0].sibling) : null);
  return {
    before: group.siblings[i - 1] ? link(number, group.siblings[i - 1].sibling) : null,
    after: group.siblings[i + 1] ? link(number, group.siblings[i + 1].sibling) : null,
    groupBefore: firstOf(number - 1), groupAfter: firstOf(number + 1),
  };
}

async function afterTrajectoryPage(run, ...path) {
  const at = locate(run, ...path);
  if (!at) return;
  const main = document.getElementById("trajectory-main");
  drawSiblings(run, at);
  const clipId = run.clips[at.group.video]?.id;
  const [detail, clip] = await Promise.all([details.get(at.moment.id), clipId === undefined ? null : clips.get(clipId)]);
  if (!main.isConnected) return;
  const group = detail?.[at.number], own = group?.siblings[at.i];
  if (!own) {
    main.replaceChildren(el("p", { class: "empty" }, "The text of this step was left out to keep the page small; write it with a larger --max-mib."));
    return;
  }
  main.replaceChildren(bigTimeline(run, at.group, group, own, clip, main.clientWidth - 26), textPanel(run, at, own, group, clip), rewardPanel(run, at, own));
}

function drawSiblings(run, { moment, group, number, i }) {
  const place = document.getElementById("siblings"), width = place.clientWidth - 26;
  place.replaceChildren(el("h2", {}, "Siblings"), el("ol", {}, group.siblings.map((sibling, index) => el("li", {},
    el("a", { href: trajectoryLink(moment, number, sibling.sibling), class: index === i ? "sibling current" : "sibling", "aria-current": index === i ? "true" : null, title: siblingTitle(sibling) },
      el("span", { class: "sibling-head" }, el("b", {}, String(sibling.sibling)),
        sibling.failed ? el("span", { class: "warn" }, said(`masked: ${sibling.failed}`)) : [score("sampling", sibling.sampling, "--c1"), score("reasoning", sibling.reasoning, "--c2")],
        el("span", { class: "said-answer" }, sibling.answer === null ? "–" : said(clipText(sibling.answer, 14)))),
      miniWindows(run, { ...group, siblings: [sibling] }, width - 20, () => {}, true),
      sibling.stop === "answered" ? null : el("span", { class: "warn" }, sibling.stop.replaceAll("_", " ")))))),
    el("p", { class: "hint" }, "Keys: ← → siblings, shift ← → groups."));
}

function score(name, value, color) {
  return el("span", { class: "score", title: `${name} reward` }, el("span", { class: "swatch", style: { "--own": `var(${color})` } }), el("span", { class: "sr" }, `${name} `), isNumber(value) ? fixed(value, 2) : "–");
}

// ---- text ----

function textPanel(run, at, own, group, clip) {
  const recorded = own.turns.some((turn) => turn.tokens), credited = own.turns.some((turn) => "advantage" in turn), compared = own.turns.some((turn) => turn.gap);
  const reading = el("p", { class: "token-reading", id: "token-reading", role: "status", "aria-live": "polite" });
  const resting = recorded ? "Point at a token, or focus the text and use ← → to read its numbers." : own.turns.some((turn) => turn.written !== undefined) ? "Per-token numbers of this step were left out to keep the page small." : "This run did not record tokens and log-probs.";
  reading.textContent = resting;
  const flow = el("div", { class: "text-flow", id: "text-flow", data: { tint: trajectoryView.tint }, tabindex: recorded ? "0" : null, role: "group", "aria-label": "What the policy wrote, token by token" });
  const tokens = [];
  const range = tintRange(own);
  const pieces = piecesOf(own);
  own.turns.forEach((turn, number) => {
    flow.append(contextChip(turn, number, number === 0 ? group.opening : turn.frames, clip, own.turns[number - 1]?.call));
    flow.append(turnBlock(turn, number, pieces?.[number], tokens, range));
  });
  if (!own.turns.length) flow.append(el("p", { class: "empty" }, own.note ? said(own.note) : "The policy wrote nothing."));
  else if (!recorded && !pieces) flow.append(el("div", { class: "turn-text", dir: "auto" }, longText(own.text)));
  let current = -1;
  const read = (index) => {
    if (current >= 0) tokens[current]?.node.classList.remove("focused");
    current = index;
    if (index < 0) { reading.textContent = resting; return; }
    tokens[index].node.classList.add("focused");
    reading.replaceChildren(...tokenReading(tokens[index], index, tokens.length));
  };
  flow.addEventListener("pointerover", (event) => { const index = event.target.dataset?.token; if (index !== undefined) read(Number(index)); });
  flow.addEventListener("pointerleave", () => { if (document.activeElement !== flow) read(-1); });
  flow.addEventListener("focus", () => { if (tokens.length && current < 0) read(0); });
  flow.addEventListener("blur", () => read(-1));
  flow.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !tokens.length) return;
    event.preventDefault();
    event.stopPropagation();
    read(Math.min(tokens.length - 1, Math.max(0, current + by)));
    tokens[current].node.scrollIntoView({ block: "nearest" });
  });
  const available = TINTS.filter(([name]) => (name === "advantage" ? credited : name === "gap" ? compared : name === "surprise" ? recorded : true));
  return el("section", { class: "card text-card", "aria-labelledby": "text-title" },
    el("div", { class: "section-head" }, el("h2", { id: "text-title" }, "What it wrote"),
      available.length < 2 ? null : el("div", { class: "segmented", role: "radiogroup", "aria-label": "Tint of tokens" }, el("span", { class: "hint" }, "tint"), available.map(([name, text]) => el("label", {}, el("input", { type: "radio", name: "tint", value: name, checked: name === (available.some(([each]) => each === trajectoryView.tint) ? trajectoryView.tint : "none"), on: { change: () => { trajectoryView.tint = name; flow.dataset.tint = name; retint(tokens, range); } } }), el("span", {}, text))))),
    el("ul", { class: "legend" }, el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c1)" } }), "sampling"), el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c2)" } }), "reasoning"), el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--context)" } }), "context: given, never trained on"),
      credited ? el("li", {}, el("span", { class: "ramp" }), "advantage − … +") : null),
    flow, reading,
    recorded && !credited ? el("p", { class: "note" }, "This run did not record advantages.") : null,
    recorded && !compared ? el("p", { class: "note" }, at.moment.kind === "held_out" ? "Held-out trajectories are not learned from: there are no learner log-probs and no advantages." : "No learner log-probs: not recorded, or the trajectory was not learned from.") : null);
}

function contextChip(turn, number, frames, clip, call) {
  const what = frames ? `video: ${frames.t.length} frames, ${frames.scenes.length} scenes` : call?.malformed !== undefined ? `note: ${call.malformed}` : "text";
  const pictures = frames ? frames.t.filter((ms) => clip?.images?.[ms]).filter((ms, i, all) => i % Math.ceil(all.length / 8) === 0).map((ms) => el("img", { src: `data:image/webp;base64,${clip.images[ms]}`, alt: "", class: "chip-frame" })) : [];
  return el("div", { class: "context" }, el("span", { class: "context-label" }, number === 0 ? "prompt" : "inserted"), el("span", { class: "context-what" }, said(what)), el("span", { class: "context-count" }, `${count(turn.context_tokens)} tokens`), pictures.length ? el("span", { class: "chip-frames" }, pictures) : null);
}

function turnBlock(turn, number, piece, tokens, range) {
  const kind = turn.segment === "sampling" ? "sampling" : "reasoning";
  const body = el("div", { class: "turn-text", dir: "auto" });
  if (turn.tokens) {
    for (let i = 0; i < turn.tokens.length; i++) {
      const node = el("span", { class: "token", data: { token: tokens.length } }, clipText(visible(turn.tokens[i]), LONG));
      tokens.push({ node, turn, number, i });
      body.append(node);
    }
    if (!turn.tokens.length) body.append(el("span", { class: "hint" }, "no tokens"));
  } else if (piece !== undefined) body.append(longText(piece));
  retint(tokens.filter((token) => token.turn === turn), range);
  const advantage = !("advantage" in turn) ? null : turn.advantage === null ? "not learned from" : `advantage ${signed(turn.advantage, 3)}`;
  return el("div", { class: `turn ${kind}` }, el("div", { class: "turn-head" }, el("b", {}, kind), el("span", {}, `${count(turn.sampled_tokens)} tokens`), isNumber(turn.mean_logprob) ? el("span", {}, `mean log-prob ${signed(turn.mean_logprob, 3)}`) : null, advantage ? el("span", {}, advantage) : null, isNumber(turn.version) ? el("span", {}, `policy version ${turn.version}`) : null),
    turn.tokens || piece !== undefined ? body : null);
}

// The text of each turn where there are no tokens: kept with it, or, in older records, what lies between the videos.
function piecesOf(own) {
  if (own.turns.some((turn) => turn.tokens)) return [];
  if (own.turns.every((turn) => turn.written !== undefined)) return own.turns.map((turn) => turn.written);
  const pieces = own.text.split("<video>");
  return pieces.length === own.turns.length ? pieces : null;
}

function tintRange(own) {
  const gaps = own.turns.flatMap((turn) => turn.gap ?? []).filter(isNumber).map(Math.abs);
  const surprises = own.turns.flatMap((turn) => turn.engine ?? []).filter(isNumber).map((nats) => -nats);
  return { advantage: Math.max(1, ...own.turns.map((turn) => Math.abs(turn.advantage ?? 0))), gap: Math.max(1, most(gaps)), surprise: Math.max(NAT / 2, most(surprises)) };
}

function retint(tokens, range) {
  for (const { node, turn, i } of tokens) {
    const tint = trajectoryView.tint;
    let color = null, share = 0;
    if (tint === "advantage" && isNumber(turn.advantage) && turn.advantage !== 0) { color = turn.advantage > 0 ? "--plus" : "--less"; share = Math.abs(turn.advantage) / range.advantage; }
    else if (tint === "gap" && isNumber(turn.gap?.[i])) { color = turn.gap[i] >= 0 ? "--plus" : "--less"; share = Math.abs(turn.gap[i]) / range.gap; }
    else if (tint === "surprise" && isNumber(turn.engine?.[i])) { color = "--c2"; share = -turn.engine[i] / range.surprise; }
    node.style.backgroundColor = color ? `color-mix(in srgb, var(${color}) ${Math.round(6 + 34 * Math.min(1, Math.max(0, share)))}%, transparent)` : "";
  }
}

function tokenReading({ turn, i }, index, total) {
  const pair = (name, value) => el("span", { class: "pair-reading" }, el("span", {}, name), el("b", {}, value));
  const engine = turn.engine?.[i], gap = turn.gap?.[i];
  const found = [said(JSON.stringify(clipText(turn.tokens[i], 40)), { class: "token-name" }), pair("token", `${index + 1} of ${total}`)];
  found.push(pair("engine", isNumber(engine) ? `${signed(engine / NAT, 5)} nat` : "not recorded"));
  found.push(pair("learner", isNumber(gap) ? `${signed((engine - gap) / NAT, 5)} nat` : "not recorded"));
  found.push(pair("gap", isNumber(gap) ? `${signed(gap / NAT, 5)} nat` : "–"));
  found.push(pair("probability", isNumber(engine) ? fixed(Math.exp(engine / NAT), 4) : "–"));
  found.push(pair("advantage", isNumber(turn.advantage) ? signed(turn.advantage, 3) : "advantage" in turn ? "not learned from" : "not recorded"));
  return found;
}

// ---- rewards ----

function rewardPanel(run, at, own) {
  if (own.failed) return el("section", { class: "card" }, el("h2", {}, "Rewards"), el("p", { class: "warn" }, said(`Masked, never scored: ${own.failed.term} ${own.failed.cause}. ${own.failed.detail}`)));
  const terms = Object.entries(own.terms).map(([name, value]) => ({ name, value, segment: run.settings.get(`rewards.${name}.segment`) ?? "", weight: Number(run.settings.get(`rewards.${name}.weight`)), fn: run.settings.get(`rewards.${name}.fn`) ?? "" }));
  const rows = [];
  for (const [role, color] of [["sampling", "--c1"], ["reasoning", "--c2"]]) {
    const values = at.group.siblings.map((sibling) => sibling[role]).filter(isNumber), total = own[role];
    const turns = own.turns.filter((turn) => turn.segment === role && "advantage" in turn);
    rows.push(el("tr", { class: "role" }, el("th", { scope: "row" }, el("span", { class: "swatch", style: { "--own": `var(${color})` } }), role), el("td", { class: "number" }), el("td", { class: "number" }, isNumber(total) ? fixed(total, 3) : "–"), el("td", {}, isNumber(total) ? meter(total, color, mean(values)) : role === "sampling" ? "the task has no evidence" : ""), el("td", { class: "number" }, values.length ? fixed(mean(values), 3) : "–"), el("td", { class: "number" }, turns.length ? turns.map((turn) => (isNumber(turn.advantage) ? signed(turn.advantage, 3) : "masked")).join(", ") : "–")));
    const weights = terms.filter((term) => term.segment === role).reduce((sum, term) => sum + (term.weight || 0), 0);
    for (const term of terms.filter((each) => each.segment === role)) rows.push(termRow(term, color, weights));
  }
  for (const term of terms.filter((each) => each.segment !== "sampling" && each.segment !== "reasoning")) rows.push(termRow(term, "--context", 0));
  return el("section", { class: "card", "aria-labelledby": "rewards-title" }, el("h2", { id: "rewards-title" }, "Rewards"), el("div", { class: "scroll" }, el("table", { class: "rewards", id: "rewards" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "term"), ["weight", "value"].map((name) => el("th", { scope: "col", class: "number" }, name)), el("th", { scope: "col" }, "0 … 1, group mean marked"), el("th", { scope: "col", class: "number" }, "group mean"), el("th", { scope: "col", class: "number" }, "advantage"))), el("tbody", {}, rows))),
    own.note ? el("p", { class: "note" }, said(own.note)) : null);
}

function termRow(term, color, weights) {
  return el("tr", {}, el("th", { scope: "row", class: "term" }, said(term.name), term.fn && term.fn !== term.name ? el("span", { class: "hint" }, " ", said(term.fn)) : null), el("td", { class: "number" }, weights && isNumber(term.weight) ? fixed(term.weight / weights, 2) : "–"), el("td", { class: "number" }, isNumber(term.value) ? fixed(term.value, 3) : said(term.value ?? "–")), el("td", {}, isNumber(term.value) ? meter(term.value, color, null) : ""), el("td", {}), el("td", {}));
}

function meter(value, color, marked) {
  const x = (each) => 2 + 156 * Math.min(1, Math.max(0, each));
  return svg("svg", { width: 160, height: 12, class: "meter", "aria-hidden": "true" }, svg("rect", { x: 2, y: 3, width: 156, height: 6, rx: 3, class: "meter-back" }), svg("rect", { x: 2, y: 3, width: Math.max(0, x(value) - 2), height: 6, rx: 3, style: { fill: `var(${color})` } }), isNumber(marked) ? svg("line", { x1: x(marked), x2: x(marked), y1: 0, y2: 12, class: "mean" }) : null);
}
