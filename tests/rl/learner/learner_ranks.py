"""What runs inside the rank processes of test_learner.py: `python learner_ranks.py SOCKET RANK WORLD PORT`.

A rank takes (folder of a policy, scenario name, arguments) from the test through a socket, runs it together with the
other ranks, and sends the result back. One process runs many scenarios, with any policy: importing torch and DeepSpeed
is what takes long.
"""

from __future__ import annotations

import gc
import gzip
import json
import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Client

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_get_full_optimizer_state

from rl.algorithm.batch import assign_ranks, build_training_samples, gather_ranks, learned_credit, loss_totals
from rl.algorithm.learner_batch import collate
from rl.algorithm.loss import policy_loss, token_weights
from rl.config.algorithm import AlgorithmConfig, LossConfig
from rl.config.learner import LearnerConfig, OptimizerConfig
from rl.config.policy import LoraConfig, PolicyConfig, ScenesConfig
from rl.learner.learner import Learner
from rl.policy.lora import add_lora
from rl.policy.model import freeze_vision, load_policy
from rl.policy.processor import Processor
from rl.policy.profiler import Profiler
from rl.tracking.records import records
from rl.trajectory import (
    AnswerKind,
    Completion,
    MalformedCall,
    RewardFailure,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TrainingSample,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
    trajectory_tokens,
)
from tests.padded_rows import padded_logprobs

OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_fraction=0.0, min_lr_fraction=1.0, max_grad_norm=0.05, weight_decay=0.01)
LOSS = LossConfig(old_logprobs="engine", kl_beta=0.0)


