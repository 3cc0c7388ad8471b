"""The HTML file: a template, our style and scripts, and data that can only ever be data.

Data enters as base64 of gzip, or as JSON whose <, > and & are escaped, in script elements of a type
no browser executes; the policy of the page allows our script and style by their hashes, images only as data, and no
connection anywhere (a live page: to where it came from).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"
RUN_PAGE, RUNS_PAGE = "run", "runs"  # the report of a run, and the page of several
SCRIPTS = {
    RUN_PAGE: (
        "data.js",
        "dom.js",
        "chart.js",
        "tables.js",
        "failures.js",
        "faults.js",
        "lanes.js",
        "run.js",
        "groups.js",
        "filters.js",
        "steps.js",
        "calls.js",
        "timeline.js",
        "text.js",
        "rewards.js",
        "trajectory.js",
        "theme.js",
        "main.js",
    ),
    RUNS_PAGE: (
        "dom.js",
        "chart.js",
        "runs/data.js",
        "runs/list.js",
        "runs/plot.js",
        "runs/curves.js",
        "runs/windows.js",
        "runs/predictions.js",
        "theme.js",
        "runs/main.js",
    ),
}
STYLES = {RUN_PAGE: ("style.css",), RUNS_PAGE: ("style.css", "runs/style.css")}
TABS = {  # of a page: name and heading
    RUN_PAGE: (("run", "Run"), ("steps", "Steps"), ("trajectory", "Trajectory")),
    RUNS_PAGE: (("runs", "Runs"), ("curves", "Curves"), ("predictions", "Predictions")),
}
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # all beyond ASCII is escaped by json


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of data in the page."""

    id: str
    type: str
    text: str  # nothing in it can end a script element

    def __len__(self) -> int:
        return len(self.text)


def json_part(name: str, data: Any) -> Part:
    """Data as JSON."""
    return Part(name, "application/json", script_safe_json(data))


def packed_part(name: str, packed: bytes) -> Part:
    """gzip of JSON, as base64."""
    return Part(name, "application/gzip", base64.b64encode(packed).decode("ascii"))


def script_safe_json(data: Any) -> str:
    """JSON that means the same inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"))
    for character, escaped in ESCAPED.items():
        text = text.replace(character, escaped)
    return text


def render(title: str, parts: Sequence[Part], *, live: bool, page: str = RUN_PAGE, home: str = "") -> str:
    """The page.

    Args:
        page: which one: RUN_PAGE or RUNS_PAGE.
        home: of a run's page that is served among others: where those are.
    """
    template = _environment().get_template("page.html.j2")
    return template.render(
        title=title,
        policy=content_policy(live=live, page=page),
        style=Markup(_style(page)),
        script=Markup(_script(page)),
        tabs=TABS[page],
        home=home,
        parts=parts,
        live=live,
    )


def content_policy(*, live: bool, page: str = RUN_PAGE) -> str:
    """Content-Security-Policy: our own script and style, pictures out of the page, nothing else."""
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{_hash(_script(page))}'",
        "style-src": f"'sha256-{_hash(_style(page))}'",
        "img-src": "data:",
        "connect-src": "'self'" if live else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def page_bytes(parts: Sequence[Part]) -> int:
    """Size of a page with these parts."""
    return len(render("", parts, live=False).encode("utf-8"))


def write_page(out: Path, title: str, parts: Sequence[Part]) -> int:
    """Write the page in one piece: a reader finds the old one or the new one.

    Returns:
        Its bytes.
    """
    page = render(title, parts, live=False).encode("utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(page)
        os.chmod(draft, 0o644)
        os.replace(draft, out)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return len(page)


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


@cache
def _style(page: str) -> str:
    return "\n" + "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES[page])


@cache
def _script(page: str) -> str:
    files = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS[page])
    return f'\n"use strict";\n(() => {{\n{files}\n}})();\n'


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
