"""What the policy is given to read: built from pieces, and never more markers than were meant."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.initial_observation import unseen_frames
from envs.prompts import PromptFormat, encode_reply, encode_text, initial_prompt, refusal_note
from rl.policy.token_ids import TOKEN_TEXT
from tests.envs.setting import make_processor

OPENING = unseen_frames((0.0, 1.0), (56, 56))
MARKERS = (*TOKEN_TEXT.values(), "<|vision_pad|>")
PIECE = st.sampled_from([*MARKERS, "<", ">", "<<", "a", " ", "\n", "é", "|"])


@pytest.fixture(scope="session")
def processor(tmp_path_factory):
    return make_processor(tmp_path_factory.mktemp("policy"))


def marker_ids(processor):
    return {token for text in TOKEN_TEXT.values() for token in processor._tokenizer.encode(text).ids}


def test_the_opening_is_user_video_question_then_assistant(processor):
    ids = processor.ids
    prompt = initial_prompt("<video>\nWhat flashes?", OPENING, processor, PromptFormat())
    assert prompt == (
        ids.im_start,
        *processor.encode("user\n"),
        *processor.video_block(OPENING),
        *processor.encode("\nWhat flashes?"),
        ids.im_end,
        *processor.encode("\n"),
        ids.im_start,
        *processor.encode("assistant\n"),
    )


def test_it_is_what_the_tokenizer_makes_of_the_whole_text(processor):
    prompt = initial_prompt("What flashes? A red B blue", OPENING, processor, PromptFormat())
    block = processor.video_block(OPENING)
    text = "<|im_start|>user\n{V0}\nWhat flashes? A red B blue<|im_end|>\n<|im_start|>assistant\n"
    before, after = (tuple(processor.encode(part)) for part in text.split("{V0}"))
    assert prompt == (*before, *block, *after)


def test_the_video_replaces_its_placeholder_with_or_without_one(processor):
    with_placeholder, without = (
        initial_prompt(question, OPENING, processor, PromptFormat()) for question in ("<video>\nWhy?", "Why?")
    )
    assert with_placeholder == without


def test_a_system_message_and_instructions_stand_where_they_belong(processor):
    form = PromptFormat(system="Be brief.", instructions="Look with <span>a - b</span><fps>f</fps>.")
    prompt = initial_prompt("Why?", OPENING, processor, form)
    text = processor.decode([token for token in prompt if token != processor.ids.video_pad])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    assert text.endswith("Why?\nLook with <span>a - b</span><fps>f</fps>.<|im_end|>\n<|im_start|>assistant\n")
    assert processor.ids.span_open in prompt  # the instructions name the very tokens that are meant


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_spelled_in_a_question_stays_text(processor, marker):
    clean = initial_prompt("Why?", OPENING, processor, PromptFormat())
    hostile = initial_prompt(f"Why {marker}?", OPENING, processor, PromptFormat())
    for token in marker_ids(processor):
        assert hostile.count(token) == clean.count(token)
    assert f"\nWhy {marker}?<|im_end|>" in processor.decode(hostile)


@settings(deadline=None)
@given(st.lists(PIECE | st.text(max_size=5)).map("".join))
def test_text_from_outside_yields_no_marker_and_keeps_its_characters(processor, text):
    token_ids = encode_text(text, processor)
    assert marker_ids(processor).isdisjoint(token_ids)
    assert processor.decode(token_ids) == processor.decode(processor.encode(text, markers=False))


def test_what_a_policy_writes_has_tags_as_tokens_and_no_other_marker(processor):
    ids = processor.ids
    token_ids = encode_reply("<think>x<|video_pad|><span>1 - 2</span><fps>3</fps>", processor)
    assert (token_ids[0], token_ids[-1]) == (ids.think_open, ids.fps_close)
    assert {ids.span_open, ids.span_close, ids.fps_open} < set(token_ids)
    assert ids.video_pad not in token_ids


def test_a_refusal_is_short_plain_text(processor):
    note = refusal_note("the time span is reversed or empty", processor)
    assert processor.decode(note) == "\n[no frames: the time span is reversed or empty]\n"
    assert marker_ids(processor).isdisjoint(note)
    assert len(note) < 64
