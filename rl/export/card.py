"""The model card of an export: README.md, written from what the run has recorded, and nothing else.

No path of a machine and no value of user code's arguments is in it: of every path the last part, of every section the
keys that say how the policy came to be. What comes from outside stands in code, where it is no markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import yaml

from rl import __version__
from rl.config.data import BUILTIN_TOOLS, ZOOM
from rl.config.policy import HUB_ID, PolicyConfig
from rl.policy.families import Family
from rl.policy.sizes import published_as
from rl.report.evaluations import EvaluationRow
from rl.report.run_files import MetricTable, Number

LICENCE = (
    "Of these weights: not stated by the run. What the licences of the base model and of the data ask for holds for "
    "them, too; say here, and as `license` above, which licence you give them. The Python files beside the weights are "
    "dynframe-rl's, Apache-2.0."
)
TAGS = ("video", "reinforcement-learning", "flexivideo", "dynframe")
IN_CACHE = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/|$)")  # how the hub's cache names a repository's folder
MOST_ROWS = 12  # of the curves
CURVES = {  # metric: its heading; those that the run reported
    "reward/sampling": "retrieval reward",
    "reward/reasoning": "answer reward",
    "held_out/reward_sampling": "held-out retrieval reward",
    "held_out/reward_reasoning": "held-out answer reward",
    "held_out/accuracy": "held-out accuracy",
    "rollout/granted_calls": "looked again",
    "policy/entropy": "entropy, nat",
    "loss/kl": "KL, nat",
}
SHOWN = (  # sections and keys of the configuration
    *("seed", "policy.dtype", "policy.scenes", "policy.tiny", "policy.lora", "video.coarse", "retrieval"),
    *("rollout.group_size", "rollout.tasks_per_step", "rollout.temperature", "rollout.max_new_tokens"),
    *("algorithm", "learner.optimizer", "learner.freeze_vision", "learner.num_ranks", "learner.zero_stage"),
    *("cold_start.enabled", "cold_start.steps", "cold_start.batch_size", "trainer.steps"),
)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of the policy and of the run that it comes from."""

    family: Family
    step: int
    settings: Mapping[str, Any]  # the configuration, every default filled in
    metrics: MetricTable
    evaluations: Sequence[EvaluationRow]


