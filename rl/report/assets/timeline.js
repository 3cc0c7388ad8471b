// The video's time axis: evidence, coarse frames, windows asked and granted, retrieved frames at their times.

// All siblings' windows over the evidence, one line each.
function miniWindows(run, group, width, open, slim = false) {
  const duration = run.duration(group),
    row = Math.min(7, Math.max(3, 56 / Math.max(1, group.siblings.length))),
    top = 6,
    foot = slim ? 6 : 14;
  const height = top + row * group.siblings.length + foot + (slim ? 2 : 4);
  const x = (time) => 4 + (Math.min(duration, Math.max(0, time)) / duration) * (width - 8);
  const drawn = svg("svg", {
    width,
    height,
    class: "mini",
    role: "img",
    "aria-label": `windows of ${group.siblings.length} siblings on a clip of ${seconds(duration)} s`,
  });
  if (group.evidence)
    drawn.append(
      svg("rect", {
        x: x(group.evidence[0]),
        width: Math.max(2, x(group.evidence[1]) - x(group.evidence[0])),
        y: 2,
        height: height - foot - 2,
        class: "evidence",
      }),
    );
  drawn.append(svg("line", { x1: x(0), x2: x(duration), y1: height - foot + 1, y2: height - foot + 1, class: "axis" }));
  if (!slim)
    drawn.append(
      svg("text", { x: 4, y: height - 2, class: "tick" }, "0"),
      svg("text", { x: width - 4, y: height - 2, class: "tick", "text-anchor": "end" }, `${seconds(duration)} s`),
    );
  group.siblings.forEach((sibling, i) => {
    const y = top + row * (i + 0.5);
    const line = svg(
      "g",
      { class: "mini-row", on: { click: () => open(i) } },
      svg("title", {}, siblingTitle(sibling)),
      svg("rect", { x: 0, width, y: y - row / 2, height: row, class: "hit" }),
    );
    for (const call of sibling.calls) {
      if (isGranted(call) && call[0] === null) continue; // of a tool that looks at no part of the clip
      if (!isGranted(call)) line.append(svg("path", { d: `M4,${y - 2}l4,4m0,-4l-4,4`, class: "malformed" }));
      else
        line.append(
          svg("line", {
            x1: x(call[0]),
            x2: Math.max(x(call[0]) + 2, x(call[1])),
            y1: y,
            y2: y,
            class: "window",
            style: { "stroke-width": Math.min(4, row - 1.5) },
          }),
        );
    }
    drawn.append(line);
  });
  return drawn;
}

function siblingTitle(sibling) {
  const windows = sibling.calls
    .map((call) => (isGranted(call) ? indexedCall(call) : `${call} call`))
    .join("; ");
  return `sibling ${sibling.sibling}: ${windows || "did not look again"}`;
}

// The large axis of one trajectory.
function bigTimeline(run, group, detail, own, clip, width) {
  const duration = run.duration(group, detail),
    pad = 14;
  const x = (time) => pad + (Math.min(duration, Math.max(0, time)) / duration) * (width - 2 * pad);
  const coarse = detail.coarse_frames
    ? filmStrip(detail.coarse_frames, clip, { width, from: 0, to: duration, pad, label: "Coarse frames" })
    : el("p", { class: "empty" }, "No coarse frames: the video could not be read.");
  return el("section", { class: "card timeline-card", "aria-label": "Time axis" }, [
    timelineHead(run, group, detail, duration),
    coarse,
    drawAxis(group, detail, own, { duration, pad, width, x }),
    retrievedStrips(own, clip, { pad, width, x }),
  ]);
}

function timelineHead(run, group, detail, duration) {
  const source = detail.duration_s
    ? ""
    : run.clips[group.video]?.duration_s
      ? " (read from the clip; the run did not record it)"
      : " (last recorded time; the run did not record the clip's length)";
  return el(
    "div",
    { class: "timeline-head" },
    el("h2", {}, "On the video's clock"),
    el("p", { class: "hint" }, `${seconds(duration)} s`, source),
  );
}

