"""The folder of an evaluation: one identity, one writer, whole lines; what cannot be used is refused, with a remedy."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.evaluation.predictions import (
    EvaluationError,
    Outcome,
    PredictionFile,
    open_folder,
    read_json,
    read_outcomes,
    write_json,
)

IDENTITY = {"benchmark": "letters", "policy": "0123", "retrieval.max_calls": 1}
OUTCOME = Outcome("q0", 0, "", {"accuracy": 1.0}, "B", ((1.0, 2.5),), "<answer>B</answer>", "answered")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "eval" / "letters"


def test_what_is_appended_is_read_back_as_it_was(folder):
    with open_folder(folder, IDENTITY) as file:
        file.append(OUTCOME)
        file.append(replace(OUTCOME, task_id="q1", index=1, answer=None, missing="v.mp4: cannot be opened"))
    with open_folder(folder, IDENTITY) as file:
        assert list(file.outcomes) == ["q0", "q1"] and file.outcomes["q0"] == OUTCOME
        assert file.next_session == 1
    assert read_outcomes(folder / "predictions.jsonl")[1].missing == "v.mp4: cannot be opened"


@given(st.text(), st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_a_policy_writes_survives(tmp_path_factory, text, answer):
    path = tmp_path_factory.mktemp("texts") / "predictions.jsonl"
    with PredictionFile(path) as file:
        file.append(replace(OUTCOME, text=text, answer=answer))
    (outcome,) = read_outcomes(path)
    assert (outcome.text, outcome.answer) == (text, answer)


def test_half_a_unicode_pair_is_no_reason_to_lose_a_line(tmp_path):
    with PredictionFile(tmp_path / "predictions.jsonl") as file:
        file.append(replace(OUTCOME, text="\ud800"))
    assert read_outcomes(tmp_path / "predictions.jsonl")[0].text == "\ud800"


def test_an_example_rolled_out_again_counts_once_with_its_last_outcome(folder):
    with open_folder(folder, IDENTITY) as file:
        file.append(replace(OUTCOME, missing="the disk was away"))
        file.append(OUTCOME)
    assert read_outcomes(folder / "predictions.jsonl") == [OUTCOME]


@pytest.mark.parametrize("torn", [b'{"task_id": "q', b"\x00" * 4096, b'{"task_id": "q1"}'])
def test_a_torn_last_line_is_cut_off_and_a_reader_passes_it_over(folder, torn):
    with open_folder(folder, IDENTITY) as file:
        file.append(OUTCOME)
    path = folder / "predictions.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert read_outcomes(path) == [OUTCOME]
    assert path.read_bytes().endswith(torn)  # reading changes nothing
    with open_folder(folder, IDENTITY) as file:
        file.append(replace(OUTCOME, task_id="q1"))
    assert [outcome.task_id for outcome in read_outcomes(path)] == ["q0", "q1"]


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '{"task_id": "q1"}', '{"task_id": 3, "index": 0}', "null"],
)
def test_a_line_in_the_middle_that_is_no_outcome_is_named_and_nothing_is_lost(folder, line):
    with open_folder(folder, IDENTITY) as file:
        file.append(OUTCOME)
    path = folder / "predictions.jsonl"
    spoiled = path.read_text() + line + "\n" + path.read_text()
    path.write_text(spoiled)
    with (
        pytest.raises(EvaluationError, match=r"predictions\.jsonl:2: no outcome .* delete the line"),
        open_folder(folder, IDENTITY),
    ):
        pass
    assert path.read_text() == spoiled


@pytest.mark.parametrize(("key", "value"), [("metrics", {"iou": "much"}), ("windows_s", [[1]]), ("index", "0")])
def test_a_number_that_is_none_is_found(tmp_path, key, value):
    with PredictionFile(tmp_path / "predictions.jsonl") as file:
        file.append(OUTCOME)
    row = json.loads((tmp_path / "predictions.jsonl").read_text()) | {key: value}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(EvaluationError, match=r"predictions\.jsonl:1: no outcome"):
        read_outcomes(tmp_path / "predictions.jsonl")


def test_results_of_other_settings_are_refused_with_what_differs_and_the_remedy(folder):
    open_folder(folder, IDENTITY)
    with pytest.raises(EvaluationError) as refused:
        open_folder(folder, IDENTITY | {"policy": "4567", "retrieval.max_calls": 0})
    assert "policy: '0123' -> '4567'; retrieval.max_calls: 1 -> 0" in str(refused.value)
    assert "evaluation.name=" in str(refused.value) and "--restart" in str(refused.value)


def test_an_evaluation_of_0_3_0_goes_on_under_the_keys_of_today(folder):
    with open_folder(folder, IDENTITY) as file:
        file.append(OUTCOME)
    (folder / "identity.json").write_text(json.dumps(IDENTITY | {"video.v0.fps": 1.0}))
    with open_folder(folder, IDENTITY | {"video.coarse.fps": 1.0}) as file:
        assert file.outcomes.keys() == {OUTCOME.task_id}
    with pytest.raises(EvaluationError, match=r"video\.coarse\.fps: 1\.0 -> 2\.0"):
        open_folder(folder, IDENTITY | {"video.coarse.fps": 2.0})


def test_a_restart_moves_the_old_results_aside(folder):
    with open_folder(folder, IDENTITY) as file:
        file.append(OUTCOME)
    with open_folder(folder, IDENTITY | {"policy": "4567"}, restart=True) as file:
        assert file.outcomes == {}
    (aside,) = folder.parent.glob("letters.*")
    assert read_outcomes(aside / "predictions.jsonl") == [OUTCOME]


def test_predictions_without_an_identity_are_refused(folder):
    with open_folder(folder, IDENTITY) as file:
        file.append(OUTCOME)
    (folder / "identity.json").unlink()
    with pytest.raises(EvaluationError, match=r"no identity\.json says of what"):
        open_folder(folder, IDENTITY)


def test_two_evaluations_do_not_write_into_one_file(folder):
    with (
        open_folder(folder, IDENTITY),
        pytest.raises(EvaluationError, match="another evaluation is writing here"),
        open_folder(folder, IDENTITY),
    ):
        pass
    with open_folder(folder, IDENTITY):
        pass  # the lock went with its holder


KILLED_AFTER_APPENDING = """
import os, signal, sys
from pathlib import Path
from rl.evaluation.predictions import Outcome, PredictionFile
with PredictionFile(Path(sys.argv[1])) as file:
    file.append(Outcome("q0", 0, "", {}, None, (), "", "answered"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_right_after_appending_loses_nothing_and_leaves_no_lock(tmp_path):
    path = tmp_path / "predictions.jsonl"
    run = subprocess.run([sys.executable, "-c", KILLED_AFTER_APPENDING, str(path)])
    assert run.returncode == -signal.SIGKILL
    with PredictionFile(path) as file:
        assert list(file.outcomes) == ["q0"]


def test_numbers_that_json_does_not_know_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"value": float("nan")})
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{", "not JSON"), ("[1]", "expected an object")]
)
def test_a_file_that_is_no_object_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(EvaluationError, match=rf"metrics\.json: {message}"):
        read_json(tmp_path / "metrics.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(EvaluationError, match="cannot be written"):
        open_folder(tmp_path / "eval", IDENTITY)
