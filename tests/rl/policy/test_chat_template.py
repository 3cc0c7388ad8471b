"""Where a checkpoint's prompts end: an Instruct model begins its answer, a Thinking one finds its thought open."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from rl.policy.chat_template import opens_thought
from rl.policy.convert import convert_stock_checkpoint
from rl.policy.processor import Processor
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.policy.token_ids import TAG_TOKENS, PolicyFilesError
from tests.rl.policy.conftest import SCENES, SIZES

MESSAGES = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' + message.content }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
)
END = "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
# What the templates of Qwen3-VL-*-Instruct and -Thinking end in; a hybrid model's closes a thought where it is told to
INSTRUCT = MESSAGES + END
THINKING = INSTRUCT.replace("assistant\\n' }}\n", "assistant\\n<think>\\n' }}\n")
HYBRID = INSTRUCT.replace(
    "{%- endif %}\n", "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}\n"
)


@pytest.mark.parametrize(
    ("template", "is_open"),
    [
        (INSTRUCT, False),
        (THINKING, True),
        (HYBRID, False),
        (THINKING.replace("assistant\\n<think>", "assistant\\n' + '<think>"), True),
        (THINKING.replace("{{- '<|im_start|>assistant\\n<think>\\n' }}", "<|im_start|>assistant\n<think>\n"), True),
        (THINKING.replace("{%- for", "{%- generation %}{%- for"), True),
        (
            "{% for i in range(10**12) %}{% for j in range(10**12) %}{% endfor %}{% endfor %}" + THINKING,
            True,
        ),  # not run
        ("", False),
    ],
    ids=["Instruct", "Thinking", "hybrid", "a sum", "plain text", "transformers' own tag", "endless", "empty"],
)
def test_a_thought_is_open_where_the_generation_prompt_ends_in_one(template, is_open, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(template)
    assert opens_thought(tmp_path) is is_open


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.json", {"chat_template": THINKING}),
        ("tokenizer_config.json", {"chat_template": THINKING}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": THINKING}]}),
    ],
)
def test_the_template_is_found_where_transformers_finds_it(name, content, tmp_path):
    assert not opens_thought(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    assert opens_thought(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(INSTRUCT)  # goes before the others
    assert not opens_thought(tmp_path)


@pytest.mark.parametrize("broken", ["{% if %}<think>", "{{ '<think>' + " + "(" * 5000 + "}}"])
def test_a_template_that_cannot_be_read_is_refused_with_its_file(broken, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(broken)
    with pytest.raises(PolicyFilesError, match=r"chat_template\.jinja: its chat template cannot be read"):
        opens_thought(tmp_path)


@pytest.mark.parametrize("tiny", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize(("template", "is_open"), [(INSTRUCT, False), (THINKING, True)], ids=["Instruct", "Thinking"])
def test_tags_that_a_vocabulary_has_are_not_added_again(stock_dir, tmp_path, template, is_open):
    """`<think>` and `</think>` are single tokens, and not special ones, in the vocabularies of both."""
    stock = tmp_path / "stock"
    shutil.copytree(stock_dir, stock)
    tokenizer = train_tokenizer(SIZES["vocab_size"], tags=False)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    tokenizer.save(str(stock / "tokenizer.json"))
    (stock / "chat_template.jinja").write_text(template)

    folder = convert_stock_checkpoint(stock, tmp_path / "ours", SCENES)

    processor, converted = (
        Processor.from_pretrained(folder, SCENES),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
    )
    assert processor.opens_thought is is_open
    assert processor.ids.think_open == tokenizer.token_to_id("<think>")
    assert processor.ids.think_close == tokenizer.token_to_id("</think>")
    assert converted.get_vocab_size() == tokenizer.get_vocab_size() + len(TAG_TOKENS) - 2
    assert all(processor.allowed_token_mask()[converted.token_to_id(tag)] for tag in TAG_TOKENS)
    before, after = (load_file(path / "model.safetensors") for path in (stock, folder))
    (rows,) = (name for name in before if name.endswith("embed_tokens.weight"))
    assert (before[rows][processor.ids.think_open] == after[rows][processor.ids.think_open]).all()  # as it was trained
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True
    )
    assert (
        prompt.input_ids[-4:] == processor.encode("assistant\n<think>\n" if is_open else "<|im_start|>assistant\n")[-4:]
    )
