"""The memory plan in `dynframe check`: made from what is there, shown as a table, refused where it cannot fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.config.learner import AUTO
from rl.config.run import RunConfig
from rl.memory_plan.gpus import DRIVER, found_gpu_gib, gpu_gib
from rl.memory_plan.plan import Hardware, memory_plan
from rl.memory_plan.record import GIB, Item, MemoryPlan, Place
from rl.memory_plan.remedies import Remedy, remedies
from rl.policy.sizes import SIZES
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import Structure, kernel_frames, read_structure, structure_of, tiny_structure
from rl.policy.token_ids import PolicyFilesError
from rl.run.preflight.findings import Finding, Level
from rl.run.preflight.machine import available_bytes, joins_a_cluster
from rl.run.prepare.policy import local_folder

SHOWN = 0.01  # share of a place below which an item is not shown by itself
GIVEN = "where you know better than the estimate, set placement.memory_gib"


def plan_memory(config: RunConfig, *, elsewhere: bool = False) -> MemoryPlan | None:
    """The plan of a run; None where nothing tells the shapes of its policy.

    Args:
        elsewhere: it will not work on this machine, whatever there is here.

    Raises:
        ConfigError: `placement.gpu` or `learner.deepspeed_config` cannot be used.
    """
    found = planned_structure(config)
    if found is None:
        return None
    return replace(_plan(config, found[0], elsewhere=elsewhere), assumed=found[1])


def _plan(config: RunConfig, structure: Structure, *, elsewhere: bool = False) -> MemoryPlan:
    """With what `placement.memory_gib` says instead of an estimate, where all of it is main memory."""
    plan, placement = memory_plan(config, structure, hardware_of(config, elsewhere=elsewhere)), config.placement
    if not placement.memory_gib or placement.rollout_gpus or placement.learner_gpus:
        return plan
    given = (Item("placement.memory_gib", placement.memory_gib * GIB),)
    return replace(plan, places=tuple(replace(place, items=given) for place in plan.places))


def planned_structure(config: RunConfig) -> tuple[Structure, str] | None:
    """The policy's shapes, and what they are assumed from where its folder is not there."""
    policy = config.policy
    if not policy.path:
        return tiny_structure(policy), ""
    folder, frames = local_folder(config), kernel_frames(policy)
    if folder is not None and (folder / "config.json").is_file():
        try:
            return structure_of(folder, policy), ""
        except PolicyFilesError:  # told where the policy is looked at
            return None
    size = next((size for size in SIZES if Path(size.repository).name == Path(policy.path).name), None)
    if size is None:
        return None
    return read_structure(model_config(size), size.repository, init_frames=frames), size.repository


def planned_parameters(config: RunConfig) -> int:
    """Of the policy, where its folder does not tell; 0: nothing does."""
    found = planned_structure(config)
    return found[0].parameters if found else 0


def check_heads(config: RunConfig) -> list[Finding]:
    """Whether the policy's attention heads can be dealt to ranks that share a sequence."""
    split, found = config.learner.sequence_parallel, planned_structure(config)
    if split == 1 or found is None:
        return []
    language = found[0].language
    if language.heads % split == 0 and (language.kv_heads % split == 0 or split % language.kv_heads == 0):
        return []
    detail = (
        f"learner.sequence_parallel={split} does not divide the policy's {language.heads} attention heads and "
        f"{language.kv_heads} key heads: set one that divides both"
    )
    return [Finding("attention heads", Level.FAILED, detail)]


def check_plan(config: RunConfig, plan: MemoryPlan | None) -> list[Finding]:
    """A finding per GPU and for the node; what cannot fit has the keys that help most."""
    if plan is None:
        plan = _plan(config, tiny_structure(config.policy))  # whatever the policy is, it takes no less
        if plan.fits:
            return [Finding("memory", Level.NOTE, "not planned: it needs the policy's config.json")]
    findings = [_found(config, place) for place in plan.places] + _recomputed(config, plan)
    findings += [Finding(f"memory, {demand.place}", Level.FAILED, demand.reason) for demand in plan.unmet]
    if plan.fits:
        return findings
    help_most = "; ".join(map(str, _remedies(config, plan))) or "no single key makes room"
    if not (config.placement.rollout_gpus or config.placement.learner_gpus):
        help_most = f"close programs, or {help_most}; {GIVEN}"
    return [
        Finding(found.subject, found.level, f"{found.detail}: {help_most}") if found.level is Level.FAILED else found
        for found in findings
    ]


