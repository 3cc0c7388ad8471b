"""The page of several runs in a real Chromium: listed, compared, followed, their predictions browsed."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager

import pytest

from envs.synthetic.world import render_world, world_rows
from envs.video.reader import VideoReader
from rl.checkpoint.lease.holder import holder_text, this_process
from rl.report.http import PageServer
from rl.report.overview.folders import run_id
from rl.report.overview.site import RunsSite
from rl.run.page import ClipFrames
from tests.browser import HOSTILE, shot
from tests.rl.report.recorded_run import WORLD
from tests.rl.report.recorded_runs import begin_from, write_curves, write_evaluation

pytestmark = pytest.mark.browser


@contextmanager
def served(home):
    """The address under which the page of the runs in a folder answers."""
    with VideoReader(workers=0) as reader, PageServer(RunsSite([home], ClipFrames(reader), home.name), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three seeds of one name with an evaluation each, a phase that goes on from one of them, and a broken run."""
    folder = tmp_path_factory.mktemp("several")
    world = render_world(WORLD, folder / "clips")
    videos = [str(world.folder / row["video"]) for row in world_rows(WORLD, "train")]
    for seed in range(3):
        run = write_curves(folder / "runs" / f"look-seed{seed}", seed=seed)
        write_evaluation(run, "nextgqa", videos, questions=45, right=0.3 + 0.2 * seed, seed=seed, is_done=seed < 2)
    begun = write_curves(folder / "runs" / "begun", seed=9, steps=10)
    begin_from(begun, folder / "runs" / "look-seed0", 40)
    (begun / "lease.json").write_bytes(holder_text(this_process()))
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "config.yaml").write_text("name: [")
    return folder / "runs"


@pytest.fixture(scope="module")
def address(home):
    with served(home) as found:
        yield found


def rows(page):
    return page.locator("#run-table tbody tr")


def test_runs_are_listed_chosen_compared_and_followed_without_a_reload(home, address, open_page):
    page = open_page(address, allowed=address)
    page.evaluate("window.loaded = 1")
    assert page.locator(".facts").inner_text().split() == ["5", "runs", "1", "live", "3", "finished", "1", "broken"]
    begun = rows(page).filter(has_text="from look-seed0, step 40")
    assert begun.locator(".state").inner_text() == "live" and "10 of 40" in begun.inner_text()
    assert "config.yaml: cannot be read" in rows(page).filter(has_text="broken").locator(".reason").inner_text()
    page.wait_for_selector("text=1 live")
    with (home / "begun" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "time_s": 1.7e9, "reward/sampling": 0.625}\n')
    page.wait_for_selector("text=11 of 40")
    assert "0.625" in begun.inner_text()

    page.fill("#view-find", "seed")
    page.wait_for_selector("#run-table tbody:not(:has(tr:nth-child(4)))")
    assert rows(page).count() == 3
    assert page.evaluate("document.activeElement.id") == "view-find"
    for seed in range(3):
        page.check(f"#choose-{run_id(home / f'look-seed{seed}')}")
    shot(page, "runs-light")
    page.click("#compare")
    chart = page.locator("[data-chart='reward/sampling']")
    chart.wait_for()
    assert chart.locator("path.curve").count() == 3 and chart.locator(".reading").count() == 3
    last = json.loads((home / "look-seed1" / "metrics.jsonl").read_text().splitlines()[-2])["reward/sampling"]
    assert chart.locator(".reading").nth(1).inner_text() == f"{last:.3f}"
    chart.locator(".surface").focus()
    page.keyboard.press("Home")
    assert page.locator("[data-chart='policy/entropy'] .at-step").inner_text() == "step 1"
    assert page.locator("#pop .pop-row").count() == 3
    page.select_option("#view-bands", "1")
    page.wait_for_selector("[data-chart='reward/sampling'] path.seeds")
    assert chart.locator("path.curve").count() == 1 and "look, 3 seeds" in chart.locator(".legend").inner_text()
    page.select_option("#view-x", "time")
    page.select_option("#view-smoothing", "5")
    page.wait_for_selector("text=pauses included")
    shot(page, "curves-light")
    page.click("#metric-chooser summary")
    page.check("#section-grad")
    page.wait_for_selector("#plots:not(:has(> figure:nth-child(2))) > [data-chart='grad/norm']")
    assert "metrics=grad%2Fnorm" in page.url and page.evaluate("window.loaded") == 1

    page.click(".chip a")
    page.wait_for_selector("#home")
    page.wait_for_selector("h1:has-text('look-seed0')")
    page.click("#home")
    page.wait_for_selector("#run-table")


