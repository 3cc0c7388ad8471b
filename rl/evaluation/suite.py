"""The examples of an evaluation, of a benchmark or held out by the run, and what identifies it.

Part of the composition root.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.benchmarks.benchmark import Example, Prediction, RejectedExample
from envs.benchmarks.published import Published
from envs.benchmarks.registry import resolve
from rewards.registry import BUILTIN
from rl.config.errors import ConfigError
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.run.prepare.built_once import fingerprint
from rl.run.prepare.tasks import prepare_tasks
from rl.run.reporter import answer_terms

OWN = "held_out"  # the evaluation of data.held_out by the run's own rewards
POLICY_KEYS = (  # keys that decide what a policy does
    *("video.coarse.", "retrieval.", "prompt.", "policy.scenes.", "policy.dtype"),
    *("rollout.max_new_tokens", "rollout.engine.max_model_len"),
)
REWARD_KEYS = ("rewards.", "scoring.calls")  # keys that decide how it is scored, where no benchmark does


@dataclass(frozen=True, slots=True)
class EvaluationSuite:
    """Examples, and the metric that scores them."""

    name: str
    source: str  # of the metric
    headline: str  # the metric to look at first
    examples: tuple[Example, ...]
    rejected: tuple[RejectedExample, ...]
    over_groups: tuple[str, ...] = ()
    metric: Callable[[Example, Prediction | None], Mapping[str, float]] | None = None  # None: the run's rewards
    over_file: tuple[str, ...] = ()  # metrics in which the questions count 0 that were not asked
    unasked: int = 0  # questions of the file that are no example, or beyond evaluation.limit
    published: Published = field(default_factory=Published)
    left_out: tuple[RejectedExample, ...] = ()  # windows of examples that have others


def make_suite(config: RunConfig, console: Console) -> EvaluationSuite:
    """The suite that `evaluation.benchmark` names; the held-out tasks if it is empty.

    Raises:
        ConfigError: there is no such benchmark, its annotations cannot be read, or no example of it can be used.
    """
    return benchmark_suite(config) if config.evaluation.benchmark else held_out_suite(config, console)


def held_out_suite(config: RunConfig, console: Console) -> EvaluationSuite:
    """The held-out tasks of the configuration, scored by its rewards, as during training."""
    loaded = prepare_tasks(config, "held_out", console)
    return EvaluationSuite(
        name=OWN,
        source=f"data.held_out by the rewards {', '.join(config.rewards)}; means over the tasks with rewards",
        headline="accuracy" if answer_terms(config) else "reward_reasoning",
        examples=_distinct(tuple(Example(task) for task in loaded.tasks), "data.held_out"),
        rejected=tuple(RejectedExample(row.line, row.reason) for row in loaded.rejected),
    )


def benchmark_suite(config: RunConfig) -> EvaluationSuite:
    """A benchmark's examples, scored by its authors' metrics."""
    declared, path = config.evaluation, Path(config.evaluation.path)
    if not path.exists():
        raise ConfigError(f"evaluation.path: no such file or folder: {path}")
    video_root = Path(declared.video_root) if declared.video_root else path if path.is_dir() else path.parent
    if not video_root.is_dir():
        raise ConfigError(f"evaluation.video_root: no such folder: {video_root}")
    with _as_config_error("evaluation.benchmark"):
        benchmark = resolve(declared.benchmark)
    with _as_config_error(f"{path}, read as {benchmark.name}"):
        loaded = benchmark.read(path, video_root)
    if not loaded.examples:
        why = f"; the first of {len(loaded.rejected)}: {loaded.rejected[0].reason}" if loaded.rejected else ""
        raise ConfigError(f"{path}: no usable example of {benchmark.name}{why}")
    return EvaluationSuite(
        benchmark.name,
        benchmark.source,
        benchmark.headline,
        _distinct(loaded.examples, str(path)),
        loaded.rejected,
        benchmark.over_groups,
        benchmark.score,
        benchmark.over_file,
        len(loaded.rejected),
        benchmark.published,
        loaded.left_out,
    )


def limited(suite: EvaluationSuite, limit: int) -> EvaluationSuite:
    """The suite with its first examples only; 0: with all."""
    kept = suite.examples[: limit or None]
    return replace(suite, examples=kept, unasked=suite.unasked + len(suite.examples) - len(kept))


def examples_of(suite: EvaluationSuite) -> dict[str, Any]:
    """What was asked, for those who read the predictions: {benchmark, headline, examples: [{task_id, question, …}]}."""
    return {
        "benchmark": suite.name,
        "headline": suite.headline,
        "examples": [
            {
                "task_id": example.task.task_id,
                "question": example.task.question,
                "answer": example.task.answer,
                "options": list(example.options),
                "windows_s": [[window.start_s, window.end_s] for window in example.windows or example.task.evidence],
                "video": os.path.abspath(example.task.video_path),
            }
            for example in suite.examples
        ],
    }


def identity_of(config: RunConfig, suite: EvaluationSuite, policy_sha256: str) -> dict[str, Any]:
    """Everything the outcomes depend on, under flat keys: examples, policy, scoring."""
    own = suite.metric is None
    with_extra = own and not all(term.fn in BUILTIN for term in config.rewards.values())  # only users' rewards read it
    rendered = own and config.data.held_out.format == "quickstart"
    keys = (*POLICY_KEYS, *(REWARD_KEYS if own else ()), *(("data.quickstart.",) if rendered else ()))
    folder = os.path.commonpath([os.path.dirname(example.task.video_path) for example in suite.examples])
    return {key: value for key, value in _flat(to_dict(config)).items() if key.startswith(keys)} | {
        "benchmark": suite.name,
        "examples": fingerprint([_described(example, folder, with_extra) for example in suite.examples]),
        "videos": "" if rendered else folder,  # where clips of our own lie says nothing
        "policy": policy_sha256,
    }


def _distinct(examples: tuple[Example, ...], origin: str) -> tuple[Example, ...]:
    """The same examples, if no two share a task id: outcomes are found by it."""
    repeated = [name for name, times in Counter(e.task.task_id for e in examples).items() if times > 1]
    if repeated:
        raise ConfigError(f"{origin}: {len(repeated)} task ids stand for several examples, the first {repeated[0]!r}")
    return examples


def _described(example: Example, folder: str, with_extra: bool) -> list[Any]:
    """What decides an example's outcome; as before there were further windows and extra columns, where it has none."""
    task = asdict(example.task) | {"video_path": os.path.relpath(example.task.video_path, folder)}
    task = {name: value for name, value in task.items() if value not in ((), {}) and (with_extra or name != "extra")}
    return [task, [asdict(window) for window in example.windows], example.group]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def _as_config_error(where: str) -> Iterator[None]:
    """What a benchmark cannot read is for the user to fix, like a wrong key."""
    try:
        yield
    except (ValueError, OSError, LookupError, ImportError, AttributeError, TypeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"{where}: {reason}") from error
