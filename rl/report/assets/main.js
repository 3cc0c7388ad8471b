// Which page is shown, by the address after #; keys; and, on a live page, what is new.

const PAGES = {
  run: [runPage, afterRunPage],
  steps: [stepsPage, afterStepsPage],
  trajectory: [trajectoryPage, afterTrajectoryPage],
};
let run = null;

function route() {
  const [name, ...path] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  return Object.hasOwn(PAGES, name) ? [name, ...path] : [firstPage()];
}
// What has no curves is not a run: a question that was asked (dynframe ask).
function firstPage() {
  return run && !run.metrics.length && run.report_steps.length ? "trajectory" : "run";
}
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function redraw(keepScroll = true) {
  if (!run) return;
  const [name, ...path] = route(),
    [build, after] = PAGES[name];
  const main = document.getElementById("main"),
    focused = document.activeElement?.id,
    caret = document.activeElement?.selectionStart;
  hidePop();
  const open = document.getElementById("metrics-details")?.open;
  main.replaceChildren(...[build(run, ...path)].flat(Infinity).filter(Boolean));
  for (const page of Object.keys(PAGES)) {
    const tab = document.getElementById(`tab-${page}`);
    if (page === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (name === "steps") rememberAs("steps");
  else if (name === "trajectory") rememberAs("trajectory");
  if (open && document.getElementById("metrics-details")) document.getElementById("metrics-details").open = true;
  if (!keepScroll) window.scrollTo(0, 0);
  const again = keepScroll && focused ? document.getElementById(focused) : null;
  if (again) {
    again.focus({ preventScroll: true });
    if (caret !== null && caret !== undefined && again.type === "search") again.setSelectionRange(caret, caret);
  }
  return after(run, ...path);
}

// A tab returns to where its page was left.
function rememberAs(page) {
  const [name, ...path] = route();
  if (path.length)
    document
      .getElementById(`tab-${page}`)
      .setAttribute("href", `#/${[name, ...path].map(encodeURIComponent).join("/")}`);
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || !run) return;
  if (event.target.closest("input, select, textarea, [tabindex='0']")) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key],
    [name, ...path] = route();
  if (by === undefined) return;
  if (name === "trajectory") {
    const at = locate(run, ...path);
    if (!at) return;
    const near = neighbours(run, at);
    const target = event.shiftKey ? (by < 0 ? near.groupBefore : near.groupAfter) : by < 0 ? near.before : near.after;
    if (target) location.hash = target;
    event.preventDefault();
  } else if (name === "steps" && run.report_steps.length) {
    document.querySelectorAll(".stepper .buttons button")[by < 0 ? 0 : 1].click();
    event.preventDefault();
  }
});

let shownPage = null;
window.addEventListener("hashchange", () => {
  const [page] = route();
  const stays = page === shownPage && page === "trajectory"; // moving between siblings keeps the place
  shownPage = page;
  redraw(stays);
});
let resizing = 0,
  widthBefore = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === widthBefore) return;
  widthBefore = window.innerWidth;
  clearTimeout(resizing);
  resizing = setTimeout(() => redraw(), 120);
});

async function follow() {
  let index = null,
    answers = true;
  try {
    index = await source.index();
  } catch {
    answers = false;
  }
  setTimeout(follow, POLL_MS);
  if (index) renew(index);
  liveState(
    answers ? `live · step ${count(most(run.steps.concat(0)))}` : "the server has gone; showing what was last seen",
  );
}

// A trajectory that is being read stays as it is: new steps do not change it.
function renew(index) {
  const [page, id] = route(),
    before = run.stepById.get(id);
  details.forget();
  clips.forget();
  const after = index.report_steps.find((reportStep) => reportStep.id === id);
  if (page === "trajectory" && before && JSON.stringify(before) === JSON.stringify(after)) run = new Run(index);
  else show(index);
}

function show(index) {
  run = new Run(index);
  document.title = `${visible(run.name)} · dynframe`;
  document.getElementById("run-name").textContent = visible(run.name);
  shownPage = route()[0];
  return redraw();
}

async function start() {
  try {
    await show(await source.index());
    performance.mark("ready");
    document.documentElement.dataset.ready = "1";
  } catch (error) {
    document
      .getElementById("main")
      .replaceChildren(el("p", { class: "empty" }, `This page cannot be unpacked: ${error.message}`));
    throw error;
  }
  if (LIVE) follow();
}
start();