const AXIS = { y: 44, lane: 38 }; // pixels: of the axis, and between two calls below it

// The clip's time axis with evidence and coarse frames, and a lane per call.
function drawAxis(group, detail, own, { duration, pad, width, x }) {
  const calls = own.turns.map((turn) => turn.call).filter(Boolean);
  const height = AXIS.y + 26 + Math.max(1, calls.length) * AXIS.lane;
  const drawn = svg("svg", { width, height, class: "timeline", role: "img", "aria-label": timelineText(group, calls) });
  if (group.evidence) drawn.append(...evidenceBand(group, x, width, height));
  drawn.append(svg("line", { x1: x(0), x2: x(duration), y1: AXIS.y, y2: AXIS.y, class: "axis strong" }));
  for (const time of ticks(0, duration, Math.min(10, width / 80)))
    drawn.append(
      svg("line", { x1: x(time), x2: x(time), y1: AXIS.y, y2: AXIS.y + 5, class: "axis strong" }),
      svg("text", { x: x(time), y: AXIS.y + 17, class: "tick", "text-anchor": "middle" }, seconds(time)),
    );
  for (const ms of detail.coarse_frames?.t ?? [])
    drawn.append(
      svg(
        "line",
        { x1: x(ms / 1000), x2: x(ms / 1000), y1: AXIS.y - 12, y2: AXIS.y, class: "coarse-tick" },
        svg("title", {}, `coarse frame at ${fixed(ms / 1000, 3)} s`),
      ),
    );
  own.turns
    .filter((turn) => turn.call)
    .forEach((turn, i) => drawLane(drawn, own, turn, i + 1, AXIS.y + 26 + i * AXIS.lane, { pad, width, x }));
  if (!calls.length)
    drawn.append(label("This trajectory did not look again.", pad + 4, AXIS.y + 42, width, "lane-label", "start"));
  return drawn;
}

function evidenceBand(group, x, width, height) {
  const [start, end] = group.evidence.map(x);
  const text = `evidence ${span(group.evidence)}${group.evidence_fps === null ? "" : ` at ${rate(group.evidence_fps)}`}`;
  return [
    svg("rect", { x: start, width: Math.max(2, end - start), y: 18, height: height - 18, class: "evidence" }),
    svg("path", { d: `M${start},18v${height - 18}M${end},18v${height - 18}`, class: "evidence-edge" }),
    label(text, (start + end) / 2, 13, width, "evidence-label"),
  ];
}

function drawLane(drawn, own, turn, number, y, { pad, width, x }) {
  const refusal = notGranted(turn.call);
  if (!refusal && turn.call.tool) return drawToolCall(drawn, turn.call, number, x, y, width);
  if (!refusal) return drawCall(drawn, turn.call, number, blockOf(own, turn), x, y, width);
  const text = `${turn.call.tool ?? "look"} ${number}: ${refusal.kind}, nothing granted (${clipText(refusal.reason, 90)})`;
  drawn.append(label(text, pad + 4, y + 16, width, "lane-label malformed-text", "start"));
}

// The frames of each granted call, below the window on the axis that they come from.
function retrievedStrips(own, clip, { pad, width, x }) {
  const shown = own.turns
    .map((turn, i) => [own.turns.slice(0, i).findLast((before) => before.call?.granted)?.call, turn.frames])
    .filter(([, frames]) => frames);
  return shown.map(([call, frames], i) => {
    if (call?.box) return boxedFrame(frames, clip, call, `Call ${i + 1}: ${call.tool}`);
    const times = frames.t.map((ms) => ms / 1000);
    const step = times.length > 1 ? (times[times.length - 1] - times[0]) / (times.length - 1) : 0;
    const from = Math.min(call?.granted?.[0] ?? times[0], times[0]); // shown first: what was on screen already
    const to = Math.max(call?.granted?.[1] ?? 0, times[times.length - 1] + step, from + 1e-3);
    const strip = { width, from, to, pad, label: `${call?.tool ?? "Look"} ${i + 1}: retrieved frames`, call };
    return [zoom(x(from), x(to), width, pad), filmStrip(frames, clip, strip)];
  });
}

