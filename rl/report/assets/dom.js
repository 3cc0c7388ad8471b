// Elements are built, never parsed: whatever a policy wrote stays text.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (name === "style")
      for (const [rule, setting] of Object.entries(value)) node.style.setProperty(rule, setting);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}
function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// Text that others wrote, with characters shown that would hide or reorder text; kept apart from the page's own direction.
const HIDDEN =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
function visible(text) {
  return String(text).replace(HIDDEN, (character) => {
    return `⟨U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}
function quoted(text, attributes = {}) {
  return el("bdi", { ...attributes, class: `quoted ${attributes.class ?? ""}` }, visible(text));
}

const LONG = 4000; // characters of one text shown before the reader asks for more
function longText(text, attributes = {}) {
  const whole = visible(text);
  if (whole.length <= LONG) return quoted(text, attributes);
  const shown = el("bdi", { ...attributes, class: `quoted ${attributes.class ?? ""}` }, whole.slice(0, LONG));
  const more = el(
    "button",
    {
      type: "button",
      class: "link",
      on: {
        click: () => {
          shown.textContent = whole;
          more.remove();
        },
      },
    },
    `… show all ${count(whole.length)} characters`,
  );
  return el("span", {}, shown, more);
}

// A note beside what is pointed at, above it or below; what it tells stands elsewhere for those who cannot point.
function popUp(target, children, { below = false, ...attributes } = {}) {
  hidePop();
  const bounds = target.getBoundingClientRect();
  const popped = el(
    "div",
    { id: "pop", "aria-hidden": "true", ...attributes, class: `pop ${attributes.class ?? ""}` },
    children,
  );
  document.body.append(popped);
  const left = Math.min(
    window.innerWidth - popped.offsetWidth - 8,
    Math.max(8, bounds.left + bounds.width / 2 - popped.offsetWidth / 2),
  );
  const above = bounds.top - popped.offsetHeight - 8;
  popped.style.left = `${left + window.scrollX}px`;
  popped.style.top = `${(above > 4 && !below ? above : bounds.bottom + (below ? 14 : 8)) + window.scrollY}px`;
}
function hidePop() {
  document.getElementById("pop")?.remove();
}

const formats = [0, 1, 2, 3, 4, 5].map(
  (digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
);
function fixed(value, digits) {
  return formats[digits].format(value);
}
function count(value) {
  return formats[0].format(value);
}

// A number as short as its size allows; what is not finite is a word already.
function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−").replace(/^-/, "−");
  if (size >= 1e9) return `${fixed(value / 1e9, 2)} G`;
  if (size >= 1e6) return `${fixed(value / 1e6, 2)} M`;
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return minus(Number.isInteger(value) && size >= 10 ? count(value) : fixed(value, digits));
}
function minus(text) {
  return text.replace(/^-/, "−");
}
function signed(value, digits = 2) {
  return (value > 0 ? "+" : "") + minus(fixed(value, digits));
}
function seconds(value) {
  return minus(fixed(value, value % 1 === 0 ? 0 : 2));
}
function span(window) {
  return `${seconds(window[0])}–${seconds(window[1])} s`;
}
function rate(fps) {
  return fps === null || fps === undefined ? "no rate" : `${Number(fps.toFixed(2))} fps`;
}
function lasting(total) {
  if (total < 120) return `${Math.round(total)} s`;
  if (total < 7200) return `${Math.round(total / 60)} min`;
  return `${fixed(total / 3600, 1)} h`;
}
function least(values) {
  return values.reduce((best, value) => Math.min(best, value), Infinity);
}
function most(values) {
  return values.reduce((best, value) => Math.max(best, value), -Infinity);
}
function isNumber(value) {
  return typeof value === "number";
}
function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

// Round steps that cover a range with about `wanted` of them.
function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}
