// One question on its video's time axis: the annotated evidence, a lane per run with the windows it looked at, and pictures.

const LANE = { height: 24, top: 18, foot: 22, pad: 8 };

function durationOf(row) {
  const ends = row.runs
    .filter(Boolean)
    .flatMap((run) => run.calls.flatMap((call) => (call.granted ? [call.granted[1], call.asked[1]] : [])));
  return row.duration_s || Math.max(1, ...ends, ...row.windows_s.map((window) => window[1]));
}

function lanesOf(row, shown, places, width) {
  const duration = durationOf(row),
    height = LANE.top + LANE.height * shown.length + LANE.foot,
    base = height - LANE.foot;
  const x = (time) => LANE.pad + (Math.min(duration, Math.max(0, time)) / duration) * (width - 2 * LANE.pad);
  const drawn = svg("svg", { width, height, class: "windows", role: "img", "aria-label": saidOf(row, shown) });
  for (const [start, end] of row.windows_s)
    drawn.append(
      svg("rect", { x: x(start), width: Math.max(2, x(end) - x(start)), y: 4, height: base - 4, class: "evidence" }),
      svg("path", { d: `M${x(start)},4V${base}M${x(end)},4V${base}`, class: "evidence-edge" }),
    );
  drawn.append(svg("line", { x1: x(0), x2: x(duration), y1: base, y2: base, class: "axis" }));
  for (const time of ticks(0, duration, Math.min(8, width / 80)))
    drawn.append(
      svg("line", { x1: x(time), x2: x(time), y1: base, y2: base + 4, class: "axis" }),
      svg("text", { x: x(time), y: base + 15, class: "tick", "text-anchor": "middle" }, seconds(time)),
    );
  shown.forEach((_, place) => {
    const run = row.runs[place],
      y = LANE.top + LANE.height * (place + 0.5);
    if (run) drawn.append(...laneOf(run, places[place], x, y));
  });
  return drawn;
}

function laneOf(run, place, x, y) {
  const color = `var(${looksOf(place).color})`;
  const marks = run.calls.map((call, i) => {
    if (call.refusal) {
      const at = LANE.pad + 4 + 14 * i,
        title = svg("title", {}, visible(`${call.refusal} call: ${call.reason}`));
      return svg("path", { d: `M${at},${y - 4}l8,8m0,-8l-8,8`, class: "malformed" }, title);
    }
    const [start, end] = call.granted.map(x),
      [from, to] = call.asked.map(x);
    const isClamped = Math.abs(call.asked[0] - call.granted[0]) + Math.abs(call.asked[1] - call.granted[1]) > 0.01;
    return svg(
      "g",
      {},
      svg("title", {}, `look ${i + 1}: ${span(call.granted)} at ${rate(call.fps)}, ${call.frames} frames`),
      svg("rect", {
        x: start,
        width: Math.max(3, end - start),
        y: y - 5,
        height: 10,
        rx: 2,
        class: "look",
        style: { fill: color },
      }),
      isClamped
        ? svg("rect", {
            x: Math.min(from, to),
            width: Math.max(3, Math.abs(to - from)),
            y: y - 8,
            height: 16,
            rx: 3,
            class: "asked",
          })
        : "",
    );
  });
  return marks.length ? marks : [svg("text", { x: LANE.pad + 4, y: y + 4, class: "tick faint" }, "did not look again")];
}

function saidOf(row, shown) {
  const evidence = row.windows_s.length ? `Evidence at ${row.windows_s.map(span).join(", ")}. ` : "";
  const each = shown.map((run, place) => {
    const said = row.runs[place];
    if (!said) return `${visible(run.name)} has not answered`;
    const looks = said.calls.filter((call) => call.granted).map((call) => span(call.granted));
    return `${visible(run.name)} looked at ${looks.join(", ") || "nothing again"}`;
  });
  return `${evidence}${each.join("; ")}.`;
}

// The whole clip, and what each granted window shows: fetched when they are asked for.
function picturesOf(row, run, evaluation) {
  const place = el("div", { class: "pictures" });
  const show = async (event) => {
    event.currentTarget.remove();
    place.append(el("p", { class: "hint" }, "Decoding …"));
    const found = await server.get("pictures", { run: run.id, evaluation, task: row.task });
    const strips = found?.strips ?? [];
    place.replaceChildren(
      ...(strips.length ? strips.map(stripOf) : [el("p", { class: "hint warn" }, quoted(found?.problem || "no pictures"))]),
    );
  };
  const label = `Show what ${visible(clipped(run.name, 30))} saw`;
  return [el("button", { type: "button", class: "show-pictures", on: { click: show } }, label), place];
}
function stripOf(strip, i) {
  return el(
    "div",
    { class: "picture-strip" },
    el("p", { class: "hint" }, i ? `Look ${i}, ${span([strip.start_s, strip.end_s])}` : "The whole clip"),
    el(
      "div",
      { class: "picture-row" },
      strip.frames.map(([time, image]) =>
        el(
          "figure",
          {},
          el("img", { src: `data:image/webp;base64,${image}`, alt: `at ${fixed(time, 2)} s`, class: "frame-at" }),
          el("figcaption", { class: "hint" }, `${fixed(time, 2)} s`),
        ),
      ),
    ),
  );
}
