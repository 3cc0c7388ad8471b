"""What every node that workers may go to must have, and whether it has it. Part of the composition root.

Looked at before anything is reserved: one task on each node of a cluster, all at once. A Ray that a run has started
itself has one node, on which nothing is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl.config.errors import ConfigError
from rl.config.files import media_roots
from rl.config.run import JOB_HOME, RunConfig
from rl.memory_plan.record import GIB
from rl.run.preflight.memory import plan_memory
from rl.run.preflight.node_state import NeededPath, described, differences, installed, look

if TYPE_CHECKING:
    from actors.cluster.nodes import Node
    from actors.cluster.placement import Demand

ANSWER_S = 300.0  # for every node: a job's folder may have to be fetched there first, and the node be busy
MOST_NODES = 4  # that one problem names
DECODES, READS_POLICY = frozenset({"rollout", "sample"}), frozenset({"rollout", "learner", "sample"})
WRITES_RUN = frozenset({"learner"})  # ranks write their parts of a checkpoint


def require_nodes(config: RunConfig, policy_dir: Path, demand: Demand) -> None:
    """Refuse a cluster of which a node that workers may go to cannot work for the run; nothing where it has one node.

    Args:
        policy_dir: the prepared policy that workers load.
    Raises:
        ConfigError: names what is missing: key, path, nodes, remedy.
    """
    if not config.placement.check_nodes:
        return
    from actors.cluster.nodes import NoAnswer, alive_nodes, ask_nodes

    drivers, *others = alive_nodes()
    kinds = {node.node_id: kinds_on(node, config, demand) for node in others}
    asked = [node for node in others if kinds[node.node_id]]
    if not asked or not drivers.is_drivers:
        return
    with described(needed_paths(config, policy_dir)) as needed:
        here = look(())
        about = [(node, ([each for each in needed if each.by & kinds[node.node_id]],)) for node in asked]
        answers = ask_nodes(look, about, ANSWER_S)
    problems: dict[str, list[Node]] = {}
    for node, answer in zip(asked, answers, strict=True):
        for problem in [_unanswered(answer.cause)] if isinstance(answer, NoAnswer) else differences(answer, here):
            problems.setdefault(problem, []).append(node)
    if problems:
        wrong = {node.node_id for nodes in problems.values() for node in nodes}
        told = "; ".join(f"{_named(nodes)}: {problem}" for problem, nodes in problems.items())
        raise ConfigError(
            f"{len(wrong)} of {1 + len(others)} nodes cannot work for the run (or take them out of the cluster, or "
            f"set placement.check_nodes=false where no worker will go there): {told}"
        )


def needed_paths(config: RunConfig, policy_dir: Path | None) -> list[NeededPath]:
    """What workers read and write outside of what travels with a job, by key, as the configuration has it.

    Args:
        policy_dir: None: not prepared yet; what the configuration names then stands for it.
    """
    named = media_roots(config)
    if config.evaluation.benchmark and policy_dir is not None:
        named["evaluation.video_root"] = config.evaluation.video_root or _folder_of(config.evaluation.path)
    needed = [NeededPath(key, path, DECODES) for key, path in named.items()]
    if policy_dir is None or config.cold_start.enabled or _uses_quickstart(config):
        needed.append(NeededPath("cache_dir", config.cache_dir, READS_POLICY, is_written=True))
    if policy_dir is not None:
        is_made = policy_dir.absolute().is_relative_to(Path(config.cache_dir).absolute())
        needed.append(NeededPath("cache_dir" if is_made else "policy.path", str(policy_dir), READS_POLICY))
    elif config.policy.path and not config.policy.is_on_hub:
        needed.append(NeededPath("policy.path", config.policy.path, READS_POLICY))
    if settings := config.learner.deepspeed_config:
        needed.append(NeededPath("learner.deepspeed_config", settings, WRITES_RUN))
    return [*needed, NeededPath("output_dir", config.output_dir, WRITES_RUN, is_written=True)]


def kinds_on(node: Node, config: RunConfig, demand: Demand) -> frozenset[str]:
    """The kinds of workers that Ray may place on a node."""
    found = {kind for kind, (count, asked) in _asked(config, demand).items() if count and node.has_room_for(asked)}
    return frozenset(found | _samples(config))


def lines_for_dry_run(config: RunConfig) -> Iterator[str]:
    """What each node will need, in words: packages, workers, paths, memory."""
    from actors.cluster.placement import Demand

    counts = (0, 0) if config.only_finetunes else (config.rollout.num_workers, config.scoring.num_workers)
    demand = Demand(*counts, config.learner.num_ranks)
    yield "what nodes will need:"
    yield f"  packages, the same everywhere: {', '.join(f'{name} {text}' for name, text in installed().items())}"
    for kind, (count, asked) in _asked(config, demand).items():
        if count:
            each = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
            yield f"  {kind}: {count} worker{'s' if count > 1 else ''}, each with {each}"
    kinds = {kind for kind, (count, _) in _asked(config, demand).items() if count} | _samples(config)
    for needed in needed_paths(config, None):
        disk = ", one disk for all nodes" if needed.is_written else ""
        yield f"  {needed.key}: {_in_a_job(needed)}{disk}; for {', '.join(sorted(needed.by & kinds))}"
    yield from _memory_lines(config)


def _memory_lines(config: RunConfig) -> Iterator[str]:
    plan = plan_memory(config, elsewhere=True)
    if plan is None:
        yield "  memory: not planned: it needs the policy's config.json"
        return
    for place in plan.places:
        held = f"{place.num_bytes / GIB:.1f} GiB"
        of = f" of {place.capacity / GIB:.1f} ({place.room})" if place.capacity is not None else ""
        count = f"{place.count} x " if place.count > 1 else ""
        yield f"  memory, {count}{place.name}: {held}{of}{'' if place.fits else ': does not fit'}"


def _asked(config: RunConfig, demand: Demand) -> Mapping[str, tuple[int, Mapping[str, float]]]:
    """By kind of worker: how many there are, and the resources that each asks for."""
    placement = config.placement

    def resources(cpus: float, gpus: float) -> Mapping[str, float]:
        return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})

    return {
        "rollout": (demand.rollout, resources(placement.rollout_cpus, placement.rollout_gpus)),
        "reward": (demand.reward, resources(placement.reward_cpus, 0.0)),
        "learner": (demand.learner, resources(placement.learner_cpus, placement.learner_gpus)),
    }


def _unanswered(cause: str) -> str:
    return f"{cause}; does a mount hang there, is this project installed there?"


def _named(nodes: Sequence[Node]) -> str:
    listed = ", ".join(map(str, nodes[:MOST_NODES]))
    more = f" and {len(nodes) - MOST_NODES} more" if len(nodes) > MOST_NODES else ""
    return f"node{'s' if len(nodes) > 1 else ''} {listed}{more}"


def _in_a_job(needed: NeededPath) -> str:
    """Where a job looks for it."""
    if os.path.isabs(needed.path):
        return needed.path
    if needed.key in ("output_dir", "cache_dir"):
        return f"{Path('~', JOB_HOME, needed.path)} (on several nodes: name an absolute path)"
    return f"{needed.path} (in the job's folder)"


def _folder_of(path: str) -> str:
    return path if os.path.isdir(path) else os.path.dirname(path)


def _uses_quickstart(config: RunConfig) -> bool:
    return bool(config.rewards) and "quickstart" in (config.data.train.format, config.data.held_out.format)


def _samples(config: RunConfig) -> frozenset[str]:
    """Workers that encode supervised examples, where there are any; they reserve nothing, so any node has room."""
    return frozenset({"sample"} if config.cold_start.enabled or config.only_finetunes else ())
