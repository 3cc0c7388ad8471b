"""`dynframe eval` around its workers: whose policy, what is reported, and what is said about it."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from envs.benchmarks.benchmark import Example, RejectedExample
from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.evaluation.predictions import Outcome
from rl.evaluation.readings import both_readings
from rl.evaluation.run_evaluation import _report_rejected, policy_sha256, with_policy_of
from rl.evaluation.suite import EvaluationSuite, identity_of
from rl.evaluation.summary import make_report, print_report
from rl.trajectory import AnswerKind, RunState, VideoTask

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

CONFIG = load_config([Path(__file__).parents[3] / "configs" / "quickstart.yaml"])
EXAMPLES = tuple(
    Example(VideoTask(f"q{i}", f"/v{i}.mp4", "Which?", "B", AnswerKind.LETTER), group=group)
    for i, group in enumerate(("short", "short", "long"))
)
SUITE = EvaluationSuite(
    "letters", "by hand", "accuracy", EXAMPLES, (RejectedExample(7, "no such video"),), ("accuracy",), dict
)
OUTCOMES = [
    Outcome("q0", 0, "short", {"accuracy": 1.0, "unparsed": 0.0}, "B", (), "B", "answered", elapsed_s=1.0),
    Outcome("q1", 1, "short", {"accuracy": 0.0, "unparsed": 1.0}, None, (), "…", "truncated", elapsed_s=1.5),
    Outcome("q2", 2, "long", {"accuracy": 0.0}, None, (), "", "video_error", missing="gone", elapsed_s=2.0),
]


def report():
    identity = identity_of(CONFIG, SUITE, "0123")
    return make_report(CONFIG, SUITE, OUTCOMES, identity, {"folder": "/policy", "sha256": "0123"})


def test_a_report_is_strict_json_with_everything_that_explains_its_numbers():
    said = json.loads(json.dumps(report(), allow_nan=False))
    assert said["metrics"]["accuracy"]["value"] == 0.25  # the mean of short (1 of 2) and long (0 of 1)
    assert said["metrics"]["unparsed"]["n"] == 2  # a missing prediction has none
    assert said["counts"] == {
        **{"examples": 3, "rejected": 1, "missing": 1, "video_errors": 1},
        **{"truncated": 1, "unparsed": 1, "failed": 0, "unanswerable": 0, "left_out": 0},
    }
    assert (said["benchmark"], said["source"], said["retrieval"]) == ("letters", "by hand", True)
    assert (said["seconds"], said["tasks_per_s"], said["policy"]["sha256"]) == (2.0, 1.5, "0123")
    assert len(said["fingerprint"]) == 12 and said["identity"]["retrieval.max_calls"] == 1


def test_the_table_begins_with_the_headline_and_ends_with_what_went_wrong():
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(report(), console)
    shown = console.export_text()
    rows = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert rows[2:5] == ["accuracy", "long", "short"]
    assert "letters: 3 examples, 1.5 per second" in shown
    assert "1 rows of the annotations left out" in shown and "1 without a prediction" in shown
    assert "1 ran out of tokens" in shown


@pytest.mark.parametrize(("reading", "values"), [("strict", (0.25, 0.5)), ("lenient", (0.5, 0.25))])
def test_the_table_always_has_both_readings_and_the_plain_name_is_the_chosen_one(reading, values):
    leniently = [
        replace(one, metrics=both_readings(one.metrics, {**one.metrics, "accuracy": right, "unparsed": 0.0}))
        for one, right in zip(OUTCOMES, (1.0, 1.0, 0.0), strict=True)
    ]
    config = replace(CONFIG, evaluation=replace(CONFIG.evaluation, reading=reading))
    said = make_report(config, SUITE, leniently, {}, {})
    other = {"strict": "lenient/accuracy", "lenient": "strict/accuracy"}[reading]
    assert (said["metrics"]["accuracy"]["value"], said["metrics"][other]["value"]) == values  # means over groups, too
    assert said["counts"]["unparsed"] == {"strict": 1, "lenient": 0}[reading]
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(said, console)
    shown = console.export_text()
    assert [line.split()[0] for line in shown.splitlines() if "accuracy" in line] == ["accuracy", other]
    assert ("answers read leniently" in shown) == (reading == "lenient")


def test_rows_left_out_lie_in_a_file_or_stop_the_evaluation(tmp_path):
    _report_rejected(SUITE, tmp_path / "rejected.jsonl", "skip")
    assert json.loads((tmp_path / "rejected.jsonl").read_text()) == {"line": 7, "reason": "no such video"}
    with pytest.raises(ConfigError, match=r"1 bad rows, all in .*data\.bad_rows=skip leaves them out"):
        _report_rejected(SUITE, tmp_path / "rejected.jsonl", "refuse")
    _report_rejected(replace(SUITE, rejected=()), tmp_path / "rejected.jsonl", "refuse")
    assert not (tmp_path / "rejected.jsonl").exists()  # of an earlier version of the data


def test_a_policy_is_known_by_its_content_wherever_it_lies(tmp_path):
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "model.safetensors").write_bytes(b"weights")
    (policy / "config.json").write_text("{}")
    before = policy_sha256(policy)
    assert policy_sha256(shutil.copytree(policy, tmp_path / "copy")) == before
    (policy / "README.md").write_text("notes")
    assert policy_sha256(policy) == before
    (policy / "config.json").write_text('{"a": 1}')
    assert policy_sha256(policy) != before


def test_the_policy_of_a_run_takes_the_place_of_the_configured_one_and_other_settings_are_printed(tmp_path):
    store = CheckpointStore(tmp_path)
    found = store.commit(store.begin(5), RunState(5, 6, seed=0), to_yaml(CONFIG))
    console = Console(width=200, record=True, file=io.StringIO())
    blind = replace(CONFIG, retrieval=replace(CONFIG.retrieval, max_calls=0))
    blind = replace(blind, policy=replace(blind.policy, path="open/tiny", revision="v1"))
    config, origin = with_policy_of(found, blind, console)
    assert config.policy.path == str(found.folder / "policy") and not config.cold_start.enabled
    assert config.policy.revision == ""  # that was of the repository
    assert origin == {"checkpoint": str(found.folder), "step": 5, "version": 6}
    assert "other settings than it was trained with: retrieval.max_calls: 1 -> 0" in console.export_text()


def test_a_checkpoint_of_0_3_0_has_no_other_settings_because_its_keys_were_called_otherwise(tmp_path):
    store, old = CheckpointStore(tmp_path), to_yaml(CONFIG).replace("  coarse:\n", "  v0:\n")
    found = store.commit(store.begin(5), RunState(5, 5, seed=0), old)
    console = Console(record=True, file=io.StringIO())
    with_policy_of(found, CONFIG, console)
    assert "v0:" in old and console.export_text() == ""
