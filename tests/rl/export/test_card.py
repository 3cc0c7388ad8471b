"""The model card says what the run has recorded, and neither paths, nor secrets, nor anybody's markup."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from rl.config.file import with_defaults
from rl.export.card import RunFacts, adapter_card, hub_repository, model_card
from rl.policy.families import QWEN3_VL
from rl.report.evaluations import EvaluationRow
from rl.report.run_files import MetricTable

SECRET = "hf_secret"
SETTINGS = with_defaults(
    {
        "name": "sd|grpo `x`\n# title",
        "policy": {"path": "/home/somebody/models/Qwen3-VL-4B-Instruct/"},
        "data": {"train": {"format": "/home/somebody/my_formats.py:read", "path": "/data/secret/dm_rl.jsonl"}},
        "cold_start": {"enabled": True, "traces": {"format": "dm_cot", "path": r"C:\data\cot.jsonl"}},
        "retrieval": {"tools": ["span_fps", "/home/somebody/my_tools.py:Length"]},
        "prompt": {"system": "", "instructions": "Answer.\n```\n<script>alert(1)</script>\n```"},
        "rewards": {
            "judge": {
                "fn": "/home/somebody/judge.py:score",
                "segment": "reasoning",
                "weight": 0.9,
                "args": {"key": SECRET},
            }
        },
        "logging": {"wandb_project": SECRET},
        "output_dir": "/home/somebody/runs",
    }
)
STEPS = tuple(range(31))
METRICS = MetricTable(
    STEPS,
    {
        "reward/reasoning": (None, *(step / 30 for step in STEPS[1:])),
        "held_out/accuracy": tuple(0.5 if step % 10 == 0 else None for step in STEPS),
        "seconds/push": tuple(map(float, STEPS)),
    },
)
FOUND = [EvaluationRow("charades_sta", "mIoU", 0.4132, 0.38, 0.44, 3720)]


@pytest.fixture(scope="module")
def card():
    return model_card(RunFacts(QWEN3_VL, 20, SETTINGS, METRICS, FOUND))


def section(card, name):
    return card.split(f"\n## {name}\n\n", 1)[1].split("\n## ", 1)[0]


def test_it_says_where_the_policy_comes_from_and_what_it_was_trained_on(card):
    assert section(card, "Base").startswith("`Qwen3-VL-4B-Instruct`, a qwen3_vl")
    data = section(card, "Data")
    for row in (
        "| training | `my_formats.py:read` of `dm_rl.jsonl` |",
        "| cold start | `dm_cot` of `cot.jsonl` |",
        "| reward `judge` | `judge.py:score`, weight 0.9, reasoning segment |",
    ):
        assert row in data
    assert "| `policy.scenes.tau` | `0.2` |" in section(card, "Configuration")
    assert "my_tools.py:Length" in section(card, "Configuration")


def test_curves_are_means_of_at_most_twelve_stretches_up_to_the_policys_step(card):
    table = [line for line in section(card, "Curves").splitlines() if line.startswith("|")]
    assert table[0] == "| step | answer reward | held-out accuracy |" and "push" not in "".join(table)
    assert table[2] == "| 0–1 | 0.033 | 0.500 |" and table[3] == "| 2–3 | 0.083 |  |"
    assert table[-1] == "| 20 | 0.667 | 0.500 |" and len(table) <= 2 + 12


def test_evaluations_stand_with_their_intervals(card):
    assert "| `charades_sta` | `mIoU` | 0.413 | 0.380 – 0.440 | 3720 |" in section(card, "Evaluation")
    nothing = model_card(RunFacts(QWEN3_VL, 20, SETTINGS, MetricTable((), {}), []))
    assert "None recorded" in section(nothing, "Evaluation") and "has no metrics" in section(nothing, "Curves")


def test_no_path_and_no_secret_is_in_it(card):
    for hidden in ("somebody", SECRET, "/data", "C:", "output_dir", "wandb"):
        assert hidden not in card


def test_what_comes_from_outside_is_no_markup(card):
    assert r"# `sd\|grpo 'x' # title`, step 20" in card
    assert len(re.findall(r"^# ", card, re.M)) == 1
    prompt = section(card, "Prompt")
    assert prompt.startswith("instructions:\n\n````text\n") and prompt.rstrip().endswith("```\n````")
    assert card.startswith("---\nlibrary_name: transformers\n") and "licence" in section(card, "Licence").lower()


def test_its_front_matter_is_what_the_hub_reads(card):
    data = ModelCard(card, ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "video-text-to-text")
    assert data.base_model == "Qwen/Qwen3-VL-4B-Instruct" and data.to_dict()["base_model_relation"] == "finetune"
    assert {"video", "reinforcement-learning", "flexivideo"} <= set(data.tags)
    adapter = ModelCard(adapter_card(RunFacts(QWEN3_VL, 20, SETTINGS, METRICS, FOUND))).data
    assert adapter.library_name == "peft" and adapter.to_dict()["base_model_relation"] == "adapter"
    tiny = replace(RunFacts(QWEN3_VL, 20, SETTINGS, METRICS, []), settings=with_defaults({"name": "tiny"}))
    assert "base_model" not in ModelCard(model_card(tiny)).data.to_dict()


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("/home/somebody/models/Qwen3-VL-8B-Thinking", "Qwen/Qwen3-VL-8B-Thinking"),
        ("/cache/models--acme--watcher-4b/snapshots/0a1b/", "acme/watcher-4b"),
        ("acme/watcher-4b", "acme/watcher-4b"),
        ("/home/somebody/runs/first/export", ""),
        ("../exports/mine", ""),
        ("", ""),
    ],
)
def test_the_base_is_named_as_the_hub_names_it_where_its_path_tells(path, repository):
    assert hub_repository(path) == repository


def test_the_licence_of_the_base_is_told_and_that_of_the_weights_is_not_guessed(card):
    assert section(card, "Licence").startswith("Of the base model: Apache-2.0;")
    assert "\nlicense:" not in card.split("---\n")[1]
    small = SETTINGS | {"policy": SETTINGS["policy"] | {"path": "models/Qwen2.5-VL-3B-Instruct"}}
    assert "Qwen Research License" in section(model_card(RunFacts(QWEN3_VL, 20, small, METRICS, [])), "Licence")


def test_it_says_what_a_look_is(card):
    told = section(card, "The look protocol")
    assert "`<span>start - end</span><fps>rate</fps>`" in told and "at most 32" in told.replace("\n", " ")
    assert told.rstrip().endswith("which are not in this folder: `my_tools.py:Length`.") and "<zoom>" not in told


def test_it_says_what_a_zoom_is_where_the_policy_may_ask_for_one():
    zooming = SETTINGS | {"retrieval": {**SETTINGS["retrieval"], "tools": ["span_fps", "zoom"]}}
    told = section(model_card(RunFacts(QWEN3_VL, 20, zooming, METRICS, FOUND)), "The look protocol")
    assert "`<zoom>t</zoom><box>x0 y0 x1 y1</box>`" in told and "not in this folder" not in told