// The frames that answered a call lie in the turn after it.
function blockOf(own, turn) {
  return own.turns[own.turns.indexOf(turn) + 1]?.frames ?? null;
}

function drawCall(drawn, call, number, shown, x, y, width) {
  const [start, end] = call.granted.map(x),
    clamped = call.clamped.length > 0;
  const askedStart = x(call.asked[0]),
    askedEnd = x(call.asked[1]);
  drawn.append(
    svg(
      "rect",
      {
        x: Math.min(askedStart, askedEnd),
        width: Math.max(3, Math.abs(askedEnd - askedStart)),
        y: y + 1,
        height: 18,
        rx: 3,
        class: "asked",
      },
      svg("title", {}, `asked: ${span(call.asked)} at ${rate(call.asked_fps)}`),
    ),
    svg(
      "rect",
      { x: start, width: Math.max(3, end - start), y: y + 4, height: 12, rx: 2, class: "granted" },
      svg("title", {}, `granted: ${span(call.granted)} at ${rate(call.granted_fps)}`),
    ),
  );
  for (const ms of shown?.t ?? [])
    drawn.append(svg("line", { x1: x(ms / 1000), x2: x(ms / 1000), y1: y + 4, y2: y + 16, class: "frame-tick" }));
  const same =
    !clamped && Math.abs(call.asked[0] - call.granted[0]) + Math.abs(call.asked[1] - call.granted[1]) < 0.005;
  const text = same
    ? `look ${number}: ${span(call.asked)} at ${rate(call.asked_fps)}, ${call.frames} frames`
    : `look ${number}: asked ${span(call.asked)} at ${rate(call.asked_fps)} · granted ${span(call.granted)} at ` +
      `${rate(call.granted_fps)}, ${call.frames} frames (clamped: ${call.clamped.join(", ")})`;
  const marks = [start, end, askedStart, askedEnd, ...(shown?.t ?? []).map((ms) => x(ms / 1000))];
  const left = least(marks),
    right = most(marks),
    needed = text.length * 5.9;
  if (width - right - 16 > needed) drawn.append(label(text, right + 8, y + 14, width, "lane-label", "start"));
  else if (left - 16 > needed) drawn.append(label(text, left - 8, y + 14, width, "lane-label", "end"));
  else drawn.append(label(text, (start + end) / 2, y + 32, width, "lane-label"));
}

// Text kept inside the drawing.
function label(text, at, y, width, name, anchor = "middle") {
  const shown = visible(text),
    half = anchor === "middle" ? shown.length * 2.95 : 0;
  const inside = anchor === "middle" ? Math.min(Math.max(at, half + 4), Math.max(half + 4, width - half - 4)) : at;
  return svg("text", { x: inside, y, class: name, "text-anchor": anchor }, shown);
}

function timelineText(group, calls) {
  const windows = calls.map((call) =>
    notGranted(call)
      ? `a ${notGranted(call).kind} call`
      : `a ${call.tool ? "" : "look at "}${detailedCall(call)}`,
  );
  const evidence = group.evidence ? `Evidence at ${span(group.evidence)}. ` : "";
  return evidence + (windows.length ? `The policy made ${windows.join(", ")}.` : "The policy did not look again.");
}

// From the window on the axis to the whole width below it.
function zoom(start, end, width, pad) {
  return svg(
    "svg",
    { width, height: 22, class: "zoom", "aria-hidden": "true" },
    svg("path", { d: `M${start},0L${Math.max(end, start + 2)},0L${width - pad},22L${pad},22Z`, class: "funnel" }),
  );
}

