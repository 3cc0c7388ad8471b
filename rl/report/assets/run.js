// Page 1: what the run achieved, its curves, tables and configuration.

const HEADLINE = [
  ["held_out/reward_sampling", "Retrieval reward", "where and how densely it looks"],
  ["held_out/reward_reasoning", "Answer reward", "what it answers, and in which form"],
  ["held_out/accuracy", "Answer accuracy", "of held-out tasks"],
  ["held_out/granted_calls", "Looks again", "share of trajectories with a granted call"],
  ["held_out/frames", "Frames per task", "retrieved on request"],
  ["held_out/nll", "Loss", "nat per token of held-out conversations"],
];
const FALLBACK = [
  ["reward/sampling", "Retrieval reward", "mean of the first and last tenth of the steps"],
  ["reward/reasoning", "Answer reward", "mean of the first and last tenth of the steps"],
  ["rollout/granted_calls", "Looks again", "share of trajectories with a granted call"],
  ["loss/nll", "Loss", "mean of the first and last tenth of the steps"],
];
const CHARTS = [
  {
    title: "Retrieval and answer reward",
    names: ["reward/sampling", "reward/reasoning", "held_out/reward_sampling", "held_out/reward_reasoning"],
    colors: ["--c1", "--c2", "--c1", "--c2"],
  },
  { title: "Loss, nat per token", names: ["loss/nll", "held_out/nll"], colors: ["--c1", "--c1"], floor: 0 },
  { title: "Held-out loss by source", under: "held_out/nll/", fewest: 2, floor: 0 },
  { title: "Reward terms", under: "reward/term/" },
  { title: "Held-out accuracy and looks", names: ["held_out/accuracy", "held_out/granted_calls"], fewest: 2 },
  { title: "Advantage, mean size", under: "advantage/" },
  { title: "Zero-variance groups", under: "group/" },
  { title: "Policy entropy", names: ["policy/entropy"] },
  { title: "KL to the reference", names: ["loss/kl"] },
  { title: "Parity: engine against learner", under: "parity/", log: true },
  { title: "Clipped tokens", under: "policy/clip_fraction/" },
  { title: "Tokens per trajectory", names: ["rollout/sampled_tokens", "rollout/visual_tokens"], floor: 0 },
  { title: "Retrieved frames", names: ["rollout/frames", "held_out/frames"], colors: ["--c1", "--c1"], floor: 0 },
  {
    title: "Looking again",
    names: [
      "rollout/granted_calls",
      "rollout/malformed_calls",
      "rollout/refused_calls",
      "rollout/clamped",
      "rollout/truncated",
    ],
  },
  {
    title: "Seconds per stage",
    under: "seconds/",
    except: ["seconds/step"],
    first: ["rollout", "reward", "update", "sync"],
    stacked: true,
  },
  { title: "Idle engines and learners", under: "idle/", floor: 0 },
  { title: "Learner tokens per second", names: ["update/tokens_per_s"], floor: 0 },
  { title: "Learner MFU", names: ["update/mfu"], floor: 0 },
  { title: "Tokens shared, tokens padded", names: ["update/shared_prefix_share", "update/padding_share"], floor: 0 },
  { title: "Staleness of what is learned", names: ["policy/staleness_mean", "policy/staleness_max"], floor: 0 },
  { title: "Push of weights", names: ["sync/gb_per_s"], floor: 0 },
  { title: "Memory by process", under: "memory/", floor: 0 },
  { title: "Gradient norm", names: ["grad/norm"], floor: 0 },
];
const SMOOTHING = [
  [1, "as measured"],
  [5, "mean of 5 steps"],
  [20, "mean of 20 steps"],
];
const runView = { smoothing: 1, configFilter: "", metricFilter: "" };

function runPage(run) {
  return [
    el(
      "section",
      { class: "title-block" },
      el("h1", {}, quoted(run.name)),
      el(
        "p",
        { class: "facts" },
        facts(run).map((fact) => el("span", {}, fact)),
      ),
    ),
    noticesOf(run),
    headline(run),
    curvesSection(run),
    lanesSection(run),
    failureSection(run),
    faultTable(run),
    tables(run),
    allMetrics(run),
    configSection(run),
    colophon(run),
  ];
}

function curvesSection(run) {
  return el(
    "section",
    { "aria-labelledby": "curves" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "curves" }, "Curves"),
      el(
        "label",
        { class: "field inline" },
        "Curves show ",
        el(
          "select",
          {
            id: "smoothing",
            on: {
              change: (event) => {
                runView.smoothing = Number(event.target.value);
                redraw();
              },
            },
          },
          SMOOTHING.map(([width, label]) =>
            el("option", { value: width, selected: width === runView.smoothing }, label),
          ),
        ),
      ),
      el(
        "p",
        { class: "hint" },
        "Point at a step to read every curve there; click to open its groups.",
        run.faults.count ? [" ", el("span", { class: "fault-key", "aria-hidden": "true" }, "▲"), " faults"] : null,
      ),
    ),
    el("div", { class: "charts", id: "charts" }),
  );
}

