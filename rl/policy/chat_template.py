"""What a policy's chat template says of its prompts' end: whether the thought is open when the policy begins to write.

    Instruct   …<|im_start|>assistant\\n
    Thinking   …<|im_start|>assistant\\n<think>\\n

A template is a program that came with the checkpoint: it is parsed and read, never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from rl.policy.token_ids import PolicyFilesError

ASKED = "add_generation_prompt"  # the template's variable: end where the assistant begins
THINK = "<think>"
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own, around the assistant's text


def opens_thought(folder: Path) -> bool:
    """Whether the prompts that a folder's chat template writes end within an open `<think>`; no template opens none.

    Raises:
        PolicyFilesError: the template cannot be parsed.
    """
    path, source = _template(folder)
    if THINK not in source:
        return False
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", source))
        ends = ["".join(map(_constant, _outputs(branch))) for branch in parsed.find_all(nodes.If) if _is_end(branch)]
    except (TemplateError, RecursionError) as error:
        raise PolicyFilesError(
            f"{path}: its chat template cannot be read ({error}), so that it is unknown whether prompts open {THINK}; "
            "copy it from the original checkpoint"
        ) from error
    return any(end.rstrip().endswith(THINK) for end in ends)


def _template(folder: Path) -> tuple[Path, str]:
    """The file and the text of the template that transformers would take; empty where there is none."""
    if (path := folder / "chat_template.jinja").is_file():
        return path, path.read_text(encoding="utf-8", errors="replace")
    for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        if (found := _text(_read(path))) is not None:
            return path, found
    return folder, ""


def _read(path: Path) -> Any:
    """A file's `chat_template`; what cannot be read is for its own reader to refuse."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("chat_template") if isinstance(content, dict) else None


def _text(template: Any) -> str | None:
    """One template, or the default one of several."""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _is_end(branch: nodes.If) -> bool:
    asked = not isinstance(branch.test, nodes.Not)
    names = (branch.test,) if isinstance(branch.test, nodes.Name) else branch.test.find_all(nodes.Name)
    return asked and any(name.name == ASKED for name in names)


def _outputs(branch: nodes.If) -> Iterator[nodes.Node]:
    """What the branch always writes; what depends on further conditions is left out."""
    for statement in branch.body:
        if isinstance(statement, nodes.Output):
            yield from statement.nodes


def _constant(node: nodes.Node) -> str:
    """The text of an expression that is one; nothing is computed but sums of texts."""
    match node:
        case nodes.TemplateData():
            return node.data
        case nodes.Const():
            return str(node.value)
        case nodes.Add():
            return _constant(node.left) + _constant(node.right)
        case _:
            return ""
