"""What a fine-tuned policy answers on held-out clips, and what a clip costs it.

Answers are told by exact log-probs: at the place of each answer, the letter that the policy holds for the likeliest of
the four. Nothing is sampled.

Legend: R tokens of a packed row · V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch

from envs.data.conversation_rows import load_conversations
from envs.synthetic.shot_world import LETTERS, QUESTIONS
from rl.algorithm.learner_batch import LearnerBatch, collate
from rl.algorithm.packing import alone
from rl.config.run import RunConfig
from rl.encode_stats.peak_memory import PeakMemory
from rl.learner.throughput import workload
from rl.policy.flops import training_flops
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.structure import structure_of
from rl.run.prepare.encoder import make_encoder
from rl.trajectory import TrainingSample

BATCH = 16
COUNTED = 16  # clips on which memory is followed, tensor by tensor


class PolicyUnderTest:
    """A fine-tuned policy with the settings that it was trained under."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        torch.set_num_threads(1)
        scenes = config.policy.scenes
        self._model = load_policy(folder, scenes).eval()
        self._processor = Processor.from_pretrained(folder, scenes)
        self._encode = make_encoder(config, folder, config.finetune.max_tokens)
        self._structure = structure_of(folder, config.policy)
        self._letters = [self._processor.encode(letter)[0] for letter in LETTERS]

    def measure(self, rows: Path) -> dict[str, float]:
        """Accuracy by kind of question and over all, scenes and visual tokens of a clip, and what learning from its
        conversation takes: operations, and bytes at the worst moment."""
        kinds = [row["kinds"] for row in json.loads(rows.read_text(encoding="utf-8"))]
        samples = [self._encode(conversation) for conversation in load_conversations("llava", rows).conversations]
        right = self._right(samples, kinds)
        blocks = [sample.videos[0] for sample in samples]
        flops = (training_flops(self._structure, workload([s], alone([s])), freeze_vision=False) for s in samples)
        return {
            **{f"accuracy/{kind}": fmean(values) for kind, values in right.items()},
            "accuracy": fmean(value for values in right.values() for value in values),
            "scenes": fmean(len(block.scene_lengths) for block in blocks),
            "scenes_per_frame": fmean(len(block.scene_lengths) / len(block.timestamps_s_T) for block in blocks),
            "visual_tokens": fmean(map(self._processor.visual_tokens, blocks)),
            "tokens": fmean(len(sample.token_ids) for sample in samples),
            "gflops": fmean(flops) / 1e9,
            "peak_mib": fmean(map(self._peak_bytes, samples[:COUNTED])) / 2**20,
        }

    def _right(self, samples: Sequence[TrainingSample], kinds: Sequence[Sequence[str]]) -> Mapping[str, list[bool]]:
        """Of each kind of question, whether each answer is right."""
        right: dict[str, list[bool]] = {kind: [] for kind in QUESTIONS}
        for first in range(0, len(samples), BATCH):
            part = samples[first : first + BATCH]
            batch = collate(part, self._processor)
            with torch.no_grad():
                logits_RV = self._logits(batch)
            for sample, asked, places in zip(part, kinds[first : first + BATCH], batch.places_BT, strict=True):
                for kind, place in zip(asked, self._answers(sample), strict=True):
                    held = logits_RV[places[place] - 1, self._letters]
                    right[kind].append(self._letters[int(held.argmax())] == sample.token_ids[place])
        return right

    def _answers(self, sample: TrainingSample) -> Iterator[int]:
        """Places of the letters: behind each stands the end of the turn, which is learned too."""
        return (
            place
            for place, (token, is_learned) in enumerate(zip(sample.token_ids, sample.loss_mask, strict=True))
            if is_learned and token in self._letters
        )

    def _logits(self, batch: LearnerBatch) -> torch.Tensor:
        output = self._model(
            batch.token_ids_R[None],
            position_ids=batch.position_ids_3R[:, None],
            packing=batch.packing,
            videos=batch.videos,
        )
        return output.logits[0]

    def _peak_bytes(self, sample: TrainingSample) -> int:
        """The most bytes of tensors alive during one forward and backward pass, weights and gradients left out."""
        batch = collate([sample], self._processor)
        weights = list(self._model.parameters())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        with PeakMemory([*weights, *(weight.grad for weight in weights), *self._model.buffers()]) as memory:
            self._logits(batch)[-1].sum().backward()
        return memory.peak_bytes