function configSection(run) {
  return el(
    "section",
    { "aria-labelledby": "config" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "config" }, "Configuration"),
      searchField("Find a key or value", "config-search", runView.configFilter, (text) => {
        runView.configFilter = text;
        fillConfig(run);
      }),
      el("p", { class: "hint", id: "config-count", role: "status" }),
    ),
    run.settings.size
      ? el("div", { class: "card config", id: "config-table" })
      : el("p", { class: "empty" }, "This run has no readable config.yaml."),
  );
}

function colophon(run) {
  const trained = run.report_steps.filter((reportStep) => reportStep.kind === "train");
  const trajectories = run.report_steps.reduce(
    (sum, reportStep) => sum + reportStep.groups.reduce((all, group) => all + group.siblings.length, 0),
    0,
  );
  return el(
    "footer",
    { class: "colophon" },
    el(
      "p",
      {},
      "Written ",
      run.written,
      " from ",
      quoted(run.folder, { class: "path" }),
      ` · ${count(trajectories)} recorded trajectories of ${count(trained.length)} steps`,
    ),
  );
}

function afterRunPage(run) {
  const place = document.getElementById("charts");
  const columns = Math.max(1, Math.floor((place.clientWidth + 16) / 356));
  const width = Math.floor((place.clientWidth - (columns - 1) * 16) / columns) - 26;
  place.style.setProperty("--columns", columns);
  const cursor = new Cursor(),
    missing = [];
  for (const chart of CHARTS) {
    const names = namesOf(run, chart);
    if (!names.length) {
      missing.push(chart.title);
      continue;
    }
    place.append(lineChart(chartSpec(run, chart, names, width, cursor)));
  }
  if (missing.length)
    place.after(el("p", { class: "hint missing" }, `Not reported by this run: ${missing.join(" · ")}.`));
  fillLanes(run);
  fillFaults(run);
  if (run.settings.size) fillConfig(run);
  fillMetrics(run);
}

// Names of a chart's metrics that the run has, in the chart's order.
function namesOf(run, chart) {
  const found = chart.under ? run.under(chart.under) : chart.names;
  const first = (chart.first ?? []).map((name) => chart.under + name);
  return [...new Set([...first, ...found])].filter((name) => {
    const known = run.metric.get(name)?.values.filter(isNumber).length ?? 0;
    return known >= (chart.fewest ?? 1) && !chart.except?.includes(name);
  });
}

