"""Ask a served policy about a video, and show it the frames that it asks for: the environment's loop, over HTTP.

    vllm serve exported --host 127.0.0.1 --port 8000 --enable-scale-out --generation-config vllm
    python examples/look_again_client.py http://127.0.0.1:8000 clip.mp4 "What colour flashes?"

The server decodes the coarse view that the policy was trained with. The policy may answer, or call a tool of its
training, as for a window (`<span>2.0 - 4.5</span><fps>4</fps>`), and stop. What it asks for is cut here and sent, and
the policy goes on.

Every turn is token ids, sent to `/inference/v1/generate`: those the server had read, those the policy wrote, and one
placeholder for the new frames, in whose place the server writes their block. So each turn reads exactly what it would
have read in training. Chat completions answer questions about videos, too, but a chat message would have to be encoded
again, no template puts a video into an assistant's turn, and stock templates add words of their own.

A server with an API key is asked with the one in VLLM_API_KEY, where `vllm serve` itself looks for one:

    VLLM_API_KEY=$(cat key) python examples/look_again_client.py http://127.0.0.1:8000 clip.mp4 "What colour flashes?"

Needs this package for its grammar, its prompt and its decoder, and the policy's folder for its settings; no torch, no
vLLM. The server offers that endpoint with `--enable-scale-out`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.clip_view import EpisodeClip
from envs.prompts import PromptFormat, initial_prompt, inserted_text, refusal_note
from envs.tools.rules import RetrievalRules
from envs.tools.tool import Shown, Tool
from envs.tools.toolbox import further_tags
from envs.tools.users import load_toolbox
from envs.video.file import VideoError
from envs.video.reader import VideoReader
from rl.policy.chat_template import opens_thought
from rl.policy.episode_settings import EpisodeSettings
from rl.policy.families import read_config
from rl.policy.geometry import Geometry
from rl.policy.policy_folder import scenes_in
from rl.policy.scenes import image_frames
from rl.policy.token_ids import TOKEN_TEXT, PolicyFilesError, TokenIds
from rl.trajectory import AnswerKind, GrantedCall, VideoTask

AS_WRITTEN = {"skip_special_tokens": False, "include_stop_str_in_output": True, "logprobs": 0}  # all, and how likely
TIMEOUT_S = 600.0  # of one request
KEY = "VLLM_API_KEY"  # in the environment: command lines are for all to see; OPENAI_API_KEY is for OpenAI alone to see


class ServerError(RuntimeError):
    """The server has refused a request; what it said."""


@dataclass(frozen=True)
class Look:
    """A window that the policy asked for, and the times of the frames it was shown; or why it was shown none."""

    asked: str
    shown_s: tuple[float, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Answer:
    """What came of a question."""

    text: str  # all that the policy wrote
    looks: tuple[Look, ...]
    token_ids: tuple[int, ...]  # of the whole trajectory, as the server read and wrote it
    logprobs: tuple[float, ...]  # of the tokens that the policy wrote


class Server:
    """A vLLM server on which one policy stands."""

    def __init__(self, address: str, api_key: str = "") -> None:
        self._address = address.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        (served, *_) = self._get("/v1/models")["data"]
        self.model: str = served["id"]
        self.folder: str = served["root"]  # where the server has it

    def generate(self, token_ids: list[int], video_urls: list[str], **sampling: Any) -> dict[str, Any]:
        """What the policy writes after these tokens; videos stand in them as blocks, or as placeholders, in order."""
        videos = [{"type": "video_url", "url": url} for url in video_urls]
        asked = {
            "model": self.model,
            "token_ids": token_ids,
            "content_parts": videos,
            "sampling_params": sampling | AS_WRITTEN,
        }
        return self._post("/inference/v1/generate", {**asked, "return_token_ids": True, "output_mode": "text"})

    def tokens_of(self, text: str) -> list[int]:
        """Token ids of a text, markers in it included."""
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return self._post("/tokenize", asked)["tokens"]

    def _get(self, path: str) -> dict[str, Any]:
        return self._send(urllib.request.Request(self._address + path, headers=self._headers))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._send(urllib.request.Request(self._address + path, json.dumps(body).encode(), self._headers))

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            remedy = f"; put the server's API key into the environment as {KEY}" if error.code == 401 else ""
            said = error.read().decode(errors="replace")
            raise ServerError(f"{request.full_url}: {error.code}: {said}{remedy}") from error
        except OSError as error:
            raise ServerError(f"{request.full_url}: {error}; is the server up?") from error


class ServedTokens:
    """What envs.prompts asks of a processor, answered by the server: text to tokens, a placeholder for a video."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self.opens_thought = opens_thought(folder)
        self.ids = TokenIds(**dict(zip(TOKEN_TEXT, server.tokens_of("".join(TOKEN_TEXT.values())), strict=True)))

    def encode(self, text: str) -> list[int]:
        """Token ids; markers in the text become the tokens of that name."""
        return self._server.tokens_of(text)

    def video_block(self, _: object) -> list[int]:
        """The server knows the scenes, and writes the block."""
        return [self.ids.vision_start, self.ids.video_pad, self.ids.vision_end]


