// Where the data comes from: script elements of this file, or the server that follows a live run.

const LIVE = document.documentElement.dataset.live === "1";
const POLL_MS = 2000;

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function bytesOf(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const pageSource = {
  async index() {
    return gunzip(bytesOf(document.getElementById("run").textContent));
  },
  async step(id) {
    const part = document.getElementById(`step-${id}`);
    return part && gunzip(bytesOf(part.textContent));
  },
  async clip(id) {
    const part = document.getElementById(`clip-${id}`);
    return part && JSON.parse(part.textContent);
  },
};

const liveSource = {
  tag: null,
  // The index, or null where nothing has changed since the last one.
  async index() {
    const headers = this.tag ? { "If-None-Match": this.tag } : {};
    const answer = await fetch("data/run", { headers });
    if (answer.status === 304) return null;
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    this.tag = answer.headers.get("ETag");
    return answer.json();
  },
  async step(id) {
    return this.get(`data/step/${id}`);
  },
  async clip(id) {
    return this.get(`data/clip/${id}`);
  },
  async get(path) {
    const answer = await fetch(path);
    return answer.ok ? answer.json() : null;
  },
};

const source = LIVE ? liveSource : pageSource;

// Details and clips are kept once unpacked; the least recently used ones make room.
function keeping(load, most) {
  const kept = new Map();
  return {
    get(id) {
      const found = kept.get(id) ?? load(id);
      kept.delete(id);
      kept.set(id, found);
      if (kept.size > most) kept.delete(kept.keys().next().value);
      return found;
    },
    forget() {
      kept.clear();
    },
  };
}

const details = keeping((id) => source.step(id), 80);
const clips = keeping((id) => source.clip(id), 60);

// The reward of a segment, by the name its readers know.
const REWARD_NAMES = { sampling: "retrieval", reasoning: "answer" };

// The run as the pages use it: the index, with look-ups.
class Run {
  constructor(index) {
    Object.assign(this, index);
    this.metric = new Map(index.metrics.map((metric) => [metric.name, metric]));
    this.stepById = new Map(index.report_steps.map((step) => [step.id, step]));
    this.settings = new Map(index.config);
  }
  under(prefix) {
    return this.metrics.filter((metric) => metric.name.startsWith(prefix)).map((metric) => metric.name);
  }
  duration(group, detail) {
    const known = detail?.duration_s || group.duration_s || this.clips[group.video]?.duration_s;
    if (known) return known;
    const ends = group.siblings.flatMap((sibling) => sibling.calls.filter(isGranted).map((call) => call[1] ?? 0));
    const shown = (detail?.coarse_frames?.t ?? []).map((ms) => ms / 1000);
    return Math.max(1e-3, ...ends, ...shown, group.evidence?.[1] ?? 0);
  }
}

// In the index a granted call is [start, end, rate], with its name if it is of another tool than span_fps; one that was not is "malformed" or "refused".
function isGranted(call) {
  return Array.isArray(call);
}

// Of a call in the details: why nothing was granted, or null.
function notGranted(call) {
  const kind = ["malformed", "refused"].find((name) => call?.[name] !== undefined);
  return kind ? { kind, reason: call[kind] } : null;
}
