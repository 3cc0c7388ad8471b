"""`make docs`: the site, with its references generated from the code, built strictly.

Pages are Markdown files of docs/; this stages them in build/docs beside what is generated and what stands elsewhere in
the repository (changelog, contributing, measurements), and lets Zensical build build/site. A link or an anchor that
leads nowhere ends the build.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import typer

from rl.cli.main import EPILOG, app
from rl.config.reference import configuration_reference, markdown_table
from rl.tracking.metrics import RENAMED_METRICS, metrics_reference

HERE = Path(__file__).parent
ROOT = HERE.parent
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site.yml"  # the builder wants its settings above the pages
ELSEWHERE = {  # pages that stand outside docs/: their place in the repository -> in the site
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "measured/RESULTS.md",
    "benchmarks/GPU.md": "measured/GPU.md",
    "benchmarks/decode.md": "measured/decode.md",
    "benchmarks/decode_looks.md": "measured/decode_looks.md",
    "benchmarks/encode.md": "measured/encode.md",
    "benchmarks/encode.png": "measured/encode.png",
    "benchmarks/flexivideo/README.md": "measured/flexivideo.md",
    "benchmarks/flexivideo/RESULTS.md": "measured/flexivideo_results.md",
    "benchmarks/flexivideo/tokens.png": "measured/tokens.png",
    "examples/my_project/README.md": "my_project.md",
    "benchmarks/density/README.md": "measured/density.md",
    "benchmarks/density/RESULTS.md": "measured/density_results.md",
    "benchmarks/density/rates.png": "measured/rates.png",
    "benchmarks/density/costs.png": "measured/costs.png",
    "benchmarks/learning/README.md": "measured/learning.md",
    "benchmarks/learning/RESULTS.md": "measured/learning_results.md",
    "benchmarks/learning/BANDIT.md": "measured/learning_bandit.md",
    # its figures, as many as the runs that are finished have
    **{str(one.relative_to(ROOT)): f"measured/{one.name}" for one in (ROOT / "benchmarks" / "learning").glob("*.png")},
}
PAGES = (".md", ".svg", ".png")
API_ROOMS = {  # what an extension of the project imports: heading -> modules or folders
    "The types": ("rl/trajectory.py",),
    "The loop": ("rl/trainer.py",),
    "Algorithm": ("rl/algorithm",),
    "Rewards": ("rewards",),
    "Environment": ("envs/*.py",),
    "Data": ("envs/data",),
    "Video": ("envs/video",),
    "Benchmarks": ("envs/benchmarks/benchmark.py", "envs/benchmarks/reading.py", "envs/benchmarks/metrics.py"),
    "Policy": ("rl/policy",),
    "Learner": ("rl/learner",),
    "Checkpoints": ("rl/checkpoint",),
    "Tracking": ("rl/tracking",),
    "Ray workers": ("actors",),
}


LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?\)")


def main() -> int:
    """Stage and build; the builder's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve on 127.0.0.1:8000 instead")
    arguments = parser.parse_args()
    stage(STAGED)
    shutil.copyfile(HERE / "site.yml", SITE)
    way = ["serve", "-a", "127.0.0.1:8000"] if arguments.serve else ["build", "--strict", "--clean"]
    return subprocess.call([sys.executable, "-m", "zensical", *way, "-f", str(SITE)], cwd=ROOT)


def stage(target: Path) -> None:
    """Copy every page and write the generated ones, with links that fit where the pages stand in the site."""
    shutil.rmtree(target, ignore_errors=True)
    pages = {path.relative_to(ROOT): path.relative_to(HERE) for path in sorted(HERE.rglob("*")) if path.suffix in PAGES}
    pages |= {Path(place): Path(page) for place, page in ELSEWHERE.items()}
    for place, page in pages.items():
        _write(target / page, _relinked(place, page, pages) if place.suffix == ".md" else (ROOT / place).read_bytes())
    generated = {
        "reference/configuration.md": configuration_page(),
        "reference/metrics.md": metrics_page(),
        "reference/commands.md": commands_page(),
        "decisions/index.md": decisions_page(),
        **{f"reference/api/{name}": text for name, text in api_pages()},
    }
    for page, text in generated.items():
        _write(target / page, text)


