"""The tools that a policy may call, each found by the token that ends its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import TAGS as SPAN_FPS_TAGS
from envs.tools.span_fps import SpanFps
from envs.tools.tool import Tool
from envs.tools.zoom import Zoom
from rl.trajectory import SPAN_FPS

BUILTIN = {SPAN_FPS: SpanFps, "zoom": Zoom}  # by name: made with the rules of a run


class Encoder(Protocol):
    """What is needed of envs.prompts.VideoProcessor."""

    def encode(self, text: str) -> list[int]: ...


class ToolTagsError(ValueError):
    """The policy cannot write requests of a tool: its tags are no tokens of it."""


class Toolbox:
    """Tools by the token that ends a request; built-in ones that are not enabled, too, where the policy knows them:
    their requests are refused by name."""

    def __init__(self, tools: Sequence[Tool], processor: Encoder, others: Sequence[Tool] = ()) -> None:
        """
        Args:
            tools: that are enabled, no two of one name.
            others: that are not.
        Raises:
            ToolTagsError: a tag of theirs is not one token of the policy, or two tools end with the same.
        """
        self.enabled = tuple(tools)
        self._by_end: dict[int, Tool] = {}
        for tool in tools:
            tokens = {tag: processor.encode(tag) for tag in tool.tags}
            lacking = [tag for tag, token_ids in tokens.items() if len(token_ids) != 1]
            if lacking:
                raise ToolTagsError(
                    f"tool {tool.name}: {', '.join(lacking)} is no token of this policy, and an engine stops at tokens "
                    "only: begin with the stock checkpoint (policy.path), to which conversion adds the tags of "
                    "retrieval.tools"
                )
            (end,) = tokens[tool.tags[-1]]
            if end in self._by_end:
                raise ToolTagsError(
                    f"tools {self._by_end[end].name} and {tool.name} both end with {tool.tags[-1]}: a request must say "
                    "whose it is"
                )
            self._by_end[end] = tool
        for tool in others:
            if len(ends := processor.encode(tool.tags[-1])) == 1:
                self._by_end.setdefault(ends[0], tool)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Where an engine stops for a request."""
        return tuple(self._by_end)

    def of(self, token_id: int) -> Tool | None:
        """The tool whose request ends with this token."""
        return self._by_end.get(token_id)


def builtin_toolbox(rules: RetrievalRules, processor: Encoder) -> Toolbox:
    """The built-in tools that `rules` names; see envs.tools.users for those of others."""
    return Toolbox(builtin_tools(rules), processor, not_enabled(rules))


def builtin_tools(rules: RetrievalRules) -> list[Tool]:
    """Those of them that `rules` names."""
    return [BUILTIN[name](rules) for name in rules.tools if name in BUILTIN]


def not_enabled(rules: RetrievalRules) -> list[Tool]:
    """Built-in tools that `rules` does not name."""
    return [tool(rules) for name, tool in BUILTIN.items() if name not in rules.tools]


def further_tags(tools: Sequence[Tool]) -> tuple[str, ...]:
    """Their tags beside those that every policy has, in order, each once."""
    return tuple(dict.fromkeys(tag for tool in tools for tag in tool.tags if tag not in SPAN_FPS_TAGS))