def ask(
    server: Server,
    video: Path,
    question: str,
    *,
    folder: Path,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    by_path: bool = False,
) -> Answer:
    """Ask, cut the windows that are asked for, and go on until the policy answers.

    Args:
        folder: the policy's, or a copy of its config.json, processor_config.json and chat template.
        max_tokens: that the policy may write, in all turns together.
        by_path: name the file to the server (`--allowed-local-media-path`) instead of sending it.
    Raises:
        ServerError: a request is refused.
        VideoError: the video cannot be read.
    """
    settings, words, cutter = EpisodeSettings.of(folder), ServedTokens(server, folder), Cutter(video, folder)
    tools = load_toolbox(cutter.rules, words)
    form = PromptFormat(settings.prompt.system, settings.prompt.instructions, further_tags(tools.enabled))
    stop_ids = [*tools.end_ids, words.ids.im_end]
    videos = [video.resolve().as_uri() if by_path else _data_url("video/mp4", video.read_bytes())]
    history, text, looks, logprobs = list(initial_prompt(question, None, words, form)), "", [], []
    while len(logprobs) < max_tokens:
        left = {"temperature": temperature, "max_tokens": max_tokens - len(logprobs), "stop_token_ids": stop_ids}
        answer = server.generate(history, videos, **left)
        (turn,) = answer["choices"]
        history = [*answer["prompt_token_ids"], *turn["token_ids"]]
        text += turn["text"]
        logprobs += [token["logprob"] for token in turn["logprobs"]["content"]]
        if (tool := tools.of(turn["token_ids"][-1])) is None:
            break
        look, inserted = cutter.cut(turn["text"], tool, is_enabled=tool in tools.enabled)
        looks.append(look)
        if isinstance(inserted, Shown):
            history += words.video_block(None)
            videos.append(frames_url(inserted.pixels_THWC, inserted.times_s_T))
        elif inserted:
            history += inserted_text(inserted, words)
        else:
            history += refusal_note(look.refused, words, tool.nothing)
    return Answer(text.removesuffix(TOKEN_TEXT["im_end"]), tuple(looks), tuple(history), tuple(logprobs))


class Cutter:
    """Cuts what a policy asks for out of a video, within the limits of its training."""

    def __init__(self, video: Path, folder: Path) -> None:
        self.rules = RetrievalRules(**vars(EpisodeSettings.of(folder).retrieval))
        reader, task = VideoReader(workers=0), VideoTask("asked", str(video), "", "", AnswerKind.OPEN)
        self._clip = EpisodeClip(task, reader.describe(str(video)), Sizes(folder), reader)
        self._granted = 0

    def cut(self, text: str, tool: Tool, *, is_enabled: bool) -> tuple[Look, Shown | str]:
        """The call that a turn's text ends in, and what it inserts; empty: it is not granted."""
        asked = text[max(text.rfind(tool.tags[0]), 0) :]
        if not is_enabled:
            return Look(asked, refused=f"the tool {tool.name} is not enabled"), ""
        if self._granted >= self.rules.max_calls:
            return Look(asked, refused=f"the limit of {self.rules.max_calls} per answer is reached"), ""
        call = tool.parse(text, self._clip)
        if not isinstance(call, GrantedCall):
            return Look(asked, refused=call.reason), ""
        self._granted += 1
        inserted = tool.insert(call, self._clip)
        return Look(asked, inserted.times_s_T if isinstance(inserted, Shown) else ()), inserted


class Sizes:
    """What envs.clip_view asks of a processor where the server counts the tokens: sizes of frames and images."""

    def __init__(self, folder: Path) -> None:
        self.fit = Geometry.read(folder).fit
        self._section = read_config(folder / "config.json").get("vision_config", {}).get("flexivideo", {})

    @property
    def image_frames(self) -> int:
        """Frames as which an image is shown."""
        return image_frames(scenes_in(self._section))


def frames_url(pixels_THWC: np.ndarray, times_s: Sequence[float]) -> str:
    """Frames and their times as a URL that the server's decoder reads, to the bit: an .npz."""
    archive = io.BytesIO()
    np.savez_compressed(archive, frames=pixels_THWC, times_s=np.asarray(times_s, np.float64))
    return _data_url("video/x-npz", archive.getvalue())


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=f"A server that asks for an API key gets the one in {KEY}."
    )
    parser.add_argument("address", help="of the server, as http://127.0.0.1:8000")
    parser.add_argument("video", type=Path)
    parser.add_argument("question")
    parser.add_argument("--policy", type=Path, help="the policy's folder, where the server's is not at hand")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=1024, help="of all turns together")
    parser.add_argument("--by-path", action="store_true", help="name the file to the server instead of sending it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    try:
        server = Server(given.address, os.environ.get(KEY, "").strip())
        answer = ask(
            server,
            given.video,
            given.question,
            folder=given.policy or Path(server.folder),
            temperature=given.temperature,
            max_tokens=given.max_tokens,
            by_path=given.by_path,
        )
    except (ServerError, VideoError, PolicyFilesError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    lines = [json.dumps(vars(answer) | {"looks": [vars(look) for look in answer.looks]})]
    if not given.json:
        lines = [f"asked  {one.asked}\nshown  {one.refused or list(one.shown_s)}" for one in answer.looks] + [
            answer.text
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