def configuration_page() -> str:
    """Every key of a run's configuration, section by section."""
    parts = [
        "# Configuration",
        "Every key, generated from `rl/config/`. Set any of them in a YAML file or as `key=value` after it; "
        "`dynframe config [SECTION]` prints the same in a terminal.",
        "A text keeps what stands there: `name: 1.10` is `1.10`, `on` is `on`, and `key=value` needs no quotes. A "
        "number is written as everybody reads it: `0100`, `1:30`, `0x10`, `1_000`, which YAML versions read unlike, "
        "are refused with what to write. In a path `~` is the home folder and `$` is refused; of the environment, "
        "`${oc.env:DYNFRAME_NAME,default}` is read, in any value. Relative paths are taken from the working directory; "
        "code (`path/file.py:name`) from the folder of the YAML file that names it.",
    ]
    for section in configuration_reference():
        parts += [f"## `{section.name}`" if section.name else "## The run itself", section.meaning]
        parts.append(markdown_table(section.keys))
    return _joined(parts)


def metrics_page() -> str:
    """Every metric with its unit and meaning."""
    head = (
        "Every number in `metrics.jsonl`, TensorBoard, W&B and Ray's Metrics view, generated from "
        "`rl/tracking/metrics.py`. A name that ends in `/` stands for all that begin with it."
    )
    rows = [(f"`{row.name}`", row.unit, row.meaning) for row in metrics_reference()]
    renamed = [(f"`{old}`", f"`{new}`") for old, new in sorted(RENAMED_METRICS.items())]
    earlier = "Runs of 0.3.0 are read by the names of today; a dashboard of your own has to be told."
    tables = _table(("metric", "unit", "meaning"), rows), _table(("in 0.3.0", "now"), renamed)
    return _joined(["# Metrics", head, tables[0], "## Earlier names", earlier, tables[1]])


def commands_page() -> str:
    """What `--help` says of every command."""
    group = typer.main.get_command(app)
    parts = ["# Commands", "What `dynframe COMMAND --help` says. " + EPILOG]
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, info_name=f"dynframe {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts += [f"## dynframe {name}", f"```text\n{usage}\n```", _paragraphs(command.help or "")]
        rows = [
            (f"`{' '.join(parameter.opts)}`", parameter.help or "")
            for parameter in command.params
            if parameter.param_type_name == "option" and parameter.name != "help"
        ]
        if rows:
            parts.append(_table(("option", "what it does"), rows))
    return _joined(parts)


def decisions_page() -> str:
    """The decisions, by number, each with its title."""
    lines = []
    for path in sorted((HERE / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    head = "Where the project departs from the papers, from a first plan, or from what one would expect, and why."
    return _joined(["# Decisions", head, "\n".join(lines)])


def api_pages() -> Iterator[tuple[str, str]]:
    """(file name, Markdown) of the API reference: an index, and a page per room."""
    links = []
    for heading, places in API_ROOMS.items():
        name = f"{heading.lower().replace(' ', '_')}.md"
        links.append(f"- [{heading}]({name})")
        yield name, _joined([f"# {heading}", *(f"::: {module}" for module in _modules(places))])
    yield "index.md", _joined(["# API", "From the docstrings of what an extension imports.", "\n".join(links)])


def _modules(places: tuple[str, ...]) -> list[str]:
    """Dotted names of the modules in files, folders (all below) and patterns."""
    found = []
    for place in places:
        paths = ROOT.glob(place) if "*" in place else [ROOT / place]
        for path in sorted(paths):
            found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found if path.stem != "__init__"]


def _relinked(place: Path, page: Path, pages: dict[Path, Path]) -> str:
    """A page's text with links to other pages as they have to read in the site; the builder judges the rest."""

    def relink(match: re.Match[str]) -> str:
        aim = Path(os.path.normpath(place.parent / match[2]))
        if aim not in pages:
            return match[0]
        return f"{match[1]}{os.path.relpath(pages[aim], page.parent)}{match[3] or ''})"

    return LINK.sub(relink, (ROOT / place).read_text(encoding="utf-8"))


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        heads,
        ["---"] * len(heads),
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
