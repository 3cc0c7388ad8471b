"""`dynframe finetune`, small and real: images and clips in three published forms, Ray, DeepSpeed; resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conversation_world import write_world

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed]

REPOSITORY = Path(__file__).parents[1]
STEPS = 24
CONFIG = """
video: {{coarse: {{fps: 1.0, min_frames: 2, max_frames: 2, max_pixels: 3136}}, decode_workers: 0}}
finetune:
  sources:
    clips:    {{format: llava, path: {llava}, held_out: 4}}
    captions: {{format: sharegpt4video, path: {sharegpt4video}, held_out: 4}}
    images:   {{format: pixmo, path: {pixmo}, media_root: {images}, held_out: 4}}
  batch_size: 16
  max_tokens: 512
  image_pixels: 3136
  num_workers: 1
learner: {{num_ranks: 1, micro_batch: 16, micro_tokens: 512, optimizer: {{lr: 4.0e-3, warmup_fraction: 0.03}}}}
placement: {{dashboard: false}}
trainer: {{steps: {steps}, save_every: 10, eval_every: 12, keep_every: 10}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    files = write_world(folder / "world")
    text = CONFIG.format(**files, images=folder / "world" / "images", steps=STEPS)
    (folder / "finetune.yaml").write_text(text)
    return folder


def finetune(home, *overrides):
    """What it said."""
    arguments = [str(home / "finetune.yaml"), f"output_dir={home}/runs", f"cache_dir={home}/cache", *overrides]
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "finetune", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "160", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return answer.stdout + answer.stderr


def lines_of(home, name):
    return [json.loads(line) for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def learned(home, name):
    """Losses of all steps, and the last checkpoint's policy and optimizer."""
    folder = home / "runs" / name / "checkpoints" / f"step_{STEPS:08d}"
    tensors = {
        f"{file.name} {key}": tensor.numpy().tobytes()
        for file in folder.rglob("*.safetensors")
        for key, tensor in load_file(file).items()
    }
    numbers = ("loss/nll", "grad/norm", "data/skipped", "held_out/nll", "state/hash")
    return [[line["step"], *(line.get(name) for name in numbers)] for line in lines_of(home, name)], tensors


@pytest.fixture(scope="module")
def straight(home):
    return finetune(home, "name=straight")


def test_a_policy_learns_from_mixed_images_and_clips_and_what_is_held_out_improves(home, straight):
    lines = lines_of(home, "straight")
    losses = [line["loss/nll"] for line in lines if "loss/nll" in line]
    assert len(losses) == STEPS and losses[0] > 5 and losses[-1] < 1
    held_out = [line for line in lines if "held_out/nll" in line]
    assert [line["step"] for line in held_out] == [0, 12, STEPS]
    for source in ("clips", "captions", "images"):
        before, _, after = (line[f"held_out/nll/{source}"] for line in held_out)
        assert after < 0.4 * before
    assert {(line["held_out/tasks"], line["held_out/failed"]) for line in held_out} == {(12.0, 0.0)}
    step = next(line for line in lines if line["step"] == 2)
    assert step["update/padding_share"] == 0 and step["update/micro_batches"] >= 2  # packed by tokens
    assert step["update/learned_tokens"] < step["update/tokens"]
    for stage in ("samples", "loss", "optimizer", "hash"):  # what `verify-resume` compares
        assert len({line[f"state/{stage}"] for line in lines if "loss/nll" in line}) == STEPS


def test_what_cannot_be_used_is_said_and_counted(home, straight):
    assert "clips/broken.mp4" in straight and "cannot be read as an image" in straight  # known when they are read
    assert sum(line.get("data/skipped", 0) for line in lines_of(home, "straight")) > 0
    (rejected,) = (home / "cache").glob("rejected_rows-finetune-*.jsonl")  # a row without a conversation
    assert "'conversations' or 'messages' is missing" in rejected.read_text()


def test_it_leaves_what_any_run_leaves(home, straight):
    run = home / "runs" / "straight"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["loss"]["last"] < summary["loss"]["first"]
    assert summary["best"]["metric"] == "-held_out/nll"
    assert f"step {STEPS}/{STEPS}  loss" in straight and "ETA" in straight and "held-out loss" in straight
    for name in ("config.yaml", "checkpoints/latest", "checkpoints/best", "tensorboard", "logs"):
        assert (run / name).exists(), name


@pytest.mark.soak
def test_a_run_that_goes_on_from_a_checkpoint_is_the_one_that_was_never_stopped_bit_for_bit(home, straight):
    checkpoint = home / "runs" / "straight" / "checkpoints" / "step_00000010"
    said = finetune(home, "name=resumed", f"resume={checkpoint}")
    assert "continuing the fine-tuning at step 10" in said
    lines, tensors = learned(home, "straight")
    again, same_tensors = learned(home, "resumed")
    assert again == [line for line in lines if line[0] > 10]
    assert len(tensors) > 50 and [key for key in tensors if tensors[key] != same_tensors[key]] == []


@pytest.mark.soak
def test_its_policy_is_exported_and_its_report_is_written(home, straight):
    for command in (
        ["export", str(home / "runs" / "straight"), str(home / "exported")],
        ["report", str(home / "runs" / "straight")],
    ):
        answer = subprocess.run(
            [sys.executable, "-m", "rl", *command],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert (home / "exported" / "model.safetensors").is_file()
    assert (home / "runs" / "straight" / "report.html").is_file()