function chartSpec(run, chart, names, width, cursor) {
  const rows = run.steps
    .map((step, i) => i)
    .filter((i) => names.some((name) => run.metric.get(name).values[i] !== null));
  const units = [...new Set(names.map((name) => run.metric.get(name).unit))];
  const label = (name) => {
    if (chart.under) return name.slice(chart.under.length);
    return name
      .replace(/^(reward\/|held_out\/reward_)(sampling|reasoning)$/, (_, kind, segment) =>
        kind === "reward/" ? REWARD_NAMES[segment] : `held-out ${REWARD_NAMES[segment]}`,
      )
      .replace("held_out/", "held-out ")
      .replace(/^(reward|rollout|policy|loss|grad)\//, "")
      .replaceAll("_", " ");
  };
  const colors = chart.colors ? names.map((name) => chart.colors[chart.names.indexOf(name)]) : colorsOf(run, names);
  const series = names.map((name, i) => {
    const metric = run.metric.get(name),
      values = rows.map((row) => metric.values[row]);
    const sparse = name.startsWith("held_out/");
    const smooth =
      !sparse && !chart.stacked && runView.smoothing > 1 ? movingMean(values, runView.smoothing) : undefined;
    return {
      label: label(name).replaceAll("_", " "),
      values,
      smooth,
      sparse,
      color: colors[i],
      help: `${name} (${metric.unit}): ${metric.meaning}`,
    };
  });
  const own = run.metric.get(names[0]);
  const sameMeaning = names.every((name) => run.metric.get(name).meaning === own.meaning);
  return {
    ...chart,
    series,
    width,
    cursor,
    faults: run.faults,
    unit: units.join(", "),
    steps: rows.map((row) => run.steps[row]),
    note: sameMeaning ? sentence(own.meaning) : null,
    onPick: (step) => {
      if (run.stepById.has(String(step))) location.hash = `#/steps/${step}`;
      else if (run.stepById.has(`h${step}`)) location.hash = `#/steps/h${step}`;
    },
  };
}

// What belongs to a segment has a colour of its family; a reward term belongs to the segment it is configured for.
function colorsOf(run, names) {
  const used = { sampling: 0, reasoning: 0, other: 0 };
  const segments = names.map(
    (name) =>
      ["sampling", "reasoning"].find(
        (segment) =>
          name.endsWith(segment) ||
          run.settings.get(`rewards.${name.slice(name.lastIndexOf("/") + 1)}.segment`) === segment,
      ) ?? "other",
  );
  const families = {
    sampling: SEGMENT_COLORS.sampling,
    reasoning: SEGMENT_COLORS.reasoning,
    other: segments.every((segment) => segment === "other") ? SERIES : OTHER_COLORS,
  };
  return segments.map((segment) => families[segment][used[segment]++ % families[segment].length]);
}

function sentence(text) {
  return text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "";
}

function facts(run) {
  const settings = run.settings,
    done = run.metric.get("seconds/step")?.values.filter(isNumber) ?? [];
  const planned = Number(settings.get("trainer.steps"));
  const steps = most(run.steps.filter((step, i) => isNumber(run.metric.get("seconds/step")?.values[i])).concat(0));
  const found = [planned ? `${count(steps)} of ${count(planned)} steps` : `${count(steps)} steps`];
  const total = done.reduce((sum, value) => sum + value, 0);
  if (total) found.push(`${lasting(total)} in the loop`);
  const rolledOut = (run.metric.get("rollout/trajectories")?.values ?? [])
    .filter(isNumber)
    .reduce((sum, value) => sum + value, 0);
  if (rolledOut) found.push(`${count(rolledOut)} trajectories`);
  const recovered = run.faults.count ? [`${faultWords(run.faults.count)} recovered`] : [];
  if (run.summary.loss) {
    const skipped = run.summary.skipped_examples ?? 0;
    found.push("supervised", `${settings.get("finetune.batch_size")} examples a step`);
    found.push(skipped ? `${count(skipped)} examples skipped` : "nothing skipped");
    return found.concat(recovered).map((fact) => quoted(fact));
  }
  const method = settings.get("algorithm.advantage.method");
  if (method) found.push(method.replace("sd_grpo", "SD-GRPO").replace(/^(grpo|gdpo)$/, (name) => name.toUpperCase()));
  if (settings.has("rollout.group_size"))
    found.push(`${settings.get("rollout.tasks_per_step")} groups of ${settings.get("rollout.group_size")} a step`);
  const masked = run.summary.masked ?? {};
  const lost = Object.values(masked)
    .filter(isNumber)
    .reduce((sum, value) => sum + value, 0);
  if (run.summary.masked) found.push(lost ? `${count(lost)} trajectories masked` : "nothing masked");
  return found.concat(recovered).map((fact) => quoted(fact));
}

function noticesOf(run) {
  const { count: broken, first } = run.broken;
  if (!broken && !run.notices.length) return null;
  return el(
    "section",
    { class: "notices", "aria-label": "What this page leaves out" },
    run.notices.map((notice) => el("p", {}, quoted(notice))),
    broken
      ? el(
          "details",
          {},
          el(
            "summary",
            {},
            `${count(broken)} broken ${broken === 1 ? "line or file was" : "lines or files were"} skipped`,
          ),
          el(
            "ul",
            {},
            first.map((each) => el("li", {}, quoted(each.place, { class: "path" }), " ", quoted(each.reason))),
          ),
          first.length < broken ? el("p", {}, `The first ${first.length} are listed.`) : null,
        )
      : null,
  );
}

function headline(run) {
  const known = (name) =>
    (run.metric.get(name)?.values ?? []).map((value, i) => [run.steps[i], value]).filter((pair) => isNumber(pair[1]));
  const hasHeldOut = HEADLINE.some(([name]) => known(name).length);
  const tiles = (hasHeldOut ? HEADLINE : FALLBACK)
    .map(([name, label, meaning]) => {
      const values = known(name);
      if (!values.length) return null;
      const tenth = Math.max(1, Math.floor(values.length / 10));
      const first = hasHeldOut ? values[0][1] : mean(values.slice(0, tenth).map((pair) => pair[1]));
      const last = hasHeldOut ? values[values.length - 1][1] : mean(values.slice(-tenth).map((pair) => pair[1]));
      const single = values.length === 1,
        difference = last - first;
      return el(
        "li",
        { class: "tile", title: `${name}: ${run.metric.get(name).meaning}` },
        el("p", { class: "tile-label" }, label),
        el("p", { class: "tile-value" }, short(last)),
        single
          ? el("p", { class: "tile-change" }, `at step ${values[0][0]}; one evaluation so far`)
          : el(
              "p",
              { class: "tile-change" },
              el("span", { class: "was" }, short(first)),
              el("span", { "aria-label": "to" }, " → "),
              short(last),
              el("span", { class: difference === 0 ? "even" : "delta" }, signed(difference, 3)),
            ),
        el("p", { class: "tile-note" }, meaning),
      );
    })
    .filter(Boolean);
  if (!tiles.length) return null;
  const counted = known("held_out/tasks"),
    at = counted.map((pair) => pair[0]);
  const evaluated = at.length > 1 ? `steps ${count(at[0])} and ${count(lastOf(at))}` : `step ${count(at[0] ?? 0)}`;
  return el(
    "section",
    { "aria-labelledby": "headline" },
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "headline" }, hasHeldOut ? "Before and after, on held-out tasks" : "First and last steps"),
      hasHeldOut
        ? el(
            "p",
            { class: "hint" },
            `${count(lastOf(counted.map((pair) => pair[1])) ?? 0)} tasks, greedy, at ${evaluated}`,
          )
        : null,
    ),
    el("ul", { class: "tiles" }, tiles),
  );
}