def model_card(facts: RunFacts) -> str:
    """The text of README.md."""
    parts = (
        _head(facts),
        _usage(facts),
        "## The look protocol\n\n" + _protocol(facts.settings["retrieval"]),
        "## Base\n\n" + _base(facts),
        "## Data\n\n" + _table(("", ""), _data(facts.settings)),
        "## Configuration\n\n" + _table(("key", "value"), _configuration(facts.settings)),
        "## Curves\n\n" + _curves(facts.metrics, facts.step),
        "## Evaluation\n\n" + _evaluations(facts.evaluations),
        "## Prompt\n\n" + _prompt(facts.settings["prompt"]),
        f"## Licence\n\n{_licence(facts)}",
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def adapter_card(facts: RunFacts) -> str:
    """The text of README.md of what LoRA has trained."""
    parts = (
        f"""{_front_matter(facts, "peft", "adapter")}

# {_code(facts.settings["name"])}, step {facts.step:,}, low-rank updates

For the policy that the run began with: {_base(facts)} Export that with `dynframe export RUN BASE --base`.""",
        """## Use

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained(BASE, trust_remote_code=True, dtype="auto")
model = PeftModel.from_pretrained(base, FOLDER)
```

Prompts and videos are made by the processor in BASE; its README.md shows how.""",
        "## Configuration\n\n" + _table(("key", "value"), _configuration(facts.settings)),
        "## Curves\n\n" + _curves(facts.metrics, facts.step),
        "## Evaluation\n\n" + _evaluations(facts.evaluations),
        f"## Licence\n\n{_licence(facts)}",
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def base_name(facts: RunFacts) -> str:
    """The last part of `policy.path`; the family's name where the policy was built by this project."""
    path = str(facts.settings["policy"]["path"])
    return str(_last(path)) if path else facts.family.model_type


def hub_repository(path: str) -> str:
    """The repository of `policy.path` on the hub; empty where its name does not tell.

    A repository itself, a folder of the hub's cache, or a folder that is called as a published checkpoint is.
    """
    if cached := IN_CACHE.search(path):
        return f"{cached[1]}/{cached[2]}"
    if published := published_as(path):
        return f"{published.repository.partition('/')[0]}/{_last(path)}"
    return path if HUB_ID.fullmatch(path) and PolicyConfig(path=path).is_on_hub else ""


def _front_matter(facts: RunFacts, library: str, relation: str) -> str:
    """What the hub reads of a card: YAML, between lines of three hyphens."""
    data: dict[str, object] = {"library_name": library, "pipeline_tag": "video-text-to-text"}
    if repository := hub_repository(str(facts.settings["policy"]["path"])):
        data |= {"base_model": repository, "base_model_relation": relation}
    tags = [*TAGS, "lora"] if library == "peft" else [*TAGS]
    return f"---\n{yaml.safe_dump(data | {'tags': tags}, sort_keys=False)}---"


def _head(facts: RunFacts) -> str:
    return f"""{_front_matter(facts, "transformers", "finetune")}

# {_code(facts.settings["name"])}, step {facts.step:,}

A video language model that looks again: it sees coarse frames of a clip, may ask for more frames of one time window,
`<span>start - end</span><fps>rate</fps>`, and answers in `<answer></answer>`. Trained by reinforcement learning with
dynframe-rl {__version__} from {facts.family.model_type} with FlexiVideo's scene encoder. It reads text and video,
no images."""


def _usage(facts: RunFacts) -> str:
    return f"""## Use

transformers {transformers.__version__}, torch {torch.__version__.split("+")[0]}, and `pip install numba av`. The folder
brings its own code, which runs only if you say so: read it, then `trust_remote_code=True`.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True, dtype="auto")

inputs = processor.ask("What does she pick up?", "clip.mp4").to(model.device)     # the prompt it was trained on
written = model.generate(**inputs, max_new_tokens=512, eos_token_id=processor.stop_ids)
call = processor.read_call(written, duration_s=30.0)      # a request for frames, None if it has answered
if hasattr(call, "span"):
    inputs = processor.look(written, inputs, processor.window("clip.mp4", call)).to(model.device)
elif call is not None:
    inputs = processor.refuse(written, inputs, call.reason).to(model.device)
if call is not None:
    written = model.generate(**inputs, max_new_tokens=512, eos_token_id=processor.stop_ids)
print(processor.decode(written[0]))
```

In training an answer had up to {facts.settings["retrieval"]["max_calls"]} looks (`processor.max_calls`).

A video is a file (with a constant frame rate), a URL, or frames with their times: `(frames, {{"times_s": [0.0, 0.5]}})`
or `(frames, {{"fps": 2.0}})`, frames being uint8 arrays, tensors or PIL images. As a chat:

```python
content = [{{"type": "video", "video": (frames, {{"fps": 2.0}})}}, {{"type": "text", "text": "What does she pick up?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], tokenize=True, return_dict=True, add_generation_prompt=True
)
```

In vLLM, where `pip install dynframe-rl` registers the architecture; `trust_remote_code` is not needed:

```bash
vllm serve FOLDER --host 127.0.0.1
```

Classes of stock Qwen models refuse this folder: they know neither its patch kernel nor its scenes."""


def _protocol(limits: Mapping[str, Any]) -> str:
    granted = f"at least 1 and at most {limits['max_frames']}"
    bounds = f"it has to last {limits['min_window_s']} s, and the rate is at most {limits['max_fps']}"
    return f"""The policy writes `<span>start - end</span><fps>rate</fps>`: seconds from the start of the clip, and
frames per second. Whoever runs it stops there, decodes `floor((end - start) * rate)` frames at `start + i / rate`,
{granted}, inserts them into the same answer as a video block, and lets it write on. The window is
clamped to the clip; {bounds} and the clip's own. A call that cannot be
granted is answered with a line of text that says why. The answer stands in `<answer></answer>`. `processor.read_call`,
`processor.look` and `processor.refuse` do all of this.{_further_tools(limits)}"""


def _further_tools(limits: Mapping[str, Any]) -> str:
    """What the policy may ask for beside looks."""
    told, others = "", [name for name in limits["tools"] if name not in BUILTIN_TOOLS]
    if ZOOM in limits["tools"]:
        told = f"""

`<zoom>t</zoom><box>x0 y0 x1 y1</box>` asks for a region of the frame on screen at t seconds: left, top, right, bottom
in thousandths of its width and height, brought to about {limits["zoom_max_pixels"]:,} pixels. dynframe-rl
inserts it, and so does the client of its server; the processor of this folder answers looks alone."""
    if others:
        named = ", ".join(_code(_last(name)) for name in others)
        told += f"\n\nIt was trained with tools of the run's own, which are not in this folder: {named}."
    return told


def _base(facts: RunFacts) -> str:
    path, family = str(facts.settings["policy"]["path"]), facts.family
    if not path:
        seed = facts.settings["seed"]
        return f"None: a random {family.model_type} of the project's tiny size (`policy.tiny`), built from seed {seed}."
    return f"{_code(_last(path))}, a {family.model_type} such as {_code(family.on_the_hub)}."


def _licence(facts: RunFacts) -> str:
    """Of the base, where its name tells; of the weights, what has to be said of them."""
    path = str(facts.settings["policy"]["path"])
    published = published_as(hub_repository(path) or path) if path else None
    if published is not None:
        of_base = f"Of the base model: {published.licence}; its model card has the terms. "
    else:
        of_base = "Of the base model: its name does not tell; see where it comes from. " if path else ""
    return of_base + LICENCE


def _data(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sources = {"training": ("data", "train"), "held out": ("data", "held_out"), "cold start": ("cold_start", "traces")}
    for name, (section, key) in sources.items():
        source = settings[section].get(key)
        if isinstance(source, Mapping) and (section != "cold_start" or settings["cold_start"]["enabled"]):
            path = f" of {_code(_last(source['path']))}" if source.get("path") else ""
            yield name, f"{_code(_last(source['format']))}{path}"
    for name, term in settings["rewards"].items():
        told = f"{_code(_last(term['fn']))}, weight {term['weight']}, {term['segment']} segment"
        yield f"reward {_code(name)}", told


def _configuration(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for dotted in SHOWN:
        found: Any = settings
        for key in dotted.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if dotted == "policy.tiny" and settings["policy"]["path"]:
            continue
        if dotted == "policy.lora" and not settings["policy"]["lora"]["rank"]:
            continue
        yield from _leaves(found, dotted)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}")
    elif tree is not None:
        yield _code(prefix), _code(_shown(tree))


def _shown(value: Any) -> Any:
    """Without folders of the machine that trained."""
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return _last(value) if isinstance(value, str) else value


def _curves(table: MetricTable, step: int) -> str:
    """Means over equal stretches of steps, of the numbers that the run has reported up to the policy's step."""
    rows = [row for row, at in enumerate(table.steps_S) if at <= step]
    names = [name for name in CURVES if any(_known(table.columns.get(name, ()), rows))]
    if not names:
        return "The run's folder has no metrics."
    size = max(1, -(-len(rows) // MOST_ROWS))
    stretches = [rows[first : first + size] for first in range(0, len(rows), size)]
    body = []
    for stretch in stretches:
        means = [list(_known(table.columns[name], stretch)) for name in names]
        first, last = table.steps_S[stretch[0]], table.steps_S[stretch[-1]]
        steps = f"{first}" if first == last else f"{first}–{last}"
        body.append((steps, *(f"{sum(found) / len(found):.3f}" if found else "" for found in means)))
    return "Means over the steps of each row.\n\n" + _table(("step", *(CURVES[name] for name in names)), body)


def _known(column: Sequence[Number], rows: Sequence[int]) -> Iterator[float]:
    return (value for row in rows if row < len(column) and isinstance(value := column[row], float))


def _evaluations(found: Sequence[EvaluationRow]) -> str:
    if not found:
        return "None recorded: `dynframe eval CONFIG --run RUN`."
    body = [
        (
            _code(row.benchmark),
            _code(row.metric),
            f"{row.value:.3f}",
            f"{row.low:.3f} – {row.high:.3f}" if row.low is not None and row.high is not None else "",
            "" if row.count is None else str(row.count),
        )
        for row in found
    ]
    return _table(("benchmark", "metric", "value", "95 % interval", "n"), body)


def _prompt(prompt: Mapping[str, Any]) -> str:
    parts = [(name, str(prompt[name])) for name in ("system", "instructions") if prompt.get(name)]
    if not parts:
        return "The question alone; neither a system message nor instructions."
    return "\n\n".join(f"{name}:\n\n{_fenced(text)}" for name, text in parts)


def _table(heading: Sequence[str], body: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _last(path: object) -> str:
    """What of a path, a URL or "folder/file.py:function" says which one it is and not where it lies."""
    return re.split(r"[/\\]", str(path).rstrip("/\\"))[-1]


def _code(value: object) -> str:
    """A value as code in running text or in a table: one line, and nothing in it is markup."""
    text = "".join(c if c.isprintable() else " " for c in str(value))[:200].replace("|", r"\|").replace("`", "'")
    return f"`{text.strip() or ' '}`"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
