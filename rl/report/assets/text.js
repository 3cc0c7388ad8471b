// What a trajectory wrote: segments by colour, tokens with their credit and both log-probs.

const TINTS = [
  ["advantage", "advantage"],
  ["gap", "engine − learner"],
  ["surprise", "surprise"],
  ["none", "none"],
];
const trajectoryView = { tint: "advantage" };
const NAT = 100000; // log-probs come in whole hundred-thousandths of a nat

function textPanel(run, at, own, group, clip) {
  const has = {
    tokens: own.turns.some((turn) => turn.tokens),
    advantages: own.turns.some((turn) => "advantage" in turn),
    gaps: own.turns.some((turn) => turn.gap),
  };
  const reading = el("p", { class: "token-reading", id: "token-reading", role: "status", "aria-live": "polite" });
  const range = tintRange(own);
  const { flow, tokens } = textFlow(own, group, clip, range, has);
  readTokens(flow, tokens, reading, restingText(own, has));
  return el(
    "section",
    { class: "card text-card", "aria-labelledby": "text-title" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "text-title" }, "What it wrote"),
      tintChoice(flow, tokens, range, has),
    ),
    segmentLegend(has),
    flow,
    reading,
    has.tokens && !has.advantages ? el("p", { class: "note" }, "This run did not record advantages.") : null,
    has.tokens && !has.gaps
      ? el(
          "p",
          { class: "note" },
          at.reportStep.kind === "held_out"
            ? "Held-out trajectories are not learned from: there are no learner log-probs and no advantages."
            : "No learner log-probs: not recorded, or the trajectory was not learned from.",
        )
      : null,
  );
}

// What is said while no token is pointed at.
function restingText(own, has) {
  if (has.tokens) return "Point at a token, or focus the text and use ← → to read its numbers.";
  return own.turns.some((turn) => turn.written !== undefined)
    ? "Per-token numbers of this step were left out to keep the page small."
    : "This run did not record tokens and log-probs.";
}

// Context and turns in order; {flow, tokens: [{node, turn, number, i}]}.
function textFlow(own, group, clip, range, has) {
  const flow = el("div", {
    class: "text-flow",
    id: "text-flow",
    data: { tint: trajectoryView.tint },
    tabindex: has.tokens ? "0" : null,
    role: "group",
    "aria-label": "What the policy wrote, token by token",
  });
  const tokens = [];
  const pieces = piecesOf(own);
  own.turns.forEach((turn, number) => {
    flow.append(
      contextChip(turn, number, number === 0 ? group.coarse_frames : turn.frames, clip, own.turns[number - 1]?.call),
    );
    flow.append(turnBlock(turn, number, pieces?.[number], tokens, range));
  });
  if (!own.turns.length)
    flow.append(el("p", { class: "empty" }, own.note ? quoted(own.note) : "The policy wrote nothing."));
  else if (!has.tokens && !pieces) flow.append(el("div", { class: "turn-text", dir: "auto" }, longText(own.text)));
  return { flow, tokens };
}

// Pointer and keys over the text show a token's numbers in `reading`.
function readTokens(flow, tokens, reading, resting) {
  reading.textContent = resting;
  let current = -1;
  const read = (index) => {
    if (current >= 0) tokens[current]?.node.classList.remove("focused");
    current = index;
    if (index < 0) {
      reading.textContent = resting;
      return;
    }
    tokens[index].node.classList.add("focused");
    reading.replaceChildren(...tokenReading(tokens[index], index, tokens.length));
  };
  flow.addEventListener("pointerover", (event) => {
    const index = event.target.dataset?.token;
    if (index !== undefined) read(Number(index));
  });
  flow.addEventListener("pointerleave", () => {
    if (document.activeElement !== flow) read(-1);
  });
  flow.addEventListener("focus", () => {
    if (tokens.length && current < 0) read(0);
  });
  flow.addEventListener("blur", () => read(-1));
  flow.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !tokens.length) return;
    event.preventDefault();
    event.stopPropagation();
    read(Math.min(tokens.length - 1, Math.max(0, current + by)));
    tokens[current].node.scrollIntoView({ block: "nearest" });
  });
}

function tintChoice(flow, tokens, range, has) {
  const needs = { advantage: has.advantages, gap: has.gaps, surprise: has.tokens, none: true };
  const available = TINTS.filter(([name]) => needs[name]);
  if (available.length < 2) return null;
  const chosen = available.some(([each]) => each === trajectoryView.tint) ? trajectoryView.tint : "none";
  const choose = (name) => {
    trajectoryView.tint = name;
    flow.dataset.tint = name;
    retint(tokens, range);
  };
  return el(
    "div",
    { class: "segmented", role: "radiogroup", "aria-label": "Tint of tokens" },
    el("span", { class: "hint" }, "tint"),
    available.map(([name, text]) =>
      el(
        "label",
        {},
        el("input", {
          type: "radio",
          name: "tint",
          value: name,
          checked: name === chosen,
          on: { change: () => choose(name) },
        }),
        el("span", {}, text),
      ),
    ),
  );
}

function segmentLegend(has) {
  return el(
    "ul",
    { class: "legend" },
    el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c1)" } }), "sampling"),
    el("li", {}, el("span", { class: "swatch", style: { "--own": "var(--c2)" } }), "reasoning"),
    el(
      "li",
      {},
      el("span", { class: "swatch", style: { "--own": "var(--context)" } }),
      "context: given, never trained on",
    ),
    has.advantages ? el("li", {}, el("span", { class: "ramp" }), "advantage − … +") : null,
  );
}