def test_predictions_are_browsed_wrong_ones_first_on_the_time_axis(home, address, open_page):
    chosen = ",".join(run_id(home / f"look-seed{seed}") for seed in range(3))
    page = open_page(f"{address}#/predictions?runs={chosen}", allowed=address, color_scheme="dark")
    cards = page.locator(".question-card")
    page.wait_for_selector("text=1–20 of 45 questions")
    worth = [[float(text) for text in card.locator(".worth").all_inner_texts()] for card in cards.all()]
    means = [sum(values) / len(values) for values in worth if values]  # none: no run has a prediction
    assert means == sorted(means) and means[0] == 0.0
    first = cards.first
    assert first.locator(".evidence").count() == 1 and first.locator(".lane-names li").count() == 3
    assert "under way or interrupted" in page.locator(".notices").inner_text()
    assert page.locator("#type-table tbody tr").count() == 3

    page.click("#type-table button:has-text('TN')")
    page.wait_for_selector("text=1–15 of 15 questions (45 in all)")
    assert set(page.locator(".question-card .badge").all_inner_texts()) == {"TN"}
    page.select_option("#view-look", "malformed")
    page.wait_for_selector("text=1–3 of 3 questions")
    assert cards.first.locator(".windows .malformed").count() in (2, 3)  # one run is under way
    page.select_option("#view-look", "with")
    page.fill("#view-text", "event 16")
    page.wait_for_selector("text=1–1 of 1 questions")
    cards.locator("summary").first.click()
    assert "I looked, and it was red." in cards.locator(".said").first.inner_text()
    cards.locator(".show-pictures").first.click()
    page.wait_for_selector(".frame-at")
    assert cards.locator(".picture-strip").first.locator("img").count() == 10
    assert page.evaluate("[...document.querySelectorAll('.frame-at')].every((each) => each.naturalWidth > 0)")
    shot(page, "predictions-dark")


def test_hostile_runs_are_inert_and_no_page_is_wider_than_its_window(tmp_path, open_page):
    run = write_curves(tmp_path / "runs" / "<img src=x onerror=window.bad=1>")
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 41, "time_s": 1e300, "</script><img src=x onerror=window.bad=1>": 1.0}) + "\n")
    (run / "config.yaml").write_text(f"name: {json.dumps(HOSTILE)}\n")
    (run / "ancestry.json").write_text(json.dumps([{"run": HOSTILE, "step": None, "source": HOSTILE, "weights": "x"}]))
    write_evaluation(run, "<b>own<img src=x onerror=window.bad=1>", ["no.mp4"], questions=3, said=HOSTILE)
    with served(tmp_path / "runs") as address:
        page = open_page(address, allowed=address, viewport={"width": 360, "height": 800})
        for name, drawn in (("runs", "#run-table"), ("curves", ".chart"), ("predictions", ".question-card")):
            page.click(f"#tab-{name}")
            page.wait_for_selector(drawn)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
            shot(page, f"{name}-narrow")
        page.click(".written summary >> nth=0")
        assert "<script>window.bad=1</script>" in page.locator(".said").first.inner_text()
        page.click(".show-pictures >> nth=0")
        page.wait_for_selector("text=no.mp4")
        page.click("#tab-curves")
        page.wait_for_selector(".chart")
        page.click("#metric-chooser summary")
        assert page.evaluate("window.bad") is None
        assert page.locator("main script, main img, main b:text('own')").count() == 0
        assert "\u202e" not in page.content()
