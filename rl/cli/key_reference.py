"""`dynframe config`: the reference of configuration keys, in a terminal, as Markdown or as JSON."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.cli.terminal import print_json, say
from rl.config.errors import ConfigError, shown
from rl.config.reference import KeyReference, SectionReference, configuration_reference, markdown_table


def print_keys(section: str, console: Console, *, markdown: bool, as_json: bool) -> None:
    """Every section, or one with those in it.

    Raises:
        ConfigError: there is no such section.
    """
    found = configuration_reference(section)
    if not found:
        names = [each.name for each in configuration_reference() if each.name]
        nearest = difflib.get_close_matches(section, names, n=1, cutoff=0.0)[0]
        raise ConfigError(f"no section {shown(section)}; did you mean {nearest!r}? All: {', '.join(names)}")
    if markdown:
        say("\n\n".join(f"## {_title(each)}\n\n{each.meaning}\n\n{markdown_table(each.keys)}" for each in found))
    elif not as_json:
        _print_tables(found, console)
    if as_json:
        print_json({"sections": [asdict(each) for each in found]})


def _print_tables(sections: Sequence[SectionReference], console: Console) -> None:
    for each in sections:
        console.print(f"\n[bold]{escape(_title(each))}[/]  {escape(each.meaning)}", highlight=False)
        if not each.keys:
            continue
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("key", no_wrap=True)
        table.add_column("default", overflow="fold")
        table.add_column("type", style="dim")
        table.add_column("what it is", ratio=1)
        for key in each.keys:
            table.add_row(*map(escape, _row(key, each.name)))
        console.print(table, soft_wrap=False)


def _row(key: KeyReference, section: str) -> tuple[str, str, str, str]:
    kind = key.unit or key.type
    return key.name.removeprefix(f"{section}."), key.default or "(required)", kind, key.reason


def _title(section: SectionReference) -> str:
    return section.name or "(top level)"