function contextChip(turn, number, frames, clip, call) {
  const what = frames
    ? `video: ${frames.t.length} frames, ${frames.scenes.length} scenes`
    : notGranted(call)
      ? `note: ${notGranted(call).reason}`
      : "text";
  const pictures = frames
    ? frames.t
        .filter((ms) => clip?.images?.[ms])
        .filter((ms, i, all) => i % Math.ceil(all.length / 16) === 0)
        .map((ms) => el("img", { src: `data:image/webp;base64,${clip.images[ms]}`, alt: "", class: "chip-frame" }))
    : [];
  return el(
    "div",
    { class: "context" },
    el("span", { class: "context-label" }, number === 0 ? "prompt" : "inserted"),
    el("span", { class: "context-what" }, quoted(what)),
    el("span", { class: "context-count" }, `${count(turn.context_tokens)} tokens`),
    pictures.length ? el("span", { class: "chip-frames" }, pictures) : null,
  );
}

function turnBlock(turn, number, piece, tokens, range) {
  const kind = turn.segment === "sampling" ? "sampling" : "reasoning";
  const body = el("div", { class: "turn-text", dir: "auto" });
  if (turn.tokens) {
    for (let i = 0; i < turn.tokens.length; i++) {
      const node = el(
        "span",
        { class: "token", data: { token: tokens.length } },
        clipText(visible(turn.tokens[i]), LONG),
      );
      tokens.push({ node, turn, number, i });
      body.append(node);
    }
    if (!turn.tokens.length) body.append(el("span", { class: "hint" }, "no tokens"));
  } else if (piece !== undefined) body.append(longText(piece));
  retint(
    tokens.filter((token) => token.turn === turn),
    range,
  );
  const advantage = !("advantage" in turn)
    ? null
    : turn.advantage === null
      ? "not learned from"
      : `advantage ${signed(turn.advantage, 3)}`;
  return el(
    "div",
    { class: `turn ${kind}` },
    el(
      "div",
      { class: "turn-head" },
      el("b", {}, kind),
      el("span", {}, `${count(turn.sampled_tokens)} tokens`),
      isNumber(turn.mean_logprob) ? el("span", {}, `mean log-prob ${signed(turn.mean_logprob, 3)}`) : null,
      advantage ? el("span", {}, advantage) : null,
      isNumber(turn.version) ? el("span", {}, `policy version ${turn.version}`) : null,
    ),
    turn.tokens || piece !== undefined ? body : null,
  );
}

// The text of each turn where there are no tokens: kept with it, or, in older records, what lies between the videos.
function piecesOf(own) {
  if (own.turns.some((turn) => turn.tokens)) return [];
  if (own.turns.every((turn) => turn.written !== undefined)) return own.turns.map((turn) => turn.written);
  const pieces = own.text.split("<video>");
  return pieces.length === own.turns.length ? pieces : null;
}

function tintRange(own) {
  const gaps = own.turns
    .flatMap((turn) => turn.gap ?? [])
    .filter(isNumber)
    .map(Math.abs);
  const surprises = own.turns
    .flatMap((turn) => turn.engine ?? [])
    .filter(isNumber)
    .map((nats) => -nats);
  return {
    advantage: Math.max(1, ...own.turns.map((turn) => Math.abs(turn.advantage ?? 0))),
    gap: Math.max(1, most(gaps)),
    surprise: Math.max(NAT / 2, most(surprises)),
  };
}

function retint(tokens, range) {
  for (const { node, turn, i } of tokens) {
    const tint = trajectoryView.tint;
    let color = null,
      share = 0;
    if (tint === "advantage" && isNumber(turn.advantage) && turn.advantage !== 0) {
      color = turn.advantage > 0 ? "--plus" : "--less";
      share = Math.abs(turn.advantage) / range.advantage;
    } else if (tint === "gap" && isNumber(turn.gap?.[i])) {
      color = turn.gap[i] >= 0 ? "--plus" : "--less";
      share = Math.abs(turn.gap[i]) / range.gap;
    } else if (tint === "surprise" && isNumber(turn.engine?.[i])) {
      color = "--c2";
      share = -turn.engine[i] / range.surprise;
    }
    node.style.backgroundColor = color
      ? `color-mix(in srgb, var(${color}) ${Math.round(6 + 34 * Math.min(1, Math.max(0, share)))}%, transparent)`
      : "";
  }
}

function tokenReading({ turn, i }, index, total) {
  const pair = (name, value) => el("span", { class: "pair-reading" }, el("span", {}, name), el("b", {}, value));
  const engine = turn.engine?.[i],
    gap = turn.gap?.[i];
  const found = [
    quoted(JSON.stringify(clipText(turn.tokens[i], 40)), { class: "token-name" }),
    pair("token", `${index + 1} of ${total}`),
  ];
  found.push(pair("engine", isNumber(engine) ? `${signed(engine / NAT, 5)} nat` : "not recorded"));
  found.push(pair("learner", isNumber(gap) ? `${signed((engine - gap) / NAT, 5)} nat` : "not recorded"));
  found.push(pair("gap", isNumber(gap) ? `${signed(gap / NAT, 5)} nat` : "–"));
  found.push(pair("probability", isNumber(engine) ? fixed(Math.exp(engine / NAT), 4) : "–"));
  found.push(
    pair(
      "advantage",
      isNumber(turn.advantage) ? signed(turn.advantage, 3) : "advantage" in turn ? "not learned from" : "not recorded",
    ),
  );
  return found;
}
