// Which page is shown and what is looked at, by the address after #; and what is new.

const PAGES = {
  runs: [listPage, () => {}],
  curves: [curvesPage, afterCurvesPage],
  predictions: [predictionsPage, afterPredictionsPage],
};
let all = null;

function route() {
  const name = location.hash.replace(/^#\/?/, "").split("?")[0];
  return Object.hasOwn(PAGES, name) ? name : "runs";
}

// Look at something else on this page.
function look(changes) {
  view = { ...view, ...changes };
  history.replaceState(null, "", addressOf(route(), view));
  redraw();
}

function redraw({ keepScroll = true } = {}) {
  if (!all) return null;
  const name = route(),
    [build, after] = PAGES[name];
  const main = document.getElementById("main"),
    focused = document.activeElement?.id,
    caret = document.activeElement?.selectionStart,
    open = [...main.querySelectorAll("details[id][open]")].map((each) => each.id),
    scrolled = window.scrollY,
    heldUp = main.clientHeight;
  hidePop();
  main.style.minHeight = keepScroll ? `${heldUp}px` : "";
  const before = keepScroll ? document.getElementById("predictions") : null;
  main.replaceChildren(...[build(all)].flat(Infinity).filter(Boolean));
  const place = document.getElementById("predictions");
  if (before && place) place.replaceWith(before); // until what is new has been read
  for (const page of Object.keys(PAGES)) {
    const tab = document.getElementById(`tab-${page}`);
    tab.setAttribute("href", addressOf(page, view));
    if (page === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  window.scrollTo(0, keepScroll ? scrolled : 0);
  const again = keepScroll && focused ? document.getElementById(focused) : null;
  if (again) {
    again.focus({ preventScroll: true });
    if (caret !== null && caret !== undefined && again.type === "search") again.setSelectionRange(caret, caret);
  }
  return Promise.resolve(after(all)).then(() => {
    main.style.minHeight = "";
  });
}

window.addEventListener("hashchange", () => {
  view = viewOf(location.hash);
  redraw({ keepScroll: false });
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
    index = await server.runs();
  } catch {
    answers = false;
  }
  if (index) {
    all = new Runs(index);
    await redraw();
  }
  const live = all.runs.filter((run) => run.state === "live").length;
  liveState(!answers ? "the server has gone; showing what was last seen" : live ? `${count(live)} live` : "");
  setTimeout(follow, all.unread ? SOON_MS : POLL_MS);
}

async function start() {
  try {
    view = viewOf(location.hash);
    all = new Runs(await server.runs());
    document.title = `${visible(all.title)} · dynframe`;
    await redraw();
    performance.mark("ready");
    document.documentElement.dataset.ready = "1";
  } catch (error) {
    document.getElementById("main").replaceChildren(el("p", { class: "empty" }, `This page cannot be drawn: ${error.message}`));
    throw error;
  }
  setTimeout(follow, all.unread ? SOON_MS : POLL_MS);
}
start();
