"""The exported processor, in this process: its prompts are those of training, and videos come in every form."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.video_utils import VideoMetadata

from envs.prompts import PromptFormat, initial_prompt, refusal_note
from envs.synthetic.clip import write_mp4
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times
from envs.tools.toolbox import further_tags
from envs.tools.zoom import Zoom
from rl.config.policy import TinyPolicyConfig
from rl.export.folder import geometry_section, write_export
from rl.export.processing import FlexiVideoProcessor
from rl.export.video_tensors import VIDEO_TENSORS, from_tensors, to_tensors
from rl.policy.given_frames import resized
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.trajectory import MalformedCall, RetrievalCall
from tests.hub_cache import NAME, put_in_cache
from tests.rl.export.conftest import EPISODE, FORM, SCENES, TINY

QUESTION = "Which colour? <|video_pad|>"
CALL = "<span>0.50 - 2.00</span><fps>2</fps>"
CHAT = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{}<|im_end|>\n"


@pytest.fixture(scope="module")
def inner(policy):
    return Processor.from_pretrained(policy, SCENES)


@pytest.fixture(scope="module")
def processor(policy, inner):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy)
    settings = geometry_section(inner), asdict(SCENES), EPISODE
    return FlexiVideoProcessor(tokenizer, tokenizer.chat_template, *settings)


def frames_of(inner, clip):
    """What training makes of the clip."""
    size = inner.fit(60, 90, EPISODE["coarse"]["max_pixels"])
    return inner.make_frames(resized(clip[0], size), clip[1])


def test_the_prompt_and_its_video_are_those_of_training(processor, inner, clip):
    inputs, frames = processor.ask(QUESTION, (clip[0], {"times_s": clip[1]})), frames_of(inner, clip)
    token_ids = initial_prompt(QUESTION, frames, inner, FORM)
    assert inputs["input_ids"].tolist() == [list(token_ids)] and inputs["attention_mask"].all()
    assert torch.equal(inputs["position_ids"][:, 0], torch.from_numpy(inner.positions(token_ids, [frames])))
    (video,) = from_tensors(inputs["patches"], inputs["scene_lengths"], inputs["shapes"])
    packed = inner.pack(frames)
    assert np.array_equal(video.patches_ND, packed.patches_ND) and len(video.scene_lengths) > 1
    assert (video.scene_lengths, video.grid_h, video.grid_w) == (packed.scene_lengths, packed.grid_h, packed.grid_w)


def test_instructions_name_the_tags_of_every_tool_as_tokens(tmp_path, clip):
    zoom = Zoom(RetrievalRules())
    folder = build_tiny_policy(TinyPolicyConfig(**TINY), SCENES, tmp_path, seed=0, tool_tags=zoom.tags)
    inner, tokenizer = Processor.from_pretrained(folder, SCENES), PreTrainedTokenizerFast.from_pretrained(folder)
    words = "Write <zoom>t</zoom> or <span>."
    episode = EPISODE | {"prompt": {"system": "", "instructions": words}}
    episode["retrieval"] = EPISODE["retrieval"] | {"tools": ["span_fps", "zoom"]}
    processor = FlexiVideoProcessor(
        tokenizer, tokenizer.chat_template, geometry_section(inner), asdict(SCENES), episode
    )
    inputs = processor.ask(QUESTION, (clip[0], {"times_s": clip[1]}))
    form = PromptFormat("", words, further_tags([zoom]))
    assert inputs["input_ids"].tolist() == [list(initial_prompt(QUESTION, frames_of(inner, clip), inner, form))]
    assert set(inner.encode("<zoom>")) <= set(inputs["input_ids"][0].tolist()) and len(inner.encode("<zoom>")) == 1


def test_a_look_goes_on_as_the_environment_does(processor, inner, clip):
    inputs = processor.ask("Which?", (clip[0], {"times_s": clip[1]}))
    written = [*inputs["input_ids"][0].tolist(), *inner.encode(f"Let me see.{CALL}")]
    call = processor.read_call(torch.tensor([written]), duration_s=3.5)
    assert isinstance(call, RetrievalCall) and frame_times(call) == (0.5, 1.0, 1.5)
    window = (clip[0][1:4], {"times_s": list(frame_times(call))})
    looked = processor.look(torch.tensor([written]), inputs, window)

    frames = frames_of(inner, (clip[0][1:4], [0.5, 1.0, 1.5]))
    whole = [*written, *inner.video_block(frames)]
    assert looked["input_ids"].tolist() == [whole] and looked["attention_mask"].shape == (1, len(whole))
    both = [frames_of(inner, clip), frames]
    assert torch.equal(looked["position_ids"][:, 0], torch.from_numpy(inner.positions(whole, both)))
    expected = to_tensors([inner.pack(frames) for frames in both])
    assert all(torch.equal(looked[name], tensor) for name, tensor in expected.items())

    refused = processor.refuse(torch.tensor([written]), inputs, "no room is left")
    assert refused["input_ids"][0].tolist() == [*written, *refusal_note("no room is left", inner)]
    assert processor.stop_ids == [inner.ids.im_end, inner.ids.fps_close]
    assert isinstance(processor.read_call("<span>now</span><fps>2</fps>", duration_s=3.5), MalformedCall)
    assert processor.read_call("<answer>A</answer>", duration_s=3.5) is None


def forms(clip):
    """One video in every form that a chat may bring it in: (video, metadata)."""
    pixels, times_s = clip
    yield (pixels, {"times_s": times_s}), None
    yield pixels, {"fps": 2.0}
    yield pixels.transpose(0, 3, 1, 2), {"fps": 2.0}
    yield torch.from_numpy(pixels), [{"fps": 2}]
    yield [Image.fromarray(frame) for frame in pixels], {"fps": 30.0, "frames_indices": list(range(0, 105, 15))}
    yield list(pixels), VideoMetadata(total_num_frames=105, fps=30.0, frames_indices=list(range(0, 105, 15)))
    yield [[pixels]], [[{"fps": 2.0}]]


def test_a_video_is_the_same_in_every_form(processor, clip):
    expected = None
    for video, metadata in forms(clip):
        found = processor(text=CHAT.format("Which?"), videos=video, video_metadata=metadata)
        expected = expected or found
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_file_is_read_at_the_coarse_rate_of_training_and_in_windows(processor, tmp_path):
    brightness = np.arange(42, dtype=np.uint8) * 6  # of each frame, at 12 per second
    write_mp4(np.broadcast_to(brightness[:, None, None, None], (42, 56, 84, 3)), 12, tmp_path / "clip.mp4")
    inputs = processor.ask("Which?", tmp_path / "clip.mp4")
    (video,) = from_tensors(*(inputs[name] for name in VIDEO_TENSORS))
    shown = video.patches_ND.reshape(7, -1).mean(1)  # 3.5 s at 2 frames per second
    assert np.abs(shown - brightness[::6]).max() < 4

    frames, about = processor.window(tmp_path / "clip.mp4", processor.read_call(CALL, duration_s=3.5))
    assert about == {"times_s": [0.5, 1.0, 1.5]}
    assert np.abs(frames.mean(axis=(1, 2, 3)) - brightness[[6, 12, 18]]).max() < 4


def test_rows_of_a_batch_are_padded_where_asked_and_stand_where_they_stand_alone(processor, clip):
    video = (clip[0], {"fps": 2.0})
    texts = [CHAT.format("Which colour does it have?"), "no video", CHAT.format("Which?")]
    alone = [processor(text=text, videos=[video] if "video_pad" in text else None) for text in texts]
    for side in ("left", "right"):
        batch = processor(text=texts, videos=[[video], [], [video]], padding_side=side)
        for row, single in enumerate(alone):
            kept = batch["attention_mask"][row].bool()
            assert torch.equal(batch["input_ids"][row, kept], single["input_ids"][0])
            assert torch.equal(batch["position_ids"][:, row, kept], single["position_ids"][:, 0])
        assert batch["attention_mask"][1, 0 if side == "right" else -1] == 1 and len(batch["shapes"]) == 2


def test_features_that_cut_scenes_come_along_from_a_folder_and_from_the_hub(family, clip, tmp_path, monkeypatch):
    scenes = replace(SCENES, difference="features")
    build_tiny_policy(TinyPolicyConfig(family=family.model_type, **TINY), scenes, tmp_path / "policy", seed=5)
    write_export(tmp_path / "policy", tmp_path / "exported", EPISODE, "# card\n")
    put_in_cache(tmp_path / "exported", tmp_path / "hub", monkeypatch)
    video = (clip[0], {"times_s": clip[1]})
    for name in (tmp_path / "exported", str(tmp_path / "exported"), NAME):
        inputs = FlexiVideoProcessor.from_pretrained(name).ask("Which?", video)
        assert inputs["scene_lengths"].tolist() == [3, 4]


REFUSED = {
    "no times": ({"text": CHAT, "videos": np.zeros((2, 60, 90, 3), np.uint8)}, r"without times.*\{'fps': 2\.0\}"),
    "floats": ({"text": CHAT, "videos": np.zeros((2, 60, 90, 3)), "video_metadata": {"fps": 2}}, "float64"),
    "times out of order": (
        {"text": CHAT, "videos": (np.zeros((2, 60, 90, 3), np.uint8), {"times_s": [1.0, 0.0]})},
        "2 frames need as many times_s, in order",
    ),
    "grey": ({"text": CHAT, "videos": (np.zeros((2, 60, 90, 1), np.uint8), {"fps": 2})}, "uint8 of shape"),
    "a place too many": ({"text": CHAT}, r"1 places for videos .* given were 0"),
    "a video too many": ({"text": "Hi", "videos": (np.zeros((2, 60, 90, 3), np.uint8), {"fps": 2})}, "0 places"),
    "an image": ({"text": "Hi", "images": [1]}, "reads text and video"),
    "an option that stock processors have": ({"text": "Hi", "max_pixels": 3}, r"not an option.*max_pixels"),
    "numpy": ({"text": "Hi", "return_tensors": "np"}, "return_tensors='np'"),
    "a side": ({"text": "Hi", "padding_side": "both"}, "padding_side"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_what_to_give(case, processor):
    given, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        processor(**given)


def test_only_what_was_written_from_the_inputs_is_continued(processor, clip):
    inputs = processor.ask("Which?", (clip[0], {"fps": 2.0}))
    with pytest.raises(ValueError, match="must begin with the inputs"):
        processor.look(inputs["input_ids"].flip(1), inputs, (clip[0], {"fps": 2.0}))
    with pytest.raises(ValueError, match="one sequence at a time"):
        processor.refuse(inputs["input_ids"].repeat(2, 1), inputs, "no")
