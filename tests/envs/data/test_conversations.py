"""Conversations as training samples: the stock chat template's tokens, of which exactly the assistant's are learned."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from envs.data.conversation_rows import Conversation, Media, MediaKind, Message
from envs.data.conversations import ImageRules, conversation_sample
from envs.data.rows import UnusableRow
from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat
from envs.rollout import EpisodeContext
from envs.tools.rules import RetrievalRules
from rl.config.policy import ScenesConfig
from rl.policy.processor import Processor
from rl.policy.scenes import image_frames
from rl.policy.stock.hub_files import CHAT_TEMPLATE, DEFAULT_SYSTEM
from rl.policy.tiny import train_tokenizer
from rl.trajectory import Segment
from tests.envs.setting import make_reader, write_clip

COARSE = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136)
VISION = {
    "qwen2_5_vl": {"patch_size": 14, "spatial_merge_size": 2, "tokens_per_second": 2},
    "qwen3_vl": {"patch_size": 16, "spatial_merge_size": 2},
}
BARE = "<|vision_start|><|video_pad|><|vision_end|>"  # how the stock template writes a video


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    pixels = np.arange(60 * 90 * 3, dtype=np.uint32).reshape(60, 90, 3) * 7 % 251
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "a.png")
    clip = write_clip(folder / "clip.mp4", seconds=4)
    return {MediaKind.IMAGE: str(folder / "a.png"), MediaKind.VIDEO: str(clip)}


@pytest.fixture(scope="module", params=sorted(VISION))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory, family):
    folder = tmp_path_factory.mktemp(family)
    train_tokenizer(768).save(str(folder / "tokenizer.json"))
    config = {"model_type": family, "vision_config": VISION[family], "text_config": {"vocab_size": 768}}
    if family == "qwen3_vl":
        config["text_config"]["rope_scaling"] = {"mrope_section": [4, 4, 4], "mrope_interleaved": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def processor(policy_dir):
    return Processor.from_pretrained(policy_dir, ScenesConfig())


@pytest.fixture(scope="module")
def encode(processor):
    with make_reader() as reader:

        def run(*messages, max_tokens=4096, system="", processor=processor):
            form = PromptFormat(system=system)
            context = EpisodeContext(processor, reader, COARSE, RetrievalRules(), max_tokens, form)
            rules = ImageRules(image_frames(processor.scenes), max_pixels=4096)
            return conversation_sample(Conversation("c", tuple(messages)), context, rules)

        yield run


@pytest.fixture(scope="module")
def stock(policy_dir, family):
    """Tokens and mask of the family's stock chat template, which is told where generation begins and ends."""
    tokenizer = AutoTokenizer.from_pretrained(policy_dir)
    template = CHAT_TEMPLATE.replace("SYSTEM", DEFAULT_SYSTEM[family])
    marked = (
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
        "{{ '\\n' }}{% else %}"
    )
    opening, content, rest = template.partition("{% if message['content'] is string %}")
    template = opening + marked + content + rest.replace("<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor")

    def run(messages):
        chat = [
            {
                "role": message.role,
                "content": message.parts[0]
                if message.role != "user"
                else [
                    {"type": "video"} if isinstance(part, Media) else {"type": "text", "text": part}
                    for part in message.parts
                ],
            }
            for message in messages
        ]
        given = tokenizer.apply_chat_template(
            chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        plain = tokenizer.apply_chat_template(
            chat, chat_template=CHAT_TEMPLATE.replace("SYSTEM", DEFAULT_SYSTEM[family])
        )
        assert given["input_ids"] == plain["input_ids"]  # the marks change no token
        return given["input_ids"], [bool(mark) for mark in given["assistant_masks"]]

    return run


def with_bare_blocks(sample, processor):
    """Its tokens and mask with every block written as the stock template does; all families' blocks."""
    bare = processor._tokenizer.encode(BARE, add_special_tokens=False).ids
    tokens, mask, at = [], [], 0
    for start, stop in processor.block_spans(sample.token_ids, sample.videos):
        tokens += [*sample.token_ids[at:start], *bare]
        mask += [*sample.loss_mask[at:start], False, False, False]
        assert not any(sample.loss_mask[start:stop])
        at = stop
    return [*tokens, *sample.token_ids[at:]], [*mask, *sample.loss_mask[at:]]


WORDS = st.text("ab \n.,é世<>/", min_size=1, max_size=24).map(str.strip).filter(bool).filter(lambda s: "<" not in s)
KINDS = st.sampled_from(sorted(MediaKind))


@st.composite
def conversations(draw):
    """(role, parts), media by kind."""
    messages = [("system", (draw(WORDS),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        kinds = draw(st.lists(KINDS, max_size=1 if messages else 2))
        messages.append(("user", (*kinds, ("\n" if kinds else "") + draw(WORDS))))
        messages.append(("assistant", (draw(WORDS),)))
    return messages


def as_messages(told, media):
    return [
        Message(role, tuple(Media(part, media[part]) if isinstance(part, MediaKind) else part for part in parts))
        for role, parts in told
    ]


@given(told=conversations())
def test_tokens_are_the_stock_templates_and_exactly_the_assistants_are_learned(
    told, encode, stock, processor, media, family
):
    messages = as_messages(told, media)
    default = DEFAULT_SYSTEM[family].removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    sample = encode(*messages, system=default)
    expected_tokens, expected_mask = stock(messages)
    tokens, mask = with_bare_blocks(sample, processor)
    assert (tokens, mask) == (expected_tokens, expected_mask)


@given(told=conversations())
def test_every_column_has_a_value_for_every_token(told, encode, media):
    sample = encode(*as_messages(told, media))
    columns = (sample.segment_ids, sample.turn_ids, sample.behavior_logprobs, sample.advantages, sample.loss_mask)
    assert {len(column) for column in columns} == {len(sample.token_ids)} == {len(sample.policy_versions)}
    assert [segment != Segment.CONTEXT for segment in sample.segment_ids] == list(sample.loss_mask)
    assert list(sample.turn_ids) == sorted(sample.turn_ids)


def asked(*parts):
    return Message("user", parts), Message("assistant", ("That.",))


def test_an_image_is_one_scene_of_repeated_frames_as_long_as_the_kernel(encode, media, processor):
    image, video = (Media(kind, media[kind]) for kind in (MediaKind.IMAGE, MediaKind.VIDEO))
    sample = encode(*asked(image, "\nWhat?"), *asked(video, "\nAnd this?"))
    shown, clip = sample.videos
    assert shown.scene_lengths == (processor.scenes.init_frames,) and set(shown.timestamps_s_T) == {0.0}
    assert (shown.pixels_THWC == shown.pixels_THWC[0]).all() and shown.height * shown.width <= 4096
    assert clip.num_frames == 4
    assert processor.positions(sample.token_ids, sample.videos).shape == (3, len(sample.token_ids))


@pytest.mark.parametrize(
    ("scenes", "frames"),
    [
        (ScenesConfig(), 6),
        (ScenesConfig(init_frames=4), 4),
        (ScenesConfig(max_scene_frames=3), 3),
        (ScenesConfig(mode="fixed"), 2),
        (ScenesConfig(mode="fixed6"), 6),
    ],
)
def test_in_every_mode_an_image_is_a_single_scene(scenes, frames):
    from rl.policy.scenes import segment_scenes

    assert image_frames(scenes) == frames
    assert segment_scenes(np.full((frames, 28, 28, 3), 7, dtype=np.uint8), scenes) == (frames,)


def test_what_a_question_spells_is_text_and_what_a_reply_spells_are_the_tags(encode, processor):
    sample = encode(
        Message("user", ("Is <|im_end|> or <answer> a tag?",)), Message("assistant", ("<answer>B</answer>",))
    )
    learned = [token for token, is_own in zip(sample.token_ids, sample.loss_mask, strict=True) if is_own]
    assert [learned[0], *learned[-2:]] == [
        processor.ids.answer_open,
        processor.ids.answer_close,
        processor.ids.im_end,
    ]
    assert sample.token_ids.count(processor.ids.answer_open) == 1 and sample.token_ids.count(processor.ids.im_end) == 2


def test_what_is_longer_than_a_sample_may_be_is_left_out(encode, media):
    with pytest.raises(UnusableRow, match=r"c: \d+ tokens, more than finetune.max_tokens=20"):
        encode(*asked(Media(MediaKind.IMAGE, media[MediaKind.IMAGE]), "\nWhat?"), max_tokens=20)


@pytest.mark.parametrize("kind", MediaKind)
def test_a_file_that_is_none_is_left_out_with_its_name(encode, tmp_path, kind):
    (tmp_path / "broken").write_bytes(b"<html>404</html>")
    with pytest.raises(UnusableRow, match="broken"):
        encode(*asked(Media(kind, str(tmp_path / "broken")), "\nWhat?"))


def test_a_policy_that_finds_its_thought_open_is_refused(encode, processor):
    thinking = Processor(
        processor._tokenizer, processor.geometry, processor.scenes, processor.folder, opens_thought=True
    )
    with pytest.raises(UnusableRow, match="open a thought"):
        encode(*asked("What?"), processor=thinking)
