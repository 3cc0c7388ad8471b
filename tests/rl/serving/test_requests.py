"""What vLLM's own front end makes of users' requests: the tokens and the videos that a policy read in training."""

import base64
import sys
from pathlib import Path

import numpy as np
import pytest

from rl.policy.families import FAMILIES
from rl.trajectory import VideoTask, trajectory_tokens, trajectory_videos
from tests.scripted_policy import scripted_policy

pytestmark = pytest.mark.vllm

sys.path.append(str(Path(__file__).parents[3] / "examples"))
REPLIES = (
    "<think>Unclear.</think><span>1.0 - 3.0</span><fps>4</fps>",
    "<think>Red.</think><answer>B</answer><|im_end|>",
)
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)
QUESTION = "What colour flashes?"


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, clip, tmp_path_factory):
    """A policy's folder, and the trajectory that training had of the clip: one look, one answer."""
    folder = tmp_path_factory.mktemp("policy")
    task = VideoTask("t", str(clip), QUESTION, "B", "letter")
    return folder, scripted_policy(folder, task, REPLIES, family=request.param)


@pytest.fixture(scope="module")
def renderer(trained, clip):
    """The front end of a server and of `LLM` alike: requests in, prompts and processed videos out."""
    from vllm import EngineArgs
    from vllm.plugins import load_general_plugins
    from vllm.renderers.registry import renderer_from_config

    load_general_plugins()
    arguments = EngineArgs(
        str(trained[0]),
        dtype="float32",
        enforce_eager=True,
        mm_processor_cache_gb=0,
        allowed_local_media_path=str(clip.parent),
    )
    renderer = renderer_from_config(arguments.create_engine_config())
    yield renderer
    renderer.shutdown()


@pytest.fixture
def chat(renderer):
    from vllm.renderers.params import ChatParams

    def chat(*content, **media):
        params = ChatParams(
            chat_template_kwargs={"add_generation_prompt": True},
            media_io_kwargs={"video": {"video_backend": "dynframe"} | media},
        )
        _, (prompt,) = renderer.render_chat([[{"role": "user", "content": list(content)}]], params)
        return prompt

    return chat


def video(url):
    return {"type": "video_url", "video_url": {"url": url}}


ASKED = {"type": "text", "text": f"\n{QUESTION}"}


def items(prompt):
    """(patches, scene lengths, scene times) of the videos of a processed prompt."""
    return [
        (item["patches"].data.numpy(), item["scene_lengths"].data.tolist(), item["scene_times"].data.tolist())
        for item in prompt["mm_kwargs"]["video"]
    ]


def same(found, expected):
    return len(found) == len(expected) and all(
        np.array_equal(one[0], other.patches_ND) and one[1:] == (list(other.scene_lengths), list(other.times_s_K))
        for one, other in zip(found, expected, strict=True)
    )


def placeholder(ids):
    """As a chat template leaves a video."""
    return ids.vision_start, ids.video_pad, ids.vision_end


def packed(trained):
    from rl.config.policy import ScenesConfig
    from rl.policy.processor import Processor

    folder, group = trained
    processor = Processor.from_pretrained(folder, ScenesConfig())
    (trajectory,) = group.trajectories_G
    return processor, [processor.pack(frames) for frames in trajectory_videos(group.coarse_frames, trajectory.turns)]


@pytest.mark.parametrize("sent", ["file", "data"])
def test_a_chat_message_with_a_file_is_the_prompt_of_training(trained, chat, clip, sent):
    data = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    prompt = chat(video(clip.as_uri() if sent == "file" else data), ASKED)

    (trajectory,) = trained[1].trajectories_G
    assert tuple(prompt["prompt_token_ids"]) == trajectory.turns[0].context_token_ids
    assert same(items(prompt), packed(trained)[1][:1])


def test_tokens_that_go_on_with_a_window_are_the_history_of_training(trained, renderer, clip):
    from look_again_client import frames_url

    processor, videos = packed(trained)
    group = trained[1]
    first, second = group.trajectories_G[0].turns
    window = second.frames
    url = frames_url(window.pixels_THWC, window.timestamps_s_T)
    from vllm.multimodal.media import MediaConnector

    connector = MediaConnector({"video": {"video_backend": "dynframe"}}, allowed_local_media_path=str(clip.parent))
    loaded = [connector.fetch_video(clip.as_uri()), connector.fetch_video(url)]
    token_ids = [*first.context_token_ids, *first.completion.token_ids, *placeholder(processor.ids)]
    (prompt,) = renderer.render_cmpl([{"prompt_token_ids": token_ids, "multi_modal_data": {"video": loaded}}])

    said = len(second.completion.token_ids)
    assert tuple(prompt["prompt_token_ids"]) == trajectory_tokens(group.trajectories_G[0])[:-said]
    assert same(items(prompt), videos)


def test_arrays_with_metadata_are_placed_where_a_prompt_has_a_placeholder(trained, renderer):
    _, (coarse, _) = packed(trained)
    frames = trained[1].coarse_frames
    sent = (frames.pixels_THWC, {"times_s": list(frames.timestamps_s_T)})
    text = (
        f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    (prompt,) = renderer.render_cmpl([{"prompt": text, "multi_modal_data": {"video": [sent]}}])

    assert tuple(prompt["prompt_token_ids"]) == trained[1].trajectories_G[0].turns[0].context_token_ids
    assert same(items(prompt), [coarse])


def test_vllms_own_loader_may_sample_and_says_when_its_frames_were_on_screen(trained, chat, clip):
    prompt = chat(video(clip.as_uri()), ASKED, video_backend="opencv", num_frames=4)
    ((_, lengths, times_s),) = items(prompt)
    assert sum(lengths) == 4 and all(0 <= time_s <= 47 / 12 for time_s in times_s)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "image_url", "image_url": {"url": PICTURE}}, "images are not taken"),
        (video(f"data:video/mp4;base64,{base64.b64encode(b'no video').decode()}"), "the video "),
    ],
)
def test_what_cannot_be_used_is_refused_as_a_bad_request(chat, content, said):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises((ValueError, VLLMValidationError), match=said):
        chat(content, ASKED)


def test_a_placeholder_without_a_video_and_a_video_without_a_placeholder_are_refused(trained, renderer, clip):
    frames = (np.zeros((2, 56, 56, 3), np.uint8), {"times_s": [0.0, 1.0]})
    for prompt in ("<|vision_start|><|video_pad|><|vision_end|>" * 2, "nothing"):
        with pytest.raises(ValueError, match="one placeholder per video"):
            renderer.render_cmpl([{"prompt": prompt, "multi_modal_data": {"video": [frames]}}])


def test_options_of_a_processor_that_is_not_there_are_refused(renderer):
    frames = (np.zeros((2, 56, 56, 3), np.uint8), {"times_s": [0.0, 1.0]})
    prompt = {"prompt": "x", "multi_modal_data": {"video": [frames]}, "mm_processor_kwargs": {"max_pixels": 3136}}
    with pytest.raises(ValueError, match=r"mm_processor_kwargs \['max_pixels'\] are not read here"):
        renderer.render_cmpl([prompt])
