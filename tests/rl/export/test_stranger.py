"""An export in a process without this package: the same log-probs, the same text, and loud errors where it must."""

import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.prompts import initial_prompt
from rl.export.folder import write_export
from rl.policy.families import FAMILIES
from rl.policy.given_frames import resized
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.scoring_head import token_logprobs
from tests.rl.export.conftest import EPISODE, FORM, SCENES, make_policy

STOCK = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
CHAT = "Which colour is shown?"
log = logging.getLogger(__name__)  # what was measured: pytest --log-cli-level=INFO


CASES = [(name, head) for name in FAMILIES for head in ("own", "tied")]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """By family and head: a policy's folder, beside it its export."""
    home, found = tmp_path_factory.mktemp("exports"), {}
    for name, head in CASES:
        folder = make_policy(FAMILIES[name], home / f"{name}_{head}", tied=head == "tied")
        write_export(folder, exported(folder), EPISODE, "# card\n")
        found[name, head] = folder
    return found


@pytest.fixture(scope="module")
def told(policies, clip):
    """What one stranger was told where loading must fail, by family; its results lie in the exports."""
    home = policies["qwen3_vl", "own"].parent
    np.save(home / "clip.npy", clip[0])
    failing = {}
    for name, stock in STOCK.items():
        folder = policies[name, "own"]
        without = Path(shutil.copytree(exported(folder), home / f"{name}_without_code"))
        for path in without.glob("*.py"):
            path.unlink()
        failing[name] = {
            "exported": str(exported(folder)),
            "stock": stock,
            "no_code": str(without),
            "not_exported": str(folder),
        }
    job = {
        "folders": [str(exported(folder)) for folder in policies.values()],
        "failing": failing,
        "clip": str(home / "clip.npy"),
        "times_s": clip[1],
        "chat": CHAT,
        "told": str(home / "told.json"),
    }
    (home / "job.json").write_text(json.dumps(job))
    program = Path(__file__).with_name("stranger.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), sysconfig.get_path("purelib"), str(home / "job.json")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1"},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "told.json").read_text())


def exported(folder):
    return folder.with_name(f"{folder.name}_exported")


@pytest.mark.cli
@pytest.mark.parametrize(("name", "head"), CASES)
def test_its_log_probs_and_its_text_are_ours(name, head, policies, told, clip):
    folder = policies[name, head]
    found = np.load(exported(folder) / "results.npz")
    model, inner = load_policy(folder, SCENES).eval(), Processor.from_pretrained(folder, SCENES)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (head == "tied")
    size = inner.fit(*clip[0].shape[1:3], EPISODE["coarse"]["max_pixels"])
    coarse, window = (
        inner.make_frames(resized(clip[0][some], size), clip[1][some]) for some in (slice(None), slice(1, 4))
    )
    prompt = list(initial_prompt("Which colour?", coarse, inner, FORM))
    assert found["asked"].tolist() == prompt
    written = greedy(model, inner, prompt, [coarse])
    assert found["written"].tolist() == written
    whole = [*written, *inner.video_block(window)]
    assert found["looked"].tolist() == whole
    assert found["answered"].tolist() == greedy(model, inner, whole, [coarse, window])
    ids = torch.tensor([whole])
    allowed = torch.ones(inner.geometry.vocab_size, dtype=torch.bool)
    videos = [coarse, window]
    with torch.no_grad():
        ours, _ = token_logprobs(
            model, ids, None, positions(inner, whole, videos), packed(inner, videos), allowed_V=allowed
        )
    difference = float(np.abs(ours[0, 1:].numpy() - found["log_probs"]).max())
    spread = float(ours[0, 1:].std())
    log.info("%s %s: log-probs differ by at most %.1e nat, and spread by %.1f nat", name, head, difference, spread)
    assert difference <= 1e-5 and spread >= 1
    assert float(found["loss"]) == pytest.approx(-float(ours[0, 1:].mean()), abs=1e-4)


@pytest.mark.cli
@pytest.mark.parametrize("name", FAMILIES)
def test_the_chat_template_comes_with_our_video_blocks(name, policies, told, clip):
    folder = policies[name, "own"]
    inner = Processor.from_pretrained(folder, SCENES)
    size = inner.fit(*clip[0].shape[1:3], EPISODE["coarse"]["max_pixels"])
    block = inner.video_block(inner.make_frames(resized(clip[0], size), clip[1]))
    before, after = inner.encode("<|im_start|>user\n"), inner.encode(f"{CHAT}<|im_end|>\n<|im_start|>assistant\n")
    assert np.load(exported(folder) / "results.npz")["chatted"].tolist() == [*before, *block, *after]


@pytest.mark.cli
@pytest.mark.parametrize("name", FAMILIES)
def test_loading_it_otherwise_fails_and_says_what_to_do(name, told):
    said = told[name]
    assert said["no trust"].startswith("ValueError") and "trust_remote_code=True" in said["no trust"]
    assert "trust_remote_code=True" in said["no trust, processor"]
    assert "use AutoModelForImageTextToText with trust_remote_code=True" in said["stock class"]
    assert "configuration.py" in said["no code"]
    assert f"flexivideo_{name}" in said["not exported"] and "does not recognize" in said["not exported"]


def positions(inner, token_ids, videos):
    return torch.from_numpy(inner.positions(token_ids, videos))[:, None]


def packed(inner, videos):
    return [inner.pack(frames) for frames in videos]


def greedy(model, inner, token_ids, videos):
    generated = model.generate(
        torch.tensor([token_ids]),
        position_ids=positions(inner, token_ids, videos),
        videos=packed(inner, videos),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return generated[0].tolist()
