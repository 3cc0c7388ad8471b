"""What a fine-tuning run learns from and is evaluated on: rows of all sources, some held out. Nothing is decoded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console

from envs.data.conversation_rows import Conversation, load_conversations
from envs.data.dataset import RejectedRow, load_traces
from envs.data.hub_copy import Part
from envs.data.rows import DatasetError
from envs.data.sources import locate_files
from rl.config.errors import ConfigError
from rl.config.finetune import TRACES, ConversationSourceConfig
from rl.config.run import RunConfig
from rl.run.console.stages import say
from rl.run.prepare.encoder import Example
from rl.run.prepare.errors import as_config_error
from rl.run.prepare.tasks import report_rejected, unusable_clips

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class Examples:
    """The usable examples of all sources."""

    train: tuple[Example, ...]
    held_out: tuple[tuple[str, Example], ...]  # with the name of the source, sources in turn
    rejected: int  # rows that cannot be used


def require_conversation_sources(config: RunConfig) -> None:
    """Look for every annotation file and folder of media, before anything is read.

    Raises:
        ConfigError: one is missing, or there is no source at all.
    """
    if not config.finetune.sources:
        raise ConfigError(
            "finetune.sources is empty: name what is learned from, e.g. "
            "finetune.sources.clips.path=0_30_s_nextqa_oe_qa_processed.json (format llava), and media_root"
        )
    for name, source in config.finetune.sources.items():
        try:
            locate_files(source.path, source.media_root, Part(source.split, source.subset))
        except DatasetError as error:
            raise ConfigError(f"finetune.sources.{name}: {error}") from error


@as_config_error()
def prepare_examples(config: RunConfig, console: Console) -> Examples:
    """Read every source; rows that cannot be used are reported, and refused if so configured.

    Raises:
        ConfigError: a source has no usable row, nothing is left to learn from, or a bad row with data.bad_rows=refuse.
    """
    unusable = unusable_clips(config)
    usable: dict[str, Sequence[Example]] = {}
    rejected = 0
    for name, source in config.finetune.sources.items():
        examples, refused = _read(source, unusable)
        report_rejected(config, f"finetune-{name}", refused)
        if not examples:
            first = f"; {refused[0].file}:{refused[0].line}: {refused[0].reason}" if refused else ""
            raise DatasetError(f"finetune.sources.{name}: no usable row in {source.path}{first}")
        usable[name], rejected = examples, rejected + len(refused)
    made = _divided(config, usable, rejected)
    counts = ", ".join(f"{name} {len(examples):,}" for name, examples in usable.items())
    say(console, f"usable rows: {counts}; {len(made.train):,} are learned from, {len(made.held_out):,} held out")
    return made


def _read(
    source: ConversationSourceConfig, unusable: Mapping[str, str]
) -> tuple[Sequence[Example], tuple[RejectedRow, ...]]:
    part = Part(source.split, source.subset)
    if source.format == TRACES:
        traces = load_traces(TRACES, source.path, source.media_root, part=part, unusable=unusable)
        return traces.traces, traces.rejected
    loaded = load_conversations(
        source.format, source.path, source.media_root, part, question=source.question, unusable=unusable
    )
    return loaded.conversations, loaded.rejected


def _divided(config: RunConfig, usable: Mapping[str, Sequence[Example]], rejected: int) -> Examples:
    """What is learned from shows no medium that a held-out example shows."""
    sources, limit = config.finetune.sources, config.trainer.eval_tasks
    held_out = {name: _spread(examples, sources[name].held_out) for name, examples in usable.items() if limit}
    shown = {medium for examples in held_out.values() for example in examples for medium in _shown(example)}
    train = [
        example
        for name, examples in usable.items()
        for example in _spread([one for one in examples if shown.isdisjoint(_shown(one))], sources[name].rows or None)
    ]
    if not train:
        raise DatasetError("finetune.sources: nothing is left to learn from: hold fewer rows out")
    named = [[(name, example) for example in examples] for name, examples in held_out.items()]
    in_turn = [one for together in itertools.zip_longest(*named) for one in together if one is not None]
    return Examples(tuple(train), tuple(in_turn[:limit]), rejected)


def _spread(things: Sequence[Thing], count: int | None) -> Sequence[Thing]:
    """So many of them, evenly spread; None: all."""
    if count is None or count >= len(things):
        return things
    return [things[index * len(things) // count] for index in range(count)]


def _shown(example: Example) -> tuple[str, ...]:
    """Its media; of a text alone, itself."""
    if isinstance(example, Conversation):
        return tuple(media.path for media in example.media) or (example.conversation_id,)
    return (example.task.video_path,)
