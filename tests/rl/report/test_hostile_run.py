"""The page of a run in which everything that others wrote is hostile: the same elements as any page, and only data."""

from dataclasses import replace

import pytest
import yaml

from rl.report.build import build_report
from rl.report.thumbnails import FramesUnavailableError
from tests.rl.report import recorded_run
from tests.rl.report.test_page import parsed

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \u2028\u202e\x00\x1b[31m '\"--><!-- &lt;"


class NoClip:
    """Every clip is unreadable, and says so in the clip's own words."""

    def duration_s(self, video):
        raise FramesUnavailableError(HOSTILE)

    def frames(self, video, times_ms, longest_side):
        raise FramesUnavailableError(HOSTILE)


@pytest.fixture
def page_of(tmp_path_factory, monkeypatch):
    clips = tmp_path_factory.mktemp("clips")
    ordinary = recorded_run._task

    def built(text):
        folder = tmp_path_factory.mktemp("runs") / "run"
        texts = {"task_id": text, "question": text, "answer": text, "video_path": f"/{text}.mp4"}
        monkeypatch.setattr(recorded_run, "_task", lambda *given: replace(ordinary(*given), **texts))
        recorded_run.write_run(folder, clips, steps=1, written=text)
        (folder / "config.yaml").write_text(yaml.safe_dump({"name": text, text: {text: [text]}}))
        build_report(folder, folder / "report.html", NoClip(), max_bytes=2**24)
        return (folder / "report.html").read_text(encoding="utf-8")

    return built


def test_a_hostile_run_has_the_elements_of_any_other_and_its_words_are_data(page_of):
    page, inert = page_of(HOSTILE), page_of("harmless")
    assert parsed(page).tags == parsed(inert).tags
    assert len(parsed(page).scripts) == len(parsed(inert).scripts)
    for spelled in ("<script>alert", "<img", "\u2028", "\u202e", "\x00", "\x1b"):
        assert spelled not in page  # compressed, or escaped


@pytest.mark.cli  # seconds: it stands in every trajectory
def test_a_text_of_a_million_characters_makes_a_page_within_its_budget(page_of):
    assert len(page_of("x<" * 500_000)) < 2**24
