"""Ask a served policy about a video, and show it the frames that it asks for: the environment's loop, over HTTP.

    vllm serve exported --host 127.0.0.1 --port 8000
    python examples/look_again_client.py http://127.0.0.1:8000 clip.mp4 "What colour flashes?"

The first turn is a chat completion with a `video_url`: the server decodes the coarse view that the policy was trained
with. The policy may answer, or ask for a window (`<span>2.0 - 4.5</span><fps>4</fps>`) and stop. The window is cut here
and sent to `/inference/v1/generate`, which continues token ids: those the server had read, those the policy wrote, and
one placeholder for the new frames. So every turn reads exactly the tokens that it would have read in training; a chat
message would have to be encoded again, and no chat template puts a video into an assistant's turn.

Needs this package for its grammar and its decoder, and the policy's folder for its settings; no torch, no vLLM.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.retrieval import RetrievalRules, frame_times, parse_call
from envs.video.file import VideoError
from envs.video.reader import VideoReader
from rl.policy.episode_settings import EpisodeSettings
from rl.policy.geometry import Geometry
from rl.policy.token_ids import TOKEN_TEXT, PolicyFilesError
from rl.trajectory import RetrievalCall

PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"  # the server writes the block of a video in its place
TIMEOUT_S = 600.0  # of one request


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

    def chat(self, content: list[dict[str, Any]], system: str, **sampling: Any) -> dict[str, Any]:
        """A chat completion, with the token ids that were read and written."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        return self._post("/v1/chat/completions", {"model": self.model, "messages": messages, **sampling})

    def continue_tokens(self, token_ids: list[int], video_urls: list[str], **sampling: Any) -> dict[str, Any]:
        """What the policy writes after these tokens; the last placeholder is that of a video not read before."""
        videos = [{"type": "video_url", "url": url} for url in video_urls]
        asked = {"token_ids": token_ids, "content_parts": videos, "sampling_params": sampling}
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
            raise ServerError(f"{request.full_url}: {error.code}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise ServerError(f"{request.full_url}: {error}; is the server up?") from error


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
        folder: the policy's, or a copy of its config.json and processor_config.json.
        max_tokens: that the policy may write, in all turns together.
        by_path: name the file to the server (`--allowed-local-media-path`) instead of sending it.
    Raises:
        ServerError: a request is refused.
        VideoError: the video cannot be read.
    """
    settings, reader = EpisodeSettings.of(folder), VideoReader(workers=0)
    rules = RetrievalRules(**vars(settings.retrieval))
    clip = reader.describe(str(video))
    size = Geometry.read(folder).fit(clip.height, clip.width, rules.max_pixels)
    stop_ids = [server.tokens_of(TOKEN_TEXT[name])[0] for name in ("fps_close", "im_end")]
    videos = [video.resolve().as_uri() if by_path else _data_url("video/mp4", video.read_bytes())]
    asked = "\n".join(["", question.strip(), *filter(None, [settings.prompt.instructions])])
    first = server.chat(
        [{"type": "video_url", "video_url": {"url": videos[0]}}, {"type": "text", "text": asked}],
        settings.prompt.system,
        **{"temperature": temperature, "max_tokens": max_tokens, "stop_token_ids": stop_ids},
        **{"return_token_ids": True, "skip_special_tokens": False, "logprobs": True},
    )
    history, turn = list(first["prompt_token_ids"]), first["choices"][0]
    said, written, looks, logprobs = turn["message"]["content"], len(turn["token_ids"]), [], _logprobs(turn)
    texts = [said]
    while turn["token_ids"][-1] == stop_ids[0] and written < max_tokens:
        history += turn["token_ids"]
        granted = sum(not look.refused for look in looks)
        look, window_url = _cut(texts[-1], video, clip, size, rules, granted, reader)
        looks.append(look)
        history += server.tokens_of(PLACEHOLDER if window_url else f"\n[no frames: {look.refused}]\n")
        videos += [window_url] if window_url else []
        left = {"temperature": temperature, "max_tokens": max_tokens - written, "stop_token_ids": stop_ids}
        answer = server.continue_tokens(history, videos, **left, skip_special_tokens=False, logprobs=0)
        history, turn = list(answer["prompt_token_ids"]), answer["choices"][0]
        written += len(turn["token_ids"])
        texts.append(turn["text"])
        logprobs += _logprobs(turn)
    return Answer("".join(texts), tuple(looks), (*history, *turn["token_ids"]), tuple(logprobs))


def _cut(
    text: str, video: Path, clip: Any, size: tuple[int, int], rules: RetrievalRules, granted: int, reader: VideoReader
) -> tuple[Look, str]:
    """The look that a turn ends in, and its frames as a URL; empty: none is granted."""
    if granted >= rules.max_calls:
        return Look(text, refused=f"the limit of {rules.max_calls} per answer is reached"), ""
    call = parse_call(text, duration_s=clip.duration_s, native_fps=clip.native_fps, rules=rules)
    if not isinstance(call, RetrievalCall):
        return Look(text, refused=call.reason if call else "the request cannot be read"), ""
    pixels_THWC, times_s, _ = reader.frames(str(video), frame_times(call), size)
    return Look(text[text.rindex("<span>") :], times_s), frames_url(pixels_THWC, times_s)


def frames_url(pixels_THWC: np.ndarray, times_s: Sequence[float]) -> str:
    """Frames and their times as a URL that the server's decoder reads, to the bit: an .npz."""
    archive = io.BytesIO()
    np.savez_compressed(archive, frames=pixels_THWC, times_s=np.asarray(times_s, np.float64))
    return _data_url("video/x-npz", archive.getvalue())


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _logprobs(turn: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in turn["logprobs"]["content"]]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
        server = Server(given.address)
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
