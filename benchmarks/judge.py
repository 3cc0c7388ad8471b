"""What a judge costs a reward worker, and what comes of one that fails: throughput, retries, masked trajectories.

    python -m benchmarks.judge
    python -m benchmarks.judge --groups 4 --latency 0.01

A server in the form of chat completions runs in a process of its own and takes `--latency` seconds for a reply; a share
of its requests meets a fault, as a digest of what is asked says, so that a request which is tried again has luck or not
by how often it was tried. Groups are scored as in a reward worker, one after the other, every answer another one
(`cache_dir` empty), the retries' first pause .05 s.

`judged/s`: trajectories scored, by the clock. `CPU ms`: of this process, for one. `tries`: requests per trajectory.
`masked`: trajectories without a score, by cause; nothing is ever scored 0 for a fault (a test).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

from benchmarks.judge_server import Todo, drips, drops, hangs, judge_server, says, sends
from benchmarks.tables import print_conditions, print_table
from rewards import judge_client
from rewards.golden import golden_group
from rewards.judge import judge
from rewards.limits import deadline
from rewards.scoring import WeightedReward, score_group
from rl.trajectory import AnswerKind, RewardFailure, ScoredGroup, Segment, TrajectoryGroup

SIBLINGS = 16
FIRST_PAUSE_S = 0.05
FAULTS: dict[str, Todo] = {
    "none": says("Score: 7"),
    "answers 500": says("oops", status=500),
    "throttles, 429": says("slow down", status=429, headers=[("retry-after", "0.1")]),
    "drops the connection": drops,
    "hangs": hangs,
    "drips a byte at a time": drips,
    "lies: no completion": sends(b"<html>"),
    "lies: no verdict": says("It is fine."),
}


def main() -> None:
    options = parse_arguments()
    print_conditions("httpx", module="benchmarks.judge")
    judge_client.FIRST_PAUSE_S = FIRST_PAUSE_S
    print(f"{options.groups} groups of {SIBLINGS}, replies after {options.latency:g} s, no faults\n")
    headings = ("requests at a time", "judged/s", "CPU ms")
    print_table(headings, (_speed(options, concurrency) for concurrency in options.concurrency))
    bounds = f"{options.retries} retries, timeout_s={options.timeout:g}"
    print(f"{options.share:.0%} of the requests meet a fault; {bounds}\n")
    headings = ("the server", "scored", "masked", "tries", "judged/s")
    print_table(headings, (_under(options, fault) for fault in options.faults))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds of a reply (default .1)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--share", type=float, default=0.2, help="of requests that meet a fault (default .2)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--retries", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds of a request (default 1)")
    return parser.parse_args()


def _speed(options: argparse.Namespace, concurrency: int) -> tuple[object, ...]:
    scored, wall_s, cpu_s, _ = _judged(options, "none", concurrency, share=0.0)
    judged = len(_rewards(scored))
    return concurrency, f"{judged / wall_s:.1f}", f"{1000 * cpu_s / judged:.2f}"


def _under(options: argparse.Namespace, fault: str) -> tuple[object, ...]:
    scored, wall_s, _, requests = _judged(options, fault, max(options.concurrency), share=options.share)
    rewards = _rewards(scored)
    masked = Counter(_cause(one) for one in rewards if isinstance(one, RewardFailure))
    told = ", ".join(f"{count} {cause}" for cause, count in masked.most_common()) or "0"
    good = len(rewards) - masked.total()
    return fault, good, told, f"{requests / len(rewards):.2f}", f"{len(rewards) / wall_s:.1f}"


def _judged(
    options: argparse.Namespace, fault: str, concurrency: int, *, share: float
) -> tuple[list[ScoredGroup], float, float, int]:
    """Scored groups, seconds by the clock, CPU seconds, requests."""
    ours, theirs = multiprocessing.Pipe()
    serving = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, fault, options.latency, share))
    serving.start()
    url = ours.recv()
    args = {"model": "m", "url": url, "cache_dir": "", "concurrency": concurrency}
    args |= {"retries": options.retries, "timeout_s": options.timeout}
    terms = [WeightedReward("judge", functools.partial(judge, **args), Segment.REASONING)]
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    scored = [score_group(_group(number), terms, guard=deadline(60.0)) for number in range(options.groups)]
    spent = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    ours.send("stop")
    requests = ours.recv()
    serving.join()
    return scored, *spent, requests


def serve(pipe: Connection, fault: str, latency_s: float, share: float) -> None:
    """The server's process: sends its address, then, once it is told to stop, how many requests it had."""
    tries: Counter[bytes] = Counter()

    def todo(body: bytes) -> Todo:
        tries[body] += 1
        drawn = hashlib.sha256(b"%d %s" % (tries[body], body)).digest()[0] / 256
        time.sleep(latency_s)
        return FAULTS[fault] if drawn < share else FAULTS["none"]

    with judge_server(chosen_by=todo) as (url, behaviour):
        pipe.send(url)
        pipe.recv()
        pipe.send(len(behaviour.requests))


def _group(number: int) -> TrajectoryGroup:
    """Siblings that all say something else."""
    group = golden_group(AnswerKind.OPEN)
    right = group.trajectories_G[0]
    siblings = (
        replace(right, answer_text=f"<answer>a red ball, {number} {sibling}</answer>") for sibling in range(SIBLINGS)
    )
    return replace(group, trajectories_G=tuple(siblings))


def _cause(failure: RewardFailure) -> str:
    """Without the address and what the server has said."""
    words = failure.detail.removeprefix("JudgeError: ").rpartition("/chat/completions: ")[2]
    return words.partition("; ")[0].partition(": ")[0]


def _rewards(scored: Sequence[ScoredGroup]) -> list[object]:
    return [reward for group in scored for reward in group.rewards_G]


if __name__ == "__main__":
    main()