def make_sample(processor, seed, *, videos=2, said=(9, 6)):
    """Noise in the shape of a trajectory: opening, question, a call, injected frames, an answer.

    Two seeds, an even one and the odd one after it, are siblings: their openings are the same.
    """
    group, rng = np.random.default_rng(1000 + seed // 2), np.random.default_rng(seed)

    def text(count, rng=rng):
        return rng.integers(0, 200, count).tolist()

    def block(num_frames, fps, rng=rng):
        side = 2 * processor.geometry.unit
        pixels = rng.integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)
        return processor.make_frames(pixels, [i / fps for i in range(num_frames)])

    shown = [block(4 + seed // 2 % 3, 2, group), block(3 + seed % 2, 5)][:videos]
    blocks = [processor.video_block(frames) for frames in shown] + [[], []]
    opening = blocks[0] + text(5 + seed // 2, group)
    pieces = [(opening, 0), (text(said[0]), 1), (blocks[1] + text(1), 0), (text(said[1]), 2)]
    token_ids = tuple(token for tokens, _ in pieces for token in tokens)
    segments = tuple(segment for tokens, segment in pieces for _ in tokens)
    credit = {0: 0.0, 1: float(rng.standard_normal()), 2: float(rng.standard_normal())}
    behavior = tuple(float(-6.4 + 0.3 * rng.standard_normal()) if s else 0.0 for s in segments)
    return TrainingSample(
        token_ids=token_ids,
        segment_ids=segments,
        turn_ids=segments,
        behavior_logprobs=behavior,
        advantages=tuple(credit[s] for s in segments),
        loss_mask=tuple(s > 0 for s in segments),
        policy_versions=tuple(0 if s else -1 for s in segments),
        videos=tuple(shown),
    )


def the_batch(processor):
    """Six samples; the last two, which are rank 1's share of two, show no video."""
    return [make_sample(processor, seed, videos=2 - seed % 2, said=(9 + seed, 6)) for seed in range(4)] + [
        make_sample(processor, seed, videos=0) for seed in (4, 5)
    ]


def the_groups(processor):
    """Three scored groups, the longest in the middle: two ranks get groups 1 and 0, 2. Siblings differ in length, and
    some are left out: the video could not be read, the reward failed, the text was truncated."""
    rng = np.random.default_rng(5)

    def turn(said, call=None):
        context, spoken = (tuple(rng.integers(0, 200, count).tolist()) for count in (4, said))
        behavior = tuple((-6.4 + 0.3 * rng.standard_normal(said)).tolist())
        segment = Segment.REASONING if call is None else Segment.SAMPLING
        return Turn(context, Completion(spoken, behavior, "stop", 0), segment, call)

    def sibling(call, answer, stop=StopReason.ANSWERED):
        looks = [turn(call, MalformedCall("hand-made"))] if call else []
        return Trajectory((*looks, turn(answer)), stop)

    def group(*siblings):
        side = 2 * processor.geometry.unit
        pixels = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        opening = processor.make_frames(pixels, [0.0, 1.0])
        block = tuple(processor.video_block(opening))
        shown = [
            replace(t, turns=(replace(t.turns[0], context_token_ids=block), *t.turns[1:])) if t.turns else t
            for t, _ in siblings
        ]
        task = VideoTask("t", "/clip.mp4", "?", "B", AnswerKind.LETTER)
        return ScoredGroup(TrajectoryGroup(task, tuple(shown), opening), tuple(verdict for _, verdict in siblings))

    def worth(sampling, reasoning):
        return SegmentRewards(sampling, reasoning, {})

    failed = RewardFailure("answer", "timeout", "30 s")
    truncated, unreadable = sibling(3, 40, StopReason.TRUNCATED), Trajectory((), StopReason.VIDEO_ERROR)
    return [
        group((sibling(2, 9), worth(1.0, 0.0)), (sibling(0, 3), worth(0.0, 1.0)), (unreadable, failed)),
        group((sibling(9, 60), worth(0.2, 0.5)), (truncated, worth(0.4, 0.0)), (sibling(30, 50), worth(0.7, 0.1))),
        group((sibling(4, 4), failed), (sibling(3, 8), worth(0.3, 0.0)), (sibling(5, 7), worth(0.0, 1.0))),
    ]


def share_of(samples, rank, world):
    """All to one rank; four and two to two; nothing to a third."""
    return samples if world == 1 else (samples[:4], samples[4:], [])[rank]


def lengths_of(groups):
    """Tokens of the siblings that could be scored, group by group."""
    return [
        sum(
            len(trajectory_tokens(trajectory))
            for trajectory, reward in zip(one.group.trajectories_G, one.rewards_G, strict=True)
            if not isinstance(reward, RewardFailure)
        )
        for one in groups
    ]


class Rank:
    """One process; every public method but the first two is a scenario."""

    def __init__(self, rank, world, port):
        self.rank, self.world, self.port = rank, world, port

    def of(self, policy_dir):
        """This rank with the policy of a folder."""
        self.policy_dir = policy_dir
        self.processor = Processor.from_pretrained(policy_dir, ScenesConfig())
        self.batch = the_batch(self.processor)
        self.mine = share_of(self.batch, self.rank, self.world)
        return self

    def learner(self, *, stage=1, micro_batch=2, dtype="float32", loss=None, optimizer=None, lora=None, **options):
        return Learner(
            self.policy_dir,
            policy=PolicyConfig(dtype=dtype, lora=LoraConfig(**(lora or {}))),
            learner=LearnerConfig(
                zero_stage=stage, micro_batch=micro_batch, optimizer=replace(OPTIMIZER, **(optimizer or {})), **options
            ),
            algorithm=AlgorithmConfig(loss=replace(LOSS, **(loss or {}))),
            temperature=0.9,
            total_steps=8,
            rank=self.rank,
            world_size=self.world,
            master_port=self.port,
        )

    def plain(self, *, steps=3, frozen=False, loss=None, lora=None):
        """The oracle: the whole batch in one forward pass, torch and nothing else."""
        torch.manual_seed(0)
        options = replace(LOSS, **(loss or {}))
        model = load_policy(self.policy_dir, ScenesConfig())
        if frozen:
            freeze_vision(model)
        if lora:
            add_lora(model, LoraConfig(**lora), seed=0)
        trained = [p for p in model.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=OPTIMIZER.lr,
            betas=tuple(OPTIMIZER.betas),
        )
        batch, first = collate(self.batch, self.processor), {}
        for _ in range(steps):
            logp_BT = self._logprobs(model, self.batch, batch.loss_mask_BT)
            weights_BT = token_weights(
                batch.segment_ids_BT, batch.loss_mask_BT, loss_totals(self.batch), normaliser=options.normaliser
            )
            policy_loss(
                logp_BT,
                batch.behavior_logprobs_BT,
                batch.advantages_BT,
                weights_BT,
                batch.loss_mask_BT,
                behavior_logp_BT=batch.behavior_logprobs_BT,
                tis_cap=options.tis_cap,
            ).loss.backward()
            if not first:
                first = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
            norm = float(torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.max_grad_norm))
            adamw.step()
            adamw.zero_grad()
        with torch.no_grad():
            logp_BT = self._logprobs(model, self.batch, None)
        rows = [row[1 : len(s.token_ids)].tolist() for row, s in zip(logp_BT, self.batch, strict=True)]
        return {"gradients": first, "norm": norm, "logprobs": rows}

    def update(self, *, steps=3, **options):
        """The same through the learner, each rank with its share."""
        learner = self.learner(**options)
        gradients = watch_gradients(learner)
        before = weights_of(learner)
        metrics = [learner.update(self.mine)[0] for _ in range(steps)]
        after = weights_of(learner)
        moved = [name for name in before if (before[name] != after[name]).any()]
        logprobs = learner.logprobs(self.batch)
        self._end(learner)
        return {"gradients": gradients, "metrics": metrics, "logprobs": logprobs, "moved": moved}

    def update_in_parallel(self, **options):
        """All ranks with all samples, each with a part of every row."""
        self.mine = self.batch
        return self.update(num_ranks=self.world, sequence_parallel=self.world, **options)

    def together(self, micro_batches, **options):
        """One step from three pairs of samples that show the same blocks, for each size of micro-batches."""
        samples = [make_sample(self.processor, seed, said=(9 + seed, 6)) for seed in range(3)]
        samples += [make_sample(self.processor, seed, said=(12 + seed, 4)) for seed in range(3)]
        found = []
        for micro_batch in micro_batches:
            learner = self.learner(micro_batch=micro_batch, shared_prefix="off", **options)
            gradients = watch_gradients(learner)
            metrics = learner.update(share_of(samples, self.rank, self.world))[0]
            found.append({"gradients": gradients, "metrics": metrics})
            self._end(learner)
        return found

    def remembered(self, budgets, **options):
        """Two steps from the same samples for each size of the cache of a frozen tower's features."""
        found = []
        for budget in budgets:
            learner = self.learner(freeze_vision=True, vision_cache_bytes=budget, **options)
            metrics = [learner.update(self.mine)[0] for _ in range(2)]
            found.append({"digest": learner.digest(), "metrics": metrics, "logprobs": learner.logprobs(self.batch)})
            self._end(learner)
        return found

    def learned(self, **options):
        """One update from scored groups, as the driver gets it; and each sibling alone through the policy untouched."""
        groups = the_groups(self.processor)
        dealt = assign_ranks(lengths_of(groups), self.world)
        learner = self.learner(**options)
        update = learner.learn([groups[index] for index in dealt[self.rank]])
        of_ranks = [None] * self.world
        dist.all_gather_object(of_ranks, update.logprobs_PG)
        logprobs_PG = gather_ranks(dealt, of_ranks)
        self._end(learner)
        credit_PG = [learned_credit(group) for group in groups]
        shown = records(groups, lambda token_ids: [""] * len(token_ids), credit_PG=credit_PG, logprobs_PG=logprobs_PG)
        return {
            "dealt": dealt,
            "metrics": update.metrics,
            "logprobs_PG": logprobs_PG,
            "alone_PG": [list(map(self._alone, build_training_samples(group))) for group in groups],
            "records": list(shown),
        }

    def profiled(self, path, **options):
        """What a profile of an update names, on this rank."""
        learner, profiler = self.learner(**options), Profiler()
        learner.update(self.mine)
        profiler.write(path)
        self._end(learner)
        return {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}

    def digested(self, *, steps, **options):
        """The digests that `learn` gives with each of its steps."""
        groups, learner = the_groups(self.processor), self.learner(**options)
        dealt = assign_ranks(lengths_of(groups), self.world)[self.rank]
        digests = [learner.learn([groups[index] for index in dealt]).optimizer for _ in range(steps)]
        self._end(learner)
        return digests

    def _alone(self, sample):
        """The log-probs a fresh policy gives to the sampled tokens of one sample, in a batch of its own."""
        if sample is None:
            return None
        with torch.no_grad():
            model = load_policy(self.policy_dir, ScenesConfig())
            logp_T = self._logprobs(model, [sample], None)[0].tolist()
        return [logp for logp, segment in zip(logp_T, sample.segment_ids, strict=True) if segment]

    def poisoned(self, **options):
        """A NaN in one sample of the last rank, then a clean batch."""
        learner = self.learner(**options)
        mine = list(self.mine)
        if self.rank == self.world - 1:
            behavior = [float("nan") if m else 0.0 for m in mine[-1].loss_mask]
            mine[-1] = replace(mine[-1], behavior_logprobs=tuple(behavior))
        digests, metrics = [learner.digest()], []
        for samples in (mine, self.mine):
            metrics.append(learner.update(samples)[0])
            digests.append(learner.digest())
        self._end(learner)
        return {"digests": digests, "metrics": metrics}

    def resumed(self, folder, **options):
        """Two steps straight; one step, save, another learner, load, leave the GPU and take it back, the other step."""
        learner = self.learner(**options)
        learner.update(self.mine)
        learner.save(folder)
        learner.update(self.mine)
        straight = learner.digest(), learner.optimizer_digest()
        self._end(learner)
        learner = self.learner(**options)
        fresh = learner.digest(), learner.optimizer_digest()
        learner.load(folder)
        loaded, steps = (learner.digest(), learner.optimizer_digest()), learner.steps
        learner.offload()
        offloaded = learner.digest(), learner.optimizer_digest()
        away = folder / "while offloaded"
        away.mkdir(exist_ok=True)
        learner.capture().write(away)
        learner.reload()
        learner.offload(states=False)  # where a GPU has room for them
        learner.reload()
        learner.update(self.mine)
        again = learner.digest(), learner.optimizer_digest()
        self._end(learner)
        found = {"straight": straight, "resumed": again, "fresh": fresh, "loaded": loaded, "steps": steps}
        return found | {"offloaded": offloaded}

    def holding(self, **options):
        """What share of policy and reference this rank holds once it has loaded, and the types of their buffers."""
        learner = self.learner(**options)
        models = [learner._engine.module, learner._engine._reference.module]
        held = [[p.numel() + p.ds_tensor.numel() for p in model.parameters()] for model in models]
        whole = [[p.ds_numel for p in model.parameters()] for model in models]
        types = {str(buffer.dtype) for model in models for buffer in model.buffers()}
        self._end(learner)
        return {"shares": [sum(h) / sum(w) for h, w in zip(held, whole, strict=True)], "buffers": types}

    def captured(self, folder, **options):
        """Everything written at once; and copied, written after two more steps."""
        learner = self.learner(**options)
        learner.update(self.mine)
        learner.save(folder / "at_once")
        learner.export_policy(folder / "at_once" / "policy")
        snapshot = learner.capture()
        for _ in range(2):
            learner.update(self.mine)
        (folder / "later").mkdir(exist_ok=True)
        result = [None] * self.world
        dist.all_gather_object(result, snapshot.write(folder / "later"))
        self._end(learner)
        return [record for records in result for record in records]

    def refused(self, folder, **options):
        """What loading says."""
        learner = self.learner(**options)
        try:
            learner.load(folder)
        except Exception as error:  # the test looks at it
            return f"{type(error).__name__}: {error}"
        finally:
            self._end(learner)

    def kept(self, folder, *, steps=2, **options):
        """Some steps, save, one more step; `whole` is what DeepSpeed says the masters and moments were when saved."""
        learner = self.learner(**options)
        for _ in range(steps):
            learner.update(self.mine)
        drawn = torch.get_rng_state()
        learner.save(folder)
        result = {"whole": whole_state(learner), "weights": weights_of(learner), **self._one_more(learner)}
        self._end(learner)
        return result | {"drew": not torch.equal(drawn, torch.get_rng_state())}

    def taken_over(self, folders, **options):
        """One learner loads states one after the other, each over what the one before left, and takes a step."""
        learner, result = self.learner(**options), {}
        for name, folder in folders.items():
            learner.load(folder)
            drawn = torch.get_rng_state()
            weights = weights_of(learner)
            result[name] = {"steps": learner.steps, "whole": whole_state(learner), "weights": weights}
            result[name] |= {"seeded": drawn.numpy().copy(), "then": self._one_more(learner)}
        self._end(learner)
        return result

    def _one_more(self, learner):
        metrics, _ = learner.update(self.mine)
        return {"loss": metrics["loss/surrogate"], "moved": weights_of(learner)}

    def supervised(self, *, steps, **options):
        """Supervised steps on the batch; the loss of each, and of each sample before them."""
        learner = self.learner(optimizer={"lr": 3e-3, "max_grad_norm": 1.0}, **options)
        before = learner.losses(self.mine)
        losses = [learner.supervise(self.mine)["loss/nll"] for _ in range(steps)]
        self._end(learner)
        return {"steps": losses, "before": before}

    def exported(self, folder, **options):
        """Log-probs of the policy in training, and of the folder it was exported to."""
        learner = self.learner(**options)
        learner.update(self.mine)
        inside = learner.logprobs(self.batch)
        learner.export_policy(folder)
        self._end(learner)
        with torch.no_grad():
            logp_BT = self._logprobs(load_policy(folder, ScenesConfig()), self.batch, None)
        outside = [row[1 : len(s.token_ids)].tolist() for row, s in zip(logp_BT, self.batch, strict=True)]
        return {"inside": inside, "outside": outside}

    def nothing(self, **options):
        """An update with no sample on any rank."""
        learner = self.learner(**options)
        before = learner.digest()
        metrics, _ = learner.update([])
        after = learner.digest()
        self._end(learner)
        return {"unchanged": before == after, "metrics": metrics}

    def _logprobs(self, model, samples, scored_BT):
        return padded_logprobs(model, samples, self.processor, scored_BT, temperature=0.9)[0]

    def _end(self, learner):
        learner._engine.close()
        gc.collect()


def weights_of(learner):
    return {name: tensor.float().cpu().numpy().copy() for name, tensor in learner.named_weights()}


def whole_state(learner):
    """Masters and AdamW's moments of every trained parameter, put together by DeepSpeed itself; and AdamW's counts."""
    engine, adamw = learner._engine.deepspeed, learner._engine.adamw
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    if learner._engine.zero_stage == 0:
        pieces = {name: {"master": p.detach(), **adamw.state[p]} for name, p in trained}
    else:
        if learner._engine.zero_stage < 3:
            engine.optimizer._hp_optimizer_states_linked = False  # DeepSpeed links before the second group has a state
            engine.optimizer._lazy_init_hp_params_optimizer_state()
        moments = {"exp_avg", "exp_avg_sq"} if any(adamw.state.values()) else set()
        pieces = {
            name: {"master": safe_get_full_fp32_param(p)}
            | {key: safe_get_full_optimizer_state(p, key) for key in sorted(moments)}
            for name, p in trained
        }
    whole = {
        (name, key): tensor.float().cpu().numpy().copy()
        for name, kept in pieces.items()
        for key, tensor in kept.items()
        if key != "step"
    }
    return whole | {"steps": sorted({float(state["step"]) for state in adamw.state.values() if "step" in state})}


def watch_gradients(learner):
    """The gradients of the first step, between backward and clipping, in a dict that is filled then."""
    engine, seen = learner._engine, {}
    apply = engine.apply

    def watched():
        if not seen:
            grads = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters() if p.requires_grad}
            seen.update({name: grad.float().cpu().numpy().copy() for name, grad in grads.items() if grad is not None})
        return apply()

    engine.apply = watched
    return seen


def main(socket, rank, world, port):
    rank_process = Rank(int(rank), int(world), int(port))
    with Client(socket, family="AF_UNIX") as connection:
        while (request := connection.recv()) is not None:
            policy_dir, scenario, arguments = request
            try:
                connection.send((True, getattr(rank_process.of(policy_dir), scenario)(**arguments)))
            except Exception:  # shown by the test
                connection.send((False, traceback.format_exc()))


if __name__ == "__main__":
    main(*sys.argv[1:])