def print_plan(plan: MemoryPlan | None, console: Console) -> None:
    """A table per place, its largest item first."""
    if plan is None:
        return
    if plan.assumed:
        console.print(f"memory, with the shapes of {escape(plan.assumed)}:", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("memory")
    table.add_column("GiB", justify="right")
    for place in plan.places:
        for name, value in _rows(place):
            table.add_row(name, value)
    console.print(table)
    if plan.recomputed != "none":
        console.print(f"recomputed in the backward pass (learner.activation_checkpointing): {plan.recomputed}")
    if plan.given_up is not None:
        console.print(f"in turn (placement.share_gpus): {plan.given_up}")


def _recomputed(config: RunConfig, plan: MemoryPlan) -> list[Finding]:
    """What `auto` comes to for learners on GPUs."""
    if config.learner.activation_checkpointing != AUTO or not config.placement.learner_gpus:
        return []
    if any(place.capacity is None for place in plan.places if place.name.startswith("GPU")):
        detail = "auto: none, for nothing tells what a GPU holds: placement.gpu does, or placement.gpu_memory_gib"
        return [Finding("learner.activation_checkpointing", Level.NOTE, detail)]
    return [Finding("learner.activation_checkpointing", Level.OK, f"auto: {plan.recomputed}")]


def _rows(place: Place) -> Iterator[tuple[str, str]]:
    """A place's line, then its items."""
    count = f"{place.count} x " if place.count > 1 else ""
    yield f"[bold]{count}{escape(place.name)}[/]", f"[bold]{place.num_bytes / GIB:.1f}[/]{_of_capacity(place)}"
    small = 0.0
    for item in sorted(place.items, key=lambda item: -item.num_bytes):
        if item.num_bytes < SHOWN * place.num_bytes:
            small += item.num_bytes
        else:
            yield f"  {escape(item.name)}", f"{item.gib:.2f}"
    if small:
        yield "  everything else", f"{small / GIB:.2f}"


def _found(config: RunConfig, place: Place) -> Finding:
    subject = f"memory, {place.count} x {place.name}" if place.count > 1 else f"memory, {place.name}"
    held = f"{place.num_bytes / GIB:.1f}{_of_capacity(place)} GiB"
    detail = (
        f"{held}{f' ({place.room})' if place.room else ''}; largest: {place.largest.name} {place.largest.gib:.1f} GiB"
    )
    if place.capacity is None:
        remedy = "placement.gpu" if place.name.startswith("GPU") else "placement.node_memory_gib"
        return Finding(subject, Level.NOTE, f"{detail}; not compared with anything: {remedy} says what there is")
    if not place.fits:
        return Finding(subject, Level.FAILED, detail)
    margin = config.placement.memory_margin
    if not place.name.startswith("GPU") and place.num_bytes * (1 + margin) > place.capacity:
        return Finding(subject, Level.NOTE, f"{detail}; less than {margin:.0%} to spare (placement.memory_margin)")
    return Finding(subject, Level.OK, detail)


def _of_capacity(place: Place) -> str:
    return "" if place.capacity is None else f" of {place.capacity / GIB:.1f}"


def _remedies(config: RunConfig, plan: MemoryPlan) -> list[Remedy]:
    def again(changed: RunConfig) -> MemoryPlan:
        found = planned_structure(changed)
        return _plan(changed, found[0] if found else tiny_structure(changed.policy))

    return remedies(config, plan, again)


def hardware_of(config: RunConfig, *, elsewhere: bool = False) -> Hardware:
    """What `placement` names, or what is found here where the run would be started here.

    Raises:
        ConfigError: `placement.gpu` is not known.
    """
    placement = config.placement
    here = not elsewhere and not joins_a_cluster()
    needs_gpu = bool(placement.rollout_gpus or placement.learner_gpus)
    gpu, name = placement.gpu_memory_gib, "placement.gpu_memory_gib"
    if not gpu and placement.gpu:
        gpu, name = gpu_gib(placement.gpu), placement.gpu
    if not gpu and here and needs_gpu:
        gpu, name = found_gpu_gib(), "found here"
    if placement.node_memory_gib:
        node, where = placement.node_memory_gib * GIB, "placement.node_memory_gib"
    elif here and (not needs_gpu or DRIVER.exists()):
        node, where = float(available_bytes()), "free here"
    else:
        node, where = None, ""
    return Hardware(gpu, name if gpu else "", placement.gpus_per_node, node, where)
