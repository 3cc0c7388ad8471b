"""The README is true: its files are there, its links lead somewhere, and what it shows of YAML and Python works."""

import os
import re
from pathlib import Path

import pytest

from actors.reward import weighted_rewards
from rewards.golden import golden_group
from rewards.scoring import score_group
from rl.config.file import load_config
from rl.run.resume import MEANING
from rl.trajectory import AnswerKind, RewardFailure

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SHOWING = ("README.md", "docs/data.md", "docs/rewards.md")  # pages whose YAML and Python a reader copies
TOP = ("rl", "actors", "rewards", "envs", "cluster")
GENERATED = ("docs/reference/", "docs/decisions/index.md")  # by docs/build.py, which refuses links that lead nowhere


def blocks(page, language):
    """Code of one language in a page, by the file name in its first line: "# mine.yaml"; others are fragments."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return {match[1]: text for text in found if (match := re.match(r"# ([\w.]+)\n", text))}


def bases(page, name):
    """The configurations over which the page's commands load a file."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return sorted(set(re.findall(rf"(configs/\w+\.yaml) {re.escape(name)}", text)))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_every_source_file_has_its_line_in_the_architecture_and_every_line_its_file():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    mapped = set(re.findall(r"^\| `([\w/]+\.(?:py|sh|yaml|json|txt)|[\w/]+/)` \|", text, flags=re.MULTILINE))
    present = {str(path.relative_to(REPOSITORY)) for top in TOP for path in (REPOSITORY / top).rglob("*.py")}
    present = {name for name in present if not name.endswith(("__init__.py", "__main__.py"))}
    present |= {f"configs/{path.name}" for path in (REPOSITORY / "configs").iterdir()} | {"rl/report/assets/"}
    assert present <= mapped, f"not in docs/architecture.md: {sorted(present - mapped)}"
    assert all((REPOSITORY / name).exists() for name in mapped), sorted(mapped)


def test_every_configuration_and_cluster_file_it_speaks_of_is_there():
    named = set(re.findall(r"\b(?:configs|cluster)/\w+\.(?:yaml|json|txt|sh|py)\b", README))
    assert all((REPOSITORY / name).is_file() for name in named), sorted(named)


@pytest.mark.parametrize("page, name", [(page, name) for page in SHOWING for name in blocks(page, "yaml")])
def test_every_yaml_shown_is_loaded_over_the_configuration_named_for_it(page, name, tmp_path, monkeypatch):
    monkeypatch.delenv("DYNFRAME_REAL_DATA", raising=False)
    assert bases(page, name), f"no command of {page} loads {name}"
    (tmp_path / name).write_text(blocks(page, "yaml")[name])
    for base in bases(page, name):
        config = load_config([REPOSITORY / base, tmp_path / name])
        shown = {config.data.train.format, config.data.held_out.format}
        assert shown == {"quickstart"} or config.video.decode_workers, f"{base}: strangers' clips without limits"


@pytest.mark.parametrize("page", ["README.md", "docs/rewards.md"])
def test_the_rewards_shown_take_the_place_of_those_of_the_quickstart_and_give_numbers(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the commands would be given
    for name, text in (blocks(page, "python") | blocks(page, "yaml")).items():
        Path(name).write_text(text)
    before = load_config([REPOSITORY / "configs/quickstart.yaml"]).rewards
    after = load_config([REPOSITORY / "configs/quickstart.yaml", "rewards.yaml"]).rewards
    swapped, dropped, added = after["format"], after["frame_rate"], after.keys() - before.keys()
    assert swapped.fn == "my_rewards.py:brevity" and before["format"].fn == "output_format"
    assert (swapped.segment, swapped.weight) == (before["format"].segment, before["format"].weight)
    assert (dropped.fn, dropped.weight) == (before["frame_rate"].fn, 0.0)
    assert all(after[name].segment == "sampling" for name in added)
    assert {name: after[name] for name in ("window", "answer")} == {name: before[name] for name in ("window", "answer")}
    for kind in AnswerKind:
        scores = score_group(golden_group(kind), weighted_rewards(after), calls="mean").rewards_G
        assert not [score for score in scores if isinstance(score, RewardFailure)]
        assert any({"format", *added} <= score.breakdown.keys() for score in scores)


def test_the_page_on_resuming_names_every_setting_that_makes_another_run():
    page = (REPOSITORY / "docs" / "resume.md").read_text(encoding="utf-8")
    for key in MEANING:
        assert (f"`{key}*`" if key.endswith(".") else f"`{key}`") in page, key


def test_every_relative_link_of_the_documents_exists():
    for page in [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "benchmarks").rglob("*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            aim = os.path.relpath(page.parent / link, REPOSITORY)
            assert aim.startswith(GENERATED) or (REPOSITORY / aim).exists(), f"{page.relative_to(REPOSITORY)}: {link}"


def test_no_placeholders_are_left():
    assert "@@" not in README
