"""The cold start's cache: found again when nothing changed, and only then."""

from dataclasses import replace
from pathlib import Path

import pytest

from envs.data.formats import RetrievalTrace
from rl.config.data import RetrievalConfig
from rl.config.learner import ColdStartConfig, LearnerConfig, OptimizerConfig
from rl.config.rewards import RewardTermConfig
from rl.config.run import RunConfig
from rl.trajectory import AnswerKind, VideoTask

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

TRACE = RetrievalTrace(VideoTask("t", "/clips/a.mp4", "Which?", "B", AnswerKind.LETTER), ("Look.", "B"))


@pytest.fixture
def name_of():
    from rl.run.initial_policy import cold_start_fingerprint

    return cold_start_fingerprint


@pytest.fixture
def config(tmp_path):
    return RunConfig(cache_dir=str(tmp_path / "cache"), rewards={"answer": RewardTermConfig(fn="answer")})


def export(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_nothing_changed_is_a_hit(name_of, config, tmp_path):
    policy = export(tmp_path / "runs" / "policy")
    assert name_of(config, policy, [TRACE]) == name_of(config, policy, [replace(TRACE)])


def test_exports_of_one_name_in_two_runs_are_two_policies(name_of, config, tmp_path):
    one, other = (export(tmp_path / run / "policy") for run in ("a", "b"))
    assert name_of(config, one, [TRACE]) != name_of(config, other, [TRACE])


def test_an_export_written_anew_is_another_policy(name_of, config, tmp_path):
    policy = export(tmp_path / "policy")
    before = name_of(config, policy, [TRACE])
    (policy / "model.safetensors").write_bytes(b"more weights")
    assert name_of(config, policy, [TRACE]) != before


def test_a_policy_of_the_cache_is_known_by_its_name_however_often_it_is_built(name_of, config, tmp_path):
    before = name_of(config, export(tmp_path / "cache" / "tiny-0123"), [TRACE])
    elsewhere = replace(config, cache_dir=str(tmp_path / "other"))
    assert name_of(elsewhere, export(tmp_path / "other" / "tiny-0123", b"built again"), [TRACE]) == before
    assert name_of(config, export(tmp_path / "cache" / "tiny-4567"), [TRACE]) != before


def test_a_floor_of_rates_makes_another(name_of, config, tmp_path):
    """It reaches the frames of the traces' looks."""
    policy, floored = export(tmp_path / "policy"), replace(config, retrieval=RetrievalConfig(min_fps=1.0))
    assert name_of(config, policy, [TRACE]) != name_of(floored, policy, [TRACE])


def test_how_often_the_stage_is_saved_changes_nothing(name_of, config, tmp_path):
    policy, saved = export(tmp_path / "policy"), replace(config, cold_start=ColdStartConfig(save_every=7))
    assert name_of(config, policy, [TRACE]) == name_of(saved, policy, [TRACE])


@pytest.mark.parametrize(
    "other",
    [
        replace(TRACE, task=replace(TRACE.task, video_path="/clips/b.mp4")),
        replace(TRACE, task=replace(TRACE.task, question="When?")),
        replace(TRACE, task=replace(TRACE.task, task_id="u")),
        replace(TRACE, replies=("Look closer.", "B")),
    ],
)
def test_other_traces_are_a_miss(name_of, config, tmp_path, other):
    policy = export(tmp_path / "policy")
    assert name_of(config, policy, [TRACE]) != name_of(config, policy, [other])


@pytest.mark.parametrize(
    "change",
    [
        {"cold_start": ColdStartConfig(lr=1.0)},
        {"learner": LearnerConfig(optimizer=OptimizerConfig(max_grad_norm=123.0))},
        {"learner": LearnerConfig(freeze_vision=not LearnerConfig().freeze_vision)},
    ],
)
def test_other_settings_of_the_stage_are_a_miss(name_of, config, tmp_path, change):
    policy = export(tmp_path / "policy")
    assert name_of(config, policy, [TRACE]) != name_of(replace(config, **change), policy, [TRACE])