// Frames of a block at their times: each is as wide as the time until the next one, scenes bracketed below.
function filmStrip(block, clip, { width, from, to, pad, label: title, call }) {
  const scale = (width - 2 * pad) / Math.max(to - from, 1e-6);
  const times = block.t.map((ms) => ms / 1000),
    aspect = block.w && block.h ? block.w / block.h : 1;
  const gaps = times.map(
    (time, i) =>
      (i + 1 < times.length
        ? times[i + 1]
        : Math.min(to, time + (times.length > 1 ? (time - times[0]) / i : to - from))) - time,
  );
  const tall = Math.min(88, Math.max(44, (least(gaps.filter((gap) => gap > 0)) * scale) / aspect));
  const lefts = times.map((time) => pad + (time - from) * scale),
    widths = gaps.map((gap, i) => Math.max(2, Math.min(gap * scale - 2, tall * aspect, width - pad - lefts[i])));
  const scenes = scenesOf(block);
  return el(
    "div",
    { class: "film" },
    filmHead(block, clip, scenes, title, call),
    el(
      "div",
      { class: "frames", style: { height: `${tall}px` } },
      filmFrames(block, clip, scenes, lefts, widths, tall),
    ),
    filmBrackets(block, scenes, lefts, widths, width),
  );
}

// [first, end) of each scene, in frames of the block.
function scenesOf(block) {
  let first = 0;
  return block.scenes.map((length) => [first, (first += length)]);
}

function filmHead(block, clip, scenes, title, call) {
  const problem = clip?.problem
    ? `no pictures: ${clip.problem}`
    : clip && block.t.some((ms) => clip.images?.[ms])
      ? ""
      : "pictures were left out to keep this page small";
  return el(
    "div",
    { class: "film-head" },
    el("h3", {}, title),
    el(
      "p",
      { class: "hint" },
      `${block.t.length} frames, ${scenes.length} FlexiVideo scenes`,
      call ? `, ${detailedCall(call)}` : "",
      block.w ? `, encoded at ${block.w} × ${block.h}` : "",
      problem ? el("span", { class: "warn" }, " · ", quoted(problem)) : null,
    ),
  );
}

function filmFrames(block, clip, scenes, lefts, widths, tall) {
  const sceneOf = (i) => scenes.findIndex(([low, high]) => i >= low && i < high);
  return block.t.map((ms, i) => {
    const image = clip?.images?.[ms],
      style = { left: `${lefts[i].toFixed(1)}px`, width: `${widths[i].toFixed(1)}px`, height: `${tall}px` };
    const name = `${fixed(ms / 1000, 3)} s${scenes.length ? `, scene ${sceneOf(i) + 1} of ${scenes.length}` : ""}`;
    const on = { pointerenter: (event) => showFrame(event.currentTarget, image, name), pointerleave: hidePop };
    if (!image)
      return el("div", {
        class: "frame missing",
        style,
        role: "img",
        "aria-label": `no picture of the frame at ${name}`,
        on,
      });
    const src = `data:image/webp;base64,${image}`;
    return el("img", { src, alt: `frame at ${name}`, class: "frame", style, loading: "lazy", on });
  });
}

function filmBrackets(block, scenes, lefts, widths, width) {
  const brackets = svg("svg", {
    width,
    height: 26,
    class: "brackets",
    role: "img",
    "aria-label": scenes.length
      ? `${scenes.length} scenes of ${block.scenes.join(", ")} frames`
      : "scenes not recorded",
  });
  scenes.forEach(([low, high], i) => {
    const start = lefts[low] + 0.5,
      end = Math.max(start + 2, lefts[high - 1] + widths[high - 1] - 0.5);
    brackets.append(svg("path", { d: `M${start},2v5H${end}v-5`, class: "bracket" }));
    const text = end - start > 56 && high - low > 1 ? `scene ${i + 1} · ${high - low}` : String(high - low);
    if (end - start > 15)
      brackets.append(svg("text", { x: (start + end) / 2, y: 19, class: "tick", "text-anchor": "middle" }, text));
  });
  return brackets;
}

function showFrame(target, image, name) {
  popUp(target, [
    image ? el("img", { src: `data:image/webp;base64,${image}`, alt: "" }) : el("p", {}, "no picture"),
    el("p", {}, name),
  ]);
}
