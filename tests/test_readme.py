"""The README's file map is complete and true, and its links lead somewhere."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ROOMS = ("rl", "rl/policy", "rl/report", "envs", "envs/benchmarks", "rewards", "actors", "cluster")


def test_every_source_file_has_its_line_and_every_line_its_file():
    mapped = set(re.findall(r"^\| `([\w/]+\.(?:py|sh|yaml|txt))` \|", README, flags=re.MULTILINE))
    present = {f"{room}/{path.name}" for room in ROOMS for path in (REPOSITORY / room).glob("*.py")}
    present = {name for name in present if not name.endswith("__init__.py")}
    assert present <= mapped, f"not in the README: {sorted(present - mapped)}"
    assert all((REPOSITORY / name).is_file() for name in mapped), sorted(mapped)


def test_every_relative_link_of_the_documents_exists():
    for page in [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "benchmarks").glob("*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(REPOSITORY)} links to {link}"


def test_no_placeholders_are_left():
    assert "@@" not in README
