"""The tools of the policy: loaded, and scored by some reward. Part of the composition root."""

from __future__ import annotations

from envs.tools.users import load_tools
from rewards.registry import OF_TOOL
from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.run.preflight.findings import Finding, Level, on_one_line
from rl.run.prepare.episode_context import retrieval_rules
from rl.run.prepare.errors import as_config_error


def check_tools(config: RunConfig) -> list[Finding]:
    """Each tool is loaded; where any reward counts for calls, every tool's calls have one."""
    try:
        with as_config_error():
            names = [tool.name for tool in load_tools(retrieval_rules(config))]
    except ConfigError as error:
        return [Finding("retrieval.tools", Level.FAILED, on_one_line(error))]
    if problem := _unscored(config, names):
        return [Finding("retrieval.tools", Level.FAILED, problem)]
    return [Finding("retrieval.tools", Level.OK, ", ".join(names))]


def _unscored(config: RunConfig, names: list[str]) -> str:
    """Which rewards and tools do not belong together; empty: all do."""
    terms = {name: term for name, term in config.rewards.items() if term.segment == "sampling"}
    scored = {name: term.tool or OF_TOOL.get(term.fn, "") for name, term in terms.items()}
    for name, tool in scored.items():
        if terms[name].tool and tool not in names:
            return f"rewards.{name}.tool={tool}: retrieval.tools has {', '.join(names)}"
    counting = {tool for name, tool in scored.items() if terms[name].weight > 0}
    if not counting or "" in counting or not config.retrieval.max_calls:
        return ""
    without = [name for name in names if name not in counting]
    if not without:
        return ""
    built_in = [fn for fn, tool in OF_TOOL.items() if tool == without[0]]
    remedy = f"fn: {built_in[0]}" if built_in else f"fn: my_rewards.py:score, tool: {without[0]}"
    return (
        f"no sampling reward scores the calls of {without[0]}, which would be worth nothing: add one, as "
        f"rewards.{without[0]}: {{{remedy}, segment: sampling}}"
    )
