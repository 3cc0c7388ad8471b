// What the policy asked of its tools: in words, on the axis, and in the frame.

// A granted call of the index: a look's window and rate, or another tool's name and moment.
function indexedCall([start, end, framesPerSecond, tool]) {
  return tool ? toolAt(tool, start === null ? null : [start, end]) : `${span([start, end])} at ${rate(framesPerSecond)}`;
}

// Likewise, of the details.
function detailedCall(call) {
  return call.tool ? toolAt(call.tool, call.granted) : `${span(call.granted)} at ${rate(call.granted_fps)}`;
}

function toolAt(tool, window) {
  if (!window) return tool;
  return window[1] > window[0] ? `${tool} of ${span(window)}` : `${tool} at ${seconds(window[0])} s`;
}

function boxText(box) {
  return box ? `, box ${box.map((side) => Math.round(side)).join(" ")}` : "";
}

// A call of another tool: where it looked, and at which part of the frame.
function drawToolCall(drawn, call, number, x, y, width) {
  const clamped = call.clamped.length ? ` (clamped: ${call.clamped.join(", ")})` : "";
  const text = `${number}: ${toolAt(call.tool, call.granted)}${boxText(call.box)}${clamped}`;
  if (!call.granted) return drawn.append(label(text, 18, y + 14, width, "lane-label", "start"));
  const [start, end] = call.granted.map(x),
    fits = end + 8 + text.length * 5.9 < width;
  drawn.append(
    svg(
      "rect",
      { x: start - 2, width: Math.max(4, end - start), y: y + 4, height: 12, rx: 2, class: "granted" },
      svg("title", {}, text),
    ),
    label(text, fits ? end + 8 : start - 8, y + 14, width, "lane-label", fits ? "start" : "end"),
  );
}

// The whole frame of a moment with the region drawn in that a tool showed of it.
function boxedFrame(frames, clip, call, title) {
  const image = clip?.images?.[frames.t[0]];
  const area = (box, name) =>
    el("div", {
      class: name,
      style: {
        left: `${box[0] / 10}%`,
        top: `${box[1] / 10}%`,
        width: `${(box[2] - box[0]) / 10}%`,
        height: `${(box[3] - box[1]) / 10}%`,
      },
    });
  const told = `${toolAt(call.tool, call.granted)}${boxText(call.box)}`;
  return el(
    "div",
    { class: "film" },
    el(
      "div",
      { class: "film-head" },
      el("h3", {}, title),
      el("p", { class: "hint" }, quoted(told), frames.w ? `, shown at ${frames.w} × ${frames.h}` : ""),
    ),
    image
      ? el(
          "div",
          { class: "boxed-frame", role: "img", "aria-label": `frame with the region drawn in: ${told}` },
          el("img", { src: `data:image/webp;base64,${image}`, alt: "" }),
          area(call.box, "box"),
        )
      : el("p", { class: "hint" }, "no picture of this frame"),
  );
}

