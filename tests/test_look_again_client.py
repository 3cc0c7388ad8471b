"""The client in examples/ against a stand-in for its server: its turns read the tokens of training, refused looks too.

With a real server: tests/test_serving.py.
"""

import asyncio
import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from envs.initial_observation import CoarseFrameRules, decode_coarse
from envs.prompts import PromptFormat, encode_reply
from envs.rollout import EpisodeContext, run_group
from envs.synthetic.clip import write_mp4
from envs.tools.rules import RetrievalRules
from envs.video.reader import VideoReader
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.families import FAMILIES
from rl.policy.layout import expand_blocks
from rl.policy.processor import Processor
from rl.policy.tiny_tokenizer import tiny_processor, train_tokenizer
from rl.trajectory import Sampling, VideoTask, trajectory_tokens
from tests.fakes import ScriptedEngine

sys.path.append(str(Path(__file__).parents[1] / "examples"))
FORM = {"system": "You watch.", "instructions": "Think, then answer in <answer></answer>."}
QUESTION = "Is it <span>red</span> or <|video_pad|>?"
LOOK = "<think>Unclear.</think><span>1.0 - 3.0</span><fps>4</fps>"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_mp4(np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8).repeat(6, axis=0), 12, path)
    return path


@pytest.fixture(params=FAMILIES)
def processor(request, tmp_path):
    """Of a policy whose folder says what it was trained with."""
    tiny = TinyPolicyConfig(family=request.param)
    episode = {"coarse": {}, "retrieval": {"max_calls": 1}, "prompt": FORM}
    (tmp_path / "processor_config.json").write_text(json.dumps({"episode": episode}))
    patch = {"patch_size": 14 if request.param == "qwen2_5_vl" else 16, "spatial_merge_size": 2}
    vision = patch | ({"tokens_per_second": 2} if request.param == "qwen2_5_vl" else {})
    text = {"vocab_size": tiny.vocab_size, "rope_parameters": {"mrope_interleaved": True}}
    config = {"model_type": request.param, "vision_config": vision, "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tiny_processor(tiny, ScenesConfig(), tmp_path)


class StandIn:
    """What the client asks of a server, with the server's own way of writing blocks and a policy that says a script."""

    def __init__(self, processor: Processor, tokenizer: Tokenizer, clip: Path, script: list[list[int]]) -> None:
        self._processor, self._tokenizer, self._clip, self._script = processor, tokenizer, clip, script
        self._turns = 0

    def tokens_of(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def generate(self, token_ids, video_urls, *, temperature, max_tokens, stop_token_ids):
        blocks = [self._processor.video_block(self._frames(url)) for url in video_urls]
        said = self._script[self._turns][:max_tokens]
        self._turns += 1
        choice = {"token_ids": said, "text": self._processor.decode(said)}
        choice["logprobs"] = {"content": [{"logprob": -0.5}] * len(said)}
        return {"prompt_token_ids": expand_blocks(token_ids, blocks, self._processor.ids), "choices": [choice]}

    def _frames(self, url):
        kind, data = url.split(";base64,")
        if kind == "data:video/x-npz":
            with np.load(io.BytesIO(base64.b64decode(data))) as archive:
                return self._processor.make_frames(archive["frames"], archive["times_s"].tolist())
        with VideoReader(workers=0) as reader:
            _, *decoded = decode_coarse(
                str(self._clip), processor=self._processor, reader=reader, rules=CoarseFrameRules()
            )
        return self._processor.make_frames(*decoded)


def in_training(processor, clip, script):
    with VideoReader(workers=0) as reader:
        rules = CoarseFrameRules(), RetrievalRules(max_calls=1)
        context = EpisodeContext(processor, reader, *rules, max_model_len=4096, form=PromptFormat(**FORM))
        task = VideoTask("t", str(clip), QUESTION, "B", "letter")
        options = {"generate": ScriptedEngine([script]), "episode_context": context, "seed": 0, "step": 0}
        return asyncio.run(run_group(task, group_size=1, sampling=Sampling(256), **options)).trajectories_G[0]


@pytest.mark.parametrize(
    ("replies", "refused"),
    [
        (["<think>Red.</think><answer>B</answer>"], []),
        ([LOOK, "<answer>B</answer>"], [""]),
        (["<span>3.0 - 1.0</span><fps>4</fps>", LOOK, "<answer>B</answer>"], ["reversed", ""]),
        ([LOOK, LOOK, "<answer>B</answer>"], ["", "the limit of 1 per answer is reached"]),
        (["<think>what</fps>", "<answer>B</answer>"], ["no time span"]),
    ],
)
def test_every_turn_reads_the_tokens_of_training(processor, clip, replies, refused):
    from look_again_client import ask

    script = [list(encode_reply(reply, processor)) for reply in replies]
    script[-1].append(processor.ids.im_end)
    server = StandIn(processor, train_tokenizer(TinyPolicyConfig().vocab_size), clip, script)
    answer = ask(server, clip, QUESTION, folder=processor.folder)

    assert answer.token_ids == trajectory_tokens(in_training(processor, clip, script))
    assert answer.text == "".join(replies) and len(answer.logprobs) == sum(map(len, script))
    assert [bool(look.shown_s) for look in answer.looks] == [not cause for cause in refused]
    assert all(cause in look.refused for look, cause in zip(answer.looks, refused, strict=True))


def test_an_answer_ends_where_its_allowance_does(processor, clip):
    from look_again_client import ask

    script = [list(encode_reply(LOOK, processor)), [*encode_reply("<answer>B", processor)] * 20]
    server = StandIn(processor, train_tokenizer(TinyPolicyConfig().vocab_size), clip, script)
    answer = ask(server, clip, QUESTION, folder=processor.folder, max_tokens=len(script[0]) + 3)
    assert len(answer.logprobs) == len(script[0]) + 3


KEY = "a-key"


class Guarded(BaseHTTPRequestHandler):
    """A server with an API key, which has a model and then fails."""

    def answer(self):
        welcome = self.headers["Authorization"] == f"Bearer {KEY}"
        status = (200 if self.command == "GET" else 500) if welcome else 401
        body = json.dumps({"data": [{"id": "policy", "root": "."}]} if status == 200 else {"error": "no"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def guarded():
    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", '/v1/models: 401: {"error": "no"}; put the server\'s API key into the environment as VLLM_API_KEY'),
        ("another", "/v1/models: 401"),
        (f"{KEY}\n", "/tokenize: 500"),  # let in; as a key read from a file ends
    ],
)
def test_the_servers_key_comes_from_the_environment(guarded, clip, monkeypatch, capsys, key, said):
    from look_again_client import main

    monkeypatch.setenv("VLLM_API_KEY", key)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # somebody else's: never sent
    monkeypatch.setattr(sys, "argv", ["look_again_client.py", guarded, str(clip), "What?"])
    assert main() == 1
    assert said in capsys.readouterr().err
