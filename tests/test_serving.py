"""A policy served by vLLM on loopback, asked by the client in examples/: it looks, and answers as in training."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from envs.synthetic.clip import write_mp4
from rl.policy.episode_settings import VIDEO_PROCESSOR
from rl.trajectory import VideoTask, trajectory_tokens
from tests.calibration import within
from tests.scripted_policy import scripted_policy

REPOSITORY = Path(__file__).parents[1]
CLIENT = REPOSITORY / "examples" / "look_again_client.py"
QUESTION = "What colour flashes?"
REPLIES = (
    "<think>Unclear.</think><span>1.0 - 3.0</span><fps>4</fps>",
    "<think>Red.</think><answer>B</answer><|im_end|>",
)
SETTINGS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "4"),
    *("--kv-cache-memory-bytes", str(2**26), "--block-size", "32", "--distributed-executor-backend", "uni"),
    *("--enable-scale-out", "--generation-config", "vllm"),
)
ENVIRONMENT = {
    **{"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    **{"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Noise that changes twice a second, for four seconds."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_mp4(np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8).repeat(6, axis=0), 12, path)
    return path


@pytest.fixture
def trained(request, clip, tmp_path):
    """A policy's folder, and the trajectory that training had of the clip."""
    folder = tmp_path / "policy"
    group = scripted_policy(folder, VideoTask("t", str(clip), QUESTION, "B", "letter"), REPLIES, family=request.param)
    (folder / "preprocessor_config.json").write_text(json.dumps({"video_processor_type": VIDEO_PROCESSOR}))
    return folder, group


@contextmanager
def served(folder, *arguments):
    """The address of a server with a policy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        *SETTINGS,
        *arguments,
    ]
    log = folder.parent / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | ENVIRONMENT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, server, log)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(within(30))
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(address, server, log):
    deadline_s = time.monotonic() + within(240)
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])


def ask(address, clip, *arguments):
    command = [sys.executable, CLIENT, address, clip, QUESTION, *arguments]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=within(120))
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def chat(address, clip):
    """An OpenAI-style request with a video in it."""
    url = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": f"\n{QUESTION}"}]
    asked = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 64}
    asked |= {"stop": ["</fps>"], "include_stop_str_in_output": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=within(60)) as answer:
        return json.load(answer)


FAMILIES = ["qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.soak)]


@pytest.mark.vllm
@pytest.mark.parametrize("trained", FAMILIES, indirect=True)
def test_a_served_policy_is_asked_looks_and_answers_with_the_tokens_and_log_probs_of_training(trained, clip):
    folder, group = trained
    (trajectory,) = group.trajectories_G
    with served(folder, "--allowed-local-media-path", str(clip.parent)) as address:
        chatted = chat(address, clip)
        answer = json.loads(ask(address, clip, "--json"))
        by_path = json.loads(ask(address, clip, "--json", "--by-path"))
        printed = ask(address, clip)

    assert chatted["choices"][0]["message"]["content"] == REPLIES[0]
    assert tuple(chatted["prompt_token_ids"]) == trajectory.turns[0].context_token_ids
    assert tuple(answer["token_ids"]) == trajectory_tokens(trajectory)
    assert answer["looks"] == [
        {
            "asked": "<span>1.0 - 3.0</span><fps>4</fps>",
            "shown_s": [*trajectory.turns[1].frames.timestamps_s_T],
            "refused": "",
        }
    ]
    assert answer == by_path
    assert "shown  [1.0, " in printed and printed.endswith("<answer>B</answer>\n")
    assert np.allclose(answer["logprobs"], learner_logprobs(folder, group), atol=1e-4)


def learner_logprobs(folder, group):
    """The learner's, of the tokens that the policy wrote."""
    import torch

    from rl.config.policy import ScenesConfig
    from rl.policy.model import load_policy
    from rl.policy.processor import Processor
    from rl.policy.scoring_head import token_logprobs
    from rl.trajectory import trajectory_videos

    processor = Processor.from_pretrained(folder, ScenesConfig())
    (trajectory,) = group.trajectories_G
    token_ids, videos = trajectory_tokens(trajectory), trajectory_videos(group.coarse_frames, trajectory.turns)
    with torch.no_grad():
        scores_1T, _ = token_logprobs(
            load_policy(folder, processor.scenes),
            torch.tensor([token_ids]),
            None,
            torch.from_numpy(processor.positions(token_ids, videos))[:, None],
            [processor.pack(video) for video in videos],
            allowed_V=torch.from_numpy(processor.allowed_token_mask()),
        )
    said = [flag for turn in trajectory.turns for flag in _said(turn)]
    return scores_1T[0][torch.tensor(said)].tolist()


def _said(turn):
    return [False] * len(turn.context_token_ids) + [True] * len(turn.completion.token_ids)


@pytest.mark.soak
@pytest.mark.parametrize("trained", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_dynframe_ask_rolls_out_the_trajectory_of_training_and_writes_its_page(trained, clip, tmp_path):
    folder, group = trained
    page = tmp_path / "answer.html"
    command = [sys.executable, "-m", "rl", "ask", folder, clip, QUESTION, "--html", page, "--json"]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=within(200))

    assert done.returncode == 0, done.stderr[-2000:]
    *lines, as_json = done.stdout.strip().splitlines()
    record = json.loads(as_json)
    (trajectory,) = group.trajectories_G
    assert record["text"] == trajectory.answer_text and record["stop"] == "answered"
    assert record["turns"][1]["frames"]["timestamps_s"] == pytest.approx(trajectory.turns[1].frames.timestamps_s_T)
    said = "\n".join(lines)
    assert "turn 2: " in said and "<answer>B</answer>" in said and "was shown 8 frames at 1.00, 1.25" in said
    assert page.stat().st_size > 20_000
