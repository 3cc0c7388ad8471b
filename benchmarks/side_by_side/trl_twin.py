"""The text-only twin of a step, trained by TRL's GRPOTrainer. Runs in TRL's own environment.

    python trl_twin.py '{"engine": "vllm", "prompt_tokens": 57, "completion_tokens": 40, ...}'

A Qwen2 with random weights whose widths, depth and vocabulary are the tiny policy's, on prompts of random words, one
token each, new ones at every step. Every completion has the same length, so that nothing is padded. Rewards are random.
Settings that the trainer does not need to be told keep its defaults: with vLLM it corrects for the engine's log-probs,
as we do. See __main__.py for what is equal and what is not.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from answering import Contestant  # beside this file


def main() -> None:
    contestant, settings = Contestant(), json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, Path(folder), contestant)
        trainer.train()


def make_trainer(settings: dict[str, Any], folder: Path, contestant: Contestant) -> Any:
    """A GRPOTrainer that waits before every optimizer step until it is told to take it."""
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class OnDemand(TrainerCallback):
        """One optimizer step per line of stdin."""

        def __init__(self) -> None:
            self.done: dict[str, Any] = {"ready": True}
            self.tokens = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            contestant.answer(self.done)
            if not contestant.is_to_go_on():
                raise SystemExit(0)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            rows, seen = settings["prompts"] * settings["siblings"], self.tokens
            self.tokens, written = logs["num_tokens"], logs["completions/mean_length"]
            self.done = {
                "opening_tokens": (self.tokens - seen) / rows - written,
                "sampled_tokens": written,
                "given_tokens": 0.0,
            }

    policy = build_policy(settings, folder / "policy")
    if settings["engine"] == "vllm":
        keep_weights_loadable(eager=settings["eager"])
    sampled, is_vllm = settings["completion_tokens"], settings["engine"] == "vllm"
    rest = {"ignore_eos": True, "min_tokens": sampled} if is_vllm else {"min_new_tokens": sampled}
    config = GRPOConfig(
        output_dir=str(folder / "run"),
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        use_cpu=True,
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["prompts"] * settings["siblings"] // settings["micro_batch"],
        num_generations=settings["siblings"],
        max_completion_length=sampled,
        learning_rate=settings["lr"],
        adam_beta2=0.95,
        temperature=1.0,
        generation_kwargs=rest,
        gradient_checkpointing=False,
        use_vllm=is_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=settings["prompt_tokens"] + sampled + 8,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        max_steps=10_000,
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=str(policy),
        reward_funcs=lambda completions, **_: [random.random() for _ in completions],
        args=config,
        train_dataset=prompts(settings),
        processing_class=word_tokenizer(settings),
        callbacks=[OnDemand()],
    )


def keep_weights_loadable(*, eager: bool) -> None:
    """Mend vLLM on CPUs for a trainer in its process: its packed products drop the weights that the trainer reloads.

    Args:
        eager: run vLLM without compiling, which the trainer's own settings cannot ask for.
    """
    import torch
    import trl.generation.vllm_generation as colocated
    from vllm.model_executor.layers import utils

    def plainly(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plainly
    if eager:
        colocated.LLM = partial(colocated.LLM, enforce_eager=True)


def build_policy(settings: dict[str, Any], folder: Path) -> Path:
    """A folder with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**settings["policy"], pad_token_id=0, eos_token_id=1, bos_token_id=None, dtype="float32")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    word_tokenizer(settings).save_pretrained(folder)
    return folder


def word_tokenizer(settings: dict[str, Any]) -> Any:
    """A token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unknown>", *(f"w{index}" for index in range(3, settings["policy"]["vocab_size"]))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def prompts(settings: dict[str, Any]) -> Any:
    """Enough prompts that none comes twice."""
    from datasets import Dataset

    draw, words = random.Random(0), settings["policy"]["vocab_size"]
    lines = (" ".join(f"w{draw.randrange(3, words)}" for _ in range(settings["prompt_tokens"])) for _ in count())
    return Dataset.from_dict({"prompt": [next(lines) for _ in range(settings["prompts"] * settings["steps"])]})


if __name__ == "__main__":
    main()
