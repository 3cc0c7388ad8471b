"""Qwen's vocabulary from the package that ships it: ids as published, tokens as tiktoken makes them from the ranks."""

import importlib.util
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from tokenizers import AddedToken, Tokenizer

from envs.initial_observation import unseen_frames
from envs.prompts import PromptFormat, encode_reply, initial_prompt
from rl.config.policy import ScenesConfig
from rl.policy.families import QWEN3_VL
from rl.policy.geometry import Geometry
from rl.policy.processor import Processor
from rl.policy.stock import vocabulary
from rl.policy.stock.hub_files import PUBLISHED_IDS
from rl.policy.stock.vocabulary import qwen_tokenizer
from rl.policy.tiny_tokenizer import QWEN_PIECES
from rl.policy.token_ids import TAG_TOKENS, PolicyFilesError

needs_ranks = pytest.mark.skipif(importlib.util.find_spec("dashscope") is None, reason="dashscope is not installed")


@pytest.fixture(scope="module")
def tokenizer():
    return qwen_tokenizer("qwen3_vl")


@pytest.mark.thorough
@needs_ranks
def test_ids_are_the_published_ones(tokenizer):
    published = {"Hello": 9707, "<tool_call>": 151657, "<|file_sep|>": 151664, "<think>": 151667, "</think>": 151668}
    for text, token_id in (published | PUBLISHED_IDS).items():
        assert tokenizer.encode(text).ids == [token_id]
    assert tokenizer.get_vocab_size(with_added_tokens=False) == 151_643
    assert tokenizer.get_vocab_size() == 151_669


@pytest.mark.thorough
@needs_ranks
def test_text_is_cut_as_the_ranks_demand(tokenizer):
    ranks = vocabulary._read_ranks(vocabulary._ranks_file())
    reference = tiktoken.Encoding("qwen", pat_str=QWEN_PIECES, mergeable_ranks=ranks, special_tokens={})
    prose = (Path(__file__).parents[4] / "README.md").read_text()
    for text in (
        prose,
        "12.5 – 13,75 Sekunden\n\n  naïve Ångström",
        "视频里的人在做什么?",
        "비디오 👩‍🚀🚀",
        "\t \r\n x ",
    ):
        text = unicodedata.normalize("NFC", text)
        assert tokenizer.encode(text).ids == reference.encode(text, disallowed_special=())


@pytest.mark.thorough
@needs_ranks
def test_a_thinking_prompt_ends_in_the_published_ids(tokenizer):
    """<|im_start|> assistant, a line break, <think>, a line break."""
    tagged, geometry = Tokenizer.from_str(tokenizer.to_str()), Geometry(16, 2, 0.0, 151_936, QWEN3_VL)
    tagged.add_tokens([AddedToken(text, special=False) for text in TAG_TOKENS if tagged.token_to_id(text) is None])
    processor = Processor(tagged, geometry, ScenesConfig(), Path(), opens_thought=True)
    prompt = initial_prompt("Why?", unseen_frames((0.0, 1.0), (64, 64)), processor, PromptFormat())
    assert prompt[-5:] == (151_644, 77_091, 198, 151_667, 198)
    assert encode_reply("</think>", processor) == (151_668,)


def test_without_the_package_the_command_says_which_to_install(monkeypatch):
    monkeypatch.setattr(vocabulary, "PACKAGE", "no_such_package")
    with pytest.raises(PolicyFilesError, match=r"pip install --no-deps no_such_package.*--vocabulary tiny"):
        qwen_tokenizer("qwen2_5_vl")


@pytest.mark.parametrize("content, told", [("IQ== 0\n", "1 tokens, Qwen's"), ("IQ== x\n", "not a list of tokens")])
def test_another_list_of_ranks_is_refused(content, told, tmp_path):
    (tmp_path / "ranks").write_text(content)
    with pytest.raises(PolicyFilesError, match=told):
        vocabulary._read_ranks(tmp_path / "ranks")
